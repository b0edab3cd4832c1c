"""Workers that fork beside threads that import, and workers whose children do not let them end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from checks.testbed.processes import ROOT, batches_worker
from checks.testbed.waiting import PATIENT_APPEND_SECONDS, RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from pipeline.settings import Settings
from stack.config import environ_with
from stack.servers import Server
from tasks.forced_shutdown import end_seconds_max

# What a worker's main process has imported when it forks, and then all that its children do.
_USE_EVERYTHING = """
import json, sys
from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.drain import drain
from pipeline.sink.migrate import migrate
from pipeline.event import Event, encode_record, record_head
from tasks.app import app
import tasks.control, tasks.drain
from tasks.context import WorkerContext

settings = app.sluice_settings
wiring.load_adapters(settings)
known = set(sys.modules)
parts = WorkerContext(settings)
migrate(settings)
parts.log.append([(0, encode_record(Event("c", "INFO", "m", "s", 1, settings.key_prefix), record_head(1, "r")))])
parts.control_store.state()
parts.events.last(5)
parts.leases.take("tests", seconds=1)
parts.counters.add({"tests": 1.0}, sender="tests", number=1)
parts.progress.note("tests", {}, forget_seconds=1)
done = []
report = drain(0, log=parts.log, sink=parts.sink, fence=parts.fence, breaker=parts.breaker, paused=lambda: bool(done),
               settings=settings, clock=SystemClock(), on_stored=lambda *_: done.append(1))
parts.sink.probe()
parts.close()
print(json.dumps({"stored": report.stored, "error": report.error, "late": sorted(set(sys.modules) - known)}))
"""


@pytest.mark.parametrize("log", ["redis", "kafka"])
def test_everything_is_imported_before_a_worker_forks(
    log: str, request: pytest.FixtureRequest, control_redis: Server, postgres: Server, tmp_path: Path
) -> None:
    server: Server = request.getfixturevalue("log_redis" if log == "redis" else "kafka")
    settings = Settings(
        redis_url=control_redis.url,
        event_log_url=server.url,
        database_url=postgres.url,
        key_prefix=f"{tmp_path.name}:",
        log_topic=tmp_path.name,
        append_seconds_max=PATIENT_APPEND_SECONDS,
    )
    said = subprocess.run(
        [sys.executable, "-c", _USE_EVERYTHING],
        cwd=ROOT, env=environ_with(settings), capture_output=True, text=True, check=False, timeout=RUN_SECONDS_MAX,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-2000:]
    assert '"stored": 1' in said.stdout, said.stdout
    assert '"late": []' in said.stdout, said.stdout


def test_a_worker_that_a_child_keeps_from_ending_is_ended(
    control_redis: Server, log_redis: Server, tmp_path: Path
) -> None:
    # Given a worker, and a child of it that hangs
    settings = Settings(
        redis_url=control_redis.url,
        event_log_url=log_redis.url,
        key_prefix=f"{tmp_path.name}:",
        drain_run_seconds_max=0.5,
        drain_hard_seconds_max=1.0,
    )
    worker = batches_worker(settings, tmp_path).start()
    try:
        wait_until(lambda: " ready." in worker.log(), "the worker is ready")
        children = worker.children()
        assert children
        children[0].suspend()
        # When it is told to end
        os.kill(worker.pid, signal.SIGTERM)
        # Then it does, with its children
        most = end_seconds_max(settings, is_control=False)
        wait_until(lambda: not worker.is_running, "it is gone", seconds_max=most + WAIT_SECONDS_MAX)
        assert "did not end within" in worker.log()
        _, alive = psutil.wait_procs(children, timeout=WAIT_SECONDS_MAX)
        assert alive == []
    finally:
        worker.stop(seconds_max=0.1)
