"""The event log: makes an event durable before it is acknowledged."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

LOST_SHOWN_SECONDS: Final = 3600  # how long a loss is reported: it can't be undone, and the control events keep it


@dataclass(frozen=True, slots=True)
class SetUpFault:
    """A problem in the configuration of a log that works."""

    what: str  # one sentence that names the problem
    remedy: str  # the action that fixes it
    loses_events: bool  # acknowledged events would be lost: ingest does not start on such a log


@dataclass(frozen=True, slots=True)
class MissingReplicas:
    """Replicas of a log that were asked for, and that are not there or lag behind now."""

    what: str  # one sentence that names them
    look_at: str
    refuses_events: bool  # too few are left for an accepted event, so events are refused


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """The identity of a log.

    `log_id` is part of the key of all stored data. It changes when the log is another one (a new topic, an emptied
    Redis), so that offsets of two logs never mix. `incarnation` changes whenever the log may have come back without its
    tail (Redis' `run_id`; on Kafka the epochs of the partitions' leaders). `partitions` may grow on Kafka. The other
    fields are the current facts, and not part of the identity.
    """

    log_id: str
    incarnation: str
    partitions: int
    faults: tuple[SetUpFault, ...] = field(default=(), compare=False)
    missing_replicas: MissingReplicas | None = field(default=None, compare=False)
    began_by: str = field(default="", compare=False)  # how the incarnation began, in words; empty: unknown


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Consecutive records of one partition: the record at `offset + i` is `values[i]`.

    A hole in the log always starts a new batch. `gap_from` is set if the log itself declares the hole before `offset`:
    the offsets from `gap_from` up to `offset` were given up when the log came back without its tail.
    """

    offset: int
    values: list[bytes]
    gap_from: int | None = None

    @property
    def next_offset(self) -> int:
        """The offset after the last record."""
        return self.offset + len(self.values)

    @property
    def last_digest(self) -> bytes | None:
        """The digest of the last record; None if there is no record (offsets that were given up)."""
        return record_digest(self.values[-1]) if self.values else None


def record_digest(value: bytes) -> bytes:
    """16 bytes that identify a record. The digest is stored, so it must be the same in every version."""
    return hashlib.blake2b(value, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class PartitionPosition:
    """Where a partition begins and ends, and how far it was consumed; each value is the offset of a next record.

    `committed` is None if the log holds no commit (none yet, or expired), or if it did not answer.
    `next_offset` is the offset of the next record to be appended. It is the end; if the log came back without its tail,
    it is the lowest offset that may be used, which is above the end. It is None if no process has read these lowest
    offsets since the log restarted: that happens before the next append. `lost` is the number of acknowledged records
    that the log lost when its present incarnation began, and that are not stored, as far as its writers know; it is
    reported for some time only.
    """

    partition: int
    begin: int
    end: int
    committed: int | None
    next_offset: int | None = None
    lost: int = 0


class LowestOffsetsSource(Protocol):
    """Returns the offsets that must not be reused by a log that came back without its tail."""

    def __call__(self, log_id: str, incarnation: str, *, is_new: bool = False) -> Mapping[int, int]:
        """Fence off every older incarnation, and return the next offset that was ever stored, for each partition.

        `is_new`: the caller has just created this log, so no record of it can be stored. Raises RecoverableError if the
        offsets are not available now: then the append is refused.
        """


class EventLog(Protocol):
    """An ordered, durable, partitioned log with integer offsets: an offset is that of the *next* record to read.

    Partitions are numbered from 0. Offsets of a partition start at 0 and grow by one for each event. The constructor of
    an adapter does not use the network; the adapter connects on first use. Several threads must not call it at the same
    time, except that `append` may run beside the other calls.
    """

    def identity(self) -> LogIdentity:
        """Read the identity of the log. Creates missing topics or streams.

        Raises LogUnavailableError, LogMisconfiguredError.
        """

    def prepare(self) -> None:
        """Do the preparation of the first append now: connect, and read which offsets must not be overwritten.

        A process calls it before it accepts requests, so that its first client does not wait. A repeated call costs
        nothing. Raises LogUnavailableError if an append would raise it.
        """

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Append (partition, value) pairs, in order within each partition; returns when all are durable.

        Never retries an append by itself. Raises within about one second. LogFullError and LogUnavailableError mean
        that nothing was written. LogIndeterminateError means that any subset may have been written. LogPartialError
        means that the result differs by partition, or that these partitions failed and not the whole log. A log that
        came back without its tail uses no offset below the stored ones.
        """

    def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
        """Read consecutive records from `offset` on; None if there are none after `wait_seconds`.

        Raises LogUnavailableError. Raises LogRestartedError if the log, or this partition, may have lost its tail since
        the last `identity()`. Raises LogGapError if `offset` lies beyond the end of a log that cannot be raised
        (Kafka).
        """

    def ready(self, offsets: Mapping[int, int], *, wait_seconds: float) -> set[int]:
        """Wait until one of the partitions has a record from its offset on; returns those that have one, perhaps none.

        A partition that can't say so is among them: its `read` has the reason. Raises LogUnavailableError and
        LogRestartedError as `read` does.
        """

    def commit(self, log_id: str, partition: int, offset: int) -> None:
        """Commit to the log `log_id` that everything below `offset` is stored: for the lag, and for trimming.

        The last commit wins, even if it is lower: PostgreSQL may have come back with fewer events. Trimmed records stay
        trimmed. If the log is another one now, nothing is committed: its offsets belong to other events. Best effort:
        never blocks for long, and a failure is only logged, because PostgreSQL's offset decides.
        """

    def positions(self, log_id: str | None = None) -> list[PartitionPosition]:
        """Begin, end and commit of every partition that answers, in order of partition number; the others are left out.

        The positions are those of the log of the last `identity()`, or of `log_id`. With a `log_id`, nothing is created
        if it is missing. Raises LogUnavailableError (never guesses) if no partition answers, or if the log has changed
        since the last `identity()`.
        """

    def close(self) -> None:
        """Close the connections; idempotent."""
