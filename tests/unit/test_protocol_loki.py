"""`POST /loki/api/v1/push`: what Loki's clients send becomes events, and each gets Loki's answer."""

import gzip
import json
import zlib
from collections import Counter
from typing import Any

import cramjam
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import BodyTooLargeError, MalformedBodyError, RateLimitedError, RequestError
from ingest.protocols.decoding import Decoding
from ingest.protocols.loki import PAIRS_MAX, labels_of, loki_codec
from ingest.protocols.records import CUT_MARK, DROPPED_KEY, TIME_NS_KEY
from ingest.types import Batch, Codec, Head
from pipeline.errors import LogUnavailableError, SluiceError
from pipeline.event import CORRELATION_ID_CHARS_MAX, Event, encode_record
from pipeline.names import ProtocolName
from pipeline.settings import Settings
from support.clients import recorded
from support.loki import entry, field, push, stream, varint
from support.protocols import NOW, FixedClock, Sent, accepted, decoded

NOW_MS = int(NOW * 1000)
NS = 1_795_677_435_213_000_000
MS = NS // 1_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"
PROTOBUF = {"content-type": "application/x-protobuf"}
SHOP = {"app": "shop", "env": "x"}
SHOP_TEXT = '{app="shop", env="x"}'


def codec(**settings: int) -> Codec:
    return loki_codec(Decoding(Settings(**settings), FixedClock()))  # type: ignore[arg-type]


def json_push(*values: Any, stream: Any = SHOP) -> bytes:
    return json.dumps({"streams": [{"stream": stream, "values": list(values)}]}).encode()


async def batch_of(body: bytes, headers: dict[str, str] | None = None, **settings: int) -> Batch:
    return await decoded(
        codec(**settings), Sent(body, {"content-type": "application/json"} if headers is None else headers)
    )


async def one(line: Any = "hello", metadata: Any = None, *, stream: Any = SHOP, time: Any = str(NS)) -> Event:
    value = [time, line] if metadata is None else [time, line, metadata]
    [event] = (await batch_of(json_push(value, stream=stream))).events
    return event


def snappy(data: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(data))


# --- The mapping, line by line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "labels", "expected"),
    [
        ({"trace_id": TRACE}, SHOP, TRACE),
        ({"traceID": TRACE}, SHOP, TRACE),
        ({"user": "u"}, SHOP, SHOP_TEXT),
        ({}, {"env": "x", "app": "shop"}, SHOP_TEXT),
        ({}, {"a": 'quote " and \\', "n": 5}, '{a="quote \\" and \\\\", n="5"}'),
        ({}, {}, "unknown"),
        ({"trace_id": ""}, SHOP, SHOP_TEXT),
        ({"trace_id": {"a": 1}}, SHOP, SHOP_TEXT),
    ],
)
async def test_the_correlation_id_is_the_trace_or_the_labels(
    metadata: dict[str, Any], labels: dict[str, Any], expected: str
) -> None:
    assert (await one(metadata=metadata, stream=labels)).correlation_id == expected


async def test_labels_that_are_too_long_for_a_correlation_id_are_cut() -> None:
    found = (await one(stream={"a": "x" * 500})).correlation_id
    assert len(found) == CORRELATION_ID_CHARS_MAX
    assert found.startswith('{a="xxx')
    assert found.endswith(CUT_MARK)


async def test_the_stream_decides_the_partition() -> None:
    body = json.dumps(
        {
            "streams": [
                {"stream": SHOP, "values": [[str(NS), "a", {"trace_id": "t1"}], [str(NS), "b", {"trace_id": "t2"}]]},
                {"stream": {"env": "x", "app": "shop"}, "values": [[str(NS), "c"]]},
                {"stream": {"app": "other"}, "values": [[str(NS), "d"]]},
                {"stream": {"a": "x" * 5000, "b": "1"}, "values": [[str(NS), "e"], [str(NS), "f"]]},
                {"stream": {"a": "x" * 5000, "b": "2"}, "values": [[str(NS), "g"]]},
            ]
        }
    ).encode()
    keys = (await batch_of(body)).partition_keys
    assert keys is not None
    assert keys[0] == keys[1] == keys[2] == SHOP_TEXT
    assert keys[3] == '{app="other"}'
    # A long text is not hashed again for each event
    assert keys[4] == keys[5] != keys[6]
    assert len(keys[4]) == 32


async def test_entries_without_labels_are_spread() -> None:
    keys = (await batch_of(json_push([str(NS), "a"], [str(NS), "b"], stream={}))).partition_keys
    assert keys == ["unknown#0", "unknown#1"]


@pytest.mark.parametrize(
    ("line", "metadata", "labels", "expected"),
    [
        ("m", {"level": "error"}, {"level": "info"}, "ERROR"),
        ("m", {"severity": "warning"}, {"level": "info"}, "WARN"),
        ("m", {"detected_level": "critical"}, {}, "FATAL"),
        ("m", {"level": "strange"}, {"severity": "debug"}, "DEBUG"),
        ("m", {}, {"level": "trace"}, "TRACE"),
        ("m", {}, {"detected_level": "warn"}, "WARN"),
        ('{"level":50}', {}, {"level": "debug"}, "DEBUG"),
        ('{"level":50}', {}, {}, "ERROR"),
        ('{"severity":"WARNING"}', {}, {}, "WARN"),
        ('{"log.level":"error","message":"x"}', {}, {}, "ERROR"),
        ('{"level":{"a":1},"severity":"fatal"}', {}, {}, "FATAL"),
        ('{"level":"error"', {}, {}, "INFO"),
        ('{"level":"error","x":"' + "x" * 20_000 + '"}', {}, {}, "INFO"),
        ('["level","error"]', {}, {}, "INFO"),
        ('{"a":' * 3000, {}, {}, "INFO"),
        ("level=error", {}, {}, "INFO"),
    ],
)
async def test_the_severity(line: str, metadata: dict[str, Any], labels: dict[str, Any], expected: str) -> None:
    assert (await one(line, metadata, stream=labels)).severity == expected


@pytest.mark.parametrize(
    ("metadata", "labels", "expected"),
    [
        ({"app": "b"}, {"service_name": "a", "app": "b", "job": "c"}, "a"),
        ({}, {"app": "b", "job": "c"}, "b"),
        ({}, {"job": "c"}, "c"),
        ({"service_name": "d"}, {"job": "c"}, "c"),
        ({"service_name": "d"}, {"x": "y"}, "d"),
        ({}, {"x": "y"}, '{x="y"}'),
        ({}, {}, "unknown"),
    ],
)
async def test_the_source(metadata: dict[str, Any], labels: dict[str, Any], expected: str) -> None:
    assert (await one(metadata=metadata, stream=labels)).source == expected


async def test_the_message_is_the_line() -> None:
    assert (await one("a line\nof two")).message == "a line\nof two"
    assert (await one('{"level":"info","msg":"m"}')).message == '{"level":"info","msg":"m"}'
    assert (await one("")).message == ""
    assert (await one({"a": 1})).message == '{"a":1}'
    assert (await one(None)).message == "null"


async def test_attributes_are_structured_metadata_and_then_labels() -> None:
    found = (await one(metadata={"user": "u", "trace_id": TRACE, "env": "mine"}, stream=SHOP)).attributes
    assert list((found or {}).items()) == [("user", "u"), ("trace_id", TRACE), ("env", "mine"), ("app", "shop")]


@pytest.mark.parametrize("labels", [3, 62, 63, 64, 65])
async def test_attributes_of_a_stream_are_those_of_each_entry(labels: int) -> None:
    stream = {f"label{n}": "x" for n in range(labels)}
    for time_ns in (NS, NS + 7):
        found = (await one(stream=stream, time=str(time_ns))).attributes
        assert found is not None
        assert found.get(TIME_NS_KEY) == (time_ns if time_ns != NS else None)
        assert len(found) <= 64
        expected = labels + (time_ns != NS)
        assert len(found) + found.get(DROPPED_KEY, 0) - (DROPPED_KEY in found) == expected  # type: ignore[operator]
    near = (await one(stream={"a": "x" * 8170}, time=str(NS + 7))).attributes
    assert len(msgspec.json.encode(near)) <= 8192


async def test_structured_metadata_may_be_within_an_object() -> None:
    found = (await one(metadata={"structuredMetadata": {"user": "u"}, "parsed": {}}, stream={})).attributes
    assert found == {"user": "u"}
    assert (await one(metadata=["a"], stream={})).attributes == {"structuredMetadata": '["a"]'}


async def test_attributes_that_find_no_room_are_counted_once() -> None:
    labels = {f"label{n}": n for n in range(100)}
    found = (await one(metadata={f"m{n}": n for n in range(5)}, stream=labels)).attributes
    assert found is not None
    assert len(found) == 64
    assert found[DROPPED_KEY] == 105 - 63
    assert {"m0", "m4", "label0"} <= found.keys()


@pytest.mark.parametrize(
    ("time", "ms", "ns"),
    [
        (str(NS), MS, None),
        (str(NS + 7), MS, NS + 7),
        (NS + 7, MS, NS + 7),
        ("2026-11-26T06:37:15.213Z", None, None),
        ("0", NOW_MS, None),
        ("-5", NOW_MS, None),
        ("soon", NOW_MS, None),
        (None, NOW_MS, None),
        ({}, NOW_MS, None),
        ("9" * 40, NOW_MS, None),
        ("1795677435", 1_795_677_435_000, None),
    ],
)
async def test_the_time(time: Any, ms: int | None, ns: int | None) -> None:
    event = await one(time=time, stream={})
    assert event.timestamp == (ms or 1_795_675_035_213)
    assert (event.attributes or {}).get(TIME_NS_KEY) == ns


# --- Labels as text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{app="shop", env="x"}', SHOP),
        ('{app="shop",env="x"}', SHOP),
        ('  { app = "shop" , env= "x" , }  ', SHOP),
        ("{}", {}),
        ("{ }", {}),
        ('{a="quote \\" and \\\\ and \\n"}', {"a": 'quote " and \\ and \n'}),
        ('{a="\\x41\\u00e9\\U0001F600\\101\\t"}', {"a": "A\u00e9\U0001f600A\t"}),
        ('{a="\\xc3\\xa9"}', {"a": "é"}),
        ('{a="\\xff\\ud800\\U00110000"}', {"a": "\ufffd\ufffd\ufffd"}),
        ('{a="\\q"}', {"a": "q"}),
        ('{a=`raw \\n "x"`}', {"a": 'raw \\n "x"'}),
        ('{a="}, b=\\"c\\"", b="1"}', {"a": '}, b="c"', "b": "1"}),
        ('{a="1", a="2"}', {"a": "1"}),
        ('{a="é\n"}', {"a": "é\n"}),
    ],
)
def test_a_text_of_labels(text: str, expected: dict[str, str]) -> None:
    assert labels_of(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "app", '{app="shop"', 'app="shop"}', '{app="shop" env="x"}', '{app=shop}', '{app="a"b"}', "{app=}",
        '{="a"}', '{a="1"}}', '{"a"="1"}',
        '{a="1"} x', '{a="\\"}', "{" + " " * 999 + "}x", '{a="' + "x" * 70_000 + '"}',
    ],
)  # fmt: skip
def test_a_text_that_is_no_labels_stays_a_text(text: str) -> None:
    assert labels_of(text) == text


async def test_labels_that_are_not_understood_are_kept_as_a_whole() -> None:
    event = await one(stream='{app="a"b"}')
    assert event.attributes == {"labels": '{app="a"b"}'}
    assert event.correlation_id == event.source == '{app="a"b"}'


@given(st.text(max_size=60) | st.text('{}="\\`, \nax0u', max_size=60))
def test_any_text_of_labels_ends(text: str) -> None:
    found = labels_of(text)
    if isinstance(found, dict):
        assert all(char < "\ud800" or char > "\udfff" for value in found.values() for char in value)
    else:
        assert found == text


# --- Forms of a body ------------------------------------------------------------------------------------------------


async def test_the_older_form() -> None:
    body = {
        "streams": [
            {
                "labels": '{app="shop",severity="warning"}',
                "entries": [{"ts": "2026-11-26T06:37:15.213000Z", "line": "a"}, {"line": "b"}],
            }
        ]
    }
    first, second = (await batch_of(json.dumps(body).encode())).events
    assert (first.message, first.severity, first.source, first.timestamp) == ("a", "WARN", "shop", 1_795_675_035_213)
    assert (second.message, second.timestamp) == ("b", NOW_MS)
    assert first.correlation_id == '{app="shop", severity="warning"}'


async def test_protobuf() -> None:
    body = push(
        stream(
            '{app="shop", level="error"}',
            entry(NS + 1, "first", {"trace_id": TRACE, "user": "u"}),
            entry(NS, "second"),
        ),
        stream('{app="other"}', entry(0, "third")),
    )
    batch, response = await accepted(codec(), Sent(snappy(body), PROTOBUF))
    first, second, third = batch.events
    assert first == Event(
        TRACE, "ERROR", "first", "shop", MS, first.event_id,
        {"time_ns": NS + 1, "trace_id": TRACE, "user": "u", "app": "shop", "level": "error"},
    )  # fmt: skip
    assert second.correlation_id == '{app="shop", level="error"}'
    assert (third.message, third.timestamp) == ("third", NOW_MS)
    assert batch.partition_keys == ['{app="shop", level="error"}'] * 2 + ['{app="other"}']
    assert (response.status, response.body) == (204, b"")


async def test_fields_that_are_not_known_are_skipped() -> None:
    hash_of_stream = varint(3 << 3) + varint(2**64 - 1)
    content = hash_of_stream + field(9, b"new") + field(1, b"{}") + entry(NS, "a") + field(2, field(9, b"x"))
    body = field(2, b"loki") + field(1, content) + varint(5 << 3 | 1) + b"12345678" + varint(6 << 3 | 5) + b"1234"
    assert [event.message for event in (await batch_of(snappy(body), PROTOBUF)).events] == ["a", ""]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": ""},
        {"content-type": "text/plain"},
        {"content-type": "application/octet-stream"},
        {"content-type": "application/x-protobuf"},
        {"content-type": "application/x-protobuf", "content-encoding": "snappy"},
        {"content-type": "Application/JSON; charset=utf-8"},
        {"content-type": "application/json", "content-encoding": "snappy"},
    ],
)
@pytest.mark.parametrize("form", ["json", "protobuf", "spaced"])
async def test_a_form_that_is_not_named_is_found(headers: dict[str, str], form: str) -> None:
    body = {
        "json": json_push([str(NS), "hello"]),
        "spaced": b'\xef\xbb\xbf\r\n {\n\t"streams": [{"stream":{},"values":[["1","hello"]]}]}',
        "protobuf": snappy(push(stream(SHOP_TEXT, entry(NS, "hello")))),
    }[form]
    if form == "protobuf" and "json" in headers.get("content-type", "").lower():
        with pytest.raises(MalformedBodyError):
            await batch_of(body, headers)
    else:
        assert [event.message for event in (await batch_of(body, headers)).events] == ["hello"]


async def test_every_length_of_snappy_is_found_whatever_it_looks_like() -> None:
    # Some lengths look like zlib, gzip or an opening brace
    for size in range(60, 900):
        body = snappy(push(stream("{}", entry(NS, "x" * size))))
        for headers in ({}, {**PROTOBUF, "content-encoding": "snappy"}):
            [event] = (await batch_of(body, headers)).events
            assert len(event.message) == size


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_json_may_be_compressed(pack: Any) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert len((await batch_of(pack(json_push([str(NS), "a"])), headers)).events) == 1


async def test_snappy_may_be_gzipped() -> None:
    body = gzip.compress(snappy(push(stream("{}", entry(NS, "a")))))
    assert len((await batch_of(body, PROTOBUF)).events) == 1


async def test_a_body_without_entries_is_accepted() -> None:
    bodies = (b'{"streams":[]}', b'{"streams":null}', b'{"streams":[{"stream":{}}]}', b'{"streams":[{"values":null}]}')
    for body in bodies:
        batch, response = await accepted(codec(), Sent(body, {"content-type": "application/json"}))
        assert (batch.events, batch.rejected, response.status) == ([], 0, 204)
    assert (await batch_of(snappy(b""), PROTOBUF)).events == []


# --- Answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"", {}, "neither JSON nor snappy"),
        (b"hello", {}, "neither JSON nor snappy"),
        (b"\xff" * 20, PROTOBUF, "neither JSON nor snappy"),
        (b"", {"content-type": "application/json"}, "not an object with streams"),
        (b"{}", {}, "not an object with streams"),
        (b"[]", {"content-type": "application/json"}, "not an object with streams"),
        (b'{"streams":{}}', {}, "not an object with streams"),
        (b'{"streams":[', {}, "not an object with streams"),
        (b'{"streams":' + b"[" * 100_000, {}, "not an object with streams"),
        (gzip.compress(b"{}", mtime=0)[:-9], {}, "is not gzip"),
        (snappy(b"\x0b"), PROTOBUF, "a field is of type 3"),
        (snappy(b"\x0a\x05ab"), PROTOBUF, "it is cut off"),
        (snappy(b"\x0a"), PROTOBUF, "a number is cut off"),
        (snappy(b"\x09ab"), PROTOBUF, "it is cut off"),
        (snappy(b"\xff" * 11), PROTOBUF, "a number is cut off"),
        (snappy(push(b"\x12\x05a")), PROTOBUF, "it is cut off"),
    ],
)
async def test_a_body_that_can_t_be_read_at_all_is_malformed(
    body: bytes, headers: dict[str, str], message: str
) -> None:
    with pytest.raises(MalformedBodyError) as caught:
        await batch_of(body, headers)
    response = codec().rejected(Head({}, "/"), caught.value)
    assert response.status == 400
    assert message in response.body.decode()


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (MalformedBodyError("it is broken"), 400, set()),
        (BodyTooLargeError(5, "bytes"), 413, set()),
        (RateLimitedError(2.0, quota=5, left=0), 429, {"retry-after", "ratelimit", "ratelimit-policy"}),
        (LogUnavailableError("away"), 503, {"retry-after"}),
    ],
)
def test_an_error_is_text_as_loki_writes_it(error: SluiceError, status: int, headers: set[str]) -> None:
    response = codec().rejected(Head({}, "/"), error)
    assert response.status == status
    assert response.media_type == "text/plain; charset=utf-8"
    assert response.headers.keys() == headers | {"x-content-type-options"}
    assert response.body.decode() == f"{error}\n"


def test_it_is_the_protocol_loki() -> None:
    assert codec().name is ProtocolName.LOKI
    assert codec().bytes_max == Settings().protocol_body_bytes_max
    assert not codec().is_one_way


# --- Limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("records", [3, 4])
async def test_the_records_of_a_body_are_limited(records: int) -> None:
    in_json = json_push(*[[str(NS), "a"]] * records)
    in_protobuf = snappy(push(stream("{}", *[entry(NS, "a")] * 2), stream("{}", *[entry(NS, "a")] * (records - 2))))
    for body, headers in ((in_json, None), (in_protobuf, PROTOBUF)):
        if records > 3:
            with pytest.raises(BodyTooLargeError):
                await batch_of(body, headers, protocol_body_events_max=3)
        else:
            assert len((await batch_of(body, headers, protocol_body_events_max=3)).events) == 3


@pytest.mark.parametrize("count", [3, 4])
async def test_entries_that_can_t_be_read_count_as_well(count: int) -> None:
    in_json, in_protobuf = json_push(*[5] * count), snappy(push(stream("{}", *[field(2, b"\xff")] * count)))
    for body, headers in ((in_json, None), (in_protobuf, PROTOBUF)):
        if count > 3:
            with pytest.raises(BodyTooLargeError):
                await batch_of(body, headers, protocol_body_events_max=3)
        else:
            assert (await batch_of(body, headers, protocol_body_events_max=3)).rejected == 3


async def test_the_declared_length_of_snappy_is_checked_before_it_gets_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_data: bytes) -> bytes:
        raise AssertionError("it was decompressed")

    monkeypatch.setattr(cramjam.snappy, "decompress_raw", fail)
    with pytest.raises(BodyTooLargeError):
        await batch_of(varint(5000) + b"\0" * 4000, PROTOBUF, protocol_body_bytes_max=4096)
    with pytest.raises(MalformedBodyError):  # no snappy grows by so much
        await batch_of(varint(1 << 20) + b"\0" * 10, PROTOBUF)


async def test_the_most_that_snappy_can_grow_is_accepted() -> None:
    packed = snappy(push(stream("{}", entry(NS, "a" * 1_000_000))))
    assert len(packed) < 1_000_000 / 21
    [event] = (await batch_of(packed, PROTOBUF)).events
    assert event.message.startswith("aaa")


async def test_millions_of_empty_fields_are_no_millions_of_objects() -> None:
    # Given bodies of a megabyte that are half a million objects for a parser of the whole
    empty_entries = push(stream("{}", b"\x12\x00" * 500_000))
    with pytest.raises(BodyTooLargeError):
        await batch_of(snappy(empty_entries), PROTOBUF)
    # A stream without entries costs more than an entry
    for body, headers in (
        (snappy(b"\x0a\x00" * 20_001), PROTOBUF),
        (b'{"streams":[' + b"{}," * 20_000 + b"{}]}", None),
    ):
        with pytest.raises(BodyTooLargeError):
            await batch_of(body, headers)
    assert (await batch_of(snappy(b"\x0a\x00" * 20_000), PROTOBUF)).events == []
    # An entry with too much structured metadata is rejected alone
    vast = field(2, field(2, b"vast") + b"\x1a\x00" * (PAIRS_MAX + 1))
    batch = await batch_of(snappy(push(stream("{}", vast, entry(NS, "next")))), PROTOBUF)
    assert [event.message for event in batch.events] == ["next"]
    assert batch.rejected == 1


@pytest.mark.parametrize("vast", [[[]] * 5001, {"a": [{}] * 5001}], ids=["array", "object"])
async def test_a_vast_part_of_an_entry_is_not_decoded(vast: Any) -> None:
    # Given an entry whose line has many brackets, and whose metadata has many values
    line = json.dumps({"level": "error", "a": [[]] * 5001})
    assert (await one(line)).message == line
    # When it is decoded
    event = await one(line, vast)
    # Then the line is kept, and the metadata has no room
    assert event.message == line
    assert event.attributes is not None
    assert event.attributes[DROPPED_KEY] == 1
    # And so it is with labels, and with an entry that is an object
    assert (await one("a", stream={"a": vast})).message == "a"
    [event] = (await batch_of(json_push({"line": "a", "x": [[]] * 5001}))).events
    assert event.message == "a"


async def test_a_large_body_is_decoded_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Counter[str]()
    run = Decoding.run

    async def counted(self: Decoding, generator: Any, size: int) -> Any:
        def counting() -> Any:
            while True:
                try:
                    next(generator)
                except StopIteration as end:
                    return end.value
                steps["n"] += 1
                yield

        return await run(self, counting(), size)

    monkeypatch.setattr(Decoding, "run", counted)
    for body, headers in (
        (json_push(*[[str(NS), "x" * 50]] * 2000), None),
        (snappy(push(stream("{}", *[entry(NS, "x" * 50)] * 2000))), PROTOBUF),
    ):
        steps.clear()
        assert len((await batch_of(body, headers)).events) == 2000
        assert steps["n"] >= 100


# --- Records that are broken ----------------------------------------------------------------------------------------


async def test_one_broken_record_does_not_refuse_the_others() -> None:
    body = (
        b'{"streams":[5,{"stream":{"app":"shop"},"values":[["1","good"],5,[],["1"],null,{"a":1},'
        b'["1","bytes \xff"],'
        b'["1","half \\ud800"],["1","nul \\u0000"],"text",["1",' + b"[" * 500 + b"]" * 500 + b"]]},"
        b'{"stream":{"app":"\xff"},"values":[["1","next"]]},{"stream":{"a":"\\ud800"},"values":[["1","last"]]}]}'
    )  # fmt: skip
    batch = await batch_of(body)
    messages = [event.message for event in batch.events]
    assert messages[:4] == ["good", "bytes \ufffd", "half \ufffd", "nul \ufffd"]
    assert messages[4] == "text"
    assert messages[-2:] == ["next", "last"]
    assert batch.rejected == 6
    assert batch.events[-2].source == "\ufffd"
    assert batch.events[-1].source == '{a="\ufffd"}'


async def test_a_broken_entry_of_protobuf_does_not_refuse_the_others() -> None:
    body = push(
        stream(b'{app="\xff"}', field(2, b"\xff"), entry(NS, b"bytes \xff\0"), entry(NS, "a", {b"\xff": b"\0"})),
        stream(b"no labels", entry(NS, "b")),
        stream("{}", entry(-5, "early"), entry(2**62, "late")),
    )
    batch = await batch_of(snappy(body), PROTOBUF)
    assert [event.message for event in batch.events] == ["bytes \ufffd\ufffd", "a", "b", "early", "late"]
    assert batch.rejected == 1
    assert batch.events[0].source == "\ufffd"
    assert batch.events[1].attributes == {"\ufffd": "\ufffd", "app": "\ufffd"}
    assert batch.events[2].attributes == {"labels": "no labels"}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_pushes = st.builds(
    lambda labels, values: json.dumps({"streams": [{"stream": labels, "values": values}]}).encode(),
    _json, st.lists(st.tuples(_json, _json, _json) | _json, max_size=4),
)  # fmt: skip
_entries = st.builds(
    entry,
    st.integers(-(2**40), 2**62),
    st.binary(max_size=20),
    st.dictionaries(st.binary(max_size=5), st.binary(max_size=9)),
) | st.binary(max_size=20).map(lambda data: field(2, data))
_protobufs = st.builds(
    lambda labels, entries: snappy(push(stream(labels, *entries))),
    st.binary(max_size=20),
    st.lists(_entries, max_size=4),
)


@given(
    st.binary(max_size=200) | _pushes | _protobufs | st.binary(max_size=100).map(snappy),
    st.sampled_from(["", "application/json", "application/x-protobuf"]),
)
async def test_no_content_breaks_anything(body: bytes, media_type: str) -> None:
    try:
        batch = await batch_of(body, {"content-type": media_type})
    except RequestError:
        return
    for event in batch.events:
        event.event_id = event.event_id or "x"
        msgspec.json.decode(encode_record(event, b'{"receivedAt":1,"requestId":"r",'))
        assert "\0" not in event.message + event.source + event.correlation_id


@given(_pushes, st.sampled_from(["application/json", ""]))
async def test_no_record_refuses_its_body(body: bytes, media_type: str) -> None:
    if b"NaN" not in body and b"Infinity" not in body:
        await batch_of(body, {"content-type": media_type})


# --- Repeats --------------------------------------------------------------------------------------------------------


async def test_a_body_that_is_sent_again_has_the_same_ids() -> None:
    plain = json_push([str(NS), "a"], [str(NS), "a"])
    ids = [event.event_id for event in (await batch_of(plain)).events]
    assert len(set(ids)) == 2
    assert None not in ids
    for body, headers in ((plain, None), (gzip.compress(plain), {"content-encoding": "gzip"})):
        assert [event.event_id for event in (await batch_of(body, headers)).events] == ids
    body = snappy(push(stream("{}", entry(NS, "a"))))
    assert (await batch_of(body, PROTOBUF)).events == (await batch_of(body, PROTOBUF)).events


async def test_bodies_without_any_time_have_random_ids() -> None:
    assert (await batch_of(json_push(["0", "a"]))).events[0].event_id is None


# --- Recorded requests ----------------------------------------------------------------------------------------------


async def of_recording(name: str) -> list[Event]:
    request = recorded(name)
    assert request.target == "/loki/api/v1/push"
    batch, response = await accepted(codec(), Sent(request.body, request.headers, request.target))
    assert (response.status, response.body, batch.rejected) == (204, b"", 0)
    return batch.events


async def test_pino_loki() -> None:
    events = await of_recording("js-pino-loki-0")
    assert [event.message.partition('"msg":')[2] for event in events] == [f'"EV{n} hello"}}' for n in range(5)]
    first = events[0]
    assert (first.severity, first.source, first.timestamp) == ("INFO", "shop", NS // 1_000_000)
    assert first.correlation_id == '{app="shop", hostname="vm", level="info"}'
    assert first.attributes == {"level": "info", "hostname": "vm", "app": "shop"}


async def test_winston_loki() -> None:
    events = await of_recording("js-winston-loki-json-0")
    assert [event.message[:9] for event in events] == [f"EV{n} hello" for n in range(5)]
    assert {(event.severity, event.source) for event in events} == {("INFO", "shop")}
    assert events[0].attributes == {"userId": "42", "level": "info", "app": "shop"}


@pytest.mark.parametrize("name", ["py-logging-loki-0", "py-logging-loki-queue-0"])
async def test_python_logging_loki(name: str) -> None:
    [event] = await of_recording(name)
    assert (event.message, event.severity, event.source) == ("EV0 hello world", "INFO", "shop")
    assert event.attributes is not None
    assert event.attributes[TIME_NS_KEY] // 1_000_000 == event.timestamp  # type: ignore[operator]
    assert event.attributes["logger"] == "app.orders"


async def test_python_logging_loki_with_an_exception() -> None:
    [event] = await of_recording("py-logging-loki-queue-1")
    assert event.severity == "ERROR"
    assert event.message.startswith("EV1 failed\nTraceback")


async def test_fluent_bit() -> None:
    events = await of_recording("c-fluentbit-loki-0")
    assert [json.loads(event.message)["message"] for event in events] == [f"EV{n} hello" for n in range(5)]
    assert {(event.severity, event.source) for event in events} == {("INFO", "shop")}
    assert {event.correlation_id for event in events} == {'{app="shop", job="fluentbit"}'}
