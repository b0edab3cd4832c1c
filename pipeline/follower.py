"""Follows the control loop, in ingest and workers: keeps the newest state in memory, so that callers never wait."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from pipeline.clock import Clock
from pipeline.errors import StoreUnavailableError
from pipeline.flow.age import Age
from pipeline.flow.clocks import Look, difference_words
from pipeline.loops import Loop, Loops
from pipeline.names import AlarmCode, LoopName
from pipeline.ports.control import ControlState, Trouble, Troubles

logger = logging.getLogger(__name__)

WAIT_SECONDS: Final = 1.0  # of one wait for an event; the state is read at least this often
RETRY_SECONDS: Final = 0.2  # between two tries while the store is unavailable
EARLY_SECONDS: Final = 0.01  # by which a wait may end early: the store counts milliseconds
# A state that may have been read longer ago than this is read again. The wait's own time-out is hardly longer, so only
# a process that did not run meanwhile finds an older one: the response was in its socket.
OLD_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class ControlSnapshot:
    """A state and its read time. Times are by this process' monotonic clock, so ages stay right in an outage."""

    state: ControlState
    read_at: float
    published_at: float | None  # of its rate; None if no rate was ever published

    def state_age_seconds(self, now: float) -> float:
        """Seconds since the state was read."""
        return max(0.0, now - self.read_at)

    def controller_age_seconds(self, now: float) -> float | None:
        """Seconds since the controller published; grows while the store is unavailable."""
        return None if self.published_at is None else max(0.0, now - self.published_at)


class StateReader(Protocol):
    """The part of ControlStore that a follower uses. Both raise StoreUnavailableError."""

    def state(self) -> ControlState:
        """The state, or what of it this process needs."""

    def state_after(self, position: str, *, wait_seconds: float) -> tuple[str, ControlState | None]:
        """The same as ControlStore's."""


def read_not_before(asked_at: float, answered_at: float, wait_seconds: float) -> float:
    """The earliest time at which the store may have read what it returned after a wait in vain.

    It waited for `wait_seconds` first. If its clock was stepped forward meanwhile, the wait was shorter.
    """
    waited_until = asked_at + wait_seconds - EARLY_SECONDS
    return waited_until if waited_until <= answered_at else asked_at


class ControlFollower:
    """Reads the state after every control event, and at least after each wait for one, on its own thread.

    A wait in vain and the read after it are one round trip. After an event it reads the state by itself, and also if
    this process was frozen during the wait: the state in the response may then be of any age.

    `on_state` is called on that thread with every state read, and `on_unavailable` after each read that failed. While
    the store is unavailable, the last state stays. No error ends the thread: see `loops`. `reporter` reports on that
    thread after each turn, unless the store is unavailable.
    """

    def __init__(
        self,
        store: StateReader,
        clock: Clock,
        on_state: Callable[[ControlState], None],
        loop: Loop | None = None,
        *,
        reporter: "TroubleReporter | None" = None,
        on_unavailable: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._on_state = on_state
        self._reporter = reporter
        self._on_unavailable = on_unavailable
        self._loop = loop or Loop(LoopName.FOLLOWER, clock)
        self._position = ""  # of the newest event read
        self._must_read = True  # the wait did not bring the state
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control-follower", daemon=True)
        self._newest: ControlSnapshot | None = None
        self._publication_age = Age()
        self._problem: str | None = None

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def stop(self, *, seconds_max: float) -> None:
        """Stop. The thread may wait for up to WAIT_SECONDS; after `seconds_max` it is left running."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(seconds_max)

    @property
    def is_alive(self) -> bool:
        """Whether its thread is running."""
        return self._thread.is_alive()

    @property
    def newest(self) -> ControlSnapshot | None:
        """The newest state; None if none was ever read."""
        return self._newest

    @property
    def problem(self) -> str | None:
        """The error of the last read, if the store did not answer it or refused it; None: it was answered."""
        return self._problem

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._loop.turn():
                self._follow()
            if self._reporter is not None:
                self._reporter.report(is_store_available=self._problem is None)
            if self._problem is not None or self._loop.is_failing:
                self._stopping.wait(RETRY_SECONDS)

    def _follow(self) -> None:
        """Read the state unless the last wait brought it, and wait for the next event."""
        try:
            if not self._position:
                # Read the position first, then the state: the wait below then returns at once for an event in between.
                self._position, _ = self._store.state_after("", wait_seconds=0.0)
            if self._must_read:
                self._read()
            self._must_read = True
            self._wait()
        except StoreUnavailableError as error:
            self._note_unavailable(error)
            self._on_unavailable()

    def _read(self) -> None:
        asked_at = self._clock.now()
        state = self._store.state()
        self._take(state, asked_at, self._clock.now())

    def _wait(self) -> None:
        """Wait for an event, or until it is time to read the state: then it is read too."""
        began_at = self._clock.monotonic()
        self._position, state = self._store.state_after(self._position, wait_seconds=WAIT_SECONDS)
        if state is None:
            return
        ended_at, answered_at = self._clock.monotonic(), self._clock.now()
        took_seconds = ended_at - read_not_before(began_at, ended_at, WAIT_SECONDS)
        if took_seconds > OLD_SECONDS:
            return
        self._take(state, answered_at - took_seconds, answered_at)
        self._must_read = False

    def _take(self, state: ControlState, asked_at: float, answered_at: float) -> None:
        """Take a state that the store has read between these times of the wall clock."""
        if self._reporter is not None:
            self._reporter.note_clock(Look(state.time, asked_at, answered_at))
        now = self._clock.monotonic()
        published_at = None if self._newest is None else self._newest.published_at
        if state.rate is not None:  # otherwise the store was flushed; the last publication still counts
            said = state.time - state.rate.published_at
            published_at = now - self._publication_age.of(state.rate.published_at, said, now=now)
        self._newest = ControlSnapshot(state, now, published_at)
        if self._problem is not None:
            self._problem = None
            logger.info("the control store answers again", extra={"action": "control_back"})
        if not self._stopping.is_set():
            self._on_state(state)

    def _note_unavailable(self, error: StoreUnavailableError) -> None:
        if self._problem is None:
            logger.warning("%s", error, extra={"action": "control_away"})
        self._problem = str(error)


class TroubleReporter:
    """Reports a process' problems to the control store, so that every process' health shows them.

    These are a wall clock that differs from the store's, and what `own_problems` returns, which runs on the thread that
    reports. Processes of one host share a clock, so they may report it under one name; `own_name` is then the name for
    the rest.
    """

    def __init__(
        self,
        troubles: Troubles,
        process: str,
        clock: Clock,
        *,
        difference_seconds_max: float,
        own_problems: Callable[[], list[Trouble]] = list,
        own_name: str | None = None,
        loop: Loop | None = None,
    ) -> None:
        self._loop = loop or Loop(LoopName.REPORTS, clock)
        self._troubles = troubles
        self._process = process
        self._clock = clock
        self._difference_seconds_max = difference_seconds_max
        self._own_problems = own_problems
        self._own_name = own_name or process
        self._look: Look | None = None  # the latest read of the store's wall clock, timed by this process' own
        # Names under which a report may be stored: of this process, or of an earlier one with its name.
        self._may_stand = {self._process, self._own_name}

    def note_clock(self, look: Look) -> None:
        """Record a read of the store's clock."""
        self._look = look

    def report(self, *, is_store_available: bool = True) -> None:
        """Report the current problems if there are any, or were; raises nothing, and its own errors are problems.

        A store that is known not to answer is not called: the caller would wait for one more timeout.
        """
        with self._loop.turn():  # also without a call: the loop does not hang
            if is_store_available:
                self._report_all()

    def _report_all(self) -> None:
        found = {self._process: self._clock_problems()}
        found[self._own_name] = self._own_problems() + found.get(self._own_name, [])
        for name, problems in found.items():
            if problems or name in self._may_stand:
                self._report(name, problems)

    def _report(self, name: str, problems: list[Trouble]) -> None:
        try:
            self._troubles.report(name, problems)
        except StoreUnavailableError as error:
            logger.debug("what is wrong with this process is not reported: %s", error)
        else:
            (self._may_stand.add if problems else self._may_stand.discard)(name)

    def _clock_problems(self) -> list[Trouble]:
        ahead = None if self._look is None else self._look.ahead_seconds(beyond=self._difference_seconds_max)
        if ahead is None:
            return []
        # The store's clock is ahead, so ours is behind.
        what = f"its clock is {difference_words(-ahead)} the control store's (Redis)"
        return [Trouble(AlarmCode.CLOCKS_DIFFER, what)]


def loop_troubles(loops: Loops, clock: Clock) -> list[Trouble]:
    """The problems of a process' loops, to report."""
    return [Trouble(AlarmCode.LOOP_FAILS, problem) for problem in loops.problems(clock.monotonic())]
