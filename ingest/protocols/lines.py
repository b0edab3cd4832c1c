"""`POST /api/logs?format=lines`: JSON of any shape, or lines of text.

It takes what logging libraries and shippers send that have no protocol of their own: one JSON object, an array, an
object with an array `logs`, one object a line, msgpack, the form of Python's HTTPHandler, and CloudEvents. What is no
JSON is text: each line is a message. So no body is refused for its content.
"""

import contextlib
import itertools
import re
from collections.abc import Generator, Iterator
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

import msgspec

from ingest.errors import BodyTooLargeError, error_response
from ingest.framing import without_mark
from ingest.protocols.decoding import AT_ONCE_BYTES, Decoding
from ingest.protocols.json_ends import NO_JSON, end_of_value
from ingest.protocols.json_records import RECORD_BYTES_MAX, TIME, event_of_json
from ingest.protocols.json_values import (
    Pieces,
    array_values,
    lines,
    objects,
    record_of,
    without_lone_surrogates,
)
from ingest.protocols.records import BatchBuilder, compact_json, time_ns_of
from ingest.types import Batch, Codec, Decode, Headers, RequestHead, Response
from pipeline.errors import SluiceError
from pipeline.names import ProtocolName

RECORDS_A_STEP: Final = 20
FORM_FIELDS_MAX: Final = 1000
QUERY_FIELDS_MAX: Final = 100
PACKED_BYTES_MAX: Final = 1 << 20  # of a value of msgpack
_EVENT_TIME_BYTES: Final = 4  # of its seconds, and of its nanoseconds
LIST_KEY: Final = "logs"  # of pino-http-send and others: the object around an array
_CLOUD_EVENT: Final = ("specversion", "id", "source", "type", "subject", "time", "traceparent")

_FORM: Final = re.compile(rb"[\w.%+*-]++=[\w.%+*~-]*+(?>(?:&[\w.%+*-]++=[\w.%+*~-]*+)*)")  # as clients encode it
_TRAILING: Final = re.compile(r"trailing characters \(byte (\d+)\)")
_skip_packed = msgspec.msgpack.Decoder(msgspec.Raw).decode
_ARRAY: Final = re.compile(rb'\[|\{\s*"logs"\s*:\s*\[')


class LinesAccepted(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The answer 202: the number of events, and of records that became none."""

    accepted: Annotated[int, msgspec.Meta(ge=0)]
    rejected: Annotated[int, msgspec.Meta(ge=0)]


def lines_codec(decoding: Decoding) -> Codec:
    """The codec of one process."""

    async def batch_of(media_type: str, cloud_event: dict[str, Any], source: str, body: bytes) -> Batch:
        builder = BatchBuilder(body, decoding.records_max, source)
        steps = _steps(builder, media_type, cloud_event, source, decoding.received_ns)
        return await decoding.batch(builder, steps, partial(_accepted, builder))

    def decode(head: RequestHead) -> Decode:
        media_type = (head.headers.get("content-type") or "").partition(";")[0].strip().lower()
        return partial(batch_of, media_type, _cloud_event(head.headers), _source(head.target))

    return Codec(ProtocolName.LINES, decoding.bytes_max, decoding.inflate, decode, _rejected)


def _accepted(builder: BatchBuilder) -> Response:
    return Response(202, msgspec.json.encode(LinesAccepted(len(builder.events), builder.rejected)))


def _rejected(_head: RequestHead, error: SluiceError) -> Response:
    return error_response(error)


def _cloud_event(headers: Headers) -> dict[str, Any]:
    """The attributes of a CloudEvent in binary mode, which are header fields; empty if it is none."""
    found = {name: headers.get(f"ce-{name}") for name in _CLOUD_EVENT}
    return {name: value for name, value in found.items() if value is not None} if found["specversion"] else {}


def _source(target: str) -> str:
    """The source of the records that have none: the parameter `source` of the query; empty if it is missing."""
    query = target.partition("?")[2]
    if "source=" not in query:
        return ""
    with contextlib.suppress(ValueError):  # too many fields
        return dict(parse_qsl(query, errors="replace", max_num_fields=QUERY_FIELDS_MAX)).get("source", "")
    return ""


def _steps(
    builder: BatchBuilder, media_type: str, cloud_event: dict[str, Any], source: str, received_ns: int
) -> Generator[None, None, None]:
    """Add the events of a body, some in each step. `source`: that of records without one."""
    body = builder.body
    if "msgpack" not in media_type:
        body = yield from without_lone_surrogates(body)
    for count, record in enumerate(_records(builder, media_type, body), start=1):
        if record is None:
            yield
            continue
        if cloud_event:
            fields = {**cloud_event, "data": record}
        else:
            fields = record if isinstance(record, dict) else {"message": record}
        mapped = event_of_json(fields, received_ns=received_ns, source=source)
        builder.add(mapped.event, key=mapped.key, has_time=mapped.has_time)
        if count % RECORDS_A_STEP == 0:
            yield


def _records(builder: BatchBuilder, media_type: str, body: bytes) -> Iterator[Any]:
    """The records of a body: objects, or texts. None: nothing yet, another step may follow."""
    if media_type in ("application/msgpack", "application/x-msgpack"):
        return _packed(builder, body)
    if media_type == "application/x-www-form-urlencoded" and (form := _form(body)):
        return iter([form])
    return _of_pieces(without_mark(body).strip())


def _form(body: bytes) -> dict[str, str]:
    """The fields of a form that has a message; empty for anything else, since curl calls every body a form."""
    if len(body) > RECORD_BYTES_MAX or _FORM.fullmatch(body) is None:
        return {}
    with contextlib.suppress(ValueError):  # too many fields
        fields = dict(parse_qsl(body.decode("ascii"), errors="replace", max_num_fields=FORM_FIELDS_MAX))
        if "msg" in fields or "message" in fields:
            return fields
    return {}


def _packed(builder: BatchBuilder, body: bytes) -> Iterator[Any]:
    """The records of msgpack: of one value, or of several, one after another. What follows and is none is text.

    Raises BodyTooLargeError: a value is decoded in one step, and an empty array has no record, so values are counted.
    """
    at = 0
    for count in itertools.count(1):
        if at >= len(body):
            return
        builder.check_groups(count)
        if count % RECORDS_A_STEP == 0:
            yield None
        end = _end_of_packed(body, at)
        if end is None:
            yield from map(record_of, lines(body[at:]))
            return
        if end - at > PACKED_BYTES_MAX:
            raise BodyTooLargeError(PACKED_BYTES_MAX, "bytes")
        value: Any = None
        time_ns = None
        is_alone = end - at == len(body)
        try:
            packed = msgspec.msgpack.decode(body[at:end])
            time_ns = _entry_time_ns(packed)
            value = _json_value(packed)
        except (*NO_JSON, TypeError):  # TypeError: a key that is an array
            is_alone = False
        if not isinstance(value, dict | list) and not is_alone:  # each byte of a text is a number
            yield from map(record_of, lines(body[at:]))
            return
        yield from _of_packed(value, time_ns)
        at = end


def _end_of_packed(body: bytes, at: int) -> int | None:
    """Where a value of msgpack ends; None if none does."""
    try:
        _skip_packed(memoryview(body)[at:])
    except msgspec.MsgspecError as error:
        trailing = _TRAILING.search(str(error))
        return None if trailing is None else at + int(trailing[1])
    except NO_JSON:
        return None
    return len(body)


def _of_packed(value: Any, time_ns: int | None) -> Iterator[Any]:
    """The records of a value, which has a time if it is an entry of Fluent Bit."""
    if isinstance(value, dict) and isinstance(value.get(LIST_KEY), list):
        value = value[LIST_KEY]
    match value:
        case [_, {**record}] if time_ns is not None:
            yield {TIME[0]: time_ns, **record}
        case list():
            for one in value:
                yield one if isinstance(one, dict | str) else compact_json(one)
        case _:
            yield value if isinstance(value, dict | str) else compact_json(value)


def _entry_time_ns(value: Any) -> int | None:
    """The time of an entry, alone or before its metadata: seconds, or Fluentd's EventTime; None if it is none."""
    match value:
        case [[time, {}], {}] | [time, {}]:
            if isinstance(time, msgspec.msgpack.Ext) and len(data := bytes(time.data)) == 2 * _EVENT_TIME_BYTES:
                seconds, nanoseconds = data[:_EVENT_TIME_BYTES], data[_EVENT_TIME_BYTES:]
                return int.from_bytes(seconds) * 10**9 + int.from_bytes(nanoseconds)
            return time_ns_of(time)
    return None


def _json_value(value: Any) -> Any:
    """A value of msgpack as JSON can have it. Raises RecursionError.

    msgpack allows any key, and types of an application's own: of these, the bytes are kept. As a text, such a value
    would have its address in memory, so a repeat would be another event.
    """
    match value:
        case dict():
            return {key if isinstance(key, str) else str(key): _json_value(inner) for key, inner in value.items()}
        case list():
            return [_json_value(inner) for inner in value]
        case msgspec.msgpack.Ext():
            return bytes(value.data)
    return value


def _of_pieces(body: bytes) -> Iterator[Any]:
    """The records of JSON or text."""
    for piece in _pieces(body):
        yield None if piece is None else record_of(piece)
        if piece is not None and len(piece) > AT_ONCE_BYTES:
            yield None


def _pieces(body: bytes) -> Pieces:
    """The records of a body, not decoded. What follows values and is none is text."""
    start = _ARRAY.match(body)
    if start is not None and body[-1:] in (b"]", b"}"):
        rest, is_whole = yield from array_values(body, start.end())
        if is_whole and start[0] != b"[":
            return b"", True  # what follows is what an object has beside its array
        if rest is not body:
            return (yield from lines(rest))
    if body[:1] == b"{" and not _is_object(body.partition(b"\n")[0]):
        rest, _ = yield from objects(body)
        return (yield from lines(rest))
    return (yield from lines(body))


def _is_object(line: bytes) -> bool:
    """Whether a line is one JSON object, as in one object a line."""
    with contextlib.suppress(RecursionError):
        return len(line) <= RECORD_BYTES_MAX and end_of_value(line, 0) == len(line)
    return False
