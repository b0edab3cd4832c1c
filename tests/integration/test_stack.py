"""`./run.sh` as its user meets it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg2
import pytest

from checks.testbed.processes import ROOT, http_status
from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from stack.config import StackConfig, free_ports
from stack.servers import kafka_is_possible, wait_ended
from tasks import signing


@dataclass
class Place:
    """A folder and ports for a system, and the command to work on it."""

    home: Path
    environ: Mapping[str, str]

    def run(self, *words: str, seconds_max: float = RUN_SECONDS_MAX) -> subprocess.CompletedProcess[str]:
        said = subprocess.run(
            ["./run.sh", *words],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds_max,
            check=False,
        )
        # What bash says of a locale before it reads the script.
        said.stderr = "".join(line for line in said.stderr.splitlines(keepends=True) if "setlocale" not in line)
        return said

    @contextlib.contextmanager
    def foreground(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """`./run.sh`, ready, in the foreground; its output is one stream."""
        process = subprocess.Popen(
            ["./run.sh", *words],
            cwd=ROOT,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        with process.stdout:
            try:
                said = []
                for line in process.stdout:
                    said.append(line)
                    if "Ctrl-C stops all of it" in line:
                        break
                else:
                    pytest.fail("".join(said))
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait(WAIT_SECONDS_MAX)

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


# What other programs of a user may have put into the shell.
OTHERS = {
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "LANG": "xx_YY.ISO-8859-1",
    "LC_ALL": "xx_YY.ISO-8859-1",
    "CELERY_BROKER_URL": "redis://127.0.0.1:9/0",
    "CELERY_RESULT_BACKEND": "redis://127.0.0.1:9/1",
    "CELERY_WORKER_CONCURRENCY": "none",
    "CELERY_CONFIG_MODULE": "no_such_module",
    "BROKER_URL": "amqp://127.0.0.1:9//",
    "SANIC_REQUEST_TIMEOUT": "0.001",
    "PROMETHEUS_MULTIPROC_DIR": "/nonexistent",
    "prometheus_multiproc_dir": "/nonexistent",
    "PGSSLMODE": "require",
    "PGHOSTADDR": "192.0.2.1",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PYTHONPATH": "/nonexistent",
    "PYTHONWARNINGS": "error",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONINSPECT": "1",
    "JDK_JAVA_OPTIONS": "-XX:NoSuchOption",
    "PIP_USER": "1",
}
# Those that somebody may have meant for Sluice's Flower: one line names them.
OF_FLOWER = {"FLOWER_URL_PREFIX": "of-another-flower", "FLOWER_CERTFILE": "/nonexistent"}


def make_place(home: Path) -> Place:
    environ = free_ports()
    # A folder that only its owner may enter, with a space in its name
    home.mkdir(mode=0o700)
    own = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "SLUICE_HOME": str(home), "PROMETHEUS": "no"}
    return Place(home, {**OTHERS, **own, **environ})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = make_place(tmp_path_factory.mktemp("stack") / "a system")
    try:
        started = Place(place.home, {**place.environ, **OF_FLOWER}).run("--detach")
        assert started.returncode == 0, started.stdout + started.stderr
        assert "Sluice is ready" in started.stdout
        assert started.stderr.splitlines()[-1:] == [
            "run.sh: ignored, since monitoring/flowerconfig.py decides: FLOWER_CERTFILE, FLOWER_URL_PREFIX"
        ]
        yield place
    finally:
        place.run("stop")


def urls_of(place: Place) -> dict[str, str]:
    lines = place.run("env").stdout.splitlines()
    return dict(line.removeprefix("export ").replace("'", "").split("=", 1) for line in lines)


def test_env_names_the_running_servers(place: Place) -> None:
    urls = urls_of(place)
    assert set(urls) == {"INGEST_URL", "DATABASE_URL", "REDIS_URL", "EVENT_LOG_URL", "FLOWER_URL", "SLUICE_SYSTEM"}
    assert urls["INGEST_URL"] == f"http://127.0.0.1:{place.environ['INGEST_PORT']}"
    wait_until(lambda: http_status(urls["INGEST_URL"] + "/readyz") == 200, "ingest is ready")
    wait_until(lambda: http_status(urls["FLOWER_URL"] + "/healthcheck") == 200, "Flower is well")


def test_a_shell_with_the_addresses_of_a_system_can_start_it_again(place: Place) -> None:
    # Given what `./run.sh env` has put into a shell
    shell = {**place.environ, **urls_of(place)}
    # Then a start from there still runs the servers itself
    assert StackConfig.from_environ(None, shell).given == {}


def test_variables_of_other_programs_do_not_matter(place: Place) -> None:
    # Given a system that was started in a shell with OTHERS
    assert set(OTHERS) <= set(place.environ)
    # Then events arrive in PostgreSQL
    post(place, "of-a-strange-shell")
    wait_until(lambda: "of-a-strange-shell" in stored(place), "the event is stored")
    # And its workers have the broker and the processes that it says
    pids = place.pids()
    wait_until(lambda: len(psutil.Process(pids["batches"]).children()) == 6, "its workers have six processes")
    assert not [
        name for name in psutil.Process(pids["ingest-0"]).environ() if name in {*OTHERS, "no_proxy"} - {"LC_ALL"}
    ]


def test_commands_in_a_bare_shell_find_the_running_system(place: Place) -> None:
    # Given a shell without any address, and with variables of other programs
    shell = {"PATH": os.environ["PATH"], "SLUICE_HOME": str(place.home), "CELERY_BROKER_URL": "redis://127.0.0.1:9/0"}

    def said(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / ".venv" / "bin" / "python"), "-m", *words]
        environ = {**shell, **more}
        return subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False
        )

    # Then the status is that of the system which runs here
    status = said("pipeline", "status", "--json")
    assert status.returncode in (0, 1), status.stdout + status.stderr
    assert json.loads(status.stdout)["eventLog"] == "redis"
    # And Celery's commands reach its workers
    lag = said("celery", "-A", "tasks.app", "inspect", "--timeout", str(WAIT_SECONDS_MAX), "lag")
    assert lag.returncode == 0, lag.stdout + lag.stderr
    assert "partition" in lag.stdout
    assert "ignored, since Sluice's settings decide (docs/settings.md): CELERY_BROKER_URL" in lag.stderr
    # Where none runs, both say so, and the status is that it can't tell
    nowhere = str(place.home / "nowhere")
    nothing = said("pipeline", "status", SLUICE_HOME=nowhere)
    assert (nothing.returncode, nothing.stdout) == (3, "")
    assert nothing.stderr.startswith(f"status: no system runs in {nowhere}, and none of DATABASE_URL")
    assert f"no system runs in {nowhere}" in said("celery", "-A", "tasks.app", "report", SLUICE_HOME=nowhere).stderr


def test_a_second_system_does_not_take_the_servers_of_the_first(place: Place, tmp_path: Path) -> None:
    # Given a shell that has evaluated the variables of one system
    other = make_place(tmp_path / "other")
    shell = {**other.environ, **urls_of(place)}
    # When another one is started there, then it is refused in one line, before anything is made
    said = Place(other.home, shell).run("--detach")
    assert said.returncode == 1
    assert said.stderr.startswith(
        f"run.sh: DATABASE_URL, REDIS_URL, EVENT_LOG_URL in this shell are of the system in {place.home}"
    )
    assert len(said.stderr.splitlines()) == 1
    assert not (other.home / "running.json").exists()


def test_everything_listens_on_loopback_only(place: Place) -> None:
    listening = set()
    for pid in place.pids().values():
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # as a session of PostgreSQL that has just ended
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
    [line] = said.stderr.strip().splitlines()
    assert re.fullmatch(
        f"run.sh: INGEST_PORT={place.environ['INGEST_PORT']} is taken on 127.0.0.1: set INGEST_PORT to another port, "
        r"or PORT_BASE=\d+, which moves all ports without a setting of their own; a second system beside the first "
        "needs its own SLUICE_HOME too",
        line,
    )
    assert not (other.home / "supervisor.pid").exists()


def test_data_is_not_deleted_while_running_or_unasked(place: Place) -> None:
    assert "stop it first" in place.run("clean", "--yes").stderr
    assert "--yes" in place.run("clean").stderr
    assert (place.home / "postgres" / "PG_VERSION").exists()


def post(place: Place, correlation_id: str) -> None:
    """Send one event until it is accepted: on a busy machine a log that has just started answers late."""
    body = b'{"correlationId": "%s", "severity": "INFO", "message": "m", "source": "s", "timestamp": 1700000000000}'
    request = urllib.request.Request(
        f"http://127.0.0.1:{place.environ['INGEST_PORT']}/api/logs",
        data=body % correlation_id.encode(),
        headers={"Content-Type": "application/json"},
    )

    def is_accepted() -> bool:
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
                assert answer.status == 202
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return False
        return True

    wait_until(is_accepted, "the event is accepted")


def stored(place: Place) -> set[str]:
    """Correlation ids in PostgreSQL; none while it does not answer."""
    url = f"postgresql://sluice@127.0.0.1:{place.environ['POSTGRES_PORT']}/sluice"
    with (
        contextlib.suppress(psycopg2.OperationalError),
        contextlib.closing(psycopg2.connect(url)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT correlation_id FROM log_events")
        return {row[0] for row in cursor.fetchall()}
    return set()


def test_logs_of_postgresql_reach_no_terminal_raw(place: Place) -> None:
    # Given an id with an escape sequence, of which PostgreSQL says that it exists already
    url = f"postgresql://sluice@127.0.0.1:{place.environ['POSTGRES_PORT']}/sluice"
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE seen (event_id text PRIMARY KEY)")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            cursor.execute("INSERT INTO seen VALUES (%(id)s), (%(id)s)", {"id": "\x1b]0;mine\x07"})
    log = place.home / "logs" / "postgres.log"  # the supervisor writes it
    wait_until(lambda: b"(event_id)=(\x1b]0;mine\x07) already exists" in log.read_bytes(), "PostgreSQL has said it")
    # Then its log in the terminal has the characters as text
    with subprocess.Popen(
        ["./run.sh", "logs", "postgres"], cwd=ROOT, env=place.environ, stdout=subprocess.PIPE
    ) as following:
        assert following.stdout is not None
        said = b""
        for line in following.stdout:
            said += line
            if b"already exists" in line:
                following.terminate()
    assert rb"(event_id)=(\x1b]0;mine\x07) already exists" in said
    assert b"\x1b" not in said


def test_a_start_that_fails_says_which_program_and_leaves_nothing(place: Place, tmp_path: Path) -> None:
    # Given servers of somebody else but for one, which does not come up: its data is not what it wrote
    other = make_place(tmp_path / "other")
    urls = urls_of(place)
    given = {name: urls[name] for name in ("DATABASE_URL", "EVENT_LOG_URL")}
    broken = Place(other.home, {**other.environ, **given, "KEY_PREFIX": "broken:"})
    (other.home / "redis-control" / "appendonlydir").mkdir(parents=True)
    (other.home / "redis-control" / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")
    # When it is started, then it says so, and the end of the program's log, and stops what it had started
    said = broken.run("--detach")
    assert said.returncode == 1
    assert said.stderr.startswith("run.sh: redis-control ends again and again; its log ends:\n")
    assert "Invalid AOF manifest file format" in said.stderr
    wait_until(lambda: broken.processes() == [], "no process is left")


def test_whatever_is_killed_is_started_again(place: Place) -> None:
    # Given the main process of everything, servers included, killed
    programs = {"postgres", "redis-control", "redis-log", "batches", "control", "beat", "flower", "ingest-0"}
    wait_until(lambda: set(place.pids()) == programs, "everything runs")
    before = place.pids()
    children = [child for pid in before.values() for child in psutil.Process(pid).children(recursive=True)]
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    # Then all of it is back, with other process ids, and takes events that are stored
    wait_until(lambda: _are_others(before, place.pids()), "all run again")
    url = urls_of(place)["INGEST_URL"]
    wait_until(lambda: http_status(f"{url}/readyz") == 200, "ready again")
    post(place, "after-kill")
    wait_until(lambda: "after-kill" in stored(place), "the event is stored")
    # And nothing lives on of what the killed ones had started
    wait_ended(children)


def _are_others(before: Mapping[str, int], now: Mapping[str, int]) -> bool:
    """Whether all programs run as other processes: the supervisor may not have noticed yet that they were killed."""
    return set(now) == set(before) and not set(now.values()) & set(before.values())


def test_a_second_system_stands_beside_the_first(place: Place, tmp_path: Path, missing: Callable[[str], None]) -> None:
    # Given a second system, on Kafka, in the foreground
    if (reason := kafka_is_possible()) is not None:
        missing(reason)
    other = make_place(tmp_path / "other")
    with other.foreground("--log", "kafka") as foreground:
        assert foreground.stdout is not None
        assert "kafka" in other.pids()
        assert urls_of(other)["EVENT_LOG_URL"] == f"kafka://127.0.0.1:{other.environ['KAFKA_PORT']}"
        # Then each has its own events
        post(place, "of-the-first")
        post(other, "of-the-second")
        wait_until(lambda: "of-the-second" in stored(other), "stored in the second")
        wait_until(lambda: "of-the-first" in stored(place), "stored in the first")
        assert stored(other) == {"of-the-second"}
        # And when the second's supervisor is killed, its user is told, and nothing of it is left
        os.kill(int((other.home / "supervisor.pid").read_text()), signal.SIGKILL)
        assert foreground.wait(WAIT_SECONDS_MAX) == 1
        assert "the supervisor was killed; its programs are stopped" in foreground.stdout.read()
    wait_until(lambda: other.processes() == [], "no process is left")
    # While the first goes on
    assert place.run("status").returncode == 0


def test_stop_leaves_no_process_and_a_second_start_finds_the_data(place: Place, tmp_path: Path) -> None:
    assert place.processes()
    post(place, "before-stop")
    wait_until(lambda: "before-stop" in stored(place), "the event is stored")
    assert place.run("stop").stdout.strip() == "stopped"
    wait_until(lambda: place.processes() == [], "no process is left")
    # When it is started in the foreground, on the same data, by somebody who has its addresses in the shell, with keys
    # for signed messages
    own = {"DATABASE_URL": f"postgresql://sluice@127.0.0.1:{place.environ['POSTGRES_PORT']}/sluice"}
    key, certificate = signing.create("workers", tmp_path)
    own |= {
        "SIGNING_KEY_FILE": str(key),
        "SIGNING_CERT_FILE": str(certificate),
        "SIGNING_CERT_FOLDER": str(certificate.parent),
    }
    again = Place(place.home, {**place.environ, **own})
    with again.foreground() as foreground:
        assert foreground.stdout is not None
        wait_until(lambda: "before-stop" in stored(place), "its data is there")
        # And Ctrl-C is pressed more often than needed
        foreground.send_signal(signal.SIGINT)
        assert any("stopping" in line for line in iter(foreground.stdout.readline, ""))
        foreground.send_signal(signal.SIGINT)
        assert foreground.stdout.read().strip() == "stopped"
        assert foreground.wait(WAIT_SECONDS_MAX) == 0
    wait_until(lambda: place.processes() == [], "no process is left")
    # Then clean deletes what is Sluice's, and nothing else
    (place.home / "mine.txt").write_text("not Sluice's")
    assert place.run("clean", "--yes").returncode == 0
    assert [path.name for path in place.home.iterdir()] == ["mine.txt"]
