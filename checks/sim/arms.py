"""The control laws that are compared: what an operator sets, and the shipped policy that follows from it."""

from dataclasses import replace
from typing import Final

from checks.sim.world import Arm, Scenario
from pipeline.settings import Settings

# A threshold that no lag reaches: the rate is then RATE_MAX, except while the breaker is open.
_NEVER_EVENTS: Final = 999_999_999
_NO_LIMIT: Final = 10_000_000.0
# Where RATE_MAX was set above what the sink takes, by this factor.
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
    )
}
