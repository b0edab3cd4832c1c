"""`./run.sh logs`: follows the files of a system in a terminal, which gets no control characters from them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from checks.testbed.processes import ROOT
from checks.testbed.waiting import WAIT_SECONDS_MAX
from stack.config import StackConfig
from stack.servers import ServerError, wait_ended
from stack.system import System


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "postgres.log").write_bytes(b"begun\n")
    return tmp_path


@pytest.fixture
def logs(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "stack", "logs", "postgres"]
    environ = {"PATH": os.defpath, "SLUICE_HOME": str(home)}
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
        yield following
        following.kill()


def line_of(following: subprocess.Popen[bytes]) -> bytes:
    """The next line; the test's own time limit ends it if there is none."""
    assert following.stdout is not None
    return following.stdout.readline()


def write(stream: IO[bytes], text: bytes) -> None:
    stream.write(text)
    stream.flush()


def test_control_characters_of_a_file_do_not_reach_the_terminal(home: Path, logs: subprocess.Popen[bytes]) -> None:
    assert line_of(logs) == b"begun\n"
    with (home / "logs" / "postgres.log").open("ab") as file:
        # Given PostgreSQL's own words about an event's id, and bytes that are no text
        write(file, "DETAIL:  Key (event_id)=(\x1b[2J\x1b]0;mine\x07ü\u202e) already exists.\r\n".encode())
        assert line_of(logs) == (
            "DETAIL:  Key (event_id)=(\\x1b[2J\\x1b]0;mine\\x07ü\\u202e) already exists.\\r\n".encode()
        )
        write(file, b"\ta\x9b1m\n")
        assert line_of(logs) == b"\ta\\x9b1m\n"
        # And a character that comes in two parts
        write(file, b"f\xc3")
        write(file, b"\xbcnf\n")
        assert line_of(logs) == "fünf\n".encode()


def test_a_file_that_is_replaced_or_cut_is_followed(home: Path, logs: subprocess.Popen[bytes]) -> None:
    path = home / "logs" / "postgres.log"
    assert line_of(logs) == b"begun\n"
    path.rename(path.with_suffix(".log.1"))
    path.write_bytes(b"a new file\n")
    assert line_of(logs) == b"a new file\n"
    path.write_bytes(b"")
    with path.open("ab") as file:
        write(file, b"cut\n")
        assert line_of(logs) == b"cut\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_what_it_runs(logs: subprocess.Popen[bytes], number: int) -> None:
    assert line_of(logs) == b"begun\n"
    children = psutil.Process(logs.pid).children(recursive=True)
    logs.send_signal(number)
    said, complaints = logs.communicate(timeout=WAIT_SECONDS_MAX)
    assert (said, complaints, logs.returncode) == (b"", b"", -number)
    wait_ended(children)


def test_a_reader_that_goes_away_ends_it_without_a_word(home: Path, logs: subprocess.Popen[bytes]) -> None:
    assert line_of(logs) == b"begun\n"
    assert logs.stdout is not None
    logs.stdout.close()
    with (home / "logs" / "postgres.log").open("ab") as file:
        write(file, b"more\n")
    assert logs.wait(WAIT_SECONDS_MAX) == 0
    assert logs.stderr is not None
    assert logs.stderr.read() == b""


def test_a_log_that_is_missing_is_told(home: Path) -> None:
    from stack.__main__ import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUICE_HOME", str(home))
        assert main(["logs", "ingest-0"]) == 1


def test_the_end_of_a_log_in_an_error_has_no_control_characters(home: Path) -> None:
    system = System(StackConfig.from_environ("redis", {"SLUICE_HOME": str(home)}))
    (home / "logs" / "postgres.log").write_bytes(b"one \x1b[2J\ntwo\x9b\n")
    (system.logs / "beat.log").write_text("")
    assert system.tail("beat").startswith("(nothing yet: if this machine is very busy")
    assert str(ServerError(f"postgres ends:\n{system.tail('postgres')}")) == "postgres ends:\none \\x1b[2J\ntwo\ufffd"
