"""The phases of the story: what is offered, what is done to the system, and what must come of it."""

import math
from dataclasses import dataclass
from typing import Final, Literal

Act = Literal["", "pause", "resume", "stop postgres", "start postgres"]

GRACE_SECONDS: Final = 12.0  # of two ticks of the controller and some: what is late by that is not late


@dataclass(frozen=True)
class Bands:
    """What the system admits: its rates (events/s) and thresholds (events)."""

    rate_max: float
    rate_min: float
    lag_degraded: int
    lag_critical: int

    @property
    def seconds_to_critical(self) -> float:
        """How long the admitted events take to fill an undrained log up to the upper threshold, at least.

        The rate falls on a straight line over the lag between the thresholds, so the lag comes to the upper one
        like a charge: its logarithm grows with time.
        """
        falls = (self.lag_critical - self.lag_degraded) / (self.rate_max - self.rate_min)
        return self.lag_degraded / self.rate_max + falls * math.log(self.rate_max / self.rate_min)


@dataclass(frozen=True)
class Phase:
    """One phase: for how long, what share of the full rate is offered, and what is done at its beginning."""

    name: str
    seconds: float
    share: float
    act: Act = ""
    expects: str = ""


def phases(bands: Bands, *, scale: float, own: bool) -> list[Phase]:
    """The story; `scale` makes phases longer or shorter, `own`: the system is ours to stop parts of."""

    def last(seconds: float) -> float:
        return max(5.0, seconds * scale)

    story = [
        Phase("normal", last(12), 0.8, "", "everything is admitted"),
        Phase("1.5 times the rate", last(12), 1.5, "", "the rate is admitted, the rest refused"),
        Phase("5 times the rate", last(12), 5.0, "", "the rate is admitted, the rest refused at little cost"),
    ]
    if own:
        filling = bands.seconds_to_critical + GRACE_SECONDS
        story += [
            Phase("backlog", filling, 1.5, "pause", "degraded, then critical: the rate falls to its floor"),
            Phase("catching up", last(20), 0.5, "resume", "the backlog is stored, the full rate is back"),
            Phase("PostgreSQL away", 20.0, 0.8, "stop postgres", "the breaker opens, the rate is at its floor, no 5xx"),
            Phase("recovery", max(25.0, 25 * scale), 0.5, "start postgres", "closed, drained, the full rate is back"),
        ]
    return story
