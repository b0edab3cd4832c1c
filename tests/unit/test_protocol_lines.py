"""`POST /api/logs?format=lines`: what logging libraries write, and any other text."""

import gc
import gzip
import json
import tracemalloc
import zlib
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ingest.codecs.events import events_codec
from ingest.errors import BodyTooLargeError, MalformedBodyError, RequestError
from ingest.protocols import lines
from ingest.protocols.decoding import AT_ONCE_BYTES, Decoding
from ingest.protocols.lines import PACKED_BYTES_MAX, lines_codec
from ingest.protocols.records import BatchBuilder
from ingest.types import Batch, Codec
from pipeline.event import Event, encode_record
from pipeline.names import ProtocolName
from pipeline.settings import Settings
from support.clients import recorded, recorded_lines
from support.protocols import NOW, FixedClock, Sent, accepted, decoded

NOW_MS = int(NOW * 1000)
TRACE = "0af7651916cd43dd8448eb211c80319c"


def codec(**settings: int) -> Codec:
    return lines_codec(Decoding(Settings(**settings), FixedClock()))  # type: ignore[arg-type]


async def batch_of(body: bytes, **headers: str) -> Batch:
    return await decoded(codec(), Sent(body, {name.replace("_", "-"): value for name, value in headers.items()}))


async def one(value: Any) -> Event:
    [event] = (await batch_of(json.dumps(value).encode())).events
    return event


def messages(batch: Batch) -> list[str]:
    return [event.message for event in batch.events]


def test_it_is_the_protocol_lines() -> None:
    assert codec().name is ProtocolName.LINES
    assert codec().bytes_max == Settings().protocol_body_bytes_max


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"message":"a"}', ["a"]),
        ('[{"message":"a"},{"message":"b"}]', ["a", "b"]),
        ('{"logs":[{"message":"a"},{"message":"b"}]}', ["a", "b"]),
        ('{"message":"a"}\n{"message":"b"}\r\n\n{"message":"c"}', ["a", "b", "c"]),
        ('{\n  "message": "a"\n}', ["a"]),
        ("plain\nlines", ["plain", "lines"]),
        ('{"message":"a"}\nplain\n{"broken"', ["a", "plain", '{"broken"']),
        ('["a", 1, null, [2]]', ["a", "1", "null", "[2]"]),
        ("[not json\nat all]", ["[not json", "at all]"]),
        ('"a"', ["a"]),
        ("3", ["3"]),
        ("", []),
        (" \r\n ", []),
        ('\ufeff{"message":"a"}', ["a"]),
    ],
)
async def test_every_form_of_a_body_becomes_its_records(body: str, expected: list[str]) -> None:
    assert messages(await batch_of(body.encode())) == expected


async def test_the_query_names_the_source_of_records_that_have_none() -> None:
    # Given a file of text and of JSON, one record of which has a source of its own
    body = b'started\n{"msg":"a","time":1795678050979}\n{"msg":"b","service":"till"}'
    for target, source in (("?source=shop", "shop"), ("?format=lines&source=my+shop", "my shop"), ("", "unknown")):
        batch = await decoded(codec(), Sent(body, target=f"/api/logs/lines{target}"))
        assert [event.source for event in batch.events] == [source, source, "till"]
        assert batch.events[0].correlation_id == source
    # Then the same body of another source has other events, and a repeat has the same
    ids = [
        (await decoded(codec(), Sent(body, target=f"/api/logs/lines?source={source}"))).events[1].event_id
        for source in ("a", "a", "b")
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("query", ["source", "source=", "sources=a", "source=%ff", "&".join(["source=a"] * 101)])
async def test_a_query_without_a_source_or_with_one_that_can_not_be_read_refuses_nothing(query: str) -> None:
    batch = await decoded(codec(), Sent(b"started", target=f"/api/logs/lines?{query}"))
    assert [event.source for event in batch.events] == ["\ufffd" if "%" in query else "unknown"]


async def test_objects_in_one_line_are_records_however_many_they_are() -> None:
    # Given a line that has more values than any record
    body = b"".join(b'{"message":"%d","a":1,"b":2}' % number for number in range(3000))
    assert messages(await batch_of(body)) == [str(number) for number in range(3000)]


async def test_what_an_object_has_beside_its_array_is_no_record_unless_the_array_breaks() -> None:
    assert messages(await batch_of(b'{"logs":[{"msg":"a"}],"sent":1}')) == ["a"]
    assert messages(await batch_of(b'{"logs":[{"msg":"a"},{"msg":b}]}')) == ["a", '{"msg":b}]}']


async def test_bytes_that_are_no_text_are_kept_as_far_as_text_can() -> None:
    assert messages(await batch_of(b"a\xffb\n\x00")) == ["a\ufffdb", "\ufffd"]
    assert messages(await batch_of(b'{"message":"a\xff"}')) == ["a\ufffd"]
    assert messages(await batch_of(b'{"message":"a","ratio":NaN,"n":123456789012345678901}')) == ["a"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"message":"a"}\n{"message":"b"}', ["a", "b"]),
        ("hello", ["hello"]),
        ("two words\nlevel=info msg=x&y", ["two words", "level=info msg=x&y"]),
        ("a=1&b=2", ["a=1&b=2"]),
        ("msg=a+b&levelname=INFO", ["a b"]),
    ],
)
async def test_curl_names_a_form_whatever_it_sends(body: str, expected: list[str]) -> None:
    batch = await batch_of(body.encode(), content_type="application/x-www-form-urlencoded")
    assert messages(batch) == expected


async def test_the_answer_says_how_many() -> None:
    _, response = await accepted(codec(), Sent(b"a\nb"))
    assert (response.status, json.loads(response.body)) == (202, {"accepted": 2, "rejected": 0})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"correlationId": "c", "trace_id": TRACE}, "c"),
        ({"trace": {"id": TRACE}}, TRACE),
        ({"trace.id": TRACE}, TRACE),
        ({"trace_id": TRACE}, TRACE),
        ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, TRACE),
        ({"source": "shop"}, "shop"),
        ({}, "unknown"),
    ],
)
async def test_the_correlation_id(fields: dict[str, Any], expected: str) -> None:
    assert (await one({"message": "m"} | fields)).correlation_id == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"log": {"level": "error"}, "level": "info"}, "ERROR"),
        ({"log.level": "warning"}, "WARN"),
        ({"level": 30}, "INFO"),
        ({"level": {"name": "WARNING"}}, "WARN"),
        ({"severity": "CRITICAL"}, "FATAL"),
        ({"status": "debug"}, "DEBUG"),
        ({"levelname": "ERROR"}, "ERROR"),
        ({"status": 200, "severity": "warn"}, "WARN"),
        ({"status": 200}, "INFO"),
        ({}, "INFO"),
    ],
)
async def test_the_severity(fields: dict[str, Any], expected: str) -> None:
    assert (await one({"message": "m"} | fields)).severity == expected


@pytest.mark.parametrize("name", ["message", "msg", "event", "log", "text"])
async def test_the_message(name: str) -> None:
    event = await one({name: "hello", "a": 1})
    assert (event.message, event.attributes) == ("hello", {"a": 1})


async def test_a_record_without_a_message_is_its_own_message() -> None:
    event = await one({"a": {"b": 1}})
    assert (event.message, event.attributes) == ('{"a":{"b":1}}', {"a.b": 1})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"service": {"name": "shop"}, "source": "other"}, "shop"),
        ({"service": "shop"}, "shop"),
        ({"source": "shop"}, "shop"),
        ({"logger": "shop"}, "shop"),
        ({}, "unknown"),
    ],
)
async def test_the_source(fields: dict[str, Any], expected: str) -> None:
    assert (await one({"message": "m"} | fields)).source == expected


@pytest.mark.parametrize("name", ["@timestamp", "timestamp", "time", "date", "dt"])
async def test_the_time(name: str) -> None:
    event = await one({"message": "m", name: "2026-11-26T07:16:22.719131Z"})
    assert (event.timestamp, event.attributes) == (1_795_677_382_719, {"time_ns": 1_795_677_382_719_131_000})
    assert (await one({"message": "m", name: 1_795_677_382})).timestamp == 1_795_677_382_000
    assert (await one({"message": "m"})).timestamp == NOW_MS


async def test_msgpack_forms_and_cloud_events() -> None:
    packed = msgspec.msgpack.encode([{"message": "a", "dt": "2026-11-26T07:16:22Z"}, {"message": "b"}])
    assert messages(await batch_of(packed, content_type="application/msgpack")) == ["a", "b"]
    odd = msgspec.msgpack.encode({1: {2: "x"}, b"k": 3, "message": "a"})
    [event] = (await batch_of(odd, content_type="application/msgpack")).events
    assert (event.message, event.attributes) == ("a", {"1.2": "x", "b'k'": 3})
    form = urlencode({"name": "app", "msg": "a", "levelname": "ERROR", "created": "1795677303.675319"}).encode()
    [event] = (await batch_of(form, content_type="application/x-www-form-urlencoded")).events
    assert (event.message, event.severity, event.source, event.timestamp) == ("a", "ERROR", "app", 1_795_677_303_675)
    heads = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/shop", "ce_time": "2026-11-26T07:16:22Z"}
    [event] = (await batch_of(b'{"msg":"a"}', **heads)).events
    assert (event.message, event.source, event.timestamp) == ("a", "/shop", 1_795_677_382_000)
    [again] = (await batch_of(b'{"msg":"a"}', **heads)).events
    [other] = (await batch_of(b'{"msg":"a"}', **heads | {"ce_source": "/other"})).events
    assert event.event_id == again.event_id != other.event_id


PACKED = {"content_type": "application/msgpack"}


async def test_msgpack_types_of_an_application_are_the_same_text_each_time() -> None:
    # Given values of types that Sluice does not know, twice in one body, so that both are in memory at once
    odd = {"message": "a", "value": msgspec.msgpack.Ext(5, b"x"), "inner": [msgspec.msgpack.Ext(0, b"12345678")]}
    first, second = (await batch_of(msgspec.msgpack.encode([odd, odd]), **PACKED)).events
    assert first.attributes == second.attributes
    assert first.attributes == {"value": "eA==", "inner": '["MTIzNDU2Nzg="]'}


async def test_msgpack_values_without_a_record_are_bounded_and_take_steps() -> None:
    # Given empty arrays, a byte each
    few, many = b"\x90" * 9, b"\x90" * 11
    limited = codec(protocol_body_events_max=10)
    # When as many come as a body may have records, there are no events; and more are too many
    assert (await decoded(limited, Sent(few, {"content-type": "application/msgpack"}))).events == []
    with pytest.raises(BodyTooLargeError):
        await decoded(limited, Sent(many, {"content-type": "application/msgpack"}))
    # And others get their turn between them
    steps = lines._steps(BatchBuilder(few * 20, 1000), "application/msgpack", {}, "", 0)
    assert sum(1 for _ in steps) >= 180 // lines.RECORDS_A_STEP


async def test_msgpack_objects_one_after_another_with_their_times_as_fluent_bit_sends_them() -> None:
    second, nanosecond = 1_795_677_382, 719_131_456
    time = msgspec.msgpack.Ext(0, second.to_bytes(4) + nanosecond.to_bytes(4))
    ns = second * 10**9 + nanosecond
    entries = [
        [[time, {}], {"log": "a", "level": "warn"}],
        [time, {"log": "b"}],
        [second, {"log": "c"}],
        [[time, {}], {"log": "d", "@timestamp": second + 1}],
        {"log": "e"},
        [{"log": "f"}, "g"],
    ]
    batch = await batch_of(b"".join(map(msgspec.msgpack.encode, entries)), **PACKED)
    assert messages(batch) == list("abcdefg")
    a, b, c, d, e, *_ = batch.events
    assert (a.severity, a.timestamp, a.attributes) == ("WARN", ns // 10**6, {"time_ns": ns})
    assert (b.timestamp, c.timestamp) == (ns // 10**6, second * 1000)
    assert (d.timestamp, e.timestamp) == ((second + 1) * 1000, NOW_MS)
    # One entry alone is an entry too, and a chunk may be larger than one value may be
    [alone] = (await batch_of(msgspec.msgpack.encode(entries[0]), **PACKED)).events
    assert (alone.message, alone.timestamp) == ("a", ns // 10**6)
    entry = msgspec.msgpack.encode([[time, {}], {"log": "x" * 1000}])
    count = 2 * PACKED_BYTES_MAX // len(entry)
    assert len((await batch_of(entry * count, **PACKED)).events) == count
    # What is no msgpack is text
    assert messages(await batch_of(b'{"msg":"a"}\n{"msg":"b"}', **PACKED)) == ["a", "b"]
    assert messages(await batch_of(entry[:-1] + b"y" + b"\xc1not", **PACKED))[1:] == ["\ufffdnot"]


@pytest.mark.parametrize(
    ("name", "count", "first", "source", "severity"),
    [
        ("py-datadog-0", 5, "EV0 hello", "shop", "INFO"),
        ("py-logstash-async-0", 5, "EV0 hello world", "app.orders", "INFO"),
        ("js-pino-http-send-0", 5, "EV0 hello", "vm", "INFO"),
        ("js-winston-http-0", 1, "EV0 hello", "unknown", "INFO"),
        ("js-winston-http-1", 1, "EV2 hello", "unknown", "INFO"),
        ("js-logtail-0", 5, "EV0 hello", "unknown", "INFO"),
        ("py-logtail-0", 5, "EV0 hello world", "app.orders", "INFO"),
        ("c-fluentbit-http-default-0", 5, "EV0 hello", "shop", "INFO"),
        ("c-fluentbit-http-json-0", 5, "EV0 hello", "shop", "INFO"),
        ("c-fluentbit-http-jsonlines-0", 5, "EV0 hello", "shop", "INFO"),
        ("py-cloudevents-0", 1, "EV1 hello", "/shop", "INFO"),
        ("py-cloudevents-1", 1, "EV1 hello", "/shop", "INFO"),
        ("py-stdlib-httphandler-0", 1, "EV%d hello %s", "app.orders", "INFO"),
        ("py-stdlib-httphandler-1", 1, "EV%d failed", "app.orders", "ERROR"),
        ("deb-syslog-ng-0", 5, "EV0 hello", "shop", "INFO"),
        # These send Sluice's own JSON
        ("java-log4j2-http-0", 1, "EV0 hello", "app.orders", "INFO"),
        ("py-requests-httpx-aiohttp-0", 1, "EV1", "s", "INFO"),
        ("py-requests-httpx-aiohttp-1", 1, "EV1", "s", "INFO"),
        ("py-requests-httpx-aiohttp-2", 1, "EV1", "s", "INFO"),
    ],
)
async def test_what_real_clients_sent(name: str, count: int, first: str, source: str, severity: str) -> None:
    request = recorded(name)
    sent = Sent(request.body, request.headers, request.target)
    batch, again = await decoded(codec(), sent), await decoded(codec(), sent)
    event = batch.events[0]
    assert (event.message, event.source, event.severity) == (first, source, severity)
    assert (len(batch.events), batch.rejected) == (count, 0)
    ids = [one.event_id for one in batch.events]
    assert ids == [one.event_id for one in again.events]
    # Only what has no time may be new each time
    assert len(set(ids)) == (1 if event.timestamp == NOW_MS else count)
    assert (ids[0] is None) == (event.timestamp == NOW_MS)


@pytest.mark.parametrize("name", ["java-log4j2-http-0", *(f"py-requests-httpx-aiohttp-{n}" for n in range(3))])
async def test_clients_that_send_json_of_sluice_are_read_at_its_own_address(name: str) -> None:
    request = recorded(name)
    batch = await decoded(events_codec(Settings()), Sent(request.body, request.headers, request.target))
    [event] = batch.events
    assert event.message in ("EV0 hello", "EV1")
    assert 1_795_677_000_000 < event.timestamp < 1_795_678_000_000


@pytest.mark.parametrize(
    ("name", "message", "severity", "source"),
    [
        ("ecs-logging", "EV1 hello w", "WARN", "app.orders"),
        ("logstash-async", "EV1 hello w", "WARN", "app.orders"),
        ("loguru-serialize", "EV1 hello", "WARN", "__main__"),
        ("python-json-logger", "EV1 hello w", "WARN", "app.orders"),
        ("structlog", "EV1 hello", "WARN", "unknown"),
        ("winston-pino", "EV1 hello", "WARN", "unknown"),
    ],
)
async def test_what_logging_libraries_write(name: str, message: str, severity: str, source: str) -> None:
    event = (await batch_of(recorded_lines(name))).events[0]
    assert (event.message, event.severity, event.source) == (message, severity, source)
    assert event.timestamp // 86_400_000 == 1_795_678_050_000 // 86_400_000
    assert event.attributes is not None


async def test_content_codings_are_found_whatever_is_declared() -> None:
    body = b'{"message":"a"}\n' * 5000
    for coded, declared in (
        (gzip.compress(body), ""),
        (gzip.compress(body[:30]) + gzip.compress(body[30:]), "gzip"),
        (zlib.compress(body), "gzip,deflate"),
        (zstandard.compress(body), "gzip"),
        (zstandard.compress(body) + zstandard.compress(b""), ""),
        (zlib.compress(body), ""),
        (without_header(body), "deflate"),
        (without_header(body), "gzip, deflate"),
        (body, "gzip"),
        (body, "deflate"),
        (body, "utf-8"),
    ):
        assert messages(await batch_of(coded, content_encoding=declared)) == ["a"] * 5000
    assert messages(await batch_of(without_header(b'{"message":"a"}\n'), content_encoding="deflate")) == ["a"]
    for text in ("x^2 is text", "x\u0001", "x\u06a9"):
        assert messages(await batch_of(text.encode())) == [text]
    for text in ("x", "plain text", "2026-11-27 12:00:00 K\u00fcche"):
        assert messages(await batch_of(text.encode(), content_encoding="deflate")) == [text]


def without_header(body: bytes) -> bytes:
    """A body as some clients understand `deflate`: without the header and the checksum of zlib."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize("coding", ["br", "snappy", "gzip, lz4"])
async def test_a_coding_that_is_not_taken_is_refused_instead_of_being_stored_as_text(coding: str) -> None:
    with pytest.raises(MalformedBodyError, match=coding.rpartition(" ")[2]):
        await batch_of(b"\x0b\x07\x80text\x03", content_encoding=coding)
    assert messages(await batch_of(gzip.compress(b"a"), content_encoding=coding)) == ["a"]


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, zstandard.compress])
async def test_a_coding_has_limits(compress: Any) -> None:
    small = codec(protocol_body_bytes_max=1 << 20)
    bomb = compress(b"x" * (64 << 20))
    assert len(bomb) < 1 << 20
    headers = {"content-encoding": "any"}
    with pytest.raises(BodyTooLargeError):
        await decoded(small, Sent(bomb, headers))
    with pytest.raises(MalformedBodyError):
        await decoded(small, Sent(compress(b"some text, which is longer than a head")[:-5], headers))


async def test_the_number_of_records_has_a_limit() -> None:
    small = codec(protocol_body_events_max=3)
    assert len((await decoded(small, Sent(b"a\nb\nc"))).events) == 3
    with pytest.raises(BodyTooLargeError):
        await decoded(small, Sent(b"a\nb\nc\nd"))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)


@given(st.binary(max_size=300) | _json.map(lambda value: json.dumps(value).encode()), st.sampled_from(
    ["", "application/json", "application/msgpack", "application/x-www-form-urlencoded"]
))  # fmt: skip
async def test_no_content_is_refused_or_breaks_anything(body: bytes, media_type: str) -> None:
    try:
        batch = await batch_of(body, content_type=media_type)
    except RequestError:
        assert body[:2] == b"\x1f\x8b" or body[:4] == b"\x28\xb5\x2f\xfd"
        return
    for event in batch.events:
        event.event_id = event.event_id or "x"
        msgspec.json.decode(encode_record(event, b'{"receivedAt":1,"requestId":"r",'))
        assert "\0" not in event.message + event.source + event.correlation_id


async def test_what_is_nested_too_deeply_for_a_parser_is_text() -> None:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    [event] = (await batch_of(deep)).events
    assert event.message.startswith('{"a":{"a":')
    assert len(deep) > AT_ONCE_BYTES


MIB = 1 << 20
HOSTILE = {
    "numbers": b"[" + b"1," * (4 * MIB // 2) + b"1]",
    "objects": b"[" + b"{}," * (4 * MIB // 3) + b"{}]",
    "arrays in a record": b'[{"a":[' + b"[]," * (4 * MIB // 3) + b"1]}]",
    "numbers in an object": b'{"logs":[' + b"1," * (4 * MIB // 2) + b"1]}",
    "brackets": b"[" * (4 * MIB) + b"]",
    "closed brackets": b"[" * (2 * MIB) + b"]" * (2 * MIB),
    "a string without an end": b'["' + b'\\"' * (2 * MIB) + b"]",
    "line feeds": b"\n" * (4 * MIB) + b"x",
    "blank lines": b" \n" * (2 * MIB) + b"x",
    "one line": b"x" * (4 * MIB),
    "an object without an end": b'{\n"a":' * MIB,
    "commas": b"[" + b"," * (4 * MIB) + b"]",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_body_takes_much_memory(name: str) -> None:
    body = HOSTILE[name]
    builder = BatchBuilder(body, 20_000)
    steps = lines._steps(builder, "", {}, "", 1)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in steps:
            pass
    except BodyTooLargeError:
        assert name in ("numbers", "objects", "numbers in an object", "an object without an end")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 48 * MIB
