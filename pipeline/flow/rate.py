"""Rules for every rate, whichever policy decided it: the breaker's cap, and the decay without a new lag."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.settings import Settings


def capped_by_breaker(rate: float, floor_rate: float, *, is_open: bool) -> float:
    """The effective rate (events/s): at most the lowest rate while the breaker is open. Also in control_lib.lua."""
    return min(rate, floor_rate) if is_open else rate


LOW_RATES_MAX: Final = 8  # more than a bucket misses between two calls


@dataclass(frozen=True, slots=True)
class LowRate:
    """An effective rate (events/s), and the version under which it was published."""

    version: int
    rate: float


def with_low_rate(lows: Sequence[LowRate], version: int, rate: float) -> tuple[LowRate, ...]:
    """The rates since a few versions, without those that a lower one followed: so each is below all after it.

    If there are too many, the two oldest become one: the lower rate, at the later version. Also in control_lib.lua.
    """
    kept = [*(low for low in lows if low.rate < rate), LowRate(version, rate)]
    if len(kept) > LOW_RATES_MAX:
        kept[:2] = [LowRate(kept[1].version, kept[0].rate)]
    return tuple(kept)


def lowest_since(lows: Sequence[LowRate], version: int) -> float:
    """The lowest rate (events/s) that was published after this version; infinity if there was none."""
    return next((low.rate for low in lows if low.version > version), math.inf)


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
