"""The core of every client: a bounded queue, and a thread that sends it.

`put` never waits for the network or a disk. A thread, started with the first event, takes events from the queue into
bodies (`delivery`) and sends them. With a spill folder, a second thread writes the lowest severities to disk while the
queue is more than half full. With a hook, a third thread calls it: a hook that never returns stops nothing else.

One lock protects everything here. It is never held while a request, a file or a hook runs.
"""

import contextlib
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from sluice_client import endings
from sluice_client.buffer import ITEM_BYTES, LEVEL_NONE, Buffer, Item, count_within
from sluice_client.clock import monotonic
from sluice_client.counters import Counters, Drop, Reason, Stats, Summary
from sluice_client.delivery import Batch, Cause, Delivery, Pause
from sluice_client.events import RANKS
from sluice_client.options import SECONDS_MAX, Options
from sluice_client.spill import Segment, Spill, SpillFullError
from sluice_client.wire import Endpoint, NoResponseError, NotSentError, Response

MISDIRECTED_SECONDS: Final = 10.0  # between attempts with a wrong address or key, which an operator must correct
REPORT_SECONDS: Final = 1.0  # between calls of the hook
SPILL_FAILED_SECONDS: Final = 5.0  # between attempts to write to a disk that fails
SPILL_END_SECONDS: Final = 1.0  # for a segment that is being written at the end
APART_SECONDS: Final = 60.0  # after a level was refused: bodies have events of one level only
HOOK_END_SECONDS: Final = 1.0  # for the hook at the end: of a call that runs, and of the last one

_in_hook = threading.local()


class Core:
    """Takes events, and settles each: accepted, rejected, dropped or spilled."""

    def __init__(self, url: str, options: Options) -> None:
        """Raises ValueError for a wrong address or option, OSError for a spill folder that can't be made."""
        self._options = options
        self._base_url = url
        self._tls = options.tls
        path = options.spill_path
        self._spill = None if path is None else Spill(path, options.spill_bytes_max)
        self._make_parts()
        self.url = self._endpoint.url
        self._tls = self._endpoint.tls  # to make one in a forked child takes long, and may wait for ever for a lock
        endings.register(self)
        if self._spill is not None:  # there may be events of an earlier process, and this one may never emit any
            with self._lock:
                self._start()

    def _make_parts(self) -> None:
        """Everything that a forked child needs anew. An event that the parent has is the parent's to send."""
        options = self._options
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._closing = threading.RLock()  # held by the thread that waits for the end
        self._endpoint = Endpoint(
            self._base_url, gzipped=options.gzip, timeout_seconds=options.timeout_seconds,
            headers=options.all_headers, tls=self._tls,
        )  # fmt: skip
        self._buffer = Buffer(options.queue_bytes_max)
        self._counters = Counters()
        self._delivery: Delivery[Item] = Delivery(
            self, events_max=options.batch_events_max, level_of=lambda item: item.level
        )
        self._numbers = itertools.count(1)
        self._last_number = 0
        self._interrupting: deque[Item] = deque()
        self._sender: threading.Thread | None = None
        self._spiller: threading.Thread | None = None
        self._reporter: threading.Thread | None = None
        self._reporting: list[Drop] | None = None  # what the hook gets now
        self._last_report: list[Drop] = []  # what the hook gets after the call that has closed the client
        self._is_reported = False  # the hook is called no more, but with that
        self._ready_at = 0.0  # when events that wait for others are sent
        self._pause_until = 0.0
        self._held_level = LEVEL_NONE  # events up to this level wait, since the server refuses them
        self._held_until = 0.0
        self._apart_until = 0.0
        self._flushes = 0  # callers that wait in `flush`
        self._reported_at = -REPORT_SECONDS
        self._deadline: float | None = None  # of the end, once it has begun
        self._is_abandoned = False  # the end is over: whatever a thread still finds out does not count
        self._summary: Summary | None = None
        self._segment: Segment | None = None  # whose events are pending
        self._spilling: list[Item] = []  # events that are being written
        self._spilled = 0  # events in segments that are not pending

    # --- Events come -------------------------------------------------------------------------------------------------

    @property
    def close_seconds(self) -> float:
        """How long the end may take."""
        return self._options.close_seconds

    @property
    def block_seconds(self) -> float:
        """How long an event may wait for room."""
        return self._options.block_seconds

    def has_room(self, line: bytes) -> bool:
        """Whether this event would find room now, without dropping another."""
        with self._lock:
            return self._buffer.has_room(len(line) + ITEM_BYTES)

    def put(self, line: bytes, severity: str, *, may_block: bool = True) -> bool:
        """Queue an event; returns whether it was queued. Waits for room as long as the options say."""
        if getattr(_in_hook, "is_running", False):
            return False  # what a hook about dropped events logs would be dropped, and the hook called again
        rank = RANKS[severity]
        if self._lock._is_owned():  # type: ignore[attr-defined]
            # A signal handler or a finaliser has interrupted this thread in here: nothing may change now.
            self._interrupting.append(Item(line, rank, 0))
            return True
        with self._lock:
            if may_block and self._options.block_seconds and self._deadline is None:
                self._wait_for_room(len(line) + ITEM_BYTES)
            is_queued = self._add(Item(line, rank, 0))
            self._add_interrupting()
        return is_queued

    def _wait_for_room(self, cost: int) -> None:
        until = monotonic() + self._options.block_seconds
        while not self._buffer.has_room(cost) and self._deadline is None:
            left = until - monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _add_interrupting(self) -> None:
        while self._interrupting:
            self._add(self._interrupting.popleft())

    def _add(self, item: Item) -> bool:
        self._counters.emitted += 1
        if self._deadline is not None:
            self._counters.drop(item.severity, Reason.CLOSED)
            return False
        item.number = self._last_number = next(self._numbers)
        before, all_before = self._bytes_to_send, self._buffer.bytes_waiting
        dropped = self._buffer.add(item)
        for one in dropped:
            self._counters.drop(one.severity, Reason.QUEUE_FULL)
        if before == 0:
            self._ready_at = monotonic() + self._options.linger_seconds
        if self._sender is None:
            self._start()
        elif (
            any(before < mark <= self._bytes_to_send for mark in (1, self._delivery.bytes_max))
            or all_before < self._high <= self._buffer.bytes_waiting
        ):
            self._changed.notify_all()
        return not dropped or dropped[-1] is not item

    @property
    def _bytes_to_send(self) -> int:
        """The bytes that wait in events whose level the server does not refuse."""
        return self._buffer.bytes_above(self._held_level)

    @property
    def _high(self) -> int:
        """From so many waiting bytes on, events go to the spill folder: half of the room beside what is being sent."""
        taken = self._buffer.bytes_held - self._buffer.bytes_waiting
        return (self._options.queue_bytes_max - taken) // 2

    def _start(self) -> None:
        # Set first: a signal handler may end `start` with an exception when the thread runs already.
        self._sender = threading.Thread(target=self._run_sender, name="sluice-sender", daemon=True)
        try:
            self._start_reporter()  # now: no thread can be started at the end of the interpreter
            self._sender.start()
        except RuntimeError:  # at the end of the interpreter, or no thread is left: the next event, or the end, tries
            self._sender = None
            return
        endings.close_with_process()

    # --- Events go ---------------------------------------------------------------------------------------------------

    def _run_sender(self) -> None:
        """Send events until the end."""
        try:
            if self._spill is not None and self._spiller is None:
                self._adopt(self._spill)
                self._start_spiller()
            self._send_until_end()
        finally:
            with self._lock:
                if self._deadline is None:  # an error has ended this thread: the next event starts another
                    self._sender = None

    def _start_spiller(self) -> None:
        """Start it when the folder has been taken over: only one thread may add segments."""
        spiller = threading.Thread(target=self._run_spiller, name="sluice-spiller", daemon=True)
        with self._lock:
            if self._deadline is not None:
                return
            try:
                spiller.start()
            except RuntimeError as error:  # no thread is left: what finds no room is dropped
                self._counters.last_error = f"spill folder: {error}"
                return
            self._spiller = spiller

    def _send_until_end(self) -> None:
        try:
            self._send()
        finally:
            self._endpoint.close()

    def _send(self) -> None:
        while True:
            self._report_drops()
            with self._lock:
                self._add_interrupting()
                step = self._next_step(monotonic())
                if isinstance(step, float):
                    self._changed.wait(step)
            if step is None:
                return
            if isinstance(step, Segment):
                self._load(step)
            elif isinstance(step, Batch):
                self._attempt(step.body)

    def _next_step(self, now: float) -> Batch[Item] | Segment | float | None:
        """A batch to send, a segment to load, seconds to wait, or None at the end."""
        closing = self._deadline
        if closing is not None and self._segment is not None:
            self._return_segment()
        if self._held_level != LEVEL_NONE and now >= self._held_until:
            self._held_level = LEVEL_NONE
            self._delivery.release()
        if self._is_abandoned or (closing is not None and self._is_over(now, closing)):
            return None
        wait = threading.TIMEOUT_MAX if closing is None else closing - now
        if self._counters.has_unreported and self._reporting is None:
            wait = min(wait, max(0.0, self._reported_at + REPORT_SECONDS - now))
        if now < self._pause_until:
            return min(wait, self._pause_until - now)
        if self._held_level != LEVEL_NONE:
            wait = min(wait, self._held_until - now)
        if not self._delivery.pending:
            if self._spill is not None and self._spill.has_segments and self._prefers_segments():
                return self._spill.first()
            if self._is_ready(now):
                self._delivery.add(Batch(self._take(now)))
            elif self._bytes_to_send:
                wait = min(wait, self._ready_at - now)
        return self._delivery.next() if self._delivery.pending else wait

    def _take(self, now: float) -> list[Item]:
        """The events of the next body. A body has the level of its highest event: others must not hide behind it."""
        delivery, is_one_level = self._delivery, now < self._apart_until
        return self._buffer.take(
            delivery.events_max, delivery.bytes_max, above=self._held_level, is_one_level=is_one_level
        )

    def _is_over(self, now: float, closing: float) -> bool:
        """Whether the end has come: all is sent, or no time is left for another attempt."""
        if now >= closing or self._pause_until >= closing:
            return True
        if self._bytes_to_send or self._delivery.pending:
            return False
        has_held = self._buffer.bytes_waiting > 0 or bool(self._delivery.held)
        return not has_held or self._held_until >= closing

    def _is_ready(self, now: float) -> bool:
        waiting = self._bytes_to_send
        is_due = now >= self._ready_at or self._flushes > 0 or self._deadline is not None
        return waiting > 0 and (is_due or waiting >= self._delivery.bytes_max)

    def _prefers_segments(self) -> bool:
        """Events on disk are older, but those in memory come first while memory is short, and at the end.

        While the server refuses a level, too: those on disk have the lowest ones.
        """
        is_held = self._held_level != LEVEL_NONE
        return self._deadline is None and not is_held and self._buffer.bytes_waiting < self._high

    def _attempt(self, body: bytes) -> None:
        """Send the first pending batch once."""
        answer: Response | NotSentError | NoResponseError
        try:
            answer = self._endpoint.post(body)
        except (NotSentError, NoResponseError) as error:
            answer = error
        finished: Segment | None = None
        with self._lock:
            if self._is_abandoned:
                return
            if isinstance(answer, Response):
                pause = self._delivery.answered(answer)
                if answer.status == 202:
                    self._counters.last_error = ""
            else:
                pause = self._delivery.failed(answer)
            if pause is not None:
                self._counters.last_error = pause.why
                self._pause(pause)
            if self._segment is not None and not self._has_segment_events():
                finished, self._segment = self._segment, None
            self._changed.notify_all()
        if finished is not None and self._spill is not None:
            self._spill.remove(finished)
            with self._lock:
                self._changed.notify_all()  # there is room in the folder

    def _pause(self, pause: Pause) -> None:
        if pause.level is not None:
            self._held_level = pause.level
            self._held_until = monotonic() + pause.seconds
            self._apart_until = self._held_until + APART_SECONDS
            return
        seconds = max(pause.seconds, MISDIRECTED_SECONDS if pause.cause is Cause.MISDIRECTED else 0.0)
        self._pause_until = monotonic() + seconds

    def _has_segment_events(self) -> bool:
        return any(item.is_from_disk for batch in self._delivery.unsettled for item in batch.items)

    def accepted(self, items: Sequence[Item], *, is_repeat: bool) -> None:
        """Called by the delivery."""
        self._counters.accepted += len(items)
        self._counters.repeated += len(items) if is_repeat else 0
        self._buffer.settle(item for item in items if not item.is_from_disk)

    def rejected(self, item: Item, reason: str) -> None:
        """Called by the delivery."""
        self._counters.drop(item.severity, Reason.REJECTED)
        self._counters.last_error = f"rejected: {reason}"
        if not item.is_from_disk:
            self._buffer.settle([item])

    # --- The hook ----------------------------------------------------------------------------------------------------

    def _report_drops(self) -> None:
        """Let the hook be called, if it is time and no call runs. Does not wait for it."""
        with self._lock:
            now = monotonic()
            if not self._counters.has_unreported or self._reporting is not None:
                return
            if now < self._reported_at + REPORT_SECONDS and not self._is_abandoned:
                return
            self._reported_at = now
            if self._options.on_drop is None:
                self._counters.unreported()
                return
            with contextlib.suppress(RuntimeError):  # no thread is left: the next report tries again
                self._start_reporter()
                self._reporting = self._counters.unreported()
                self._changed.notify_all()

    def _start_reporter(self) -> None:
        """Start the thread that calls the hook, if there is a hook and no such thread. Raises RuntimeError."""
        reporter = self._reporter
        if self._options.on_drop is not None and (reporter is None or not reporter.is_alive()):
            reporter = threading.Thread(target=self._run_reporter, name="sluice-reporter", daemon=True)
            reporter.start()
            self._reporter = reporter

    def _run_reporter(self) -> None:
        """Call the hook with what it is to get, until the end."""
        while True:
            with self._lock:
                while self._reporting is None and not self._is_reported:
                    self._changed.wait()
                drops = self._reporting
            if drops is None:
                return
            has_returned = False
            try:
                self._call_hook(drops)
                has_returned = True
            finally:
                with self._lock:
                    if not has_returned:  # it ends this thread, though not at once: the next report needs another
                        self._reporter, self._last_report = None, []
                    self._reporting, self._last_report = self._last_report or None, []
                    self._changed.notify_all()

    def _call_hook(self, drops: list[Drop]) -> None:
        hook = self._options.on_drop
        assert hook is not None  # noqa: S101  # else there is no thread for it
        _in_hook.is_running = True
        try:
            hook(drops)
        except Exception as error:  # a hook that fails must not end the thread
            _complain(f"on_drop raised {error!r}")
        finally:
            _in_hook.is_running = False

    def _report_rest(self) -> None:
        """Let the hook hear of the last drops, for as long as it may take at the end."""
        if threading.current_thread() is self._reporter:  # the hook closes the client: the rest comes after this call
            with self._lock:
                self._last_report, self._is_reported = self._counters.unreported(), True
            return
        until = monotonic() + HOOK_END_SECONDS
        self._wait_for_hook(until)
        self._report_drops()
        self._wait_for_hook(until)
        with self._lock:
            self._is_reported = True
            is_stuck = self._reporting is not None
            self._changed.notify_all()
        if is_stuck:
            _complain("on_drop has not returned: drops may not have been reported")

    def _wait_for_hook(self, until: float) -> None:
        with self._lock:
            while self._reporting is not None and (left := until - monotonic()) > 0:
                self._changed.wait(left)

    # --- Spill -------------------------------------------------------------------------------------------------------

    def _adopt(self, spill: Spill) -> None:
        """Take over the events of processes that have ended."""
        try:
            events = spill.open()
        except OSError as error:
            with self._lock:
                self._counters.last_error = f"spill folder: {error}"
            return
        with self._lock:
            self._counters.adopted += events
            self._spilled += events

    def _load(self, segment: Segment) -> None:
        """Read a segment, and let its events be sent."""
        assert self._spill is not None  # noqa: S101  # it has given the segment
        lines: list[tuple[bytes, int]] = []
        is_readable = True
        try:
            lines = self._spill.read(segment)
        except OSError as error:
            is_readable = False
            self._counters.last_error = f"spill folder: {error}"
            self._spill.forget(segment)
        with self._lock:
            self._spilled -= segment.events
            self._counters.adopted += max(0, len(lines) - segment.events)  # somebody has added some
            damaged = max(0, segment.events - len(lines))
            if damaged:
                self._counters.drop("INFO", Reason.DAMAGED, damaged)  # their own severity can't be read
            if lines:
                self._segment = segment
                self._delivery.add(Batch([Item(line, rank, 0) for line, rank in lines]))
        if not lines and is_readable:
            self._spill.remove(segment)

    def _return_segment(self) -> None:
        """Leave the rest of a segment to the next process, which sends all of it."""
        self._spilled += self._delivery.remove(lambda item: item.is_from_disk)
        self._segment = None

    def _run_spiller(self) -> None:
        """Write the lowest severities to the folder while the queue is more than half full."""
        spill = self._spill
        assert spill is not None  # noqa: S101  # else this does not run
        retry_at = 0.0
        while True:
            with self._lock:
                while self._deadline is None:
                    size, left = spill.segment_bytes_max, retry_at - monotonic()
                    if self._buffer.bytes_waiting >= self._high and size and left <= 0:
                        break
                    self._changed.wait(left if left > 0 else None)
                if self._deadline is not None:
                    return
                items = self._spilling = self._buffer.take_lowest(size)
            segment = self._write(spill, items)
            with self._lock:
                if segment is not None:
                    spill.add(segment)  # not before its events are counted as spilled: the sender takes it from now on
                if self._is_abandoned:
                    return
                self._spilling = []
                if segment is not None:
                    self._buffer.settle(items)
                    self._spilled += len(items)
                else:
                    self._buffer.put_back(items)
                    retry_at = monotonic() + SPILL_FAILED_SECONDS
                self._changed.notify_all()

    def _write(self, spill: Spill, items: Sequence[Item]) -> Segment | None:
        try:
            return spill.write(items)
        except SpillFullError:
            return None
        except OSError as error:
            self._counters.last_error = f"spill folder: {error}"
            return None

    # --- The end -----------------------------------------------------------------------------------------------------

    def flush(self, seconds: float) -> bool:
        """Wait until every event that was emitted before is settled, spilled ones included; False if time runs out."""
        if getattr(_in_hook, "is_running", False):
            return False  # events may wait for the hook
        until = monotonic() + min(seconds, SECONDS_MAX)
        with self.flushing() as result, self._lock:
            while result() is None and (left := until - monotonic()) > 0:
                self._changed.wait(left)
            return result() is True

    @contextlib.contextmanager
    def flushing(self) -> Iterator[Callable[[], bool | None]]:
        """Within the block no event waits for others. Yields a function that tells how it goes.

        It returns True when every event that was emitted before is settled, False if that can't happen any more, and
        None as long as it may.
        """
        with self._lock:
            target = self._last_number
            self._flushes += 1
            self._changed.notify_all()

        def result() -> bool | None:
            with self._lock:
                return True if self._is_flushed(target) else None if self._summary is None else False

        try:
            yield result
        finally:
            with self._lock:
                self._flushes -= 1

    def _is_flushed(self, target: int) -> bool:
        first = self._buffer.first_number()
        if (first is not None and first <= target) or self._spilling or self._spilled:
            return False
        return all(item.number > target for batch in self._delivery.unsettled for item in batch.items)

    def close(self, seconds: float | None = None) -> Summary:
        """Accept no more events, send the rest within this time, and say what became of them."""
        self.begin_close(self._options.close_seconds if seconds is None else seconds)
        return self.finish_close()

    def begin_close(self, seconds: float) -> None:
        """The first half of `close`; does not wait. Once it was called, the time does not change."""
        with self._lock:
            if self._deadline is None:
                self._add_interrupting()
                self._deadline = monotonic() + min(max(0.0, seconds), SECONDS_MAX)
                self._changed.notify_all()

    def finish_close(self) -> Summary:
        """The second half of `close`."""
        with self._closing:
            return self._finish_close()

    def _finish_close(self) -> Summary:
        assert self._deadline is not None, "begin_close comes first"  # noqa: S101
        sender = self._sender
        if sender is None or not sender.is_alive():
            self._send_until_end()  # there is no thread: this one sends
        elif sender is not threading.current_thread():
            sender.join(max(0.0, self._deadline - monotonic()))
        spiller = self._spiller
        if spiller is not None and spiller is not threading.current_thread():
            spiller.join(SPILL_END_SECONDS)
        with self._lock:
            if self._summary is not None:
                return self._summary
            left = self._abandon()
        unsent = self._keep(left)
        with self._lock:
            for item in unsent:
                self._counters.drop(item.severity, Reason.UNSENT)
            self._spilled += len(left) - len(unsent)
            self._summary = Summary(self.stats(), len(unsent))
            self._changed.notify_all()
        self._report_rest()
        if self._spill is not None:
            self._spill.close()
        return self._summary

    def _abandon(self) -> list[Item]:
        """End all attempts; returns the events that are not settled."""
        self._is_abandoned = True
        self._endpoint.abort()
        if self._segment is not None:
            self._return_segment()
        left = [item for batch in self._delivery.unsettled for item in batch.items] + self._spilling
        self._delivery.remove(lambda _: True)
        self._spilling = []
        self._buffer.settle(left)
        waiting = self._buffer.take(sys.maxsize, sys.maxsize)
        self._buffer.settle(waiting)
        return left + waiting

    def _keep(self, items: list[Item]) -> list[Item]:
        """Write events to the spill folder, the highest severities first; returns those that found no room."""
        if self._spill is None:
            return items
        left = sorted(items, key=lambda item: (-item.rank, item.number))
        while left and (size := self._spill.segment_bytes_max):
            count = count_within((item.line for item in left), sys.maxsize, size)
            segment = self._write(self._spill, left[:count])
            if segment is None:
                break
            self._spill.add(segment)
            left = left[count:]
        return left

    def after_fork_in_child(self) -> None:
        """The parent has the events, the connection and the folder; this process starts anew."""
        _in_hook.is_running = False
        was_closed = self._deadline is not None
        self._endpoint.leave_to_parent()
        if self._spill is not None:
            self._spill.leave_to_parent()
        self._make_parts()
        if was_closed:
            self._deadline = monotonic()

    def stats(self) -> Stats:
        """The counts so far."""
        with self._lock:
            waiting = len(self._buffer) + len(self._spilling) + self._pending_count()
            return self._counters.stats(waiting=waiting, spilled=self._spilled)

    def _pending_count(self) -> int:
        return sum(len(batch.items) for batch in self._delivery.unsettled)


def _complain(what: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be closed, or None
        sys.stderr.write(f"sluice-client: {what}\n")
