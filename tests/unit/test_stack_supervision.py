"""The supervisor's files, and what is left where it was killed: with processes that stand for its programs."""

import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from supervisor.options import ServerOptions

from checks.testbed.waiting import WAIT_SECONDS_MAX, wait_until
from stack.__main__ import _first_event, main
from stack.config import StackConfig
from stack.servers import ServerError
from stack.supervision import Program, Supervisor, _end
from stack.system import System


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(StackConfig.from_environ("redis", {"SLUICE_HOME": str(tmp_path / "a home")}))


@pytest.fixture
def left(system: System) -> Iterator[subprocess.Popen[bytes]]:
    """A process such as a killed supervisor leaves, which takes no notice of SIGTERM."""
    socket_path = Supervisor(system.home).socket_path
    program = "import signal, sys; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
    environ = {"SUPERVISOR_SERVER_URL": f"unix://{socket_path}", "SUPERVISOR_PROCESS_NAME": "batches"}
    process = subprocess.Popen([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()  # it ignores SIGTERM from here on
        yield process
    process.kill()
    process.wait()


def test_what_a_killed_supervisor_left_is_found_and_ended(
    system: System, left: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stack.supervision._LEFT_SECONDS_MAX", 0.2)
    system.home.mkdir()
    # Given a process that is left, data can't be deleted
    assert system.remains() == 1
    with pytest.raises(ServerError, match="stop it first"):
        system.clean()
    # When the system is stopped, it is ended, by force where it does not listen
    assert system.stop() is True
    assert left.wait(WAIT_SECONDS_MAX) is not None
    wait_until(lambda: not psutil.pid_exists(left.pid), "it has ended")
    assert system.remains() == 0
    # And there is nothing to stop after that
    assert system.stop() is False


def test_processes_of_others_are_left_alone(system: System, tmp_path: Path) -> None:
    # Given a shell inside of the system's folder, and a program of another system
    system.home.mkdir()
    environ = {"SUPERVISOR_SERVER_URL": f"unix://{tmp_path / 'another' / 'supervisor.sock'}"}
    sleep = ["sleep", "600"]
    with subprocess.Popen(sleep, cwd=system.home) as inside, subprocess.Popen(sleep, env=environ) as another:
        try:
            wait_until(lambda: psutil.Process(another.pid).name() == "sleep", "started")
            assert system.remains() == 0
        finally:
            inside.kill()
            another.kill()


def test_a_system_in_a_folder_below_is_left_alone(system: System, tmp_path: Path) -> None:
    # Given a server of this system without a supervisor, and one of a system whose home lies below this one's
    program = tmp_path / "redis-server"
    program.symlink_to(shutil.which("sleep") or "sleep")
    ours, others = system.home / "redis-log", system.home / "inner" / "redis-log"
    ours.mkdir(parents=True)
    others.mkdir(parents=True)
    command = [str(program), "600"]
    with subprocess.Popen(command, cwd=ours) as left, subprocess.Popen(command, cwd=others) as other:
        try:
            for process in (left, other):
                wait_until(lambda p=process: psutil.Process(p.pid).name() == "redis-server", "started")
            # When this system's remains are ended
            assert [process.pid for process in Supervisor(system.home).remains()] == [left.pid]
            assert system.stop() is True
            # Then the other one goes on
            left.wait(WAIT_SECONDS_MAX)
            assert other.poll() is None
        finally:
            left.kill()
            other.kill()


def test_a_stale_process_id_is_no_supervisor(system: System) -> None:
    supervisor = Supervisor(system.home)
    system.home.mkdir()
    assert supervisor.pid() is None
    for text in ("", "not a number", str(os.getpid()), "999999999"):
        supervisor.pid_path.write_text(text)
        assert supervisor.pid() is None


def test_two_starts_in_one_folder_keep_out_of_each_others_way(system: System) -> None:
    system.home.mkdir()
    with system._alone(), pytest.raises(ServerError, match=r"another \./run\.sh is working"):
        system.start(threading.Event())


class Ending:
    """A supervisor whose ingest ends after each start, and has lived longer than supervisor's `startsecs`."""

    def __init__(self) -> None:
        self.stops = 0

    def answers(self) -> bool:
        return True

    def programs(self) -> list[dict[str, object]]:
        self.stops += 1
        return [{"name": "ingest-0", "spawnerr": "Bad exit code 2", "stop": self.stops, "exitstatus": 2}]


def test_a_program_that_ends_late_in_its_start_is_named_with_what_it_said_now(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the log of an earlier run, and a start in which the program ends after more than a second
    system.logs.mkdir(parents=True)
    log = system.logs / "ingest-0.log"
    log.write_text("ingest listens on 127.0.0.1\n")
    monkeypatch.setattr(system, "_servers", lambda: (_ for _ in ()).throw(ServerError("far enough")))
    monkeypatch.setattr(system, "check", lambda: None)
    with pytest.raises(ServerError, match="far enough"):
        system.start(threading.Event())
    with log.open("a") as file:
        file.write("ingest: INGEST_TLS_CERT=x can't be used\n")
    monkeypatch.setattr(system, "_supervisor", Ending())
    # When it has done so three times, then the message has its own words, and no others
    for _ in range(2):
        system._look_for_failures()
    with pytest.raises(ServerError) as said:
        system._look_for_failures()
    assert str(said.value) == ("ingest-0 ends again and again; its log ends:\ningest: INGEST_TLS_CERT=x can't be used")


def test_clean_deletes_what_is_sluices_and_no_more(system: System) -> None:
    # Given a folder with data, and with something that is not ours
    (system.home / "redis-log").mkdir(parents=True)
    (system.home / "logs").mkdir()
    (system.home / "log").write_text("kafka\n")
    mine = system.home / "notes.txt"
    mine.write_text("mine")
    system.clean()
    assert list(system.home.iterdir()) == [mine]
    # When nothing else is in it, the folder goes too
    mine.unlink()
    system.clean()
    assert not system.home.exists()
    system.clean()


@pytest.mark.parametrize("name", ["plain", "with space", "a;b#c", "it's", 'so "called"'])
def test_the_supervisor_reads_what_was_meant(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given words, folders and an environment with signs that its configuration's syntax knows
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p%40ss%(x)s@db/x")
    home = tmp_path / name
    home.mkdir()
    supervisor = Supervisor(home)
    supervisor.logs.mkdir()
    words = [sys.executable, "-c", "pass", "a b", "100%", "it's", '"', "$HOME", "c\\d"]
    supervisor.config_path.write_text(
        supervisor._configuration([Program("one", words, 20, {"PORT": "1", "SIGN": "%"}, "QUIT", 7)])
    )
    # Then supervisor's own parser finds them as they are
    options = ServerOptions()
    options.realize(["-c", str(supervisor.config_path)])
    group = options.configroot.supervisord.process_group_configs[0]
    program = group.process_configs[0]
    assert options.configroot.supervisord.pidfile == str(supervisor.pid_path)
    assert shlex.split(program.command) == words  # as supervisor itself does
    assert program.environment == {"PORT": "1", "SIGN": "%"}
    assert program.stdout_logfile == str(supervisor.logs / "one.log")
    assert (program.stopsignal, program.stopwaitsecs, program.killasgroup, program.stopasgroup) == (3, 7, True, False)


def test_ingest_knows_how_many_processes_there_are_if_they_are_all_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {"DATABASE_URL": "", "REDIS_URL": "", "EVENT_LOG_URL": ""}

    def known(**environ: str) -> str | None:
        environ = {"SLUICE_HOME": str(tmp_path), "INGEST_PROCESSES": "3", **environ}
        return System(StackConfig.from_environ("redis", environ))._environ(urls).get("INGEST_PROCESSES_MAX")

    assert known() == "3"
    assert known(REDIS_URL="redis://shared:6379/0") is None, "other hosts may have some"
    monkeypatch.setenv("INGEST_PROCESSES_MAX", "12")
    assert known() is None, "the user's number stays"


def test_a_long_folder_name_gets_a_short_socket(tmp_path: Path) -> None:
    names = [tmp_path / (letter * 120) for letter in "xy"]
    first, second = (Supervisor(name).socket_path for name in names)
    assert len(str(first)) < 108
    assert first != second
    assert Supervisor(tmp_path / "s").socket_path.parent == tmp_path / "s" or len(str(tmp_path)) > 80


@pytest.mark.parametrize(
    "environ",
    [
        {"INGEST_HOST": "0.0.0.0"},
        {"OPERATOR_HOST": "0.0.0.0", "OPERATOR_PORT": "8081"},
        {"OPERATOR_PORT": "page"},
        {"INGEST_PORT": "http"},
        {"PROMETHEUS": "perhaps"},
        {"DATABASE_URL_FILE": "/run/secrets/url"},
        {"REDIS_URL": "redis://a", "SLUICE_SYSTEM": "/elsewhere"},
    ],
)
def test_what_stops_or_shows_a_system_needs_no_settings_of_a_start(
    system: System, tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def said(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["run.sh", *words])
        main()
        out, err = capsys.readouterr()
        return out + err

    # Given a shell whose settings no start would accept
    monkeypatch.setattr("os.environ", {"SLUICE_HOME": str(system.home), **environ})
    assert "no system runs in" not in said("up")
    assert not system.home.exists()
    # Then each of the other commands finds the folder
    nothing = f"no system runs in {system.home}"
    for command in ("stop", "status", "env"):
        assert nothing in said(command), command
    assert f"there is no log of anything in {system.logs}" in said("logs")
    (system.home / "postgres").mkdir(parents=True)
    assert said("clean", "--yes") == f"deleted the data in {system.home}\n"
    assert not system.home.exists()


def test_the_first_event_is_sent_with_a_key_where_clients_need_one() -> None:
    make_key, curl, body = _first_event("http://127.0.0.1:8080", {}, needs_key=True)
    assert make_key == "  KEY=$(.venv/bin/python -m tasks.keys create trial)"
    assert curl.startswith("  curl -i http://127.0.0.1:8080/api/logs ")
    assert '"Authorization: Bearer $KEY"' in curl
    assert _first_event("http://127.0.0.1:8080", {}, needs_key=False) == [
        "  curl -i http://127.0.0.1:8080/api/logs -H 'Content-Type: application/json' \\", body
    ]  # fmt: skip


def test_the_first_event_trusts_the_certificate_of_ingest_and_names_the_client_s_own() -> None:
    settings = {"INGEST_TLS_CERT": "/etc/my certs/ingest.pem"}
    curl, _ = _first_event("https://localhost:8080", settings, needs_key=False)
    assert curl.startswith("  curl -i https://localhost:8080/api/logs --cacert '/etc/my certs/ingest.pem' -H ")
    curl, _ = _first_event("https://localhost:8080", settings | {"INGEST_TLS_CLIENT": "required"}, needs_key=False)
    assert " --cacert '/etc/my certs/ingest.pem' --cert CLIENT.pem -H " in curl


def test_a_process_that_nobody_reaps_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process whose parent never waits for it, as in a container whose init does not
    program = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            killed: list[int] = []
            monkeypatch.setattr(psutil.Process, "kill", lambda process: killed.append(process.pid))
            # When it is ended, then nothing more is done about the zombie
            _end([child])
            assert child.status() == psutil.STATUS_ZOMBIE
            assert killed == []
        finally:
            parent.kill()
