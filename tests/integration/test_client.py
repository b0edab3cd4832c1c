"""`python -m ingest.client` against an ingest on a real socket."""

import contextlib
import gzip
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from checks.testbed.processes import ROOT
from checks.testbed.waiting import BUSY_SECONDS, RUN_SECONDS_MAX, WAIT_SECONDS_MAX
from checks.testbed.wire import Wire
from sluice_client.command import with_event_id
from stack.servers import free_port
from support.running_ingest import (
    RunningIngest,
    client_environ,
    edge_settings,
    eventually,
    metric,
    running_ingest,
    sample,
)

LOGHUB = ROOT.parent / "shared" / "data" / "loghub"


@pytest.fixture
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


def ndjson(path: Path, events: list[Any]) -> Path:
    """A file of these events, one a line; bytes are lines as they are."""
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in events]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def command(port: int, *arguments: str | Path) -> tuple[list[str], dict[str, str]]:
    environ = client_environ(f"http://127.0.0.1:{port}")
    return [sys.executable, "-m", "ingest.client", *map(str, arguments)], environ


def client(port: int, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run the client to its end."""
    words, environ = command(port, *arguments)
    done = subprocess.run(
        words, cwd=ROOT, env=environ, input=stdin, capture_output=True, timeout=RUN_SECONDS_MAX, check=False
    )
    return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())


def counts(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The counts at the head of the report's lines."""
    found = {}
    for line in done.stdout.splitlines():
        words = line.rsplit(" ", 1)
        if not line.startswith(" ") and words[-1].isdigit():
            found[words[0]] = int(words[1])
    return found


@pytest.mark.parametrize("options", [(), ("--gzip",), ("--batch", "7"), ("--quiet",)])
def test_all_is_sent_with_ids_and_counted(edge: RunningIngest, tmp_path: Path, options: tuple[str, ...]) -> None:
    events = [sample(message=f"message {n} é \\", attributes={"n": n}) for n in range(450)]
    events[3]["eventId"] = "mine"
    done = client(edge.port, *options, ndjson(tmp_path / "a.ndjson", events))
    assert done.returncode == 0, done.stderr
    assert counts(done) == {"accepted": 450, "repeated": 0, "rejected": 0}
    records = edge.records()
    assert [record.message for record in records] == [one["message"] for one in events]
    assert records[3].event_id == "mine"
    assert len({record.event_id for record in records}) == 450
    assert all(uuid.UUID(record.event_id).version == 7 for record in records if record.event_id != "mine")
    assert done.stderr == ""


@pytest.mark.parametrize("options", [(), ("--quiet",)])
def test_a_terminal_gets_a_progress_bar(edge: RunningIngest, tmp_path: Path, options: tuple[str, ...]) -> None:
    terminal, screen = pty.openpty()
    termios.tcsetwinsize(screen, (24, 80))
    words, environ = command(edge.port, *options, ndjson(tmp_path / "a.ndjson", [sample()]))
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, terminal)
        try:
            done = subprocess.run(
                words,
                cwd=ROOT,
                env=environ,
                stderr=screen,
                stdout=subprocess.PIPE,
                timeout=RUN_SECONDS_MAX,
                check=False,
            )
        finally:
            os.close(screen)
        assert done.returncode == 0
        text = b""
        with contextlib.suppress(OSError):  # its end: nobody has the other side open any more
            while piece := os.read(terminal, 4096):
                text += piece
    assert (b"100%" in text) == (not options)


def test_several_files_and_standard_input(edge: RunningIngest, tmp_path: Path) -> None:
    one = ndjson(tmp_path / "a.ndjson", [sample(message="a")])
    two = ndjson(tmp_path / "b.ndjson", [sample(message="b")])
    done = client(edge.port, one, "-", two, stdin=b"\n" + json.dumps(sample(message="in")).encode())
    assert done.returncode == 0
    assert [record.message for record in edge.records()] == ["a", "in", "b"]


@pytest.mark.skipif(not LOGHUB.is_dir(), reason="loghub is not beside the repository")
def test_real_events_arrive_as_they_were_sent(edge: RunningIngest) -> None:
    files = sorted(LOGHUB.rglob("*.ndjson")) + sorted(LOGHUB.rglob("*.jsonl"))
    if not files:
        pytest.skip("loghub has no NDJSON here")
    sent = [json.loads(line) for line in files[0].read_bytes().splitlines() if line.strip()]
    assert client(edge.port, files[0]).returncode == 0
    assert Counter(record.message for record in edge.records()) == Counter(one["message"] for one in sent)


def test_bad_events_are_told_and_the_good_ones_of_their_batch_go(edge: RunningIngest, tmp_path: Path) -> None:
    events: list[Any] = [sample(message=f"{n}") for n in range(100)]
    for n in range(10, 60):
        events[n] = sample(severity="LOUD")
    events[5] = b'{"correlationId": '
    events[6] = b"[]"
    events[7] = b"\xff\xfe"
    events[70] = {}
    events[71] = b'{"message": "\\ud800"}'
    events[72] = sample(eventId=None) | {"eventId": None}
    done = client(edge.port, ndjson(tmp_path / "a.ndjson", events))
    assert done.returncode == 1
    assert counts(done) == {"accepted": 45, "repeated": 0, "rejected": 55}
    assert "a.ndjson:11: severity is none of" in done.stdout
    assert "a.ndjson:6: the line is no JSON object" in done.stdout
    assert "50 x severity is none of" in done.stdout
    good = [str(n) for n in range(100) if n not in {5, 6, 7, *range(10, 60), 70, 71, 72}]
    assert [record.message for record in edge.records()] == [
        *good[: good.index("73")],
        "Test",
        *good[good.index("73") :],
    ]


def test_bodies_that_are_too_large_are_split(tmp_path: Path) -> None:
    with running_ingest(body_bytes_max=4096, body_events_max=3) as edge:
        events = [sample(message=f"{n}", attributes={"x": "y" * 900}) for n in range(20)]
        events[9]["message"] = "z" * 5000
        done = client(edge.port, ndjson(tmp_path / "a.ndjson", events))
        assert done.returncode == 1
        assert counts(done) == {"accepted": 19, "repeated": 0, "rejected": 1}
        assert "a.ndjson:10: the body is larger than 4096 bytes" in done.stdout
        assert len(edge.records()) == 19


def test_429s_are_waited_for(tmp_path: Path) -> None:
    with running_ingest(rate_min=100, rate_max=100) as edge:
        started = time.monotonic()
        done = client(edge.port, "--batch", "50", ndjson(tmp_path / "a.ndjson", [sample()] * 250))
        assert done.returncode == 0, done.stderr
        assert counts(done) == {"accepted": 250, "repeated": 0, "rejected": 0}
        assert time.monotonic() - started > 1
        assert len(edge.records()) == 250


def test_an_unknown_outcome_is_repeated_with_the_same_ids(edge: RunningIngest, tmp_path: Path) -> None:
    # Given a log that stores, but does not confirm
    edge.log_server.lose_answers()
    words, environ = command(edge.port, ndjson(tmp_path / "a.ndjson", [sample(message=f"{n}") for n in range(10)]))
    with subprocess.Popen(words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: len(edge.records()) >= 10, "sent once")
        edge.log_server.lose_answers(False)
        out, _ = process.communicate(timeout=WAIT_SECONDS_MAX)
    # Then the events are sent again, and counted as such
    assert process.returncode == 0
    assert b"accepted 10\nrepeated 10\nrejected 0" in out
    records = edge.records()
    assert len(records) >= 20
    assert len({record.event_id for record in records}) == 10


def test_a_cut_connection_is_an_unknown_outcome(edge: RunningIngest, tmp_path: Path) -> None:
    # Given a way to the server that loses the first answer
    path = ndjson(tmp_path / "a.ndjson", [sample(message=f"{n}") for n in range(5)])
    with socket.create_server(("127.0.0.1", 0)) as way:
        words, environ = command(way.getsockname()[1], "--quiet", path)
        with subprocess.Popen(words, cwd=ROOT, env=environ, stdout=subprocess.PIPE) as process:
            for loses in (True, False):
                way.settimeout(WAIT_SECONDS_MAX)
                near, _ = way.accept()
                with near, Wire(edge.port) as far:
                    near.settimeout(WAIT_SECONDS_MAX)
                    whole = b""
                    while b"\r\n\r\n" not in whole or len(whole.partition(b"\r\n\r\n")[2]) < _length(whole):
                        whole += near.recv(65536)
                    far.send(whole)
                    assert far.answer().json == {"accepted": 5}
                    if not loses:
                        near.sendall(b'HTTP/1.1 202 Accepted\r\nContent-Length: 14\r\n\r\n{"accepted":5}')
            out, _ = process.communicate(timeout=WAIT_SECONDS_MAX)
    # Then the events were sent again, with the same ids
    assert process.returncode == 0
    assert b"accepted 5\nrepeated 5\nrejected 0" in out
    assert Counter(Counter(record.event_id for record in edge.records()).values()) == {2: 5}


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])


def test_a_server_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    settings = edge_settings()
    words, environ = command(settings.ingest_port, ndjson(tmp_path / "a.ndjson", [sample()]))
    with subprocess.Popen(words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        edge = RunningIngest(settings).start()
        out, _ = process.communicate(timeout=WAIT_SECONDS_MAX)
    edge.stop()
    assert process.returncode == 0
    assert b"accepted 1\nrepeated 0" in out, "a refused connection is no unknown outcome"


def test_patience_ends(tmp_path: Path) -> None:
    started = time.monotonic()
    done = client(free_port(), "--timeout", "1", ndjson(tmp_path / "a.ndjson", [sample()] * 5))
    assert done.returncode == 1
    assert time.monotonic() - started < 1 + 2 * BUSY_SECONDS
    assert counts(done) == {"accepted": 0, "repeated": 0, "rejected": 0, "given up": 5}
    assert "no event was accepted for 1 s" in done.stderr


def test_ctrl_c_ends_it_with_a_report(edge: RunningIngest, tmp_path: Path) -> None:
    edge.log_server.stop()
    eventually(lambda: not edge.service.appender.status(time.monotonic()).answers, "the log is away")
    words, environ = command(edge.port, ndjson(tmp_path / "a.ndjson", [sample()] * 5))
    with subprocess.Popen(
        words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell has what it runs in the background ignore it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - takes no lock
    ) as process:  # fmt: skip
        refused = 'sluice_ingest_answers_total{code="unavailable"}'
        eventually(lambda: metric(edge.port, refused) > 0, "it tries")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=WAIT_SECONDS_MAX)
    assert process.returncode == 130
    assert b"given up 5" in out


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("http://127.0.0.1:1", ("nothing-here.ndjson",)),
        ("ftp://127.0.0.1", ("-",)),
        ("http://127.0.0.1:1", ("--batch", "0", "-")),
        ("http://127.0.0.1:1", ("--timeout", "0", "-")),
        ("http://127.0.0.1:1", ()),
    ],
)
def test_what_cannot_be_tried(url: str, arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ingest.client", *arguments],
        cwd=ROOT, env=client_environ(url), input=b"", capture_output=True, timeout=WAIT_SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr
    assert b"Traceback" not in done.stderr


def test_a_wrong_address_is_not_tried_for_long(edge: RunningIngest, tmp_path: Path) -> None:
    words, environ = command(edge.port, ndjson(tmp_path / "a.ndjson", [sample()]))
    environ["INGEST_URL"] += "/elsewhere"
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, timeout=WAIT_SECONDS_MAX, check=False)
    assert done.returncode == 1
    assert b"404" in done.stderr


def test_a_large_input_is_not_held_in_memory(edge: RunningIngest, tmp_path: Path) -> None:
    path = tmp_path / "large.ndjson"
    line = json.dumps(sample(message="x" * 2000)).encode() + b"\n"
    with path.open("wb") as stream:
        for _ in range(100):
            stream.write(line * 200)
        stream.write(b'{"long": "' + b"x" * (9 << 20) + b'"}\n')
        stream.write(line)
    # VmHWM, since ru_maxrss outlives an exec: it would be the peak of the tests' own process
    script = (
        "import re, sys; from pathlib import Path; from ingest.client.send import main; code = main(sys.argv[1:]); "
        "peak = re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text()); "
        "print('peak', int(peak[1]) // 1024); sys.exit(code)"
    )
    _, environ = command(edge.port)
    done = subprocess.run(
        [sys.executable, "-c", script, "--quiet", str(path)],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert counts(done)["accepted"] == 20_001
    assert "large.ndjson:20001: the line is longer than" in done.stdout
    assert counts(done)["peak"] < 70, "MB; the file has 50"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"{}", {}),
        (b'{ "a" : "\\u00e9" }', {"a": "é"}),
        (b'{"eventId": null, "a": 1.50}', {"a": 1.5}),
    ],
)
def test_an_id_is_put_in_and_nothing_else_changes(line: bytes, kept: dict[str, Any]) -> None:
    found = json.loads(with_event_id(line))
    assert uuid.UUID(found.pop("eventId")).version == 7
    assert found == kept


def test_an_id_that_is_there_stays_with_its_line() -> None:
    line = b'{"a":1e2,  "eventId" : "x"}'
    assert with_event_id(line) is line
    assert json.loads(gzip.decompress(gzip.compress(line)))["eventId"] == "x"
    with pytest.raises(ValueError, match="no JSON object"):
        with_event_id(io.BytesIO(b"{} {}").read())
