"""Whether two wall clocks differ, told from outside: what one of them said, and what the look at it took."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """A look at another's clock, which said `time` at some moment between question and answer."""

    time: float  # seconds since the epoch
    asked_at: float  # by the clock of whoever looked
    answered_at: float

    def ahead_seconds(self, *, beyond: float) -> float | None:
        """How far the other clock is ahead of the looker's wall clock; below 0 where it is behind.

        None where that is no more than `beyond` and the time of the look together: it may have been spent anywhere, by
        the network or by a machine that had no CPU to give.
        """
        ahead = self.time - (self.asked_at + self.answered_at) / 2
        return ahead if abs(ahead) > beyond + abs(self.answered_at - self.asked_at) else None

    def ahead_of(self, other: "Look", *, beyond: float) -> float | None:
        """The same for two clocks that one looker has seen, by its monotonic clock: its wall clock plays no part."""
        earliest = other.time + self.asked_at - other.answered_at
        latest = other.time + self.answered_at - other.asked_at
        return Look(self.time, earliest, latest).ahead_seconds(beyond=beyond)


def difference_words(ahead_seconds: float) -> str:
    """`3.2 s ahead of`, or `behind`."""
    return f"{abs(ahead_seconds):,.1f} s {'ahead of' if ahead_seconds > 0 else 'behind'}"
