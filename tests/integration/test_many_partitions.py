"""A whole system with 256 partitions: its processes and sessions grow with its drains, not with its partitions."""

import json
import urllib.request
from dataclasses import replace
from pathlib import Path

from checks.testbed.database import ask
from checks.testbed.processes import System
from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.event import partition_of
from pipeline.settings import Settings
from pipeline.sink.sessions import sessions_needed
from support.traffic import event

PARTITIONS = 256
EVENTS_EACH = 8
OURS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def _events() -> list[dict[str, object]]:
    """The same number of events for each partition."""
    found: dict[int, list[dict[str, object]]] = {partition: [] for partition in range(PARTITIONS)}
    number = 0
    while any(len(its) < EVENTS_EACH for its in found.values()):
        key = f"many-{number}"
        its = found[partition_of(key, PARTITIONS)]
        if len(its) < EVENTS_EACH:
            its.append(event(number, run="many") | {"correlationId": key})
        number += 1
    return [one for turn in zip(*found.values(), strict=True) for one in turn]


def test_256_partitions_are_drained_by_a_few_processes(settings: Settings, tmp_path: Path) -> None:
    # Given a system with many more partitions than PostgreSQL has connections
    settings = replace(
        settings, log_partitions=PARTITIONS, rate_min=1e5, rate_max=1e5,
        drain_run_seconds_max=2.0,  # drains have turns as ever; a worker that stops waits for the end of their runs
    )  # fmt: skip
    needed = sessions_needed(settings)
    assert needed.all < 20
    events, most = _events(), 0
    system = System(settings, tmp_path)
    try:
        system.start()
        # When each partition gets events
        for first in range(0, len(events), 500):
            body = json.dumps(events[first : first + 500]).encode()
            request = urllib.request.Request(f"{system.url}/api/logs", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
                assert answer.status == 202

        def all_are_stored() -> bool:
            nonlocal most
            [(sessions,)] = ask(settings.database_url, OURS)
            most = max(most, sessions)
            return ask(settings.database_url, "SELECT count(*) FROM log_events") == [(len(events),)]

        # Then all are stored, each one once and by its partition
        system.wait(all_are_stored, "all are stored")
        lows = "SELECT count(*), min(next_offset), max(next_offset) FROM stored_offsets"
        assert ask(settings.database_url, lows) == [(PARTITIONS, EVENTS_EACH, EVENTS_EACH)]
        # And by no more processes and sessions than the drains need
        assert len(system.batches.children()) <= needed.processes
        assert most <= needed.all
    finally:
        system.stop()
    assert ask(settings.database_url, OURS) == [(0,)]
