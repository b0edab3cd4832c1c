"""`./run.sh` as its user meets it."""

import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from stack.config import StackConfig
from stack.servers import ServerError, free_port
from stack.system import System
from support.processes import ROOT, http_status
from support.traffic import wait_until

PORT_NAMES = ("INGEST_PORT", "FLOWER_PORT", "POSTGRES_PORT", "REDIS_PORT", "LOG_REDIS_PORT")


@dataclass
class Place:
    """A folder and ports for a system, and the command to work on it."""

    home: Path
    environ: Mapping[str, str]

    def run(self, *words: str, seconds_max: float = 90) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["./run.sh", *words],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds_max,
            check=False,
        )

    def pids(self) -> dict[str, int]:
        """Process ids of the running programs, by name."""
        found = {}
        for line in self.run("status").stdout.splitlines():
            words = line.split()
            if len(words) > 3 and words[1] == "RUNNING":
                found[words[0]] = int(words[3].rstrip(","))
        return found

    def processes(self) -> list[str]:
        """Command lines of every process that belongs to this system."""
        found = []
        for process in psutil.process_iter():
            try:
                environ, command = process.environ(), " ".join(process.cmdline())
            except psutil.Error:
                continue
            if str(self.home) in command or environ.get("INGEST_PORT") == self.environ["INGEST_PORT"]:
                found.append(command)
        return found


def make_place(home: Path) -> Place:
    environ = {name: str(free_port()) for name in PORT_NAMES}
    # A folder that only its owner may enter, with a space in its name, as deep as temporary folders are
    home.mkdir(mode=0o700)
    return Place(home, {"PATH": os.environ["PATH"], "HOME": str(home), "SLUICE_HOME": str(home), **environ})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = make_place(tmp_path_factory.mktemp("stack") / "a system")
    started = place.run("--detach")
    assert started.returncode == 0, started.stdout + started.stderr
    assert "Sluice is ready" in started.stdout
    yield place
    place.run("stop")


def urls_of(place: Place) -> dict[str, str]:
    lines = place.run("env").stdout.splitlines()
    return dict(line.removeprefix("export ").replace("'", "").split("=", 1) for line in lines)


def test_env_names_the_running_servers(place: Place) -> None:
    urls = urls_of(place)
    assert set(urls) == {"INGEST_URL", "DATABASE_URL", "REDIS_URL", "EVENT_LOG_URL", "FLOWER_URL"}
    assert urls["INGEST_URL"] == f"http://127.0.0.1:{place.environ['INGEST_PORT']}"
    assert http_status(urls["INGEST_URL"] + "/readyz") == 200
    assert http_status(urls["FLOWER_URL"] + "/healthcheck") == 200


def test_a_shell_with_the_addresses_of_a_system_can_start_it_again(place: Place) -> None:
    # Given what `./run.sh env` has put into a shell
    shell = {**place.environ, **urls_of(place)}
    # Then a start from there still runs the servers itself
    assert StackConfig.from_environ(None, shell).given == {}


def test_everything_listens_on_loopback_only(place: Place) -> None:
    listening = set()
    for pid in place.pids().values():
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            listening |= {c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


def test_a_second_start_says_that_one_runs(place: Place) -> None:
    again = place.run("--detach")
    assert again.returncode == 1
    assert "runs already" in again.stderr
    assert len(again.stderr.splitlines()) == 1


def test_a_taken_port_is_said_in_one_line_before_anything_starts(place: Place, tmp_path: Path) -> None:
    other = make_place(tmp_path / "other")
    taken = Place(other.home, {**other.environ, "INGEST_PORT": place.environ["INGEST_PORT"]})
    said = taken.run("--detach")
    assert said.returncode == 1
    assert said.stderr.strip() == (
        f"run.sh: INGEST_PORT={place.environ['INGEST_PORT']} is taken on 127.0.0.1: set INGEST_PORT to another port"
    )
    assert not (other.home / "supervisor.pid").exists()


def test_data_is_not_deleted_while_running_or_unasked(place: Place) -> None:
    assert "stop comes first" in place.run("clean", "--yes").stderr
    assert "--yes" in place.run("clean").stderr
    assert (place.home / "postgres" / "PG_VERSION").exists()


def test_whatever_is_killed_is_started_again(place: Place) -> None:
    # Given the main process of everything, servers included, killed
    before = place.pids()
    assert set(before) == {"postgres", "redis-control", "redis-log", "batches", "control", "beat", "flower", "ingest-0"}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    # Then all of it is back, with other process ids, and takes events that are stored
    wait_until(lambda: set(place.pids()) == set(before), "all run again", seconds_max=40)
    assert not set(place.pids().values()) & set(before.values())
    url = urls_of(place)["INGEST_URL"]
    wait_until(lambda: http_status(f"{url}/readyz") == 200, "ready again", seconds_max=30)
    body = b'{"correlationId": "c", "severity": "INFO", "message": "m", "source": "s", "timestamp": 1}'
    request = urllib.request.Request(f"{url}/api/logs", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 202


def test_stop_leaves_no_process_and_a_second_start_takes_seconds(place: Place) -> None:
    assert place.processes()
    assert place.run("stop").stdout.strip() == "stopped"
    wait_until(lambda: place.processes() == [], "no process is left", seconds_max=5)
    # When it is started in the foreground, on the same data, and interrupted as by Ctrl-C
    foreground = subprocess.Popen(["./run.sh"], cwd=ROOT, env=place.environ, stdout=subprocess.PIPE, text=True)
    assert foreground.stdout is not None
    lines = iter(foreground.stdout.readline, "")
    assert any("Ctrl-C stops all of it" in line for line in lines)
    foreground.send_signal(signal.SIGINT)
    rest = foreground.stdout.read()
    foreground.stdout.close()
    assert foreground.wait(30) == 0
    assert rest.strip().endswith("stopped")
    wait_until(lambda: place.processes() == [], "no process is left", seconds_max=5)
    assert place.run("clean", "--yes").returncode == 0
    assert not place.home.exists()


# --- Without starting anything ---------------------------------------------------------------------------


def test_servers_of_ones_own_are_used(tmp_path: Path) -> None:
    given = {"SLUICE_HOME": str(tmp_path), "DATABASE_URL": "postgresql://db/x", "KAFKA_BOOTSTRAP_SERVERS": "k1:9092"}
    config = StackConfig.from_environ(None, given)
    assert config.log == "kafka"
    assert config.given == {"DATABASE_URL": "postgresql://db/x", "EVENT_LOG_URL": "kafka://k1:9092"}
    assert set(config.ports_used) == {"INGEST_PORT", "FLOWER_PORT", "REDIS_PORT"}


def test_several_ingest_processes_have_a_metrics_port_each(tmp_path: Path) -> None:
    several = {"SLUICE_HOME": str(tmp_path), "INGEST_PROCESSES": "3", "INGEST_METRICS_PORT": "9500"}
    assert StackConfig.from_environ(None, several).metrics_ports == [9500, 9501, 9502]
    assert StackConfig.from_environ(None, {**several, "INGEST_PROCESSES": "1"}).metrics_ports == []


@pytest.mark.parametrize(
    ("environ", "log", "said"),
    [
        ({"INGEST_PORT": "http"}, None, "INGEST_PORT='http'"),
        ({"INGEST_PROCESSES": "0"}, None, "INGEST_PROCESSES='0'"),
        ({"EVENT_LOG_URL": "redis://x"}, "kafka", "contradict"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    tmp_path: Path, environ: dict[str, str], log: str | None, said: str
) -> None:
    with pytest.raises(ServerError, match=said):
        StackConfig.from_environ(log, {"SLUICE_HOME": str(tmp_path), **environ})


def test_a_long_folder_name_gets_a_short_socket(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120)
    system = System(StackConfig.from_environ("redis", {"SLUICE_HOME": str(home)}))
    assert len(str(system.socket_path)) < 108
