"""The whole system with files as its sink: each accepted event is in the archive once, though a worker is killed."""

import contextlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil

from checks.testbed.processes import System
from checks.testbed.waiting import RUN_SECONDS_MAX, wait_until
from pipeline.settings import Settings
from support.archive import committed_events
from support.traffic import Traffic, stored_ids


def test_each_accepted_event_is_in_the_archive_once_although_a_worker_is_killed(
    settings: Settings, tmp_path: Path
) -> None:
    # Given a system whose drains commit often, and a client
    folder = tmp_path / "archive"
    settings = replace(
        settings,
        event_sink_url=f"file://{folder}",
        log_partitions=2,
        drain_batch_records_max=100,
        drain_run_seconds_max=3.0,
        drain_hard_seconds_max=12.0,
        regulate_seconds=1.0,
    )
    system = System(settings, tmp_path)
    try:
        system.start()
        with Traffic(system.url, events_per_second=200, events_max=40_000, threads=2) as traffic:

            def archived() -> Counter[str]:
                found = Counter(line["record"]["eventId"] for line in committed_events(folder))
                return Counter({name: count for name, count in found.items() if name.startswith(f"{traffic.run}-")})

            # When the worker and its children are killed while they store
            wait_until(lambda: sum(archived().values()) >= 100, "the first events")
            children = system.batches.children()
            system.batches.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has noticed that its parent is gone
                    child.kill()
            before = len(traffic.outcomes.acked)
            system.batches.start()
            wait_until(lambda: len(traffic.outcomes.acked) >= before + 200, "200 more events")
        outcomes = traffic.outcomes
        # Then each accepted event is there once, no refused one is, and PostgreSQL has none of them
        system.wait(lambda: outcomes.acked <= archived().keys(), "all accepted events", seconds_max=RUN_SECONDS_MAX)
        stored = archived()
        assert [name for name, count in stored.items() if count != 1] == []
        assert stored.keys() <= outcomes.acked | outcomes.indeterminate
        assert stored_ids(settings.database_url, traffic.run) == Counter()
        # And the system is healthy: lag and stored offsets come from the files
        system.wait(lambda: system.health()["consumerLag"] == 0, "no lag")
        system.wait(lambda: system.health()["status"] == "healthy", "healthy")
    finally:
        system.stop()
