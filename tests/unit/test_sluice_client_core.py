"""The Python client's queue, sender, spill folder and end, against a server that answers as a test says."""

import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import sluice_client.core
import sluice_client.spill
from checks.testbed.waiting import BUSY_SECONDS, WAIT_SECONDS_MAX
from pipeline.clock import SystemClock
from sluice_client import AsyncClient, Client, Drop, Reason, SluiceHandler, Stats, bound
from sluice_client.buffer import Item
from sluice_client.core import Core
from sluice_client.ids import uuid7
from sluice_client.spill import Spill
from stack.servers import free_port
from support.running_ingest import eventually
from support.scripted_ingest import Answer, ScriptedIngest, limited, scripted_ingest

MB = 1 << 20
SECONDS_MAX = 60.0  # for what takes some hundredths of a second on a machine that is not busy


@pytest.fixture
def ingest() -> Iterator[ScriptedIngest]:
    with scripted_ingest() as running:
        yield running


def is_balanced(stats: Stats) -> bool:
    """Whether every event is in exactly one place."""
    places = stats.accepted + stats.rejected + stats.dropped + stats.waiting + stats.spilled
    return stats.emitted + stats.adopted == places


def client_of(url: str, **options: Any) -> Client:
    return Client(url, source="app", **{"linger_seconds": 0.02, **options})


def away() -> str:
    return f"http://127.0.0.1:{free_port()}"


# --- Sending ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"gzip": True, "api_key": "k1", "headers": {"X-Team": "a"}}])
def test_events_arrive_with_all_their_fields_in_bodies(ingest: ScriptedIngest, options: dict[str, Any]) -> None:
    with client_of(ingest.url, **options) as client:
        assert client.emit("first", severity="warning", correlation_id="c1", attributes={"a": 1}, timestamp_ms=10**12)
        with bound(correlation="c2", request="r2"):
            client.emit("second", source="other", event_id="mine")
        client.emit("third")
        assert client.flush(SECONDS_MAX)
        stats = client.stats
    assert (stats.emitted, stats.accepted, stats.waiting, stats.last_error) == (3, 3, 0, "")
    first, second, third = ingest.kept
    assert {key: first[key] for key in ("severity", "correlationId", "attributes", "timestamp", "source")} == {
        "severity": "WARN", "correlationId": "c1", "attributes": {"a": 1}, "timestamp": 10**12, "source": "app",
    }  # fmt: skip
    assert (second["correlationId"], second["attributes"]) == ("c2", {"requestId": "r2"})
    assert (second["source"], second["eventId"]) == ("other", "mine")
    assert third["correlationId"].endswith(f":{os.getpid()}")
    assert abs(third["timestamp"] / 1000 - SystemClock().now()) < 60
    assert len(ingest.bodies) <= 2
    if options:
        assert ingest.heads[0]["authorization"] == "Bearer k1"
        assert ingest.heads[0]["x-team"] == "a"


def test_a_server_that_comes_back_gets_everything_once() -> None:
    # Given a server that is away while events come
    port = free_port()
    with client_of(f"http://127.0.0.1:{port}") as client:
        for number in range(500):
            client.emit(f"{number}")
        eventually(lambda: "refused" in client.stats.last_error, "it has tried")
        # When it comes
        with scripted_ingest(port=port) as ingest:
            assert client.flush(SECONDS_MAX)
            stats = client.stats
            assert ingest.messages == Counter(f"{number}" for number in range(500))
            assert [event["message"] for event in ingest.kept] == [f"{number}" for number in range(500)]
    assert (stats.accepted, stats.repeated, stats.dropped) == (500, 0, 0)


def test_a_429_is_waited_for_and_nothing_is_lost(ingest: ScriptedIngest) -> None:
    refused_at: list[float] = []

    def script(_: list[dict[str, Any]]) -> Answer:
        if len(refused_at) < 2:
            refused_at.append(time.monotonic())
            return limited(1)
        return Answer()

    ingest.script = script
    with client_of(ingest.url) as client:
        for number in range(400):
            client.emit(f"{number}")
        assert client.flush(SECONDS_MAX)
        assert time.monotonic() - refused_at[0] > 2.0, "Retry-After was waited for, twice"
    assert ingest.messages == Counter(f"{number}" for number in range(400))
    assert max(map(len, ingest.bodies[2:])) < 400, "bodies are smaller after a 429"


LOW = {"TRACE", "DEBUG", "INFO"}


class Levels:
    """A server that refuses bodies of INFO and below, as ingest does with ADMISSION_LEVELS."""

    def __init__(self, retry_after: int) -> None:
        self.is_short = True
        self.retry_after = retry_after
        self.count = 0  # of refused bodies

    def __call__(self, events: list[dict[str, Any]]) -> Answer:
        if not self.is_short or any(event["severity"] not in LOW for event in events):
            return Answer()
        self.count += 1
        error = {"code": "rate_limited", "message": "for higher levels", "limitedBy": "level"}
        return Answer(429, {"Retry-After": str(self.retry_after)}, error)


def test_an_error_does_not_wait_for_debug_that_is_refused_for_its_level(ingest: ScriptedIngest) -> None:
    # Given a server that wants DEBUG in an hour
    ingest.script = levels = Levels(3600)
    client = client_of(ingest.url)
    for number in range(10):
        client.emit(f"d{number}", severity="DEBUG")
    eventually(lambda: levels.count > 0, "DEBUG is refused")
    # When others come, a DEBUG before and after them
    for name, severity in (("d10", "DEBUG"), ("e0", "ERROR"), ("w0", "WARN"), ("d11", "DEBUG"), ("f0", "FATAL")):
        client.emit(name, severity=severity)
    eventually(lambda: client.stats.accepted == 3, "what is higher is accepted")
    # Then no body has more than one level, and each level has its order
    assert all(len({event["severity"] for event in body} - {"FATAL"}) <= 1 for body in ingest.bodies)
    assert [event["message"] for event in ingest.kept if event["severity"] != "WARN"] == ["e0", "f0"]
    assert client.stats.waiting == 12
    assert is_balanced(client.stats)
    # And the end does not wait for a time that is beyond it
    began = time.monotonic()
    summary = client.close(1800)
    assert time.monotonic() - began < SECONDS_MAX
    assert (summary.unsent, ingest.messages) == (12, Counter(["e0", "f0", "w0"]))
    assert levels.count == 1
    assert is_balanced(summary.stats)


def test_once_a_level_is_admitted_its_events_are_sent_in_their_order(ingest: ScriptedIngest) -> None:
    ingest.script = levels = Levels(1)
    with client_of(ingest.url) as client:
        for number in range(3):
            client.emit(f"d{number}", severity="DEBUG")
        eventually(lambda: levels.count > 0, "DEBUG is refused")
        for number in range(3, 6):
            client.emit(f"d{number}", severity="DEBUG")
            client.emit(f"e{number}", severity="ERROR")
        eventually(lambda: levels.count > 1 and client.stats.accepted == 3, "DEBUG is tried again, and refused")
        levels.is_short = False
        assert client.flush(SECONDS_MAX)
        client.emit("d6", severity="DEBUG")
        client.emit("e6", severity="ERROR")
        assert client.flush(SECONDS_MAX)
        stats = client.stats
    # Then each level has its order
    assert [event["message"] for event in ingest.kept if event["severity"] == "DEBUG"] == [f"d{n}" for n in range(7)]
    assert [event["message"] for event in ingest.kept if event["severity"] == "ERROR"] == ["e3", "e4", "e5", "e6"]
    assert (stats.accepted, stats.repeated, stats.waiting) == (11, 0, 0)
    # And no ERROR took DEBUG with it, also after DEBUG was admitted again
    assert all(len({event["severity"] for event in body}) == 1 for body in ingest.bodies)


def test_the_end_waits_for_a_level_that_is_admitted_in_time(ingest: ScriptedIngest) -> None:
    ingest.script = levels = Levels(1)
    client = client_of(ingest.url)
    client.emit("d0", severity="DEBUG")
    eventually(lambda: levels.count > 0, "DEBUG is refused")
    levels.is_short = False
    client.emit("d1", severity="DEBUG")
    client.emit("e0", severity="ERROR")
    assert client.close(SECONDS_MAX).unsent == 0
    assert ingest.messages == Counter(["d0", "d1", "e0"])


def test_a_segment_of_the_folder_that_is_refused_for_its_level_stops_no_error(
    tmp_path: Path, ingest: ScriptedIngest
) -> None:
    # Given events of an earlier process in the folder
    with client_of(away(), spill_folder=tmp_path, close_seconds=0) as earlier:
        for number in range(20):
            earlier.emit(f"d{number}", severity="DEBUG")
    ingest.script = levels = Levels(1)
    client = client_of(ingest.url, spill_folder=tmp_path)
    eventually(lambda: levels.count > 0, "they are refused")
    # When an ERROR comes
    client.emit("e0", severity="ERROR")
    eventually(lambda: client.stats.accepted == 1, "it is accepted")
    assert (client.stats.adopted, ingest.messages["e0"]) == (20, 1)
    assert is_balanced(client.stats)
    # Then the others are sent from the folder later, once each, and it is empty
    levels.is_short = False
    assert client.flush(SECONDS_MAX)
    eventually(lambda: not files(tmp_path), "the segment is removed")
    assert ingest.messages == Counter(["e0", *(f"d{number}" for number in range(20))])
    assert client.stats.accepted == 21
    assert is_balanced(client.stats)
    assert client.core._buffer.bytes_held == 0, "what is on disk takes no room in the queue"
    client.close()


def test_a_segment_that_is_refused_at_the_end_is_left_for_the_next_start(
    tmp_path: Path, ingest: ScriptedIngest
) -> None:
    with client_of(away(), spill_folder=tmp_path, close_seconds=0) as earlier:
        for number in range(20):
            earlier.emit(f"d{number}", severity="DEBUG")
    ingest.script = levels = Levels(3600)
    client = client_of(ingest.url, spill_folder=tmp_path)
    eventually(lambda: levels.count > 0, "they are refused")
    client.emit("e0", severity="ERROR")
    eventually(lambda: client.stats.accepted == 1, "it is accepted")
    client.emit("d20", severity="DEBUG")
    summary = client.close()
    assert (summary.unsent, summary.stats.spilled, summary.stats.accepted) == (0, 21, 1)
    assert is_balanced(summary.stats)


def test_a_lost_answer_is_repeated_with_the_same_ids(ingest: ScriptedIngest) -> None:
    answers = iter([Answer(is_lost=True)])
    ingest.script = lambda _: next(answers, Answer())
    with client_of(ingest.url) as client:
        for number in range(50):
            client.emit(f"{number}")
        assert client.flush(SECONDS_MAX)
        assert client.stats.repeated == len(ingest.bodies[0])
    assert len({event["eventId"] for event in ingest.kept}) == 50
    assert len(ingest.kept) > 50


def test_only_the_event_that_is_named_is_rejected(ingest: ScriptedIngest) -> None:
    def script(events: list[dict[str, Any]]) -> Answer:
        bad = [index for index, event in enumerate(events) if event["message"] == "bad"]
        problems = [{"index": index, "field": "message", "reason": "is bad"} for index in bad]
        return Answer(422, error={"code": "invalid", "errors": problems}) if bad else Answer()

    ingest.script = script
    with client_of(ingest.url) as client:
        for number in range(20):
            client.emit("bad" if number % 10 == 3 else f"{number}", severity="ERROR")
        assert client.flush(SECONDS_MAX)
        stats = client.stats
    assert (stats.accepted, stats.rejected, stats.dropped) == (18, 2, 0)
    assert stats.drops == {("ERROR", Reason.REJECTED): 2}
    assert is_balanced(stats)


# --- A full queue ----------------------------------------------------------------------------------------------------


def test_a_full_queue_drops_debug_first_and_the_hook_hears_of_all() -> None:
    heard: list[Drop] = []
    client = client_of(away(), queue_bytes_max=MB, on_drop=heard.extend)
    padding = {"padding": "x" * 1000}
    for number in range(900):
        client.emit(f"{number}", severity="ERROR" if number % 3 == 0 else "DEBUG", attributes=padding)
    for _ in range(150):
        client.emit("more", severity="ERROR", attributes=padding)
    stats = client.stats
    assert stats.dropped > 0
    assert {severity for severity, _ in stats.drops} == {"DEBUG"}
    assert stats.waiting * 1200 < MB
    assert is_balanced(stats)
    summary = client.close(0.1)
    assert is_balanced(summary.stats)
    assert summary.unsent + stats.dropped == 1050
    assert Counter({(one.severity, one.reason): one.count for one in heard}).keys() >= {("ERROR", Reason.UNSENT)}
    assert sum(one.count for one in heard) == 1050
    assert "events were not sent" in str(summary)
    assert not client.emit("late")
    assert client.stats.drops[("INFO", Reason.CLOSED)] == 1


def fill(client: Client) -> None:
    while client.stats.dropped == 0:
        client.emit("x" * 60_000, severity="FATAL")


@pytest.mark.parametrize("threads", [1, 20])
def test_emitting_never_blocks_longer_than_set(threads: int) -> None:
    client = client_of(away(), queue_bytes_max=MB)
    fill(client)
    handler = SluiceHandler(client=client)
    object.__setattr__(client.core._options, "block_seconds", 1.0)
    took: list[float] = []

    def log() -> None:
        started = time.monotonic()
        handler.handle(logging.makeLogRecord({"msg": "x" * 60_000, "levelno": 10}))
        took.append(time.monotonic() - started)

    running = [threading.Thread(target=log) for _ in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join(SECONDS_MAX)
    assert len(took) == threads
    assert min(took) >= 1.0
    assert max(took) < 1.0 + BUSY_SECONDS, "none waits for the turn of another: that would be 20 s"
    client.close(0)


def test_room_is_waited_for(ingest: ScriptedIngest) -> None:
    gate = threading.Event()
    ingest.script = lambda _: Answer() if gate.wait(SECONDS_MAX) else Answer(503)
    with client_of(ingest.url, queue_bytes_max=MB, block_seconds=SECONDS_MAX) as client:
        timer = threading.Timer(0.2, gate.set)
        timer.start()
        for number in range(60):
            assert client.emit(f"{number}" + "x" * 60_000)
        assert client.flush(SECONDS_MAX)
        assert client.stats.dropped == 0


def test_many_small_events_are_bounded_in_memory_too() -> None:
    client = client_of(away(), queue_bytes_max=MB)
    for _ in range(8000):
        client.emit("")
    assert client.stats.waiting < MB / 200
    client.close(0)


# --- It leaves its program alone -------------------------------------------------------------------------------------


def test_a_hook_that_logs_into_the_client_starts_no_circle() -> None:
    calls = 0
    logger = logging.Logger("hooked")

    def hook(drops: Sequence[Drop]) -> None:
        nonlocal calls
        calls += 1
        logger.error("lost %s", drops)

    client = client_of(away(), queue_bytes_max=MB, on_drop=hook)
    logger.addHandler(SluiceHandler(client=client))
    fill(client)
    eventually(lambda: calls > 0, "the hook is called")
    emitted = client.stats.emitted
    client.close(0)
    assert client.stats.emitted == emitted


def test_a_hook_that_fails_is_told_and_ends_nothing(ingest: ScriptedIngest, capsys: pytest.CaptureFixture[str]) -> None:
    def hook(_: Sequence[Drop]) -> None:
        raise RuntimeError("bad hook")

    ingest.script = lambda events: Answer(422, error={"code": "invalid"}) if events[0]["message"] == "bad" else Answer()
    with client_of(ingest.url, on_drop=hook) as client:
        client.emit("bad")
        eventually(lambda: client.stats.rejected == 1, "it is rejected")
        client.emit("good")
        assert client.flush(SECONDS_MAX)
    assert ingest.messages == {"good": 1}
    assert "bad hook" in capsys.readouterr().err


def test_a_hook_that_never_returns_stops_neither_the_sending_nor_the_end(
    ingest: ScriptedIngest, capsys: pytest.CaptureFixture[str]
) -> None:
    called, done = threading.Event(), threading.Event()

    def hook(_: Sequence[Drop]) -> None:
        called.set()
        done.wait()

    ingest.script = lambda events: Answer(422, error={"code": "invalid"}) if events[0]["message"] == "bad" else Answer()
    client = client_of(ingest.url, on_drop=hook)
    client.emit("bad")
    assert called.wait(SECONDS_MAX)
    # When the hook does not return, events are sent, and others are dropped
    client.emit("good")
    assert client.flush(SECONDS_MAX)
    client.emit("bad")
    eventually(lambda: client.stats.rejected == 2, "the second one is rejected", seconds_max=SECONDS_MAX)
    # Then the end comes all the same
    closing = threading.Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(SECONDS_MAX)
    is_closed = not closing.is_alive()
    done.set()
    assert is_closed
    assert ingest.messages == {"good": 1}
    assert "on_drop has not returned" in capsys.readouterr().err


def test_a_hook_may_flush_and_close(ingest: ScriptedIngest) -> None:
    flushed: list[bool] = []
    closed = threading.Event()

    def hook(_: Sequence[Drop]) -> None:
        flushed.append(client.flush(SECONDS_MAX))
        client.close()
        closed.set()

    ingest.script = lambda _: Answer(422, error={"code": "invalid"})
    client = client_of(ingest.url, on_drop=hook)
    client.emit("bad")
    assert closed.wait(SECONDS_MAX)
    assert flushed == [False]
    assert client.close().stats.rejected == 1


def test_a_hook_that_closes_the_client_hears_of_the_last_drops(ingest: ScriptedIngest) -> None:
    heard: list[Drop] = []
    may_close = threading.Event()

    def hook(drops: Sequence[Drop]) -> None:
        heard.extend(drops)
        assert may_close.wait(SECONDS_MAX)
        client.close(0)

    ingest.script = lambda _: Answer(422, error={"code": "invalid"})
    client = client_of(ingest.url, on_drop=hook, linger_seconds=60)
    client.emit("bad")
    assert client.flush(SECONDS_MAX)
    eventually(lambda: len(heard) == 1, "the hook is called", seconds_max=SECONDS_MAX)
    reporter = client.core._reporter
    # When it closes the client, and an event is left
    client.emit("left")
    may_close.set()
    # Then it is told of that one too, and never called again
    assert reporter is not None
    reporter.join(SECONDS_MAX)
    assert not reporter.is_alive()
    assert [(one.reason, one.count) for one in heard] == [(Reason.REJECTED, 1), (Reason.UNSENT, 1)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_hook_that_ends_its_thread_is_called_again_though_that_is_still_alive(
    ingest: ScriptedIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    again = threading.Event()
    run = Core._run_reporter

    def run_and_linger(core: Core) -> None:
        try:
            run(core)
        finally:
            again.wait(SECONDS_MAX)

    def hook(_: Sequence[Drop]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            again.set()
        raise SystemExit("enough")

    monkeypatch.setattr(Core, "_run_reporter", run_and_linger)
    monkeypatch.setattr(sluice_client.core, "REPORT_SECONDS", 0.0)
    ingest.script = lambda _: Answer(422, error={"code": "invalid"})
    client = client_of(ingest.url, on_drop=hook)
    client.emit("bad")
    eventually(lambda: calls == 1 and client.core._reporting is None, "it has ended", seconds_max=SECONDS_MAX)
    client.emit("bad")
    eventually(lambda: calls == 2, "it is called again", seconds_max=SECONDS_MAX / 2)
    client.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("how", ["exit", "stderr"])
def test_a_hook_that_ends_the_thread_does_not_end_the_sending(
    ingest: ScriptedIngest, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = threading.Event()

    def hook(_: Sequence[Drop]) -> None:
        called.set()
        if how == "exit":
            raise SystemExit("enough")
        raise RuntimeError("bad hook")

    if how == "stderr":
        monkeypatch.setattr("sys.stderr", None)
    ingest.script = lambda events: Answer(422, error={"code": "invalid"}) if events[0]["message"] == "bad" else Answer()
    client = client_of(ingest.url, on_drop=hook)
    client.emit("bad")
    assert called.wait(SECONDS_MAX)
    first = client.core._reporter
    if how == "exit" and first is not None:
        first.join(SECONDS_MAX)
    client.emit("good")
    assert client.flush(5)
    assert ingest.messages == {"good": 1}
    client.close()


def test_an_interrupted_start_of_the_thread_starts_no_second_one(
    ingest: ScriptedIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "sluice-sender":
            raise KeyboardInterrupt  # a signal handler

    client = client_of(ingest.url)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.emit("one")
    client.emit("two")
    assert client.flush(SECONDS_MAX)
    assert [one.name for one in threading.enumerate()].count("sluice-sender") == 1
    client.close()


def test_a_signal_handler_may_log_while_its_thread_is_in_the_client(ingest: ScriptedIngest) -> None:
    # Given a handler that logs, and a thread that is within the client's lock
    client = client_of(ingest.url)
    before = signal.signal(signal.SIGUSR1, lambda *_: client.emit("from the handler"))
    try:
        with client.core._lock:
            os.kill(os.getpid(), signal.SIGUSR1)
            eventually(lambda: bool(client.core._interrupting), "the handler has run")
        client.emit("after")
        assert client.flush(SECONDS_MAX)
    finally:
        signal.signal(signal.SIGUSR1, before)
        client.close()
    assert ingest.messages == {"from the handler": 1, "after": 1}


def test_a_client_without_events_has_no_thread_and_ends_at_once(ingest: ScriptedIngest) -> None:
    before = set(threading.enumerate())
    client = client_of(ingest.url)
    assert set(threading.enumerate()) <= before
    assert client.close().unsent == 0
    assert client.close().unsent == 0, "twice is harmless"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("ftp://x", {}),
        ("http://", {}),
        ("localhost:8080", {}),
        ("http://x", {"queue_bytes_max": 1000}),
        ("http://x", {"block_seconds": -1}),
        ("http://x", {"timeout_seconds": 0}),
        ("http://x", {"spill_bytes_max": 5}),
        ("http://x", {"block_seconds": float("inf")}),
        ("http://x", {"timeout_seconds": float("inf")}),
        ("http://x", {"api_key": "secret\n"}),
        ("http://x", {"headers": {"X-Name": "\u0142"}}),
        ("http://x/a b", {}),
        ("http://a b", {}),
        (f"http://{'a' * 64}.example", {}),
    ],
)
def test_what_cannot_work_is_said_at_once(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not|least") as caught:
        Client(url, source="app", **options)
    assert "secret" not in str(caught.value)


def test_a_wait_without_end_is_a_long_wait(ingest: ScriptedIngest) -> None:
    with client_of(ingest.url) as client:
        client.emit("one")
        assert client.flush(float("inf"))
        client.close(float("inf"))
    assert client.stats.accepted == 1


# --- The end ---------------------------------------------------------------------------------------------------------


def test_the_end_sends_what_is_queued(ingest: ScriptedIngest) -> None:
    client = client_of(ingest.url, linger_seconds=60)
    for number in range(3000):
        client.emit(f"{number}")
    summary = client.close(SECONDS_MAX)
    assert (summary.unsent, summary.stats.accepted) == (0, 3000)
    assert len(ingest.messages) == 3000


@pytest.mark.parametrize("is_listening", [True, False])
def test_the_end_is_bounded_and_says_what_was_not_sent(is_listening: bool) -> None:
    # Given a server that takes connections, and answers nothing; or none
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}" if is_listening else away()
        client = client_of(url, timeout_seconds=30)
        for number in range(100):
            client.emit(f"{number}")
        if is_listening:
            silent.settimeout(SECONDS_MAX)
            held, _ = silent.accept()
        else:
            eventually(lambda: client.stats.last_error != "", "it has tried")
        started = time.monotonic()
        summary = client.close(0.5)
        assert time.monotonic() - started < 2 * BUSY_SECONDS, "timeout_seconds is 30"
        assert summary.unsent == 100
        assert is_balanced(summary.stats)
        sender = client.core._sender
        assert sender is not None
        sender.join(WAIT_SECONDS_MAX)
        assert not sender.is_alive(), "no thread is left behind"
        if is_listening:
            held.close()


def test_a_wait_that_is_longer_than_the_end_is_not_begun(ingest: ScriptedIngest) -> None:
    ingest.script = lambda _: limited(60)
    client = client_of(ingest.url)
    client.emit("one")
    eventually(lambda: client.stats.last_error.startswith("429"), "it was refused")
    started = time.monotonic()
    assert client.close(30).unsent == 1
    assert time.monotonic() - started < 2 * BUSY_SECONDS


def test_a_forked_child_needs_nothing_new_for_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    # To make a TLS context takes a lock of OpenSSL, which a thread of the parent may hold for ever in the child.
    client = client_of("https://127.0.0.1:1")
    made: list[Any] = []
    monkeypatch.setattr("ssl.create_default_context", made.append)
    monkeypatch.setattr("ssl._create_default_https_context", made.append)
    client.core.after_fork_in_child()
    assert made == []
    client.close(0)


# --- The spill folder ------------------------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ndjson"))


def test_what_finds_no_room_goes_to_disk_and_is_sent_later(tmp_path: Path) -> None:
    port = free_port()
    client = client_of(f"http://127.0.0.1:{port}", queue_bytes_max=MB, spill_folder=tmp_path, block_seconds=SECONDS_MAX)
    for number in range(4000):
        assert client.emit(f"{number}", attributes={"padding": "x" * 800})
    stats = client.stats
    assert stats.spilled > 2000
    assert stats.dropped == 0
    assert is_balanced(stats)
    assert all(path.stat().st_mode & 0o077 == 0 for path in files(tmp_path))
    with scripted_ingest(port=port) as ingest:
        assert client.flush(SECONDS_MAX)
        assert ingest.messages == Counter(f"{number}" for number in range(4000))
        summary = client.close()
    assert (summary.unsent, summary.stats.spilled, summary.stats.accepted) == (0, 0, 4000)
    assert list(tmp_path.iterdir()) == []


def test_a_large_request_under_way_does_not_keep_events_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ingest: ScriptedIngest
) -> None:
    # Given a small queue, of which a request that is not answered takes more than half: the thread that writes to
    # the folder starts after it, since it would take these events itself if it got the lock first
    ingest.script = ingest.hang
    client = client_of(
        ingest.url, queue_bytes_max=MB, spill_folder=tmp_path, block_seconds=SECONDS_MAX, linger_seconds=60
    )
    start_spiller = client.core._start_spiller
    monkeypatch.setattr(client.core, "_start_spiller", lambda: None)
    with client.core._lock:
        for _ in range(420):
            client.emit("x" * 1000)
    client.emit("x")
    eventually(lambda: client.core._buffer.bytes_held > client.core._buffer.bytes_waiting + MB // 2, "it is under way")
    start_spiller()
    # When more events come than the rest has room for
    for _ in range(700):
        if client.stats.dropped == 0:
            client.emit("x" * 1000)
    assert client.stats.dropped == 0
    eventually(lambda: client.stats.spilled > 0, "they are counted, once they are synced")
    client.close(0)


def test_the_folder_is_bounded_and_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    client = client_of(away(), queue_bytes_max=MB, spill_folder=tmp_path, spill_bytes_max=2 * MB)
    for number in range(6000):
        client.emit(f"{number}", severity="ERROR" if number % 10 == 0 else "DEBUG", attributes={"padding": "x" * 800})
    summary = client.close(0.1)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 2 * MB
    assert is_balanced(summary.stats)
    assert summary.stats.emitted == 6000
    assert summary.stats.dropped > 0
    assert sum(path.read_bytes().count(b"\n") for path in files(tmp_path)) == summary.stats.spilled


def test_what_is_not_sent_at_the_end_is_sent_by_the_next_start(tmp_path: Path, ingest: ScriptedIngest) -> None:
    client = client_of(away(), spill_folder=tmp_path)
    for number in range(300):
        client.emit(f"{number}", severity="DEBUG" if number < 100 else "ERROR")
    summary = client.close(0.1)
    assert (summary.unsent, summary.stats.spilled) == (0, 300)
    assert "300 events are in spill files" in str(summary)
    # A segment that was only begun is removed, and a damaged line is counted
    [segment] = files(tmp_path)
    segment.with_name(segment.name.partition("-")[0] + "-00000009-1.part").write_bytes(b"{")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:-1], lines[-1][:20]]))
    with client_of(ingest.url, spill_folder=tmp_path) as again:
        eventually(lambda: again.stats.accepted == 299, "the events of the first process are sent")
        stats = again.stats
    assert len(ingest.messages) == 299
    assert (stats.adopted, stats.dropped, stats.spilled, stats.waiting) == (300, 1, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_segments_of_a_process_that_runs_are_left_to_it(tmp_path: Path, ingest: ScriptedIngest) -> None:
    first = client_of(away(), spill_folder=tmp_path, queue_bytes_max=MB, block_seconds=SECONDS_MAX)
    for _ in range(1500):
        first.emit("x" * 1000)
    eventually(lambda: bool(files(tmp_path)), "there is a segment")
    with client_of(ingest.url, spill_folder=tmp_path) as second:
        second.emit("mine")
        assert second.flush(SECONDS_MAX)
    assert ingest.messages == {"mine": 1}
    assert first.close(0).stats.spilled == 1500


def test_a_segment_is_sent_only_when_its_events_are_counted_as_spilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(away(), queue_bytes_max=MB, spill_folder=tmp_path, block_seconds=SECONDS_MAX)
    spill = client.core._spill
    assert spill is not None
    more: list[int] = []
    write = Core._write

    def watched(core: Core, *words: Any) -> Any:
        written = write(core, *words)
        more.append(sum(segment.events for segment in spill._segments) - core._spilled)  # else `spilled` falls below 0
        return written

    monkeypatch.setattr(Core, "_write", watched)
    for number in range(2000):
        client.emit(f"{number}", attributes={"padding": "x" * 1000})
    client.close(0)
    assert more[0] == 0


def test_events_that_are_spilled_while_the_folder_is_taken_over_are_counted_once(
    tmp_path: Path, ingest: ScriptedIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the events of an earlier process, and a disk that is slow to hand them over
    earlier = client_of(away(), spill_folder=tmp_path)
    for _ in range(10):
        earlier.emit("earlier")
    eventually(lambda: earlier.core._spiller is not None, "it has the folder")
    earlier.close(0)
    may_adopt, adopt = threading.Event(), Spill._adopt_from

    def slow(spill: Spill, lock: Path) -> None:
        may_adopt.wait(SECONDS_MAX)
        adopt(spill, lock)

    monkeypatch.setattr(Spill, "_adopt_from", slow)
    # When a program fills its queue meanwhile
    client = client_of(ingest.url, spill_folder=tmp_path, queue_bytes_max=MB, block_seconds=SECONDS_MAX)
    for number in range(700):
        client.emit(f"{number}", attributes={"padding": "x" * 700})
    threading.Timer(0.5, may_adopt.set).start()

    # Then nothing is counted twice
    def places() -> tuple[int, int, int, int]:
        stats = client.stats
        return stats.adopted, stats.accepted, stats.spilled, stats.waiting

    eventually(lambda: places() == (10, 710, 0, 0), "all are sent")
    assert client.flush(SECONDS_MAX)
    client.close()


def test_events_of_a_process_that_has_just_begun_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process that writes its first segment between two looks of another at the folder
    new, adopting = Spill(tmp_path, MB), Spill(tmp_path, MB)
    glob, looks = Path.glob, 0

    def look(folder: Path, pattern: str) -> list[Path]:
        nonlocal looks
        found = list(glob(folder, pattern))
        looks += 1
        if looks == 2:  # the first one is for the locks of processes that have ended
            new.add(new.write([Item(b"{}", 0, 1)]))
        return found

    monkeypatch.setattr(Path, "glob", look)
    assert adopting.open() == 0
    assert looks == 3
    assert new.first().path.exists()


def test_threads_that_cannot_start_are_no_error_of_the_program(
    tmp_path: Path, ingest: ScriptedIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def limited_start(thread: threading.Thread) -> None:
        if thread.name == "sluice-spiller":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited_start)
    client = client_of(ingest.url, spill_folder=tmp_path)
    client.emit("one")
    assert client.flush(SECONDS_MAX)
    assert client.close().unsent == 0
    assert ingest.messages == {"one": 1}


def test_a_folder_that_cannot_be_left_clean_is_no_error_of_the_program(tmp_path: Path, ingest: ScriptedIngest) -> None:
    client = client_of(ingest.url, spill_folder=tmp_path)
    client.emit("one")
    assert client.flush(SECONDS_MAX)
    [lock] = tmp_path.glob("*.lock")
    lock.unlink()
    lock.mkdir()  # so it can't be removed like a file
    assert client.close().unsent == 0


def test_a_disk_that_fails_loses_nothing_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()

    def fail(*_: object) -> None:
        tried.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spill, "write", fail)
    client = client_of(away(), queue_bytes_max=2 * MB, spill_folder=tmp_path)
    for number in range(1800):  # so many that the queue is more than half full, whatever the sender has taken
        client.emit(f"{number}", attributes={"padding": "x" * 600})
    assert tried.wait(SECONDS_MAX)
    assert client.stats.dropped == 0
    summary = client.close(0.1)
    assert summary.unsent == 1800
    assert is_balanced(summary.stats)


# --- Logging ---------------------------------------------------------------------------------------------------------


def test_a_record_keeps_extra_exception_and_stack(ingest: ScriptedIngest) -> None:
    handler = SluiceHandler(ingest.url, source="app", level="DEBUG", linger_seconds=0.01)
    logger = logging.Logger("shop.cart", logging.DEBUG)
    logger.addHandler(handler)
    try:
        int("no such thing")
    except ValueError:
        logger.exception("failed %d", 7, extra={"user": {"id": 5}, "correlation_id": "c9"}, stack_info=True)
    logger.debug("%d is wrong", "text")  # the arguments do not fit: logging prints it, and nothing is raised
    logger.debug("fine")
    handler.close()
    event, fine = ingest.kept
    attributes = event["attributes"]
    assert (event["message"], event["severity"], event["correlationId"]) == ("failed 7", "ERROR", "c9")
    assert attributes["logger"] == "shop.cart"
    assert attributes["user.id"] == 5
    assert attributes["exception.type"] == "ValueError"
    assert "no such thing" in attributes["exception.message"]
    assert attributes["exception.stacktrace"].startswith("Traceback")
    assert attributes["function"] == "test_a_record_keeps_extra_exception_and_stack"
    assert "test_a_record" in attributes["stack_info"]
    assert (fine["message"], fine["severity"]) == ("fine", "DEBUG")
    assert set(fine["attributes"]) == {"logger", "file", "line", "function"}


def test_an_extra_with_the_name_of_an_attribute_of_the_record_is_kept_beside_it(ingest: ScriptedIngest) -> None:
    handler = SluiceHandler(ingest.url, source="app", linger_seconds=0.01)
    logger = logging.Logger("shop.cart")
    logger.addHandler(handler)
    logger.warning("read", extra={"file": "orders.csv", "line": 7, "logger": "mine", "exception.type": "none"})
    handler.close()
    [event] = ingest.kept
    attributes = event["attributes"]
    assert (attributes["logger"], attributes["extra.logger"]) == ("shop.cart", "mine")
    assert (attributes["file"], attributes["extra.file"]) == ("test_sluice_client_core.py", "orders.csv")
    assert attributes["line"] != attributes["extra.line"] == 7
    assert attributes["exception.type"] == "none"


def test_an_error_that_is_logged_after_its_request_has_the_ids_of_the_request(ingest: ScriptedIngest) -> None:
    handler = SluiceHandler(ingest.url, source="app", linger_seconds=0.01)
    logger = logging.Logger("server")
    logger.addHandler(handler)
    # Given a request that fails, and a server that logs its error outside of it, as uvicorn does
    try:
        with bound(correlation="c1", request="r1"):
            int("no number")
    except ValueError as error:
        logger.exception("failed")
        # When it is logged within another request, that one counts
        with bound(correlation="c2", request="r2"):
            logger.exception("seen again", exc_info=error)
    logger.error("without an exception")
    handler.close()
    ids = {one["message"]: (one["correlationId"], one["attributes"].get("requestId")) for one in ingest.kept}
    assert ids["failed"] == ("c1", "r1")
    assert ids["seen again"] == ("c2", "r2")
    assert ids["without an exception"][1] is None


def test_an_error_object_of_several_requests_has_the_ids_of_the_last_one(ingest: ScriptedIngest) -> None:
    handler = SluiceHandler(ingest.url, source="app", linger_seconds=0.01)
    logger = logging.Logger("server")
    logger.addHandler(handler)
    # Given one error for all who wait for the same connection, each in a request with a step that has an id of its own
    shared = ConnectionError("no connection")
    for request in ("r1", "r2"):
        try:
            with bound(correlation="c", request=request), bound(correlation=f"step of {request}"):
                raise shared
        except ConnectionError:
            logger.exception("failed in %s", request)
    handler.close()
    ids = {one["message"]: (one["correlationId"], one["attributes"]["requestId"]) for one in ingest.kept}
    assert ids == {f"failed in {one}": (f"step of {one}", one) for one in ("r1", "r2")}


def test_a_filter_is_respected_and_a_formatter_adds_nothing(ingest: ScriptedIngest) -> None:
    handler = SluiceHandler(ingest.url, source="app")
    handler.setFormatter(logging.Formatter("<%(message)s>"))
    handler.addFilter(lambda record: record.name != "noisy")
    for name in ("noisy", "good"):
        handler.handle(logging.makeLogRecord({"name": name, "msg": name, "levelno": 20}))
    handler.close()
    assert ingest.messages == {"good": 1}


def test_a_handler_needs_an_address_or_a_client() -> None:
    with pytest.raises(ValueError, match="url and source"):
        SluiceHandler()
    gc.collect()


async def test_the_async_client_blocks_no_loop(ingest: ScriptedIngest) -> None:
    import asyncio

    # Given a server that answers once the loop has gone on while an event waited for room
    gate = threading.Event()
    ingest.script = lambda _: Answer() if gate.wait(SECONDS_MAX) else Answer(503)
    emitted = 0

    async def tick() -> None:
        seen = waits = 0
        while waits < 20:
            await asyncio.sleep(0.01)
            waits = waits + 1 if emitted == seen > 0 else 0
            seen = emitted
        gate.set()

    ticking = asyncio.create_task(tick())
    options: dict[str, Any] = {"queue_bytes_max": MB, "block_seconds": SECONDS_MAX, "linger_seconds": 0.01}
    async with AsyncClient(ingest.url, source="app", **options) as client:
        # When more comes than there is room for, Then all of it is accepted, since no wait blocks the loop
        for number in range(40):
            assert await client.emit(f"{number}" + "x" * 60_000)
            emitted += 1
        assert emitted == 40
        assert gate.is_set()
        assert await client.flush(SECONDS_MAX)
        assert client.stats.accepted == 40
    await ticking


async def test_a_flush_that_is_cancelled_leaves_nothing_behind() -> None:
    import asyncio

    client = AsyncClient(away(), source="app")
    await client.emit("one")
    threads = set(threading.enumerate())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.flush(SECONDS_MAX), 0.1)
    assert set(threading.enumerate()) <= threads, "asyncio.run would wait for the thread"
    assert client._client.core._flushes == 0
    assert not await client.flush(0.05)
    await client.close(0)


def test_a_wrong_key_keeps_the_events_and_is_told(ingest: ScriptedIngest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sluice_client.core, "MISDIRECTED_SECONDS", 0.1)
    answers = iter([Answer(401, error={"code": "unauthorized", "message": "no key"})] * 2)
    ingest.script = lambda _: next(answers, Answer())
    with client_of(ingest.url) as client:
        client.emit("one")
        eventually(lambda: client.stats.last_error == "401 no key", "it is told")
        assert client.flush(SECONDS_MAX)
    assert ingest.messages == {"one": 1}


def test_a_folder_that_two_threads_begin_to_use_at_once_has_one_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the sender, which takes the folder over, and a `close` that spills meanwhile
    both = threading.Barrier(2)

    def meet() -> str:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return uuid7()

    monkeypatch.setattr(sluice_client.spill, "uuid7", meet)
    spill = Spill(tmp_path, MB)
    threads = [
        threading.Thread(target=use) for use in (spill.open, lambda: spill.add(spill.write([Item(b"{}", 0, 1)])))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS_MAX)
    # Then it has one lock, and what was written is there
    assert (len([*tmp_path.glob("*.lock")]), len([*tmp_path.glob("*.ndjson")])) == (1, 1)
    spill.close()
