"""The run of one partition: until when it goes on, waits, tries again, and gives way to others."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, Generic

from pipeline.drain.context import DrainContext
from pipeline.drain.known_log import KnownLog
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.drain.transfer import BusyError, Did, Transfer
from pipeline.errors import BreakerOpenError, LogGapError, PoisonedError, RecoverableError
from pipeline.ports.event_sink import Encoded

# Waits between tries. Five failures of 2 s each plus the first four waits are below 12 s, the time within which a
# frozen PostgreSQL must open the breaker.
_BACKOFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.5)
# Of a run for several partitions: the length of one partition's turn, which stores at least one batch if there is one.
TURN_SECONDS: Final = 0.25
# Of a run for several partitions: until the next try for one that another drain holds.
_BUSY_REST_SECONDS: Final = 1.0
# A run without records may last so many times as long as others, if the limit at which its task is killed is at least
# `_HARD_RUNS_MIN` times as long: with its first record, it gets the usual time from then on.
_IDLE_RUNS: Final = 2
_HARD_RUNS_MIN: Final = 4

_End = tuple[DrainOutcome, str | None]  # of a run, with the error


def back_off(failures: int) -> float:
    """Seconds until the next try."""
    return _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS)) - 1]


class Run(Generic[Encoded]):
    """The state of one run."""

    def __init__(
        self, partition: int, context: DrainContext[Encoded], executor: ThreadPoolExecutor, known: KnownLog
    ) -> None:
        self._partition = partition
        self._context = context
        self._transfer = Transfer(partition, context, executor, known)
        settings = context.settings
        started = context.clock.monotonic()
        self._deadline = started + settings.drain_run_seconds_max
        self._may_idle = False  # the deadline is that of a run that has read no record yet
        # A failing PostgreSQL is tried again after the run's time is up, so that its failures are consecutive and open
        # the breaker. The limit is half-way to the time at which the task would be killed.
        self._sink_deadline = started + (settings.drain_run_seconds_max + settings.drain_hard_seconds_max) / 2
        self._failures = 0  # since it last stored, or had read everything
        self._failed: tuple[tuple[DrainOutcome, str], float] | None = None  # the last one's outcome, and its deadline
        self._turn_ends_at = float("inf")  # monotonic
        self._rests_until = 0.0  # monotonic; between two turns
        self._is_waiting = False  # for events; between two turns
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
            self._transfer.drop()  # memory holds the records of one partition

    def _work(self, paused: Callable[[], bool]) -> _End | None:
        """Run until the end of the run or of the turn, or until a failure, after which the run rests."""
        is_turn = self._turn_ends_at != float("inf")
        while not paused():
            did = self._try_step(is_turn=is_turn)
            if not isinstance(did, Did):
                return did
            if did not in (Did.LOOK_UP, Did.READ):  # a look-up, or a read of records, proves nothing about the rest
                self._failures, self._failed = 0, None
            if did is Did.READ:
                self._end_idleness()
            is_over = self._is_over() or (did is Did.READ_NOTHING and self._context.is_ending())
            if is_over and self._failed is None:
                return DrainOutcome.FINISHED, None
            if is_turn and self._ends_turn(did):
                self._is_waiting = did is Did.READ_NOTHING
                return None
        return DrainOutcome.PAUSED, None

    def _try_step(self, *, is_turn: bool) -> Did | _End | None:
        """Do one step; returns the outcome if an error ends the run, and None after one that may pass."""
        try:
            return self._transfer.step(ends_at=min(self._deadline, self._turn_ends_at), is_turn=is_turn)
        except LogGapError as error:
            return (DrainOutcome.LOG_GAP, str(error)) if self._transfer.is_gap() else Did.LOOK_UP
        except (BreakerOpenError, PoisonedError) as error:
            self._evidence = error.evidence if isinstance(error, PoisonedError) else None
            return _ENDS[type(error)], str(error)
        except BusyError:
            if self.is_busy and not is_turn:
                return DrainOutcome.BUSY, None
            self._rest(_BUSY_REST_SECONDS if self.is_busy else back_off(self._transfer.busy_tries))
            return None
        except RecoverableError as error:
            self._failures += 1
            self._end_idleness()
            outcome = self._transfer.recover(error)
            is_sinks = outcome is DrainOutcome.SINK_UNAVAILABLE
            self._failed = (outcome, str(error)), self._sink_deadline if is_sinks else self._deadline
            self._rest(back_off(self._failures))
            return self.end()

    def _ends_turn(self, did: Did) -> bool:
        is_over = self._context.clock.monotonic() >= self._turn_ends_at
        return did is Did.READ_NOTHING or (did is Did.STORE and is_over)

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
        return self._transfer.is_busy

    @property
    def waits_from(self) -> int | None:
        """Between two turns: the offset from which on it waits for events; None if it waits for none."""
        return self._transfer.position if self._is_waiting else None

    @property
    def due_at(self) -> float:
        """Between two turns: when the next one is due, or the run's end (monotonic seconds)."""
        return self._deadline if self._is_waiting else self._rests_until

    def wake(self) -> None:
        """There may be events."""
        self._is_waiting = False

    def _rest(self, seconds: float) -> None:
        self._rests_until = self._context.clock.monotonic() + seconds

    def _is_over(self) -> bool:
        return self._context.clock.monotonic() >= self._deadline

    def finish(self) -> None:
        """Commit the stored offset to the log, and release the partition."""
        self._transfer.finish()

    def report(self, outcome: DrainOutcome, error: str | None) -> DrainReport:
        """The counts of the run."""
        return replace(self._transfer.report(outcome, error), evidence=self._evidence)


_ENDS: Final[dict[type[Exception], DrainOutcome]] = {
    BreakerOpenError: DrainOutcome.BREAKER_OPEN,
    PoisonedError: DrainOutcome.POISONED,
}
