"""A drain of a real event log into files, killed again and again."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import wiring
from pipeline.drain import drain
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.errors import SinkMisconfiguredError
from pipeline.names import PauseReason
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from stack.servers import free_port
from support.archive import committed_events, committed_letters
from support.control import eventually
from support.records import record
from tasks import stopped
from tasks.context import WorkerContext
from tasks.drain import _tell

EVENTS = 8_000


@pytest.fixture
def archive(settings: Settings, tmp_path: Path) -> Settings:
    """Small batches, so that a drain commits often; PostgreSQL is away."""
    return replace(
        settings,
        event_sink_url=f"file://{tmp_path}/archive",
        database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none",
        append_seconds_max=20.0,  # of a slow machine
        drain_batch_records_max=100,
        drain_run_seconds_max=120.0,  # of a slow disk; a run ends when it has stored what it should
        drain_hard_seconds_max=300.0,
        drain_poll_seconds=0.1,
    )


def run_drain(context: WorkerContext, until: int) -> DrainReport:
    """A drain until this offset is stored."""
    sink, log_id = context.sink, context.log.identity().log_id

    def is_done() -> bool:
        position = sink.stored_position(log_id, 0)
        return position is not None and position.next_offset >= until

    assert sink.acquire(log_id, 0)  # also makes the folder
    return drain(
        0, log=context.log, sink=sink, fence=context.fence, breaker=context.breaker, paused=is_done,
        settings=context.settings, clock=context.clock,
    )  # fmt: skip


@contextlib.contextmanager
def draining(settings: Settings, until: int) -> Iterator[int]:
    """A process that drains; killed at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            run_drain(WorkerContext(settings), until)  # with clients of its own
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def context(archive: Settings) -> Iterator[WorkerContext]:
    with contextlib.closing(WorkerContext(archive)) as made:
        yield made


def append(context: WorkerContext, values: list[bytes]) -> None:
    context.log.identity()
    context.log.append([(0, value) for value in values])


def stored(context: WorkerContext, folder: Path) -> int:
    """The stored offset; 0 as long as there is no archive."""
    if not (folder / "sluice.json").exists():
        return 0
    return context.offsets.stored_offsets(context.log.identity().log_id).get(0, 0)


def test_a_drain_that_is_killed_again_and_again_stores_each_record_once(context: WorkerContext, tmp_path: Path) -> None:
    # Given a log on Redis, whose lowest offsets come from the files
    folder = tmp_path / "archive"
    for first in range(0, EVENTS, 500):
        values = [record(number) for number in range(first, first + 500)]
        append(context, [*values[:7], b"broken", *values[8:]])
    # When drains store it, and each is killed somewhere after it has stored some batches
    for part in range(1, 6):
        with draining(context.settings, EVENTS - 1_000):  # some are left, also where the kill comes late
            eventually(lambda goal=part * EVENTS // 8: stored(context, folder) >= goal)  # type: ignore[misc]
    assert stored(context, folder) < EVENTS
    report = run_drain(context, EVENTS)
    # Then each record is there once, in its order, and the log knows it
    assert (report.outcome, report.next_offset) == (DrainOutcome.PAUSED, EVENTS)
    assert context.offsets.settled_offsets(context.log.identity().log_id) == {0: EVENTS}
    events = committed_events(folder)
    assert [line["logOffset"] for line in events] == [n for n in range(EVENTS) if n % 500 != 7]
    assert [line["record"]["eventId"] for line in events[:3]] == [f"event-{number:06d}" for number in range(3)]
    assert [line["logOffset"] for line in committed_letters(folder)] == list(range(7, EVENTS, 500))
    assert context.log.positions()[0].committed == EVENTS


def test_the_lowest_offsets_of_a_restarted_log_come_from_the_files(context: WorkerContext) -> None:
    # Given a log with stored records
    append(context, [record(number) for number in range(300)])
    run_drain(context, 300)
    # Then a process without a mirror reads from the files which offsets may not be used again
    source = wiring.make_lowest_offsets_source(replace(context.settings, key_prefix="another:"))
    assert source(context.log.identity().log_id, "any") == {0: 300}


def test_an_archive_that_is_no_longer_mounted_is_refused_until_it_is_back(
    context: WorkerContext, archive: Settings, tmp_path: Path
) -> None:
    # Given an archive with events, and a machine that starts without its disk
    folder = tmp_path / "archive"
    append(context, [record(number) for number in range(300)])
    run_drain(context, 300)
    context.close()
    folder.rename(tmp_path / "disk")
    folder.mkdir()
    # When its workers go on, then they store nothing in the mount point
    with contextlib.closing(WorkerContext(archive)) as next_one:
        append(next_one, [record(number) for number in range(300, 400)])
        for call in (next_one.sink.probe, lambda: run_drain(next_one, 400)):
            with pytest.raises(SinkMisconfiguredError, match="mount the archive there"):
                call()
        assert list(folder.iterdir()) == []
        # And once it is back, they go on where they were
        folder.rmdir()
        (tmp_path / "disk").rename(folder)
        run_drain(next_one, 400)
        assert [line["logOffset"] for line in committed_events(folder)] == list(range(400))


def test_a_poisoned_partition_is_looked_at_and_accepted(archive: Settings, settings: Settings, tmp_path: Path) -> None:
    # Given a worker with its events in files and its operators' settings in PostgreSQL
    mixed = replace(archive, database_url=settings.database_url, poison_run_records_max=5)
    migrate(mixed)
    with contextlib.closing(WorkerContext(mixed)) as context:
        context.control_store.restore([], actor="test")
        append(context, [record(0), *[b"broken"] * 10])
        # When it meets a batch in which most records are broken
        report = run_drain(context, 11)
        assert report.outcome is DrainOutcome.POISONED
        _tell(report, context)
        assert [(pause.reason, pause.partition) for pause in context.operators.load().pauses] == [
            (PauseReason.POISON, 0)
        ]
        text, _ = stopped.show_poison(context, 0)
        assert "were refused" in text
        assert "10 dead letters" in stopped.accept(context, "ann@desk", 0, "known", dry_run=True)
        assert committed_events(tmp_path / "archive") == []
        # Then an operator accepts it
        assert "10 dead letters" in stopped.accept(context, "ann@desk", 0, "known", dry_run=False)
        assert [line["logOffset"] for line in committed_events(tmp_path / "archive")] == [0]
        assert context.dead_letters.count().open == 10
        assert context.operators.load().pauses == []
