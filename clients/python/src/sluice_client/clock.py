"""Time. No other module of the client reads the machine's clocks."""

import time
from typing import Protocol

monotonic = time.monotonic  # seconds since an arbitrary start; never falls


def now_ms() -> int:
    """Milliseconds since the Unix epoch; may jump."""
    return time.time_ns() // 1_000_000


class Clock(Protocol):
    """The clock of a program that waits in its only thread."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never falls."""

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
