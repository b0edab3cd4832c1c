"""What any record becomes: texts, attributes, times and severities that an event may have."""

import datetime as dt
import hashlib
import json
import math
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from ingest.codecs.turns import run
from ingest.errors import BodyTooLargeError
from ingest.protocols import json_ends, json_records
from ingest.protocols.decoding import Decoding
from ingest.protocols.elasticsearch import bulk_codec
from ingest.protocols.gelf import gelf_codec
from ingest.protocols.json_records import LARGE_FIELDS_MAX, RECORD_BYTES_MAX, lines_of, object_of
from ingest.protocols.json_values import TOKENS_MAX, without_deep_values, without_lone_surrogates
from ingest.protocols.lines import lines_codec
from ingest.protocols.loki import loki_codec
from ingest.protocols.otlp import otlp_codec
from ingest.protocols.records import (
    CUT_MARK,
    DROPPED_KEY,
    HASHED_A_STEP,
    IDS_A_STEP,
    KEYS_READ_MAX,
    TIME_NS_KEY,
    UNKNOWN,
    BatchBuilder,
    event_of,
    fitting,
    id_of,
    message_text,
    severity_of,
    short_text,
    time_ns_of,
)
from ingest.protocols.splunk import collector_routes
from ingest.types import Codec, Response
from pipeline.event import ATTRIBUTES_BYTES_MAX, ATTRIBUTES_KEYS_MAX, MESSAGE_BYTES_MAX, SEVERITIES, Event
from pipeline.settings import Settings
from support.protocols import FixedClock, Sent, decoded

MS = 1_800_000_000_123
NS = MS * 1_000_000


def event(**changes: object) -> Event:
    fields = {"message": "m", "severity": "INFO", "source": "s", "time_ns": NS} | changes
    return event_of(**fields)  # type: ignore[arg-type]


def collector_of_events(decoding: Decoding) -> Codec:
    return collector_routes(decoding)[0].codec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"a\ud800b", r"a\ufffdb"),
        (r"\uDC00\udfff", r"\ufffd\ufffd"),
        (r"\ud83d\ude00", r"\ud83d\ude00"),
        (r"\ud83d\ud83d\ude00", r"\ufffd\ud83d\ude00"),
        (r"\\ud800", r"\\ud800"),
        (r"\\\ud800", r"\\\ufffd"),
        (r"\\ud83d\ude00", r"\\ud83d\ufffd"),
        (r"\ud7ff\ue000\n", r"\ud7ff\ue000\n"),
    ],
)
def test_half_of_a_surrogate_pair_is_replaced(text: str, expected: str) -> None:
    assert run(without_lone_surrogates(text.encode())) == expected.encode()
    msgspec.json.decode(f'"{expected}"')


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("[" * 200 + "]" * 200, "[" * 200 + "]" * 200),
        ("[" * 201 + "]" * 201, "[" * 200 + '"[nested too deep]"' + "]" * 200),
        ('[{"a":' * 101 + '"x"' + "}]" * 101, '[{"a":' * 100 + '"[nested too deep]"' + "}]" * 100),
        ('["' + "[" * 300 + '\\"[",1]', '["' + "[" * 300 + '\\"[",1]'),
        ("[" * 300, "[" * 300),
        ("]" * 300 + "x", "]" * 300 + "x"),
        ('"\\', '"\\'),
    ],
)
def test_what_is_nested_deeper_than_a_parser_reads_is_replaced(body: str, expected: str) -> None:
    assert run(without_deep_values(body.encode())) == expected.encode()


def test_what_would_take_long_to_replace_is_left() -> None:
    deep = b"[" * 300 + b'"",' * TOKENS_MAX + b"]" * 300
    steps = without_deep_values(deep)
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value is deep


def test_what_follows_the_last_bracket_is_read_once() -> None:
    body = b'{"a":' + b"[" * 300 + b"1" * 30_000
    began = time.thread_time()
    assert run(without_deep_values(body)) == body
    assert time.thread_time() - began < 1


_DEEP = b'{"a":[' * 3000 + b"1" + b"]}" * 3000
_ACTION = b'{"index":{}}\n'


@pytest.mark.parametrize(
    ("codec_of", "body"),
    [
        (loki_codec, b'{"streams":[{"stream":{"a":"b"},"values":[["1","first"],["1",%b],["1","last"]]}]}'),
        (
            otlp_codec,
            b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"first"}},{"body":%b},'
            b'{"body":{"stringValue":"last"}}]}]}]}',
        ),
        (lines_codec, b'[{"message":"first"},{"message":%b},{"message":"last"}]'),
        (lines_codec, b'{"logs":[{"message":"first"},{"message":%b},{"message":"last"}]}'),
        (lines_codec, b'{"message":"first"}{"message":%b}{"message":"last"}'),
        (lines_codec, b'{"message":"first"}\n{"message":%b}\n{"message":"last"}'),
        (gelf_codec, b'[{"short_message":"first"},{"short_message":%b},{"short_message":"last"}]'),
        (gelf_codec, b'{"short_message":"first"}\n{"short_message":%b}\n{"short_message":"last"}'),
        (bulk_codec, b"\n".join((_ACTION + b'{"message":"first"}', _ACTION + b"%b", _ACTION + b'{"message":"last"}'))),
        (collector_of_events, b'{"event":"first"}{"event":%b}{"event":"last"}'),
    ],
)
async def test_a_record_that_is_nested_too_deep_costs_no_other(
    codec_of: Callable[[Decoding], Codec], body: bytes
) -> None:
    codec = codec_of(Decoding(Settings(), FixedClock()))
    batch = await decoded(codec, Sent(body % _DEEP, {"content-type": "application/json"}))
    messages = [event.message for event in batch.events]
    assert (messages[0], messages[-1]) == ("first", "last")
    assert len(messages) + batch.rejected == 3


def _otlp_body(record: dict[str, Any], media_type: str) -> bytes:
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    if media_type == "application/json":
        return json.dumps(body).encode()
    return ParseDict(body, ExportLogsServiceRequest()).SerializeToString()


def _otlp_record(message: str, more: str) -> dict[str, Any]:
    return {
        "timeUnixNano": str(NS), "severityNumber": 17, "body": {"stringValue": message},
        "attributes": [{"key": "n", "value": {"intValue": "3"}}, {"key": "more", "value": {"stringValue": more}}],
    }  # fmt: skip


def _otlp_in_json(message: str, more: str) -> bytes:
    return _otlp_body(_otlp_record(message, more), "application/json")


def _otlp_in_protobuf(message: str, more: str) -> bytes:
    return _otlp_body(_otlp_record(message, more), "application/x-protobuf")


def _lines(message: str, more: str) -> bytes:
    return json.dumps({"timestamp": NS / 10**9, "level": 3, "message": message, "n": 3, "more": more}).encode()


def _gelf(message: str, more: str) -> bytes:
    return json.dumps({"timestamp": NS / 10**9, "level": 3, "short_message": message, "_n": 3, "_more": more}).encode()


def _hec(message: str, more: str) -> bytes:
    return json.dumps(
        {"time": NS / 10**9, "event": {"level": "error", "message": message, "n": 3, "more": more}}
    ).encode()


def _loki(message: str, more: str) -> bytes:
    values = [[str(NS), message, {"level": "error", "n": 3, "more": more}]]
    return json.dumps({"streams": [{"stream": {}, "values": values}]}).encode()


LARGE_RECORDS: list[tuple[Callable[[Decoding], Codec], str, Callable[[str, str], bytes]]] = [
    (otlp_codec, "application/json", _otlp_in_json),
    (otlp_codec, "application/x-protobuf", _otlp_in_protobuf),
    (lines_codec, "application/json", _lines),
    (bulk_codec, "application/json", lambda message, more: _ACTION + _lines(message, more)),
    (gelf_codec, "application/json", _gelf),
    (collector_of_events, "application/json", _hec),
    (lambda decoding: collector_routes(decoding)[-1].codec, "text/plain", _lines),
    (loki_codec, "application/json", _loki),
]


@pytest.mark.parametrize(("codec_of", "media_type", "body_of"), LARGE_RECORDS)
@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("at shop, line 7\n" * 70_000, "x"),
        ('\u00e9"\\' * 300_000, "x"),
        ('{"a":[1,2,3]}, ' * 9_000, "x"),
        ("\U0001f600" * 150_000, "x"),
        ("short", "y, [" * 250_000),
    ],
    ids=["text", "escapes", "values", "pairs", "attribute"],
)
async def test_a_record_of_any_size_keeps_its_fields(
    codec_of: Callable[[Decoding], Codec],
    media_type: str,
    body_of: Callable[[str, str], bytes],
    message: str,
    more: str,
) -> None:
    sent = Sent(body_of(message, more), {"content-type": media_type})
    codec = codec_of(Decoding(Settings(), FixedClock()))
    batch, again = await decoded(codec, sent), await decoded(codec, sent)
    [event] = batch.events
    # Its message is cut and says so, and all other fields are those of a small record
    if message == "short":
        assert event.message == message
    else:
        assert event.message.endswith(CUT_MARK)
        assert message.startswith(event.message.removesuffix(CUT_MARK))
        assert len(event.message.encode()) > MESSAGE_BYTES_MAX - 20
    assert (event.severity, event.timestamp) == ("ERROR", MS)
    assert event.attributes is not None
    assert event.attributes["n"] == 3
    assert event.attributes.get("more", "") == ("" if message == "short" else "x")
    assert (DROPPED_KEY in event.attributes) == (message == "short")
    # A repeat is the same event
    assert [one.event_id for one in again.events] == [event.event_id]
    assert event.event_id is not None


def test_attributes_far_behind_those_with_room_are_only_counted() -> None:
    found = fitting((f"k{number}", "") for number in range(100_000))
    assert found is not None
    assert found[DROPPED_KEY] == 100_000 - 63

    class Value:
        read = 0

        def __str__(self) -> str:
            Value.read += 1
            return "x"

    fitting((f"k{number}", Value()) for number in range(5000))
    assert Value.read == KEYS_READ_MAX


def test_attributes_that_were_cut_before_are_counted_once_more_only_as_themselves() -> None:
    shared = fitting((f"s{number}", "") for number in range(100))
    assert shared is not None
    found = fitting([("own", 1), *shared.items()])
    assert found is not None
    assert (len(found), found[DROPPED_KEY]) == (64, 101 - 63)
    assert fitting([("own", 1), (DROPPED_KEY, 5)]) == {"own": 1, DROPPED_KEY: 5}


@pytest.mark.parametrize("mark", ["\0", "\ud800"])
def test_what_no_server_stores_is_replaced(mark: str) -> None:
    made = event(message=f"a{mark}b", source=f"a{mark}", correlation_id=mark, attributes=[(f"k{mark}", f"v{mark}")])
    assert made.message in ("a\ufffdb", "a?b")
    encoded = msgspec.json.encode(made)
    assert b"\\u0000" not in encoded
    assert msgspec.json.decode(encoded, type=Event) == made


def test_a_long_message_is_cut_and_says_so() -> None:
    for text in ("x" * (MESSAGE_BYTES_MAX + 1), "é" * MESSAGE_BYTES_MAX, "😀" * MESSAGE_BYTES_MAX):
        cut = message_text(text)
        assert MESSAGE_BYTES_MAX - 4 <= len(cut.encode()) <= MESSAGE_BYTES_MAX
        assert cut.endswith(CUT_MARK)
        assert text.startswith(cut.removesuffix(CUT_MARK))
    whole = "é" * (MESSAGE_BYTES_MAX // 2)
    assert message_text(whole) == whole


def test_a_long_name_is_cut_and_says_so() -> None:
    assert short_text("x" * 300, 256) == "x" * (256 - len(CUT_MARK)) + CUT_MARK
    assert short_text("x" * 256, 256) == "x" * 256


def test_a_record_without_names_has_the_name_unknown() -> None:
    made = event(source="", correlation_id="")
    assert (made.source, made.correlation_id) == (UNKNOWN, UNKNOWN)
    assert event(source="shop").correlation_id == "shop"
    long = event(source="x" * 256).correlation_id
    assert len(long) == 128


def test_nested_attributes_become_dotted_keys_and_arrays_json() -> None:
    attributes = {"a": {"b": {"c": 1}, "d": [1, {"e": None}]}, "empty": {}, "none": None, "t": True, "f": 1.5}
    assert fitting(attributes.items()) == {
        "a.b.c": 1,
        "a.d": '[1,{"e":null}]',
        "empty": "{}",
        "t": True,
        "f": 1.5,
    }
    assert fitting({"none": None}.items()) is None


def test_values_that_json_does_not_have_become_text() -> None:
    values = {
        "big": 2**63,
        "low": -(2**63),
        "nan": math.nan,
        "minus": -0.0,
        "inf": -math.inf,
        "bytes": b"\x00\xff",
        "day": dt.date(2026, 1, 2),
    }
    assert fitting(values.items()) == {
        "big": "9223372036854775808",
        "low": -(2**63),
        "nan": "nan",
        "minus": "-0.0",
        "inf": "-inf",
        "bytes": "AP8=",
        "day": '"2026-01-02"',
    }


def test_the_first_attribute_with_a_key_is_kept() -> None:
    assert fitting([("a", 1), ("a", 2)]) == {"a": 1}


def test_attributes_beyond_the_limits_are_dropped_from_the_end_and_counted() -> None:
    many = fitting((f"k{number}", number) for number in range(100))
    assert many is not None
    assert len(many) == ATTRIBUTES_KEYS_MAX
    assert list(many)[:2] == ["k0", "k1"]
    assert many[DROPPED_KEY] == 100 - (ATTRIBUTES_KEYS_MAX - 1)
    # A large one in the middle is dropped, and not those behind it
    large = fitting([("a", 1), ("large", "é" * ATTRIBUTES_BYTES_MAX), ("b", 2)])
    assert large == {"a": 1, "b": 2, DROPPED_KEY: 1}


@pytest.mark.parametrize("value", ["x" * 4000, "é" * 2000, '"' * 2000, "\x01" * 600])
def test_attributes_stay_within_their_bytes(value: str) -> None:
    kept = fitting((f"k{number}", value) for number in range(9))
    assert kept is not None
    assert len(msgspec.json.encode(kept)) <= ATTRIBUTES_BYTES_MAX
    assert kept[DROPPED_KEY] == 9 - (len(kept) - 1) > 0


def test_nanoseconds_are_kept_where_there_are_some() -> None:
    assert event(time_ns=NS).attributes is None
    made = event(time_ns=NS + 1)
    assert (made.timestamp, made.attributes) == (MS, {TIME_NS_KEY: NS + 1})


def test_a_time_that_no_event_can_have_becomes_the_nearest() -> None:
    assert event(time_ns=-5).timestamp == 0
    assert event(time_ns=2**64 - 1).timestamp == 18_446_744_073_709
    assert event(time_ns=10**21).timestamp == 253_402_300_799_999


@pytest.mark.parametrize(
    ("value", "ns"),
    [
        (1_800_000_000, 1_800_000_000 * 10**9),
        (1_800_000_000_123, NS),
        (1_800_000_000_123_456, NS + 456_000),
        (NS + 456_789, NS + 456_789),
        (1_800_000_000.123, NS),
        ("1800000000.123456", NS + 456_000),
        ("1800000000123", NS),
        ("2027-01-15T08:00:00.123Z", NS),
        ("2027-01-15T10:00:00.123456+02:00", NS + 456_000),
        ("2027-01-15T08:00:00.123456789Z", NS + 456_789),
        ("2027-01-15 08:00:00,123", NS),
        ("2027-01-15", 1_799_971_200 * 10**9),
        (-1, None),
        (True, None),
        (math.nan, None),
        (math.inf, None),
        ("", None),
        ("soon", None),
        ("1e5000", None),
        ("9" * 5000, None),
        ("1900-01-01", None),
        ([1], None),
        (None, None),
    ],
)
def test_a_time_is_read_in_every_unit_and_form(value: object, ns: int | None) -> None:
    assert time_ns_of(value) == ns


@pytest.mark.parametrize(
    ("value", "severity"),
    [
        ("trace", "TRACE"),
        ("Debug", "DEBUG"),
        ("INFO", "INFO"),
        ("warning", "WARN"),
        ("err", "ERROR"),
        ("CRITICAL", "FATAL"),
        *((10 * (rank + 1), name) for rank, name in enumerate(SEVERITIES)),
        (0, "FATAL"),
        (1, "FATAL"),
        (2, "FATAL"),
        (3, "ERROR"),
        (4, "WARN"),
        (5, "INFO"),
        (6, "INFO"),
        (7, "DEBUG"),
        ("30", "INFO"),
        (200, None),
        ("200", None),
        (True, None),
        ("odd", None),
        (None, None),
        ([], None),
    ],
)
def test_a_level_is_a_word_or_a_number(value: object, severity: str | None) -> None:
    assert severity_of(value) == severity


def batch_ids(body: bytes, *, has_time: bool, own: str | None = None) -> list[str | None]:
    builder = BatchBuilder(body, 10)
    for _ in range(2):
        builder.add(event(event_id=own), key=None, has_time=has_time)
    return [one.event_id for one in run(builder.build(lambda: Response(200, b""))).events]


def test_the_same_body_gives_the_same_ids_unless_nothing_in_it_has_a_time() -> None:
    first, second = batch_ids(b"body", has_time=True)
    assert first != second
    assert batch_ids(b"body", has_time=True) == [first, second]
    assert batch_ids(b"other", has_time=True)[0] not in (first, second)
    assert batch_ids(b"body", has_time=False) == [None, None]
    assert batch_ids(b"body", has_time=True, own="mine") == ["mine", "mine"]


def test_the_ids_of_a_large_body_are_made_in_steps() -> None:
    # Given 8 MiB, and 10,000 events
    body = b"x" * (8 * HASHED_A_STEP)
    builder = BatchBuilder(body, 10_000)
    for _ in range(10_000):
        builder.add(event(), key=None, has_time=True)
    # When its batch is made
    steps = builder.build(lambda: Response(200, b""))
    count = sum(1 for _ in steps)
    # Then there is a step for each MiB and 2,000 ids, and the ids are those of the whole body
    assert count == 8 + 10_000 // IDS_A_STEP
    digest = hashlib.blake2b(b"\0" + body, digest_size=16).hexdigest()
    assert [one.event_id for one in builder.events] == [f"{digest}-{index}" for index in range(10_000)]


def test_events_without_an_id_of_their_own_are_spread_over_partitions() -> None:
    builder = BatchBuilder(b"", 3)
    for key in (None, None, "trace"):
        builder.add(event(), key=key, has_time=True)
    assert run(builder.build(lambda: Response(200, b""))).partition_keys == ["s#0", "s#1", "trace"]
    with pytest.raises(BodyTooLargeError):
        builder.add(event(), key=None, has_time=True)


def test_an_id_of_any_length_becomes_an_event_id() -> None:
    assert id_of("a-1") == "a-1"
    for odd in ("x" * 65, "é", "a\n", ""):
        assert len(id_of(odd)) == 40
        assert id_of(odd) == id_of(odd)


async def test_json_of_millions_of_values_is_not_parsed() -> None:
    codec = loki_codec(Decoding(Settings(protocol_body_events_max=100), FixedClock()))
    body = b'{"a":[' + b"1," * 10_001 + b"1]}"
    with pytest.raises(BodyTooLargeError):
        await decoded(codec, Sent(body, {"content-type": "application/json"}))


def test_a_run_of_blank_lines_is_one_line_and_the_others_keep_their_numbers() -> None:
    body = b"a\n\n \n\t\r\n\nb\n" + b"\n" * 10_000 + b"  c\n" + b" " * 300 + b"\nd"
    found = [(number, line) for number, line in lines_of(body) if line.strip()]
    numbers = {line.strip(): number for number, line in enumerate(body.split(b"\n"), start=1) if line.strip()}
    assert found == [(numbers[b"a"], b"a"), (numbers[b"b"], b"b"), (numbers[b"c"], b"  c"), (numbers[b"d"], b"d")]


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b" \n", b"\t \r\n"])
def test_a_body_of_blank_lines_takes_few_steps(blank: bytes) -> None:
    # Given what a small compressed body may become
    count = 1_000_000
    assert sum(1 for _ in lines_of(blank * count)) <= count / 1000


class Counted:
    """Calls a decoder, and counts the bytes that it was given."""

    def __init__(self, decode: Callable[[bytes], Any]) -> None:
        self._decode = decode
        self.bytes = 0

    def __call__(self, text: bytes) -> Any:
        self.bytes += len(text)
        return self._decode(text)


def test_the_work_on_a_large_object_grows_with_its_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a large object with many texts that msgspec refuses, each long before the end of the object
    walked = Counted(json_ends._walk)
    monkeypatch.setattr(json_ends, "_walk", walked)
    odd = b",".join(b'"f%d":"\x01"' % i for i in range(LARGE_FIELDS_MAX - 1))
    text = b'{%b,"z":"%b"}' % (odd, b"a" * (1 << 20))
    # When it is decoded
    found = object_of(text)
    # Then no text was looked for in all of the rest
    assert found is not None
    assert found["f0"] == "\x01"
    assert len(found) == LARGE_FIELDS_MAX
    assert walked.bytes < LARGE_FIELDS_MAX * json_ends.WINDOW_BYTES + 3 * len(text)


@pytest.mark.parametrize("end", ["1.25", "-7", "1e5", "true", '"\\ud83d\\ude00"', "[[1], {}]"])
def test_a_value_that_the_first_window_cuts_is_found_whole(end: str) -> None:
    for filled in range(json_ends.WINDOW_BYTES - 20, json_ends.WINDOW_BYTES + 2):
        value = f'["{"x" * filled}",{end}]'.encode()
        assert json_ends.end_of_value(value + b"," + b"y" * 100_000, 0) == len(value)


def test_of_a_large_object_a_bounded_part_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given large objects of many arrays that are small, and of many objects that are large
    decoded_bytes = Counted(json_records._decode_any)
    monkeypatch.setattr(json_records, "_decode_any", decoded_bytes)
    arrays = b"[%b]" % b",".join([b"[]"] * 2000)
    flat = b'{"message":"m",%b}' % b",".join(b'"f%d":%b' % (i, arrays) for i in range(200))
    wide = b"{%b}" % b",".join(b'"f%d":[0,0,0,0,0]' % i for i in range(LARGE_FIELDS_MAX))
    deep = b'{"message":"m",%b}' % b",".join(b'"f%d":%b' % (i, wide) for i in range(20))
    for text in (flat, deep):
        decoded_bytes.bytes = 0
        # When one is decoded
        found = object_of(text)
        # Then the rest keeps its text
        assert found is not None
        assert found["message"] == "m"
        assert decoded_bytes.bytes < 2 * RECORD_BYTES_MAX
        assert decoded_bytes.bytes < len(text) / 2
