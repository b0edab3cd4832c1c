"""Maps a JSON object of any logging library to an event. docs/protocols.md has the table."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ingest.protocols.json_ends import end_of_value
from ingest.protocols.records import (
    DEPTH_MAX,
    compact_json,
    event_of,
    id_of,
    severity_of,
    time_ns_of,
)
from pipeline.event import MESSAGE_BYTES_MAX, Event

Fields = dict[str, Any]  # by dotted key

# In the order in which they are looked up. A field that is used becomes no attribute.
CORRELATION_ID: Final = ("correlationId", "correlation_id", "trace.id", "trace_id", "traceId", "otelTraceID")
SEVERITY: Final = (
    "log.level", "level", "severity", "levelname", "loglevel", "status", "level.name", "record.level.name",
    "otel.log.severity.text",
)  # fmt: skip
MESSAGE: Final = (
    "message", "msg", "event", "log", "record.message", "text", "short_message", "data.message", "data.msg", "data",
    "body",
)  # fmt: skip
SOURCE: Final = (
    "service.name", "service", "source", "logger", "log.logger", "logger_name", "extra.logger_name",
    "context.runtime.logger_name", "record.name",
    "app", "name", "program", "process.name", "hostname", "host.name", "host",
)  # fmt: skip
TIME: Final = ("@timestamp", "timestamp", "time", "date", "dt", "ts", "asctime", "record.time.timestamp", "created")
TRACEPARENT: Final = "traceparent"  # W3C Trace Context: version, trace id, span id, flags

# No event has so much content, and decoding all of it would take long: see large_object.
RECORD_BYTES_MAX: Final = 256 * 1024
RECORD_VALUES_MAX: Final = 5_000  # commas and opening brackets, within strings too
_SMALL_BYTES: Final = 8 * 1024  # takes a millisecond, whatever it has

LARGE_FIELDS_MAX: Final = 1000  # of an object that is not decoded as a whole
LARGE_LEVELS_MAX: Final = 2  # of objects within it that are not decoded as a whole either
LARGE_INNER_FIELDS_MAX: Final = 2000  # of all objects within it that are not decoded as a whole
# Of a string: enough for a message even if each of its characters is an escape. What is behind it would be cut anyway.
STRING_BYTES_READ: Final = 6 * MESSAGE_BYTES_MAX
_ESCAPE_BYTES_MAX: Final = 12  # a pair of surrogates

_OBJECT_BEGIN: Final = re.compile(rb"\s*+\{\s*+")
_OBJECT_END: Final = re.compile(rb"\}\s*+\Z")
_FIELD: Final = re.compile(rb'("(?>(?:[^"\\]|\\.){0,1024})")\s*+:\s*+(?=.)', re.DOTALL)
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NEXT_FIELD: Final = re.compile(rb'\s*+(?:,\s*+(?=")|(?=\}))')

_decode_any: Final = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Mapped:
    """An event, and what the batch needs to know of its record."""

    event: Event
    key: str | None  # its own correlation id; None if the record has none
    has_time: bool


def event_of_json(
    record: Fields,
    *,
    received_ns: int,
    source: str = "",
    time_ns: int | None = None,
    event_id: str | None = None,
    beside: Fields | None = None,
    more: Iterable[tuple[str, object]] = (),
) -> Mapped:
    """The event of a JSON object.

    `received_ns` is the time of a record without one, in epoch nanoseconds; `source` is that of a record without one.
    `time_ns` is the time that the protocol has beside the record; then a time in the record is an attribute.
    `beside` are fields that the protocol has beside the record: they count as fields of the record that come last.
    `more` are attributes that find room only after those of the record.
    """
    fields = flatten(record)
    for name, value in (beside or {}).items():
        fields.setdefault(name, value)
    event_id = event_id or _own_id(fields)
    correlation_id = take(fields, CORRELATION_ID, short) or _trace_id(fields)
    severity = take(fields, SEVERITY, severity_of) or "INFO"
    message = take(fields, MESSAGE, _text)
    given_source = take(fields, SOURCE, short) or source
    if time_ns is None:
        time_ns = take(fields, TIME, time_ns_of)
    event = event_of(
        message=compact_json(record) if message is None else message,
        severity=severity,
        source=given_source,
        time_ns=received_ns if time_ns is None else time_ns,
        correlation_id=correlation_id or "",
        attributes=(*fields.items(), *more),
        event_id=event_id,
    )
    return Mapped(event, correlation_id, time_ns is not None)


def object_of(text: bytes) -> Fields | None:
    """The JSON object that a text is; None if it is none. Of a vast one, only what an event may have is decoded.

    It may have what msgspec and other servers refuse: bytes that are not UTF-8, halves of surrogate pairs, control
    characters, NaN, and integers of more than 64 bits.
    """
    try:
        if is_vast(text):
            return large_object(text)
        value = _value_of(text)
    except (ValueError, RecursionError):
        return text_record(text) if is_vast(text) else None
    return value if isinstance(value, dict) else None


def _value_of(text: bytes) -> Any:
    """A JSON value. Raises ValueError, RecursionError."""
    try:
        return _decode_any(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return json.loads(text.decode("utf-8", "replace"), strict=False)


class _Room:
    """What may still be decoded of a large object."""

    def __init__(self) -> None:
        self._bytes_left = RECORD_BYTES_MAX  # of its arrays and objects
        self._fields_left = LARGE_INNER_FIELDS_MAX

    def takes(self, size: int) -> bool:
        """Whether a value of so many bytes may be decoded; then its bytes are taken."""
        if size > self._bytes_left:
            return False
        self._bytes_left -= size
        return True

    def take_field(self) -> None:
        """Take one field of an object within it. Raises ValueError if there are too many."""
        self._fields_left -= 1
        if self._fields_left < 0:
            raise ValueError("the objects within it have too many fields")


def large_object(text: bytes) -> Fields:
    """A JSON object of any size: strings as far as a message may have of them, and other large values as their text.

    So are small values, once RECORD_BYTES_MAX of them were decoded. Raises ValueError if it is no object or has too
    many fields, RecursionError if it is nested too deep.
    """
    room = _Room()
    return {string_of(name): _large_value(raw, LARGE_LEVELS_MAX, room) for name, raw in large_fields(text)}


def large_fields(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The fields of a JSON object, not decoded: (name, value) of each. Raises what `large_object` raises."""
    begin = _OBJECT_BEGIN.match(text)
    if begin is None:
        raise ValueError("it is no object")
    at = begin.end()
    for _ in range(LARGE_FIELDS_MAX):
        name = _FIELD.match(text, at)
        end = None if name is None else _end_of_value(text, name.end())
        if name is None or end is None:
            break
        yield name[1], text[name.end() : end]
        following = _NEXT_FIELD.match(text, end)
        at = end if following is None else following.end()
    if _OBJECT_END.match(text, at) is None:
        raise ValueError("it is no object, or has too many fields")


def _end_of_value(text: bytes, at: int) -> int | None:
    """Where a value ends. A string may have what msgspec refuses."""
    end = end_of_value(text, at)
    string = _STRING.match(text, at) if end is None else None
    return end if string is None else string.end()


def _large_value(raw: bytes, levels: int, room: _Room) -> Any:
    if raw[:1] == b'"':
        return string_of(raw)
    if not is_vast(raw) and (raw[:1] not in (b"{", b"[") or room.takes(len(raw))):
        return _value_of(raw)
    if raw[:1] == b"{" and levels:
        try:
            return _inner_object(raw, levels - 1, room)
        except ValueError:
            pass
    try:
        raw.decode()
    except UnicodeDecodeError:
        return text_record(raw)["message"]
    return msgspec.Raw(raw) if len(raw) <= 2 * MESSAGE_BYTES_MAX else text_record(raw)["message"]


def _inner_object(raw: bytes, levels: int, room: _Room) -> Fields:
    found = {}
    for name, value in large_fields(raw):
        room.take_field()
        found[string_of(name)] = _large_value(value, levels, room)
    return found


def string_of(raw: bytes) -> str:
    """A JSON string, as far as a message may have of it. Raises ValueError."""
    if len(raw) <= STRING_BYTES_READ:
        return str(_value_of(raw))
    for end in range(STRING_BYTES_READ, STRING_BYTES_READ - _ESCAPE_BYTES_MAX, -1):  # not within a character
        try:
            return str(_value_of(raw[:end] + b'"'))
        except ValueError:
            continue
    raise ValueError("it is no string")


def is_vast(text: bytes) -> bool:
    """Whether a record is larger than any event by far."""
    size = len(text)
    if size <= _SMALL_BYTES:
        return False
    return size > RECORD_BYTES_MAX or has_many_values(text)


def has_many_values(text: bytes) -> bool:
    """Whether a record may have so many values that decoding it takes long."""
    return text.count(b",") + text.count(b"[") + text.count(b"{") > RECORD_VALUES_MAX


def text_record(text: bytes) -> Fields:
    """The record of a text that is no JSON, or vast."""
    return {"message": text[: 2 * MESSAGE_BYTES_MAX].decode("utf-8", "replace")}


# A part of a run of blank lines: one step must not look at a whole body.
_BLANK_LINES: Final = re.compile(rb"(?>(?:[ \t\r\f\v]{0,256}+\n){1,4096})")


def lines_of(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a body with their numbers, one after another: a list of them may need far more memory than the body.

    Blank lines that follow one another are one. A small compressed body may have millions of them.
    """
    start, number = 0, 1
    while start < len(body):
        end = body.find(b"\n", start)
        if end < 0:
            end = len(body)
        line = body[start:end]
        yield number, line
        start, number = end + 1, number + 1
        if not line or line.isspace():
            blank = _BLANK_LINES.match(body, start)
            if blank is not None:
                start, number = blank.end(), number + body.count(b"\n", start, blank.end())


def flatten(record: Fields) -> Fields:
    """The fields of an object and of all objects in it, by dotted key. The first of two equal keys is kept."""
    fields: Fields = {}
    for key, value in record.items():
        if type(value) is dict and value:
            _flatten_into(fields, key, value, 1)
        else:
            fields.setdefault(key, value)
    return fields


def _flatten_into(fields: Fields, prefix: str, record: Fields, depth: int) -> None:
    for name, value in record.items():
        key = f"{prefix}.{name}"
        if type(value) is dict and value and depth < DEPTH_MAX:
            _flatten_into(fields, key, value, depth + 1)
        else:
            fields.setdefault(key, value)


def take(fields: Fields, names: Iterable[str], read: Callable[[Any], Any]) -> Any:
    """The first of these fields that has a meaning; it is removed. None if there is none."""
    for name in names:
        value = fields.get(name)
        if value is not None and (meaning := read(value)) is not None:
            del fields[name]
            return meaning
    return None


def short(value: object) -> str | None:
    """A text or a number as a text; None for anything else, or if it is empty."""
    return str(value) or None if isinstance(value, str | int) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else compact_json(value)


def _trace_id(fields: Fields) -> str | None:
    parts = str(fields.get(TRACEPARENT, "")).split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else None


def _own_id(fields: Fields) -> str | None:
    """The id that the record has: `eventId`, `uuid`, or that of a CloudEvent, which is unique within its source."""
    if "specversion" in fields and isinstance(fields.get("id"), str):
        return id_of(f"{fields.get('source', '')} {fields.pop('id')}")
    value = take(fields, ("eventId", "uuid"), short)
    return None if value is None else id_of(value)
