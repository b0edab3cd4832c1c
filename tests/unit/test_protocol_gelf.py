"""`POST /gelf`: what Graylog's clients send becomes events."""

import gzip
import json
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import BodyTooLargeError, MalformedBodyError, RateLimitedError, RequestError
from ingest.protocols.decoding import AT_ONCE_BYTES, Decoding
from ingest.protocols.gelf import FULL_MESSAGE_CHARS_MAX, gelf_codec
from ingest.protocols.records import CUT_MARK, DROPPED_KEY
from ingest.types import Batch, Codec, Head
from pipeline.event import Event, encode_record
from pipeline.names import ProtocolName
from pipeline.settings import Settings
from support.clients import recorded
from support.protocols import NOW, FixedClock, Sent, accepted, decoded

NOW_MS = int(NOW * 1000)
TRACE = "0af7651916cd43dd8448eb211c80319c"
DECLARED = {"content-encoding": "gzip,deflate"}


def codec(**settings: int) -> Codec:
    return gelf_codec(Decoding(Settings(**settings), FixedClock()))  # type: ignore[arg-type]


async def batch_of(body: bytes, headers: dict[str, str] | None = None, **settings: int) -> Batch:
    return await decoded(codec(**settings), Sent(body, headers or {}))


async def one(**fields: Any) -> Event:
    message = {"version": "1.1", "host": "vm", "short_message": "m"} | fields
    body = {key: value for key, value in message.items() if value is not ...}
    [event] = (await batch_of(json.dumps(body).encode())).events
    return event


# --- The mapping, line by line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"_trace_id": TRACE}, TRACE),
        ({"_traceId": TRACE}, TRACE),
        ({"_correlation_id": 7}, "7"),
        ({"_trace_id": ""}, "vm"),
        ({"_app": "shop"}, "vm"),
        ({"host": ..., "_app": "shop"}, "shop"),
        ({"host": ...}, "unknown"),
    ],
)
async def test_the_correlation_id_is_the_trace_or_the_host(fields: dict[str, Any], expected: str) -> None:
    assert (await one(**fields)).correlation_id == expected


@pytest.mark.parametrize("text", ["[12345.678] usb 1-1: new device", '["x"] y', "[1] a [2]", "[]: empty"])
async def test_text_that_begins_like_an_array_is_one_message(text: str) -> None:
    assert [event.message for event in (await batch_of(text.encode())).events] == [text]


async def test_events_without_a_trace_are_spread() -> None:
    body = b'{"short_message":"a","host":"vm"}\n{"short_message":"b","host":"vm","_trace_id":"t"}'
    assert (await batch_of(body)).partition_keys == ["vm#0", "t"]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0, "FATAL"), (1, "FATAL"), (2, "FATAL"), (3, "ERROR"), (4, "WARN"), (5, "INFO"), (6, "INFO"), (7, "DEBUG"),
        ("3", "ERROR"), ("warning", "WARN"), ("Critical", "FATAL"), (4.0, "WARN"),
        # graypy sends the level of Python's logging, if it is none of the usual ones
        (10, "DEBUG"), (25, "INFO"), (35, "WARN"), (50, "FATAL"), (99, "FATAL"), (10**30, "FATAL"),
        (8, "INFO"), (-1, "INFO"), (True, "INFO"), (None, "INFO"), ("strange", "INFO"), ([3], "INFO"),
    ],
)  # fmt: skip
async def test_the_severity_is_that_of_syslog(level: Any, expected: str) -> None:
    assert (await one(level=level)).severity == expected


async def test_the_severity_may_have_a_name_only() -> None:
    assert (await one(level_name="ERROR")).severity == "ERROR"
    assert (await one(_levelname="WARNING")).severity == "WARN"
    assert (await one()).severity == "INFO"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"_app": "shop", "facility": "f"}, "shop"),
        ({"facility": "app.orders"}, "app.orders"),
        ({}, "vm"),
        ({"host": ...}, "unknown"),
        ({"_app": {"a": 1}}, "vm"),
    ],
)
async def test_the_source(fields: dict[str, Any], expected: str) -> None:
    assert (await one(**fields)).source == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"short_message": "a", "message": "b"}, "a"),
        ({"short_message": "", "message": "b"}, "b"),
        ({"short_message": ..., "full_message": "c"}, "c"),
        ({"short_message": {"a": 1}}, '{"a":1}'),
        ({"short_message": ..., "version": ...}, '{"host":"vm"}'),
    ],
)
async def test_the_message(fields: dict[str, Any], expected: str) -> None:
    assert (await one(**fields)).message == expected


@pytest.mark.parametrize(
    ("time", "ms", "ns"),
    [
        (1795677300.118725, 1_795_677_300_118, 1_795_677_300_118_725_000),
        ("1795677300.5", 1_795_677_300_500, None),
        (1795677300, 1_795_677_300_000, None),
        (1795677300118, 1_795_677_300_118, None),
        (0, NOW_MS, None), (-1, NOW_MS, None), ("soon", NOW_MS, None), (None, NOW_MS, None),
    ],
)  # fmt: skip
async def test_the_time_is_in_seconds(time: Any, ms: int, ns: int | None) -> None:
    event = await one(timestamp=time)
    assert event.timestamp == ms
    assert (event.attributes or {}).get("time_ns") == ns


async def test_additional_fields_become_attributes_without_their_underscore() -> None:
    event = await one(_user=42, _nested={"a": {"b": True}}, file="x.py", line=28, _none=None, _=1, full_message="long")
    assert event.attributes == {
        "user": 42, "nested.a.b": True, "file": "x.py", "line": 28, "_": 1, "full_message": "long",
    }  # fmt: skip


async def test_the_host_is_an_attribute_unless_it_is_the_source() -> None:
    assert (await one()).attributes is None
    assert (await one(_app="shop")).attributes == {"host": "vm"}
    assert (await one(_app="shop", _trace_id=TRACE)).attributes == {"host": "vm"}
    assert (await one(_app="shop", facility="f")).attributes == {"host": "vm", "facility": "f"}


async def test_a_field_keeps_its_underscore_if_its_name_is_in_use() -> None:
    event = await one(_host="other", _file="a", file="b", _level_="c")
    assert event.attributes == {"_host": "other", "_file": "a", "file": "b", "level_": "c"}


async def test_a_long_full_message_is_cut_instead_of_dropped() -> None:
    found = (await one(full_message="x" * 100_000, _user=1)).attributes
    assert found is not None
    assert len(str(found["full_message"])) == FULL_MESSAGE_CHARS_MAX
    assert str(found["full_message"]).endswith(CUT_MARK)
    assert list(found) == ["user", "full_message"]
    assert (await one(full_message=["a"])).attributes == {"full_message": '["a"]'}


# --- Forms of a body ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"short_message":"a"}', ["a"]),
        ('{"short_message":"a"}\0', ["a"]),
        ('{"short_message":"a"}\r\n\0\0', ["a"]),
        ('{"short_message":"a"}\n{"short_message":"b"}\r\n\n', ["a", "b"]),
        ('{"short_message":"a"}\0{"short_message":"b"}\0', ["a", "b"]),
        ('{"short_message":"a"}\nbroken', ["a", "broken"]),
        ('{\n  "short_message": "a"\n}', ["a"]),
        ('[{"short_message":"a"},{"short_message":"b"}, "c"]', ["a", "b", "c"]),
        ('\ufeff{"short_message":"a"}', ["a"]),
        ("plain text", ["plain text"]),
        ("text of\ntwo lines", ["text of\ntwo lines"]),
        ("[no array", ["[no array"]),
        ('"text"', ["text"]),
        ("42", ["42"]),
        ("[]", []),
        ("", []),
        ("\0", []),
    ],
)
async def test_every_form_of_a_body_becomes_its_messages(body: str, expected: list[str]) -> None:
    batch = await batch_of(body.encode())
    assert [event.message for event in batch.events] == expected
    assert batch.rejected == 0


async def test_bytes_that_are_no_text_are_kept_as_far_as_text_can() -> None:
    assert [event.message for event in (await batch_of(b"a\xff\0b")).events] == ["a\ufffd\ufffdb"]


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress, bytes])
async def test_the_coding_is_found_whatever_is_declared(pack: Any) -> None:
    body = pack(b'{"short_message":"a"}')
    assert len((await batch_of(body, DECLARED)).events) == 1
    if pack is not zlib.compress:
        assert len((await batch_of(body)).events) == 1


# --- Answers and limits ---------------------------------------------------------------------------------------------


async def test_the_answer_is_202_without_a_body() -> None:
    _, response = await accepted(codec(), Sent(b'{"short_message":"a"}'))
    assert (response.status, response.body, response.headers) == (202, b"", {})


def test_an_error_is_as_everywhere() -> None:
    response = codec().rejected(Head({}, "/"), RateLimitedError(2.0, quota=5, left=0))
    assert response.status == 429
    assert "retry-after" in response.headers
    assert json.loads(response.body)["error"]["code"] == "rate_limited"


def test_it_is_the_protocol_gelf_whose_clients_do_not_wait() -> None:
    assert codec().name is ProtocolName.GELF
    assert codec().is_one_way


async def test_the_limits_of_a_body() -> None:
    body = b'{"short_message":"a"}\n' * 4
    with pytest.raises(BodyTooLargeError):
        await batch_of(body, protocol_body_events_max=3)
    assert len((await batch_of(body, protocol_body_events_max=4)).events) == 4
    with pytest.raises(BodyTooLargeError):
        await batch_of(zlib.compress(b'"' + b"x" * 2000), DECLARED, protocol_body_bytes_max=1024)
    with pytest.raises(MalformedBodyError):
        await batch_of(zlib.compress(b"x" * 2000)[:-2], DECLARED)


async def test_a_large_body_becomes_its_events() -> None:
    body = b"\n".join(b'{"short_message":"%d"}' % number for number in range(AT_ONCE_BYTES // 10))
    assert len((await batch_of(body)).events) == AT_ONCE_BYTES // 10


async def test_a_message_with_too_many_fields_keeps_the_first() -> None:
    found = (await one(**{f"_f{n}": n for n in range(4000)})).attributes
    assert found is not None
    assert found["f0"] == 0
    assert found[DROPPED_KEY] == 4000 - 63


async def test_what_is_nested_too_deeply_for_a_parser_is_text() -> None:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    [event] = (await batch_of(deep)).events
    assert event.message.startswith('{"a":{"a":')


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_names = st.sampled_from(
    ["short_message", "full_message", "host", "level", "timestamp", "facility", "_app", "_trace_id"]
)
_messages = st.dictionaries(_names | st.text(max_size=5), _json, max_size=8)


@given(st.binary(max_size=300) | _json.map(lambda value: json.dumps(value).encode())
       | _messages.map(lambda value: json.dumps(value).encode()), st.sampled_from(["", "gzip,deflate"]))  # fmt: skip
async def test_no_content_is_refused_or_breaks_anything(body: bytes, coding: str) -> None:
    try:
        batch = await batch_of(body, {"content-encoding": coding})
    except RequestError:
        assert body[:2] == b"\x1f\x8b" or body[:4] == b"\x28\xb5\x2f\xfd" or (coding and body[0] & 15 == 8)
        return
    assert batch.rejected == 0
    for event in batch.events:
        event.event_id = event.event_id or "x"
        msgspec.json.decode(encode_record(event, b'{"receivedAt":1,"requestId":"r",'))
        assert "\0" not in event.message + event.source + event.correlation_id


# --- Repeats and recorded requests ----------------------------------------------------------------------------------


async def test_a_body_that_is_sent_again_has_the_same_ids() -> None:
    body = b'{"short_message":"a","timestamp":1795677300.5}\n{"short_message":"a"}'
    ids = [event.event_id for event in (await batch_of(body)).events]
    assert len(set(ids)) == 2
    assert [event.event_id for event in (await batch_of(zlib.compress(body), DECLARED)).events] == ids
    assert (await batch_of(b'{"short_message":"a"}')).events[0].event_id is None


async def of_recording(name: str) -> Event:
    request = recorded(name)
    assert request.target == "/gelf"
    batch, response = await accepted(codec(), Sent(request.body, request.headers, request.target))
    assert (response.status, batch.rejected) == (202, 0)
    [event] = batch.events
    return event


async def test_graypy() -> None:
    event = await of_recording("py-graypy-gelf-0")
    assert (event.message, event.severity, event.source) == ("EV0 hello world", "INFO", "app.orders")
    assert (event.correlation_id, event.timestamp) == ("vm", 1_795_677_300_118)
    assert event.attributes == {
        "time_ns": 1_795_677_300_118_725_000, "host": "vm", "file": "/srv/project/c_py.py", "line": 28,
        "function": "emit", "pid": 32168, "thread_name": "MainThread", "process_name": "MainProcess",
    }  # fmt: skip


async def test_pygelf() -> None:
    event = await of_recording("py-pygelf-0")
    assert (event.message, event.severity, event.source) == ("EV0 hello world", "INFO", "shop")
    assert event.correlation_id == "vm"
    event = await of_recording("py-pygelf-1")
    assert (event.message, event.severity) == ("EV1 failed", "ERROR")
    assert event.attributes is not None
    assert str(event.attributes["full_message"]).startswith("Traceback")
