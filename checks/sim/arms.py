"""The control laws to compare: an operator's settings, and the shipped policy that they select."""

from dataclasses import replace
from typing import Final

from checks.sim.experiments import CapByPartition, Credits, TotalLag
from checks.sim.world import Arm, Scenario
from pipeline.policies import drain_time
from pipeline.settings import Settings

# A threshold that no lag reaches: the rate is then RATE_MAX, except while the breaker is open.
_NEVER_EVENTS: Final = 999_999_999
_NO_LIMIT: Final = 10_000_000.0
# The defaults of RATE_POLICY=drain_time: a ceiling of safety in events/s, and the period.
_CEILING: Final = 50_000.0
_PERIOD_SECONDS: Final = 1.0
_DEFAULT_PERIOD: Final = Settings().regulate_seconds
# The factor by which RATE_MAX is set above the sink's capacity.
_TOO_HIGH: Final = 4.0
# The default RATE_MAX is 1,000 for a sink of 1,500: two thirds.
_DEFAULT_SHARE: Final = 2 / 3


def _bands(settings: Settings, scenario: Scenario) -> Settings:
    return _with_rate(settings, scenario.nominal * _DEFAULT_SHARE)


def _bands_too_high(settings: Settings, scenario: Scenario) -> Settings:
    return _with_rate(settings, scenario.nominal * _TOO_HIGH)


def _static(settings: Settings, scenario: Scenario) -> Settings:
    return _without_lag(_with_rate(settings, scenario.nominal))


def _no_limit(settings: Settings, scenario: Scenario) -> Settings:
    return _without_lag(_with_rate(settings, _NO_LIMIT))


def _drain_time(settings: Settings, _: Scenario) -> Settings:
    settings = replace(settings, rate_policy=drain_time.NAME, rate_max=_CEILING)
    # Only a scenario about the period sets it.
    return (
        replace(settings, regulate_seconds=_PERIOD_SECONDS)
        if settings.regulate_seconds == _DEFAULT_PERIOD
        else settings
    )


def _with_rate(settings: Settings, rate_max: float) -> Settings:
    return replace(settings, rate_max=rate_max, rate_min=min(settings.rate_min, rate_max))


def _without_lag(settings: Settings) -> Settings:
    return replace(settings, lag_degraded=_NEVER_EVENTS - 1, lag_critical=_NEVER_EVENTS)


ARMS: Final = {
    arm.name: arm
    for arm in (
        Arm("bands", _bands),
        Arm("bands, RATE_MAX too high", _bands_too_high),
        Arm("static limit", _static),
        Arm("no limit", _no_limit),
        Arm("drain_time", _drain_time),
    )
}

# Control laws that were also tried; see docs/adr/simulator.md.
EXPERIMENTS: Final = {
    arm.name: arm
    for arm in (
        Arm("drain_time, total lag", _drain_time, TotalLag),
        Arm("drain_time, caps by partition", _drain_time, CapByPartition),
        Arm("credits", _drain_time, Credits),
    )
}
