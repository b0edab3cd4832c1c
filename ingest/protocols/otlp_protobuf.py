"""The binary encoding of OpenTelemetry's logs.

A body is a tree: resources, their scopes, and the records of these. This module walks over the tree's upper levels in
the wire format, and lets protobuf parse groups of records, so that a large body is decoded in steps. If a group has a
broken record, protobuf parses each record by itself. https://protobuf.dev/programming-guides/encoding/
"""

import base64
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import Any, Final, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ScopeLogs
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from ingest.errors import BodyTooLargeError, MalformedBodyError
from ingest.protocols.otlp_records import (
    LARGE_ATTRIBUTE_BYTES,
    NO_ROOM,
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
from pipeline.event import MESSAGE_BYTES_MAX

# Tags of the wire format: the number of the field, and 2 for a length before the content.
_RESOURCE_LOGS: Final = 1 << 3 | 2
_RESOURCE: Final = 1 << 3 | 2
_SCOPE_LOGS: Final = 2 << 3 | 2
_SCOPE: Final = 1 << 3 | 2
_LOG_RECORD: Final = 2 << 3 | 2
_BODY: Final = 5 << 3 | 2
_ATTRIBUTE: Final = 6 << 3 | 2
_KEY: Final = 1 << 3 | 2
_TEXT: Final = 1 << 3 | 2

_CHARACTER_BYTES_MAX: Final = 4

_VARINT_BYTES_MAX: Final = 10
# A record alone in its resource has seven fields outside of it, with both schema URLs. What has more hides something.
_FIELDS_A_RECORD: Final = 8
_FIELDS_A_STEP: Final = 1000

_Message = TypeVar("_Message", bound=Message)


def steps(builder: RecordsBuilder, body: bytes, records_max: int) -> Generator[None, None, None]:
    """Add the events of a body. Raises MalformedBodyError, BodyTooLargeError."""
    walk = _Walk(body, _FIELDS_A_RECORD * (records_max + 1))
    for tag, _, start, end in (yield from walk.listed(0, len(body))):
        if tag == _RESOURCE_LOGS:
            builder.begin_group()
            yield from _resource_logs(builder, walk, start, end)


def _resource_logs(builder: RecordsBuilder, walk: "_Walk", start: int, end: int) -> Generator[None, None, None]:
    """The records of one resource, which may come after them."""
    found = yield from walk.listed(start, end)
    resource = walk.merged(Resource, [(begin, stop) for tag, _, begin, stop in found if tag == _RESOURCE])
    attributes = _common_attributes(resource.attributes)
    if resource.dropped_attributes_count:
        attributes["resource.dropped_attributes_count"] = resource.dropped_attributes_count
    yield
    for tag, _, begin, stop in found:
        if tag == _SCOPE_LOGS:
            builder.begin_group()
            yield from _scope_logs(builder, walk, attributes, begin, stop)


def _scope_logs(
    builder: RecordsBuilder, walk: "_Walk", resource: dict[str, Any], start: int, end: int
) -> Generator[None, None, None]:
    """The records of one scope, which may come after them."""
    found = yield from walk.listed(start, end)
    scope = walk.merged(InstrumentationScope, [(begin, stop) for tag, _, begin, stop in found if tag == _SCOPE])
    origin = Origin(resource, _scope_attributes(scope))
    yield
    records = [field for field in found if field[0] == _LOG_RECORD]
    at = 0
    while at < len(records):
        group, at = _group(records, at)
        _add_group(builder, walk.body, origin, group)
        yield


def _scope_attributes(scope: InstrumentationScope) -> Iterator[tuple[str, Any]]:
    for name in ("name", "version"):
        if text := getattr(scope, name):
            yield f"scope.{name}", text
    if scope.dropped_attributes_count:
        yield "scope.dropped_attributes_count", scope.dropped_attributes_count
    yield from _common_attributes(scope.attributes).items()


def _common_attributes(attributes: Any) -> dict[str, Any]:
    """The attributes of a resource or a scope. Raises MalformedBodyError if there are too many."""
    try:
        return _attributes(attributes, Budget())
    except UnmappableError as error:
        raise MalformedBodyError(str(error)) from None


# --- The wire format ------------------------------------------------------------------------------------------------

_Field = tuple[int, int, int, int]  # its tag, and where it starts, its content starts, and it ends


class _Walk:
    """Reads the fields of a body's upper levels."""

    def __init__(self, body: bytes, fields_max: int) -> None:
        self.body = body
        self._fields_max = fields_max
        self._fields_left = fields_max

    def listed(self, start: int, end: int) -> Generator[None, None, list[_Field]]:
        """The fields of the message between two bytes, in steps."""
        found = []
        for field in self.all(start, end):
            found.append(field)
            if len(found) % _FIELDS_A_STEP == 0:
                yield
        return found

    def all(self, start: int, end: int) -> Iterator[_Field]:
        """The fields of the message between two bytes. Raises MalformedBodyError, BodyTooLargeError."""
        body = self.body
        at = start
        while at < end:
            begin = at
            self._fields_left -= 1
            if self._fields_left < 0:
                raise BodyTooLargeError(self._fields_max, "fields")
            tag, at = self._varint(at, end)
            match tag & 7:
                case 2:  # a length, and as many bytes
                    # Lengths below 128 are one byte, which is worth a short way.
                    if at < end and (size := body[at]) < 128:
                        at += 1
                    else:
                        size, at = self._varint(at, end)
                    stop = at + size
                case 0:  # a number
                    _, stop = self._varint(at, end)
                case 1:  # eight bytes
                    stop = at + 8
                case 5:  # four bytes
                    stop = at + 4
                case kind:
                    raise MalformedBodyError(f"not protobuf: no wire type {kind}", byte=begin)
            if stop > end:
                raise MalformedBodyError("not protobuf: a field is cut off", byte=begin)
            yield tag, begin, at, stop
            at = stop

    def merged(self, kind: type[_Message], parts: Iterable[tuple[int, int]]) -> _Message:
        """The message of a field, which may come in several parts. Raises MalformedBodyError."""
        data = b"".join([self.body[start:end] for start, end in parts])
        if len(data) > RECORD_BYTES_MAX:
            raise MalformedBodyError(f"a resource or a scope has more than {RECORD_BYTES_MAX} bytes")
        try:
            return _parsed(kind, data)
        except DecodeError as error:
            raise MalformedBodyError(f"not OTLP: {error}") from None

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for index in range(_VARINT_BYTES_MAX):
            if at >= end:
                break
            byte = self.body[at]
            at += 1
            value |= (byte & 0x7F) << (7 * index)
            if byte < 128:
                return value, at
        raise MalformedBodyError("not protobuf: a number is cut off", byte=at)


# --- Records --------------------------------------------------------------------------------------------------------


def _group(records: list[_Field], at: int) -> tuple[list[_Field], int]:
    """The records of one step from an index on, and the index after them."""
    first = at
    size = 0
    while at < len(records) and at - first < STEP_RECORDS and size < STEP_BYTES:
        size += records[at][3] - records[at][2]
        at += 1
    return records[first:at], at


def _add_group(builder: RecordsBuilder, body: bytes, origin: Origin, group: list[_Field]) -> None:
    """Add the events of some records. They are one message together: the fields of a scope that has only these."""
    large = [stop - start > RECORD_BYTES_MAX for _, _, start, stop in group]
    try:
        parsed: Iterable[LogRecord] | None = None
        if not any(large):
            parsed = ScopeLogs.FromString(b"".join([body[begin:stop] for _, begin, _, stop in group])).log_records
    except DecodeError:
        pass
    if parsed is not None:
        for message in parsed:
            _add(builder, message, origin)
        return
    for (_, _, start, stop), is_large in zip(group, large, strict=True):
        try:
            record = body[start:stop]
            message = _parsed(LogRecord, _without_large_texts(record) if is_large else record)
        except UnmappableError as error:
            builder.reject(str(error))
        except (DecodeError, MalformedBodyError) as error:
            builder.reject(f"a record is not protobuf: {error}")
        else:
            _add(builder, message, origin)


def _add(builder: RecordsBuilder, message: LogRecord, origin: Origin) -> None:
    budget = Budget()
    try:
        record = Record(
            message.time_unix_nano,
            message.observed_time_unix_nano,
            message.severity_number,
            message.severity_text,
            _value(message.body, budget),
            _attributes(message.attributes, budget),
            message.dropped_attributes_count,
            message.flags,
            message.trace_id.hex(),
            message.span_id.hex(),
            message.event_name,
        )
    except UnmappableError as error:
        builder.reject(str(error))
    else:
        builder.add(record, origin)


def _without_large_texts(record: bytes) -> bytes:
    """A record with the beginning of its body, and without the values of attributes that no event has room for.

    Raises UnmappableError if it is still too large, MalformedBodyError.
    """
    parts = []
    walk = _Walk(record, VALUES_MAX)  # its limit holds for the fields of the record, and those within them, together
    try:
        for tag, begin, start, stop in walk.all(0, len(record)):
            part = record[begin:stop]
            values = list(islice(walk.all(start, stop), 2)) if tag == _BODY else []
            if [value[0] for value in values] == [_TEXT]:
                (_, _, first, last) = values[0]
                text = record[first : min(last, first + MESSAGE_BYTES_MAX + _CHARACTER_BYTES_MAX)]
                part = LogRecord(body=AnyValue(string_value=text.decode(errors="replace"))).SerializeToString()
            elif tag == _ATTRIBUTE and stop - start > LARGE_ATTRIBUTE_BYTES:
                key = b"".join(record[a:b] for one, _, a, b in walk.all(start, stop) if one == _KEY)
                value = AnyValue(string_value=NO_ROOM.decode())
                one = KeyValue(key=key.decode(errors="replace"), value=value)
                part = LogRecord(attributes=[one]).SerializeToString()
            parts.append(part)
    except BodyTooLargeError as error:
        raise UnmappableError(f"a record has more than {VALUES_MAX} fields") from error
    found = b"".join(parts)
    if len(found) > RECORD_BYTES_MAX:
        raise UnmappableError(f"a record has more than {RECORD_BYTES_MAX} bytes")
    return found


def _attributes(attributes: Any, budget: Budget) -> dict[str, Any]:
    budget.take(len(attributes))
    return {one.key: _value(one.value, budget) for one in attributes}


def _value(value: AnyValue, budget: Budget) -> Any:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind == "array_value":
        values = value.array_value.values
        budget.take(len(values))
        return [_value(one, budget) for one in values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values, budget)
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return None if kind is None else getattr(value, kind)


# --- Texts that are not UTF-8 ---------------------------------------------------------------------------------------
#
# Fluent Bit sends log lines as they are, and protobuf refuses a text that is not UTF-8. The same messages with bytes in
# place of texts take everything.


def _with_bytes() -> dict[str, type[Message]]:
    """The messages of OTLP's logs by name, with bytes in place of texts."""
    pool = descriptor_pool.DescriptorPool()
    names = []
    for module in (common_pb2, resource_pb2, logs_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        for message in file.message_type:
            names.append(f"{file.package}.{message.name}")
            for field in message.field:
                if field.type == FieldDescriptor.TYPE_STRING:
                    field.type = FieldDescriptor.TYPE_BYTES  # type: ignore[assignment]
        pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


_WITH_BYTES: Final = _with_bytes()


def _parsed(kind: type[_Message], data: bytes) -> _Message:
    """A message, with U+FFFD in place of what is not UTF-8. Raises DecodeError."""
    try:
        return kind.FromString(data)
    except DecodeError:
        taken = _WITH_BYTES[kind.DESCRIPTOR.full_name].FromString(data)
        _repair(taken, kind.DESCRIPTOR)
        return kind.FromString(taken.SerializeToString())


def _repair(message: Message, real: Any) -> None:
    """Make UTF-8 of all bytes that are texts in the real message."""
    for field, value in message.ListFields():
        of_real = real.fields_by_name[field.name]
        if of_real.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, value.decode(errors="replace").encode())
        elif of_real.type == FieldDescriptor.TYPE_MESSAGE:
            for one in value if of_real.is_repeated else (value,):
                _repair(one, of_real.message_type)
