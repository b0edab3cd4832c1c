"""`POST /loki/api/v1/push`: Loki's push API, as JSON, and as protobuf in raw snappy.

A client that names neither form is understood by its content. The older form of the JSON, which clients send to
`/api/prom/push`, is accepted at both addresses. Loki's answer is 204, and its errors are text.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Final

import cramjam
import msgspec
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from ingest.errors import BodyTooLargeError, MalformedBodyError, error_response
from ingest.framing import without_mark
from ingest.held_bodies import HeldBytes
from ingest.protocols.decoding import AT_ONCE_BYTES, Decoding
from ingest.protocols.json_ends import NO_JSON
from ingest.protocols.json_records import has_many_values, large_object, short, text_record
from ingest.protocols.json_values import repaired
from ingest.protocols.records import (
    NS_A_MS,
    TIME_NS_KEY,
    BatchBuilder,
    compact_json,
    event_of,
    fitting,
    message_text,
    severity_of,
    time_ns_of,
)
from ingest.types import Batch, Codec, Decode, Headers, Inflate, RequestHead, Response
from pipeline.errors import SluiceError
from pipeline.event import ATTRIBUTES_BYTES_MAX, ATTRIBUTES_KEYS_MAX, Event
from pipeline.names import ProtocolName

# In the order in which they are looked up, in structured metadata and in labels.
CORRELATION_ID: Final = ("trace_id", "traceID", "traceId")
SEVERITY: Final = ("level", "severity", "detected_level")
SOURCE: Final = ("service_name", "app", "job")
LABELS_KEY: Final = "labels"  # the attribute for the text of labels that can't be parsed

RECORDS_A_STEP: Final = 20
FIELDS_A_STEP: Final = 1000  # of protobuf
LINE_CHARS_READ_MAX: Final = 16 * 1024  # of a line of JSON: a longer one is not searched for its severity
LABELS_CHARS_MAX: Final = 64 * 1024  # of a text of labels: a longer one is not parsed
TIME_NS_BYTES: Final = 40  # of that attribute as JSON, at most
PLAIN_TIME_NS_MAX: Final = 2**63 - 1  # in the year 2262: a later time is no integer of an attribute
LABELS_MAX: Final = 1000  # of a stream: the others are not part of its text
KEY_CHARS_MAX: Final = 1024  # of the key for the partition: a longer text is hashed once, not for each event
STREAMS_KEPT: Final = 256  # of each form
KEPT_BYTES_MAX: Final = 2048  # of their labels: together a few megabytes
SMALL_BYTES: Final = 8 * 1024  # decoded in a millisecond, whatever it has
SNAPPY: Final = "snappy"  # as a content coding: that of protobuf here, which most clients do not name
PAIRS_MAX: Final = 10_000  # of structured metadata in an entry of protobuf: each costs some hundred bytes
# Three bytes of snappy stand for 64 at most. A body that claims more is not snappy, and gets no memory.
_SNAPPY_TIMES_MAX: Final = 22

_decode_any = msgspec.json.Decoder().decode
# Raw snappy starts with its length and a literal. It never starts like this.
_LIKE_JSON: Final = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{[ \t\r\n]*[\"}]")


def loki_codec(decoding: Decoding) -> Codec:
    """The codec of one process."""

    def inflate(headers: Headers) -> Inflate:
        async def inflated(data: bytes, held: HeldBytes) -> bytes:
            data = await found(data, held)
            return data if _is_json(is_named, data) else await _without_snappy(data, decoding.bytes_max, held)

        found, is_named = decoding.inflate(headers, removed=SNAPPY), _names_json(headers)
        return inflated

    async def batch_of(is_named: bool, body: bytes) -> Batch:
        builder = BatchBuilder(body, decoding.records_max)
        steps = _json_steps if _is_json(is_named, body) else _protobuf_steps
        return await decoding.batch(builder, steps(builder, body, decoding.received_ns), _accepted)

    def decode(head: RequestHead) -> Decode:
        return partial(batch_of, _names_json(head.headers))

    return Codec(ProtocolName.LOKI, decoding.bytes_max, inflate, decode, _rejected)


def _accepted() -> Response:
    return Response(204, b"")


def _rejected(_head: RequestHead, error: SluiceError) -> Response:
    response = error_response(error)
    message = _decode_any(response.body)["error"]["message"]
    headers = {**response.headers, "x-content-type-options": "nosniff"}
    return Response(response.status, f"{message}\n".encode(), "text/plain; charset=utf-8", headers)


def _names_json(headers: Headers) -> bool:
    media_type = (headers.get("content-type") or "").partition(";")[0].strip().lower()
    return media_type == "application/json"


def _is_json(is_named: bool, data: bytes) -> bool:
    return is_named or _LIKE_JSON.match(data) is not None


async def _without_snappy(data: bytes, bytes_max: int, held: HeldBytes) -> bytes:
    """The content of a body in raw snappy. Raises BodyTooLargeError, MalformedBodyError, OverloadedError."""
    try:
        size = cramjam.snappy.decompress_raw_len(data)
        if size > bytes_max:
            raise BodyTooLargeError(bytes_max, "bytes")
        if size > len(data) * _SNAPPY_TIMES_MAX:
            raise MalformedBodyError("the body is neither JSON nor snappy")
        held.take(size)
        if size <= AT_ONCE_BYTES:
            return bytes(cramjam.snappy.decompress_raw(data))
        # The library releases the lock of the interpreter meanwhile.
        content = await asyncio.get_running_loop().run_in_executor(None, cramjam.snappy.decompress_raw, data)
        return bytes(content)
    except cramjam.DecompressionError as error:
        raise MalformedBodyError(f"the body is neither JSON nor snappy: {error}") from error


# --- Records --------------------------------------------------------------------------------------------------------


class _Stream:
    """The labels of a stream, and the events of its entries."""

    __slots__ = ("_attributes", "_has_room", "_plain", "_severity", "_source", "_text", "key")

    def __init__(self, labels: dict[str, Any] | str) -> None:
        if isinstance(labels, str):
            self._text = labels
            labels = {LABELS_KEY: labels}
        else:
            self._text = _text_of(labels)
        self.key = self._text  # decides the partition
        if len(self._text) > KEY_CHARS_MAX:
            self.key = hashlib.blake2b(self._text.encode("utf-8", "replace"), digest_size=16).hexdigest()
        self._severity = _first(labels, SEVERITY, severity_of)
        self._source = _first(labels, SOURCE, short)
        self._attributes = fitting(labels.items()) or {}
        # Most streams have few labels: each entry without structured metadata gets them as they are.
        size = len(msgspec.json.encode(self._attributes))
        self._has_room = len(self._attributes) < ATTRIBUTES_KEYS_MAX and size < ATTRIBUTES_BYTES_MAX - TIME_NS_BYTES
        self._plain = self._event(0, "", {})

    def event(self, time_ns: int, line: str, metadata: dict[str, Any]) -> Event:
        """The event of an entry. Its attributes may be those of other events too."""
        if metadata or not self._has_room or time_ns > PLAIN_TIME_NS_MAX:
            return self._event(time_ns, line, metadata)
        # The same for an entry that has only a time and a line: most do.
        plain = self._plain
        return Event(
            plain.correlation_id,
            self._severity or _severity_of_line(line) or "INFO",
            message_text(line),
            plain.source,
            time_ns // NS_A_MS,
            None,
            {**self._attributes, TIME_NS_KEY: time_ns} if time_ns % NS_A_MS else self._attributes or None,
        )

    def _event(self, time_ns: int, line: str, metadata: dict[str, Any]) -> Event:
        return event_of(
            message=line,
            severity=_first(metadata, SEVERITY, severity_of) or self._severity or _severity_of_line(line) or "INFO",
            source=self._source or _first(metadata, SOURCE, short) or self._text,
            time_ns=time_ns,
            correlation_id=_first(metadata, CORRELATION_ID, short) or self._text,
            attributes=metadata.items(),
            common=self._attributes,
        )


@lru_cache(maxsize=STREAMS_KEPT)
def _stream_of_text(labels: bytes) -> _Stream:
    """The stream of labels as protobuf has them."""
    return _Stream(labels_of(labels.decode(errors="replace")))


@lru_cache(maxsize=STREAMS_KEPT)
def _stream_of_json(stream: bytes, labels: bytes) -> _Stream:
    """The stream of an object of labels; else of their text, as in the older form."""
    return _Stream(_labels(_part(stream) or _part(labels)))


def _kept(stream_of: Any, *labels: bytes) -> _Stream:
    """A stream, which is kept unless it is large: the same few come again and again."""
    is_large = sum(map(len, labels)) > KEPT_BYTES_MAX
    stream: _Stream = (stream_of.__wrapped__ if is_large else stream_of)(*labels)
    return stream


_Add = Callable[[int | None, str, dict[str, Any]], None]


def _adding(builder: BatchBuilder, stream: _Stream, received_ns: int) -> _Add:
    """The function that adds the event of an entry; it raises BodyTooLargeError if there are too many."""

    def add(time_ns: int | None, line: str, metadata: dict[str, Any]) -> None:
        event = stream.event(time_ns or received_ns, line, metadata)
        builder.add(event, key=stream.key, has_time=time_ns is not None)

    return add


def _first(fields: dict[str, Any], names: Iterable[str], read: Callable[[object], str | None]) -> str | None:
    """What the first of these fields means that has a meaning; None if none has."""
    if fields:
        for name in names:
            value = fields.get(name)
            if value is not None and (meaning := read(value)) is not None:
                return meaning
    return None


class _JsonLine(msgspec.Struct):
    """The fields of a line in JSON that may have its severity."""

    level: Any = None
    severity: Any = None
    detected_level: Any = None
    log_level: Any = msgspec.field(name="log.level", default=None)
    levelname: Any = None


_decode_line = msgspec.json.Decoder(_JsonLine).decode


def _severity_of_line(line: str) -> str | None:
    if line[:1] != "{" or len(line) > LINE_CHARS_READ_MAX:
        return None
    try:
        found = _decode_line(line)
    except (*NO_JSON, UnicodeEncodeError):
        return None
    values = (found.level, found.severity, found.detected_level, found.log_level, found.levelname)
    return next(filter(None, map(severity_of, values)), None)


# --- Labels ---------------------------------------------------------------------------------------------------------

_LABEL: Final = re.compile(
    r'[\s,]*+([^\s=,{}"]++)\s*+=\s*+(?:"((?:[^"\\]++|\\.)*+)"|`([^`]*+)`)\s*+(?=[,}])', re.DOTALL
)
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-3][0-7]{2}|.)", re.DOTALL)
_ESCAPED: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def labels_of(text: str) -> dict[str, Any] | str:
    """The labels of a text such as `{app="shop", env="x"}`; the text itself if it is none. Strings are those of Go."""
    stripped = text.strip()
    if len(text) > LABELS_CHARS_MAX or stripped[:1] != "{" or stripped[-1:] != "}":
        return text
    labels: dict[str, Any] = {}
    at = 1
    while (match := _LABEL.match(stripped, at)) is not None:
        name, quoted, raw = match.groups()
        labels.setdefault(name, _unquoted(quoted) if raw is None else raw)
        at = match.end()
    return labels if stripped[at:].strip(" \t\r\n,") == "}" else text


def _unquoted(text: str) -> str:
    if "\\" not in text:
        return text
    # An escape may be one byte of a character: it becomes a surrogate, and they become the character together.
    return _ESCAPE.sub(_character, text).encode("utf-8", "surrogateescape").decode(errors="replace")


def _character(match: re.Match[str]) -> str:
    escape = match[1]
    kind = escape[0]
    if kind not in "xuU01234567" or len(escape) == 1:
        return _ESCAPED.get(escape, escape)
    number = int(escape[1:], 16) if kind in "xuU" else int(escape, 8)
    if kind in "uU":
        return "\ufffd" if 0xD800 <= number < 0xE000 or number > 0x10FFFF else chr(number)
    return chr(number) if number < 0x80 else chr(0xDC00 + number)


def _text_of(labels: dict[str, Any]) -> str:
    """Labels as LogQL writes them, in the order of their names: a stream has one text, whatever its client sends."""
    if not labels:
        return ""
    items = islice(labels.items(), LABELS_MAX)
    pairs = sorted((name, value if isinstance(value, str) else compact_json(value)) for name, value in items)
    return "{" + ", ".join(f"{name}={compact_json(value)}" for name, value in pairs) + "}"


# --- JSON -----------------------------------------------------------------------------------------------------------


_NULL: Final = msgspec.Raw(b"null")


class _JsonPush(msgspec.Struct):
    streams: list[msgspec.Raw] | None


class _JsonStream(msgspec.Struct):
    """A stream; `labels` and `entries` are the older form of `stream` and `values`."""

    stream: msgspec.Raw = _NULL
    values: list[msgspec.Raw] | None = None
    labels: msgspec.Raw = _NULL
    entries: list[msgspec.Raw] | None = None


_decode_push = msgspec.json.Decoder(_JsonPush).decode
_decode_stream = msgspec.json.Decoder(_JsonStream).decode
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _json_steps(builder: BatchBuilder, body: bytes, received_ns: int) -> Generator[None, None, None]:
    """Add the events of a body, some in each step. Raises MalformedBodyError, BodyTooLargeError."""
    body = without_mark(body)
    builder.check_commas(body)
    try:
        streams = (yield from repaired(_decode_push, body)).streams or ()
    except NO_JSON as error:
        raise MalformedBodyError(f"the body is not an object with streams in JSON: {error}") from error
    builder.check_groups(len(streams))
    count = 0
    for raw_stream in streams:
        yield
        try:
            found = _decode_stream(raw_stream)
        except NO_JSON:
            builder.rejected += 1
            continue
        add = _adding(builder, _kept(_stream_of_json, bytes(found.stream), bytes(found.labels)), received_ns)
        entries = (*(found.values or ()), *(found.entries or ()))
        builder.check_room(len(entries))
        for raw in entries:
            count += 1
            if count % RECORDS_A_STEP == 0:
                yield
            if not _add_json(add, _entry(raw)):
                builder.rejected += 1


def _add_json(add: _Add, entry: Any) -> bool:
    """Add an entry as it was decoded; False if it can't be one."""
    match entry:
        case [time, line, *more]:
            metadata = _metadata(more[0]) if more else {}
        case {"line": line}:
            time, metadata = entry.get("ts") or entry.get("timestamp"), {}
        case str():
            time, line, metadata = None, entry, {}
        case _:
            return False
    add(_time_ns(time), line if isinstance(line, str) else compact_json(line), metadata)
    return True


def _metadata(value: Any) -> dict[str, Any]:
    """The structured metadata of an entry. It may be within an object of its own, as in the answers of queries."""
    if not isinstance(value, dict):
        return {} if value is None else {"structuredMetadata": value}
    inner = value.get("structuredMetadata")
    return inner if isinstance(inner, dict) else value


def _time_ns(value: Any) -> int | None:
    if isinstance(value, str) and len(value) == 19 and value.isdecimal():
        return int(value)
    time_ns = time_ns_of(value)
    return time_ns or None


def _labels(value: Any) -> dict[str, Any] | str:
    if isinstance(value, str):
        return labels_of(value)
    return value if isinstance(value, dict) else {}


def _entry(raw: msgspec.Raw) -> Any:
    """An entry. Of one with many values, each part is decoded by itself: these may be brackets in its line."""
    if len(raw) <= SMALL_BYTES or not has_many_values(bytes(raw)):
        return _value(raw)
    try:
        return [_part(part) for part in _decode_parts(raw)[:3]]
    except NO_JSON:
        return _part(raw)


def _part(raw: msgspec.Raw | bytes) -> Any:
    """A part of the body. Of one with many values, only what an event may have: decoding it would take long."""
    if len(raw) > SMALL_BYTES and (text := bytes(raw))[:1] != b'"' and has_many_values(text):
        try:
            return large_object(text)
        except (ValueError, RecursionError):
            return text_record(text)["message"]
    return _value(raw)


def _value(raw: msgspec.Raw | bytes) -> Any:
    """A part of the body; its text if it is no JSON by itself."""
    try:
        return _decode_any(raw)
    except NO_JSON:
        text = bytes(raw).decode(errors="replace")
    try:
        return _decode_any(text)
    except NO_JSON:
        return text


# --- Protobuf -------------------------------------------------------------------------------------------------------

_PUSH_STREAM: Final = 1  # field numbers of Loki's push.proto
_STREAM_LABELS: Final = 1
_STREAM_ENTRY: Final = 2
_ENTRY_METADATA_TAG: Final = b"\x1a"
_NO_PUSH: Final = "the body is not a push request in protobuf"


def _entry_class() -> Any:
    """The class of Loki's EntryAdapter, and those of the messages in it.

    Texts are bytes here: a text that is not UTF-8 would make the whole entry unreadable.
    """
    kinds = FieldDescriptorProto
    file = FileDescriptorProto(name="sluice/loki.proto", package="sluice.loki", syntax="proto3")

    def message(name: str, *fields: tuple[int, str, Any, str]) -> None:
        descriptor = DescriptorProto(name=name)
        for number, field, kind, type_name in fields:
            label = kinds.LABEL_REPEATED if field == "metadata" else kinds.LABEL_OPTIONAL
            descriptor.field.add(name=field, number=number, type=kind, label=label, type_name=type_name or None)
        file.message_type.append(descriptor)

    message("Timestamp", (1, "seconds", kinds.TYPE_INT64, ""), (2, "nanos", kinds.TYPE_INT32, ""))
    message("LabelPairAdapter", (1, "name", kinds.TYPE_BYTES, ""), (2, "value", kinds.TYPE_BYTES, ""))
    message(
        "EntryAdapter",
        (1, "timestamp", kinds.TYPE_MESSAGE, ".sluice.loki.Timestamp"),
        (2, "line", kinds.TYPE_BYTES, ""),
        (3, "metadata", kinds.TYPE_MESSAGE, ".sluice.loki.LabelPairAdapter"),
    )
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("sluice.loki.EntryAdapter"))


_Entry: Final = _entry_class()


def _protobuf_steps(builder: BatchBuilder, body: bytes, received_ns: int) -> Generator[None, None, None]:
    """Add the events of a body, some in each step. Raises MalformedBodyError, BodyTooLargeError.

    The library would make objects of the whole body at once: millions, if its entries are empty. So the two outer
    levels are read here, and the library reads one entry at a time.
    """
    streams = 0
    for count, (number, start, end) in enumerate(_fields(body, 0, len(body)), start=1):
        if number == _PUSH_STREAM:
            streams += 1
            builder.check_groups(streams)
            yield from _stream_steps(builder, body, start, end, received_ns)
        elif count % FIELDS_A_STEP == 0:
            yield


def _stream_steps(
    builder: BatchBuilder, body: bytes, start: int, end: int, received_ns: int
) -> Generator[None, None, None]:
    labels = b""
    entries: list[tuple[int, int]] = []
    for count, (number, first, last) in enumerate(_fields(body, start, end), start=1):
        if number == _STREAM_LABELS:
            labels = body[first:last]
        elif number == _STREAM_ENTRY:
            builder.check_room(len(entries) + 1)
            entries.append((first, last))
        if count % FIELDS_A_STEP == 0:
            yield
    add = _adding(builder, _kept(_stream_of_text, labels), received_ns)
    for count, (first, last) in enumerate(entries, start=1):
        if not _add_protobuf(add, body, first, last):
            builder.rejected += 1
        if count % RECORDS_A_STEP == 0:
            yield
    yield


def _add_protobuf(add: _Add, body: bytes, start: int, end: int) -> bool:
    """Add an entry; False if it can't be read, or has too much structured metadata."""
    if body.count(_ENTRY_METADATA_TAG, start, end) > PAIRS_MAX:
        return False
    try:
        entry = _Entry.FromString(body[start:end])
    except DecodeError:
        return False
    time = entry.timestamp
    time_ns = time.seconds * 1_000_000_000 + time.nanos
    metadata = {one.name.decode(errors="replace"): one.value.decode(errors="replace") for one in entry.metadata}
    add(time_ns if time_ns > 0 else None, entry.line.decode(errors="replace"), metadata)
    return True


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field of a message that has a length, and number 0 for each other field.

    Raises MalformedBodyError.
    """
    while at < end:
        tag = data[at]
        at += 1
        if tag > 0x7F:
            tag, at = _varint(data, at - 1, end)
        kind = tag & 7
        number = 0
        start = at
        if kind == 2 and at < end:
            number = tag >> 3
            size = data[at]
            start = at + 1
            if size > 0x7F:
                size, start = _varint(data, at, end)
            at = start + size
        elif kind in {0, 2}:  # a number, or a length that is missing
            _, at = _varint(data, at, end)
        elif kind in {1, 5}:
            at += 8 if kind == 1 else 4
        else:
            raise MalformedBodyError(f"{_NO_PUSH}: a field is of type {kind}")
        if at > end:
            raise MalformedBodyError(f"{_NO_PUSH}: it is cut off")
        yield number, start, at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """(value, position after it) of a number. Raises MalformedBodyError."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise MalformedBodyError(f"{_NO_PUSH}: a number is cut off")
