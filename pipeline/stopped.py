"""Handles a partition that is stopped until an operator decides: skip its hole in the log, or accept its batch.

Both do the work of a drain under the same rules: they hold the partition's lock, move the offset by compare-and-swap in
PostgreSQL, and raise the lowest offset before the commit. If the request does not exactly match the log and PostgreSQL,
they change nothing. Only if the log has lost its tail, the lowest offset is lowered, after the commit.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.errors import (
    FencedError,
    LogGapError,
    LogRestartedError,
    LogUnavailableError,
    PermanentError,
    RecoverableError,
    SinkUnavailableError,
)
from pipeline.last_record import holds_another_record
from pipeline.ports.control import OffsetFence
from pipeline.ports.event_sink import EventSink, StoreResult
from pipeline.ports.log import EventLog, LogBatch, LogIdentity, PartitionPosition

_LOOKS_MAX: Final = 5  # a drain may store and trim between two reads of one look
_READ_SECONDS: Final = 1.0  # how long one read of the log waits


class DoesNotFitError(PermanentError):
    """What is asked is not what the log and PostgreSQL say; nothing was changed."""


class StillDrainedError(RecoverableError):
    """A drain still has this partition: try again in some seconds."""


class _RehearsedError(Exception):
    """Ends a dry run: the writes are rolled back."""


@dataclass(frozen=True, slots=True)
class StoppedContext:
    """The adapters of this process that the commands use; no other thread may use them at the same time."""

    log: EventLog
    sink: EventSink[Any]  # nothing is encoded ahead
    fence: OffsetFence


@dataclass(frozen=True, slots=True)
class Hole:
    """The log continues at `end`; `first` is the next offset to store.

    If `end` is above `first`, the offsets between them are lost. If it is below, the log has lost its tail: the offsets
    up to `first` are stored, or were about to be. New records would be mistaken for stored ones, or cannot be appended.
    `is_refilled`: the log has been appended to since, beyond `first`. Its records below that are not the stored ones.
    """

    first: int
    end: int
    is_refilled: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A batch that stopped a partition: the records of a log from offset `first` up to `end`.

    `expected` is the stored offset at that time; None: `first`. The log declares a hole between them. `is_condemned`:
    PostgreSQL does not refuse the records as data; storing them fails.
    """

    log_id: str
    first: int
    end: int
    expected: int | None = None
    is_condemned: bool = False


@dataclass(frozen=True, slots=True)
class PartitionState:
    """The stored and the log's position of a partition."""

    stored: int | None  # the next offset to store; None: no record was stored yet
    log: PartitionPosition
    hole: Hole | None
    next_record: bytes | None  # the log's first record after the hole
    passed: int = 0  # drains had stored the records below this offset, or were about to; 0: none is known to have


def look(context: StoppedContext, partition: int) -> PartitionState:
    """The current position of a partition. Raises RecoverableError; DoesNotFitError if there is no such partition.

    A drain may have the partition. Records that it stores, and trims, while this looks are no hole.
    """
    identity = _identity(context, partition)
    for _ in range(_LOOKS_MAX):
        place = _look(context, identity, partition)
        if place.hole is None or _stored(context, identity.log_id, partition) == place.stored:
            return place
    raise StillDrainedError


def skip_gap(context: StoppedContext, partition: int, hole: Hole, *, dry_run: bool) -> int:
    """Skip a hole, and return the offset at which storing continues.

    If the log lost its tail, `hole.end` may be any offset that the log holds: events may have arrived since then, and
    are below its end. Raises DoesNotFitError if the hole is another one, RecoverableError.
    """
    _refuse_other(look(context, partition), partition, hole)  # what can't fit is no reason to wait for a drain
    identity = _identity(context, partition)
    with _held(context, identity, partition):
        place = _look(context, identity, partition)
        _refuse_other(place, partition, hole)
        stored = place.stored
        goes_on = hole.end if hole.end > hole.first else min(stored or 0, hole.end)
        if not dry_run:
            if stored is not None and stored != goes_on:
                _store(context, identity, partition, stored, LogBatch(goes_on, []))
            if hole.end < hole.first:
                # Not before the commit, because until then more is stored. If this fails, running the command again
                # repairs it.
                context.fence.lower_lowest_offset(identity.log_id, partition, goes_on)
        return goes_on


def accept_poison(
    context: StoppedContext, partition: int, batch: Poisoned, *, rehearsed: Callable[[], None] | None
) -> StoreResult | None:
    """Store a batch that stopped a partition: all refused records become dead letters, without a limit on their number.

    `context.sink` must have no limit for dead letters. With `rehearsed`, all is rolled back after that was called.
    Raises DoesNotFitError if the records are not the next to be stored, RecoverableError.
    """
    identity, log_id, first = _identity(context, partition), batch.log_id, batch.first
    if identity.log_id != log_id:
        raise DoesNotFitError(f"partition {partition} stopped on another event log: {log_id}, not {identity.log_id}")
    expected = first if batch.expected is None else batch.expected
    _refuse_stored(_stored(context, log_id, partition), partition, expected)  # likewise without the lock
    with _held(context, identity, partition):
        _refuse_stored(_stored(context, log_id, partition), partition, expected)
        records = LogBatch(first, _records(context.log, partition, expected, first, batch.end))
        if rehearsed is None:
            return _accept(context, identity, partition, expected, records, is_condemned=batch.is_condemned)
        tell = rehearsed

        def stop() -> None:
            tell()
            raise _RehearsedError

        with contextlib.suppress(_RehearsedError):
            _accept(context, identity, partition, expected, records, is_condemned=batch.is_condemned, before_raise=stop)
        return None


def _identity(context: StoppedContext, partition: int) -> LogIdentity:
    identity = context.log.identity()
    if not 0 <= partition < identity.partitions:
        raise DoesNotFitError(f"there is no partition {partition}: the event log has {identity.partitions}")
    return identity


def _refuse_other(place: PartitionState, partition: int, hole: Hole) -> None:
    """Raise DoesNotFitError if the partition has no hole, or another one."""
    found = place.hole
    if found is None:
        raise DoesNotFitError(f"partition {partition} has no hole: the log holds the next record to store")
    is_tail = found.end < found.first and hole.first == found.first and place.log.begin <= hole.end <= found.end
    if found != hole and not is_tail:
        asked = f"not from {hole.first} to {hole.end}"
        raise DoesNotFitError(f"the hole of partition {partition} is from {found.first} to {found.end}, {asked}")


def _refuse_stored(stored: int | None, partition: int, expected: int) -> None:
    """Raise DoesNotFitError if the batch that began at `expected` is not the next one to store."""
    if stored not in (expected, None):
        raise DoesNotFitError(f"partition {partition} is stored up to {stored} by now; its batch began at {expected}")


def _stored(context: StoppedContext, log_id: str, partition: int) -> int | None:
    position = context.sink.stored_position(log_id, partition)
    return None if position is None else position.next_offset


@contextlib.contextmanager
def _held(context: StoppedContext, identity: LogIdentity, partition: int) -> Iterator[None]:
    if not context.sink.acquire(identity.log_id, partition):
        raise StillDrainedError
    try:
        yield
    finally:
        context.sink.release(identity.log_id, partition)


def _look(context: StoppedContext, identity: LogIdentity, partition: int) -> PartitionState:
    stored_position = context.sink.stored_position(identity.log_id, partition)
    stored = None if stored_position is None else stored_position.next_offset
    mirrored = context.fence.mirror(identity.log_id).lowest_offsets.get(partition, 0)
    lowest = max(stored or 0, mirrored)
    place = _position(context.log, partition)  # read last: an intact log has reached at least its lowest offset
    passed = max(mirrored, place.committed or 0)
    if place.next_offset is not None and place.next_offset < lowest:
        return PartitionState(stored, place, Hole(lowest, place.next_offset), None, passed)
    if stored is None:
        return PartitionState(None, place, None, None, passed)
    if holds_another_record(context.log, stored_position, partition):
        return PartitionState(stored, place, Hole(stored, stored - 1, is_refilled=True), None, passed)
    try:
        batch = context.log.read(partition, stored, records_max=1, wait_seconds=0.0)
    except LogGapError:  # the log's end has just fallen
        return PartitionState(stored, place, Hole(stored, place.end), None, passed)
    if batch is None or not batch.values:
        hole = Hole(stored, place.begin) if place.begin > stored else None
        return PartitionState(stored, place, hole, None, passed)
    hole = None if _follows(batch, stored) else Hole(stored, batch.offset)
    return PartitionState(stored, place, hole, batch.values[0], passed)


def _position(log: EventLog, partition: int) -> PartitionPosition:
    for position in log.positions():
        if position.partition == partition:
            return position
    raise LogUnavailableError(f"the event log's partition {partition} does not report its begin and end")


def _records(log: EventLog, partition: int, expected: int, first: int, end: int) -> list[bytes]:
    """The records from `first` up to `end`; the only allowed hole is one that the log declares before them."""
    values: list[bytes] = []
    while first + len(values) < end:
        position = first + len(values)
        asked = position if values else expected
        batch = log.read(partition, asked, records_max=end - position, wait_seconds=_READ_SECONDS)
        if batch is None or not batch.values or batch.offset != position or not _follows(batch, asked):
            raise DoesNotFitError(f"the event log does not hold offset {position} of partition {partition} any more")
        values += batch.values[: end - position]
    return values


def _follows(batch: LogBatch, offset: int) -> bool:
    """Whether only a hole that the log itself declares lies between `offset` and a batch that was read there."""
    return batch.offset == offset or (batch.gap_from is not None and batch.gap_from <= offset)


def _accept(
    context: StoppedContext,
    identity: LogIdentity,
    partition: int,
    expected: int,
    batch: LogBatch,
    *,
    is_condemned: bool,
    before_raise: Callable[[], None] | None = None,
) -> StoreResult:
    """Store a batch. If storing is known to fail and still fails, keep the records as dead letters."""
    try:
        return _store(context, identity, partition, expected, batch, before_raise=before_raise)
    except SinkUnavailableError as error:
        if not is_condemned or not error.is_a_row_possible:
            raise
        return _store(context, identity, partition, expected, batch, before_raise=before_raise, condemned_for=error)


def _store(
    context: StoppedContext,
    identity: LogIdentity,
    partition: int,
    expected: int,
    batch: LogBatch,
    *,
    before_raise: Callable[[], None] | None = None,
    condemned_for: SinkUnavailableError | None = None,
) -> StoreResult:
    def raise_lowest_offset() -> None:
        if before_raise is not None:
            before_raise()
        fence, log_id, incarnation = context.fence, identity.log_id, identity.incarnation
        try:
            fence.raise_lowest_offset(log_id, incarnation, partition, batch.next_offset)
        except FencedError:
            # Perhaps no process has fenced this log since the control store lost its data: fence it here, as a drain
            # does.
            fence.fence(log_id, incarnation)
            if context.log.identity() != identity:
                raise LogRestartedError from None
            fence.raise_lowest_offset(log_id, incarnation, partition, batch.next_offset)

    place = (identity.log_id, partition, expected)
    if condemned_for is not None:
        why, sqlstate = str(condemned_for), condemned_for.sqlstate
        return context.sink.condemn(*place, batch, why=why, sqlstate=sqlstate, before_commit=raise_lowest_offset)
    return context.sink.store(*place, batch, before_commit=raise_lowest_offset)
