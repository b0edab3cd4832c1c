"""The event log: where an event is durable before it is acknowledged."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SetUpFault:
    """Something wrong with how a log is set up, though it works."""

    what: str  # one sentence that names it
    remedy: str  # what to do
    loses_events: bool  # events that were acknowledged would be lost: ingest does not start on such a log


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """Which log this is.

    `log_id` keys everything that is stored: it changes when the log is another one (a new topic, an emptied
    Redis), so that offsets of two logs never mix. `incarnation` changes whenever the log may have come back
    without its tail (Redis' `run_id`; on Kafka the epochs of the partitions' leaders). `partitions` may grow on
    Kafka. `faults` is of this moment, and no part of who the log is.
    """

    log_id: str
    incarnation: str
    partitions: int
    faults: tuple[SetUpFault, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Consecutive records of one partition: the record at `offset + i` is `values[i]`.

    A hole in the log always starts a new batch. `gap_from` is set where the log itself declares the hole before
    `offset`: offsets from `gap_from` up to `offset` were given up when the log came back without its tail. `made` is
    the sink's: what its `prepare` has made of the records.
    """

    offset: int
    values: list[bytes]
    gap_from: int | None = None
    made: object = field(default=None, compare=False, repr=False)

    @property
    def next_offset(self) -> int:
        """The offset after the last record."""
        return self.offset + len(self.values)

    @property
    def last_digest(self) -> bytes | None:
        """The digest of the last record; None where there is none (offsets that are given up)."""
        return record_digest(self.values[-1]) if self.values else None


def record_digest(value: bytes) -> bytes:
    """16 bytes by which a record is told from any other: the same in every version, for it is stored."""
    return hashlib.blake2b(value, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class PartitionPosition:
    """Where a partition begins and ends, and how far it was consumed; all are offsets of a next record.

    `committed` is None where the log holds no commit (none yet, or expired), or can't be asked for it.
    `next_offset` is what the next record that is appended gets: the end or, where the log came back without its tail, a
    floor above it. It is None where nobody has asked for the floors since the log was restarted: they are asked for
    before the next append.
    """

    partition: int
    begin: int
    end: int
    committed: int | None
    next_offset: int | None = None


class FloorSource(Protocol):
    """Where a log that came back without its tail learns which offsets must not be used again."""

    def __call__(self, log_id: str, incarnation: str, *, is_new: bool = False) -> Mapping[int, int]:
        """Next offset that was ever stored, for each partition, after fencing off every older incarnation.

        `is_new`: the caller has just made this log, so that nothing of it can be stored. Raises RecoverableError
        where that can't be known now: the append is refused then.
        """


class EventLog(Protocol):
    """An ordered, durable, partitioned log with integer offsets: the offset is that of the *next* record to read.

    Partitions are numbered from 0; offsets of a partition start at 0 and grow by one for each event. Adapters are
    made without touching the network and connect on first use. A call from several threads at once is not allowed,
    except that `append` may run beside the others.
    """

    def identity(self) -> LogIdentity:
        """Ask the log who it is, creating its topic or streams where they are missing.

        Raises LogUnavailableError, LogMisconfiguredError.
        """

    def prepare(self) -> None:
        """Do now what the first append would do first: connect, and learn what must not be written over.

        A process that calls it before it takes requests does not let its first client wait for that. Costs nothing
        where it was done before. Raises LogUnavailableError where an append would.
        """

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Append (partition, value) pairs, in order within each partition; returns when all are durable.

        Never repeats an append by itself. Raises, within about one second: LogFullError and LogUnavailableError
        when nothing was written, LogIndeterminateError when any subset may have been; LogPartialError where that
        differs by partition, or is the trouble of these partitions and not of the log. A log that came back without
        its tail takes nothing below what is stored.
        """

    def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
        """Read consecutive records from `offset` on; None when there are none after `wait_seconds`.

        Raises LogUnavailableError; LogRestartedError when the log, or this partition of it, may have lost its tail
        since the last `identity()`; LogGapError when `offset` lies beyond the end of a log that cannot be raised
        (Kafka).
        """

    def commit(self, log_id: str, partition: int, offset: int) -> None:
        """Tell the log `log_id` that everything below `offset` is stored: for lag, and so that it may be trimmed.

        The latest word counts, also where it is lower: PostgreSQL may have come back with less. What was trimmed stays
        so. Where the log is another one by now, nothing is said to it: its events at these offsets are others. Best
        effort: never blocks for long, and a failure is only logged, since PostgreSQL's offset decides.
        """

    def positions(self, log_id: str | None = None) -> list[PartitionPosition]:
        """Begin, end and commit of every partition that can be asked, by number; the others are left out.

        They are of the log of the last `identity()`, or of `log_id`; with a `log_id` nothing is made where it is
        missing. Raises LogUnavailableError (never a guess) where no partition can be asked, and where the log is
        another one than at the last `identity()`.
        """

    def close(self) -> None:
        """Let go of connections; idempotent."""
