"""Splunk's HTTP Event Collector (HEC): `POST /services/collector/event` and `POST /services/collector/raw`.

The event address takes JSON objects, one after another with or without blanks between them, or in an array. `event` is
the record, a text or an object; `time`, `host`, `source`, `sourcetype`, `index` and `fields` describe it. The raw
address takes lines, which the query describes. Nothing in a body is refused, unless no part of it is what it should be.

HEC has no way to reject one event. An object without `event` is a record itself, and what is no JSON is a text.
Indexer acknowledgement is for servers that answer before an event is stored; Sluice answers after that.
"""

import json
import re
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from ingest.errors import ForbiddenError, MalformedBodyError, UnauthorizedError, error_response, row_of
from ingest.framing import without_mark
from ingest.protocols.decoding import Decoding
from ingest.protocols.json_ends import end_of_value
from ingest.protocols.json_records import (
    RECORD_BYTES_MAX,
    Fields,
    event_of_json,
    is_vast,
    lines_of,
    object_of,
    text_record,
)
from ingest.protocols.records import BatchBuilder, time_ns_of
from ingest.types import Batch, Codec, Decode, Inquiry, RequestHead, Response, Route
from pipeline.errors import SluiceError
from pipeline.names import KeyRefusal, ProtocolName

COLLECTOR: Final = "/services/collector"
EVENT_PATHS: Final = (COLLECTOR, f"{COLLECTOR}/event", f"{COLLECTOR}/event/1.0")
RAW_PATHS: Final = (f"{COLLECTOR}/raw", f"{COLLECTOR}/raw/1.0")
HEALTH_PATHS: Final = (f"{COLLECTOR}/health", f"{COLLECTOR}/health/1.0")
RECORDS_A_STEP: Final = 20
BYTES_A_STEP: Final = 32 * 1024
QUERY_FIELDS_MAX: Final = 100
WINDOW_BYTES: Final = 64 * 1024  # decoded as one text, from which objects are taken
SMALL_CHARS: Final = 4 * 1024  # a shorter object is not vast

# HEC's codes; its documentation has the texts.
SUCCESS: Final = (0, "Success")
TOKEN_DISABLED: Final = (1, "Token disabled")
NO_TOKEN: Final = (2, "Token is required")
INVALID_TOKEN: Final = (4, "Invalid token")
NO_DATA: Final = (5, "No data")
INVALID_FORMAT: Final = (6, "Invalid data format")
BUSY: Final = (9, "Server is busy")
NO_ACKS: Final = (14, "ACK is disabled")
HEALTHY: Final = (17, "HEC is healthy")
UNHEALTHY: Final = (18, "HEC is unhealthy, queues are full")

_META: Final = ("host", "source", "sourcetype", "index")  # of an event, beside it
_BETWEEN: Final = re.compile(r"[\s,\[\]]*")  # what may stand between two objects
# Ends of objects are looked for until so many times the bytes of the body were walked over in vain: an object that does
# not end takes a walk over the rest.
LOST_WALKS_MAX: Final = 8
_BROKEN_END: Final = re.compile(rb"\n|\}(?=[ \t\r]*\{\")")  # where an object that can't be read most likely ends
_decode_next = json.JSONDecoder(strict=False).raw_decode
_encode = msgspec.json.encode


class NoDataError(MalformedBodyError):
    """The body is empty."""


# --- The codecs ---------------------------------------------------------------------------------------------------


def collector_routes(decoding: Decoding) -> list[Route]:
    """The addresses for events and for lines."""
    events, lines = collector_codec(decoding, _event_steps), collector_codec(decoding, _raw_steps)
    return [*(Route(path, events) for path in EVENT_PATHS), *(Route(path, lines) for path in RAW_PATHS)]


Steps = Callable[[BatchBuilder, bytes, Fields, int], Generator[None, None, None]]


def collector_codec(decoding: Decoding, steps_of: Steps) -> Codec:
    """The codec of one process for events or lines."""

    async def batch_of(target: str, described: Fields, body: bytes) -> Batch:
        body = without_mark(body)
        if not body or body.isspace():
            raise NoDataError("the body has no data")
        builder = BatchBuilder(body, decoding.records_max, target)
        steps = steps_of(builder, body, described, decoding.received_ns)
        return await decoding.batch(builder, steps, partial(_answer, 200, SUCCESS))

    def decode(head: RequestHead) -> Decode:
        return partial(batch_of, head.target, _described(head.target))

    return Codec(ProtocolName.SPLUNK, decoding.bytes_max, decoding.inflate, decode, _rejected)


def _described(target: str) -> Fields:
    """What the query says about all events of the body."""
    try:
        query = dict(parse_qsl(target.partition("?")[2], max_num_fields=QUERY_FIELDS_MAX))
    except ValueError:
        return {}
    return {name: query[name] for name in (*_META, "time") if name in query}


def _answer(status: int, code: tuple[int, str], **more: int) -> Response:
    number, text = code
    return Response(status, _encode({"text": text, "code": number, **more}))


def _rejected(_head: RequestHead, error: SluiceError) -> Response:
    """The answer to a whole request. Everything that a client should repeat is a 503: some clients drop 429."""
    plain = error_response(error)
    row = row_of(error)
    if row.retryable:
        answer = _answer(503, BUSY)
    elif isinstance(error, UnauthorizedError):
        answer = _answer(401, NO_TOKEN if error.reason is KeyRefusal.MISSING else INVALID_TOKEN)
    elif isinstance(error, ForbiddenError):
        answer = _answer(403, TOKEN_DISABLED)
    elif isinstance(error, NoDataError):
        answer = _answer(row.status, NO_DATA)
    else:
        answer = _answer(row.status, INVALID_FORMAT, **({"invalid-event-number": 0} if row.status == 400 else {}))
    return Response(answer.status, answer.body, headers=plain.headers)


# --- Bodies -------------------------------------------------------------------------------------------------------


def _event_steps(
    builder: BatchBuilder, body: bytes, described: Fields, received_ns: int
) -> Generator[None, None, None]:
    """Add the events of a body, some in each step. Raises MalformedBodyError if it has no object."""
    has_object = False
    seen = 0
    for number, (record, size) in enumerate(_records(body), start=1):
        if record is not None:
            has_object = has_object or isinstance(record, dict)
            _add(builder, record if isinstance(record, dict) else {"event": record}, described, received_ns)
        seen += size
        if number % RECORDS_A_STEP == 0 or seen > BYTES_A_STEP:
            seen = 0
            yield
    if not has_object:
        raise MalformedBodyError("the body has no JSON object")


def _raw_steps(builder: BatchBuilder, body: bytes, described: Fields, received_ns: int) -> Generator[None, None, None]:
    """Add the lines of a body, some in each step. A line that is a JSON object is a record."""
    seen = 0
    for count, (_, ended) in enumerate(lines_of(body), start=1):
        line = ended.rstrip(b"\r")
        if line and not line.isspace():
            record = object_of(line) if line[:1] == b"{" else None
            _add(builder, {"event": record or text_record(line)}, described, received_ns)
        seen += len(line)
        if count % RECORDS_A_STEP == 0 or seen > BYTES_A_STEP:
            seen = 0
            yield


def _records(body: bytes) -> Iterator[tuple[Any, int]]:
    """The records of a body, one after another, each with the bytes that were looked at for it.

    A record is a JSON object, or the text of what is none; None: nothing yet, another step may follow.
    """
    start, size = 0, WINDOW_BYTES
    lost = 0  # bytes

    def count_lost(count: int) -> None:
        nonlocal lost
        lost += count

    while start < len(body):
        # Bytes that are not UTF-8 keep their places, so that the place in the text gives that in the body.
        text = body[start : start + size].decode("utf-8", "surrogateescape")
        is_last = start + size >= len(body)
        at = _end_of_blanks(text, 0)
        done = at  # the text before is read
        is_deep = False
        while at < len(text):
            try:
                value, end = _decode_next(text, at)
            except (ValueError, RecursionError) as error:
                is_deep = isinstance(error, RecursionError)
                break
            if end == len(text) and not is_last and not isinstance(value, dict):
                break  # a number may go on
            raw = "" if isinstance(value, dict) and end - at <= SMALL_CHARS else text[at:end]
            if not isinstance(value, dict):
                yield raw, end - at
            elif raw and is_vast(encoded := raw.encode("utf-8", "surrogateescape")):
                yield object_of(encoded), end - at
            else:
                yield value, end - at
            done = at = _end_of_blanks(text, end)
        read = _bytes_of(text, done)
        start += read
        yield None, size
        if done == len(text):
            size = WINDOW_BYTES
        elif is_last or (not read and size >= RECORD_BYTES_MAX):
            is_looked_for = not is_last and lost < LOST_WALKS_MAX * len(body)
            stop = _end_of_object(body, start, count_lost) if is_looked_for else None
            if stop is not None:
                yield object_of(body[start:stop]), stop - start
            else:
                found = _BROKEN_END.search(body, start)
                stop = len(body) if found is None else found.end()
                record = text_record(body[start:stop].strip())
                # An object that is too large, or nested too deep, may be correct.
                yield {"event": record} if is_deep or not is_last else record["message"], stop - start
            start, size = stop, WINDOW_BYTES
        elif not read:
            size = min(4 * size, RECORD_BYTES_MAX)


def _end_of_object(body: bytes, start: int, on_lost: Callable[[int], None]) -> int | None:
    """Where a large object ends; None if it is none."""
    try:
        return end_of_value(body, start, on_lost) if body[start : start + 1] == b"{" else None
    except RecursionError:
        return None


def _end_of_blanks(text: str, at: int) -> int:
    match = _BETWEEN.match(text, at)
    return at if match is None else match.end()


def _bytes_of(text: str, end: int) -> int:
    """The bytes of the first characters of a text."""
    return end if text.isascii() else len(text[:end].encode("utf-8", "surrogateescape"))


def _add(builder: BatchBuilder, record: Fields, described: Fields, received_ns: int) -> None:
    """Add the event of an object."""
    event = record.get("event")
    if event is None or event == {}:
        fields, meta = {name: value for name, value in record.items() if name != "event"}, described
    else:
        fields, meta = event if isinstance(event, dict) else {"message": event}, {**described, **record}
    indexed = meta.get("fields")
    beside = dict(indexed) if isinstance(indexed, dict) else {}
    for name in _META:
        beside.setdefault(name, meta.get(name))
    mapped = event_of_json(
        fields,
        received_ns=received_ns,
        source=str(meta.get("index") or meta.get("sourcetype") or ""),
        time_ns=time_ns_of(meta.get("time")),
        beside=beside,
    )
    builder.add(mapped.event, key=mapped.key, has_time=mapped.has_time)


# --- What clients ask before they send ----------------------------------------------------------------------------


def collector_inquiries(is_ready: Callable[[], bool]) -> list[Inquiry]:
    """The addresses that clients ask. `is_ready`: whether this process takes events."""

    def health(_head: RequestHead) -> Response:
        answer = _answer(200, HEALTHY) if is_ready() else _answer(503, UNHEALTHY)
        return Response(answer.status, answer.body, headers={"cache-control": "no-store"})

    def options(_head: RequestHead) -> Response:
        return Response(200, b"", headers={"allow": "POST, OPTIONS"})

    return [
        *(Inquiry(path, health) for path in HEALTH_PATHS),
        Inquiry(EVENT_PATHS[-1], options, ("OPTIONS",)),  # Docker asks when it starts a container
        Inquiry(f"{COLLECTOR}/ack", lambda _head: _answer(400, NO_ACKS), ("POST",)),
    ]
