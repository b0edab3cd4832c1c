"""One partition's way from the log to the sink, step by step: look up the stored offset, read, store."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum, auto
from functools import partial
from typing import Final, Generic

from pipeline.drain.context import DrainContext
from pipeline.drain.known_log import KnownLog
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.errors import (
    BatchRefusedError,
    FencedError,
    LogGapError,
    LogMisconfiguredError,
    LogRestartedError,
    LogUnavailableError,
    OffsetConflictError,
    PoisonedError,
    RecoverableError,
    SinkContentionError,
    SinkUnavailableError,
    StoreUnavailableError,
)
from pipeline.last_record import holds_another_record
from pipeline.late_begin import LateBegin, late_begin_words
from pipeline.ports.event_sink import Encoded, StoredPosition, StoreResult
from pipeline.ports.log import LogBatch, LogIdentity
from pipeline.prefetch import Piece, Prefetch

_logger = logging.getLogger(__name__)

# After a lost connection, its backend may hold the partition's lock a moment longer.
_BUSY_TRIES_MAX: Final = 6


class Did(Enum):
    """What one step did."""

    LOOK_UP = auto()
    READ = auto()
    READ_NOTHING = auto()
    STORE = auto()
    REFUSE = auto()  # the batch was refused as it is; the next ones are smaller


class BusyError(Exception):
    """Another drain holds the partition."""


class Transfer(Generic[Encoded]):
    """The state of one partition in a run: its lock, its offset, the records in memory, and what was stored.

    It does one step at a time, and never waits between two. How long that goes on, and what follows an error, the run
    decides.
    """

    def __init__(
        self, partition: int, context: DrainContext[Encoded], executor: ThreadPoolExecutor, known: KnownLog
    ) -> None:
        self._partition = partition
        self._known = known
        self._context = context
        self._executor = executor
        self._prefetch = Prefetch(
            context.log, partition, context.settings, clock=context.clock, executor=executor, encode=self._encode
        )
        self._identity: LogIdentity | None = None  # that the position and the records in memory belong to
        self._position: int | None = None  # the stored offset; None: must be read
        self._next_offset: int | None = None  # the last known one
        self._gap_at: int | None = None  # the stored offset behind which records were missing
        self._held_log_id: str | None = None  # of the lock that this run holds
        self._busy_tries = 0
        self._fence_is_unavailable = False
        self._total = StoreResult()
        self._batches = 0
        self._log_begin: LateBegin | None = None  # if no record of the partition is stored yet
        self._began_late: LateBegin | None = None

    @property
    def position(self) -> int | None:
        """The stored offset; None if it must be read."""
        return self._position

    @property
    def busy_tries(self) -> int:
        """How often in a row another drain had the partition."""
        return self._busy_tries

    @property
    def is_busy(self) -> bool:
        """Whether another drain has the partition."""
        return self._busy_tries > 0 and (self._held_log_id is None or self._busy_tries >= _BUSY_TRIES_MAX)

    def drop(self) -> None:
        """Drop the records in memory."""
        self._prefetch.drop()

    def step(self, *, ends_at: float, is_turn: bool) -> Did:
        """Look up the partition's offset, or read, or store one piece. In a turn, a read does not wait.

        `ends_at`: when the run or the turn ends (monotonic seconds). No read waits longer, and none begins ahead then.
        """
        prefetch, breaker = self._prefetch, self._context.breaker
        identity = self._known.get()
        if identity is not self._identity:
            if self._identity is not None:  # another partition's run has read it anew
                prefetch.drop()
            self._identity, self._position = identity, None
            if self._partition >= identity.partitions:
                raise LogMisconfiguredError(f"the event log has no partition {self._partition}")
        if prefetch.first is not None and not self._context.sink.holds(identity.log_id, self._partition):
            self._position = None  # the session ended, and another drain may have the partition since
        if self._position is None:
            self._position = self._next_offset = breaker.call(lambda: self._look_up(identity), stores=False)
            if prefetch.first is not None and prefetch.first.expected_offset != self._position:
                # A commit whose response was lost has taken effect, or another drain moved the offset: read from the
                # new offset.
                prefetch.drop()
            return Did.LOOK_UP
        if prefetch.first is None:
            left_seconds = 0.0 if is_turn else ends_at - self._context.clock.monotonic()
            prefetch.read(self._position, max(0.0, min(self._context.poll_seconds(), left_seconds)))
            # If a pause began while this read waited, the records must not be stored.
            return Did.READ_NOTHING if prefetch.first is None else Did.READ
        if self._fence_is_unavailable:
            # This call is cheaper than writing a batch in vain.
            self._raise_lowest_offset(identity, prefetch.first.batch.next_offset)
            self._fence_is_unavailable = False
        if self._context.pace.must_ask(self._position):
            breaker.call(self._context.sink.probe)  # a success resets the count of failures: the batch is their cause
            self._context.pace.asked()
        prefetch.limit(self._context.pace.records)
        piece = prefetch.first
        self._note_late_begin(piece.batch)
        try:
            result = breaker.call(lambda: self._store(identity, piece, ends_at))
        except BatchRefusedError:
            self._context.pace.refused()
            prefetch.collect()
            return Did.REFUSE
        self._stored(result)
        prefetch.collect()
        return Did.STORE

    def _store(self, identity: LogIdentity, piece: Piece[Encoded], ends_at: float) -> StoreResult:
        """Store a batch. If it is a record that alone makes storing fail, keep it as a dead letter instead."""
        expected_offset, batch, encoded = piece
        pace, sink, place = self._context.pace, self._context.sink, (identity.log_id, self._partition, expected_offset)
        is_last = self._context.clock.monotonic() >= ends_at
        raise_lowest_offset = partial(self._raise_lowest_offset, identity, batch.next_offset)
        raising: list[Future[None]] = []

        def on_moved() -> None:
            raising.append(self._executor.submit(raise_lowest_offset))

        def before_commit() -> None:
            if raising:
                raising[-1].result()  # nobody waits for a transaction that was rolled back before
            else:
                raise_lowest_offset()

        try:
            if pace.is_culprit(expected_offset):
                _logger.error(
                    "partition %d: the record at offset %d makes storing fail, and is kept as a dead letter: %s",
                    self._partition,
                    batch.offset,
                    pace.why,
                    extra={"action": "record_condemned", "partition": self._partition, "offset": batch.offset},
                )
                name = self._context.settings.sink_name
                why = f"storing it failed each time, while {name} took other writes: {pace.why}"
                return sink.condemn(*place, batch, why=why, sqlstate=pace.sqlstate, before_commit=before_commit)
            begin = None if is_last else self._prefetch.begin
            return sink.store(
                *place, batch, before_commit=before_commit, encoded=encoded, on_moved=on_moved, on_encoded=begin
            )
        except SinkUnavailableError as error:
            pace.failed(expected_offset, len(batch.values), error)
            raise
        except SinkContentionError as error:
            pace.contended(expected_offset, len(batch.values), error)
            raise
        except PoisonedError:
            pace.forget()
            raise

    def _encode(self, batch: LogBatch) -> Encoded | None:
        """Encode a batch that was read ahead, for the sink."""
        identity = self._identity
        return None if identity is None else self._context.sink.encode(identity.log_id, self._partition, batch)

    def _look_up(self, identity: LogIdentity) -> int:
        """Lock the partition and return its stored offset; if there is none, the beginning of the log."""
        sink = self._context.sink
        if self._held_log_id not in {None, identity.log_id}:
            sink.release(str(self._held_log_id), self._partition)
            self._held_log_id = None
        if not sink.acquire(identity.log_id, self._partition):
            self._busy_tries += 1
            raise BusyError
        self._held_log_id = identity.log_id
        self._busy_tries = 0
        stored = sink.stored_position(identity.log_id, self._partition)
        self._log_begin = None
        if stored is None:
            self._log_begin = self._known.begin(self._partition)
            return self._log_begin.begin
        self._compare(stored)
        self._prefetch.stored_up_to(identity.log_id, stored.next_offset)
        return stored.next_offset

    def _compare(self, stored: StoredPosition) -> None:
        """Raise LogGapError if the log holds another record at the offset of the last stored one."""
        if holds_another_record(self._context.log, stored, self._partition):
            raise LogGapError(
                f"partition {self._partition}: the event log holds another record at offset {stored.next_offset - 1} "
                "than the one that was stored from there: it lost its tail, and has records below the stored offset "
                "that are not stored"
            )

    def _note_late_begin(self, batch: LogBatch) -> None:
        """Report that earlier records were stored elsewhere or are lost, unless the log itself declares that."""
        late, self._log_begin = self._log_begin, None
        if late is None or late.missing_below == 0 or batch.gap_from == 0:
            return
        self._began_late = late
        _logger.warning(
            "partition %d: it begins at offset %d. %s",
            self._partition,
            late.begin,
            late_begin_words(self._context.settings, [late]),
            extra={"action": "partition_began_late", "partition": self._partition, "offset": late.begin},
        )

    def _raise_lowest_offset(self, identity: LogIdentity, next_offset: int) -> None:
        self._context.fence.raise_lowest_offset(identity.log_id, identity.incarnation, self._partition, next_offset)

    def _stored(self, result: StoreResult) -> None:
        """Count the committed batch, and continue after it."""
        assert self._identity is not None  # noqa: S101 - nothing is stored without an identity
        self._context.pace.stored(result)
        self._position = self._next_offset = self._prefetch.pop(self._identity.log_id)
        self._batches += 1
        total = self._total
        self._total = StoreResult(
            stored=total.stored + result.stored,
            repeated=total.repeated + result.repeated,
            conflicting=total.conflicting + result.conflicting,
            dead_lettered=total.dead_lettered + result.dead_lettered,
        )
        if self._context.on_stored is not None:
            self._context.on_stored(self._position, result)

    # --- failures ---------------------------------------------------------------------------------

    def is_gap(self) -> bool:
        """Whether records are missing behind a stored offset that was read again since they were found missing.

        Otherwise another drain may have stored them, and trimmed the log: one that had lost its lock unnoticed, or an
        older version.
        """
        if self._position is None or self._position == self._gap_at:
            return True
        self._gap_at, self._position = self._position, None
        self._prefetch.drop()
        return False

    def recover(self, error: RecoverableError) -> DrainOutcome:
        """Reset the state that an error made uncertain. Returns the outcome of the run if this was its last try."""
        self._prefetch.settle()
        _logger.warning(
            "drain of partition %d: %s",
            self._partition,
            error,
            extra={"action": "drain_retry", "partition": self._partition, "error": type(error).__name__},
        )
        match error:
            case SinkUnavailableError():
                self._position = None  # a COMMIT without a response may have taken effect
                return DrainOutcome.SINK_UNAVAILABLE
            case SinkContentionError():
                return DrainOutcome.SINK_UNAVAILABLE
            case OffsetConflictError():
                self._position = None
                return DrainOutcome.UNSETTLED
            case FencedError() | LogRestartedError():
                self._known.forget(must_fence=isinstance(error, FencedError))
                self._identity = self._position = None
                self._prefetch.drop()
                return DrainOutcome.UNSETTLED
            case StoreUnavailableError():
                self._fence_is_unavailable = True
                return DrainOutcome.CONTROL_STORE_UNAVAILABLE
            case LogUnavailableError():
                return DrainOutcome.LOG_UNAVAILABLE
            case _:
                raise error

    # --- the end ------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Commit the stored offset to the log, and release the partition."""
        try:
            self._prefetch.settle()
            self._prefetch.commit_offsets()
        finally:  # otherwise no other process could drain it
            if self._held_log_id is not None:
                self._context.sink.release(self._held_log_id, self._partition)

    def report(self, outcome: DrainOutcome, error: str | None) -> DrainReport:
        """What was done, without the evidence of poison."""
        return DrainReport(
            partition=self._partition,
            outcome=outcome,
            stored=self._total.stored,
            repeated=self._total.repeated,
            conflicting=self._total.conflicting,
            dead_lettered=self._total.dead_lettered,
            batches=self._batches,
            next_offset=self._next_offset,
            more=self._prefetch.more,
            error=error,
            began_late=self._began_late,
        )
