"""A server or a program that tests freeze: from then on, none of its threads runs."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from checks.testbed.processes import Program
from checks.testbed.waiting import wait_until
from pipeline.settings import Settings
from stack.servers import Server, ServerError, family, runs

# Threads that are always in a system call or at work, and a main thread that sleeps, as a JVM's does.
_BUSY = """
import os, threading, time
def work():
    while True:
        os.getppid()
for _ in range(8):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
time.sleep(600)
"""


# A main process that starts another all the time, as PostgreSQL does for each connection.
_FORKING = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    if os.fork() == 0:
        time.sleep(0.1)
        os._exit(0)
"""


def _states(pids: list[int]) -> set[str]:
    states = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for task in list(Path(f"/proc/{pid}/task").iterdir()):
                states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states


def _server(tmp_path: Path, program: str) -> Server:
    log = tmp_path / "busy.log"
    return Server("busy", [sys.executable, "-c", program], log, "", 0, lambda: "ready" in log.read_text())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = _server(tmp_path, _BUSY)
    try:
        yield made.start()
    finally:
        made.kill()


@pytest.fixture
def forking(tmp_path: Path) -> Iterator[Server]:
    made = _server(tmp_path, _FORKING)
    try:
        yield made.start()
    finally:
        made.kill()


def test_a_frozen_server_has_no_thread_that_still_runs(server: Server) -> None:
    for _ in range(20):
        server.freeze()
        assert _states([server.pid]) == {"T"}
        server.thaw()
        time.sleep(0.01)  # noqa: TID251 - its threads go on


def test_a_frozen_program_has_no_thread_that_still_runs(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(_BUSY)
    program = Program("busy", ["busy"], Settings(), tmp_path)
    program.root = tmp_path
    program.start()
    try:
        for _ in range(20):
            program.freeze()
            assert _states([program.pid]) == {"T"}
            program.thaw()
            time.sleep(0.01)  # noqa: TID251 - its threads go on
    finally:
        psutil.Process(program.pid).kill()
        program.stop()


def test_processes_that_are_started_meanwhile_are_frozen_too(forking: Server) -> None:
    for _ in range(20):
        forking.freeze()
        assert _states([member.pid for member in forking.family()]) <= {"T", "Z"}
        forking.thaw()
        time.sleep(0.01)  # noqa: TID251 - it starts others


def test_processes_that_are_started_meanwhile_are_killed_too(forking: Server) -> None:
    group = forking.pid  # its own session's, as is its children's
    wait_until(lambda: len(forking.family()) > 20, "it starts others")
    forking.kill()
    assert not [one for one in psutil.process_iter() if _group_of(one) == group and runs(one)]


def _group_of(process: psutil.Process) -> int | None:
    with contextlib.suppress(OSError):
        return os.getpgid(process.pid)
    return None


def test_where_one_does_not_stop_all_continue(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process that no SIGSTOP reaches, as one that waits for a disk
    monkeypatch.setattr(family, "wait_stopped", _never)
    # When the server should freeze
    with pytest.raises(ServerError, match="has not stopped"):
        server.freeze()
    # Then it is not left half frozen
    wait_until(lambda: _states([server.pid]) & {"R", "S"}, "it runs")


def _never(*_: object, **__: object) -> None:
    raise ServerError("process 1 has not stopped")


def test_a_process_that_ends_during_the_look_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", _gone)
    family.wait_stopped([psutil.Process()], seconds_max=0.0)


def _gone(_path: Path) -> Iterator[Path]:
    raise FileNotFoundError(2, "No such file or directory")


def test_a_server_is_let_go_on_or_started_again(server: Server) -> None:
    server.freeze()
    server.ensure_running()
    wait_until(lambda: _states([server.pid]) & {"R", "S"}, "it runs")
    pid = server.pid
    server.kill()
    server.ensure_running()
    assert server.pid != pid


def test_a_program_is_let_go_on_or_started_again(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(_BUSY)
    program = Program("busy", ["busy"], Settings(), tmp_path)
    program.root = tmp_path
    program.start()
    try:
        program.freeze()
        program.ensure_running()
        wait_until(lambda: _states([program.pid]) & {"R", "S"}, "it runs")
        pid = program.pid
        program.kill()
        program.ensure_running()
        assert program.pid != pid
        # And where it has just ended by itself, a kill is none
        psutil.Process(program.pid).kill()
        wait_until(lambda: not program.is_running, "it has ended")
        program.kill()
    finally:
        program.stop(seconds_max=0.0)
