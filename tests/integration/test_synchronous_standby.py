"""A primary that waits for its standby: what is trimmed from the log is on both, whatever ended the wait."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from checks.testbed.database import ask, stored_ids
from checks.testbed.postgres_pair import PostgresPair, url_of_both
from checks.testbed.waiting import eventually, wait_until
from pipeline.breaker import SinkBreaker
from pipeline.clock import SystemClock
from pipeline.drain import drain
from pipeline.drain.report import DrainReport
from pipeline.errors import SinkUnavailableError
from pipeline.settings import Settings
from pipeline.sink.migrate import PostgresSchema, migrate
from support.event_logs import must_read, recovered
from support.records import record
from tasks.context import WorkerContext

LOOKS = 8  # of a drain at whether it is paused, which ends it
NOTED = "SELECT count(*) FROM event_ids JOIN log_events USING (event_id, stored_at)"
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[PostgresPair]:
    made = PostgresPair(tmp_path)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(params=["one table"])
def worker(request: pytest.FixtureRequest, settings: Settings, pair: PostgresPair) -> Iterator[WorkerContext]:
    changed = replace(
        settings, database_url=url_of_both(pair.primary.url, *pair.ports), drain_poll_seconds=0.1,
        drain_run_seconds_max=5.0, sink_call_seconds_max=5.0,
    )  # fmt: skip
    migrate(changed)
    if request.param == "by day":
        PostgresSchema(changed).partition_by_day()
    with contextlib.closing(WorkerContext(changed)) as context:
        context.control_store.restore([], actor="test")
        recovered(context.log.identity)
        yield context


def drained(context: WorkerContext) -> DrainReport:
    """A short run of a drain, which takes what another one of this process held."""
    looked = iter(range(1_000_000))
    return drain(
        0, log=context.log, sink=context.sink, fence=context.fence,
        breaker=SinkBreaker(context.settings, context.control_store, SystemClock(), "test"),
        paused=lambda: next(looked) > LOOKS, settings=context.settings, clock=SystemClock(),
    )  # fmt: skip


def append(context: WorkerContext, first: int, end: int) -> None:
    recovered(partial(context.log.append, [(0, record(number)) for number in range(first, end)]))


def test_an_offset_that_the_standby_lacks_is_not_trimmed_from_the_log(
    worker: WorkerContext, pair: PostgresPair
) -> None:
    # Given ten events that both servers have, and twenty more in the log
    append(worker, 0, 10)
    eventually(lambda: drained(worker) and len(stored_ids(pair.primary.url)) == 10, "ten events are stored")
    append(worker, 10, 30)
    # When the standby is away, so that a commit waits for it, and the session is ended, as of a drain that stands still
    log_id = worker.log.identity().log_id
    batch = must_read(worker.log, 0, 10)
    assert worker.sink.acquire(log_id, 0)
    pair.standby.kill()
    with pytest.raises(SinkUnavailableError):
        worker.sink.store(log_id, 0, 10, batch, before_commit=lambda: None)
    wait_until(
        lambda: worker.offsets.end_stalled_drain(log_id, 0, quiet_seconds=0),
        "the session that waits is ended",
    )
    # Then its commit is seen on the primary, which is how PostgreSQL does it
    wait_until(lambda: len(stored_ids(pair.primary.url)) == 30, "its commit is seen on the primary")
    # And another drain finds that offset
    drained(worker)
    # When the primary dies, and the standby, which lacks that commit, takes its place
    pair.primary.kill()
    pair.standby.start()
    pair.promote()
    assert len(stored_ids(pair.primary.url)) == 10
    # Then the log still has these events, and they are stored
    eventually(lambda: drained(worker) and len(stored_ids(pair.primary.url)) == 30, "all events are stored")
    assert ask(pair.primary.url, "SELECT next_offset FROM stored_offsets") == [(30,)]


@pytest.mark.parametrize("worker", ["by day"], indirect=True)
def test_a_commit_whose_wait_for_the_standby_was_cancelled_is_not_trimmed_from_the_log(
    worker: WorkerContext, pair: PostgresPair
) -> None:
    # Given ten events that both servers have, and twenty more in the log
    append(worker, 0, 10)
    eventually(lambda: drained(worker) and len(stored_ids(pair.primary.url)) == 10, "ten events are stored")
    append(worker, 10, 30)
    # When the standby is away, and somebody cancels the commit that waits for it: PostgreSQL warns, and reports success
    assert worker.sink.acquire(worker.log.identity().log_id, 0)
    pair.standby.kill()
    with ThreadPoolExecutor(1) as executor:
        drain_runs = executor.submit(drained, worker)
        wait_until(
            lambda: ask(pair.primary.url, CANCEL) and len(stored_ids(pair.primary.url)) == 30,
            "the commit that waits was cancelled, and is seen on the primary",
        )
        drain_runs.result()
    # And the primary dies, and the standby, which lacks that commit, takes its place
    pair.primary.kill()
    pair.standby.start()
    pair.promote()
    assert len(stored_ids(pair.primary.url)) == 10
    # Then the log still has these events, and they are stored
    eventually(lambda: drained(worker) and len(stored_ids(pair.primary.url)) == 30, "all events are stored")
    assert ask(pair.primary.url, "SELECT next_offset FROM stored_offsets") == [(30,)]
    assert ask(pair.primary.url, NOTED) == [(30,)]
