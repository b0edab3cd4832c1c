"""The spill folder: events on disk that found no room in memory, or that were not sent at the end.

Each file is a segment: events as NDJSON, written at once, fsynced, and removed when all its events are settled. So the
folder is bounded, and a crash loses or damages nothing that was written. A process that crashes after a segment was
sent and before it was removed leaves it to the next one. That sends it again, with the same eventIds, and the server
stores nothing twice.

    <owner>.lock                       held (flock) while its process runs
    <owner>-<number>-<events>.ndjson   a segment
    *.part                             a segment that is being written

A process takes over the segments of owners whose lock is free.
"""

import contextlib
import json
import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sluice_client.buffer import Item
from sluice_client.events import RANKS
from sluice_client.ids import uuid7

try:
    import fcntl
except ImportError:  # pragma: no cover  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

SEGMENT_BYTES_MAX: Final = 1 << 20  # of a segment; one is in memory while it is sent


class SpillFullError(Exception):
    """The spill folder has no room."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of events."""

    path: Path
    events: int
    size: int


class Spill:
    """The spill folder as one process uses it. One thread may write while another reads and removes."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """Create the folder. Raises OSError if that fails, ValueError on a system without flock."""
        if fcntl is None:  # pragma: no cover
            raise ValueError("spill_folder needs a POSIX system")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._bytes_max = bytes_max
        self._owner = ""
        self._lock: int | None = None
        self._number = 0
        self._segments: deque[Segment] = deque()
        self._bytes_used = 0
        self._counting = threading.Lock()
        self._naming = threading.Lock()  # of this owner and of its segments: no two threads may make the same name

    def open(self) -> int:
        """Take over the segments of processes that have ended; returns their number of events. Raises OSError."""
        self._own()
        before = sum(segment.events for segment in self._segments)
        for lock in sorted(self._folder.glob("*.lock")):
            if lock.stem != self._owner:
                self._adopt_from(lock)
        # First the files, then the owners: the owner of a file that a process is writing now has a lock before it.
        paths = sorted(self._folder.glob("*.ndjson"))
        owners = {lock.stem for lock in self._folder.glob("*.lock")}
        for path in paths:
            if path.name.partition("-")[0] not in owners:
                self._adopt(path)
        return sum(segment.events for segment in self._segments) - before

    @property
    def has_segments(self) -> bool:
        """Whether there are events to send."""
        return bool(self._segments)

    @property
    def segment_bytes_max(self) -> int:
        """The size of the next segment, unless it is one event: 0 if there is no room."""
        room = self._bytes_max - self._bytes_used
        whole = min(SEGMENT_BYTES_MAX, self._bytes_max // 4)
        return whole if room >= whole else 0

    def write(self, items: Sequence[Item]) -> Segment:
        """Write one segment, for `add`. Raises SpillFullError if it does not fit, OSError if the disk fails."""
        body = b"".join(item.line + b"\n" for item in items)
        if self._bytes_used + len(body) > self._bytes_max:
            raise SpillFullError
        self._own()
        path = self._next_path(len(items))
        part = path.with_suffix(".part")
        try:
            with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream:
                stream.write(body)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        self._sync_folder()
        return Segment(path, len(items), len(body))

    def add(self, segment: Segment) -> None:
        """From now on, this segment is one of those to send."""
        self._segments.append(segment)
        with self._counting:
            self._bytes_used += segment.size

    def first(self) -> Segment:
        """The oldest segment. There must be one."""
        return self._segments[0]

    def read(self, segment: Segment) -> list[tuple[bytes, int]]:
        """The lines of a segment with the ranks of their severities, without damaged ones. Raises OSError."""
        found = []
        for line in segment.path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
                event = json.loads(line)
                if event["eventId"]:
                    found.append((line, RANKS[event["severity"]]))
        return found

    def forget(self, segment: Segment) -> None:
        """Leave a segment where it is."""
        self._segments.remove(segment)
        with self._counting:
            self._bytes_used -= segment.size

    def remove(self, segment: Segment) -> None:
        """Remove a segment whose events are settled."""
        self.forget(segment)
        with contextlib.suppress(OSError):  # the next process sends it again, which is harmless
            segment.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the folder: another process may take over what is left."""
        if self._lock is None:
            return
        if not self._segments:
            with contextlib.suppress(OSError):  # the next process removes it
                self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def leave_to_parent(self) -> None:
        """In a forked child: this folder's lock and segments are the parent's."""
        if self._lock is not None:
            os.close(self._lock)  # the parent's own descriptor keeps the lock
        self._lock = None
        self._owner = ""
        self._segments = deque()
        self._bytes_used = 0
        self._counting = threading.Lock()
        self._naming = threading.Lock()

    @property
    def _lock_path(self) -> Path:
        return self._folder / f"{self._owner}.lock"

    def _own(self) -> None:
        """Become an owner, if this process is none yet."""
        with self._naming:
            while self._lock is None:
                self._owner = uuid7().replace("-", "")  # their order is that of time
                descriptor = os.open(self._lock_path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(descriptor).st_nlink:
                        self._lock = descriptor
                if self._lock is None:  # another process took the new file for one that was left over
                    os.close(descriptor)

    def _adopt_from(self, lock: Path) -> None:
        """Take over the segments of this owner, if its process has ended."""
        try:
            descriptor = os.open(lock, os.O_RDWR)
        except OSError:
            return  # another process was faster
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for part in self._folder.glob(f"{lock.stem}-*.part"):
                part.unlink(missing_ok=True)
            for path in sorted(self._folder.glob(f"{lock.stem}-*.ndjson")):
                self._adopt(path)
            lock.unlink(missing_ok=True)
        except BlockingIOError:
            pass  # its process runs
        finally:
            os.close(descriptor)

    def _adopt(self, path: Path) -> None:
        try:
            events = int(path.stem.rpartition("-")[2])
            own = self._next_path(events)
            path.rename(own)
            size = own.stat().st_size
        except (OSError, ValueError):
            return  # another process was faster, or this is no segment
        self.add(Segment(own, events, size))

    def _next_path(self, events: int) -> Path:
        with self._naming:
            self._number += 1
            return self._folder / f"{self._owner}-{self._number:08d}-{events}.ndjson"

    def _sync_folder(self) -> None:
        """Make the new name durable."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
