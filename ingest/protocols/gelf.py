"""`POST /gelf`: Graylog's format GELF over HTTP, one message a body, or one a line.

What is no JSON becomes a message with its text. The answer is 202 without a body. The logging handlers for Python
(graypy, pygelf) do not wait for it: they close the connection as soon as they have sent.
"""

import re
from collections.abc import Generator
from typing import Any, Final

from ingest.errors import error_response
from ingest.framing import without_mark
from ingest.protocols.decoding import AT_ONCE_BYTES, Decoding
from ingest.protocols.json_records import short, take
from ingest.protocols.json_values import Pieces, array_values, record_of
from ingest.protocols.records import (
    BatchBuilder,
    compact_json,
    event_of,
    severity_of,
    severity_of_syslog,
    short_text,
    time_ns_of,
)
from ingest.types import Batch, Codec, Decode, RequestHead, Response
from pipeline.errors import SluiceError
from pipeline.event import SEVERITIES
from pipeline.names import ProtocolName

# In the order in which they are looked up. A field that is used becomes no attribute, except the host as a substitute
# for the correlation id.
CORRELATION_ID: Final = ("_trace_id", "_traceId", "_trace.id", "_correlationId", "_correlation_id")
MESSAGE: Final = ("short_message", "message", "full_message")
TIME: Final = ("timestamp",)
SEVERITY: Final = ("level", "level_name", "_level", "_level_name", "_levelname")
SOURCE: Final = ("_app", "facility", "host")
IGNORED: Final = ("version",)  # of GELF, not of what is logged
FULL_MESSAGE: Final = "full_message"
FULL_MESSAGE_CHARS_MAX: Final = 4096  # a stack trace is cut, instead of dropped because of its size

RECORDS_A_STEP: Final = 20

_ARRAY: Final = re.compile(rb"\[\s*+(?:\{|\]\Z)")  # of messages; "[12.5] text" is none
_MESSAGE: Final = re.compile(rb"[^\n\0]++")  # NUL ends one in GELF over TCP
_BLANK: Final = b"\0 \t\r\n"


def gelf_codec(decoding: Decoding) -> Codec:
    """The codec of one process."""

    async def batch_of(body: bytes) -> Batch:
        builder = BatchBuilder(body, decoding.records_max)
        return await decoding.batch(builder, _steps(builder, body, decoding.received_ns), _accepted)

    def decode(_head: RequestHead) -> Decode:
        return batch_of

    return Codec(ProtocolName.GELF, decoding.bytes_max, decoding.inflate, decode, _rejected, is_one_way=True)


def _accepted() -> Response:
    return Response(202, b"", "text/plain; charset=utf-8")


def _rejected(_head: RequestHead, error: SluiceError) -> Response:
    return error_response(error)


def _steps(builder: BatchBuilder, body: bytes, received_ns: int) -> Generator[None, None, None]:
    """Add the events of a body, some in each step. Raises BodyTooLargeError."""
    for count, piece in enumerate(_pieces(without_mark(body).strip(_BLANK)), start=1):
        if piece is not None:
            record = record_of(piece)
            _add(builder, record if isinstance(record, dict) else {"short_message": record}, received_ns)
        if piece is None or len(piece) > AT_ONCE_BYTES or count % RECORDS_A_STEP == 0:
            yield


def _pieces(body: bytes) -> Pieces:
    """The messages of a body, not decoded."""
    if _ARRAY.match(body):
        rest, _ = yield from array_values(body, 1)
        if rest is not body:
            body = rest.strip(_BLANK)
    first = _MESSAGE.match(body)
    if first is not None and (first.end() == len(body) or not isinstance(record_of(first[0]), dict)):
        yield body  # one message, perhaps on several lines
    else:
        for line in _MESSAGE.finditer(body):
            if not line[0].isspace():
                yield line[0].rstrip(b"\r")
    return b"", True


def _add(builder: BatchBuilder, record: dict[str, Any], received_ns: int) -> None:
    """Add the event of a message."""
    fields = {key: value for key, value in record.items() if key not in IGNORED}
    correlation_id = take(fields, CORRELATION_ID, short)
    message = take(fields, MESSAGE, _text)
    severity = take(fields, SEVERITY, _severity) or "INFO"
    source = take(fields, SOURCE, short)
    time_ns = take(fields, TIME, time_ns_of)
    full_message = fields.pop(FULL_MESSAGE, None)
    attributes = [(_name(key, record), value) for key, value in fields.items()]
    if full_message is not None:
        text = full_message if isinstance(full_message, str) else compact_json(full_message)
        attributes.append((FULL_MESSAGE, short_text(text, FULL_MESSAGE_CHARS_MAX)))
    event = event_of(
        message=compact_json(record) if message is None else message,
        severity=severity,
        source=source or "",
        time_ns=time_ns or received_ns,
        correlation_id=correlation_id or short(record.get("host")) or "",
        attributes=attributes,
    )
    builder.add(event, key=correlation_id, has_time=bool(time_ns))


def _name(key: str, record: dict[str, Any]) -> str:
    """The attribute for a field: an additional field loses its underscore, unless a field without it exists."""
    bare = key[1:]
    return bare if key[:1] == "_" and bare and bare not in record else key


def _text(value: object) -> str | None:
    """A text that is not empty; anything else as JSON."""
    return (value or None) if isinstance(value, str) else compact_json(value)


def _severity(value: object) -> str | None:
    """The severity of a level: of syslog, a word, or a level of Python's logging that is none of syslog's."""
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) <= 3 else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return severity_of(value)
    if value < 10:
        return severity_of_syslog(int(value))
    return SEVERITIES[min(int(min(value, 50)) // 10, len(SEVERITIES) - 1)]
