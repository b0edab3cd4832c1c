"""The disturbed parts by time, from the executed schedule. The judge uses them to excuse the effects of a fault.

All times are seconds since the epoch by the harness' own clock, which no fault touches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """A part of the system that a fault may disturb."""

    INGEST = "ingest"
    LOG = "log"
    CONTROL = "control"  # the control server
    DATABASE = "database"
    WORKERS = "workers"  # the workers that drain
    LOOP = "loop"  # control worker and Beat
    PAUSE = "pause"  # consumption, paused by an operator


EVERYTHING = frozenset(Part)


@dataclass(frozen=True, slots=True)
class Window:
    """The time of a fault, from before its injection until after its repair.

    Between `made_at` and `repair_at`, the `dead` parts are unreachable. If `accepts_nothing` is set, no event can get
    the copies that its acknowledgement promises in this time.
    """

    name: str
    start: float
    end: float
    touches: frozenset[Part]
    dead: frozenset[Part] = frozenset()
    made_at: float = 0.0
    repair_at: float = 0.0
    accepts_nothing: bool = False


@dataclass(frozen=True, slots=True)
class ClockSpan:
    """From `start` to `end` the wall clock of some ingest process differed by `shift_seconds`."""

    start: float
    end: float
    shift_seconds: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """From `start` to `end` PostgreSQL refused the rows whose offset is `rest` modulo `every`."""

    start: float
    end: float
    sqlstate: str
    every: int
    rest: int


class Windows:
    """All windows of a run."""

    def __init__(self, windows: Iterable[Window] = ()) -> None:
        self._windows = sorted(windows, key=lambda one: one.start)

    def touching(
        self, parts: Iterable[Part], start: float, end: float, *, after_seconds: float = 0.0
    ) -> Sequence[Window]:
        """Windows that touch any of these parts and overlap the time, or ended at most `after_seconds` before it."""
        wanted = frozenset(parts)
        return [
            one
            for one in self._windows
            if one.start <= end and one.end + after_seconds >= start and one.touches & wanted
        ]

    def accepts_nothing(self, start: float, end: float) -> bool:
        """Whether no event could get its copies in the whole time."""
        return any(one.accepts_nothing and one.made_at <= start and end <= one.repair_at for one in self._windows)

    def was_dead(self, part: Part, start: float, end: float, *, since_seconds: float) -> bool:
        """Whether a part was unreachable in the whole time and in the `since_seconds` before it."""
        return any(
            part in one.dead and one.made_at + since_seconds <= start and end <= one.repair_at for one in self._windows
        )
