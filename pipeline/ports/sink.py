"""The sink: where an event is stored exactly once, together with the offset that it came from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.ports.log import LogBatch


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What became of a batch's records, as counts that add up to its size."""

    stored: int = 0
    repeated: int = 0  # event_id was stored before with the same content: a client's or producer's repeat
    conflicting: int = 0  # event_id was stored before with other content: kept as a dead letter, no poison
    dead_lettered: int = 0  # undecodable, or refused by PostgreSQL for its content
    # When the records were received (epoch milliseconds), where that was read without more ado; for how long it took.
    received_at_ms: Sequence[int] = field(default=(), compare=False, repr=False)
    seconds: float = field(default=0.0, compare=False, repr=False)  # from the first statement to the commit


@dataclass(frozen=True, slots=True)
class DeadLetterCounts:
    """How many dead letters wait for a replay."""

    open: int
    conflicts: int  # of them: their ids are stored with other content, so that no replay stores them


@dataclass(frozen=True, slots=True)
class StoredPosition:
    """How far a partition is stored."""

    next_offset: int
    last_digest: bytes | None  # of the record before it (`record_digest`); None where that is not known


class Sink(Protocol):
    """Storage with a compare-and-swap on the offset. One connection; not for use by several threads at once."""

    def stored_offsets(self, log_id: str) -> dict[int, int]:
        """Next offset to store, for each partition that has one. Raises SinkUnavailableError."""

    def settled_offsets(self, log_id: str) -> dict[int, int]:
        """The same, after every transaction that was storing something has ended: none of them can add to it.

        Waits for them a second at most. Raises SinkUnavailableError.
        """

    def stored_position(self, log_id: str, partition: int) -> StoredPosition | None:
        """How far one partition is stored; None where nothing of it is. Raises SinkUnavailableError."""

    def acquire(self, log_id: str, partition: int) -> bool:
        """Try to become the partition's only drainer, until `release` or the connection's end. Never waits."""

    def release(self, log_id: str, partition: int) -> None:
        """Give the partition up; idempotent, raises nothing."""

    def prepare(self, log_id: str, partition: int, batch: LogBatch) -> LogBatch:
        """The batch with everything made that takes no server: may run on another thread than the rest.

        What it makes is of use for a `store` of the same log and partition only. Raises nothing.
        """

    def store(
        self,
        log_id: str,
        partition: int,
        expected_offset: int,
        batch: LogBatch,
        *,
        before_commit: Callable[[], None],
        on_made: Callable[[], None] | None = None,
    ) -> StoreResult:
        """In one transaction: store the batch and move the offset from `expected_offset` to `batch.next_offset`.

        The digest of the batch's last record is kept beside the offset.

        `before_commit` runs after everything is written and before COMMIT; if it raises, the transaction is rolled
        back. `on_made` runs, at most once, when all that is left for this process to do is to wait: the time to do
        something else. Raises SinkUnavailableError, SinkContentionError, OffsetConflictError, PoisonedError, and
        BatchRefusedError where a row is refused and the batch has more than `drain_careful_records_max`; after any of
        these nothing of the batch is stored, except that a SinkUnavailableError in COMMIT may leave all of it.
        """

    def condemn(
        self,
        log_id: str,
        partition: int,
        expected_offset: int,
        batch: LogBatch,
        *,
        why: str,
        sqlstate: str | None,
        before_commit: Callable[[], None],
    ) -> StoreResult:
        """As `store`, but keep every record of the batch as a dead letter with this reason, without trying to store it.

        For a record that makes each try fail by something that does not look like its fault. Raises as `store` does;
        PoisonedError where such records are too many (`poison_condemned_records_max`).
        """

    def probe(self) -> None:
        """Do a small real write, and what storing an event does, up to its commit.

        Raises SinkUnavailableError, SinkContentionError.
        """

    def close(self) -> None:
        """Close the connection; idempotent."""
