"""Computes the rate from the lag."""

import math
from dataclasses import dataclass

from pipeline.names import Mode
from pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class RateDecision:
    """A rate in events/s, and the mode that explains it."""

    rate: float
    mode: Mode


@dataclass(frozen=True, slots=True)
class BandPolicy:
    """Full rate below the lower threshold, the lowest rate (RATE_MIN) above the upper one, a line between them.

        rate(lag) = rate_max - (rate_max - rate_min) * (lag - lag_degraded) / (lag_critical - lag_degraded)

    Each threshold belongs to the line. There the line has the value of the neighbouring band, so the rate has no jump.
    """

    rate_max: float  # events/s, ≥ rate_min
    rate_min: float  # events/s, > 0
    lag_degraded: int  # events, < lag_critical
    lag_critical: int  # events

    @classmethod
    def from_settings(cls, settings: Settings) -> "BandPolicy":
        """The bands of the settings, which have already been validated."""
        return cls(settings.rate_max, settings.rate_min, settings.lag_degraded, settings.lag_critical)

    @property
    def floor_rate(self) -> float:
        """The lowest rate that `decide` gives, events/s."""
        return self.rate_min

    def decide(self, lag: int) -> RateDecision:
        """The rate for a lag in events (≥ 0)."""
        if lag < self.lag_degraded:
            return RateDecision(self.rate_max, Mode.NORMAL)
        if lag > self.lag_critical:
            return RateDecision(self.rate_min, Mode.CRITICAL)
        share = (lag - self.lag_degraded) / (self.lag_critical - self.lag_degraded)
        rate = self.rate_max - (self.rate_max - self.rate_min) * share
        return RateDecision(max(self.rate_min, rate), Mode.DEGRADED)


def hold_or_decay(
    last_rate: float,
    seconds_since_known: float,
    *,
    period_seconds: float,
    hold_periods: int,
    floor: float,
    decided_after_seconds: float = 0.0,
) -> float:
    """The rate (events/s) to admit while there is no new lag: it stays for some periods, then halves in each period.

        rate(age) = max(floor, last_rate * 2 ** -(max(0, age - hold) / period))

    `decided_after_seconds` is the age at which `last_rate` itself was decided: 0 if the lag was known then. With it,
    many small steps give the same result as one large step. The result is never above `last_rate`, unless the floor is.
    """
    hold_seconds = hold_periods * period_seconds
    halvings = (
        max(0.0, seconds_since_known - hold_seconds) - max(0.0, decided_after_seconds - hold_seconds)
    ) / period_seconds
    return max(floor, last_rate * math.pow(2.0, -max(0.0, halvings)))
