"""The event sink in files: what a killed process leaves, and what else happens to files."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.clock import SystemClock
from pipeline.errors import (
    PermanentError,
    SettingsError,
    SinkContentionError,
    SinkMisconfiguredError,
    SinkUnavailableError,
)
from pipeline.ports.event_sink import StoreResult
from pipeline.ports.log import LogBatch
from pipeline.settings import Settings
from pipeline.sink import jsonl_files
from pipeline.sink.jsonl import JsonlSink
from support.archive import committed_events, committed_letters
from support.records import RECEIVED_AT_MS, batch, nothing, numbered_batch, record

LOG = "redis.4"
HOUR_MS = 3_600_000
FIRST, SECOND = "2025-10-09T08.jsonl", "2025-10-09T09.jsonl"  # of RECEIVED_AT_MS, and one hour later


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(event_sink_url=f"file://{tmp_path}/an%20archive")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "an archive"


@pytest.fixture
def sink(settings: Settings) -> Iterator[JsonlSink]:
    with contextlib.closing(JsonlSink(settings)) as made:
        made.probe()
        yield made


def offsets(folder: Path) -> list[int]:
    return [line["logOffset"] for line in committed_events(folder)]


def partition_folder(folder: Path) -> Path:
    return folder / f"log-{LOG}" / "partition-0"


# --- a process that is killed ---------------------------------------------------------------------


class DyingOs:
    """The module `os`, as the sink uses it: the process is killed at a step, in the middle of a write."""

    _STEPS = ("write", "ftruncate", "truncate", "fsync", "replace")

    def __init__(self, dies_at: int) -> None:
        self._left = dies_at

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in self._STEPS:
            return function

        def step(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                if name == "write":
                    function(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return step


def batches() -> list[LogBatch]:
    """Batches of one and of two hours, one with a record that is no event, and one after a declared gap."""
    return [
        numbered_batch(0, 3),
        batch(3, [record(3), b"broken", record(5, received_at_ms=RECEIVED_AT_MS + HOUR_MS)]),
        batch(6, [record(6)]),
        batch(8, [record(8, received_at_ms=RECEIVED_AT_MS + HOUR_MS)], gap_from=7),
    ]


def store_the_rest(sink: JsonlSink) -> None:
    """As a drain does: from the stored offset on."""
    assert sink.acquire(LOG, 0)
    position = sink.stored_position(LOG, 0)
    offset = 0 if position is None else position.next_offset
    for one in batches():
        if one.next_offset > offset:
            sink.store(LOG, 0, offset, one, before_commit=nothing)
            offset = one.next_offset
    sink.release(LOG, 0)


def dies(settings: Settings, at: int) -> bool:
    """Whether a process that stores the rest is killed at this step."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            setattr(jsonl_files, "os", DyingOs(at))  # noqa: B010 - mypy knows no such attribute
            store_the_rest(JsonlSink(settings))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), f"step {at}"
    return status != 0


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, if there is one: what a killed process leaves is the same there, and it is faster."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as path:
        yield Path(path)


def test_a_process_that_is_killed_at_any_step_stores_each_record_once(memory_folder: Path) -> None:
    killed = 0
    for at in range(1, 1000):
        # Given a process that is killed at this step, and the next one too, which has to clean up after it
        folder = memory_folder / str(at)
        settings = Settings(event_sink_url=f"file://{folder}")
        if not dies(settings, at):
            break
        killed += 1
        dies(settings, 1 + at % 8)
        before = offsets(folder)
        # When another one goes on, after whatever was committed
        with contextlib.closing(JsonlSink(settings)) as sink:
            assert sink.acquire(LOG, 0)
            assert_nothing_is_torn(folder)
            store_the_rest(sink)
            # Then each record is there once, and no byte of what was torn
            assert sorted(offsets(folder)) == [0, 1, 2, 3, 5, 6, 8], f"step {at}"
            assert set(before) <= set(offsets(folder))
            assert [line["logOffset"] for line in committed_letters(folder)] == [4]
            assert sink.stored_offsets(LOG) == {0: 9}
        assert_nothing_is_torn(folder)
    assert killed > 40


def assert_nothing_is_torn(folder: Path) -> None:
    position = partition_folder(folder) / "position.json"
    sizes = json.loads(position.read_bytes())["files"] if position.exists() else {}
    found = {path.name: path.stat().st_size for path in partition_folder(folder).glob("*.jsonl")}
    assert {name: size for name, size in found.items() if size} == {name: size for name, size in sizes.items() if size}


def test_what_was_read_of_a_position_is_durable_first(
    settings: Settings, sink: JsonlSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a position whose writer was killed before it had synchronised the folder
    sink.store(LOG, 0, 0, numbered_batch(0, 1), before_commit=nothing)
    written: list[str] = []
    plain = jsonl_files.write_whole

    def write_whole(path: Path, content: bytes) -> None:
        written.append(path.name)
        plain(path, content)

    monkeypatch.setattr(jsonl_files, "write_whole", write_whole)
    # Then a drain that finds it writes it anew, before the log may drop what it covers
    assert sink.acquire(LOG, 0)
    assert written == ["position.json"]
    assert sink.acquire(LOG, 0)
    assert written == ["position.json"]


# --- errors of the file system --------------------------------------------------------------------


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_stores_nothing_and_is_no_fault_of_a_record(
    sink: JsonlSink, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    # Given a partition with something stored, and a disk that takes no more
    assert sink.acquire(LOG, 0)
    sink.store(LOG, 0, 0, numbered_batch(0, 2), before_commit=nothing)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(SinkUnavailableError, match="No space left on device") as raised:
            sink.store(LOG, 0, 2, numbered_batch(2, 2), before_commit=nothing)
        assert not raised.value.is_a_row_possible
        with pytest.raises(SinkUnavailableError):
            sink.probe()
    # Then nothing of it is there, and the same sink goes on once there is room
    assert offsets(folder) == [0, 1]
    assert sink.acquire(LOG, 0)
    assert sink.store(LOG, 0, 2, numbered_batch(2, 2), before_commit=nothing) == StoreResult(stored=2)
    assert offsets(folder) == [0, 1, 2, 3]


def test_committed_bytes_that_are_missing_are_named(sink: JsonlSink, folder: Path) -> None:
    sink.store(LOG, 0, 0, numbered_batch(0, 2), before_commit=nothing)
    path = partition_folder(folder) / FIRST
    size = path.stat().st_size
    os.truncate(path, 10)
    with pytest.raises(SinkUnavailableError, match=f"has 10 bytes, and {size} were stored"):
        sink.store(LOG, 0, 2, numbered_batch(2, 1), before_commit=nothing)
    # And where the file is moved away, storing goes on
    path.rename(folder / "away.jsonl")
    sink.store(LOG, 0, 2, numbered_batch(2, 1), before_commit=nothing)
    assert offsets(folder) == [2]


def test_a_file_that_is_moved_away_while_a_drain_runs(sink: JsonlSink, folder: Path) -> None:
    # Given a drain that has written a file, which is then moved away
    assert sink.acquire(LOG, 0)
    sink.store(LOG, 0, 0, numbered_batch(0, 2), before_commit=nothing)
    (partition_folder(folder) / FIRST).rename(folder / "kept.jsonl")
    # When it goes on, then one try fails, and the next one begins a new file
    with pytest.raises(SinkUnavailableError):
        sink.store(LOG, 0, 2, numbered_batch(2, 1), before_commit=nothing)
    assert sink.acquire(LOG, 0)
    sink.store(LOG, 0, 2, numbered_batch(2, 1), before_commit=nothing)
    assert offsets(folder) == [2]
    assert (folder / "kept.jsonl").read_bytes().count(b"\n") == 2


def test_a_folder_that_is_no_archive_says_so(settings: Settings) -> None:
    # Given a process with another folder than the workers': it must not say that nothing is stored
    reader = JsonlSink(settings)
    for read in (reader.stored_offsets, reader.settled_offsets):
        with pytest.raises(SinkUnavailableError, match="is no archive yet"):
            read(LOG)


def test_an_archive_that_is_not_mounted_is_refused_and_not_begun_anew(settings: Settings, folder: Path) -> None:
    # Given the empty mount point of an archive in which events are stored
    folder.mkdir()
    sink = JsonlSink(settings, has_stored=lambda: True)
    writes: list[Callable[[], object]] = [
        sink.probe,
        lambda: sink.acquire(LOG, 0),
        lambda: sink.store(LOG, 0, 0, numbered_batch(0, 1), before_commit=nothing),
    ]
    for write in writes:
        # When something is to be written, then it is refused, with what to do, and no row can be the cause
        with pytest.raises(SinkMisconfiguredError, match="mount the archive there") as caught:
            write()
        assert not caught.value.is_a_row_possible
    assert list(folder.iterdir()) == []
    # And when somebody does what the text says to begin a new one, it begins
    command = str(caught.value).rpartition(": ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    sink.probe()
    sink.store(LOG, 0, 0, numbered_batch(0, 1), before_commit=nothing)
    assert offsets(folder) == [0]
    sink.close()


@pytest.mark.parametrize("url", ["file://", "file://host/folder", "folder", "/folder", "file:///a?b", "s3://bucket"])
def test_a_url_that_is_no_folder_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="EVENT_SINK_URL"):
        Settings(event_sink_url=url)


# --- lines and files ------------------------------------------------------------------------------


def test_a_line_has_the_record_as_it_was_and_its_place(sink: JsonlSink, folder: Path) -> None:
    # Given records of two hours, one of another producer, on several lines and with more digits than a float has
    first = record(0, attributes={"a": 1.5})
    later = record(1, received_at_ms=RECEIVED_AT_MS + HOUR_MS)
    foreign = record(2, attributes={"n": 1}).replace(b'"n":1', b'"n": 1.00000000000000000001').replace(b",", b",\r\n ")
    sink.store(LOG, 0, 0, batch(0, [first, later, foreign]), before_commit=nothing)
    # Then each is a line of the file of its hour
    files = partition_folder(folder)
    place = b'{"logOffset":%d,"logPartition":0,"logId":"redis.4","record":%b}\n'
    short = foreign.replace(b"\r\n ", b"").replace(b": ", b":")
    assert (files / FIRST).read_bytes() == place % (0, first) + place % (2, short)
    assert (files / SECOND).read_bytes() == place % (1, later)


def test_times_without_a_file_name_are_dead_letters(sink: JsonlSink, folder: Path) -> None:
    values = [record(0), record(1, received_at_ms=10**17), record(2, received_at_ms=-(10**17))]
    assert sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing) == StoreResult(stored=1, dead_lettered=2)
    assert [line["logOffset"] for line in committed_letters(folder)] == [1, 2]


def test_many_hours_in_one_batch_and_few_in_the_position(sink: JsonlSink, folder: Path) -> None:
    values = [record(n, received_at_ms=RECEIVED_AT_MS + n * HOUR_MS) for n in range(40)]
    sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    sink.store(LOG, 0, 40, batch(40, [record(40)]), before_commit=nothing)
    assert sorted(offsets(folder)) == list(range(41))
    sink.store(LOG, 0, 41, batch(41, [record(n, received_at_ms=0) for n in range(41, 43)]), before_commit=nothing)
    position = json.loads((partition_folder(folder) / "position.json").read_bytes())
    assert list(position["files"])[-1] == "1970-01-01T00.jsonl"
    assert len(position["files"]) == 16
    assert sorted(offsets(folder)) == list(range(43))


def test_a_partition_that_is_set_back_stores_no_record_twice(sink: JsonlSink, folder: Path) -> None:
    # Given a partition whose log lost its tail from offset 2 on, so that an operator set it back
    values = [record(0), b"broken", record(2), record(3)]
    sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    sink.store(LOG, 0, 4, batch(0, []), before_commit=nothing)
    # When the log is read again, with another event in place of the last one, and what follows
    again = sink.store(LOG, 0, 0, batch(0, [*values[:3], record(30)]), before_commit=nothing)
    sink.store(LOG, 0, 4, batch(4, [record(4)]), before_commit=nothing)
    # Then only the other event is new
    assert again == StoreResult(stored=1, repeated=2, dead_lettered=1)
    assert [(line["logOffset"], line["record"]["eventId"]) for line in committed_events(folder)] == [
        (0, "event-000000"), (2, "event-000002"), (3, "event-000003"), (3, "event-000030"), (4, "event-000004"),
    ]  # fmt: skip
    assert len(committed_letters(folder)) == 1


def test_long_and_odd_log_ids_have_folders_of_their_own(sink: JsonlSink) -> None:
    ids = ["../up", "a/b:c", "t" * 240 + ".1", "t" * 240 + ".2"]
    for number, log_id in enumerate(ids, 1):
        sink.store(log_id, 0, 0, numbered_batch(0, number), before_commit=nothing)
    assert [sink.stored_offsets(log_id) for log_id in ids] == [{0: 1}, {0: 2}, {0: 3}, {0: 4}]


def test_where_and_when_the_newest_batch_began_is_stored(sink: JsonlSink) -> None:
    before = SystemClock().now()
    sink.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing)
    sink.store(LOG, 0, 3, numbered_batch(3, 2), before_commit=nothing)
    found = sink.stored_offsets_and_time(LOG)
    assert (found.offsets, found.time, found.batches[0].offset) == ({0: 5}, None, 3)
    assert before <= found.batches[0].at <= SystemClock().now()


# --- others who look ------------------------------------------------------------------------------


def test_a_commit_under_way_holds_off_who_must_know_the_offsets(settings: Settings, sink: JsonlSink) -> None:
    # Given a drain that is between its last check and its commit
    reader = JsonlSink(settings)
    errors: list[str] = []

    def look() -> None:
        with pytest.raises(SinkUnavailableError) as raised:
            reader.settled_offsets(LOG)
        errors.append(str(raised.value))
        assert reader.stored_offsets(LOG) == {}

    # Then the settled offsets are not known, and are afterwards
    sink.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=look)
    assert "timed out waiting for a commit of partition 0" in errors[0]
    assert reader.settled_offsets(LOG) == {0: 3}


def test_who_holds_a_partition_is_named_and_kept(settings: Settings, sink: JsonlSink) -> None:
    other = JsonlSink(settings)
    assert other.why_not_stored(LOG, 0) is None
    assert sink.acquire(LOG, 0)
    assert other.why_not_stored(LOG, 0) == f"its drain (process {os.getpid()}) holds the partition's files"
    assert not other.end_stalled_drain(LOG, 0, quiet_seconds=0)
    with pytest.raises(SinkContentionError):
        other.store(LOG, 0, 0, numbered_batch(0, 1), before_commit=nothing)
    sink.release(LOG, 0)
    assert other.why_not_stored(LOG, 0) is None


def test_a_child_neither_has_nor_takes_the_locks_of_its_parent(settings: Settings, sink: JsonlSink) -> None:
    # Given a process that holds a partition while it forks
    def in_child(work: Callable[[], object], expected: object) -> bool:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = 0 if work() == expected else 2
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    assert sink.acquire(LOG, 0)
    # Then the child does not have it, and does not give it up
    assert in_child(lambda: sink.acquire(LOG, 0), False)
    assert in_child(sink.close, None)
    assert not JsonlSink(settings).acquire(LOG, 0)
    # And what the parent gives up is free, though a child lives on
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reading, 1)
        os._exit(0)
    sink.release(LOG, 0)
    with contextlib.closing(JsonlSink(settings)) as other:
        assert other.acquire(LOG, 0)
    os.write(writing, b"x")
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)


def test_dead_letters_are_counted_found_and_not_replayed(sink: JsonlSink) -> None:
    assert sink.count().open == 0
    sink.store(LOG, 0, 0, batch(0, [b"broken", record(1), b"[]"]), before_commit=nothing)
    assert (sink.count().open, sink.count().conflicts) == (2, 0)
    assert list(sink.between(LOG, 0, 1, 5)) == [2]
    assert "not an event" in sink.between(LOG, 0, 0, 1)[0]
    with pytest.raises(PermanentError, match=r"dead-letters\.jsonl"):
        sink.replay(limit=1)
