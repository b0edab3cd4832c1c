"""The phases of the scenario: the load, the action on the system, and the expected result."""

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from pipeline.policies.drain_time import DEGRADED_SECONDS, GENTLE, HEADROOM, NAME

Action = Literal["", "pause", "resume", "stop postgres", "start postgres"]

GRACE_SECONDS: Final = 12.0  # two ticks of the controller and some: a shorter delay is not late


DRAIN_TIME: Final = NAME
BANDS: Final = "bands"
TARGET_SECONDS: Final = 2.0  # DRAIN_TARGET_SECONDS of a system of our own
DEGRADED_ABOVE_SECONDS: Final = DEGRADED_SECONDS[0]  # of drain_time


@dataclass(frozen=True)
class Limits:
    """The limits of a system: rates (events/s) and thresholds (events). A given system does not show its thresholds.

    Under the policy `drain_time`, `rate_max` is the rate at which PostgreSQL stores: the policy must find it.
    """

    rate_max: float
    rate_min: float
    lag_degraded: int | None = None
    lag_critical: int | None = None
    policy: str = BANDS
    shadow: str = ""  # a second policy, which admits nothing
    sink: float | None = None  # events/s that PostgreSQL stores; None: as many as it can

    @property
    def follows_drain(self) -> bool:
        """Whether the rate follows the speed of PostgreSQL, and not the lag."""
        return self.policy == DRAIN_TIME

    @property
    def is_held(self) -> bool:
        """Whether PostgreSQL stores a known number of events per second."""
        return self.sink is not None

    @property
    def backlog_seconds(self) -> float:
        """The time in which an undrained log lowers the rate as far as the backlog phase expects."""
        return self.seconds_to_lowest if self.follows_drain else self.seconds_to_critical

    @property
    def seconds_to_critical(self) -> float:
        """The least time in which the admitted events fill an undrained log up to the upper threshold.

        Between the thresholds the rate falls linearly with the lag, so the lag approaches the upper one
        like a charge: its logarithm grows with time. Only if the thresholds are known.
        """
        assert self.lag_degraded is not None
        assert self.lag_critical is not None
        falls = (self.lag_critical - self.lag_degraded) / (self.rate_max - self.rate_min)
        return self.lag_degraded / self.rate_max + falls * math.log(self.rate_max / self.rate_min)

    @property
    def seconds_to_lowest(self) -> float:
        """The time in which `drain_time` reaches the lowest rate and the mode degraded, while nothing is stored.

        The drain time grows by a second per second while the rate is the capacity. Beyond GENTLE targets the rate falls
        linearly with the drain time, down to the lowest rate.
        """
        lowest = self.rate_min / self.rate_max
        gentle = GENTLE * TARGET_SECONDS
        falls = TARGET_SECONDS * math.log((2 - GENTLE) / lowest)
        left = max(0.0, DEGRADED_ABOVE_SECONDS - TARGET_SECONDS * (2 - lowest))
        return gentle / (1 - HEADROOM) + falls + left / lowest


@dataclass(frozen=True)
class Phase:
    """One phase: its length, the offered share of the full rate, and the action at its beginning."""

    name: str
    seconds: float
    share: float
    action: Action = ""
    expects: str = ""


@dataclass(frozen=True)
class _Stretch:
    """The normal length of a phase, and its minimum if the scenario is shortened; None: the length is fixed."""

    seconds: float
    seconds_min: float | None = None


def phases(limits: Limits, *, own: bool, seconds: float | None = None) -> list[Phase]:
    """The scenario, `seconds` long in all, or of its normal length; `own`: the test may stop parts of the system.

    Raises ValueError if `seconds` is too short for the scenario.
    """
    scenario = _scenario(limits, own=own)
    if seconds is None:
        return [phase for phase, _ in scenario]
    lengths = _stretched([stretch for _, stretch in scenario], seconds)
    return [replace(phase, seconds=length) for (phase, _), length in zip(scenario, lengths, strict=True)]


def seconds_least(limits: Limits, *, own: bool) -> float:
    """The length of the shortest scenario."""
    return sum(_least(stretch) for _, stretch in _scenario(limits, own=own))


def _scenario(limits: Limits, *, own: bool) -> list[tuple[Phase, _Stretch]]:
    def phase(
        name: str, stretch: _Stretch, share: float, expects: str, *, action: Action = ""
    ) -> tuple[Phase, _Stretch]:  # fmt: skip
        return Phase(name, stretch.seconds, share, action, expects), stretch

    load = _Stretch(12.0, 5.0)
    # The words for the limit: what the rate follows.
    rate = "what PostgreSQL stores" if limits.follows_drain else "the rate"
    falls = (
        "degraded above 4 s to drain: the rate falls to its lowest"
        if limits.follows_drain
        else "degraded, then critical: the rate falls to its lowest"
    )
    full = "the rate is what PostgreSQL stores again" if limits.follows_drain else "the full rate is back"
    scenario = [
        phase("normal", load, 0.8, "everything is admitted"),
        phase("1.5 times the rate", load, 1.5, f"{rate} is admitted, the rest refused"),
        phase("5 times the rate", load, 5.0, f"{rate} is admitted, the rest refused at little cost"),
    ]
    if own:
        backlog = _Stretch(limits.backlog_seconds + GRACE_SECONDS)
        # A held PostgreSQL stores the backlog at its rate, and half that rate comes in meanwhile.
        catching_up = _Stretch(25.0, 20.0) if limits.is_held else _Stretch(20.0, 5.0)
        scenario += [
            phase("backlog", backlog, 1.5, falls, action="pause"),
            phase("catching up", catching_up, 0.5, f"the backlog is stored, {full}", action="resume"),
            phase(
                "PostgreSQL outage", _Stretch(20.0), 0.8, "the breaker opens, the rate is at its lowest, no 5xx",
                action="stop postgres",
            ),
            phase("recovery", _Stretch(25.0, 25.0), 0.5, f"closed, drained, {full}", action="start postgres"),
        ]  # fmt: skip
    return scenario


def _least(stretch: _Stretch) -> float:
    return stretch.seconds if stretch.seconds_min is None else stretch.seconds_min


def _stretched(stretches: list[_Stretch], seconds: float) -> list[float]:
    """Lengths that add up to `seconds`: all scalable phases change alike, but none goes below its minimum."""
    least = sum(_least(stretch) for stretch in stretches)
    if seconds < least:
        raise ValueError(f"the scenario takes {math.ceil(least)} s at least")
    lengths = [_least(stretch) for stretch in stretches]
    scaled = {index for index, stretch in enumerate(stretches) if stretch.seconds_min is not None}
    while scaled:
        left = seconds - sum(length for index, length in enumerate(lengths) if index not in scaled)
        scale = left / sum(stretches[index].seconds for index in scaled)
        short = {index for index in scaled if stretches[index].seconds * scale < lengths[index]}
        if not short:
            for index in scaled:
                lengths[index] = stretches[index].seconds * scale
            break
        scaled -= short  # at their minimum, which leaves less for the others
    return lengths
