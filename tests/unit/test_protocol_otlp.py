"""`POST /v1/logs`: what log records of OpenTelemetry become, in both of its encodings, and the answers."""

import base64
import copy
import gzip
import json
import math
import re
import time
from typing import Any

import pytest
import zstandard
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from ingest.errors import (
    BodyTooLargeError,
    MalformedBodyError,
    PartlyStoredError,
    RateLimitedError,
    RequestError,
    UnsupportedBodyError,
)
from ingest.protocols import otlp_json, otlp_protobuf
from ingest.protocols.decoding import AT_ONCE_BYTES, Decoding
from ingest.protocols.otlp import RETRY_SECONDS_MAX, otlp_codec
from ingest.protocols.otlp_records import RECORD_BYTES_MAX, VALUES_MAX, RecordsBuilder
from ingest.protocols.records import CUT_MARK, DROPPED_KEY, BatchBuilder
from ingest.types import Batch, Codec, Head, Response
from pipeline.errors import OverloadedError, SluiceError
from pipeline.event import MESSAGE_BYTES_MAX, Event, encode_record
from pipeline.names import ProtocolName
from pipeline.settings import Settings
from support.clients import recorded
from support.protocols import NOW, FixedClock, Sent, accepted, decoded

NOW_MS = int(NOW * 1000)
JSON, PROTOBUF = "application/json", "application/x-protobuf"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TIME_NS = 1_795_677_652_630_376_419
IDS = {"traceId", "spanId"}
OF_BODY = re.compile(r"[0-9a-f]{32}-[0-9]+")  # an event id that depends on the encoded body
Json = dict[str, Any]


def codec(**settings: int) -> Codec:
    return otlp_codec(Decoding(Settings(**settings), FixedClock()))  # type: ignore[arg-type]


def attributes(**values: Json) -> list[Json]:
    """Attributes; a key's `_` is a dot."""
    return [{"key": key.replace("_", "."), "value": value} for key, value in values.items()]


def text(value: str) -> Json:
    return {"stringValue": value}


def document(*records: Json, resource: list[Json] | None = None, scope: Json | None = None) -> Json:
    scope_logs = {"scope": scope or {}, "logRecords": list(records)}
    return {"resourceLogs": [{"resource": {"attributes": resource or []}, "scopeLogs": [scope_logs]}]}


def in_protobuf(document: Json) -> bytes:
    """The same in the binary encoding. Protobuf's own JSON has ids in base64."""

    def with_base64(part: Any) -> Any:
        if isinstance(part, list):
            return [with_base64(one) for one in part]
        if not isinstance(part, dict):
            return part
        found = {key: with_base64(value) for key, value in part.items()}
        return found | {key: base64.b64encode(bytes.fromhex(found[key])).decode() for key in IDS & found.keys()}

    request = json_format.ParseDict(with_base64(document), ExportLogsServiceRequest())
    return bytes(request.SerializeToString())


async def batch_of(body: bytes, media_type: str = JSON, **settings: int) -> Batch:
    return await decoded(codec(**settings), Sent(body, {"content-type": media_type}))


async def both(document: Json, **settings: int) -> Batch:
    """The batch of a document, which is the same in both encodings."""
    of_json = await batch_of(json.dumps(document).encode(), JSON, **settings)
    of_protobuf = await batch_of(in_protobuf(document), PROTOBUF, **settings)
    for batch in (of_json, of_protobuf):
        for event in batch.events:
            if event.event_id is not None and OF_BODY.fullmatch(event.event_id):
                event.event_id = None
    assert of_json.events == of_protobuf.events
    assert of_json.partition_keys == of_protobuf.partition_keys
    assert of_json.rejected == of_protobuf.rejected
    return of_json


async def one(record: Json, resource: list[Json] | None = None, scope: Json | None = None) -> Event:
    [event] = (await both(document(record, resource=resource, scope=scope))).events
    return event


def test_it_is_the_protocol_otlp() -> None:
    assert codec().name is ProtocolName.OTLP
    assert codec().bytes_max == Settings().protocol_body_bytes_max


# --- Mapping --------------------------------------------------------------------------------------------------------

SERVICE = attributes(service_name=text("shop"))
SESSION = attributes(session_id=text("s-1"))


@pytest.mark.parametrize(
    ("record", "resource", "expected", "key"),
    [
        ({"traceId": TRACE, "attributes": SESSION}, SERVICE, TRACE, TRACE),
        ({"attributes": SESSION}, SERVICE, "s-1", "s-1"),
        ({}, SERVICE + SESSION, "s-1", "s-1"),
        ({"traceId": "0" * 32}, SERVICE, "shop", "shop#0"),
        ({"traceId": "", "attributes": attributes(session_id=text(""))}, SERVICE, "shop", "shop#0"),
        ({}, SERVICE, "shop", "shop#0"),
        ({}, None, "unknown", "unknown#0"),
    ],
)
async def test_the_correlation_id_is_the_trace_then_the_session_then_the_service(
    record: Json, resource: list[Json] | None, expected: str, key: str
) -> None:
    batch = await both(document(record, resource=resource))
    assert batch.events[0].correlation_id == expected
    assert batch.partition_keys == [key]


async def test_an_id_in_capital_letters_is_the_same_id() -> None:
    body = json.dumps(document({"traceId": TRACE.upper(), "spanId": SPAN.upper()})).encode()
    [event] = (await batch_of(body)).events
    assert (event.correlation_id, event.attributes) == (TRACE, {"span_id": SPAN})


async def test_a_session_stays_an_attribute_where_there_is_a_trace() -> None:
    assert (await one({"traceId": TRACE, "attributes": SESSION})).attributes == {"session.id": "s-1"}
    assert (await one({"attributes": SESSION})).attributes is None


@pytest.mark.parametrize(
    ("number", "words", "expected", "kept"),
    [
        *((number, "", word, None) for number, word in ((1, "TRACE"), (5, "DEBUG"), (9, "INFO"))),
        *((number, "", word, None) for number, word in ((13, "WARN"), (17, "ERROR"), (21, "FATAL"))),
        (4, "", "TRACE", {"severity_number": 4}),
        (12, "", "INFO", {"severity_number": 12}),
        (24, "", "FATAL", {"severity_number": 24}),
        (17, "info", "ERROR", {"severity_text": "info"}),
        (9, "Info", "INFO", None),
        (9, "Information", "INFO", {"severity_text": "Information"}),
        (0, "warning", "WARN", {"severity_text": "warning"}),
        (0, "ERROR", "ERROR", None),
        (0, "loud", "INFO", {"severity_text": "loud"}),
        (0, "", "INFO", None),
        (99, "", "INFO", {"severity_number": 99}),
    ],
)
async def test_the_severity_is_the_number_in_steps_of_four_else_the_text(
    number: int, words: str, expected: str, kept: Json | None
) -> None:
    event = await one({"severityNumber": number, "severityText": words})
    assert (event.severity, event.attributes) == (expected, kept)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("SEVERITY_NUMBER_WARN", "WARN"), ("SEVERITY_NUMBER_WARN3", "WARN"), ("SEVERITY_NUMBER_UNSPECIFIED", "INFO")],
)
async def test_the_severity_may_be_the_name_of_its_number(name: str, expected: str) -> None:
    event = await one({"severityNumber": name})
    assert event.severity == expected
    assert event.attributes == ({"severity_number": 15} if name[-1] == "3" else None)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"body": text("paid")}, "paid"),
        ({"body": text(""), "eventName": "name"}, ""),
        ({"body": {"kvlistValue": {"values": attributes(msg=text("a"), n={"intValue": "3"})}}}, '{"msg":"a","n":3}'),
        ({"body": {"arrayValue": {"values": [text("a"), {"boolValue": True}, {}]}}}, '["a",true,null]'),
        ({"body": {"intValue": "-5"}}, "-5"),
        ({"body": {"doubleValue": 1.5}}, "1.5"),
        ({"body": {"boolValue": False}}, "false"),
        ({"body": {"bytesValue": "AP8="}}, "AP8="),
        ({"body": {}, "eventName": "user.login"}, "user.login"),
        ({"eventName": "user.login"}, "user.login"),
        ({}, ""),
    ],
)
async def test_the_message_is_the_body_else_the_name_of_the_event(record: Json, expected: str) -> None:
    event = await one(record)
    assert event.message == expected
    has_both = "eventName" in record and bool(record.get("body"))
    assert event.attributes == ({"event_name": record["eventName"]} if has_both else None)


@pytest.mark.parametrize(
    ("record", "resource", "expected"),
    [
        ({}, SERVICE, "shop"),
        ({"attributes": attributes(service_name=text("mine"))}, SERVICE, "mine"),
        ({}, attributes(service_name={"intValue": "7"}), "7"),
        ({}, attributes(host_name=text("h")), "unknown"),
    ],
)
async def test_the_source_is_the_service(record: Json, resource: list[Json], expected: str) -> None:
    event = await one(record, resource)
    assert event.source == expected
    assert "service.name" not in (event.attributes or {})


@pytest.mark.parametrize(
    ("record", "expected", "kept"),
    [
        ({"timeUnixNano": "1795677652630000000"}, 1_795_677_652_630, {}),
        ({"timeUnixNano": str(TIME_NS)}, 1_795_677_652_630, {"time_ns": TIME_NS}),
        ({"observedTimeUnixNano": str(TIME_NS)}, 1_795_677_652_630, {"time_ns": TIME_NS}),
        (
            {"timeUnixNano": str(TIME_NS), "observedTimeUnixNano": "1795677652631000000"},
            1_795_677_652_630,
            {"time_ns": TIME_NS, "observed_time_ns": 1_795_677_652_631_000_000},
        ),
        ({"timeUnixNano": "1000000", "observedTimeUnixNano": "1000000"}, 1, {}),
        ({"timeUnixNano": str(2**64 - 1)}, 18_446_744_073_709, {"time_ns": str(2**64 - 1)}),
        ({}, NOW_MS, {}),
    ],
)
async def test_the_time_is_the_records_own_else_the_observed_one(record: Json, expected: int, kept: Json) -> None:
    event = await one(record)
    assert (event.timestamp, event.attributes or {}) == (expected, kept)


async def test_attributes_of_the_record_win_over_those_of_the_scope_and_these_over_the_resource() -> None:
    event = await one(
        {"attributes": attributes(a=text("record"))},
        attributes(a=text("resource"), b=text("resource"), c=text("resource")),
        {"attributes": attributes(a=text("scope"), b=text("scope"))},
    )
    assert event.attributes == {"a": "record", "b": "scope", "c": "resource"}
    assert list(event.attributes) == ["a", "b", "c"]


async def test_fields_that_the_mapping_does_not_use_become_attributes() -> None:
    event = await one(
        {"traceId": TRACE, "spanId": SPAN, "flags": 1, "droppedAttributesCount": 2},
        scope={"name": "app", "version": "1.2", "droppedAttributesCount": 3},
    )
    assert event.attributes == {
        "span_id": SPAN,
        "trace_flags": 1,
        "dropped_attributes_count": 2,
        "scope.name": "app",
        "scope.version": "1.2",
        "scope.dropped_attributes_count": 3,
    }
    body = document({})
    body["resourceLogs"][0]["resource"]["droppedAttributesCount"] = 4
    [event] = (await both(body)).events
    assert event.attributes == {"resource.dropped_attributes_count": 4}
    assert (await one({"spanId": "0" * 16})).attributes is None


async def test_values_of_every_kind() -> None:
    nested = {"kvlistValue": {"values": attributes(k={"kvlistValue": {"values": attributes(l={"intValue": "1"})}})}}
    event = await one(
        {
            "attributes": attributes(
                s=text("é"),
                t={"boolValue": True},
                i={"intValue": str(-(2**63))},
                d={"doubleValue": 0.25},
                e={"doubleValue": 1e300},
                n={"doubleValue": "NaN"},
                a={"arrayValue": {"values": [text("x"), {"intValue": "1"}, nested]}},
                o=nested,
                b={"bytesValue": "AP8="},
                none={},
                z={"kvlistValue": {}},
            )
        }
    )
    kept = event.attributes
    assert kept is not None
    assert kept == {
        "n": "nan",
        "s": "é", "t": True, "i": -(2**63), "d": 0.25, "e": 1e300, "a": '["x",1,{"k":{"l":1}}]', "o.k.l": 1,
        "b": "AP8=", "z": "{}",
    }  # fmt: skip
    assert isinstance(kept["t"], bool)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"intValue": 42}, 42),
        ({"intValue": "42"}, 42),
        ({"intValue": 42.0}, 42),
        ({"intValue": "x"}, "x"),
        ({"intValue": 2**70}, str(2**70)),
        ({"doubleValue": 3}, 3.0),
        ({"doubleValue": "2.5"}, 2.5),
        ({"doubleValue": "-Infinity"}, "-inf"),
        ({"doubleValue": "9" * 400}, "9" * 400),
        ({"stringValue": None, "boolValue": True}, True),
    ],
)
async def test_numbers_of_json_are_numbers_or_strings(value: Json, expected: object) -> None:
    [event] = (await batch_of(json.dumps(document({"attributes": attributes(v=value)})).encode())).events
    assert event.attributes == {"v": expected}
    assert type(event.attributes["v"]) is type(expected)


async def test_the_uid_of_a_record_is_the_id_of_its_event() -> None:
    record = {"timeUnixNano": "5", "attributes": attributes(log_record_uid=text("01ARZ3NDEKTSV4RRFFQ69G5FAV"))}
    event = await one(record)
    assert event.event_id == "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    assert "log.record.uid" not in (event.attributes or {})


async def test_what_finds_no_room_is_of_the_resource_and_counted() -> None:
    many = [{"key": f"r{n}", "value": text("x")} for n in range(100)]
    event = await one({"attributes": attributes(mine=text("y")), "body": text("x" * 70_000)}, many, {"name": "app"})
    assert event.attributes is not None
    assert len(event.attributes) == 64
    assert list(event.attributes)[:3] == ["mine", "scope.name", "r0"]
    assert event.attributes[DROPPED_KEY] == 102 - 63
    assert event.message.endswith(CUT_MARK)
    assert len(event.message.encode()) == MESSAGE_BYTES_MAX


# --- Repeats and partitions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", [JSON, PROTOBUF])
async def test_a_repeat_has_the_same_ids_however_it_is_compressed(media_type: str) -> None:
    whole = document(*({"timeUnixNano": "5", "body": text("same")} for _ in range(5)))
    body = json.dumps(whole).encode() if media_type == JSON else in_protobuf(whole)
    sent = [body, gzip.compress(body), zstandard.compress(body)]
    ids = [[event.event_id for event in (await batch_of(one, media_type)).events] for one in sent]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 5


async def test_a_body_without_a_time_gets_random_ids() -> None:
    batch = await batch_of(json.dumps(document({"body": text("a")})).encode())
    assert [event.event_id for event in batch.events] == [None]


async def test_records_without_a_trace_are_spread_and_those_of_a_trace_stay_together() -> None:
    batch = await both(document({}, {}, {"traceId": TRACE}, {"traceId": TRACE}, resource=SERVICE))
    assert batch.partition_keys == ["shop#0", "shop#1", TRACE, TRACE]


# --- Recordings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "severity", "attribute"),
    [
        ("go-otelcol-proto-0", "shop", "INFO", ("severity_text", "Information")),
        ("go-otelcol-proto-1", "shop", "INFO", ("k8s.pod.name", "shop-1")),
        ("go-otelcol-json-0", "shop", "INFO", ("user.id", 42)),
        ("py-otlp-http-protobuf-0", "shop", "INFO", ("telemetry.sdk.language", "python")),
        ("java-otlp-0", "shop", "INFO", ("user.id", 42)),
        ("js-otlp-json-0", "shop", "INFO", ("obj.k", 1)),
        ("c-fluentbit-otel-0", "unknown", "INFO", None),
    ],
)
async def test_what_real_clients_sent(
    name: str, source: str, severity: str, attribute: tuple[str, object] | None
) -> None:
    request = recorded(name)
    batch, response = await accepted(codec(), Sent(request.body, request.headers, request.target))
    assert (response.status, response.media_type) == (200, request.headers["content-type"])
    assert [f"EV{n}" in event.message for n, event in enumerate(batch.events)] == [True] * 5
    assert (batch.events[0].source, batch.events[0].severity) == (source, severity)
    assert batch.rejected == 0
    assert len({event.event_id for event in batch.events} - {None}) == 5
    if attribute is not None:
        assert batch.events[0].attributes is not None
        assert batch.events[0].attributes[attribute[0]] == attribute[1]


async def test_the_exception_of_pythons_sdk() -> None:
    request = recorded("py-otlp-http-protobuf-0")
    batch = await decoded(codec(), Sent(request.body, request.headers))
    event = batch.events[1]
    assert (event.severity, event.attributes is not None) == ("ERROR", True)
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "ZeroDivisionError"
    assert str(event.attributes["span_id"]) != ""
    assert event.correlation_id == batch.events[0].correlation_id
    assert len(event.correlation_id) == 32


# --- Answers --------------------------------------------------------------------------------------------------------

GOOD = {"timeUnixNano": "5", "body": text("good")}


@pytest.mark.parametrize("media_type", [PROTOBUF, "application/protobuf", f"{PROTOBUF}; x=y"])
async def test_an_answer_in_protobuf(media_type: str) -> None:
    _, response = await accepted(codec(), Sent(in_protobuf(document(GOOD)), {"content-type": media_type}))
    assert response == Response(200, b"", media_type.partition(";")[0], {})
    assert not ExportLogsServiceResponse.FromString(response.body).HasField("partial_success")


@pytest.mark.parametrize("media_type", [JSON, "Application/JSON; charset=utf-8"])
async def test_an_answer_in_json(media_type: str) -> None:
    body = json.dumps(document(GOOD)).encode()
    _, response = await accepted(codec(), Sent(body, {"content-type": media_type}))
    assert response == Response(200, b"{}", JSON, {})


@pytest.mark.parametrize("body", [b"{}", b'{"resourceLogs":null}', b'{"resourceLogs":[ ]}', b'{"other":[1]}'])
async def test_a_request_without_records_is_accepted(body: bytes) -> None:
    batch, response = await accepted(codec(), Sent(body, {"content-type": JSON}))
    assert (batch.events, response.body) == ([], b"{}")
    batch, response = await accepted(codec(), Sent(b"", {"content-type": PROTOBUF}))
    assert (batch.events, response.body) == ([], b"")


async def test_rejected_records_are_a_partial_success() -> None:
    whole = document(GOOD, {"timeUnixNano": "soon"}, {"flags": -1}, GOOD)
    batch, response = await accepted(codec(), Sent(json.dumps(whole).encode(), {"content-type": JSON}))
    assert [event.message for event in batch.events] == ["good", "good"]
    assert batch.rejected == 2
    assert response.status == 200
    assert json.loads(response.body) == {
        "partialSuccess": {"rejectedLogRecords": "2", "errorMessage": "a record: 'soon' is not a whole number"}
    }


async def test_a_broken_record_in_protobuf_costs_no_other() -> None:
    good = LogRecord(time_unix_nano=5)
    good.body.string_value = "good"
    broken = b"\x2a\x03\x0a\x7f\x00"  # a body whose text has more bytes than there are
    batch, response = await accepted(
        codec(), Sent(of_records(good.SerializeToString(), broken), {"content-type": PROTOBUF})
    )
    assert [event.message for event in batch.events] == ["good"]
    partial = ExportLogsServiceResponse.FromString(response.body).partial_success
    assert (partial.rejected_log_records, "not protobuf" in partial.error_message) == (1, True)


def of_records(*records: bytes) -> bytes:
    """A body of encoded records."""

    def field(number: int, content: bytes) -> bytes:
        size, digits = len(content), b""
        while size > 127:
            digits += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + digits + bytes([size]) + content

    return field(1, field(2, b"".join(field(2, record) for record in records)))


async def test_a_text_that_is_not_utf_8_is_repaired() -> None:
    # Fluent Bit sends the bytes of a log line as they are
    record = LogRecord(time_unix_nano=5, trace_id=bytes.fromhex(TRACE), flags=1)
    record.body.string_value = "gr??n"
    record.attributes.add(key="k").value.kvlist_value.values.add(key="??").value.string_value = "??"
    raw = record.SerializeToString().replace(b"gr??n", b"gr\xfc\xffn").replace(b"??", b"\xe9\xe9")
    good = LogRecord(time_unix_nano=5)
    batch = await batch_of(of_records(raw, good.SerializeToString()), PROTOBUF)
    assert batch.rejected == 0
    event = batch.events[0]
    assert event.message == "gr\ufffd\ufffdn"
    assert event.attributes == {"time_ns": 5, "trace_flags": 1, "k.\ufffd\ufffd": "\ufffd\ufffd"}
    assert event.correlation_id == TRACE
    raw_json = json.dumps(document(GOOD, GOOD)).encode().replace(b"good", b"g\xff", 1)
    assert [event.message for event in (await batch_of(raw_json)).events] == ["g\ufffd", "good"]


async def test_half_a_surrogate_pair_is_replaced() -> None:
    # JavaScript sends it as an escape
    said = rb'"\ud83d \uD83D\uDE00 \\ud800 \udc00\n"'
    body = json.dumps(document(GOOD, GOOD)).encode().replace(b'"good"', said, 1)
    assert [event.message for event in (await batch_of(body)).events] == [
        "\ufffd \U0001f600 \\ud800 \ufffd\n",
        "good",
    ]


@pytest.mark.parametrize("media_type", [None, "", "text/plain", "application/x-ndjson", "application/grpc"])
async def test_any_other_media_type_is_a_415(media_type: str | None) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    with pytest.raises(UnsupportedBodyError) as caught:
        codec().decode(Head(headers, "/v1/logs"))
    response = codec().rejected(Head(headers, "/v1/logs"), caught.value)
    assert (response.status, response.media_type, response.headers) == (415, JSON, {})
    assert json.loads(response.body)["code"] == 3
    assert PROTOBUF in json.loads(response.body)["message"]


@pytest.mark.parametrize(
    ("error", "status", "code", "waits"),
    [
        (MalformedBodyError("broken"), 400, 3, False),
        (BodyTooLargeError(7, "bytes"), 413, 8, False),
        (RateLimitedError(60.0, quota=5, left=0), 429, 8, True),
        (OverloadedError("full"), 503, 14, True),
        (PartlyStoredError([1], 2, "no answer"), 503, 14, True),
        (SluiceError("a defect"), 500, 13, False),
    ],
)
def test_an_error_is_a_status_in_the_media_type_of_the_request(
    error: SluiceError, status: int, code: int, waits: bool
) -> None:
    for _ in range(10):
        response = codec().rejected(Head({"content-type": PROTOBUF}, "/v1/logs"), error)
        assert (response.status, response.media_type) == (status, PROTOBUF)
        found = Status.FromString(response.body)
        assert (found.code, found.message) == (code, str(error))
        assert ("retry-after" in response.headers) is waits
        if waits:
            assert 1 <= int(response.headers["retry-after"]) <= RETRY_SECONDS_MAX
    response = codec().rejected(Head({"content-type": JSON}, "/v1/logs"), error)
    assert (response.status, response.media_type) == (status, JSON)
    assert json.loads(response.body) == {"code": code, "message": str(error)}


# --- JSON's own rules -----------------------------------------------------------------------------------------------


async def test_names_of_fields_in_protobufs_own_form_are_taken_too() -> None:
    body = json.dumps(
        {
            "resource_logs": [
                {
                    "resource": {"attributes": [{"key": "service.name", "value": {"string_value": "shop"}}]},
                    "scope_logs": [
                        {
                            "log_records": [
                                {
                                    "time_unix_nano": "5",
                                    "severity_number": 17,
                                    "trace_id": TRACE,
                                    "body": {"string_value": 'say "a_b": \\"c_d\\":'},
                                    "attributes": [{"key": "user_id", "value": {"int_value": "1"}}],
                                }
                            ]
                        }
                    ],
                }
            ]
        }
    ).encode()
    [event] = (await batch_of(body)).events
    assert (event.source, event.severity, event.correlation_id) == ("shop", "ERROR", TRACE)
    assert event.message == 'say "a_b": \\"c_d\\":'
    assert event.attributes == {"time_ns": 5, "user_id": 1}


async def test_unknown_fields_null_and_any_order_are_taken() -> None:
    record: Json = {"new": [{}], "body": {"stringValue": "a", "newer": 1}, "attributes": None, "timeUnixNano": None}
    scope_logs = {"logRecords": [record, None], "scope": {"name": "app"}, "schemaUrl": "u"}
    whole = {
        "a": 1,
        "resourceLogs": [None, {"scopeLogs": [None, scope_logs], "resource": {"attributes": SERVICE, "x": []}}],
    }
    batch = await batch_of(json.dumps(whole, indent=2).encode())
    assert [(event.message, event.source) for event in batch.events] == [("a", "shop"), ("", "shop")]
    assert batch.events[0].attributes == {"scope.name": "app"}
    assert (await batch_of(b"\xef\xbb\xbf" + json.dumps(whole).encode())).events == batch.events


async def test_a_resource_after_its_records_in_protobuf() -> None:
    records = in_protobuf(document(GOOD))
    resource = in_protobuf(document(resource=SERVICE))
    # Two parts of one field are one message
    whole = bytes([0x0A]) + bytes([len(records) - 2 + len(resource) - 2]) + records[2:] + resource[2:]
    assert len(whole) < 128
    batch = await batch_of(whole, PROTOBUF)
    assert [event.source for event in batch.events] == ["shop"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", b"[]", b"5", b"null", b'{"resourceLogs":{}}', b'{"resourceLogs":[5]}', b'{"resourceLogs":[{}',
        b'{"resourceLogs":[{"scopeLogs":5}]}', b'{"resourceLogs":[{"resource":5}]}', b'{"resourceLogs":[[]]}',
        b'{"resourceLogs":[{"resource":{"attributes":[5]}}]}', b"{" * 1000, b"\xff", b'{"a":"\\ud800"',
        b'{"resourceLogs":[{"scopeLogs":[{"scope":{"name":1}}]}]}',
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{}}]}]}', b'{"x":' + b"[" * 100_000,
        b'{"resourceLogs":[{"resource":{"droppedAttributesCount":-1}}]}',
    ],
)  # fmt: skip
async def test_what_is_no_json_of_otlp_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        await batch_of(body)


@pytest.mark.parametrize(
    "body",
    [
        b"{}", b"\x0a", b"\x0a\x05", b"\x0a\x80", b"\x0a" + b"\xff" * 12, b"\x0b", b"\x09\x00", b"\x0d\x00",
        b"\x08" + b"\x80" * 11, b"\x0a\x02\x12\x7f", b"\x0a\x04\x0a\x02\x0a\x7f", b"\x0a\x02\x0c\x00",
    ],
)  # fmt: skip
async def test_what_is_no_protobuf_of_otlp_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        await batch_of(body, PROTOBUF)


async def test_unknown_fields_of_protobuf_are_skipped() -> None:
    unknown = b"\xf8\x07\x05" + b"\xf9\x07" + b"\0" * 8 + b"\xfd\x07" + b"\0" * 4 + b"\xfa\x07\x01x"
    assert [event.message for event in (await batch_of(unknown + in_protobuf(document(GOOD)), PROTOBUF)).events] == [
        "good"
    ]


# --- Limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", [JSON, PROTOBUF])
async def test_more_records_than_allowed_are_refused_also_if_they_are_rejected(media_type: str) -> None:
    def body(*records: Json) -> bytes:
        whole = document(*records)
        return json.dumps(whole).encode() if media_type == JSON else in_protobuf(whole)

    assert len((await batch_of(body(*[GOOD] * 10), media_type, protocol_body_events_max=10)).events) == 10
    with pytest.raises(BodyTooLargeError):
        await batch_of(body(*[GOOD] * 11), media_type, protocol_body_events_max=10)
    large = GOOD | {"body": text("x" * (RECORD_BYTES_MAX + 1))}
    with pytest.raises(BodyTooLargeError):
        await batch_of(body(*[GOOD] * 6, *[large] * 5), media_type, protocol_body_events_max=10)


@pytest.mark.parametrize(
    "body",
    [
        b'{"resourceLogs":[' + b"{}," * 100 + b"{}]}",
        b'{"resourceLogs":[{"scopeLogs":[' + b"null," * 100 + b"null]}]}",
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[' + b"1," * 100 + b"1]}]}]}",
    ],
)
async def test_branches_without_records_are_bounded_in_json(body: bytes) -> None:
    with pytest.raises(BodyTooLargeError):
        await batch_of(body, protocol_body_events_max=10)


@pytest.mark.parametrize(
    "body", [b"\x0a\x00" * 100, b"\x08\x00" * 100, b"\x0a\x64" + b"\x12\x00" * 50, of_records(*[b"\x2a\x01"] * 50)]
)
async def test_branches_without_records_are_bounded_in_protobuf(body: bytes) -> None:
    with pytest.raises(BodyTooLargeError):
        await batch_of(body, PROTOBUF, protocol_body_events_max=10)


async def test_a_record_that_is_too_large_or_has_too_many_values_is_rejected() -> None:
    many = [{"key": str(n), "value": text("")} for n in range(VALUES_MAX)]
    batch = await both(document(GOOD, {"attributes": many, "timeUnixNano": "5"}))
    assert (len(batch.events), batch.rejected) == (2, 0)
    within: Json = {"arrayValue": {"values": [{}] * (VALUES_MAX // 2)}}
    too_many: list[Json] = [
        {"attributes": [*many, *many]},
        {"attributes": attributes(a=within, b=within)},
        {"body": {"arrayValue": {"values": [within, within]}}},
        {"body": {"kvlistValue": {"values": [*many, *many]}}},
        {"body": {"bytesValue": base64.b64encode(b"x" * RECORD_BYTES_MAX).decode()}},
        {"attributes": attributes(**{f"k{n}": text("x" * 1000) for n in range(RECORD_BYTES_MAX // 1000)})},
    ]
    batch = await both(document(GOOD, *too_many, GOOD))
    assert ([event.message for event in batch.events], batch.rejected) == (["good", "good"], 6)
    with pytest.raises(MalformedBodyError):
        await batch_of(in_protobuf(document(GOOD, resource=[*many, *many])), PROTOBUF)
    with pytest.raises(MalformedBodyError):
        await batch_of(json.dumps(document(GOOD, resource=[*many, *many])).encode())


async def test_a_large_record_whose_attributes_are_no_list_is_rejected_alone_in_json() -> None:
    large: Json = {"body": text("x" * RECORD_BYTES_MAX), "attributes": {"a": 1}}
    batch = await batch_of(json.dumps(document(GOOD, large, GOOD)).encode())
    assert ([event.message for event in batch.events], batch.rejected) == (["good", "good"], 1)


async def test_a_large_record_may_have_any_body_in_protobuf() -> None:
    # Given large records: an empty body before a field that looks like a text, a body with two values, and one that has
    # more fields than a record may have within its attributes
    name, rest = LogRecord(), b"\x1a\x80\x80\x40" + b"x" * (1 << 20)  # severity_text
    name.body.string_value = "good"
    empty = b"\x2a\x00" + b"\x0a\x01x" + rest
    two = b"\x2a\x06" + b"\x0a\x01a\x0a\x01b" + rest
    keys = b"\x0a\x01k" * (VALUES_MAX + 1) + b"\x12\x80\x80\x08" + b"x" * (1 << 17)
    many = LogRecord()
    many.body.string_value = "x" * RECORD_BYTES_MAX
    size = len(keys)  # an attribute, with its length in three bytes
    wide = many.SerializeToString() + bytes([0x32, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + keys
    # When they come beside a good one, they are rejected alone
    body = of_records(empty, two, wide, name.SerializeToString())
    batch = await batch_of(body, PROTOBUF)
    assert ([event.message for event in batch.events], batch.rejected) == (["good"], 3)


async def test_a_deep_record_costs_no_other_in_protobuf() -> None:
    deep = LogRecord()
    value = deep.body
    for _ in range(90):
        value = value.array_value.values.add()
    good = LogRecord()
    good.body.string_value = "good"
    batch = await batch_of(of_records(good.SerializeToString(), deep.SerializeToString()), PROTOBUF)
    assert ([event.message for event in batch.events], batch.rejected) == (["good"], 1)


@pytest.mark.parametrize("depth", [10, 100, 150, 200, 250, 300, 350, 400, 1000])
async def test_no_depth_does_harm_in_json(depth: int) -> None:
    for start, end in (('{"arrayValue":{"values":[', "]}}"), ('{"kvlistValue":{"values":[{"key":"k","value":', "}]}}")):
        deep = (start * depth + "{}" + end * depth).encode()
        body = json.dumps(document(GOOD, {"body": "deep"}, {"attributes": attributes(a=text("deep"))})).encode()
        body = body.replace(b'"deep"', deep, 1).replace(b'{"stringValue": "deep"}', deep)
        await _survives(body, JSON)
        if depth <= 100:
            assert len((await batch_of(body)).events) == 3


async def test_copies_of_a_large_resource_are_bounded() -> None:
    resource = attributes(large=text("x" * 4000))
    whole = document(*[{}] * 1000, resource=resource)
    for body, media_type in ((json.dumps(whole).encode(), JSON), (in_protobuf(whole), PROTOBUF)):
        assert len((await batch_of(body, media_type, protocol_body_bytes_max=1 << 20)).events) == 1000
        with pytest.raises(BodyTooLargeError):
            await batch_of(body, media_type, protocol_body_bytes_max=900_000)


@pytest.mark.parametrize("media_type", [JSON, PROTOBUF])
def test_a_large_body_is_decoded_in_short_steps(media_type: str) -> None:
    count = 19_000
    record = {"timeUnixNano": str(TIME_NS), "body": text("x" * 700)}
    if media_type == JSON:
        begin, end = json.dumps(document("here", resource=SERVICE)).encode().split(b'"here"')  # type: ignore[arg-type]
        body = begin + b",".join([json.dumps(record).encode()] * count) + end
    else:
        message = LogRecord(time_unix_nano=TIME_NS)
        message.body.string_value = "x" * 700
        body = of_records(*[message.SerializeToString()] * count)
    assert len(body) > 12 << 20
    batch = BatchBuilder(body, 20_000)
    builder = RecordsBuilder(batch, 20_000, 16 << 20, 0)
    steps = otlp_json.steps(builder, body) if media_type == JSON else otlp_protobuf.steps(builder, body, 20_000)
    seconds = []
    is_done = False
    while not is_done:
        began = time.thread_time()
        is_done = next(steps, "done") == "done"
        seconds.append(time.thread_time() - began)
    assert len(batch.events) == count
    assert len(seconds) > 900
    # All but those that skip the whole body once; with room for a busy machine
    assert sorted(seconds)[len(seconds) * 99 // 100] < 0.01


async def test_large_and_small_bodies_have_the_same_events() -> None:
    records = [{"timeUnixNano": str(n + 1), "body": text("x" * 200)} for n in range(1000)]
    whole = document(*records)
    assert len(in_protobuf(whole)) > AT_ONCE_BYTES
    batch = await both(copy.deepcopy(whole))
    assert [event.timestamp for event in batch.events] == [0] * 1000
    assert [(event.attributes or {}).get("time_ns") for event in batch.events] == list(range(1, 1001))


# --- Hostile content ------------------------------------------------------------------------------------------------

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("NaN")
_NAMES = st.sampled_from((
    "resourceLogs", "scopeLogs", "logRecords", "resource", "scope", "attributes", "key", "value", "values", "body",
    "stringValue", "intValue", "boolValue", "doubleValue", "arrayValue", "kvlistValue", "bytesValue",
    "timeUnixNano", "observedTimeUnixNano", "severityNumber", "severityText", "flags", "traceId", "spanId",
    "eventName", "name", "version", "droppedAttributesCount", "resource_logs", "scope_logs", "log_records", "x",
))  # fmt: skip
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_NAMES, inner), max_leaves=30)
_ATTRIBUTES = st.lists(st.fixed_dictionaries({"key": st.text(), "value": _VALUES}) | _VALUES, max_size=4)
_RECORDS = st.dictionaries(_NAMES, _VALUES, max_size=5) | st.fixed_dictionaries(
    {"attributes": _ATTRIBUTES, "body": _VALUES, "timeUnixNano": _SCALARS, "traceId": _SCALARS}
)


async def _survives(body: bytes, media_type: str) -> None:
    try:
        batch = await batch_of(body, media_type)
    except RequestError as error:
        codec().rejected(Head({"content-type": media_type}, "/v1/logs"), error)
        return
    for event in batch.events:
        event.event_id = event.event_id or "id"
        json.loads(encode_record(event, b"{"))
        assert "\0" not in event.message
        assert not any(isinstance(one, float) and not math.isfinite(one) for one in (event.attributes or {}).values())
    assert batch.accepted().status == 200


@given(st.binary(max_size=200))
async def test_no_bytes_do_harm(body: bytes) -> None:
    await _survives(body, PROTOBUF)
    await _survives(body, JSON)
    await _survives(of_records(body), PROTOBUF)
    await _survives(
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"' + body + b'"}}]}]}]}', JSON
    )


@given(st.lists(_RECORDS, max_size=4), _VALUES, _VALUES, st.booleans())
async def test_no_json_does_harm(records: list[Any], resource: Any, scope: Any, is_ascii: bool) -> None:
    whole = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": records}]}]}
    await _survives(json.dumps(whole, ensure_ascii=is_ascii).encode(errors="surrogatepass"), JSON)


@given(st.binary(max_size=6), st.integers(0, 200), st.data())
async def test_no_change_of_good_protobuf_does_harm(change: bytes, at: int, data: st.DataObject) -> None:
    record = {"timeUnixNano": "5", "traceId": TRACE, "body": text("good"), "attributes": attributes(a=text("b"))}
    body = in_protobuf(document(record, record, resource=SERVICE, scope={"name": "app"}))
    size = data.draw(st.integers(0, 6))
    await _survives(body[:at] + change + body[at + size :], PROTOBUF)
