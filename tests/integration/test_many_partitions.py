"""A whole system with 256 partitions: its processes and sessions grow with its drains, not with its partitions.

The suite runs it on Redis. On Kafka it takes minutes, so that is run by itself, for each client:
`pytest -s tests/integration/test_many_partitions.py --many-partitions-on kafka-python` (or `confluent`).
"""

import json
import time
import urllib.error
import urllib.request
from dataclasses import replace
from itertools import count
from pathlib import Path

import psutil
import pytest

from checks.testbed.database import ask
from checks.testbed.processes import Program, System
from checks.testbed.waiting import WAIT_SECONDS_MAX, wait_until
from pipeline.event import partition_of
from pipeline.settings import Settings
from pipeline.sink.sessions import sessions_needed
from support.traffic import event

PARTITIONS = 256
EVENTS_EACH = {"redis": 8, "kafka-python": 200, "confluent": 200}
STORED_SECONDS_MAX = 600.0
REPEATS_MAX = 100  # of one body: a busy broker does not take all of it in time
BY_PARTITION = (
    "SELECT count(*), min(events), max(events) "
    "FROM (SELECT count(*) AS events FROM log_events GROUP BY log_partition) AS found"
)
OURS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def _events(each: int) -> list[dict[str, object]]:
    """This number of events for each partition."""
    found: dict[int, list[dict[str, object]]] = {partition: [] for partition in range(PARTITIONS)}
    number = 0
    while any(len(its) < each for its in found.values()):
        key = f"many-{number}"
        its = found[partition_of(key, PARTITIONS)]
        if len(its) < each:
            its.append(event(number, run="many") | {"correlationId": key})
        number += 1
    return [one for turn in zip(*found.values(), strict=True) for one in turn]


def _send(url: str, events: list[dict[str, object]]) -> int:
    """Send one body until all of it is acknowledged; returns how often that took a repeat. Raises HTTPError."""
    body = json.dumps(events).encode()
    for repeats in count():
        request = urllib.request.Request(f"{url}/api/logs", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
                assert answer.status == 202
                return repeats
        except urllib.error.HTTPError as error:
            if error.code != 503 or repeats >= REPEATS_MAX:
                raise
    raise AssertionError


def _megabytes(program: Program) -> float:
    family = (psutil.Process(program.pid), *program.children())
    return sum(float(one.memory_info().rss) for one in family) / 1e6


def test_256_partitions_are_drained_by_a_few_processes(
    request: pytest.FixtureRequest, settings: Settings, tmp_path: Path
) -> None:
    # Given a system with many more partitions than PostgreSQL has connections
    log = str(request.config.getoption("--many-partitions-on"))
    settings = replace(
        settings, log_partitions=PARTITIONS, rate_min=1e5, rate_max=1e5,
        drain_run_seconds_max=2.0,  # drains have turns as ever; a worker that stops waits for the end of their runs
    )  # fmt: skip
    if log != "redis":
        settings = replace(settings, event_log_url=request.getfixturevalue("kafka").url, kafka_client=log)
    needed = sessions_needed(settings)
    assert needed.all < 20
    events, most, repeats, began = _events(EVENTS_EACH[log]), 0, 0, time.monotonic()
    system = System(settings, tmp_path)
    try:
        system.start()
        before = _megabytes(system.ingest)
        # When each partition gets events
        for first in range(0, len(events), 500):
            repeats += _send(system.url, events[first : first + 500])

        def all_are_stored() -> bool:
            nonlocal most
            [(sessions,)] = ask(settings.database_url, OURS)
            most = max(most, sessions)
            return ask(settings.database_url, "SELECT count(*) FROM log_events") == [(len(events),)]

        # Then all are stored, each one once and by its partition
        system.wait(all_are_stored, "all are stored", seconds_max=STORED_SECONDS_MAX)
        assert ask(settings.database_url, BY_PARTITION) == [(PARTITIONS, EVENTS_EACH[log], EVENTS_EACH[log])]
        if not repeats:
            lows = "SELECT count(*), min(next_offset), max(next_offset) FROM stored_offsets"
            assert ask(settings.database_url, lows) == [(PARTITIONS, EVENTS_EACH[log], EVENTS_EACH[log])]
        # And by no more processes and sessions than the drains need
        assert len(system.batches.children()) <= needed.processes
        assert most <= needed.all
        print(
            f"{log}: {len(events):,} events in {time.monotonic() - began:.0f} s with the start; {repeats} repeats; "
            f"ingest {before:.0f} MB, then {_megabytes(system.ingest):.0f} MB; at most {most} sessions"
        )
    finally:
        system.stop()
    # PostgreSQL may learn a moment later that the last processes have ended
    wait_until(lambda: ask(settings.database_url, OURS) == [(0,)], "no session is left")
