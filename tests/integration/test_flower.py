"""The real Flower on this Celery: its password, its addresses, load, and a broker that comes back."""

import base64
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checks.testbed.processes import ROOT, System, http_status
from checks.testbed.waiting import WAIT_SECONDS_MAX, wait_until
from pipeline import wiring
from pipeline.names import PauseReason
from pipeline.settings import Settings
from stack.config import environ_with
from stack.servers import Server, free_port

USER = "ann:correct horse"


class Flower:
    """A Flower process with a password."""

    def __init__(self, settings: Settings, folder: Path, **environ: str) -> None:
        self.port = free_port()
        self.log = folder / "flower.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tasks.app", "flower", "--conf=monitoring/flowerconfig.py"],
                cwd=ROOT,
                env={**environ_with(settings), "FLOWER_PORT": str(self.port), **environ},
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, *, user: str | None = USER) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if user is not None:
            request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
            return answer.read().decode()

    def workers(self) -> dict[str, Any]:
        """Workers that answer, by name; none while Flower can't ask."""
        try:
            found: dict[str, Any] = json.loads(self.get("/api/workers?refresh=1&status=0"))
        except (OSError, ValueError):
            return {}
        return found

    def count(self, name: str) -> float:
        """How many tasks of this name have succeeded, by Flower's own metrics."""
        lines = self.get("/metrics", user=None).splitlines()
        wanted = [line for line in lines if line.startswith("flower_events_total") and f'"{name}"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in wanted if "task-succeeded" in line)

    def results(self, name: str) -> set[str]:
        """What the last tasks of this name say that they did."""
        found = json.loads(self.get(f"/api/tasks?taskname={name}&limit=50"))
        return {str(task["result"]).strip("'") for task in found.values() if task["state"] == "SUCCESS"}

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(WAIT_SECONDS_MAX)
        except subprocess.TimeoutExpired:  # it is asking a broker that is away
            self.process.kill()
            self.process.wait(WAIT_SECONDS_MAX)


def _status(flower: Flower, path: str, user: str | None) -> int:
    try:
        flower.get(path, user=user)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@pytest.fixture
def system(settings: Settings, own_control_redis: Server, database_url: str, tmp_path: Path) -> Iterator[System]:
    running = System(
        replace(settings, redis_url=own_control_redis.url, database_url=database_url, ingest_port=free_port()), tmp_path
    )
    try:
        yield running.start()
    finally:
        running.stop()


def test_flower_under_load_and_after_its_broker_was_restarted(
    system: System, own_control_redis: Server, tmp_path: Path
) -> None:
    password = tmp_path / "flower-basic-auth"
    password.write_text(f"{USER}\n")
    flower = Flower(system.settings, tmp_path, SLUICE_FLOWER_BASIC_AUTH_FILE=str(password), FLOWER_ADDRESS="127.0.0.1")
    try:
        wait_until(lambda: http_status(f"http://127.0.0.1:{flower.port}/healthcheck") == 200, "it is up")
        # Given a password: without it nothing but /metrics and /healthcheck
        assert [_status(flower, path, None) for path in ("/", "/api/workers", "/tasks")] == [401, 401, 401]
        assert _status(flower, "/", "ann:wrong") == 401
        assert [_status(flower, path, None) for path in ("/metrics", "/healthcheck")] == [200, 200]
        assert [_status(flower, path, USER) for path in ("/", "/tasks", "/broker")] == [200, 200, 200]
        # And it is not in the process list
        assert USER.encode() not in Path(f"/proc/{flower.process.pid}/cmdline").read_bytes()
        # Then both workers are there, and their tasks are counted by names that tell what they do
        wait_until(lambda: len(flower.workers()) == 2, "both workers")
        wait_until(lambda: flower.count("sluice.drain") > 5 and flower.count("sluice.send_hints"), "tasks")
        # And a drain that moved nothing says so, and a pause is seen, with its reason
        wait_until(lambda: "no work" in flower.results("sluice.drain"), "a drain of no work is named")
        store = wiring.make_control_store(system.settings)
        store.pause(PauseReason.OPERATOR, actor="ann@host", why="a disk", partition=None)
        wait_until(
            lambda: "PAUSED (operator): no drain runs" in flower.results("sluice.send_hints"), "the pause is shown"
        )
        store.resume(PauseReason.OPERATOR, generation=None, actor="ann@host", why="done", partition=None)
        # And when its broker was killed and is back, it goes on counting
        own_control_redis.kill()
        wait_until(lambda: "Connection refused" in flower.log.read_text(), "the broker is missed")
        own_control_redis.start()
        before = flower.count("sluice.drain")
        wait_until(lambda: len(flower.workers()) == 2, "both workers again")
        wait_until(lambda: flower.count("sluice.drain") > before, "tasks again")
        assert flower.process.poll() is None
    finally:
        flower.stop()


def test_only_this_machine_reaches_it_unless_there_is_a_password(settings: Settings, tmp_path: Path) -> None:
    # Given no address: it is the loopback one
    flower = Flower(replace(settings, log_format="json"), tmp_path)
    try:
        wait_until(lambda: http_status(f"http://127.0.0.1:{flower.port}/healthcheck") == 200, "it is up")
        others = [found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        for address in {str(other) for other in others} - {"127.0.0.1"}:
            with socket.socket() as probe:
                probe.settimeout(2)
                assert probe.connect_ex((address, flower.port)) != 0 or address.startswith("127.")
    finally:
        flower.stop()
    # And its log lines are as those of the other processes
    lines = [json.loads(line) for line in flower.log.read_text().splitlines()]
    assert {line["process"] for line in lines} == {"flower"}
    # And every address only with a password
    refused = Flower(settings, tmp_path, FLOWER_ADDRESS="0.0.0.0", FLOWER_URL_PREFIX="x", FLOWER_DEBUG="no")
    assert refused.process.wait(WAIT_SECONDS_MAX) != 0
    assert "set FLOWER_BASIC_AUTH" in refused.log.read_text()
    # And options that the shell has are named: they may be of another Flower
    assert "flower: options from the environment: FLOWER_DEBUG, FLOWER_URL_PREFIX\n" in refused.log.read_text()
    # And not with a file that is not there
    refused = Flower(settings, tmp_path, FLOWER_ADDRESS="0.0.0.0", SLUICE_FLOWER_BASIC_AUTH_FILE="/nowhere")
    assert refused.process.wait(WAIT_SECONDS_MAX) != 0
    assert "'/nowhere' can't be read" in refused.log.read_text()
