"""Rules for every rate, whichever policy decided it: the breaker's cap, and the decay without a new lag."""

import math
from dataclasses import dataclass

from pipeline.settings import Settings


def capped_by_breaker(rate: float, floor_rate: float, *, is_open: bool) -> float:
    """The effective rate (events/s): at most the lowest rate while the breaker is open. Also in control_lib.lua."""
    return min(rate, floor_rate) if is_open else rate


@dataclass(frozen=True, slots=True)
class Decay:
    """How a rate falls while there is no new lag: it stays for some time, and then halves again and again.

        rate(age) = max(floor, last_rate * 2 ** -(max(0, age - hold) / halving))

    bucket.lua has the same formula, because the server's bucket must decay the rate by itself.
    """

    hold_seconds: float
    halving_seconds: float  # > 0

    @classmethod
    def from_settings(cls, settings: Settings) -> "Decay":
        """The decay of the settings. RATE_HOLD_PERIODS of earlier versions counts in periods of the control loop."""
        if settings.rate_hold_periods:
            return cls(settings.rate_hold_periods * settings.regulate_seconds, settings.regulate_seconds)
        return cls(settings.rate_hold_seconds, settings.rate_halving_seconds)

    def rate(self, last_rate: float, age_seconds: float, *, floor: float, decided_after_seconds: float = 0.0) -> float:
        """The rate (events/s) to admit `age_seconds` after the lag was last known.

        `decided_after_seconds` is the age at which `last_rate` itself was decided: 0 if the lag was known then. With
        it, many small steps give the same result as one large step. The result is never above `last_rate`, unless the
        floor is.
        """
        halvings = self._halvings(age_seconds) - self._halvings(decided_after_seconds)
        return max(floor, last_rate * math.pow(2.0, -max(0.0, halvings)))

    def _halvings(self, age_seconds: float) -> float:
        return max(0.0, age_seconds - self.hold_seconds) / self.halving_seconds
