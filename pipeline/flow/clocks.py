"""Compares two wall clocks from outside: from the time that a clock returned, and the duration of the read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """One read of another clock, which returned `time` at some moment between request and response."""

    time: float  # seconds since the epoch
    asked_at: float  # by the reader's clock
    answered_at: float

    def ahead_seconds(self, *, beyond: float) -> float | None:
        """How far the other clock is ahead of the reader's wall clock; below 0 if it is behind.

        None if the difference is at most `beyond` plus the duration of the read: the network or a machine without free
        CPU may have caused it.
        """
        ahead = self.time - (self.asked_at + self.answered_at) / 2
        return ahead if abs(ahead) > beyond + abs(self.answered_at - self.asked_at) else None

    def ahead_of(self, other: "Look", *, beyond: float) -> float | None:
        """The same for two clocks that one reader has read, by its monotonic clock: its wall clock does not matter."""
        earliest = other.time + self.asked_at - other.answered_at
        latest = other.time + self.answered_at - other.asked_at
        return Look(self.time, earliest, latest).ahead_seconds(beyond=beyond)


def difference_words(ahead_seconds: float) -> str:
    """`3.2 s ahead of`, or `behind`."""
    return f"{abs(ahead_seconds):,.1f} s {'ahead of' if ahead_seconds > 0 else 'behind'}"
