"""The JSON encoding of OpenTelemetry's logs.

It is protobuf's JSON, but ids are hexadecimal, enums are numbers, and unknown fields are ignored:
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding. A body is a tree: resources, their scopes, and the
records of these. msgspec first skips over the branches without building them, and then decodes one record at a time.

The names of fields in protobuf's own form (`resource_logs`) are accepted too. OTLP does not allow them, but such a body
would be an empty one otherwise, and its events would be lost without an error.
"""

import re
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec

from ingest.errors import MalformedBodyError
from ingest.framing import without_mark
from ingest.protocols.json_ends import NO_JSON
from ingest.protocols.json_records import large_fields, string_of
from ingest.protocols.json_values import repaired
from ingest.protocols.otlp_records import (
    LARGE_ATTRIBUTE_BYTES,
    NO_ROOM,
    NUMBERS_A_SEVERITY,
    RECORD_BYTES_MAX,
    STEP_BYTES,
    STEP_RECORDS,
    VALUES_MAX,
    Budget,
    Origin,
    Record,
    RecordsBuilder,
    UnmappableError,
)
from ingest.protocols.records import compact_json, message_text
from pipeline.event import SEVERITIES

_Decoded = TypeVar("_Decoded")
_Number = int | float | str  # 64-bit integers are strings, or numbers
_ABSENT: Final = msgspec.Raw(b"null")
_ARRAY_BEGIN: Final = ord("[")
_NEXT: Final = re.compile(r"trailing characters \(byte (\d+)\)")  # from 1
_SNAKE_NAME: Final = re.compile(rb'"[a-z]+(?:_[a-z]+)+"\s*:')
_SNAKE_WORD: Final = re.compile(rb"_([a-z])")
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")
_FLOAT: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?|NaN|-?Infinity")
_UINT64_DIGITS: Final = 20
_DIGITS_MAX: Final = 64
_SEVERITY_NAME: Final = re.compile(rf"SEVERITY_NUMBER_({'|'.join(SEVERITIES)})([234])?")


class _Body(msgspec.Struct):
    resource_logs: msgspec.Raw = msgspec.field(name="resourceLogs", default=_ABSENT)
    resource_logs_own: msgspec.Raw = msgspec.field(name="resource_logs", default=_ABSENT)


class _ResourceLogs(msgspec.Struct):
    resource: msgspec.Raw = _ABSENT
    scope_logs: msgspec.Raw = msgspec.field(name="scopeLogs", default=_ABSENT)
    scope_logs_own: msgspec.Raw = msgspec.field(name="scope_logs", default=_ABSENT)


class _ScopeLogs(msgspec.Struct):
    scope: msgspec.Raw = _ABSENT
    log_records: msgspec.Raw = msgspec.field(name="logRecords", default=_ABSENT)
    log_records_own: msgspec.Raw = msgspec.field(name="log_records", default=_ABSENT)


class _AnyValue(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: _Number | None = None
    double_value: _Number | None = None
    array_value: "_ArrayValue | None" = None
    kvlist_value: "_KeyValueList | None" = None
    bytes_value: str | None = None  # in base64


class _KeyValue(msgspec.Struct):
    key: str = ""
    value: _AnyValue | None = None


class _ArrayValue(msgspec.Struct):
    values: list[_AnyValue | None] | None = None


class _KeyValueList(msgspec.Struct):
    values: list[_KeyValue] | None = None


class _Resource(msgspec.Struct, rename="camel"):
    attributes: list[_KeyValue] | None = None
    dropped_attributes_count: _Number | None = None


class _Scope(msgspec.Struct, rename="camel"):
    name: str | None = None
    version: str | None = None
    attributes: list[_KeyValue] | None = None
    dropped_attributes_count: _Number | None = None


class _LogRecord(msgspec.Struct, rename="camel"):
    time_unix_nano: _Number | None = None
    observed_time_unix_nano: _Number | None = None
    severity_number: _Number | None = None
    severity_text: str | None = None
    body: _AnyValue | None = None
    attributes: list[_KeyValue] | None = None
    dropped_attributes_count: _Number | None = None
    flags: _Number | None = None
    trace_id: str | None = None
    span_id: str | None = None
    event_name: str | None = None


_skip = msgspec.json.Decoder(msgspec.Raw).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_resource_logs = msgspec.json.Decoder(_ResourceLogs | None).decode
_decode_scope_logs = msgspec.json.Decoder(_ScopeLogs | None).decode
_decode_resource = msgspec.json.Decoder(_Resource | None).decode
_decode_scope = msgspec.json.Decoder(_Scope | None).decode
_decode_record = msgspec.json.Decoder(_LogRecord | None).decode


def steps(builder: RecordsBuilder, body: bytes) -> Generator[None, None, None]:
    """Add the events of a body. Raises MalformedBodyError, BodyTooLargeError."""
    try:
        decoded = yield from repaired(_decode_body, without_mark(body))
    except NO_JSON as error:
        raise _malformed(error) from None
    yield
    for resource_logs in _elements(decoded.resource_logs):
        yield from _resource_logs(builder, resource_logs, _as_it_is)
    for resource_logs in _elements(decoded.resource_logs_own):
        yield from _resource_logs(builder, resource_logs, _in_camel_case)


def _resource_logs(builder: RecordsBuilder, raw: memoryview, form: "_Form") -> Generator[None, None, None]:
    """The records of one resource."""
    builder.begin_group()
    decoded = _decoded(_decode_resource_logs, raw) or _ResourceLogs()
    resource = _common(_decode_resource, decoded.resource, form) or _Resource()
    attributes = _common_attributes(resource.attributes)
    if dropped := _common_whole(resource.dropped_attributes_count):
        attributes["resource.dropped_attributes_count"] = dropped
    yield
    for scope_logs in chain(_elements(decoded.scope_logs), _elements(decoded.scope_logs_own)):
        yield from _scope_logs(builder, attributes, scope_logs, form)


def _scope_logs(
    builder: RecordsBuilder, resource: dict[str, Any], raw: memoryview, form: "_Form"
) -> Generator[None, None, None]:
    """The records of one scope."""
    builder.begin_group()
    decoded = _decoded(_decode_scope_logs, raw) or _ScopeLogs()
    scope = _common(_decode_scope, decoded.scope, form) or _Scope()
    origin = Origin(resource, _scope_attributes(scope))
    yield
    count = size = 0
    for record in chain(_elements(decoded.log_records), _elements(decoded.log_records_own)):
        _add(builder, record, origin, form)
        count, size = count + 1, size + len(record)
        if count >= STEP_RECORDS or size >= STEP_BYTES:
            yield
            count = size = 0


def _scope_attributes(scope: _Scope) -> Iterator[tuple[str, Any]]:
    for name, text in (("scope.name", scope.name), ("scope.version", scope.version)):
        if text:
            yield name, text
    if dropped := _common_whole(scope.dropped_attributes_count):
        yield "scope.dropped_attributes_count", dropped
    yield from _common_attributes(scope.attributes).items()


# --- The upper levels -----------------------------------------------------------------------------------------------


def _decoded(decode: Callable[[Any], _Decoded], raw: bytes | memoryview) -> _Decoded:
    """A part of the body. Raises MalformedBodyError."""
    try:
        return decode(raw)
    except NO_JSON as error:
        raise _malformed(error) from None


def _malformed(error: Exception) -> MalformedBodyError:
    what = "nested too deep" if isinstance(error, RecursionError) else str(error)
    return MalformedBodyError(f"not OTLP in JSON: {what}")


def _elements(array: msgspec.Raw) -> Iterator[memoryview]:
    """The elements of an array, or none of `null`. Raises MalformedBodyError.

    msgspec skips an element, and then finds what follows it: its error has the place. So one element after the other is
    found without building any. An array of many empty objects would need much time and memory at once.
    """
    raw = memoryview(array)
    if bytes(raw[:5]) == b"null":
        return
    if raw[0] != _ARRAY_BEGIN:
        raise MalformedBodyError("not OTLP in JSON: a list is no array")
    at = 1
    while (size := _element_bytes(raw[at:])) is not None:
        yield raw[at : at + size]
        at += size + 1  # and the comma


def _element_bytes(rest: memoryview) -> int | None:
    """The bytes of the element at the start of an array's rest, with the blanks after it; None if there is none.

    The body was skipped as a whole before. So there is always an element, unless the array is empty or at its end.
    """
    try:
        _skip(rest)
    except msgspec.MsgspecError as error:
        match = _NEXT.search(str(error))
        return None if match is None else int(match[1]) - 1
    except RecursionError as error:
        raise _malformed(error) from None
    return None


def _common(decode: Callable[[Any], _Decoded], raw: msgspec.Raw, form: "_Form") -> _Decoded:
    """A resource or a scope. Raises MalformedBodyError."""
    text = bytes(raw)
    if len(text) > RECORD_BYTES_MAX:
        raise MalformedBodyError(f"a resource or a scope has more than {RECORD_BYTES_MAX} bytes")
    try:
        return _with_valid_text(decode, form(text))
    except NO_JSON as error:
        raise _malformed(error) from None


def _common_attributes(attributes: list[_KeyValue] | None) -> dict[str, Any]:
    """The attributes of a resource or a scope. Raises MalformedBodyError if there are too many."""
    try:
        return _attributes(attributes, Budget())
    except (UnmappableError, RecursionError) as error:
        raise _malformed(error) from None


def _common_whole(value: _Number | None) -> int:
    try:
        return _whole(value)
    except UnmappableError as error:
        raise _malformed(error) from None


# --- Forms of the same JSON -----------------------------------------------------------------------------------------

_Form = Callable[[bytes], bytes]


def _as_it_is(text: bytes) -> bytes:
    return text


def _in_camel_case(text: bytes) -> bytes:
    """Rename the fields. A quote within a string has a backslash before it, so it does not end a name."""
    return _SNAKE_NAME.sub(lambda match: _SNAKE_WORD.sub(lambda word: word[1].upper(), match[0]), text)


def _with_valid_text(decode: Callable[[Any], _Decoded], text: bytes | memoryview) -> _Decoded:
    """Decode a part of the body, with U+FFFD in place of what is not UTF-8. Raises NO_JSON."""
    try:
        return decode(text)
    except UnicodeDecodeError:
        return decode(bytes(text).decode(errors="replace").encode())


# --- Records --------------------------------------------------------------------------------------------------------


def _add(builder: RecordsBuilder, raw: memoryview, origin: Origin, form: _Form) -> None:
    try:
        text = raw if form is _as_it_is else form(bytes(raw))
        if len(text) > RECORD_BYTES_MAX:
            text = _without_large_texts(bytes(text))
        decoded = _with_valid_text(_decode_record, text) or _LogRecord()
        record = _record(decoded, Budget())
    except (*NO_JSON, UnmappableError) as error:
        builder.reject("a record is nested too deep" if isinstance(error, RecursionError) else f"a record: {error}")
    else:
        builder.add(record, origin)


def _without_large_texts(text: bytes) -> bytes:
    """A record with the beginning of its body, and without the values of attributes that no event has room for.

    Raises UnmappableError if it is still too large, RecursionError.
    """
    try:
        fields = [(name, _SHORTENED.get(name, bytes)(value)) for name, value in large_fields(text)]
    except (ValueError, MalformedBodyError) as error:
        raise UnmappableError(f"it has more than {RECORD_BYTES_MAX} bytes: {error}") from error
    found = b"{%b}" % b",".join(b"%b:%b" % field for field in fields)
    if len(found) > RECORD_BYTES_MAX:
        raise UnmappableError(f"it has more than {RECORD_BYTES_MAX} bytes")
    return found


def _short_body(raw: bytes) -> bytes:
    """A body; of a text, as much as a message may have. Raises ValueError, RecursionError."""
    fields = dict(large_fields(raw))
    text = fields.get(b'"stringValue"')
    if len(fields) != 1 or text is None:
        return raw
    return b'{"stringValue":%b}' % compact_json(message_text(string_of(text))).encode()


def _short_attributes(raw: bytes) -> bytes:
    """A list of attributes. Raises ValueError, RecursionError."""
    found = []
    for one in _elements(msgspec.Raw(raw)):
        if len(one) <= LARGE_ATTRIBUTE_BYTES:
            found.append(bytes(one))
        else:
            key = dict(large_fields(bytes(one))).get(b'"key"', b'""')
            found.append(b'{"key":%b,"value":{"stringValue":"%b"}}' % (key, NO_ROOM))
        if len(found) > VALUES_MAX:
            raise ValueError("too many attributes")
    return b"[%b]" % b",".join(found)


_SHORTENED: Final[dict[bytes, Callable[[bytes], bytes]]] = {b'"body"': _short_body, b'"attributes"': _short_attributes}


def _record(decoded: _LogRecord, budget: Budget) -> Record:
    return Record(
        _whole(decoded.time_unix_nano),
        _whole(decoded.observed_time_unix_nano),
        _severity_number(decoded.severity_number),
        decoded.severity_text or "",
        _value(decoded.body, budget),
        _attributes(decoded.attributes, budget),
        _whole(decoded.dropped_attributes_count),
        _whole(decoded.flags),
        decoded.trace_id or "",
        decoded.span_id or "",
        decoded.event_name or "",
    )


def _attributes(attributes: list[_KeyValue] | None, budget: Budget) -> dict[str, Any]:
    if not attributes:
        return {}
    budget.take(len(attributes))
    return {one.key: _value(one.value, budget) for one in attributes}


def _value(value: _AnyValue | None, budget: Budget) -> Any:
    if value is None:
        return None
    if value.string_value is not None:
        return value.string_value
    if value.array_value is not None:
        values = value.array_value.values or []
        budget.take(len(values))
        return [_value(one, budget) for one in values]
    if value.kvlist_value is not None:
        return _attributes(value.kvlist_value.values, budget)
    return _scalar(value)


def _scalar(value: _AnyValue) -> int | float | str | None:
    if value.int_value is not None:
        return _integer(value.int_value)
    if value.bool_value is not None:
        return value.bool_value
    return value.bytes_value if value.double_value is None else _double(value.double_value)


def _integer(value: _Number) -> int | float | str:
    """An integer; what is none stays as it is."""
    if isinstance(value, str):
        return int(value) if _INTEGER.fullmatch(value) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _double(value: _Number) -> float | str:
    """A float; what is none stays as it is."""
    if isinstance(value, str) and not _FLOAT.fullmatch(value):
        return value
    return float(value) if isinstance(value, str | int) and len(str(value)) <= _DIGITS_MAX else value


def _whole(value: _Number | None) -> int:
    """A number that has no sign. Raises UnmappableError for anything else."""
    if value is None:
        return 0
    if type(value) is str and value.isdecimal() and value.isascii() and len(value) <= _UINT64_DIGITS:  # most are
        return int(value)
    whole = _integer(value)
    if isinstance(whole, int) and whole >= 0:
        return whole
    raise UnmappableError(f"{str(value)[:40]!r} is not a whole number")


def _severity_number(value: _Number | None) -> int:
    """A severity's number, or its name in protobuf, such as SEVERITY_NUMBER_WARN2."""
    if isinstance(value, str) and (match := _SEVERITY_NAME.fullmatch(value)) is not None:
        return SEVERITIES.index(match[1]) * NUMBERS_A_SEVERITY + int(match[2] or 1)
    return 0 if value == "SEVERITY_NUMBER_UNSPECIFIED" else _whole(value)
