"""Sends the system's state to all viewers: one message a second, encoded once for all of them."""

import asyncio
import logging
import os
import platform
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ingest.dashboard.event_rows import event_rows
from ingest.dashboard.points import COLUMNS, GAP_SECONDS, Point, merged, next_point
from ingest.dashboard.view import ViewSources, page_document
from ingest.errors import NotReadyError
from ingest.health import HealthSources
from ingest.types import Lifecycle
from pipeline.errors import StoreUnavailableError
from pipeline.event_fold import EVENTS_READ
from pipeline.loops import Loop
from pipeline.ports.control import ControlEvent, ControlEvents
from pipeline.ports.history import HISTORY_ENTRIES_MAX, HISTORY_SECONDS, History, HistoryEntry

logger = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 1.0
NOBODY_SECONDS: Final = 5.0  # the same while no page is open; the first viewer ends that wait
SOONEST_SECONDS: Final = 0.2  # between two messages, so that a new viewer does not wait for the next second
HEARTBEAT_SECONDS: Final = 5.0  # without a message, after which the stream sends a heartbeat
BEHIND_MAX: Final = 3  # messages that a viewer may be behind before it is dropped
RETRY_MILLISECONDS: Final = 1000  # after which a browser that lost the stream reconnects

_END: Final = b""


@dataclass(eq=False, slots=True)
class Viewer:
    """One open stream. It starts with a snapshot; a slow viewer is dropped."""

    queue: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(BEHIND_MAX + 1))
    is_new: bool = True

    async def messages(self) -> AsyncIterator[bytes]:
        """The messages to send, including heartbeats, until the viewer is dropped or ingest stops."""
        yield b"retry: %d\n\n" % RETRY_MILLISECONDS
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    message = await self.queue.get()
            except TimeoutError:
                message = b": still here\n\n"
            if message == _END:
                return
            yield message

    def give(self, message: bytes) -> bool:
        """Queue a message; False if the viewer is too far behind."""
        if self.queue.qsize() >= BEHIND_MAX:
            return False
        self.queue.put_nowait(message)
        return True

    def end(self) -> None:
        """End the stream, and discard unread messages."""
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(_END)


@dataclass(frozen=True, slots=True)
class Frame:
    """The messages of one second."""

    tick: bytes
    snapshot: bytes | None  # only made if there is a new viewer


class Reader:
    """Reads history and events, and encodes messages; everything blocks, on one thread."""

    def __init__(self, history: History | None, events: ControlEvents) -> None:
        self._history = history
        self._events = events
        self._points: deque[Point] = deque(maxlen=HISTORY_ENTRIES_MAX)
        self._last: HistoryEntry | None = None
        self._newest: list[ControlEvent] = []
        self._told: list[dict[str, Any]] = []
        self._sent_at = 0.0

    def frame(self, sources: ViewSources, local: list[Point], *, for_new: bool) -> Frame:
        """The current messages. Without the control store, they have older data and this process' own view."""
        are_new = False
        try:
            self._read_history()
            are_new = self._read_events()
        except StoreUnavailableError as error:
            logger.debug("the page has no news of the control store: %s", error)
        points = self._shown(sources.health.wall, local)
        status = page_document(sources)
        identity = self._last.id if self._last is not None else ""
        if points and points[-1].t < self._sent_at:  # the clock was set back
            self._sent_at = points[-1].t - PERIOD_SECONDS
        news = [point.row() for point in points if point.t > self._sent_at]
        self._sent_at = points[-1].t if points else self._sent_at
        tick = {"status": status, "points": news} | ({"events": self._told} if are_new else {})
        if not for_new:
            return Frame(_message("tick", identity, tick), None)
        snapshot = {
            "status": status,
            "columns": COLUMNS,
            "seconds": HISTORY_SECONDS,
            "points": [point.row() for point in points],
            "events": self._told,
        }
        return Frame(_message("tick", identity, tick), _message("snapshot", identity, snapshot))

    def _read_events(self) -> bool:
        """Read the control events, if there is a new one. Returns whether there is."""
        newest = self._events.last(1)
        if newest == self._newest:
            return False
        self._told = event_rows(self._events.last(EVENTS_READ))
        self._newest = newest
        return True

    def _read_history(self) -> None:
        if self._history is None:
            return
        position = self._last.id if self._last is not None else ""
        entries = self._history.since(position, entries_max=HISTORY_ENTRIES_MAX)
        for entry in entries:
            while self._points and self._points[-1].t > entry.at:  # the clock was set back: these are in the future
                self._points.pop()
            self._points.append(next_point(self._last, entry))
            self._last = entry

    def _shown(self, now: float, local: list[Point]) -> list[Point]:
        """The history; this process' own view fills its gaps, and the time after its end."""
        newest = self._points[-1].t if self._points else 0.0
        # The process that writes the history has not written the last seconds yet.
        own = [point for point in local if point.t < newest or now - newest > GAP_SECONDS]
        return [point for point in merged(self._points, own) if point.t > now - HISTORY_SECONDS]


def _message(kind: str, identity: str, document: Any) -> bytes:
    """One message of the stream; the JSON has no line breaks."""
    name = b"id: %b\n" % identity.encode() if identity else b""
    return b"event: %b\n%bdata: %b\n\n" % (kind.encode(), name, msgspec.json.encode(document))


class Viewers:
    """All open streams of this process. For the event loop only."""

    def __init__(
        self,
        reader: Reader,
        health: Callable[[], HealthSources],
        loop: Loop,
        lifecycle: Lifecycle,
        *,
        viewers_max: int,
        local_points: Sequence[Point] | None,
    ) -> None:
        self._reader = reader
        self._health = health
        self._loop = loop
        self._lifecycle = lifecycle
        self._viewers_max = viewers_max
        self._local_points = local_points  # points that this process has seen itself; it grows during the run
        self._viewers: set[Viewer] = set()
        self._wake = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="page")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def end_streams(self) -> None:
        """End every stream now: a page must not delay the stop of ingest."""
        if self._task is not None:
            self._task.cancel()
        for viewer in self._viewers:
            viewer.end()
        self._viewers.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def join(self) -> Viewer:
        """Open a new stream. Raises NotReadyError if there are too many, or ingest stops."""
        most = self._viewers_max
        if self._lifecycle.is_stopping:
            raise NotReadyError("this process is shutting down")
        if len(self._viewers) >= most:
            raise NotReadyError(
                f"{most} live pages of this process are open already (PAGE_VIEWERS_MAX): close one of them"
            )
        viewer = Viewer()
        self._viewers.add(viewer)
        self._wake.set()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Remove a stream that has ended; idempotent."""
        self._viewers.discard(viewer)

    def document(self) -> dict[str, Any]:
        """The state of the system at this moment, from memory."""
        return page_document(self._sources())

    @property
    def count(self) -> int:
        """Number of open streams."""
        return len(self._viewers)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + (PERIOD_SECONDS if self._viewers else NOBODY_SECONDS)
            await asyncio.sleep(SOONEST_SECONDS)
            with self._loop.turn():
                await self._next(due)
                self._wake.clear()
                await self._write()

    async def _write(self) -> None:
        """Write to every open page."""
        new = [viewer for viewer in self._viewers if viewer.is_new]
        if not self._viewers:
            return
        local = list(self._local_points or ())
        loop = asyncio.get_running_loop()
        frame = await loop.run_in_executor(self._executor, self._make, self._sources(), local, bool(new))
        self._give(frame, new)

    async def _next(self, due: float) -> None:
        """Wait for the next second, or for a new viewer."""
        try:
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _make(self, sources: ViewSources, local: list[Point], for_new: bool) -> Frame:
        return self._reader.frame(sources, local, for_new=for_new)

    def _sources(self) -> ViewSources:
        return ViewSources(
            health=self._health(),
            process=f"{platform.node()}:{os.getpid()}",
            viewers=self.count,
        )

    def _give(self, frame: Frame, new: list[Viewer]) -> None:
        for viewer in list(self._viewers):
            if viewer in new and frame.snapshot is not None:
                viewer.is_new = False
                viewer.give(frame.snapshot)
            elif not viewer.is_new and not viewer.give(frame.tick):
                logger.info("dropped a live page that reads too slowly", extra={"action": "viewer_dropped"})
                viewer.end()
                self._viewers.discard(viewer)
