"""Marks: how far the partitions of an event log were stored at earlier times. After a while the log may delete that."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ExpiredRecords:
    """Records of a partition that were stored long ago: those below `below`.

    The last stored record, before `next_offset`, is never among them: by its digest one sees that the log is the same.
    """

    partition: int
    below: int
    next_offset: int  # to store, now
    last_digest: bytes  # of the last stored record


class LogMarks(Protocol):
    """Makes marks, and finds what was stored before old ones. Not for use by several threads at once.

    When the sink stores a batch that ends below the stored offset (an operator sets the partition back), it lowers the
    partition's marks to that end. Both methods raise SinkUnavailableError, SinkContentionError.
    """

    def mark(self, log_id: str, *, spacing_seconds: float, keep_seconds: float) -> None:
        """Note how far the log is stored now, unless that was done within `spacing_seconds`.

        Forgets marks that newer ones replace, since these are older than `keep_seconds` too.
        """

    def expired(self, log_id: str, *, keep_seconds: float) -> tuple[list[ExpiredRecords], float]:
        """What was stored more than `keep_seconds` ago, and the sink's clock, seconds since the epoch.

        Never more than is stored now. Without partitions whose last stored record is unknown.
        """
