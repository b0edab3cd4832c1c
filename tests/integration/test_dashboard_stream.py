"""The live page's addresses over HTTP: page, files and stream, with log and control store in memory."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import ingest.dashboard
from checks.testbed.waiting import BUSY_SECONDS, WAIT_SECONDS_MAX
from checks.testbed.wire import Wire, get, post, request, send
from ingest.dashboard.recorder import SystemReaders
from pipeline.control_store.memory import MemoryServer
from pipeline.control_store.memory_history import MemoryHistory
from pipeline.log.memory import MemoryLog
from pipeline.names import Mode
from pipeline.ports.history import COUNTS
from pipeline.settings import Settings
from stack.servers import free_port
from support.running_ingest import RunningIngest, eventually, sample

Start = Callable[..., RunningIngest]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts ingest with a history in memory; `control` and `history` are those of another where they are given."""
    running: list[RunningIngest] = []

    def run(control: MemoryServer | None = None, history: MemoryHistory | None = None, **changes: Any) -> RunningIngest:
        settings = replace(Settings(ingest_port=free_port(), **changes), log_partitions=2)
        control = control or MemoryServer()
        edge = RunningIngest(
            settings,
            control=control,
            make_readers=lambda log: SystemReaders(history or MemoryHistory(control), MemoryLog(server=log)),
        )
        running.append(edge)
        return edge.start()

    yield run
    for edge in running:
        edge.stop()


class Stream:
    """The messages of /events."""

    def __init__(self, port: int, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        self.wire = Wire(port, seconds_max=seconds_max)
        self.wire.send(request(method="GET", path="/events", content_type=None))
        self._text = b""
        while b"\r\n\r\n" not in self._text:
            self._more()
        head, _, self._text = self._text.partition(b"\r\n\r\n")
        self.head = head.decode().lower()

    def _more(self) -> None:
        data = self.wire.socket.recv(1 << 16)
        if not data:
            raise EOFError
        self._text += data

    def block(self) -> str:
        """The next chunk: one message or comment. EOFError at the end."""
        while b"\r\n" not in self._text:
            self._more()
        size, _, rest = self._text.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            raise EOFError
        while len(rest) < length + 2:
            self._more()
            _, _, rest = self._text.partition(b"\r\n")
        self._text = rest[length + 2 :]
        return rest[:length].decode()

    def message(self, kind: str) -> dict[str, Any]:
        """The data of the next message of a kind."""
        while True:
            lines = self.block().strip().split("\n")
            if lines[0] == f"event: {kind}":
                document: dict[str, Any] = json.loads(lines[-1].removeprefix("data: "))
                return document

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.socket.close()


def counted(documents: list[dict[str, Any]], name: str) -> float:
    """The sum of a column, which has a rate for the time since the point before: how many there were."""
    columns = documents[0]["columns"]
    place, at = columns.index(name), columns.index("t")
    rows = [row for document in documents for row in document["points"]]
    total: float = sum((row[place] or 0) * (row[at] - before[at]) for before, row in pairwise(rows))
    return total


# --- The page and its files ------------------------------------------------------------------------


def test_the_page_loads_nothing_but_its_own_files_and_runs_nothing_else(start: Start) -> None:
    port = start().port
    answer = get(port, "/")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    page = answer.body.decode()
    assert "://" not in page
    assert "style=" not in page
    assert "{{" not in page


def test_the_files_may_be_kept_for_ever_since_their_names_change_with_them(start: Start) -> None:
    port = start().port
    names = set(re.findall(r'"/assets/([^"]+)"', get(port, "/").body.decode()))
    assert len(names) == 11
    folder = Path(ingest.dashboard.__file__).parent / "assets"
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    for name in names:
        stem, digest, ending = name.split(".")
        answer = get(port, f"/assets/{name}")
        assert answer.status == 200
        assert answer.body == next(folder.rglob(f"{stem}.{ending}")).read_bytes()
        assert hashlib.sha256(answer.body).hexdigest().startswith(digest)
        assert answer.headers["content-type"] == types[ending]
        assert "immutable" in answer.headers["cache-control"]
    assert get(port, "/assets/page.css").status == 404
    assert get(port, "/assets/..%2f__init__.py").status == 404


@pytest.mark.parametrize("path", ["/", "/events"])
def test_head_is_answered_without_a_body(start: Start, path: str) -> None:
    port = start().port
    answer = send(port, request(method="HEAD", path=path, content_type=None), has_body=False)
    assert answer.status == 200
    assert send(port, request(method="POST", path=path)).status == 405


def test_the_charting_library_is_the_one_that_was_shipped() -> None:
    folder = Path(ingest.dashboard.__file__).parent / "assets" / "vendor"
    lines = [line for line in (folder / "SOURCES").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 3
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


# --- The stream --------------------------------------------------------------------------------------


def test_a_stream_begins_with_all_and_goes_on_each_second(start: Start) -> None:
    edge = start()
    edge.publish(1000.0, mode=Mode.DEGRADED, lag=20_000)
    eventually(lambda: get(edge.port, "/api/logs/health").json["consumerLag"] == 20_000, "it is known")
    with Stream(edge.port) as stream:
        assert "content-type: text/event-stream" in stream.head
        assert "cache-control: no-store" in stream.head
        assert stream.block().startswith("retry: ")
        snapshot = stream.message("snapshot")
        assert snapshot["status"]["mode"] == "degraded"
        assert [event["kind"] for event in snapshot["events"]] == ["rate_changed"]
        # (what came while this process stood still is read at once)
        assert any(_seconds_between_ticks(stream) > 0.7 for _ in range(5))
        assert "events" not in stream.message("tick")  # nothing happened
        edge.publish(100.0, mode=Mode.CRITICAL, lag=60_000)
        while "events" not in (tick := stream.message("tick")):
            pass
        assert [event["count"] for event in tick["events"]] == [2]  # two steps of the rate are one row
        assert tick["events"][0]["data"]["mode"] == "critical"


def _seconds_between_ticks(stream: Stream) -> float:
    stream.message("tick")
    began = time.monotonic()
    stream.message("tick")
    return time.monotonic() - began


def test_offered_and_admitted_are_counted_in_events_and_a_body_refused_unread_as_one(start: Start) -> None:
    edge = start(burst_seconds=1.0)
    edge.publish(1000.0)
    eventually(lambda: post(edge.port, [sample()] * 5).status == 202, "5 events are admitted")
    with Stream(edge.port) as stream:
        documents = [stream.message("snapshot")]
        while not counted(documents, "rate"):  # the first point has nothing before it to be compared with
            documents.append(stream.message("tick"))
        # When the rate is tiny, then a body is refused
        edge.publish(1.0, mode=Mode.CRITICAL)
        eventually(lambda: post(edge.port, sample()).status == 429, "a refusal")
        assert post(edge.port, b"{").status in (400, 429)
        for _ in range(4):
            documents.append(stream.message("tick"))
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while (refused := counted(documents, "s429")) < 0.9:
            assert time.monotonic() < deadline, documents
            documents.append(stream.message("tick"))
    assert counted(documents, "offered") - counted(documents, "admitted") == pytest.approx(refused, abs=0.5)


def test_the_history_of_a_process_outlives_it_and_every_process_shows_the_whole(start: Start) -> None:
    # Given two processes on one control store
    control = MemoryServer()
    history = MemoryHistory(control)
    first, second = start(control, history), start(control, history)
    first.publish(1000.0)
    eventually(lambda: post(first.port, [sample()] * 20).status == 202, "admitted by the first")
    eventually(lambda: post(second.port, [sample()] * 30).status == 202, "admitted by the second")

    # Then the history has the events of both, and one entry a second
    def admitted() -> int:
        entries = history.since("", entries_max=1000)
        return entries[-1].counts[COUNTS.index("admitted")] if entries else 0

    eventually(lambda: admitted() == 50, "both are counted")
    eventually(lambda: len(history.since("", entries_max=1000)) > 5, "some seconds have passed")
    entries = history.since("", entries_max=1000)
    assert (entries[-1].at - entries[0].at) / (len(entries) - 1) > 0.7  # one may be late, and the next one in time
    first.stop()
    with Stream(second.port) as stream:
        snapshot = stream.message("snapshot")
    assert len(snapshot["points"]) >= len(entries)
    lag = snapshot["columns"].index("lags")
    assert isinstance(snapshot["points"][-1][lag], list | None)


def test_the_page_has_the_traffic_by_level_where_levels_are_on(start: Start) -> None:
    # Given a bucket with less than DEBUG's reserve
    edge = start(admission_levels=True, rate_min=1, rate_max=1, burst_seconds=60)
    eventually(lambda: post(edge.port, [sample(severity="ERROR")] * 59).status == 202, "admitted")

    # Then the page tells refused and admitted levels apart
    def levels() -> Any:
        assert post(edge.port, sample(severity="DEBUG")).status == 429
        with Stream(edge.port) as stream:
            return stream.message("snapshot")["status"]["levels"]

    eventually(lambda: levels() is not None and levels()["debug"]["refusedShare"] == 1.0, "shown")
    assert levels()["error"]["refusedShare"] == 0.0


def test_the_page_has_the_traffic_by_protocol_over_all_processes(start: Start) -> None:
    # Given two ingest processes of one system, of which each is used in another protocol
    control = MemoryServer()
    history = MemoryHistory(control)
    one, other = start(control, history), start(control, history)

    def protocols() -> Any:
        assert post(one.port, b'{"short_message":"a"}', path="/gelf").status == 202
        assert post(other.port, {"streams": [{"stream": {}, "values": [5]}]}, path="/loki/api/v1/push").status == 204
        assert post(one.port, sample()).status == 202
        with Stream(other.port) as stream:
            return stream.message("snapshot")["status"]["protocols"] or {}

    def is_shown() -> bool:
        seen = protocols()
        return all(name in seen for name in ("events", "gelf", "loki")) and seen["loki"]["rejected"] > 0

    # Then either page shows all of them, and none that was not used
    eventually(is_shown, "shown")
    seen = protocols()
    assert set(seen) == {"events", "gelf", "loki"}
    assert seen["gelf"]["accepted"] > 0
    assert (seen["gelf"]["rejected"], seen["loki"]["accepted"], seen["events"]["refused"]) == (0, 0, 0)


def test_viewers_beyond_the_limit_are_told_so_in_words(start: Start) -> None:
    edge = start(page_viewers_max=2)
    with Stream(edge.port), Stream(edge.port):
        answer = get(edge.port, "/events")
        assert answer.status == 503
        assert "PAGE_VIEWERS_MAX" in answer.error["message"]
    eventually(lambda: edge.service.viewers.count == 0, "those who left are forgotten")
    with Stream(edge.port) as stream:
        stream.message("snapshot")


def test_a_stop_ends_the_streams_and_is_not_delayed_by_them(start: Start) -> None:
    edge = start()
    with Stream(edge.port) as stream:
        stream.message("snapshot")
        began = time.monotonic()
        edge.begin_stop()
        with pytest.raises((EOFError, ConnectionError)):
            stream.message("nothing of the sort")
        edge.join()
        assert time.monotonic() - began < BUSY_SECONDS


def test_with_the_control_store_away_the_stream_goes_on_with_what_is_known_here(start: Start) -> None:
    edge = start()
    edge.publish(1000.0)
    with Stream(edge.port) as stream:
        stream.message("snapshot")
        edge.control.is_unavailable = True
        while not (tick := stream.message("tick"))["status"]["storeIsAway"]:
            pass
        assert "control store" in tick["status"]["reasons"][0]["what"]
        assert tick["status"]["circuitBreaker"] == "unknown"
        points: list[Any] = []
        began = time.monotonic()
        while len(points) < 2:  # local ones, once those of the history have become old
            assert time.monotonic() - began < WAIT_SECONDS_MAX
            points += stream.message("tick")["points"]
        edge.control.is_unavailable = False
        while (tick := stream.message("tick"))["status"]["storeIsAway"]:
            pass


def test_requests_are_served_as_quickly_with_a_history_that_hangs(start: Start) -> None:
    control = MemoryServer()
    edge = start(control, HangingHistory(control))
    edge.publish(1000.0)
    eventually(lambda: post(edge.port, sample()).status == 202, "an event is admitted")
    took = []
    with Stream(edge.port):
        ends = time.monotonic() + 3.5  # every call of the history begins in that time
        while (began := time.monotonic()) < ends:
            assert post(edge.port, sample()).status in (202, 429)
            took.append(time.monotonic() - began)
        HangingHistory.never.set()
    assert max(took) < BUSY_SECONDS


class HangingHistory(MemoryHistory):
    """A history whose server takes its time."""

    never = threading.Event()

    def add(self, *args: Any) -> None:
        self.never.wait(3 * BUSY_SECONDS)
        super().add(*args)

    def since(self, *args: Any, **kwargs: Any) -> Any:
        self.never.wait(3 * BUSY_SECONDS)
        return super().since(*args, **kwargs)
