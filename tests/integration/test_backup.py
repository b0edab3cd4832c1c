"""PostgreSQL is restored from a backup, and the event log is newer: what docs/backup.md says of it."""

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from checks.testbed.database import drop_database, stored_ids
from pipeline import wiring
from pipeline.drain.report import DrainOutcome
from pipeline.settings import Settings
from stack.servers import postgres_bin
from support.records import record
from support.workers import drained, published
from tasks.context import WorkerContext
from tasks.stopped import show_gap

BEFORE, AFTER = 10, 7  # events that are stored before and after the backup


def run(program: str, *words: str) -> None:
    subprocess.run([str(postgres_bin() / program), *words], check=True, capture_output=True, timeout=300)


@pytest.fixture
def emptied(database_url: str) -> Iterator[str]:
    """Another database beside that of the test, empty."""
    url = f"{database_url}_again"
    run("createdb", f"--maintenance-db={database_url}", url.rpartition("/")[2])
    yield url
    drop_database(database_url, url.rpartition("/")[2])


def restored(settings: Settings, emptied: str, file: Path) -> Settings:
    """Settings of a system whose database was backed up, went on for a while, and was restored."""
    wiring.make_schema(settings).migrate(wait_seconds=60)
    with contextlib.closing(WorkerContext(settings)) as worker:
        published(worker)
        worker.log.append([(0, record(number)) for number in range(BEFORE)])
        assert drained(worker, 0).stored == BEFORE
        run("pg_dump", "--format=custom", f"--file={file}", settings.database_url)
        worker.log.append([(0, record(number)) for number in range(BEFORE, BEFORE + AFTER)])
        assert drained(worker, 0).stored == AFTER
        # And events that nobody has stored yet
        worker.log.append([(0, record(number)) for number in range(BEFORE + AFTER, BEFORE + AFTER + 3)])
    run("pg_restore", "--no-owner", f"--dbname={emptied}", str(file))
    return replace(settings, database_url=emptied)


def test_what_the_log_still_has_is_stored_again_and_once(settings: Settings, emptied: str, tmp_path: Path) -> None:
    # Given a log that keeps what is stored, as a Kafka topic does
    changed = replace(settings, log_trim=False, drain_run_seconds_max=20.0, drain_poll_seconds=0.1)
    with contextlib.closing(WorkerContext(restored(changed, emptied, tmp_path / "dump"))) as worker:
        assert wiring.make_schema(worker.settings).missing() == []
        published(worker)
        # When a drain goes on with the restored database, then nothing is missing and nothing is twice
        assert drained(worker, 0).stored == AFTER + 3
    assert len(stored_ids(emptied)) == len(set(stored_ids(emptied))) == BEFORE + AFTER + 3


def test_what_the_log_has_deleted_is_a_hole_that_is_named(settings: Settings, emptied: str, tmp_path: Path) -> None:
    # Given a log that deletes what is stored, as Redis Streams by default
    changed = replace(settings, drain_run_seconds_max=20.0, drain_poll_seconds=0.1)
    with contextlib.closing(WorkerContext(restored(changed, emptied, tmp_path / "dump"))) as worker:
        published(worker)
        # When a drain goes on with the restored database
        report = drained(worker, 0)
        # Then it stops before the hole, and `inspect gap` says which offsets are missing
        assert (report.outcome, report.stored) == (DrainOutcome.LOG_GAP, 0)
        words, _ = show_gap(worker, 0)
        assert f"offsets {BEFORE} to {BEFORE + AFTER - 1} are missing: {AFTER} records" in words
