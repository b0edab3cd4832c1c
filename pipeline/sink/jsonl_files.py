"""The files of one partition: appends lines and moves the position exactly once, whenever the process is killed.

    position.json          the stored offset, and the committed size of each file that was written last
    2026-11-26T16.jsonl    events that were received in this hour (UTC)
    dead-letters.jsonl     rejected records
    drain.lock             held by the one drain of the partition
    commit.lock            held from the last check to the end of a commit

A batch is appended and synchronised first. Then a new `position.json` replaces the old one: that is the commit. Bytes
behind the committed size of a file belong to a batch that was not committed; the next holder of the lock cuts them off.
A file that `position.json` does not list is committed as a whole, so a file is listed before its first byte is written.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from pipeline.clock import Clock
from pipeline.errors import SinkUnavailableError
from pipeline.ports.rate import BatchStart

_logger = logging.getLogger(__name__)

DEAD_LETTERS: Final = "dead-letters.jsonl"
_POSITION: Final = "position.json"
_DRAIN_LOCK: Final = "drain.lock"
_COMMIT_LOCK: Final = "commit.lock"
_FOLDER_NAME: Final = "partition-"
_LISTED_FILES_MAX: Final = 16  # more only if one batch writes to more
_NAME_CHARS_MAX: Final = 160  # a name in a file system has 255 bytes
_POLL_SECONDS: Final = 0.005


class Position(msgspec.Struct, rename="camel"):
    """The content of position.json."""

    log_id: str
    partition: int
    next_offset: int | None = None  # None: nothing is stored yet
    last_digest: str | None = None  # of the last stored record, in hexadecimal digits
    highest_offset: int = 0  # the highest next offset that was ever stored: an operator may set a partition back
    batch_began_offset: int | None = None  # of the newest batch: the stored offset before it
    batch_began_at: float | None = None  # seconds since the epoch, by this machine's clock
    files: dict[str, int] = msgspec.field(default_factory=dict)  # name -> committed bytes; the last written last


_decode_position = msgspec.json.Decoder(Position).decode


class PartitionFiles:
    """One partition's folder. It is created when it is locked for the first time."""

    def __init__(self, root: Path, log_id: str, partition: int) -> None:
        self._log_id, self._partition = log_id, partition
        self._folder = _log_folder(root, log_id) / f"{_FOLDER_NAME}{partition}"
        self._lock: int | None = None  # descriptor
        self._is_recovered = False

    # --- the lock ---------------------------------------------------------------------------------

    def lock(self) -> bool:
        """Try to become the only writer; never waits."""
        make_folder(self._folder)
        descriptor = os.open(self._folder / _DRAIN_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not _try_lock(descriptor):
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())  # for people, and `holder`
        self._lock = descriptor
        return True

    def unlock(self) -> None:
        """Release the lock, also in children that have inherited it; raises nothing."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        self.forget()

    def forget(self) -> None:
        """Close the inherited descriptor of a parent's lock, which the parent keeps."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None

    def holder(self) -> str | None:
        """The process that holds the lock; None if none does."""
        try:
            descriptor = os.open(self._folder / _DRAIN_LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return None if _try_lock(descriptor) else os.read(descriptor, 32).decode().strip()
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def committing(self, clock: Clock, deadline: float) -> Iterator[None]:
        """Hold off commits of others, or their readers. Raises SinkUnavailableError after the deadline (monotonic)."""
        descriptor = os.open(self._folder / _COMMIT_LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while not _try_lock(descriptor):
                if clock.monotonic() >= deadline:
                    raise SinkUnavailableError(
                        f"timed out waiting for a commit of partition {self._partition}: {self._folder / _COMMIT_LOCK}",
                        is_a_row_possible=False,
                    )
                clock.sleep(_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    # --- the position -------------------------------------------------------------------------------

    def position(self) -> Position | None:
        """What position.json says; None if there is none."""
        try:
            return _decode_position((self._folder / _POSITION).read_bytes())
        except FileNotFoundError:
            return None

    def recover(self) -> None:
        """Cut off what is not committed. Write the position anew, so that it is durable before anybody relies on it.

        Only the holder of the lock may call it; once is enough until a write fails.
        """
        if self._is_recovered:
            return
        position = self.position()
        if position is not None:
            self._cut(position)
            self._write(position)
        self._is_recovered = True

    def roll_back(self) -> None:
        """Cut off what a failed batch has written; raises nothing, because the next `recover` does it too."""
        self._is_recovered = False
        with contextlib.suppress(OSError, msgspec.MsgspecError, SinkUnavailableError):
            position = self.position()
            if position is not None:
                self._cut(position)

    def append(self, position: Position, lines: Mapping[str, list[bytes]]) -> Position:
        """Append lines to files, durably; returns the position with the new sizes, for `commit`."""
        position = self._listed(position, [name for name, some in lines.items() if some])
        sizes = dict(position.files)
        for name, some in lines.items():
            if some:
                content = b"".join(some)
                _write(self._folder / name, content, at=sizes.pop(name))
                sizes[name] = position.files[name] + len(content)
        return msgspec.structs.replace(position, files=sizes)

    def commit(self, position: Position, next_offset: int, last_digest: bytes | None, began: BatchStart) -> None:
        """Make the appended lines and the new offset valid, durably."""
        self._write(
            msgspec.structs.replace(
                position,
                next_offset=next_offset,
                last_digest=None if last_digest is None else last_digest.hex(),
                highest_offset=max(position.highest_offset, next_offset),
                batch_began_offset=began.offset,
                batch_began_at=began.at,
            )
        )

    def without_stored(
        self, position: Position, lines: Mapping[str, list[bytes]], first: int, end: int
    ) -> dict[str, list[bytes]]:
        """Lines that the files do not have yet. Only a partition that was set back meets its own lines again."""
        if first >= position.highest_offset:
            return dict(lines)
        kept = {}
        for name, some in lines.items():
            stored = set(self.lines_between(name, first, end))
            kept[name] = [line for line in some if line not in stored]
        return kept

    def lines_between(self, name: str, first: int, end: int) -> list[bytes]:
        """The lines of a file with offsets from `first` up to `end`; an incomplete last line is left out."""
        found = []
        with contextlib.suppress(FileNotFoundError), (self._folder / name).open("rb") as file:
            for line in file:
                if line.endswith(b"\n") and first <= _offset_of(line) < end:
                    found.append(line)
        return found

    def _listed(self, position: Position, names: list[str]) -> Position:
        """The position with these files listed, before the first byte is written to them."""
        new = [name for name in names if name not in position.files]
        if not new:
            return position
        files = dict(position.files)
        for name in new:
            descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                files[name] = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
        for name in [name for name in files if name not in names][: max(0, len(files) - _LISTED_FILES_MAX)]:
            del files[name]  # all its bytes are committed
        position = msgspec.structs.replace(position, files=files)
        self._write(position)
        return position

    def _cut(self, position: Position) -> None:
        """Cut off bytes that are not committed. Raises SinkUnavailableError if committed ones are missing."""
        for name, size in list(position.files.items()):
            path = self._folder / name
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                del position.files[name]  # moved away: it begins anew
                continue
            if found < size:
                raise _missing_bytes(path, found, size)
            if found > size:
                os.truncate(path, size)
                _logger.info(
                    "cut %d bytes of a batch that was not committed from %s",
                    found - size,
                    path,
                    extra={"action": "batch_cut_off", "partition": self._partition},
                )

    def _write(self, position: Position) -> None:
        write_whole(self._folder / _POSITION, msgspec.json.encode(position) + b"\n")


def partitions_of(root: Path, log_id: str) -> list[int]:
    """The partitions of a log that have a folder."""
    folders = _log_folder(root, log_id).glob(f"{_FOLDER_NAME}*")
    return sorted(int(folder.name.removeprefix(_FOLDER_NAME)) for folder in folders)


def make_folder(path: Path) -> None:
    """Make a folder with its parents, durably; nothing happens if it exists."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _synchronise(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file at once, durably: a reader sees the old or the new content, also after a crash."""
    new = path.with_name(f"{path.name}.new")
    _write(new, content, at=None)
    os.replace(new, path)  # noqa: PTH105 - as the other steps, so that a test can kill the process at each
    _synchronise(path.parent)


def _write(path: Path, content: bytes, *, at: int | None) -> None:
    """Write to an existing file from a size on, or a new file (None), and synchronise it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | (os.O_CREAT if at is None else 0), 0o666)
    try:
        if at is not None and os.fstat(descriptor).st_size < at:
            raise _missing_bytes(path, os.fstat(descriptor).st_size, at)
        os.ftruncate(descriptor, at or 0)
        os.lseek(descriptor, at or 0, os.SEEK_SET)
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _missing_bytes(path: Path, found: int, size: int) -> SinkUnavailableError:
    return SinkUnavailableError(
        f"{path} has {found} bytes, and {size} were stored: bring them back, or move the file away to go on without it",
        is_a_row_possible=False,
    )


def _synchronise(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _offset_of(line: bytes) -> int:
    """The offset at the beginning of a line: `{"logOffset":12,…`."""
    try:
        return int(line[line.index(b":") + 1 : line.index(b",")])
    except ValueError:
        return -1  # not a line of Sluice


def _log_folder(root: Path, log_id: str) -> Path:
    name = quote(log_id, safe="")
    if len(name) > _NAME_CHARS_MAX:
        name = f"{name[:_NAME_CHARS_MAX]}-{hashlib.blake2b(log_id.encode(), digest_size=8).hexdigest()}"
    return root / f"log-{name}"
