"""A server or a program that tests freeze: from then on, none of its threads runs."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from checks.testbed.processes import Program
from pipeline.settings import Settings
from stack.servers import Server

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


def _states(pids: list[int]) -> set[str]:
    return {
        task.read_text().rpartition(")")[2].split()[0]
        for pid in pids
        for task in Path(f"/proc/{pid}/task").glob("*/stat")
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    log = tmp_path / "busy.log"
    made = Server("busy", [sys.executable, "-c", _BUSY], log, "", 0, lambda: "ready" in log.read_text())
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
