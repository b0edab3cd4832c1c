"""Every row of the contract's table of answers, over real sockets."""

import contextlib
import gzip
import itertools
import json
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from checks.testbed.clocks import SteppedSystemClock
from checks.testbed.waiting import BUSY_SECONDS, WAIT_SECONDS_MAX, least_seconds
from checks.testbed.wire import Wire, get, post, request, send
from ingest import appender
from pipeline.clock import SystemClock
from pipeline.control_store.memory import MemoryServer
from pipeline.event import decode_record, partition_of
from pipeline.log.memory import MemoryLog, MemoryLogServer
from pipeline.names import AlarmCode, Mode, PauseReason, ProblemCode
from support.running_ingest import SAMPLE, RunningIngest, edge_settings, eventually, metric, running_ingest, sample

TRIES = 5
JSON_TYPE = "application/json"
LINES_TYPE = "application/x-ndjson"
ONE = json.dumps(sample()).encode()
PRETTY = json.dumps(sample(), indent=2).encode()


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


def _found(edge: RunningIngest, correlation_id: str) -> list[Any]:
    return [record for record in edge.records() if record.correlation_id == correlation_id]


# --- 202 --------------------------------------------------------------------------------------------------------


def test_the_sample_event_is_accepted_and_in_the_log(edge: RunningIngest) -> None:
    # Given an event of the contract, with an id of the test's own
    one = sample(correlationId=uuid.uuid4().hex)
    before = SystemClock().now() * 1000 - 1
    # When it is posted
    answer = post(edge.port, one)
    # Then it is accepted, and the log has every field, an id and the time of receipt
    assert (answer.status, answer.json) == (202, {"accepted": 1})
    [record] = _found(edge, one["correlationId"])
    assert (record.severity, record.message, record.source) == ("INFO", "Test", "cli")
    assert record.timestamp == SAMPLE["timestamp"]
    assert uuid.UUID(record.event_id).version == 7
    assert before <= record.received_at <= SystemClock().now() * 1000 + 1


def test_a_batch_goes_to_the_partitions_of_its_correlation_ids(edge: RunningIngest) -> None:
    # Given a batch of several correlation ids, with ids and attributes
    run = uuid.uuid4().hex
    batch = [
        sample(correlationId=f"{run}-{n % 7}", eventId=f"{run}{n}", attributes={"n": n, "f": 0.5, "b": True, "s": "ü"})
        for n in range(50)
    ]
    # When it is posted
    assert post(edge.port, batch).json == {"accepted": 50}
    # Then each event is in its partition, in the order of the batch
    partitions = edge.settings.log_partitions
    expected = {one["eventId"]: partition_of(one["correlationId"], partitions) for one in batch}
    for partition in range(partitions):
        read = edge.memory_log.read(partition, 0, records_max=100_000, wait_seconds=0)
        records = [json.loads(value) for value in (read.values if read else [])]
        ours = [record for record in records if record["correlationId"].startswith(run)]
        assert [one["eventId"] for one in ours] == [name for name, at in expected.items() if at == partition]
        assert all(record["attributes"] == batch[int(record["eventId"][32:])]["attributes"] for record in ours)


@pytest.mark.parametrize("gzipped", [False, True])
def test_ndjson_one_event_a_line_blank_lines_ignored(edge: RunningIngest, gzipped: bool) -> None:
    run = uuid.uuid4().hex
    lines = [json.dumps(sample(correlationId=run, message=f"m{n}")) for n in range(3)]
    body = ("\r\n\n" + "\n \n".join(lines) + "\n\n").encode()
    headers = {"Content-Encoding": "gzip"} if gzipped else {}
    answer = post(
        edge.port,
        gzip.compress(body) if gzipped else body,
        content_type="application/x-ndjson; charset=utf-8",
        headers=headers,
    )
    assert answer.json == {"accepted": 3}
    assert [record.message for record in _found(edge, run)] == ["m0", "m1", "m2"]


def test_a_chunked_body(edge: RunningIngest) -> None:
    body = json.dumps(sample()).encode()
    chunks = b"".join(b"%x;name=value\r\n%b\r\n" % (len(part), part) for part in (body[:1], body[1:50], body[50:]))
    answer = send(edge.port, request(chunks + b"0\r\n\r\n", headers={"Transfer-Encoding": "Chunked"}))
    assert answer.status == 202


def test_expect_100_continue_is_told_to_go_on(edge: RunningIngest) -> None:
    body = json.dumps(sample()).encode()
    with Wire(edge.port) as wire:
        wire.send(request(length=len(body), headers={"Expect": "100-continue"}))
        assert wire.answer().status == 100
        wire.send(body)
        assert wire.answer().status == 202


def test_pipelined_requests_are_answered_in_order(edge: RunningIngest) -> None:
    good, bad = json.dumps(sample()).encode(), b"{"
    with Wire(edge.port) as wire:
        wire.send(request(good) + request(bad) + b"\r\n" + request(good))
        assert [wire.answer().status for _ in range(3)] == [202, 400, 202]


def test_severities_in_any_case_and_their_aliases(edge: RunningIngest) -> None:
    run = uuid.uuid4().hex
    given = ["trace", "Debug", "iNfO", "warning", "WARN", "Critical", "FATAL", "error"]
    assert post(edge.port, [sample(correlationId=run, severity=one) for one in given]).status == 202
    found = [record.severity for record in _found(edge, run)]
    assert found == ["TRACE", "DEBUG", "INFO", "WARN", "WARN", "FATAL", "FATAL", "ERROR"]


# --- 4xx --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "byte", "line"),
    [
        (b'{"correlationId": ', 18, 1),
        (b'[\n{"a": 1},\n nope]', 13, 3),
        (b'{"NaN": NaN}', 8, 1),
        (b'{"a": "\xff"}', 7, 1),
        (b'{"a": 1} x', 9, 1),
        (b"", 0, 1),
        (b"[" * 33 + b"]" * 33, 32, 1),
    ],
)
def test_400_says_where_and_what(edge: RunningIngest, body: bytes, byte: int | None, line: int | None) -> None:
    answer = post(edge.port, body)
    assert answer.status == 400
    assert answer.error["code"] == "malformed"
    assert (answer.error["byte"], answer.error["line"]) == (byte, line)
    assert answer.error["message"]


def test_400_in_ndjson_gives_the_line(edge: RunningIngest) -> None:
    good = json.dumps(sample()).encode()
    answer = post(edge.port, good + b"\n\n" + good[:-1] + b"\n" + good, content_type="application/x-ndjson")
    assert (answer.status, answer.error["line"]) == (400, 3)
    assert answer.error["byte"] == len(good) + 2 + len(good) - 1


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (sample(correlationId=None), "correlationId"),
        (sample(correlationId=""), "correlationId"),
        (sample(correlationId="x" * 129), "correlationId"),
        (sample(severity="LOUD"), "severity"),
        (sample(severity="\u0131nfo"), "severity"),
        (sample(message="x" * 65_537), "message"),
        (sample(message="é" * 32_769), "message"),
        (sample(source=""), "source"),
        (sample(source="x" * 257), "source"),
        (sample(timestamp=-1), "timestamp"),
        (sample(timestamp=253_402_300_800_000), "timestamp"),
        (sample(timestamp=1.0), "timestamp"),
        (sample(timestamp=True), "timestamp"),
        (sample(timestamp="1"), "timestamp"),
        (sample(eventId=""), "eventId"),
        (sample(eventId="x" * 65), "eventId"),
        (sample(attributes={"a": {}}), "attributes"),
        (sample(attributes={"a": 2**63}), "attributes"),
        (sample(attributes={"a": -0.0}), "attributes"),
        (sample(attributes={str(n): n for n in range(65)}), "attributes"),
        (sample(attributes={"a": "x" * 8200}), "attributes"),
        (sample(attributes=[]), "attributes"),
        (sample(color="red"), "color"),
        ("text", None),
        (17, None),
        ([sample(), "text"], None),
    ],
)
def test_422_names_the_field_and_stores_nothing(edge: RunningIngest, document: Any, field: str | None) -> None:
    before = len(edge.records())
    answer = post(edge.port, document)
    assert answer.status == 422
    assert answer.error["code"] == "invalid"
    [problem] = answer.error["errors"]
    assert problem["field"] == field
    assert problem["index"] == (1 if isinstance(document, list) else 0)
    assert problem["reason"]
    assert len(edge.records()) == before


def test_422_for_an_empty_batch(edge: RunningIngest) -> None:
    assert post(edge.port, []).status == 422
    assert post(edge.port, b"\n\n", content_type="application/x-ndjson").status == 422


def test_422_tells_the_first_twenty(edge: RunningIngest) -> None:
    answer = post(edge.port, [sample(), *[sample(severity="LOUD")] * 30])
    assert [problem["index"] for problem in answer.error["errors"]] == list(range(1, 21))


def test_a_batch_is_taken_as_a_whole_or_not_at_all(edge: RunningIngest) -> None:
    run = uuid.uuid4().hex
    assert post(edge.port, [sample(correlationId=run), sample(correlationId=run, source="")]).status == 422
    assert _found(edge, run) == []


def test_413_for_too_many_events_or_bytes(edge: RunningIngest) -> None:
    answer = post(edge.port, [sample()] * 1001)
    assert (answer.status, answer.error["limit"], answer.error["unit"]) == (413, 1000, "events")
    answer = post(edge.port, b" " * (1 << 20) + b"1")
    assert (answer.status, answer.error["limit"], answer.error["unit"]) == (413, 1 << 20, "bytes")
    assert answer.error["code"] == "too_large"


def test_the_limits_themselves_are_taken(edge: RunningIngest) -> None:
    batch = json.dumps([sample()] * 1000).encode()
    assert post(edge.port, batch + b" " * ((1 << 20) - len(batch))).status == 202


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        (None, None),
        ("text/plain", None),
        ("application/x-www-form-urlencoded", None),
        ("application/json; charset=latin-1", None),
        ("application/json", "br"),
        ("application/json", "gzip, gzip"),
    ],
)
def test_415_says_what_is_taken(edge: RunningIngest, content_type: str | None, encoding: str | None) -> None:
    headers = {} if encoding is None else {"Content-Encoding": encoding}
    answer = post(edge.port, sample(), content_type=content_type, headers=headers)
    assert answer.status == 415
    assert "application/x-ndjson" in answer.error["accepted"]
    assert answer.headers["accept-encoding"] == "gzip"


def test_unknown_addresses_and_methods_have_the_one_shape(edge: RunningIngest) -> None:
    assert get(edge.port, "/nothing").error["code"] == "not_found"
    answer = get(edge.port, "/api/logs")
    assert (answer.status, answer.error["code"], answer.headers["allow"]) == (405, "method_not_allowed", "POST")


# --- 408 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trickled", [request()[:-2], request(b"{", length=1000)])
def test_408_for_a_request_that_trickles_in(trickled: bytes) -> None:
    # Given half a second for a whole request
    with running_ingest(request_seconds_max=0.5) as edge, Wire(edge.port) as wire:
        # When a client sends a byte every now and then, so that no single wait is long
        started = time.monotonic()
        wire.send(trickled)
        wire.socket.settimeout(0.05)
        answer = None
        while answer is None and time.monotonic() < started + WAIT_SECONDS_MAX:
            try:
                answer = wire.answer()
            except TimeoutError:
                wire.send(b" ")
        # Then it is cut off in time, with an answer
        assert answer is not None
        assert (answer.status, answer.error["code"]) == (408, "timeout")
        assert answer.headers["connection"] == "close"
        assert time.monotonic() - started < 2 + BUSY_SECONDS
        wire.socket.settimeout(WAIT_SECONDS_MAX)
        assert wire.is_closed()


# --- 429 --------------------------------------------------------------------------------------------------------


def test_429_tells_when_to_come_back() -> None:
    # Given a rate of ten events a second, and a bucket that is in debt for some seconds
    with running_ingest(rate_min=10, rate_max=10) as edge:
        taken = 0
        for _ in range(TRIES):
            assert post(edge.port, [sample()] * 40).status == 202
            taken += 40
            # When the next event comes
            answer = post(edge.port, [sample()] * 5)
            if answer.status == 429:
                break
            taken += 5  # a machine that stood still has paid the debt meanwhile
        # Then it is told when to come back, and costs nothing
        assert (answer.status, answer.error["code"]) == (429, "rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 7
        assert answer.headers["ratelimit-policy"] == '"events";q=10;w=1'
        left, _, after = answer.headers["ratelimit"].removeprefix('"events";r=').partition(";t=")
        assert 0 <= int(left) < 5
        assert after == answer.headers["retry-after"]
        # And after that time it passes
        SystemClock().sleep(int(answer.headers["retry-after"]))
        assert post(edge.port, [sample()] * 5).status == 202
        assert len(edge.records()) == taken + 5


def test_a_body_above_the_burst_is_one_admission_and_leaves_a_debt() -> None:
    with running_ingest(rate_min=10, rate_max=10) as edge:
        assert post(edge.port, [sample()] * 5).status == 202
        assert post(edge.port, [sample()] * 125).status == 202, "the bucket holds five tokens: enough for any body"
        answer = post(edge.port, sample())
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 2, "the bucket is in debt for 12 s"


def _empty(edge: RunningIngest) -> None:
    """Bring the bucket into a debt of minutes, as the process knows afterwards."""
    eventually(lambda: post(edge.port, [sample()] * 500).status == 202, "a large body passes")
    eventually(lambda: post(edge.port, sample()).status == 429, "the bucket is empty")


def test_an_empty_bucket_refuses_before_the_body_is_read() -> None:
    with running_ingest(rate_min=1, rate_max=1) as edge:
        _empty(edge)
        # A body that has not come yet: the answer does not wait for it, and the connection lives on
        body = json.dumps(sample()).encode()
        with Wire(edge.port) as wire:
            wire.send(request(length=len(body)))
            assert wire.answer().status == 429
            wire.send(body)
            wire.send(request(method="GET", path="/healthz"))
            assert wire.answer().status == 200
        # A body that came with its head
        with Wire(edge.port) as wire:
            for _ in range(3):
                wire.send(request(body))
                answer = wire.answer()
                assert (answer.status, answer.headers["connection"]) == (429, "keep-alive")
        # A client that asks first is not told to send what is not wanted
        with Wire(edge.port) as wire:
            wire.send(request(length=len(body), headers={"Expect": "100-continue"}))
            answer = wire.answer()
            assert (answer.status, answer.headers["connection"]) == (429, "close")
            assert wire.is_closed()


def test_a_refused_body_without_end_is_cut_off() -> None:
    with running_ingest(rate_min=1, rate_max=1) as edge:
        _empty(edge)
        with Wire(edge.port) as wire:
            wire.send(request(headers={"Transfer-Encoding": "chunked"}))
            assert wire.answer().status == 429
            with pytest.raises(OSError, match=r"reset|pipe"):
                _send_chunks(wire, mebibytes=64)


def _send_chunks(wire: Wire, *, mebibytes: int) -> None:
    for _ in range(mebibytes):
        wire.send(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")


def test_an_idle_connection_is_no_slow_request() -> None:
    whole = request(json.dumps(sample()).encode())

    def stays(request_seconds_max: float) -> None:
        with running_ingest(request_seconds_max=request_seconds_max) as edge, Wire(edge.port) as wire:
            for pieces in ([whole], [whole[:-1], whole[-1:]], [whole[:20], whole[20:]]):
                # Given a request that came at once, or in two pieces, so that its time was counted
                began = time.monotonic()
                for piece in pieces:
                    wire.send(piece)
                    SystemClock().sleep(0.05)
                status = wire.answer().status
                seconds.append(time.monotonic() - began)
                assert status == 202
                # When nothing comes for longer than a request may take, the connection is still there
                SystemClock().sleep(1.1 * request_seconds_max)

    seconds: list[float] = []
    for request_seconds_max in (2.0, 15.0):
        try:
            stays(request_seconds_max)
        except AssertionError:
            if seconds[-1] < request_seconds_max or request_seconds_max > 2.0:
                raise
            continue  # a busy machine has taken longer for a request than it may
        break


def test_a_published_rate_is_followed_within_100_ms() -> None:
    with running_ingest(rate_min=10, rate_max=1000) as edge:
        # Given a rate that was published
        edge.publish(1000)
        eventually(lambda: get(edge.port, "/api/logs/health").json["rateLimit"] == 1000, "the rate is known")
        # When others are
        rates = itertools.cycle((100, 300, 50))

        def seconds_to_follow() -> float:
            edge.publish(rate := next(rates))
            started = time.monotonic()
            eventually(lambda: edge.service.admission.rate(time.monotonic()) == rate, "the new rate is known")
            return time.monotonic() - started

        # Then ingest goes by each at once
        assert least_seconds(seconds_to_follow, below=0.1) < 0.1


# --- 503 --------------------------------------------------------------------------------------------------------


def test_503_unavailable_while_the_log_is_down_and_recovery_without_a_hand() -> None:
    with running_ingest() as edge:
        edge.log_server.stop()
        answer = post(edge.port, sample())
        assert (answer.status, answer.error["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert get(edge.port, "/readyz").status == 503
        health = get(edge.port, "/api/logs/health")
        assert (health.status, health.json["status"]) == (200, "critical")
        edge.log_server.start()
        eventually(lambda: post(edge.port, sample()).status == 202, "events are taken again")
        assert get(edge.port, "/readyz").status == 200
        assert len(edge.records()) == 1


def test_503_comes_before_the_body_is_read() -> None:
    with running_ingest() as edge:
        edge.log_server.stop()
        assert post(edge.port, sample()).status == 503
        with Wire(edge.port) as wire:
            wire.send(request(length=1000))
            assert wire.answer().error["code"] == "unavailable"


def test_an_idle_ingest_notices_that_the_log_went_away_and_came_back() -> None:
    with running_ingest() as edge:
        edge.log_server.stop()
        eventually(lambda: get(edge.port, "/readyz").status == 503, "not ready")
        edge.log_server.start()
        eventually(lambda: get(edge.port, "/readyz").status == 200, "ready again")


def test_503_unavailable_while_the_log_is_full() -> None:
    with running_ingest() as edge:
        edge.log_server.limit(1)
        assert post(edge.port, sample()).status == 202
        for _ in range(3):
            answer = post(edge.port, sample())
            assert (answer.status, answer.error["code"]) == (503, "unavailable")
        assert get(edge.port, "/api/logs/health").json["status"] == "critical"
        edge.log_server.limit(None)
        eventually(lambda: post(edge.port, sample()).status == 202, "events are taken again")
        assert len(edge.records()) == 2


def test_503_indeterminate_when_the_log_does_not_confirm() -> None:
    with running_ingest() as edge:
        edge.log_server.lose_answers()
        answer = post(edge.port, sample(eventId="mine"))
        assert (answer.status, answer.error["code"]) == (503, "indeterminate")
        assert int(answer.headers["retry-after"]) >= 1
        edge.log_server.lose_answers(False)
        # the event is there, although nobody could say so: a repeat with the same id is what makes it sure
        eventually(lambda: post(edge.port, sample(eventId="mine")).status == 202, "events are taken again")
        assert [record.event_id for record in edge.records()] == ["mine", "mine"]


# --- Health, readiness, metrics ---------------------------------------------------------------------------------


def test_health_document_has_every_field(edge: RunningIngest) -> None:
    document = get(edge.port, "/api/logs/health").json
    assert list(document) == [
        "status",
        "consumerLag",
        "rateLimit",
        "rateOverride",
        "availablePermissions",
        "circuitBreaker",
        "consumption",
        "controllerAgeSeconds",
        "eventLog",
        "offered",
        "admitted",
        "refused",
        "stored",
        "drainSeconds",
        "reasons",
    ]
    assert document["eventLog"] == "redis"


def test_the_inflated_form_of_a_body_counts_to_the_bytes_of_all_bodies() -> None:
    with running_ingest(bodies_bytes_max=1 << 20) as edge:
        held = edge.service.held_bodies
        large, small = (gzip.compress(json.dumps([sample(message="x" * size)] * 20).encode()) for size in (10_000, 100))
        assert len(large) < 16 * 1024
        headers = {"Content-Encoding": "gzip"}
        # Given other bodies that have nearly all bytes which all may have
        with held.begin() as others:
            others.note((1 << 20) - 100_000)
            # Then a body that is small as it arrives, and large as it is read, is refused; a small one is not
            assert post(edge.port, large, headers=headers).status == 503
            assert post(edge.port, small, headers=headers).status == 202
        # And both are taken once the others have gone
        assert post(edge.port, large, headers=headers).status == 202
        eventually(lambda: held.bytes == 0, "their bytes are released")


def test_all_ingest_processes_use_a_partition_that_was_added_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "LOOK_SECONDS", 0.05)
    server = MemoryLogServer(4)
    with contextlib.ExitStack() as stack:
        # Given two ingest processes on one log
        processes = [stack.enter_context(running_ingest(MemoryLog(server=server))) for _ in range(2)]
        key = next(key for key in (f"order-{number}" for number in itertools.count()) if partition_of(key, 5) == 4)

        def used_by() -> set[str]:
            for number, process in enumerate(processes):
                answer = post(process.port, sample(correlationId=key, source=f"process {number}"))
                assert answer.status == 202
            values = server.partitions[4].entries.values() if len(server.partitions) > 4 else ()
            return {decode_record(value).source for value in values}

        assert used_by() == set()
        # When the log gets one partition more, while both append
        server.add_partitions(1)
        # Then both use it for the keys that belong there, and events of one key have one order again
        eventually(lambda: used_by() == {"process 0", "process 1"}, "both use it")


def test_an_ingest_process_tells_that_its_clock_differs() -> None:
    clock = SteppedSystemClock()
    clock.step(3600.0)
    edge = RunningIngest(edge_settings(), control=MemoryServer(clock)).start()
    with contextlib.ExitStack() as stack:
        stack.callback(edge.stop)
        eventually(lambda: bool(edge.troubles.reported()), "reported")
        [(process, [trouble])] = edge.troubles.reported().items()
        assert process == f"ingest@{socket.gethostname()}"
        assert trouble.code == AlarmCode.CLOCKS_DIFFER
        assert "behind the control store's" in trouble.what


def test_an_ingest_process_tells_that_the_log_is_full_and_when_it_no_longer_is() -> None:
    with running_ingest() as edge:
        own = edge.service.name

        def is_told() -> bool:
            assert post(edge.port, sample()).status == 503
            return own in edge.troubles.reported()

        # When appends find the log full
        edge.log_server.limit(0)
        # Then the system hears it, until the log has space
        eventually(is_told, "reported")
        assert [trouble.code for trouble in edge.troubles.reported()[own]] == [ProblemCode.LOG_FULL]
        edge.log_server.limit(None)
        eventually(lambda: own not in edge.troubles.reported(), "taken back")


def test_health_goes_through_the_modes_with_reasons() -> None:
    with running_ingest(rate_min=10, rate_max=1000) as edge:

        def health() -> dict[str, Any]:
            found: dict[str, Any] = get(edge.port, "/api/logs/health").json
            return found

        assert health()["status"] == "degraded", "nothing is known yet"
        # Given a controller that speaks, and no reason to pause
        edge.store.restore([], actor="test")
        edge.publish(1000)
        eventually(lambda: health()["status"] == "healthy", "healthy")
        assert health()["reasons"] == []
        assert health()["consumption"] == "running"
        assert health()["circuitBreaker"] == "closed"
        assert health()["controllerAgeSeconds"] < BUSY_SECONDS
        # When the lag grows
        edge.publish(500, mode=Mode.DEGRADED, lag=20_000)
        eventually(lambda: health()["status"] == "degraded", "degraded")
        assert health()["consumerLag"] == 20_000
        edge.publish(10, mode=Mode.CRITICAL, lag=60_000)
        eventually(lambda: health()["status"] == "critical", "critical")
        assert "60,000 events wait" in health()["reasons"][0]
        # When it is gone, and the breaker opens
        edge.publish(1000)
        eventually(lambda: health()["status"] == "healthy", "healthy again")
        edge.store.pause(PauseReason.BREAKER, actor="test", why="test")
        eventually(lambda: health()["circuitBreaker"] == "open", "open")
        assert (health()["status"], health()["consumption"], health()["rateLimit"]) == ("critical", "paused", 10)
        # When the control store is lost
        edge.control.flush()
        eventually(lambda: health()["consumption"] == "unknown", "unknown")


def test_alive_and_head(edge: RunningIngest) -> None:
    assert get(edge.port, "/healthz").json == {"status": "alive"}
    answer = send(edge.port, request(method="HEAD", path="/healthz", content_type=None), has_body=False)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == "18"


def test_metrics_count_what_was_answered(edge: RunningIngest) -> None:
    accepted = metric(edge.port, "sluice_ingest_accepted_events_total")
    malformed = metric(edge.port, 'sluice_ingest_answers_total{code="malformed"}')
    post(edge.port, [sample()] * 7)
    post(edge.port, b"{")
    assert metric(edge.port, "sluice_ingest_accepted_events_total") == accepted + 7
    assert metric(edge.port, 'sluice_ingest_answers_total{code="malformed"}') == malformed + 1
    assert metric(edge.port, "sluice_ingest_log_answers") == 1
    assert metric(edge.port, "sluice_ingest_connections") >= 1


# --- Many connections, and the end ------------------------------------------------------------------------------


def _is_taken(port: int, wires: list[Wire]) -> bool:
    """Whether one more connection gets an answer; it is kept then."""
    wire = Wire(port)
    wire.send(request(method="GET", path="/healthz"))
    if wire.answer().status == 200:
        wires.append(wire)
        return True
    wire.socket.close()
    return False


def test_connections_are_bounded() -> None:
    with running_ingest(ingest_connections_max=3) as edge:
        eventually(lambda: metric(edge.port, "sluice_ingest_connections") == 1, "only this one is open")
        wires: list[Wire] = []
        # (a connection that was closed a moment ago may still be counted)
        eventually(lambda: _is_taken(edge.port, wires) and len(wires) == 3, "three are taken")
        with Wire(edge.port) as extra:
            answer = extra.answer()
            assert (answer.status, answer.error["code"]) == (503, "unavailable")
            assert extra.is_closed()
        wires.pop().socket.close()
        eventually(lambda: get(edge.port, "/healthz").status == 200, "one may come again")
        for wire in wires:
            wire.socket.close()


def test_a_stop_lets_running_requests_end_and_loses_nothing() -> None:
    edge = RunningIngest(edge_settings(stop_seconds_max=WAIT_SECONDS_MAX)).start()
    body = json.dumps(sample(correlationId="last")).encode()
    with Wire(edge.port) as running, Wire(edge.port) as idle:
        idle.send(request(method="GET", path="/healthz"))
        assert idle.answer().status == 200
        # Given a request that is half way in, and an idle connection
        running.send(request(body)[:-10])
        eventually(lambda: metric(edge.port, "sluice_ingest_connections") >= 3, "both are there")
        # When ingest is told to stop
        edge.begin_stop()
        # Then the idle connection is closed, and no new one taken
        assert idle.is_closed()
        with pytest.raises(OSError, match="refused"):
            Wire(edge.port)
        # And the running request ends well, with the word that this connection is over
        running.send(body[-10:])
        answer = running.answer()
        assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert running.is_closed()
    edge.join()
    assert [record.correlation_id for record in edge.records()] == ["last"]
    assert not edge.service.appender._thread.is_alive(), "it has ended in order"


def test_a_stop_is_bounded_in_time() -> None:
    edge = RunningIngest(edge_settings(stop_seconds_max=0.5, request_seconds_max=WAIT_SECONDS_MAX)).start()
    with Wire(edge.port) as wire:
        wire.send(request(b"{", length=100))
        eventually(lambda: metric(edge.port, "sluice_ingest_connections") >= 2, "it is there")
        started = time.monotonic()
        edge.stop()
        assert time.monotonic() - started < 3 + BUSY_SECONDS
        assert wire.is_closed()


def test_readiness_falls_while_stopping() -> None:
    edge = RunningIngest(edge_settings(stop_seconds_max=WAIT_SECONDS_MAX)).start()
    with Wire(edge.port) as busy, Wire(edge.port) as asking:
        busy.send(request(b"{", length=100))
        asking.send(request(method="GET", path="/readyz")[:-2])
        eventually(lambda: metric(edge.port, "sluice_ingest_connections") >= 3, "both are there")
        edge.begin_stop()
        eventually(lambda: edge.service.lifecycle.is_stopping, "stopping")
        asking.send(b"\r\n")
        assert asking.answer().status == 503
    edge.stop()


# --- Usual mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"timestamp": 1_700_000_000}, "timestamp", "looks like seconds; 1700000000000 would be right"),
        ({"timestamp": 99_999_999_999}, "timestamp", "looks like seconds; 99999999999000 would be right"),
        ({"timestamp": 5}, "timestamp", "before the earliest that is accepted: 100000000000 epoch milliseconds"),
        ({"timestamp": "2026-11-26T09:40:52Z"}, "timestamp", "epoch milliseconds are expected, as an integer such as"),
        ({"hostname": "web-1"}, "hostname", "is not a field of an event: put it into attributes"),
    ],
)
def test_a_usual_mistake_in_an_event_is_answered_with_what_is_right(
    edge: RunningIngest, changes: dict[str, Any], field: str, said: str
) -> None:
    for body, kind in ((json.dumps(sample(**changes)), JSON_TYPE), (json.dumps(sample(**changes)) + "\n", LINES_TYPE)):
        answer = post(edge.port, body.encode(), content_type=kind)
        assert answer.status == 422
        [problem] = answer.error["errors"]
        assert problem["field"] == field
        assert said in problem["reason"]


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"%b\n%b\n" % (ONE, ONE), "application/json", "one event a line: send it as application/x-ndjson"),
        (b"%b\n{" % ONE, "application/json", "one event a line: send it as application/x-ndjson"),
        (b"[%b,%b]" % (ONE, ONE), "application/x-ndjson", "send an array, or one event on many lines, as application/"),
        (b"[\n%b\n]" % ONE, "application/x-ndjson", "send an array, or one event on many lines, as application/json"),
        (PRETTY, "application/x-ndjson", "send an array, or one event on many lines, as application/json"),
    ],
)
def test_a_body_under_the_wrong_media_type_is_answered_with_the_right_one(
    edge: RunningIngest, body: bytes, kind: str, said: str
) -> None:
    answer = post(edge.port, body, content_type=kind)
    assert answer.status in (400, 422)
    assert said in answer.error["message"]


def test_a_body_that_is_wrong_otherwise_is_not_told_another_media_type(edge: RunningIngest) -> None:
    for body in (b"{", ONE[:-1] + b",}", ONE + b"x", b"\n\n" + ONE[:-1]):
        for kind in (JSON_TYPE, LINES_TYPE):
            if body[:1] == b"{" and kind == LINES_TYPE and b"\n" not in body.strip():
                continue  # may be the first line of one that was cut
            assert "send it as" not in post(edge.port, body, content_type=kind).error["message"]


def test_events_from_before_1973_are_taken_where_the_settings_say_so() -> None:
    with running_ingest(event_time_min_ms=0) as edge:
        assert post(edge.port, sample(timestamp=5)).status == 202
        assert (
            get(edge.port, "/openapi.json").json["components"]["schemas"]["Event"]["properties"]["timestamp"]["minimum"]
            == 0
        )
