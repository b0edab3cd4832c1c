"""Refusals that are written before a request object exists: which requests get one, and what follows on the wire."""

import gzip
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from checks.testbed.waiting import WAIT_SECONDS_MAX
from checks.testbed.wire import Wire, get, post, request
from ingest.http.protocol import IngestProtocol
from ingest.http.request import IngestHttp
from pipeline.log.memory import MemoryLog
from support.calls import calls_of
from support.running_ingest import RunningIngest, eventually, metric, running_ingest, sample

BODY = json.dumps(sample()).encode()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The targets of all requests of which an object was made."""
    targets: list[bytes] = []
    make = IngestHttp._make_request

    def noted(http: IngestHttp, head: bytes, *groups: bytes) -> None:
        targets.append(groups[1])
        make(http, head, *groups)

    monkeypatch.setattr(IngestHttp, "_make_request", noted)
    return targets


@pytest.fixture(scope="module")
def indebted() -> Iterator[RunningIngest]:
    """Ingest whose bucket is empty for the next quarter of an hour."""
    with running_ingest(rate_min=1, rate_max=1, request_seconds_max=3.0) as running:
        eventually(lambda: post(running.port, [sample()] * 1000).status == 202, "a large body passes")
        yield running


@pytest.fixture
def edge(indebted: RunningIngest, monkeypatch: pytest.MonkeyPatch) -> RunningIngest:
    """The same, and it knows it: what it was told of the bucket holds for the whole test, and not for a second."""
    monkeypatch.setattr("ingest.admission.FILL_SECONDS_MAX", WAIT_SECONDS_MAX)
    assert post(indebted.port, sample()).status == 429
    return indebted


def test_a_plain_request_is_refused_without_an_object_and_like_any_other(
    edge: RunningIngest, made: list[bytes]
) -> None:
    before = metric(edge.port, 'sluice_ingest_answers_total{code="rate_limited"}')
    made.clear()
    with Wire(edge.port) as wire:
        # Given a connection that is known, since its first bytes may come before its task
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        # When the same is refused by the handler (a query makes it less than plain) and before it
        wire.send(request(BODY, path="/api/logs?x"))
        by_handler = wire.answer()
        wire.send(request(BODY))
        at_once = wire.answer()
    # Then only the former became an object, and the answers tell the same
    assert made == [b"/healthz", b"/api/logs?x"]
    assert (at_once.status, at_once.error["code"]) == (429, "rate_limited")
    assert at_once.body == by_handler.body
    assert list(at_once.headers) == list(by_handler.headers)
    assert at_once.headers["connection"] == "keep-alive"
    assert at_once.headers["ratelimit-policy"] == by_handler.headers["ratelimit-policy"]
    assert at_once.headers["ratelimit"].endswith(f";t={at_once.headers['retry-after']}")
    assert int(at_once.headers["retry-after"]) >= 1
    assert at_once.headers["x-request-id"] != by_handler.headers["x-request-id"]
    assert metric(edge.port, 'sluice_ingest_answers_total{code="rate_limited"}') == before + 2


def test_a_compressed_body_is_refused_as_early(edge: RunningIngest, made: list[bytes]) -> None:
    made.clear()
    with Wire(edge.port) as wire:
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        wire.send(request(gzip.compress(BODY, mtime=0), headers={"Content-Encoding": "gzip"}))
        assert wire.answer().status == 429
    assert made == [b"/healthz"]


V9 = "application/vnd.elasticsearch+json;compatible-with=9"


@pytest.mark.parametrize(
    ("protocol", "target", "media_type", "headers", "status"),
    [
        ("lines", "/api/logs?format=lines", "text/plain", {}, 429),
        ("lines", "/api/logs/lines", None, {"Content-Encoding": "zstd"}, 429),
        ("otlp", "/v1/logs", "application/json", {}, 429),
        ("otlp", "/v1/logs", "application/x-protobuf", {"Content-Encoding": "gzip"}, 429),
        ("elasticsearch", "/_bulk", "application/x-ndjson", {}, 429),
        ("elasticsearch", "/_bulk", "application/x-ndjson", {"Accept": V9}, 429),
        ("loki", "/loki/api/v1/push", "application/x-protobuf", {"Content-Encoding": "snappy"}, 429),
        ("splunk", "/services/collector/event", None, {"Authorization": "Splunk TOKEN"}, 503),
        ("gelf", "/gelf", None, {"Content-Encoding": "gzip,deflate"}, 429),
    ],
)
def test_other_protocols_are_refused_as_early_and_in_their_own_form(
    edge: RunningIngest, made: list[bytes], protocol: str, target: str, *, media_type: str | None,
    headers: dict[str, str], status: int,
) -> None:  # fmt: skip
    count = f'sluice_ingest_protocol_requests_total{{protocol="{protocol}",status="{status}"}}'
    events = f'sluice_ingest_protocol_events_total{{outcome="refused",protocol="{protocol}"}}'
    before = metric(edge.port, count), metric(edge.port, events)
    made.clear()
    with Wire(edge.port) as wire:
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        # When the body does not even come, first for a target that the handler answers
        other = target + ("&x" if "?" in target else "?x")
        wire.send(request(length=1000, path=other, content_type=media_type, headers=headers))
        by_handler = wire.answer()
        wire.send(b" " * 1000 + request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        wire.send(request(length=1000, path=target, content_type=media_type, headers=headers))
        at_once = wire.answer()
    # Then both answers tell the same, and both are counted
    assert made == [b"/healthz", other.encode(), b"/healthz"]
    assert (at_once.status, at_once.body) == (by_handler.status, by_handler.body)
    assert at_once.status == status
    assert list(at_once.headers) == list(by_handler.headers)
    assert at_once.headers.get("content-type") == by_handler.headers.get("content-type")
    assert (metric(edge.port, count), metric(edge.port, events)) == (before[0] + 2, before[1] + 2)


def test_the_clients_request_id_comes_back(edge: RunningIngest) -> None:
    with Wire(edge.port) as wire:
        for given, is_taken in (("order-77", True), ("no\\name", False)):
            wire.send(request(BODY, headers={"X-Request-ID": given}))
            assert (wire.answer().headers["x-request-id"] == given) is is_taken


def test_pipelined_requests_are_each_refused_in_order(edge: RunningIngest, made: list[bytes]) -> None:
    # Given requests in one piece, with others among them and the last one cut
    names = [f"r{number}" for number in range(5)]
    refused = [request(BODY, headers={"X-Request-ID": name}) for name in names]
    alive = request(method="GET", path="/healthz", content_type=None, headers={"X-Request-ID": "alive"})
    with Wire(edge.port) as wire:
        wire.send(alive)
        wire.answer()
        wire.send(b"".join([*refused[:3], alive, refused[3], refused[4][:-7]]))
        found = [wire.answer().headers["x-request-id"] for _ in range(5)]
        wire.send(refused[4][-7:] + alive)
        found += [wire.answer().headers["x-request-id"] for _ in range(2)]
    assert found == [*names[:3], "alive", *names[3:], "alive"]
    assert made.count(b"/api/logs") < len(names)


def test_each_target_is_refused_in_its_own_form_while_the_gate_counts_as_closed(
    edge: RunningIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given that a look at the gate is good for long
    monkeypatch.setattr("ingest.http.early_rejection.CLOSED_SECONDS_MAX", WAIT_SECONDS_MAX)
    own = request(BODY)
    bulk = request(b"{}", path="/_bulk", content_type="application/x-ndjson")
    newer = request(b"{}", path="/_bulk", content_type="application/x-ndjson", headers={"Accept": V9})
    with Wire(edge.port) as wire:
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        # When requests to several targets come in one piece, each more than once
        wire.send(b"".join([own, own, bulk, bulk, newer, own, newer, bulk]))
        answers = [wire.answer() for _ in range(8)]
    # Then each has the form of its target
    forms = [(answer.headers["content-type"], "errors" in answer.json or "status" in answer.json) for answer in answers]
    json_form = ("application/json", False)
    assert [form == json_form for form in forms] == [True, True, False, False, False, True, False, False]
    assert forms[2] == forms[3] == forms[7]
    assert forms[4] == forms[6] == (V9, True)


def test_a_repeated_head_is_refused_by_a_fraction_of_the_calls_of_a_new_one(
    edge: RunningIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given requests of which lengths and ids differ, and some of which another field does
    monkeypatch.setattr("ingest.http.early_rejection.CLOSED_SECONDS_MAX", WAIT_SECONDS_MAX)
    repeated = [request(BODY + b" " * number, headers={"X-Request-ID": f"r{number}"}) for number in range(20)]
    new = [request(BODY, headers={"X-Other": str(number)}) for number in range(20)]
    counts = calls_of(edge.port, 429, [repeated, new], monkeypatch)
    # Then the former are refused by a few calls of functions: each is a part of the CPU of a refusal
    of_repeated, of_new = (min(one) for one in counts)
    assert of_repeated * 2 <= of_new
    assert max(counts[0][1:]) == of_repeated, "each of them"


def test_tokens_that_come_unexpectedly_reach_a_connection_that_was_refused(
    edge: RunningIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(BODY))
        assert wire.answer().status == 429
        # When tokens come that nobody predicted
        monkeypatch.setattr(edge.service.admission, "_left", 1)

        def status() -> int:
            wire.send(request(BODY))
            return wire.answer().status

        # Then the connection that was refused gets them
        eventually(lambda: status() == 202, "a body passes")


@pytest.mark.parametrize("size", [1, 4000])
def test_a_body_that_comes_later_is_thrown_away(edge: RunningIngest, made: list[bytes], size: int) -> None:
    body = b" " * size
    with Wire(edge.port) as wire:
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        for _ in range(3):
            # When the answer is there before the body is
            wire.send(request(length=size))
            assert wire.answer().status == 429
            wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.send(body[: size // 2])
            # Then what follows the body is the next request
            wire.send(body[size // 2 :] + request(BODY))
            assert wire.answer().status == 429
    assert b"/api/logs" not in made


def test_a_refused_body_that_trickles_in_is_cut_off(edge: RunningIngest) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        wire.send(request(length=100))
        assert wire.answer().status == 429
        for _ in range(90):  # less than the body has
            wire.send(b" ")
            if _closes(wire):
                return
    pytest.fail("it may go on for ever")


def _closes(wire: Wire) -> bool:
    """Wait for a moment; whether the server has closed by then. It must not have said anything."""
    wire.socket.settimeout(0.1)
    try:
        assert wire.socket.recv(1) == b""
    except TimeoutError:
        return False
    finally:
        wire.socket.settimeout(WAIT_SECONDS_MAX)
    return True


def test_the_time_of_a_body_that_came_whole_does_not_end_the_connection(edge: RunningIngest) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        wire.send(request(length=len(BODY)))
        assert wire.answer().status == 429
        wire.send(BODY)
        assert not any(_closes(wire) for _ in range(33)), "an idle connection lives on"
        wire.send(request(BODY))
        assert wire.answer().status == 429


@pytest.mark.parametrize("path", ["/api/logs", "/api/logs?x"])
def test_a_request_within_a_refused_body_is_no_request(edge: RunningIngest, path: str) -> None:
    inner = request(BODY)
    with Wire(edge.port) as wire:
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        # Given a refusal that came before the body
        wire.send(request(length=len(inner), path=path))
        assert wire.answer().status == 429
        # When the body looks like a request
        wire.send(inner)
        wire.send(request(method="GET", path="/healthz", content_type=None))
        # Then only what follows it is one
        assert wire.answer().status == 200


def test_answers_keep_their_order(indebted: RunningIngest, monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[IngestProtocol] = []
    connected = IngestProtocol.connection_made

    def noted(protocol: IngestProtocol, transport: Any) -> None:
        connections.append(protocol)
        connected(protocol, transport)

    monkeypatch.setattr(IngestProtocol, "connection_made", noted)
    assert post(indebted.port, sample()).status == 429
    with Wire(indebted.port) as wire:
        alive = request(method="GET", path="/healthz", content_type=None)
        wire.send(alive)
        wire.answer()
        # When two pieces come before the connection's task has seen the first
        loop, protocol = connections[-1].loop, connections[-1]

        def both() -> None:
            protocol.data_received(alive)
            protocol.data_received(request(BODY))

        loop.call_soon_threadsafe(both)
        assert [wire.answer().status for _ in range(2)] == [200, 429]


class _Gated(MemoryLog):
    """A log whose appends wait until they may."""

    gate = threading.Event()

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        assert self.gate.wait(WAIT_SECONDS_MAX)
        super().append(entries)


def test_a_request_that_is_being_answered_comes_first() -> None:
    log = _Gated()
    with running_ingest(log, rate_min=1, rate_max=1, append_seconds_max=30) as edge, Wire(edge.port) as wire:
        # Given a request that waits for its append, and a bucket that is empty since
        wire.send(request(BODY))
        eventually(lambda: _refused(edge), "the bucket is empty")
        # When another one comes on the same connection
        wire.send(request(BODY))
        assert not _closes(wire)
        log.gate.set()
        # Then it waits for its turn
        assert [wire.answer().status for _ in range(2)] == [202, 429]


def _refused(edge: RunningIngest) -> bool:
    """Whether events are refused now; one that is taken waits for the gate, and is left behind."""
    with Wire(edge.port, seconds_max=0.2) as wire:
        wire.send(request(BODY))
        try:
            return wire.answer().status == 429
        except TimeoutError:
            return False


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(method="GET", path="/healthz", content_type=None), 200),
        (request(method="GET", path="/api/logs/health", content_type=None), 200),
        (request(method="GET", content_type=None), 405),
        (request(BODY, path="/api/logs/"), 429),
        (request(BODY, path="/api/logsx"), 404),
        (request(BODY, content_type="text/plain"), 415),
        (request(BODY, content_type=None), 415),
        (request(BODY, headers={"Content-Encoding": "br"}), 415),
        (request(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), headers={"Transfer-Encoding": "chunked"}), 429),
        (request(BODY, headers={"Connection": "close"}), 429),
        (request(BODY, headers={"Content-Length": str(len(BODY))}), 400),
        (request(BODY, headers={"Content-Length ": "3"}), 400),
        (request(BODY, headers={"X": "a\x01b"}), 400),
        (request(BODY, headers={"X": "a" * 9000}), 431),
        (request(length=10_000_000), 429),
        (request(BODY).replace(b"HTTP/1.1", b"HTTP/1.0"), 429),
    ],
)
def test_what_is_not_plain_takes_the_ordinary_way(
    edge: RunningIngest, made: list[bytes], sent: bytes, status: int
) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        made.clear()
        wire.send(sent)
        answer = wire.answer()
        assert answer.status == status
        if answer.headers["connection"] == "close":
            assert wire.is_closed()
        else:
            wire.send(request(BODY))
            assert wire.answer().status == 429
    assert made or status in (400, 431)


def test_head_has_no_body(edge: RunningIngest) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(method="HEAD", path="/healthz", content_type=None))
        assert wire.answer(has_body=False).status == 200
        wire.send(request(BODY))
        assert wire.answer().status == 429


def test_a_body_that_waits_for_a_word_is_not_asked_for(edge: RunningIngest) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(length=len(BODY), headers={"Expect": "100-continue"}))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (429, "close")
        assert wire.is_closed()


def test_a_log_that_is_away_is_said_as_cheaply(made: list[bytes]) -> None:
    # Given a connection, and a log that went away
    with running_ingest() as edge, Wire(edge.port) as wire:
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        edge.log_server.stop()
        eventually(lambda: get(edge.port, "/readyz").status == 503, "not ready")
        made.clear()
        before = metric(edge.port, 'sluice_ingest_answers_total{code="unavailable"}')
        # When events come
        wire.send(request(BODY))
        answer = wire.answer()
        # Then they are refused before they are requests, and taken once the log is back
        assert (answer.status, answer.error["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert b"/api/logs" not in made
        assert metric(edge.port, 'sluice_ingest_answers_total{code="unavailable"}') == before + 1
        edge.log_server.start()
        eventually(lambda: get(edge.port, "/readyz").status == 200, "ready again")
        wire.send(request(BODY))
        assert wire.answer().status == 202


def test_tokens_that_come_back_are_given_out() -> None:
    with running_ingest(rate_min=20, rate_max=20) as edge, Wire(edge.port) as wire:
        many = json.dumps([sample()] * 60).encode()  # a busy machine may ask less often than there are tokens

        def status() -> int:
            wire.send(request(many))
            return wire.answer().status

        eventually(lambda: status() == 429, "the bucket is empty")
        eventually(lambda: status() == 202, "and fills again")


# --- Levels -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short() -> Iterator[RunningIngest]:
    """Ingest with levels, whose bucket of 60 tokens has 20 left: enough for WARN, not for DEBUG and INFO."""
    with running_ingest(rate_min=1, rate_max=1, burst_seconds=60, admission_levels=True) as running:
        eventually(lambda: post(running.port, [sample(severity="ERROR")] * 40).status == 202, "a body passes")
        yield running


def test_a_low_level_is_refused_when_its_events_are_known_and_the_answer_says_why(short: RunningIngest) -> None:
    refused = post(short.port, [sample(severity="TRACE"), sample(severity="DEBUG")])
    assert refused.status == 429
    assert (refused.error["limitedBy"], refused.error["limit"]) == ("level", 1)
    assert refused.error["message"] == "the rest of the admitted rate is for higher levels"
    assert int(refused.headers["retry-after"]) >= 10, "until the bucket holds DEBUG's reserve"
    assert ";r=0;" in refused.headers["ratelimit"]
    # One event of a high level raises the whole body
    assert post(short.port, [sample(severity="DEBUG"), sample(severity="FATAL")]).status == 202
    assert metric(short.port, 'sluice_ingest_level_events_total{level="debug",result="refused"}') == 2
    assert metric(short.port, 'sluice_ingest_level_events_total{level="error",result="accepted"}') == 42


def test_a_header_lets_a_body_be_refused_unread_and_decides_the_level_alone(
    short: RunningIngest, made: list[bytes]
) -> None:
    before = metric(short.port, 'sluice_ingest_level_events_total{level="debug",result="refused"}')
    made.clear()
    with Wire(short.port) as wire:
        wire.send(request(method="GET", path="/healthz", content_type=None))
        wire.answer()
        for value in ("u=5", "i, u=7"):
            wire.send(request(json.dumps(sample(severity="ERROR")).encode(), headers={"PRIORITY": value}))
            answer = wire.answer()
            assert (answer.status, answer.error["limitedBy"]) == (429, "level")
    assert made == [b"/healthz"]
    assert metric(short.port, 'sluice_ingest_level_events_total{level="debug",result="refused"}') == before + 2
    # A more urgent one raises an event, and an invalid one is ignored
    assert post(short.port, sample(severity="DEBUG"), headers={"Priority": "u=1"}).status == 202
    assert post(short.port, sample(severity="ERROR"), headers={"Priority": "u=9"}).status == 202
    assert post(short.port, sample(severity="DEBUG"), headers={"Priority": "u=,"}).status == 429


def test_without_the_setting_the_header_changes_nothing(edge: RunningIngest) -> None:
    answer = post(edge.port, sample(), headers={"Priority": "u=7"})
    assert (answer.status, answer.error["limitedBy"]) == (429, "rate")
    assert metric(edge.port, 'sluice_ingest_level_events_total{level="debug",result="refused"}') == 0
