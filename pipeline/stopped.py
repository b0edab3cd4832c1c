"""A partition that stands still until a person decides: its hole in the log is skipped, or its batch is accepted.

Both do what a drain does, and keep to the same rules: the partition's lock is held, the offset is moved by
compare-and-swap in PostgreSQL, and the floor is raised before the commit. Where what is asked is not exactly what the
log and PostgreSQL say, nothing is changed. Only where the log has lost its tail the floor comes down, after the commit.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

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
from pipeline.ports.control import Floors
from pipeline.ports.log import EventLog, LogBatch, LogIdentity, PartitionPosition
from pipeline.ports.sink import Sink, StoreResult

_READ_SECONDS: Final = 1.0  # for which one read of the log waits


class DoesNotFitError(PermanentError):
    """What is asked is not what the log and PostgreSQL say; nothing was changed."""


class StillDrainedError(RecoverableError):
    """A drain still has this partition: try again in some seconds."""


class _RehearsedError(Exception):
    """A dry run is at its end: what was written is rolled back."""


@dataclass(frozen=True, slots=True)
class Means:
    """What it takes: the adapters of this process, which no other thread uses meanwhile."""

    log: EventLog
    sink: Sink
    floors: Floors


@dataclass(frozen=True, slots=True)
class Hole:
    """The log goes on at `end`, where `first` is the next offset to store.

    With `end` above `first` the offsets between them are lost. Below it the log has lost its tail, up to `first`: it is
    stored, or was about to be. New records would be taken for stored ones, or none can be appended.
    `is_refilled`: it has been appended to since, beyond `first`. What it holds below that is not what is stored.
    """

    first: int
    end: int
    is_refilled: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A batch for which a partition stopped: the records of a log from offset `first` up to `end`.

    `expected` is the offset that was stored then; None: `first`. Between them the log declares a hole. `is_condemned`:
    PostgreSQL does not refuse its records as data, storing them fails.
    """

    log_id: str
    first: int
    end: int
    expected: int | None = None
    is_condemned: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition stands."""

    stored: int | None  # the next offset to store; None: nothing was stored yet
    log: PartitionPosition
    hole: Hole | None
    next_record: bytes | None  # the first that the log has behind the hole


def look(means: Means, partition: int) -> Place:
    """Where a partition stands now. Raises RecoverableError, DoesNotFitError where there is no such partition."""
    return _look(means, _identity(means, partition), partition)


def skip_gap(means: Means, partition: int, hole: Hole, *, dry_run: bool) -> int:
    """Let storing go on behind a hole, and return the offset from which it does.

    Where the log lost its tail, any offset that it holds will do for `hole.end`: events may have come in since it was
    put back, and lie below its end. Raises DoesNotFitError where the hole is another one, RecoverableError.
    """
    identity = _identity(means, partition)
    with _held(means, identity, partition):
        place = _look(means, identity, partition)
        found, stored = place.hole, place.stored
        if found is None:
            raise DoesNotFitError(f"partition {partition} has no hole: what is stored next is in the log")
        is_tail = found.end < found.first and hole.first == found.first and place.log.begin <= hole.end <= found.end
        if found != hole and not is_tail:
            asked = f"not from {hole.first} to {hole.end}"
            raise DoesNotFitError(f"the hole of partition {partition} is from {found.first} to {found.end}, {asked}")
        goes_on = hole.end if hole.end > hole.first else min(stored or 0, hole.end)
        if not dry_run:
            if stored is not None and stored != goes_on:
                _store(means, identity, partition, stored, LogBatch(goes_on, []))
            if hole.end < hole.first:
                # Not before the commit: until then more is stored. The same command again makes up for a failure here.
                means.floors.lower_floor(identity.log_id, partition, goes_on)
        return goes_on


def accept_poison(
    means: Means, partition: int, batch: Poisoned, *, rehearsed: Callable[[], None] | None
) -> StoreResult | None:
    """Store a batch for which a partition stopped: what is refused becomes dead letters, however many they are.

    `means.sink` must have no limit for them. With `rehearsed` all is rolled back, once that was called. Raises
    DoesNotFitError where its records are not the next to be stored, RecoverableError.
    """
    identity, log_id, first = _identity(means, partition), batch.log_id, batch.first
    if identity.log_id != log_id:
        raise DoesNotFitError(f"partition {partition} stopped on another event log: {log_id}, not {identity.log_id}")
    with _held(means, identity, partition):
        stored = means.sink.stored_offsets(log_id).get(partition)
        expected = first if batch.expected is None else batch.expected
        if stored not in (expected, None):
            raise DoesNotFitError(
                f"partition {partition} is stored up to {stored} by now; its batch began at {expected}"
            )
        records = LogBatch(first, _records(means.log, partition, expected, first, batch.end))
        if rehearsed is None:
            return _accept(means, identity, partition, expected, records, is_condemned=batch.is_condemned)
        tell = rehearsed

        def stop() -> None:
            tell()
            raise _RehearsedError

        with contextlib.suppress(_RehearsedError):
            _accept(means, identity, partition, expected, records, is_condemned=batch.is_condemned, before_floor=stop)
        return None


def _identity(means: Means, partition: int) -> LogIdentity:
    identity = means.log.identity()
    if not 0 <= partition < identity.partitions:
        raise DoesNotFitError(f"there is no partition {partition}: the event log has {identity.partitions}")
    return identity


@contextlib.contextmanager
def _held(means: Means, identity: LogIdentity, partition: int) -> Iterator[None]:
    if not means.sink.acquire(identity.log_id, partition):
        raise StillDrainedError
    try:
        yield
    finally:
        means.sink.release(identity.log_id, partition)


def _look(means: Means, identity: LogIdentity, partition: int) -> Place:
    stored = means.sink.stored_offsets(identity.log_id).get(partition)
    floor = max(stored or 0, means.floors.mirror(identity.log_id).floors.get(partition, 0))
    place = _position(means.log, partition)  # asked last: a log that is well has come at least as far as its floor
    if place.next_offset is not None and place.next_offset < floor:
        return Place(stored, place, Hole(floor, place.next_offset), None)
    if stored is None:
        return Place(None, place, None, None)
    if holds_another_record(means.log, means.sink.stored_position(identity.log_id, partition), partition):
        return Place(stored, place, Hole(stored, stored - 1, is_refilled=True), None)
    try:
        batch = means.log.read(partition, stored, records_max=1, wait_seconds=0.0)
    except LogGapError:  # its end fell this very moment
        return Place(stored, place, Hole(stored, place.end), None)
    if batch is None or not batch.values:
        hole = Hole(stored, place.begin) if place.begin > stored else None
        return Place(stored, place, hole, None)
    hole = None if _follows(batch, stored) else Hole(stored, batch.offset)
    return Place(stored, place, hole, batch.values[0])


def _position(log: EventLog, partition: int) -> PartitionPosition:
    for position in log.positions():
        if position.partition == partition:
            return position
    raise LogUnavailableError(f"the event log's partition {partition} can't be asked where it begins and ends")


def _records(log: EventLog, partition: int, expected: int, first: int, end: int) -> list[bytes]:
    """The records from `first` up to `end`, with no hole but one that the log declares between `expected` and them."""
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
    """Whether nothing but a hole that the log itself declares lies between `offset` and a batch that was read there."""
    return batch.offset == offset or (batch.gap_from is not None and batch.gap_from <= offset)


def _accept(
    means: Means,
    identity: LogIdentity,
    partition: int,
    expected: int,
    batch: LogBatch,
    *,
    is_condemned: bool,
    before_floor: Callable[[], None] | None = None,
) -> StoreResult:
    """Store a batch; where it is known that storing it fails, and it still does, keep it as dead letters."""
    try:
        return _store(means, identity, partition, expected, batch, before_floor=before_floor)
    except SinkUnavailableError as error:
        if not is_condemned or not error.is_a_row_possible:
            raise
        return _store(means, identity, partition, expected, batch, before_floor=before_floor, condemned_for=error)


def _store(
    means: Means,
    identity: LogIdentity,
    partition: int,
    expected: int,
    batch: LogBatch,
    *,
    before_floor: Callable[[], None] | None = None,
    condemned_for: SinkUnavailableError | None = None,
) -> StoreResult:
    def raise_floor() -> None:
        if before_floor is not None:
            before_floor()
        floors, log_id, incarnation = means.floors, identity.log_id, identity.incarnation
        try:
            floors.raise_floor(log_id, incarnation, partition, batch.next_offset)
        except FencedError:
            # Perhaps nobody has fenced this log since the control store forgot: as a drain does, it is done here.
            floors.fence(log_id, incarnation)
            if means.log.identity() != identity:
                raise LogRestartedError from None
            floors.raise_floor(log_id, incarnation, partition, batch.next_offset)

    place = (identity.log_id, partition, expected)
    if condemned_for is not None:
        why, sqlstate = str(condemned_for), condemned_for.sqlstate
        return means.sink.condemn(*place, batch, why=why, sqlstate=sqlstate, before_commit=raise_floor)
    return means.sink.store(*place, batch, before_commit=raise_floor)
