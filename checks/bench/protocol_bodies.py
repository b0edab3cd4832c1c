"""The same records in each protocol, in the shape in which its usual clients send them.

There are two kinds. `traced` records have a trace and eight attributes: those of a web service with OpenTelemetry, or
with a logging library that writes JSON. `plain` records are lines with three labels, as shippers send files to Loki.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import cramjam
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

MESSAGE: Final = "PacketResponder 1 for block blk_38865049064139660 terminating, status nominal"
SERVICE: Final = "checkout"
HOST: Final = "web-3"
ENVIRONMENT: Final = "prod"
ROUTE: Final = "/orders/{id}"
SECONDS: Final = 1_700_000_000
NDJSON: Final = "application/x-ndjson"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """The fields that differ between records; all other fields are the same in each record."""

    number: int

    @property
    def trace_id(self) -> str:
        return f"{0x4BF92F3577B34DA6A3CE929D0E0E4736 + self.number // 4:032x}"

    @property
    def span_id(self) -> str:
        return f"{0x00F067AA0BA902B7 + self.number:016x}"

    @property
    def time_ns(self) -> int:
        return SECONDS * 10**9 + self.number * 1_000_000 + 123_456

    @property
    def time_ms(self) -> int:
        return self.time_ns // 10**6

    @property
    def time_text(self) -> str:
        return (
            datetime.fromtimestamp(self.time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )

    @property
    def user(self) -> str:
        return f"u-{self.number % 1000}"


@dataclass(frozen=True, slots=True)
class Form:
    """A measured protocol: how to make a body from records, how to send it, and the expected answer."""

    name: str
    path: str
    status: int
    body_of: Callable[[Sequence[Record]], bytes]
    headers: dict[str, str] = field(default_factory=dict)
    is_traced: bool = True  # else: plain
    has_batches: bool = True

    def request(self, records: Sequence[Record]) -> bytes:
        """The bytes of a request."""
        body = self.body_of(records)
        fields = {"host": "localhost", **self.headers, "content-length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def records_of(count: int, first: int = 0) -> list[Record]:
    """Records with different numbers."""
    return [Record(first + number) for number in range(count)]


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _flat(record: Record) -> Document:
    """The attributes of a traced record, with the span."""
    return {
        "span_id": record.span_id, "http.method": "POST", "http.route": ROUTE, "http.status_code": 201,
        "user.id": record.user, "host.name": HOST, "deployment.environment": ENVIRONMENT,
    }  # fmt: skip


# --- Sluice's own -----------------------------------------------------------------------------------------------------


def _own(record: Record, correlation_id: str, attributes: Document) -> Document:
    return {
        "correlationId": correlation_id, "severity": "INFO", "message": MESSAGE, "source": SERVICE,
        "timestamp": record.time_ms, "attributes": {"time_ns": record.time_ns, **attributes},
    }  # fmt: skip


def _own_body(events: list[Document]) -> bytes:
    return _json(events if len(events) > 1 else events[0])


def _own_traced(records: Sequence[Record]) -> bytes:
    return _own_body([_own(one, one.trace_id, _flat(one)) for one in records])


def _own_plain(records: Sequence[Record]) -> bytes:
    return _own_body([_own(one, _LABELS_TEXT, _LABELS) for one in records])


# --- OpenTelemetry ----------------------------------------------------------------------------------------------------


def _otlp(records: Sequence[Record]) -> Document:
    def attributes(values: Document) -> list[Document]:
        return [
            {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
            for key, value in values.items()
        ]

    own = ("http.method", "http.route", "http.status_code", "user.id")
    resource = {"service.name": SERVICE, "host.name": HOST, "deployment.environment": ENVIRONMENT}
    log_records = [
        {
            "timeUnixNano": str(one.time_ns), "observedTimeUnixNano": str(one.time_ns), "severityNumber": 9,
            "severityText": "INFO", "body": {"stringValue": MESSAGE},
            "attributes": attributes({key: _flat(one)[key] for key in own}),
            "flags": 1, "traceId": one.trace_id, "spanId": one.span_id,
        }
        for one in records
    ]  # fmt: skip
    scope_logs = {"scope": {"name": SERVICE}, "logRecords": log_records}
    return {"resourceLogs": [{"resource": {"attributes": attributes(resource)}, "scopeLogs": [scope_logs]}]}


def _otlp_json(records: Sequence[Record]) -> bytes:
    return _json(_otlp(records))


def _otlp_protobuf(records: Sequence[Record]) -> bytes:
    message = ExportLogsServiceRequest()
    resource_logs = message.resource_logs.add()
    for key, value in (("service.name", SERVICE), ("host.name", HOST), ("deployment.environment", ENVIRONMENT)):
        resource_logs.resource.attributes.add(key=key).value.string_value = value
    scope_logs = resource_logs.scope_logs.add()
    scope_logs.scope.name = SERVICE
    for one in records:
        record = scope_logs.log_records.add(
            time_unix_nano=one.time_ns, observed_time_unix_nano=one.time_ns, severity_text="INFO", flags=1,
            trace_id=bytes.fromhex(one.trace_id), span_id=bytes.fromhex(one.span_id),
        )  # fmt: skip
        record.severity_number = 9  # type: ignore[assignment]
        record.body.string_value = MESSAGE
        for key in ("http.method", "http.route", "user.id"):
            record.attributes.add(key=key).value.string_value = _flat(one)[key]
        record.attributes.add(key="http.status_code").value.int_value = 201
    return message.SerializeToString()


# --- Loki -------------------------------------------------------------------------------------------------------------

_LABELS: Final = {"service_name": SERVICE, "host": HOST, "environment": ENVIRONMENT, "level": "info"}
_LABELS_TEXT: Final = "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(_LABELS.items())) + "}"


def _metadata(record: Record) -> dict[str, str]:
    found = {
        key: str(value) for key, value in _flat(record).items() if key not in ("host.name", "deployment.environment")
    }
    return {"trace_id": record.trace_id, **found}


def _loki_json(records: Sequence[Record], *, is_traced: bool) -> bytes:
    values = [[str(one.time_ns), MESSAGE, *([_metadata(one)] if is_traced else [])] for one in records]
    return _json({"streams": [{"stream": _LABELS, "values": values}]})


def _loki_protobuf(records: Sequence[Record], *, is_traced: bool) -> bytes:
    entries = [
        _field(1, _number(1, one.time_ns // 10**9) + _number(2, one.time_ns % 10**9))
        + _field(2, MESSAGE.encode())
        + b"".join(_field(3, _field(1, key.encode()) + _field(2, value.encode())) for key, value in pairs)
        for one in records
        for pairs in [_metadata(one).items() if is_traced else ()]
    ]
    stream = _field(1, _LABELS_TEXT.encode()) + b"".join(_field(2, entry) for entry in entries)
    return bytes(cramjam.snappy.compress_raw(_field(1, stream)))


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf with a length."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    """A field of protobuf with a number."""
    return bytes([number << 3]) + _varint(value)


def _varint(value: int) -> bytes:
    def digits() -> Iterator[int]:
        rest = value
        while rest > 0x7F:
            yield rest & 0x7F | 0x80
            rest >>= 7
        yield rest

    return bytes(digits())


# --- Elasticsearch, Splunk, GELF, lines -------------------------------------------------------------------------------


def _bulk(records: Sequence[Record]) -> bytes:
    return b"".join(
        b'{"create":{"_index":"logs"}}\n'
        + _json(
            {
                "@timestamp": one.time_text, "log": {"level": "info"}, "message": MESSAGE,
                "service": {"name": SERVICE}, "trace": {"id": one.trace_id}, "span": {"id": one.span_id},
                "http": {"method": "POST", "route": ROUTE, "status_code": 201}, "user": {"id": one.user},
                "host": {"name": HOST}, "deployment": {"environment": ENVIRONMENT},
            }
        )
        + b"\n"
        for one in records
    )  # fmt: skip


def _hec(records: Sequence[Record]) -> bytes:
    return b"".join(
        _json(
            {
                "time": one.time_ms / 1000, "host": HOST, "sourcetype": "_json",
                "event": {
                    "level": "INFO", "message": MESSAGE, "service.name": SERVICE, "trace_id": one.trace_id,
                    "span_id": one.span_id, "http.method": "POST", "http.route": ROUTE, "http.status_code": 201,
                    "user.id": one.user,
                },
                "fields": {"deployment.environment": ENVIRONMENT},
            }
        )
        for one in records
    )  # fmt: skip


def _gelf(records: Sequence[Record]) -> bytes:
    return zlib.compress(
        b"\n".join(
            _json(
                {
                    "version": "1.1", "host": HOST, "short_message": MESSAGE, "timestamp": one.time_ms / 1000,
                    "level": 6, "_app": SERVICE, "_trace_id": one.trace_id, "_span_id": one.span_id,
                    "_http_method": "POST", "_http_route": ROUTE, "_http_status": 201, "_user_id": one.user,
                    "_environment": ENVIRONMENT,
                }
            )
            for one in records
        )
    )  # fmt: skip


def _lines(records: Sequence[Record]) -> bytes:
    return b"\n".join(
        _json(
            {
                "timestamp": one.time_text, "level": "info", "logger": SERVICE, "event": MESSAGE,
                "trace_id": one.trace_id, **_flat(one),
            }
        )
        for one in records
    )  # fmt: skip


# --- All of them ------------------------------------------------------------------------------------------------------

_JSON_TYPE: Final = {"content-type": "application/json"}
_PROTOBUF_TYPE: Final = {"content-type": "application/x-protobuf"}
OWN_TRACED: Final = Form("own JSON", "/api/logs", 202, _own_traced, _JSON_TYPE)
OWN_PLAIN: Final = Form("own JSON, plain", "/api/logs", 202, _own_plain, _JSON_TYPE, is_traced=False)
_LOKI: Final = "/loki/api/v1/push"

FORMS: Final = (
    Form("OTLP/JSON", "/v1/logs", 200, _otlp_json, _JSON_TYPE),
    Form("OTLP/protobuf", "/v1/logs", 200, _otlp_protobuf, _PROTOBUF_TYPE),
    Form("bulk", "/_bulk", 200, _bulk, {"content-type": NDJSON}),
    Form("Loki, JSON", _LOKI, 204, lambda records: _loki_json(records, is_traced=False), _JSON_TYPE, is_traced=False),
    Form(
        "Loki, protobuf", _LOKI, 204, lambda records: _loki_protobuf(records, is_traced=False), _PROTOBUF_TYPE,
        is_traced=False,
    ),
    Form("Loki, JSON with metadata", _LOKI, 204, lambda records: _loki_json(records, is_traced=True), _JSON_TYPE),
    Form(
        "Loki, protobuf with metadata", _LOKI, 204, lambda records: _loki_protobuf(records, is_traced=True),
        _PROTOBUF_TYPE,
    ),
    Form("HEC", "/services/collector/event", 200, _hec),
    Form("lines", "/api/logs/lines", 202, _lines, {"content-type": NDJSON}),
    Form("GELF", "/gelf", 202, _gelf, {"content-encoding": "gzip,deflate"}, has_batches=False),
)  # fmt: skip
