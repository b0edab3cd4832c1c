"""Group commit: requests that arrive together are appended to the log together, by one thread.

The previous append is the wait: what arrives meanwhile is the next group. Only where the log was idle does the first
request of a group wait a moment for company. Each request has a future, which is settled when its events are durable,
or when its time is up. Counts and futures belong to the event loop, the queue to both sides under a lock.
"""

import asyncio
import copy
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import (
    AppendBufferFullError,
    LogFullError,
    LogIndeterminateError,
    LogMisconfiguredError,
    LogPartialError,
    LogUnavailableError,
    SluiceError,
)
from pipeline.loops import Loop
from pipeline.metrics import IngestMetrics
from pipeline.names import LoopName
from pipeline.ports.log import EventLog, LogIdentity
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

PING_SECONDS: Final = 1.0  # an idle log is asked so often whether it is there
AWAY_SECONDS: Final = 0.2  # between two questions to a log that is away
LOOK_SECONDS: Final = 5.0  # how often a log is asked who it is, also under load: partitions may have been added
FAILED_SECONDS: Final = 3.0  # an append that failed counts for so long, even where the log answers again
FULL_SECONDS: Final = 0.25  # a full log is not tried again for so long: refusing is cheap, appending is not


class _Request:
    """The events of one request on their way to the log."""

    __slots__ = ("begun", "count", "deadline", "entries", "future", "size")

    def __init__(
        self, entries: Sequence[tuple[int, bytes]], size: int, future: "asyncio.Future[None]", deadline: float
    ) -> None:
        self.entries = entries  # under the lock until its append has begun; empty once it is withdrawn
        self.count = len(entries)  # still counted as waiting; 0 once it is not
        self.size = size  # bytes
        self.future = future
        self.deadline = deadline  # monotonic
        self.begun = False  # under the lock: its append has begun


@dataclass(frozen=True, slots=True)
class LogStatus:
    """What the appender knows of the log."""

    answers: bool
    is_full: bool
    problem: str | None


class Appender:
    """Appends for the requests of one process. Bounded in events and bytes; `append` is for the event loop only."""

    def __init__(
        self, log: EventLog, settings: Settings, clock: Clock, metrics: IngestMetrics, turns: Loop | None = None
    ) -> None:
        self._log = log
        self._turns = turns or Loop(LoopName.APPENDER, clock)
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop  # from `start` on
        self._thread = threading.Thread(target=self._run, name="appender", daemon=True)
        # Of the event loop:
        self._events = 0  # waiting for the log, those of the append that runs included
        self._bytes = 0
        self._pending: deque[_Request] = deque()  # in the order of their deadlines
        self._timer: asyncio.TimerHandle | None = None
        # Of both sides, under the lock:
        self._wake = threading.Condition(threading.Lock())
        self._queue: deque[_Request] = deque()
        self._awaited = 0  # requests for which the thread waits; 0 while it does not
        self._is_closing = False
        # Of the thread, read by anybody:
        self._partitions = 0  # 0: not known yet
        self._problem: str | None = "the event log was not asked yet"
        self._failure: tuple[float, str] | None = None  # when (monotonic) and why the last append failed
        self._partial: tuple[int, ...] = ()  # partitions that took nothing of the last append to them
        self._looked_at = 0.0  # monotonic: when the log was last asked who it is
        self._full_until = 0.0  # monotonic
        self._begun_at: float | None = None  # monotonic: since when the append runs

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to ask for the log, and to append."""
        self._loop = loop
        self._thread.start()

    async def close(self, *, seconds_max: float) -> None:
        """Append what waits and end the thread; what is not appended in time is told so."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, seconds_max)
        await asyncio.sleep(0)  # what the thread has handed over last is settled now
        for request in self._pending:
            self._give_up(request)
        if self._timer is not None:
            self._timer.cancel()

    # --- For the event loop -----------------------------------------------------------------------------------------

    @property
    def partitions(self) -> int:
        """Partitions of the log. Raises LogUnavailableError where the log was never reached."""
        if not self._partitions:
            raise LogUnavailableError(self._problem)
        return self._partitions

    def status(self, now: float) -> LogStatus:
        """Whether the log answers and takes events, as far as known."""
        problem = self._problem
        begun_at = self._begun_at
        if problem is None and begun_at is not None and now - begun_at > 2 * self._settings.append_seconds_max:
            problem = "the event log keeps an append waiting"
        failure = self._failure
        if problem is None and failure is not None and now - failure[0] < FAILED_SECONDS:
            problem = failure[1]
        return LogStatus(answers=problem is None, is_full=now < self._full_until, problem=problem)

    @property
    def waiting_events(self) -> int:
        """Events that wait for the log."""
        return self._events

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the log."""
        return self._bytes

    def blocked(self) -> SluiceError | None:
        """Why an append would be refused now, whatever it holds; None if it would not.

        LogUnavailableError, LogFullError or AppendBufferFullError. To ask before a body is read costs little.
        """
        if self._problem is not None:
            return LogUnavailableError(self._problem)
        if self._full_until and self._clock.monotonic() < self._full_until:
            return LogFullError()
        if self._events >= self._settings.append_buffer_events_max or self._bytes >= (
            self._settings.append_buffer_bytes_max
        ):
            return AppendBufferFullError()
        return None

    def append(self, entries: Sequence[tuple[int, bytes]], size: int) -> "asyncio.Future[None]":
        """Queue (partition, value) pairs of `size` bytes; the future is done when they are durable.

        It fails within `append_seconds_max` with what the port's `append` raises: LogIndeterminateError means that
        any subset may be stored, all others that nothing is. Raises what `blocked` returns.
        """
        blocked = self.blocked()
        if blocked is not None:
            raise blocked
        loop = self._loop
        if self._is_closing:
            raise LogUnavailableError("this process is shutting down")
        # A body larger than the whole buffer may pass where nothing else waits: it could never otherwise.
        if self._events and (
            self._events + len(entries) > self._settings.append_buffer_events_max
            or self._bytes + size > self._settings.append_buffer_bytes_max
        ):
            raise AppendBufferFullError
        future: asyncio.Future[None] = loop.create_future()
        deadline = loop.time() + self._settings.append_seconds_max
        request = _Request(entries, size, future, deadline)
        self._events += len(entries)
        self._bytes += size
        self._pending.append(request)
        with self._wake:
            self._queue.append(request)
            if self._awaited and len(self._queue) >= self._awaited:
                self._awaited = 0
                self._wake.notify()
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._expire)
        return future

    def _settle(self, group: list[_Request], error: SluiceError | None) -> None:
        """Tell the callers of a group what became of it: each of its own events' partitions, where these differ."""
        for request in group:
            its_error = error.of(part for part, _ in request.entries) if isinstance(error, LogPartialError) else error
            self._forget(request)
            if not request.future.done():
                if its_error is None:
                    request.future.set_result(None)
                else:
                    # Each its own: raising one object in many tasks would pile up their tracebacks in it.
                    request.future.set_exception(copy.copy(its_error))
        pending = self._pending
        while pending and not pending[0].count:
            pending.popleft()

    def _forget(self, request: _Request) -> None:
        """Take a request out of the counts, once."""
        if request.count:
            self._events -= request.count
            self._bytes -= request.size
            request.count = 0
            request.entries = ()

    def _expire(self) -> None:
        """Answer requests whose time is up, and come again when the next one's is."""
        now = self._loop.time()
        pending = self._pending
        while pending and (not pending[0].count or pending[0].deadline <= now):
            self._give_up(pending.popleft())
        self._timer = self._loop.call_at(pending[0].deadline, self._expire) if pending else None

    def _give_up(self, request: _Request) -> None:
        """Answer a request without waiting for its append any longer."""
        with self._wake:
            begun = request.begun
            if not begun:
                request.entries = ()
        if not request.future.done():
            error: SluiceError = (
                LogIndeterminateError()
                if begun
                else LogUnavailableError("the event log was busy for too long; nothing was written to it")
            )
            request.future.set_exception(error)
        if not begun:
            self._forget(request)

    # --- The thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._ask_identity()
        busy_requests: int | None = 1  # of the last group: whether company is to be expected
        while busy_requests is not None:
            with self._turns.turn():
                busy_requests = self._turn(busy_requests)
            if self._turns.is_failing:
                self._clock.sleep(AWAY_SECONDS)

    def _turn(self, busy_requests: int) -> int | None:
        """Append the next group, or ask an idle log; how many requests the group had, None at the end of all."""
        group, is_closing = self._next_group(busy_requests)
        if group:
            self._append_group(group)
            return len(group)
        if is_closing:
            return None
        self._ping()
        return 1

    def _next_group(self, busy_requests: int) -> tuple[list[_Request], bool]:
        """The requests of the next append, and whether the appender is closing; none after an idle while."""
        wait_seconds = PING_SECONDS if self._problem is None else AWAY_SECONDS
        with self._wake:
            if not self._queue and not self._is_closing:
                self._await(1, wait_seconds)
                if 0 < len(self._queue) < busy_requests and not self._is_closing:
                    # The last group had company, and so this one will: its first request waits a moment for it.
                    self._await(busy_requests, self._settings.append_group_seconds_max)
            return self._pop_group(), self._is_closing

    def _await(self, requests: int, seconds_max: float) -> None:
        """Wait until so many requests are queued, or time is up. Under the lock."""
        self._awaited = requests
        self._wake.wait(seconds_max)
        self._awaited = 0

    def _pop_group(self) -> list[_Request]:
        """Requests of up to `append_group_events_max` events, or one that alone has more. Under the lock."""
        group: list[_Request] = []
        events = 0
        while self._queue:
            request = self._queue[0]
            if not request.entries:  # withdrawn
                self._queue.popleft()
                continue
            if group and events + len(request.entries) > self._settings.append_group_events_max:
                break
            self._queue.popleft()
            request.begun = True
            events += len(request.entries)
            group.append(request)
        return group

    def _append_group(self, group: list[_Request]) -> None:
        if self._problem is not None and not self._ask_identity():
            # Nobody needs to wait for a log that is known to be away.
            self._hand_over(group, LogUnavailableError(self._problem))
            return
        entries = [entry for request in group for entry in request.entries]
        started = self._begun_at = self._clock.monotonic()
        error = self._append(entries)
        self._begun_at = None
        if error is None:
            self._metrics.append_seconds.observe(self._clock.monotonic() - started)
            self._metrics.append_group_events.observe(len(entries))
            self._full_until = 0.0
            self._failure = None
            self._note_partial({partition for partition, _ in entries}, {})
        elif isinstance(error, LogPartialError):
            # The log is there: only these partitions of it take nothing, and whose events go elsewhere goes on.
            self._note_partial({partition for partition, _ in entries}, error.failures)
        elif isinstance(error, LogFullError):
            self._full_until = self._clock.monotonic() + FULL_SECONDS
        else:
            self._note_problem(error)
            self._failure = (self._clock.monotonic(), str(error))
        self._hand_over(group, error)
        if self._problem is not None or self._clock.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._ask_identity()

    def _note_partial(self, asked: set[int], failures: Mapping[int, SluiceError]) -> None:
        """Say once that partitions take nothing, and once that they do again."""
        before = set(self._partial)
        for partition in sorted(failures.keys() - before):
            logger.warning(
                "the event log takes nothing for partition %d: %s",
                partition,
                failures[partition],
                extra={"action": "partition_away", "partition": partition},
            )
        for partition in sorted(before & asked - failures.keys()):
            logger.info(
                "the event log takes events for partition %d again",
                partition,
                extra={"action": "partition_back", "partition": partition},
            )
        self._partial = tuple(sorted(before - asked | failures.keys()))

    def _append(self, entries: list[tuple[int, bytes]]) -> SluiceError | None:
        """Append, and return what went wrong."""
        try:
            self._log.append(entries)
        except SluiceError as error:
            return error
        except Exception as error:
            # What the adapter did before it broke is not known.
            logger.exception("an append failed by a defect", extra={"action": "append_failed"})
            return LogIndeterminateError(f"the append failed: {type(error).__name__}")
        return None

    def _hand_over(self, group: list[_Request], error: SluiceError | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, group, error)
        except RuntimeError:
            logger.warning("the event loop ended before an append did", extra={"action": "append_unheard"})

    def _ping(self) -> None:
        """Ask an idle log whether it is there, so that readiness is known before the next request."""
        if self._problem is not None or self._clock.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._ask_identity()
            return
        try:
            self._log.positions()
        except SluiceError as error:
            self._note_problem(error)
        except Exception as error:
            logger.exception("asking for the log's positions failed by a defect", extra={"action": "ping_failed"})
            self._note_problem(error)

    def _ask_identity(self) -> bool:
        """Ask the log who it is; True when it answered."""
        self._looked_at = self._clock.monotonic()
        try:
            identity = self._log.identity()
            if not self._partitions:
                _refuse_to_start_on(identity)
            if self._problem is not None:
                self._log.prepare()
        except SluiceError as error:
            self._note_problem(error)
            return False
        except Exception as error:
            logger.exception("asking for the log's identity failed by a defect", extra={"action": "identity_failed"})
            self._note_problem(error)
            return False
        if self._partitions not in {0, identity.partitions}:
            logger.warning(
                "the event log has %d partitions now, and had %d",
                identity.partitions,
                self._partitions,
                extra={"action": "partitions_changed"},
            )
        self._partitions = identity.partitions
        if self._problem is not None:
            self._problem = None
            logger.info("the event log answers", extra={"action": "log_back"})
        return True

    def _note_problem(self, error: Exception) -> None:
        problem = str(error) or type(error).__name__
        if problem != self._problem:
            logger.warning("the event log: %s", problem, extra={"action": "log_away"})
        self._problem = problem


def _refuse_to_start_on(identity: LogIdentity) -> None:
    """Raise LogMisconfiguredError where a log would lose what it acknowledges.

    At the start only: where somebody changes it later, the control loop raises an alarm. To refuse then would keep
    nothing that is in the log already.
    """
    for fault in identity.faults:
        if fault.loses_events:
            raise LogMisconfiguredError(f"{fault.what}: {fault.remedy}")
