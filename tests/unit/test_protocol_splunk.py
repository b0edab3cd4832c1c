"""Splunk's HTTP Event Collector: what events and lines become, and what clients are answered."""

import contextlib
import gzip
import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import (
    BodyTooLargeError,
    MalformedBodyError,
    NotReadyError,
    PartlyStoredError,
    RateLimitedError,
    RequestError,
)
from ingest.protocols import json_ends
from ingest.protocols.decoding import Decoding
from ingest.protocols.json_records import RECORD_BYTES_MAX, RECORD_VALUES_MAX
from ingest.protocols.splunk import (
    EVENT_PATHS,
    HEALTH_PATHS,
    LOST_WALKS_MAX,
    RAW_PATHS,
    WINDOW_BYTES,
    collector_inquiries,
    collector_routes,
)
from ingest.types import Codec, Head, Response
from pipeline.errors import OverloadedError, SluiceError
from pipeline.event import MESSAGE_BYTES_MAX, Event
from pipeline.settings import Settings
from support.clients import recorded
from support.protocols import NOW, FixedClock, Sent, TimedDecoding, accepted, decoded

SETTINGS = Settings()
EVENT, RAW = "/services/collector/event", "/services/collector/raw"
NOW_MS = int(NOW * 1000)


def codecs(decoding: Decoding) -> dict[str, Codec]:
    """The codec of each address."""
    return {route.path: route.codec for route in collector_routes(decoding)}


CODECS = codecs(Decoding(SETTINGS, FixedClock()))


def body_of(*records: Any, between: bytes = b"") -> bytes:
    """Records, one after another; bytes are records as they are."""
    return between.join(record if isinstance(record, bytes) else json.dumps(record).encode() for record in records)


async def events_of(*records: Any, target: str = EVENT, between: bytes = b"") -> list[Event]:
    """The events of a body."""
    codec = CODECS[target.partition("?")[0]]
    return (await decoded(codec, Sent(body_of(*records, between=between), {}, target))).events


async def event_of(record: Any, target: str = EVENT) -> Event:
    """The event of one record."""
    (event,) = await events_of(record, target=target)
    return event


# --- Mapping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"event": {"message": "m", "correlationId": "c", "trace_id": "t"}}, "c"),
        ({"event": {"message": "m", "trace": {"id": "t"}}}, "t"),
        ({"event": "m", "fields": {"trace_id": "t"}}, "t"),
        ({"event": "m", "source": "s"}, "s"),
        ({"event": "m"}, "unknown"),
    ],
)
async def test_the_correlation_id(record: dict[str, Any], expected: str) -> None:
    assert (await event_of(record)).correlation_id == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"event": {"message": "m", "log": {"level": "err"}}}, "ERROR"),
        ({"event": {"message": "m", "level": "warn"}, "fields": {"level": "info"}}, "WARN"),
        ({"event": "m", "fields": {"severity": "critical"}}, "FATAL"),
        ({"event": "m", "fields": {"otel.log.severity.text": "Debug"}}, "DEBUG"),
        ({"event": "m"}, "INFO"),
    ],
)
async def test_the_severity(record: dict[str, Any], expected: str) -> None:
    assert (await event_of(record)).severity == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"event": "m"}, "m"),
        ({"event": ""}, ""),
        ({"event": {"message": "a", "msg": "b"}}, "a"),
        ({"event": {"text": "e"}}, "e"),
        ({"event": {"userId": 42}}, '{"userId":42}'),
        ({"event": 42}, "42"),
        ({"event": ["a", {"b": None}]}, '["a",{"b":null}]'),
        # No event: it is a record itself
        ({"message": "m", "level": "info"}, "m"),
        ({"event": None, "msg": "m"}, "m"),
        ({"event": {}, "log": "m"}, "m"),
    ],
)
async def test_the_message(record: dict[str, Any], expected: str) -> None:
    assert (await event_of(record)).message == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"event": {"message": "m", "service.name": "shop", "source": "s"}, "source": "e"}, "shop"),
        ({"event": {"message": "m", "source": "s"}, "source": "e"}, "s"),
        ({"event": {"message": "m", "logger": "l"}, "source": "e"}, "e"),
        ({"event": "m", "fields": {"service.name": "shop"}, "source": "e"}, "shop"),
        ({"event": "m", "source": "e", "host": "h"}, "e"),
        ({"event": "m", "host": "h", "index": "main"}, "h"),
        ({"event": "m", "index": "main", "sourcetype": "t"}, "main"),
        ({"event": "m", "sourcetype": "t"}, "t"),
        ({"event": "m"}, "unknown"),
    ],
)
async def test_the_source(record: dict[str, Any], expected: str) -> None:
    assert (await event_of(record)).source == expected


@pytest.mark.parametrize(
    ("record", "timestamp"),
    [
        ({"event": "m", "time": 1795678193.157}, 1795678193157),
        ({"event": "m", "time": "1795678193.157"}, 1795678193157),
        ({"event": "m", "time": 1795678193}, 1795678193000),
        ({"event": "m", "time": 1795678193157}, 1795678193157),
        ({"event": {"message": "m", "@timestamp": "2026-11-26T07:29:53.158Z"}, "time": 1795678193.157}, 1795678193157),
        ({"event": {"message": "m", "@timestamp": "2026-11-26T07:29:53.158Z"}}, 1795678193158),
        ({"event": {"message": "m", "time": 1795678193.158}, "time": "now"}, 1795678193158),
        ({"event": "m"}, NOW_MS),
    ],
)
async def test_the_time(record: dict[str, Any], timestamp: int) -> None:
    assert (await event_of(record)).timestamp == timestamp


async def test_the_attributes() -> None:
    record = {
        "event": {"message": "m", "a": {"b": 1}, "k": "of the event"},
        "fields": {"k": "of fields", "region": "eu", "tags": ["x"]},
        "host": "h",
        "source": "/var/log/a.log",
        "sourcetype": "text",
        "index": "main",
        "time": 1795678193.1504567,
    }
    event = await event_of(record)
    assert event.source == "/var/log/a.log"
    assert event.attributes == {
        "time_ns": 1795678193150456700,
        "a.b": 1,
        "k": "of the event",
        "region": "eu",
        "tags": '["x"]',
        "host": "h",
        "sourcetype": "text",
        "index": "main",
    }


async def test_the_query_describes_all_lines() -> None:
    query = urlencode({"host": "h", "source": "s", "sourcetype": "t", "index": "i", "time": "1795678193.157", "x": "y"})
    body = b"first line\n\n  \r\nsecond \xff line\r\n" + b'{"level":"error","msg":"third","source":"own"}\n'
    first, second, third = await events_of(body, target=f"{RAW}?{query}")
    assert (first.message, second.message, third.message) == ("first line", "second \ufffd line", "third")
    assert (first.source, third.source) == ("s", "own")
    assert (first.severity, third.severity) == ("INFO", "ERROR")
    assert {event.timestamp for event in (first, second, third)} == {1795678193157}
    assert first.attributes == {"host": "h", "sourcetype": "t", "index": "i"}
    assert len({event.event_id for event in (first, second, third)}) == 3


async def test_the_query_describes_events_that_do_not_describe_themselves() -> None:
    target = f"{EVENT}?source=q&index=main"
    first, second = await events_of({"event": "m"}, {"event": "m", "source": "s"}, target=target)
    assert (first.source, second.source) == ("q", "s")


async def test_a_body_that_is_sent_again_has_the_same_ids() -> None:
    record = {"event": "m", "time": 1795678193.157}
    first, again = [[e.event_id for e in await events_of(record, record)] for _ in range(2)]
    assert first == again
    other = await events_of(record, record, target=f"{EVENT}?source=q")
    assert len({*first, *(event.event_id for event in other)}) == 4, "the query is part of the events"
    assert (await event_of({"event": "m"})).event_id is None


# --- Framing ------------------------------------------------------------------------------------------------------

A, B, C = {"event": "a"}, {"event": {"msg": "b", "o": {"x": "}{"}}}, {"event": "c é }\n{"}


@pytest.mark.parametrize("between", [b"", b"\n", b"\r\n", b" ", b"\n\n\t", b","])
async def test_objects_follow_one_another_in_any_way(between: bytes) -> None:
    for start, end in ((b"", b""), (b"[", b"]"), (b"\xef\xbb\xbf \n", b"\n")):
        body = start + body_of(A, B, C, between=between) + end
        assert [event.message for event in await events_of(body)] == ["a", "b", "c é }\n{"]


async def test_objects_are_found_across_the_ends_of_windows() -> None:
    for size in (WINDOW_BYTES - 20, WINDOW_BYTES - 1, WINDOW_BYTES, 3 * WINDOW_BYTES):
        long = json.dumps({"event": "é" * ((size - 13) // 2)}, ensure_ascii=False).encode()
        found = await events_of(A, long, B, long, C)
        assert [event.message[:3] for event in found] == ["a", "ééé", "b", "ééé", "c é"], size
    many = [{"event": f"{number} é"} for number in range(10_000)]
    assert [event.message for event in await events_of(*many)] == [one["event"] for one in many]


async def test_a_pretty_object_is_one_event() -> None:
    body = json.dumps(B, indent=4).encode() + json.dumps(A, indent=4).encode()
    assert [event.message for event in await events_of(body)] == ["b", "a"]


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        (b'{"event":"a"}{"event":"b" garbage}\n{"event":"c"}', ["a", '{"event":"b" garbage}', "c"]),
        (b'{"event":"a"}{"event": broken}{"event":"c"}', ["a", '{"event": broken}', "c"]),
        (b'some text\n{"event":"a"}\nmore text', ["some text", "a", "more text"]),
        (b'{"event":"a"}{"event":"cut', ["a", '{"event":"cut']),
        (b'{"event":"a"}17 true "x"', ["a", "17", "true", '"x"']),
        (b'{"event":"a"}\xff\xfe\n{"event":"b"}', ["a", "\ufffd\ufffd", "b"]),
        (b'{"event":"a\xff"}{"event":"\xc3\xa9"}', ["a?", "é"]),
        (b'{"event":"a"}' + b"[" * 3000 + b'\n{"event":"b"}', ["a", "b"]),
        (b'{"event":"a"}{"x":' + b"[" * 3000 + b'\n{"event":"b"}', ["a", '{"x":' + "[" * 3000, "b"]),
    ],
)
async def test_a_broken_part_costs_no_other_event(body: bytes, messages: list[str]) -> None:
    assert [event.message for event in await events_of(body)] == messages


@pytest.mark.parametrize("path", [*EVENT_PATHS, *RAW_PATHS])
@pytest.mark.parametrize("body", [b"", b" \r\n\t"])
async def test_a_body_without_data_is_refused(path: str, body: bytes) -> None:
    with pytest.raises(MalformedBodyError) as caught:
        await decoded(CODECS[path], Sent(body, {}, path))
    answer = CODECS[path].rejected(Head({}, path), caught.value)
    assert (answer.status, json.loads(answer.body)) == (400, {"text": "No data", "code": 5})


@pytest.mark.parametrize("body", [b"text", b"1 2 3", b"[]", b"\x00\xff", b"{", b"[" * 100_000, b'"event"'])
async def test_a_body_without_an_object_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedBodyError) as caught:
        await events_of(body)
    answer = CODECS[EVENT].rejected(Head({}, EVENT), caught.value)
    assert answer.status == 400
    assert json.loads(answer.body) == {"text": "Invalid data format", "code": 6, "invalid-event-number": 0}


# --- Recordings ---------------------------------------------------------------------------------------------------


async def test_what_a_python_handler_sends() -> None:
    request = recorded("py-splunk-hec-0")
    sent = Sent(request.body, request.headers, request.target)
    batch, response = await accepted(CODECS[request.target], sent)
    assert [event.message[:3] for event in batch.events] == [f"EV{number}" for number in range(5)]
    assert "ZeroDivisionError: division by zero" in batch.events[1].message
    first = batch.events[0]
    assert (first.source, first.severity, first.timestamp) == ("/srv/project/c_py.py", "INFO", 1795677342450)
    assert first.attributes == {"time_ns": 1795677342450057300, "host": "vm", "sourcetype": "text", "index": "main"}
    again = await decoded(CODECS[request.target], sent)
    assert [event.event_id for event in again.events] == [event.event_id for event in batch.events]
    assert json.loads(response.body) == {"text": "Success", "code": 0}


async def test_what_fluent_bit_sends() -> None:
    request = recorded("c-fluentbit-splunk-0")
    batch = await decoded(CODECS[request.target], Sent(request.body, request.headers, request.target))
    assert [event.message for event in batch.events] == [f"EV{number} hello" for number in range(5)]
    assert [event.correlation_id for event in batch.events] == [f"c{number}" for number in range(5)]
    assert batch.events[0].attributes == {
        "time_ns": 1795678193150374000,
        "severity": "INFO",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "nested.a": 1,
    }
    assert {event.source for event in batch.events} == {"shop"}


# --- Answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*EVENT_PATHS, *RAW_PATHS])
async def test_success(path: str) -> None:
    headers = {"x-splunk-request-channel": "FE0ECFAD-13D5-401B-847D-77833BD77131"}
    sent = Sent(gzip.compress(b'{"event":"m"}'), {**headers, "content-encoding": "gzip"}, path)
    batch, response = await accepted(CODECS[path], sent)
    assert len(batch.events) == 1
    assert (response.status, response.media_type) == (200, "application/json")
    assert response.body == b'{"text":"Success","code":0}', "no ackId: acknowledgement is disabled"


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (RateLimitedError(2.0, quota=10, left=0), 503, {"text": "Server is busy", "code": 9}),
        (OverloadedError("full"), 503, {"text": "Server is busy", "code": 9}),
        (NotReadyError("stopping"), 503, {"text": "Server is busy", "code": 9}),
        (PartlyStoredError([1], 2, "slow"), 503, {"text": "Server is busy", "code": 9}),
        (BodyTooLargeError(5, "bytes"), 413, {"text": "Invalid data format", "code": 6}),
    ],
)
def test_a_whole_request_is_refused_in_the_form_of_hec(error: SluiceError, status: int, body: dict[str, Any]) -> None:
    response = CODECS[EVENT].rejected(Head({}, EVENT), error)
    assert (response.status, json.loads(response.body)) == (status, body)
    assert ("retry-after" in response.headers) == (status == 503)


def inquiry(path: str, method: str = "GET", *, is_ready: bool = True) -> Response:
    """The answer to an inquiry."""
    found = [one for one in collector_inquiries(lambda: is_ready) if one.path == path and method in one.methods]
    assert len(found) == 1
    return found[0].answer(Head({}, path))


@pytest.mark.parametrize("path", HEALTH_PATHS)
def test_health_is_whether_events_are_taken(path: str) -> None:
    answer = inquiry(path)
    assert (answer.status, json.loads(answer.body)) == (200, {"text": "HEC is healthy", "code": 17})
    answer = inquiry(path, is_ready=False)
    assert (answer.status, json.loads(answer.body)) == (503, {"text": "HEC is unhealthy, queues are full", "code": 18})


def test_a_client_that_asks_for_acknowledgements_hears_that_there_are_none() -> None:
    answer = inquiry("/services/collector/ack", "POST")
    assert (answer.status, json.loads(answer.body)) == (400, {"text": "ACK is disabled", "code": 14})


def test_docker_finds_the_collector() -> None:
    assert inquiry("/services/collector/event/1.0", "OPTIONS").status == 200


# --- Limits and hostile content -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [EVENT, RAW])
async def test_a_body_has_a_limit_of_events(target: str) -> None:
    codec = codecs(Decoding(replace(SETTINGS, protocol_body_events_max=3), FixedClock()))[target]
    await decoded(codec, Sent(b'{"event":"m"}\n' * 3, {}, target))
    with pytest.raises(BodyTooLargeError):
        await decoded(codec, Sent(b'{"event":"m"}\n' * 4, {}, target))


@pytest.mark.parametrize(
    ("record", "target", "message"),
    [
        (b'{"event":"' + b"x" * RECORD_BYTES_MAX + b'"}', EVENT, "xxxx"),
        (b'{"event":"' + b"x" * RECORD_BYTES_MAX + b'"}', RAW, "xxxx"),
        (b'{"event":{"a":[' + b",".join([b"[]"] * RECORD_VALUES_MAX) + b"]}}", EVENT, '{"a":[[],[],'),
        (b'{"event":{"a":[' + b",".join([b"[]"] * RECORD_VALUES_MAX) + b"]}}", RAW, '{"event":{"a":[[],[],'),
        (b"{" + b",".join(b'"%06d":1' % n for n in range(RECORD_VALUES_MAX + 2)) + b"}", EVENT, '{"000000":1,'),
        (b'{"event":{"a":' + b"[" * 3000 + b"]" * 3000 + b"}}", EVENT, '{"event":{"a":[[['),
        (b'{"event":"' + b"x" * RECORD_BYTES_MAX + b'", "a": nope}', EVENT, '{"event":"xxx'),
    ],
)
async def test_a_vast_record_is_one_event(record: bytes, target: str, message: str) -> None:
    (event,) = await events_of(record, target=target)
    assert event.message.startswith(message)
    assert len(event.message.encode()) <= MESSAGE_BYTES_MAX
    messages = [event.message[:20] for event in await events_of(A, record, A, target=target, between=b"\n")]
    assert messages == ["a", event.message[:20], "a"]


@pytest.mark.parametrize("target", [EVENT, RAW])
@pytest.mark.parametrize(
    "body",
    [
        body_of(*[{"event": {"message": "m é", "level": "info"}, "time": 1795678193.157}] * 3000),
        b'{"event":"a"}' + b"\n" * 300_000 + b'{"event":"a"}',
        b'{"event":"a"}' + b"x\n" * 15_000,
        b'{"event":"a"}' + b'{"x":[\n' * 3000,
        (b'{"event":{' + b",".join(b'"%04d":1' % n for n in range(RECORD_VALUES_MAX - 10)) + b"}}\n") * 10,
        b'{"event":"' + b"x" * (1 << 20),
    ],
)
async def test_a_large_body_is_decoded_in_short_steps(body: bytes, target: str) -> None:
    decoding = TimedDecoding(SETTINGS)
    with contextlib.suppress(BodyTooLargeError, MalformedBodyError):
        await decoded(codecs(decoding)[target], Sent(body, {}, target))
    assert decoding.longest_seconds < 0.1  # some milliseconds, on a machine without other work


async def test_the_ends_of_large_objects_are_looked_for_a_few_times_in_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given large objects, of which each is in the one before it, and none ends
    walk, walked = json_ends._walk, 0

    def counted(text: bytes) -> Any:
        nonlocal walked
        walked += len(text)
        return walk(text)

    monkeypatch.setattr(json_ends, "_walk", counted)
    body = b'{"event":"a"}' + b'{"x":[\n' * 40 + b'"' + b"a" * (2 * RECORD_BYTES_MAX)
    # When they are read, each is a text
    events = await events_of(body)
    assert len(events) >= 40
    # Then not all of the rest was walked over for each of them
    assert walked < 2 * (LOST_WALKS_MAX + 1) * len(body)


async def test_records_that_can_not_be_read_do_not_make_a_text_of_a_large_object() -> None:
    # Given a large object after many records that are no JSON
    large = body_of({"event": {"message": "m", "level": "error", "x": "x" * (2 * RECORD_BYTES_MAX)}})
    (alone,) = await events_of(large)
    events = await events_of(A, b'{"event":nope}\n' * (5 * LOST_WALKS_MAX), large, A)
    # Then it is the same event as without them
    assert (len(events), events[-2].message) == (5 * LOST_WALKS_MAX + 3, alone.message)
    assert events[-2].severity == alone.severity


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
NAMES = st.sampled_from(["event", "time", "host", "source", "sourcetype", "index", "fields", "message", "level"])
PARTS = st.one_of(
    st.binary(max_size=30),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(NAMES, JSON_VALUES).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(PARTS, max_size=8),
    between=st.sampled_from([b"", b"\n", b","]),
    query=st.text(max_size=30),
    path=st.sampled_from([EVENT, RAW]),
)
async def test_nothing_in_a_body_is_a_defect(parts: list[bytes], between: bytes, query: str, path: str) -> None:
    try:
        batch, response = await accepted(CODECS[path], Sent(between.join(parts), {}, f"{path}?source={query}"))
    except (RequestError, OverloadedError):
        return
    assert batch.events
    assert json.loads(response.body)["code"] == 0
