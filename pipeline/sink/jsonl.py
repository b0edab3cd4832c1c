"""The event sink in files: JSON Lines, one file for each partition and hour of receipt. For archives.

The folder of EVENT_SINK_URL has `log-<log id>/partition-<number>/`, and in it the files of `pipeline.sink.jsonl_files`.
A line has the record as it was in the log, with its place: the format is in docs/archive.md.

It stores the record of an offset once. It does not compare event ids: an event that a client repeats is stored again.
Weakness: a file system that hangs blocks a drain until its time limit; there is no watchdog as for PostgreSQL.
"""

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from pipeline.clock import SystemClock
from pipeline.errors import (
    OffsetConflictError,
    PermanentError,
    SinkContentionError,
    SinkMisconfiguredError,
    SinkUnavailableError,
)
from pipeline.event import decode_record
from pipeline.ports.dead_letters import DeadLetterCounts, ReplayResult
from pipeline.ports.event_sink import StoredPosition, StoreResult
from pipeline.ports.log import LogBatch
from pipeline.ports.offset_store import StoredOffsets
from pipeline.ports.rate import BatchStart
from pipeline.settings import Settings
from pipeline.sink.jsonl_files import DEAD_LETTERS, PartitionFiles, Position, make_folder, partitions_of, write_whole
from pipeline.sink.poison import PoisonRun, RejectedRecord, evidence

_FORMAT: Final = 1  # of the folder; a version that changes it gets another number
_MARK: Final = "sluice.json"  # shows that a folder is an archive: an empty folder would say that nothing is stored
_PROBE: Final = "probe"
_HOUR_MS: Final = 3_600_000
_REASON_CHARS_MAX: Final = 500
_SETTLE_SECONDS_MAX: Final = 1.0  # for which `settled_offsets` waits for commits
_HOURS_MAX: Final = 1024  # names in memory


@dataclass(slots=True)
class EncodedLines:
    """The lines of one batch by file, and the log and partition that they are for."""

    log_id: str
    partition: int
    lines: dict[str, list[bytes]] = field(default_factory=dict)
    rejected: list[RejectedRecord] = field(default_factory=list)
    received_at_ms: list[int] = field(default_factory=list)


class JsonlSink:
    """Event sink, offset store and dead letters in one folder. Any number of processes of one machine may use it.

    `has_stored` is asked before an archive is made: whether events of the log are stored already, as another witness
    knows. Then the folder is not mounted, or another one than before, and nothing is stored in it.
    """

    def __init__(self, settings: Settings, has_stored: Callable[[], bool] = lambda: False) -> None:
        self._settings = settings
        self._has_stored = has_stored
        self._root = Path(unquote(urlsplit(settings.event_sink_url).path))
        self._held: dict[tuple[str, int], PartitionFiles] = {}
        self._pid = os.getpid()
        self._runs: dict[tuple[str, int], PoisonRun] = {}
        self._clock = SystemClock()

    # --- event sink -------------------------------------------------------------------------------

    def acquire(self, log_id: str, partition: int) -> bool:
        self._forget_if_forked()
        key = log_id, partition
        with _translated():
            files = self._held.get(key)
            if files is None:
                self._make_root()
                files = PartitionFiles(self._root, log_id, partition)
                if not files.lock():
                    return False
                self._held[key] = files
            try:
                files.recover()
            except BaseException:
                self.release(log_id, partition)
                raise
        return True

    def holds(self, log_id: str, partition: int) -> bool:
        self._forget_if_forked()
        return (log_id, partition) in self._held

    def release(self, log_id: str, partition: int) -> None:
        self._forget_if_forked()
        files = self._held.pop((log_id, partition), None)
        if files is not None:
            files.unlock()

    def stored_position(self, log_id: str, partition: int) -> StoredPosition | None:
        with _translated():
            self._check_root()
            position = PartitionFiles(self._root, log_id, partition).position()
        if position is None or position.next_offset is None:
            return None
        digest = position.last_digest
        return StoredPosition(position.next_offset, None if digest is None else bytes.fromhex(digest))

    def encode(self, log_id: str, partition: int, batch: LogBatch) -> EncodedLines:
        encoded = EncodedLines(log_id, partition)
        names: dict[int, str] = {}
        tail = b',"logPartition":%d,"logId":%b,"record":' % (partition, msgspec.json.encode(log_id))
        for index, record in enumerate(batch.values):
            try:
                received_at_ms = decode_record(record).received_at
                record.decode()  # also what the decoder has skipped: the file is UTF-8
                hour = received_at_ms // _HOUR_MS
                name = names.get(hour) or names.setdefault(hour, _file_name(hour))
            except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
                encoded.rejected.append(RejectedRecord(index, f"not an event: {error}"[:_REASON_CHARS_MAX], None))
                continue
            if b"\n" in record or b"\r" in record:  # of another producer than ingest: outside of strings
                record = msgspec.json.format(record, indent=-1)  # noqa: PLW2901
            line = b'{"logOffset":%d%b%b}\n' % (batch.offset + index, tail, record)
            encoded.lines.setdefault(name, []).append(line)
            encoded.received_at_ms.append(received_at_ms)
        return encoded

    def store(
        self,
        log_id: str,
        partition: int,
        expected_offset: int,
        batch: LogBatch,
        *,
        before_commit: Callable[[], None],
        encoded: EncodedLines | None = None,
        on_moved: Callable[[], None] | None = None,
        on_encoded: Callable[[], None] | None = None,
    ) -> StoreResult:
        if encoded is None or (encoded.log_id, encoded.partition) != (log_id, partition):
            encoded = self.encode(log_id, partition, batch)
        if on_encoded is not None:
            on_encoded()
        return self._store(expected_offset, batch, encoded, before_commit)

    def condemn(
        self,
        log_id: str,
        partition: int,
        expected_offset: int,
        batch: LogBatch,
        *,
        why: str,
        sqlstate: str | None,
        before_commit: Callable[[], None],
    ) -> StoreResult:
        rejected = [RejectedRecord(index, why[:_REASON_CHARS_MAX], sqlstate) for index in range(len(batch.values))]
        encoded = EncodedLines(log_id, partition, rejected=rejected)
        run = self._run_of(encoded)
        with evidence(log_id, expected_offset, batch, rejected, is_condemned=True):
            run.check_condemned(len(rejected), why)
        result = self._store(expected_offset, batch, encoded, before_commit)
        run.add_condemned(len(rejected))
        return result

    def probe(self) -> None:
        with _translated():
            self._make_root()
            path = self._root / f"{_PROBE}-{os.getpid()}"
            try:
                write_whole(path, b"{}\n")
            finally:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        self._forget_if_forked()
        for key in list(self._held):
            self.release(*key)

    # --- offset store ------------------------------------------------------------------------------

    def stored_offsets(self, log_id: str) -> dict[int, int]:
        return self.stored_offsets_and_time(log_id).offsets

    def stored_offsets_and_time(self, log_id: str) -> StoredOffsets:
        found = self._positions(log_id, lambda files: files.position())
        batches = {
            partition: BatchStart(position.batch_began_offset, position.batch_began_at)
            for partition, position in found.items()
            if position.batch_began_offset is not None and position.batch_began_at is not None
        }
        return StoredOffsets(_offsets(found), None, batches)

    def settled_offsets(self, log_id: str) -> dict[int, int]:
        deadline = self._clock.monotonic() + _SETTLE_SECONDS_MAX

        def settled(files: PartitionFiles) -> Position | None:
            with files.committing(self._clock, deadline):
                return files.position()

        return _offsets(self._positions(log_id, settled))

    def why_not_stored(self, log_id: str, partition: int) -> str | None:
        with _translated():
            holder = PartitionFiles(self._root, log_id, partition).holder()
        return None if holder is None else f"its drain (process {holder}) holds the partition's files"

    def end_stalled_drain(self, log_id: str, partition: int, *, quiet_seconds: float) -> bool:
        return False  # a file system ends nobody's lock; the worker kills the drain at its time limit

    def drained(self, log_id: str, partitions: Sequence[int]) -> set[int]:
        with _translated():
            return {one for one in partitions if PartitionFiles(self._root, log_id, one).holder() is not None}

    # --- dead letters --------------------------------------------------------------------------------

    def count(self) -> DeadLetterCounts:
        with _translated():
            self._check_root()
            paths = self._root.glob(f"log-*/partition-*/{DEAD_LETTERS}")
            return DeadLetterCounts(open=sum(map(_count_lines, paths)), conflicts=0)

    def between(self, log_id: str, partition: int, first: int, end: int) -> dict[int, str]:
        files = PartitionFiles(self._root, log_id, partition)
        with _translated():
            lines = files.lines_between(DEAD_LETTERS, first, end)
        return {line["logOffset"]: line["reason"] for line in map(msgspec.json.decode, lines)}

    def replay(self, *, limit: int, dry_run: bool = False) -> ReplayResult:
        raise PermanentError(
            f"the files of EVENT_SINK_URL have no replay: correct the records of {DEAD_LETTERS} and send them as events"
        )

    # --- inside ----------------------------------------------------------------------------------------

    def _store(
        self, expected_offset: int, batch: LogBatch, encoded: EncodedLines, before_commit: Callable[[], None]
    ) -> StoreResult:
        log_id, partition, rejected = encoded.log_id, encoded.partition, encoded.rejected
        run = self._run_of(encoded)
        started, began = time.monotonic(), BatchStart(expected_offset, self._clock.now())
        with self._holding(log_id, partition) as files:
            with _translated():
                position = files.position() or Position(log_id, partition)
            if position.next_offset not in (None, expected_offset):
                raise OffsetConflictError(
                    f"the stored offset of partition {partition} is not {expected_offset}: another drain has moved it"
                )
            with evidence(log_id, expected_offset, batch, rejected, is_condemned=False):
                run.check(len(rejected), len(batch.values))
            lines = encoded.lines
            if rejected:
                lines = {**lines, DEAD_LETTERS: [_dead_letter_line(encoded, batch, one) for one in rejected]}
            try:
                with _translated():
                    lines = files.without_stored(position, lines, batch.offset, batch.next_offset)
                    position = files.append(position, lines)
                    with files.committing(self._clock, self._clock.monotonic() + _SETTLE_SECONDS_MAX):
                        before_commit()
                        files.commit(position, batch.next_offset, batch.last_digest, began)
            except BaseException:
                files.roll_back()
                raise
        run.add(len(rejected), len(batch.values))
        stored = sum(len(some) for name, some in lines.items() if name != DEAD_LETTERS)
        return StoreResult(
            stored=stored,
            repeated=len(batch.values) - len(rejected) - stored,
            dead_lettered=len(rejected),
            received_at_ms=encoded.received_at_ms,
            seconds=time.monotonic() - started,
        )

    @contextlib.contextmanager
    def _holding(self, log_id: str, partition: int) -> Iterator[PartitionFiles]:
        """The files of a partition under its lock, which is acquired for the body if this sink does not hold it."""
        was_held = (log_id, partition) in self._held
        if not self.acquire(log_id, partition):
            raise SinkContentionError(f"another process holds the files of partition {partition}")
        try:
            yield self._held[log_id, partition]
        finally:
            if not was_held:
                self.release(log_id, partition)

    def _positions(self, log_id: str, read: Callable[[PartitionFiles], Position | None]) -> dict[int, Position]:
        with _translated():
            self._check_root()
            numbers = partitions_of(self._root, log_id)
            found = {number: read(PartitionFiles(self._root, log_id, number)) for number in numbers}
        return {number: position for number, position in found.items() if position is not None}

    def _run_of(self, encoded: EncodedLines) -> PoisonRun:
        return self._runs.setdefault((encoded.log_id, encoded.partition), PoisonRun(self._settings))

    def _make_root(self) -> None:
        mark = self._root / _MARK
        if not mark.exists():
            if self._has_stored():
                raise SinkMisconfiguredError(
                    f"{self._root} is no archive, and events of this event log are stored already: mount the archive "
                    f"there. If a new one is to begin: echo '{{\"format\":{_FORMAT}}}' > {shlex.quote(str(mark))}",
                    is_a_row_possible=False,
                )
            make_folder(self._root)
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                write_whole(mark, b'{"format":%d}\n' % _FORMAT)
        self._check_root()

    def _check_root(self) -> None:
        """Raise SinkUnavailableError unless the folder is an archive that this version knows."""
        try:
            mark = msgspec.json.decode((self._root / _MARK).read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            raise SinkUnavailableError(
                f"{self._root} is no archive yet: the first drain makes it. If drains store, EVENT_SINK_URL names "
                "another folder here than in the workers",
                is_a_row_possible=False,
            ) from None
        if mark.get("format") != _FORMAT:
            raise SinkUnavailableError(
                f"{self._root / _MARK} names a format that this version of Sluice does not know",
                is_a_row_possible=False,
            )

    def _forget_if_forked(self) -> None:
        """A child has the locks of its parent only as long as the parent: it forgets them."""
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            for files in self._held.values():
                files.forget()
            self._held.clear()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of the file system become Sluice's. No record is the cause of one."""
    try:
        yield
    except OSError as error:
        where = "" if error.filename is None else f": {error.filename}"
        raise SinkUnavailableError(f"{error.strerror or error}{where}", is_a_row_possible=False) from error
    except msgspec.MsgspecError as error:
        raise SinkUnavailableError(f"the archive is damaged: {error}", is_a_row_possible=False) from error


def _offsets(positions: Mapping[int, Position]) -> dict[int, int]:
    """The stored offsets; a partition without one has only opened its first file."""
    return {number: one.next_offset for number, one in positions.items() if one.next_offset is not None}


def _file_name(hour: int) -> str:
    """The file of an hour since the epoch, in UTC. Raises ValueError or OverflowError for years without four digits."""
    return f"{datetime.fromtimestamp(hour * 3600, UTC).isoformat()[:13]}.jsonl"


def _dead_letter_line(encoded: EncodedLines, batch: LogBatch, record: RejectedRecord) -> bytes:
    return (
        msgspec.json.encode(
            {
                "logOffset": batch.offset + record.index,
                "logPartition": encoded.partition,
                "logId": encoded.log_id,
                "reason": record.reason,
                "raw": batch.values[record.index],  # base64: it may be anything
            }
        )
        + b"\n"
    )


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
