"""This version goes on with data that 0.1.0 wrote and this repository keeps: see checks/testbed/kept_data.py."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from checks.testbed.database import ask
from checks.testbed.kept_data import (
    PARTITIONS,
    STORED,
    WAITING,
    WHY,
    dump_redis,
    kept_event,
    load_database,
    load_redis,
)
from pipeline import wiring
from pipeline.event import decode_record
from pipeline.names import ControlEventKind, Mode, PauseReason
from pipeline.settings import Settings
from support.records import record
from support.workers import drained, published
from tasks.context import WorkerContext

FOLDER = Path(__file__).parents[1] / "data" / "version_0_1_0"
ROWS = "SELECT event_id, correlation_id, severity, message, source, event_time, attributes FROM log_events ORDER BY 1"


def kept(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return found


@pytest.fixture
def old(settings: Settings) -> Settings:
    """Settings of servers with the data of 0.1.0."""
    for name, url in (("log.json", settings.event_log_url), ("control.json", settings.redis_url)):
        with redis.Redis.from_url(url) as client:
            load_redis(client, settings.key_prefix, kept(name))
            assert dump_redis(client, settings.key_prefix) == kept(name)
    load_database(settings.database_url, (FOLDER / "database.sql").read_text())
    return replace(settings, log_partitions=PARTITIONS, drain_run_seconds_max=20.0, drain_poll_seconds=0.1)


@pytest.fixture
def worker(old: Settings) -> Iterator[WorkerContext]:
    """A worker's context, as it is after the control worker has brought the schema up to date."""
    schema = wiring.make_schema(old)
    assert "0006" in " ".join(schema.missing())
    schema.migrate(wait_seconds=60)
    assert schema.missing() == []
    with contextlib.closing(WorkerContext(old)) as context:
        yield context


def row(number: int) -> tuple[Any, ...]:
    """What is stored of an event."""
    event = kept_event(number)
    time = datetime.fromtimestamp(event["timestamp"] / 1000, UTC)
    names = ("eventId", "correlationId", "severity", "message", "source")
    return (*(event[name] for name in names), time, event["attributes"])


def test_the_waiting_events_of_0_1_0_are_stored_once_behind_those_that_it_stored(worker: WorkerContext) -> None:
    url = worker.settings.database_url
    # Given what 0.1.0 stored, and its pause by an operator
    assert ask(url, ROWS) == sorted(row(number) for number in range(STORED))
    rate = published(worker)
    assert (rate.lag, rate.mode) == (WAITING + 1, Mode.NORMAL)
    [pause] = worker.control_store.state().pauses or ()
    assert (pause.reason, pause.actor, pause.why) == (PauseReason.OPERATOR, "ann@vm", WHY)
    # And the control events that it recorded
    kinds = [event.kind for event in worker.events.last(50)]
    assert kinds[:3] == [ControlEventKind.STATE_RESTORED, ControlEventKind.RATE_CHANGED, ControlEventKind.PAUSED]
    # When consumption is resumed and drained
    worker.control_store.resume(PauseReason.OPERATOR, generation=None, actor="ann@vm", why="", partition=None)
    reports = [drained(worker, partition) for partition in range(PARTITIONS)]
    # Then each event that was acknowledged is stored once, as it was sent, and one of them was a repeat
    assert ask(url, ROWS) == sorted(row(number) for number in range(STORED + WAITING))
    assert sum(report.stored for report in reports) == WAITING
    assert sum(report.repeated for report in reports) == 1
    assert ask(url, "SELECT count(*) FROM dead_letters") == [(0,)]
    assert ask(url, "SELECT count(DISTINCT (log_partition, log_offset)) FROM log_events") == [(STORED + WAITING,)]


def test_new_events_come_behind_those_of_0_1_0(worker: WorkerContext) -> None:
    published(worker)
    worker.control_store.resume(PauseReason.OPERATOR, generation=None, actor="ann@vm", why="", partition=None)
    # When this version appends to the log of 0.1.0
    before = worker.log.positions()
    worker.log.append([(0, record(1)), (1, record(2))])
    after = worker.log.positions()
    assert [after[partition].end - before[partition].end for partition in range(PARTITIONS)] == [1, 1]
    # Then these are stored too, at offsets that no other event has
    for partition in range(PARTITIONS):
        drained(worker, partition)
    ids = {decode_record(record(number)).event_id for number in (1, 2)}
    found = ask(worker.settings.database_url, "SELECT event_id FROM log_events WHERE event_id NOT LIKE 'kept-%'")
    assert {one for (one,) in found} == ids
    assert ask(worker.settings.database_url, "SELECT count(*) FROM log_events") == [(STORED + WAITING + 2,)]
