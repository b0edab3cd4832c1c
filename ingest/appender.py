"""Group commit: one thread appends requests that arrive together to the event log together.

The previous append is the wait: requests that arrive during it are the next group. If the event log was idle, the first
request of a group waits a short time for others. Each request has a future. It is settled when the events of the
request are durable, or when its time is up. The event loop owns counts and futures; both sides use the queue, under a
lock.
"""

import asyncio
import copy
import logging
import math
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
    about_the_log,
)
from pipeline.loops import Loop
from pipeline.metrics import IngestMetrics
from pipeline.names import LoopName
from pipeline.ports.log import EventLog, LogIdentity
from pipeline.settings import Settings
from pipeline.text import NAMED_MAX, some_of

logger = logging.getLogger(__name__)

PING_SECONDS: Final = 1.0  # between two checks of an idle event log
RETRY_SECONDS: Final = 0.2  # between two checks of an event log that is unavailable
# The writer of the history reads the event log once a second, which replaces the check of an idle one. A read that is
# later than this does not: then the appender checks.
ANSWER_LATE_SECONDS: Final = 0.1
LOOK_SECONDS: Final = 5.0  # between two reads of the event log's identity, also under load: it may have new partitions
FAILED_SECONDS: Final = 3.0  # a failed append counts for so long, even if the event log responds again
FULL_SECONDS: Final = 0.25  # no append to a full event log for so long: rejecting is cheap, appending is not


class _Request:
    """The events of one request on their way to the event log."""

    __slots__ = ("begun", "count", "deadline", "entries", "future", "size")

    def __init__(
        self, entries: Sequence[tuple[int, bytes]], size: int, future: "asyncio.Future[None]", deadline: float
    ) -> None:
        self.entries = entries  # under the lock until its append starts; empty once it is withdrawn
        self.count = len(entries)  # events that still count as waiting; 0 afterwards
        self.size = size  # bytes
        self.future = future
        self.deadline = deadline  # monotonic
        self.begun = False  # under the lock: its append has started


@dataclass(frozen=True, slots=True)
class LogStatus:
    """The state of the event log, as the appender sees it."""

    answers: bool
    is_full: bool
    problem: str | None


class Appender:
    """Appends for the requests of one process. Bounded in events and bytes. Call `append` on the event loop only."""

    def __init__(
        self, log: EventLog, settings: Settings, clock: Clock, metrics: IngestMetrics, turns: Loop | None = None
    ) -> None:
        self._log = log
        self._turns = turns or Loop(LoopName.APPENDER, clock)
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop  # set by `start`
        self._thread = threading.Thread(target=self._run, name="appender", daemon=True)
        # Owned by the event loop:
        self._events = 0  # waiting for the event log, including those of the running append
        self._bytes = 0
        self._pending: deque[_Request] = deque()  # in the order of their deadlines
        self._timer: asyncio.TimerHandle | None = None
        # Used by both sides, under the lock:
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._queue: deque[_Request] = deque()
        self._awaited = 0  # number of requests for which the thread waits; 0 if it does not wait
        self._is_closing = False
        # Written by the thread, read by any thread:
        self._partitions = 0  # 0: not read yet
        self._problem: str | None = "the event log was not asked yet"
        self._failure: tuple[float, str] | None = None  # when (monotonic) and why the last append failed
        self._partial: tuple[int, ...] = ()  # partitions that rejected everything of the last append to them
        self._looked_at = 0.0  # monotonic: when the event log's identity was last read
        self._identity: LogIdentity | None = None  # for which the log was last prepared
        self._full_until = 0.0  # monotonic
        self._begun_at: float | None = None  # monotonic: when the running append started
        self._answered_at = -math.inf  # monotonic: when the event log last answered another reader of this process

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to check the event log, and to append."""
        self._loop = loop
        self._thread.start()

    async def close(self, *, seconds_max: float) -> None:
        """Append the waiting requests and end the thread. Requests that are not appended in time fail."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, seconds_max)
        await asyncio.sleep(0)  # settles the groups that the thread handed over last
        for request in self._pending:
            self._give_up(request)
        if self._timer is not None:
            self._timer.cancel()

    # --- For the event loop -----------------------------------------------------------------------------------------

    @property
    def partitions(self) -> int:
        """Partitions of the event log. Raises LogUnavailableError if the event log was never reached."""
        if not self._partitions:
            raise LogUnavailableError(self._problem)
        return self._partitions

    def status(self, now: float) -> LogStatus:
        """Whether the event log responds and has space, as far as this process can see."""
        problem = self._problem
        begun_at = self._begun_at
        if problem is None and begun_at is not None and now - begun_at > 2 * self._settings.append_seconds_max:
            problem = "the event log keeps an append waiting"
        failure = self._failure
        if problem is None and failure is not None and now - failure[0] < FAILED_SECONDS:
            problem = failure[1]
        return LogStatus(answers=problem is None, is_full=now < self._full_until, problem=problem)

    def note_read(self, identity: LogIdentity | None) -> None:
        """Record that another client of this process has read the positions of this log. Call it on any thread.

        That replaces the next check of an idle event log. If the log did not answer (None), or is another one than at
        the appender's last check, the check comes at once.
        """
        if identity is not None and identity == self._identity:
            self._answered_at = self._clock.monotonic()
            return
        self._answered_at = -math.inf
        with self._wake:
            self._wake.notify()

    @property
    def waiting_events(self) -> int:
        """Events that wait for the event log."""
        return self._events

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the event log."""
        return self._bytes

    def blocked(self) -> SluiceError | None:
        """Why any append would be rejected now; None if it would not.

        Returns LogUnavailableError, LogFullError or AppendBufferFullError. Cheap, so callers use it before they read a
        body.
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
        """Queue (partition, value) pairs of `size` bytes. The future is done when they are durable.

        The future fails within `append_seconds_max` with an error of the port's `append`. LogPartialError shows for
        which partitions events may not be stored. LogIndeterminateError means that any subset of the events may be
        stored; all other errors mean that none is. Raises what `blocked` returns.
        """
        blocked = self.blocked()
        if blocked is not None:
            raise blocked
        loop = self._loop
        if self._is_closing:
            raise LogUnavailableError("this process is shutting down")
        # A body larger than the whole buffer may pass if nothing else waits: otherwise it could never pass.
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
        with self._lock:  # a Condition would lock by a call of Python
            self._queue.append(request)
            if self._awaited and len(self._queue) >= self._awaited:
                self._awaited = 0
                self._wake.notify()
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._expire)
        return future

    def _settle(self, group: list[_Request], error: SluiceError | None) -> None:
        """Settle the requests of a group: each with the result of the partitions of its own events, if these differ."""
        for request in group:
            its_error = error.of(part for part, _ in request.entries) if isinstance(error, LogPartialError) else error
            self._forget(request)
            if not request.future.done():
                if its_error is None:
                    request.future.set_result(None)
                else:
                    # One for each request: if many tasks raised one object, their tracebacks would accumulate in it.
                    is_its_own = isinstance(its_error, LogPartialError)
                    request.future.set_exception(its_error if is_its_own else copy.copy(its_error))
        pending = self._pending
        while pending and not pending[0].count:
            pending.popleft()

    def _forget(self, request: _Request) -> None:
        """Subtract a request from the counts, once."""
        if request.count:
            self._events -= request.count
            self._bytes -= request.size
            request.count = 0
            request.entries = ()

    def _expire(self) -> None:
        """Fail requests whose time is up, and set the timer for the next deadline."""
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
        busy_requests: int | None = 1  # size of the last group: shows whether to expect more requests
        while busy_requests is not None:
            with self._turns.turn():
                busy_requests = self._turn(busy_requests)
            if self._turns.is_failing:
                self._clock.sleep(RETRY_SECONDS)

    def _turn(self, busy_requests: int) -> int | None:
        """Append the next group, or check an idle event log. Returns the number of requests; None at the end."""
        group, is_closing = self._next_group(busy_requests)
        if group:
            self._append_group(group)
            return len(group)
        if is_closing:
            return None
        self._ping()
        return 1

    def _next_group(self, busy_requests: int) -> tuple[list[_Request], bool]:
        """The requests of the next append, and whether the appender is closing. No requests after an idle period."""
        wait_seconds = PING_SECONDS if self._problem is None else RETRY_SECONDS
        if self._is_answered():  # then until the next answer is due
            wait_seconds += self._answered_at + ANSWER_LATE_SECONDS - self._clock.monotonic()
        with self._wake:
            if not self._queue and not self._is_closing:
                self._await(1, wait_seconds)
                if 0 < len(self._queue) < busy_requests and not self._is_closing:
                    # The last group had several requests, so this one probably has too: the first waits a short time
                    # for them.
                    self._await(busy_requests, self._settings.append_group_seconds_max)
            return self._pop_group(), self._is_closing

    def _await(self, requests: int, seconds_max: float) -> None:
        """Wait until `requests` requests are queued, or time is up. Call it under the lock."""
        self._awaited = requests
        self._wake.wait(seconds_max)
        self._awaited = 0

    def _pop_group(self) -> list[_Request]:
        """Pop requests of up to `append_group_events_max` events, or one with more. Call it under the lock."""
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
            # A request does not need to wait for an event log that is known to be unavailable.
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
            # The event log responds. Only these partitions reject events; requests for other partitions continue.
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
        """Log once that a partition rejects events, and once that it accepts them again. Many are one line."""
        before = set(self._partial)
        refused, accepted = sorted(failures.keys() - before), sorted(before & asked - failures.keys())
        if len(refused) > NAMED_MAX:
            logger.warning(
                "events for %d partitions are refused (%s): %s",
                len(refused),
                some_of(refused),
                failures[refused[0]],
                extra={"action": "partition_away", "partitions": len(refused)},
            )
            refused = []
        if len(accepted) > NAMED_MAX:
            logger.info(
                "the event log accepts events for %d partitions again (%s)",
                len(accepted),
                some_of(accepted),
                extra={"action": "partition_back", "partitions": len(accepted)},
            )
            accepted = []
        for partition in refused:
            logger.warning(
                "events for partition %d are refused: %s",
                partition,
                failures[partition],
                extra={"action": "partition_away", "partition": partition},
            )
        for partition in accepted:
            logger.info(
                "the event log accepts events for partition %d again",
                partition,
                extra={"action": "partition_back", "partition": partition},
            )
        self._partial = tuple(sorted(before - asked | failures.keys()))

    def _append(self, entries: list[tuple[int, bytes]]) -> SluiceError | None:
        """Append; returns the error, or None."""
        try:
            self._log.append(entries)
        except SluiceError as error:
            return error
        except Exception as error:
            # It is unknown what the adapter did before it failed.
            logger.exception("an append failed because of a defect", extra={"action": "append_failed"})
            return LogIndeterminateError(f"the append failed: {type(error).__name__}")
        return None

    def _hand_over(self, group: list[_Request], error: SluiceError | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, group, error)
        except RuntimeError:
            logger.warning("the event loop ended before an append did", extra={"action": "append_unheard"})

    def _ping(self) -> None:
        """Check an idle event log, so that readiness is known before the next request."""
        if self._problem is not None or self._clock.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._ask_identity()
            return
        if self._is_answered():
            return
        try:
            self._log.positions()
        except SluiceError as error:
            self._note_problem(error)
        except Exception as error:
            logger.exception("reading the log's positions failed because of a defect", extra={"action": "ping_failed"})
            self._note_problem(error)

    def _is_answered(self) -> bool:
        """Whether another reader of this process has had an answer that replaces the next check."""
        age_seconds = self._clock.monotonic() - self._answered_at
        return self._problem is None and age_seconds < PING_SECONDS

    def _ask_identity(self) -> bool:
        """Read the event log's identity; True if it responded."""
        self._looked_at = self._clock.monotonic()
        try:
            identity = self._log.identity()
            if not self._partitions:
                _refuse_to_start_on(identity)
            if self._problem is not None or identity.missing_replicas is not None or identity != self._identity:
                self._log.prepare()
                self._identity = identity
        except SluiceError as error:
            self._note_problem(error)
            return False
        except Exception as error:
            logger.exception(
                "reading the log's identity failed because of a defect", extra={"action": "identity_failed"}
            )
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
            logger.warning("%s", about_the_log(problem), extra={"action": "log_away"})
        self._problem = problem


def _refuse_to_start_on(identity: LogIdentity) -> None:
    """Raise LogMisconfiguredError if an event log would lose events that it acknowledged.

    At the start only. If its configuration is changed later, the control loop raises an alarm: a refusal then would not
    protect the events that are in the event log already.
    """
    for fault in identity.faults:
        if fault.loses_events:
            raise LogMisconfiguredError(f"the event log accepts no events: {fault.what}: {fault.remedy}")
