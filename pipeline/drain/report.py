"""What a run did, and why it ended."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.late_begin import LateBegin


class DrainOutcome(StrEnum):
    """Why a run ended."""

    FINISHED = "finished"  # its time was up
    BUSY = "busy"  # another drain holds the partition
    PAUSED = "paused"
    BREAKER_OPEN = "breaker_open"
    SINK_UNAVAILABLE = "sink_away"  # PostgreSQL failed until the end, without opening the breaker
    LOG_UNAVAILABLE = "log_away"  # the event log failed until the end
    # The control store failed until the end: no lowest offset could be raised, nothing was committed.
    CONTROL_STORE_UNAVAILABLE = "store_away"
    UNSETTLED = "unsettled"  # log or offset changed under this run until the end
    LOG_GAP = "log_gap"  # the log no longer has the next events to store: an operator must act
    POISONED = "poisoned"  # too many dead letters in a row: an operator must act


@dataclass(frozen=True, slots=True)
class DrainReport:
    """The result of a run; `error` is the reason for an early end, if something failed."""

    partition: int
    outcome: DrainOutcome
    stored: int = 0
    repeated: int = 0
    conflicting: int = 0
    dead_lettered: int = 0
    batches: int = 0
    next_offset: int | None = None  # as far as this run knows; None if it never read the offset
    more: bool = False  # there is probably more to drain
    error: str | None = None
    evidence: dict[str, Any] | None = None  # of poison: the batch, for people to look at
    began_late: LateBegin | None = None  # no record was stored before, and the log does not begin at offset 0
