"""How a command in a shell without addresses finds the system that runs here."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks.testbed.waiting import wait_until
from pipeline.clock import SystemClock
from pipeline.running import find, nothing_to_ask, stopped_system, with_running_system
from pipeline.settings import Settings
from sluice import examinations
from sluice.findings import Scene, State

URLS = {"DATABASE_URL": "postgresql://h/d", "REDIS_URL": "redis://h:1/0", "EVENT_LOG_URL": "redis://h:2/0"}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The folder of a system whose supervisor runs."""
    state = {"urls": {**URLS, "INGEST_URL": "http://h:8"}, "settings": {"KEY_PREFIX": "p:", "RATE_MAX": "50"}}
    (tmp_path / "running.json").write_text(json.dumps(state))
    words = [
        sys.executable,
        "-c",
        "import time; time.sleep(600)",
        "supervisord",
        "-c",
        str(tmp_path / "supervisord.conf"),
    ]
    with subprocess.Popen(words) as process:
        (tmp_path / "supervisor.pid").write_text(f"{process.pid}\n")
        wait_until(lambda: find(tmp_path) is not None, "its supervisor is found")
        yield tmp_path
        process.kill()


def test_without_addresses_those_of_the_running_system_are_taken(home: Path) -> None:
    environ = {"SLUICE_HOME": str(home), "LOG_LEVEL": "DEBUG", "RATE_MAX": "60"}
    assert nothing_to_ask(environ) is None
    # What the shell says itself comes first
    found = with_running_system(environ)
    assert found == {**environ, **URLS, "INGEST_URL": "http://h:8", "KEY_PREFIX": "p:"}


def test_with_addresses_nothing_is_looked_for(home: Path) -> None:
    environ = {"SLUICE_HOME": str(home), "REDIS_URL": "redis://other:1/0"}
    assert with_running_system(environ) == environ
    assert nothing_to_ask({**environ, "SLUICE_HOME": "/nowhere"}) is None


def test_a_shell_with_its_addresses_gets_its_settings_too(home: Path) -> None:
    environ = {"SLUICE_SYSTEM": str(home), **URLS}
    assert with_running_system(environ)["KEY_PREFIX"] == "p:"


def test_a_system_that_was_stopped_is_not_found(home: Path) -> None:
    (home / "supervisor.pid").write_text("999999999")
    environ = {"SLUICE_HOME": str(home)}
    assert with_running_system(environ) == environ
    assert nothing_to_ask(environ) == (
        f"no system runs in {home}, and none of DATABASE_URL, REDIS_URL, EVENT_LOG_URL is set: ./run.sh starts one, or "
        "set them"
    )


def test_a_shell_with_the_addresses_of_a_stopped_system_is_told(home: Path) -> None:
    environ = {"SLUICE_SYSTEM": str(home), **URLS}
    assert stopped_system(environ) is None
    (home / "supervisor.pid").write_text("999999999")
    told = f"the system in {home}, whose addresses this shell has, does not run: ./run.sh starts it"
    assert stopped_system(environ) == told
    # Doctor says it in its line about programs
    [found] = examinations.programs(Scene(Settings(), environ, SystemClock()))
    assert (found.state, found.what) == (State.WRONG, told)
    # Servers of another system, or none, are not its own
    assert stopped_system(environ | {"DATABASE_URL": "postgresql://other/db"}) is None
    assert stopped_system(URLS) is None
    assert stopped_system(environ | {"SLUICE_SYSTEM": str(home / "nowhere")}) is None
