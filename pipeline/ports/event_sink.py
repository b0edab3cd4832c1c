"""The event sink: stores a batch of records at a position of the log, exactly once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pipeline.ports.log import LogBatch

# What a sink makes of a batch ahead of storing it: a type of the sink's own. Callers only pass it back.
Encoded = TypeVar("Encoded")


@dataclass(frozen=True, slots=True)
class StoreResult:
    """The outcome of a batch, as record counts that add up to its size."""

    stored: int = 0
    repeated: int = 0  # event_id was already stored with the same content: a client or producer repeated it
    conflicting: int = 0  # event_id was already stored with other content: kept as a dead letter, not as poison
    dead_lettered: int = 0  # undecodable, or the sink refused its content
    # When the records were received (epoch milliseconds), if that was cheap to read; used to measure the delay.
    received_at_ms: Sequence[int] = field(default=(), compare=False, repr=False)
    seconds: float = field(default=0.0, compare=False, repr=False)  # from the first write to the commit


@dataclass(frozen=True, slots=True)
class StoredPosition:
    """How far a partition is stored."""

    next_offset: int
    last_digest: bytes | None  # of the last stored record (`record_digest`); None if it is not known


class EventSink(Protocol[Encoded]):
    """Storage with a compare-and-swap on the offset. Not for use by several threads at once, except `encode`.

    Every sink stores the record of an offset once, also if its process is killed at any moment. A sink that also
    compares event ids says so: then an event that a client repeats is stored once too (`StoreResult.repeated`).
    """

    def acquire(self, log_id: str, partition: int) -> bool:
        """Try to become the partition's only drainer, until `release` or the end of the process. Never waits.

        Raises SinkUnavailableError.
        """

    def holds(self, log_id: str, partition: int) -> bool:
        """Whether this process is the partition's drainer, as far as it knows without asking a server.

        A lock ends with the session that acquired it, so any call may lose it. Raises nothing.
        """

    def release(self, log_id: str, partition: int) -> None:
        """Release the partition; idempotent, raises nothing."""

    def stored_position(self, log_id: str, partition: int) -> StoredPosition | None:
        """How far one partition is stored; None if no record of it is. Raises SinkUnavailableError."""

    def encode(self, log_id: str, partition: int, batch: LogBatch) -> Encoded:
        """Do all the work for storing a batch that needs no server. It may run on another thread than the other calls.

        The result is for a `store` of the same batch; for another log or partition, `store` does the work again. Raises
        nothing.
        """

    def store(
        self,
        log_id: str,
        partition: int,
        expected_offset: int,
        batch: LogBatch,
        *,
        before_commit: Callable[[], None],
        encoded: Encoded | None = None,
        on_moved: Callable[[], None] | None = None,
        on_encoded: Callable[[], None] | None = None,
    ) -> StoreResult:
        """In one transaction: store the batch and move the offset from `expected_offset` to `batch.next_offset`.

        The digest of the batch's last record is stored with the offset. `encoded` is the result of `encode`.

        `before_commit` runs after all writes and before the commit; if it raises, the transaction is rolled back.
        `on_moved` begins what `before_commit` then waits for. It runs after the transaction has moved the offset, so
        that `settled_offsets` waits for its end, and while the server has more to do; again if the batch is written
        again in another transaction. A sink need not call it. `on_encoded` runs at most once, when this process
        only has to wait for the server: the caller can do other work then. Both must return at once.

        Raises SinkUnavailableError, SinkContentionError, OffsetConflictError and PoisonedError. Raises
        BatchRefusedError if a row is refused and the batch has more than `drain_careful_records_max` records. After any
        of these, no record of the batch is stored. One exception: a SinkUnavailableError in the commit may leave the
        whole batch stored.
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
        """As `store`, but keep every record of the batch as a dead letter with this reason, without a try to store it.

        For a record that makes each try fail with an error that does not look like the record's fault. Raises as
        `store` does; raises PoisonedError if there are too many such records (`poison_condemned_records_max`).
        """

    def probe(self) -> None:
        """Do a small real write, and the steps of storing an event, up to its commit.

        Raises SinkUnavailableError, SinkContentionError.
        """

    def close(self) -> None:
        """Close the connection or files; idempotent. The sink can be used again."""
