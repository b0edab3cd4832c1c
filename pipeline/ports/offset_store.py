"""The offset store: how far each partition of a log is stored, and who is storing it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.ports.rate import BatchStart


@dataclass(frozen=True, slots=True)
class StoredOffsets:
    """How far all partitions of a log are stored, read in one round trip."""

    offsets: dict[int, int]  # next offset to store, for each partition that has one
    time: float | None  # the sink's clock at that time, seconds since the epoch; None: it has no clock of its own
    batches: dict[int, BatchStart] = field(default_factory=dict)  # of partitions for which it is known


class OffsetStore(Protocol):
    """The stored offsets of all partitions, as the event sink has committed them. Not for use by several threads."""

    def stored_offsets(self, log_id: str) -> dict[int, int]:
        """Next offset to store, for each partition that has one. Raises SinkUnavailableError."""

    def stored_offsets_and_time(self, log_id: str) -> StoredOffsets:
        """The same, with the sink's clock at that time, and where and when the newest batches began."""

    def settled_offsets(self, log_id: str) -> dict[int, int]:
        """The same, after every transaction that was storing events has ended, so none of them can raise the offsets.

        Waits for those transactions for at most one second. Raises SinkUnavailableError.
        """

    def why_not_stored(self, log_id: str, partition: int) -> str | None:
        """Why the drain that holds a partition stores nothing, in words; None if no drain holds it.

        Raises SinkUnavailableError.
        """

    def end_stalled_drain(self, log_id: str, partition: int, *, quiet_seconds: float) -> bool:
        """Take a partition from the drain that holds it, if the sink can do that; returns whether it did.

        For a drain that is frozen: it never releases the partition by itself. One that has sent something within the
        last `quiet_seconds` keeps it: it is busy with another partition. Raises SinkUnavailableError.
        """

    def drained(self, log_id: str, partitions: Sequence[int]) -> set[int]:
        """Those of the partitions that a drain holds now. Raises SinkUnavailableError."""

    def close(self) -> None:
        """Close the connection; idempotent."""
