"""The run of one partition: it looks up, reads, stores and handles errors until its time is up."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum, auto
from functools import partial
from typing import Any, Final, Generic

from pipeline.drain.context import DrainContext
from pipeline.drain.known_log import KnownLog
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.errors import (
    BatchRefusedError,
    BreakerOpenError,
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

# Waits between tries. Five failures of 2 s each plus the first four waits are below 12 s, the time within which a
# frozen PostgreSQL must open the breaker.
_BACKOFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.5)
# After a lost connection, its backend may hold the partition's lock a moment longer.
_BUSY_TRIES_MAX: Final = 6
# Of a run for several partitions: the length of one partition's turn, which stores at least one batch if there is one.
TURN_SECONDS: Final = 0.25
# Of a run for several partitions: until the next try for one that another drain holds.
_BUSY_REST_SECONDS: Final = 1.0
# A run without records may last so many times as long as others, if the limit at which its task is killed is at least
# `_HARD_RUNS_MIN` times as long: with its first record, it gets the usual time from then on.
_IDLE_RUNS: Final = 2
_HARD_RUNS_MIN: Final = 4


class _Did(Enum):
    """What one step of a run did."""

    LOOK_UP = auto()
    READ = auto()
    READ_NOTHING = auto()
    STORE = auto()
    REFUSE = auto()  # the batch was refused as it is; the next ones are smaller
    FAIL = auto()  # for a reason that may pass


_End = tuple[DrainOutcome, str | None]  # of a run, with the error


class _BusyError(Exception):
    """Another drain holds the partition."""


def back_off(failures: int) -> float:
    """Seconds until the next try."""
    return _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS)) - 1]


class Run(Generic[Encoded]):
    """The state of one run."""

    def __init__(
        self, partition: int, context: DrainContext[Encoded], executor: ThreadPoolExecutor, known: KnownLog
    ) -> None:
        self._partition = partition
        self._known = known
        self._context = context
        settings = context.settings
        self._executor = executor
        self._prefetch = Prefetch(
            context.log, partition, settings, clock=context.clock, executor=executor, encode=self._encode
        )
        started = context.clock.monotonic()
        self._deadline = started + settings.drain_run_seconds_max
        self._may_idle = False  # the deadline is that of a run that has read no record yet
        # A failing PostgreSQL is tried again after the run's time is up, so that its failures are consecutive and open
        # the breaker. The limit is half-way to the time at which the task would be killed.
        self._sink_deadline = started + (settings.drain_run_seconds_max + settings.drain_hard_seconds_max) / 2
        self._identity: LogIdentity | None = None  # that the position and the records in memory belong to
        self._position: int | None = None  # the stored offset; None: must be read
        self._next_offset: int | None = None  # the last known one
        self._gap_at: int | None = None  # the stored offset behind which records were missing
        self._held_log_id: str | None = None  # of the lock that this run holds
        self._busy_tries = 0
        self._fence_is_unavailable = False
        self._failures = 0  # since it last stored, or had read everything
        self._failed: tuple[tuple[DrainOutcome, str], float] | None = None  # the last one's outcome, and its deadline
        self._turn_ends_at = float("inf")  # monotonic
        self._rests_until = 0.0  # monotonic; between two turns
        self._is_waiting = False  # for events; between two turns
        self._total = StoreResult()
        self._batches = 0
        self._log_begin: LateBegin | None = None  # if no record of the partition is stored yet
        self._began_late: LateBegin | None = None
        self._evidence: dict[str, Any] | None = None

    @property
    def partition(self) -> int:
        """The partition that it drains."""
        return self._partition

    def allow_idle(self) -> None:
        """Let the run last longer as long as it reads no record, if its worker can end it before."""
        settings = self._context.settings
        run_seconds = settings.drain_run_seconds_max
        if self._context.quiet is not None and settings.drain_hard_seconds_max >= _HARD_RUNS_MIN * run_seconds:
            self._deadline += (_IDLE_RUNS - 1) * run_seconds
            self._may_idle = True

    def _end_idleness(self) -> None:
        """From now on the run has the usual time: it has read a record, or failed."""
        if self._may_idle:
            self._may_idle = False
            self._deadline = self._context.clock.monotonic() + self._context.settings.drain_run_seconds_max
            self._sink_deadline = max(self._sink_deadline, self._deadline)

    # --- the loop -------------------------------------------------------------------------------

    def run(self, paused: Callable[[], bool]) -> _End:
        """Run until the time is up or an error ends the run."""
        while True:
            end = self._work(paused)
            if end is not None:
                return end
            self._context.clock.sleep(max(0.0, self._rests_until - self._context.clock.monotonic()))

    def turn(self, paused: Callable[[], bool]) -> _End | None:
        """Run for one turn; returns the outcome if the run ends with it."""
        self._turn_ends_at = self._context.clock.monotonic() + TURN_SECONDS
        try:
            return self._work(paused)
        finally:
            self._prefetch.drop()  # memory holds the records of one partition

    def _work(self, paused: Callable[[], bool]) -> _End | None:
        """Run until the end of the run or of the turn, or until a failure, after which the run rests."""
        is_turn = self._turn_ends_at != float("inf")
        while not paused():
            did = self._try_step(is_turn=is_turn)
            if not isinstance(did, _Did):
                return did
            if did is _Did.FAIL:
                return None
            if did not in (_Did.LOOK_UP, _Did.READ):  # a look-up, or a read of records, proves nothing about the rest
                self._failures, self._failed = 0, None
            if did is _Did.READ:
                self._end_idleness()
            is_over = self._is_over() or (did is _Did.READ_NOTHING and self._context.is_ending())
            if is_over and self._failed is None:
                return DrainOutcome.FINISHED, None
            if is_turn and self._ends_turn(did):
                self._is_waiting = did is _Did.READ_NOTHING
                return None
        return DrainOutcome.PAUSED, None

    def _try_step(self, *, is_turn: bool) -> _Did | _End:
        """Do one step; returns the outcome if an error ends the run."""
        try:
            return self._step(is_turn=is_turn)
        except LogGapError as error:
            return (DrainOutcome.LOG_GAP, str(error)) if self._is_gap() else _Did.LOOK_UP
        except (BreakerOpenError, PoisonedError) as error:
            self._evidence = error.evidence if isinstance(error, PoisonedError) else None
            return _ENDS[type(error)], str(error)
        except _BusyError:
            self._busy_tries += 1
            if self.is_busy and not is_turn:
                return DrainOutcome.BUSY, None
            self._rest(_BUSY_REST_SECONDS if self.is_busy else back_off(self._busy_tries))
            return _Did.FAIL
        except RecoverableError as error:
            self._failures += 1
            self._end_idleness()
            outcome, deadline = self._after(error)
            self._failed = (outcome, str(error)), deadline
            self._rest(back_off(self._failures))
            return self.end() or _Did.FAIL

    def _ends_turn(self, did: _Did) -> bool:
        is_over = self._context.clock.monotonic() >= self._turn_ends_at
        return did is _Did.READ_NOTHING or (did is _Did.STORE and is_over)

    def end(self) -> _End | None:
        """The outcome if the time is up. A failing run has more time."""
        if self._failed is not None:
            outcome, deadline = self._failed
            return outcome if self._context.clock.monotonic() >= deadline else None
        if not self._is_over():
            return None
        return (DrainOutcome.BUSY if self.is_busy else DrainOutcome.FINISHED), None

    @property
    def is_busy(self) -> bool:
        """Whether another drain has the partition."""
        return self._busy_tries > 0 and (self._held_log_id is None or self._busy_tries >= _BUSY_TRIES_MAX)

    @property
    def waits_from(self) -> int | None:
        """Between two turns: the offset from which on it waits for events; None if it waits for none."""
        return self._position if self._is_waiting else None

    @property
    def due_at(self) -> float:
        """Between two turns: when the next one is due, or the run's end (monotonic seconds)."""
        return self._deadline if self._is_waiting else self._rests_until

    def wake(self) -> None:
        """There may be events."""
        self._is_waiting = False

    def _rest(self, seconds: float) -> None:
        self._rests_until = self._context.clock.monotonic() + seconds

    def _is_gap(self) -> bool:
        """Whether records are missing behind a stored offset that was read again since they were found missing.

        Otherwise another drain may have stored them, and trimmed the log: one that had lost its lock unnoticed, or an
        older version.
        """
        if self._position is None or self._position == self._gap_at:
            return True
        self._gap_at, self._position = self._position, None
        self._prefetch.drop()
        return False

    def _step(self, *, is_turn: bool) -> _Did:
        """Look up the partition's offset, or read, or store one piece. In a turn, a read does not wait."""
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
            return _Did.LOOK_UP
        if prefetch.first is None:
            left_seconds = 0.0 if is_turn else self._deadline - self._context.clock.monotonic()
            prefetch.read(self._position, max(0.0, min(self._context.poll_seconds(), left_seconds)))
            # If a pause began while this read waited, the records must not be stored.
            return _Did.READ_NOTHING if prefetch.first is None else _Did.READ
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
            result = breaker.call(lambda: self._store(identity, piece))
        except BatchRefusedError:
            self._context.pace.refused()
            prefetch.collect()
            return _Did.REFUSE
        self._stored(result)
        prefetch.collect()
        return _Did.STORE

    def _store(self, identity: LogIdentity, piece: Piece[Encoded]) -> StoreResult:
        """Store a batch. If it is a record that alone makes storing fail, keep it as a dead letter instead."""
        expected_offset, batch, encoded = piece
        pace, sink, place = self._context.pace, self._context.sink, (identity.log_id, self._partition, expected_offset)
        is_last = self._is_over() or self._context.clock.monotonic() >= self._turn_ends_at
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
            raise _BusyError
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

    def _after(self, error: RecoverableError) -> tuple[DrainOutcome, float]:
        """Reset the state that an error made uncertain. Returns the outcome of a last try, and the deadline."""
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
                return DrainOutcome.SINK_UNAVAILABLE, self._sink_deadline
            case SinkContentionError():
                return DrainOutcome.SINK_UNAVAILABLE, self._sink_deadline
            case OffsetConflictError():
                self._position = None
                return DrainOutcome.UNSETTLED, self._deadline
            case FencedError() | LogRestartedError():
                self._known.forget(must_fence=isinstance(error, FencedError))
                self._identity = self._position = None
                self._prefetch.drop()
                return DrainOutcome.UNSETTLED, self._deadline
            case StoreUnavailableError():
                self._fence_is_unavailable = True
                return DrainOutcome.CONTROL_STORE_UNAVAILABLE, self._deadline
            case LogUnavailableError():
                return DrainOutcome.LOG_UNAVAILABLE, self._deadline
            case _:
                raise error

    def _is_over(self) -> bool:
        return self._context.clock.monotonic() >= self._deadline

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
        """The counts of the run."""
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
            evidence=self._evidence,
            began_late=self._began_late,
        )


_ENDS: Final[dict[type[Exception], DrainOutcome]] = {
    BreakerOpenError: DrainOutcome.BREAKER_OPEN,
    PoisonedError: DrainOutcome.POISONED,
}
