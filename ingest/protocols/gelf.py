"""`POST /gelf`: Graylog's format GELF over HTTP, one message a body, or one a line.

What is no JSON becomes a message with its text. The answer is 202 without a body. The logging handlers for Python
(graypy, pygelf) do not wait for it: they close the connection as soon as they have sent.
"""

import re
from collections.abc import Generator, Iterator
from typing import Any, Final

import msgspec

from ingest.errors import error_response
from ingest.framing import without_mark
from ingest.protocols.decoding import Decoding
from ingest.protocols.json_records import short, take
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

_decode_any = msgspec.json.Decoder().decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NO_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_END: Final = re.compile(rb"[\n\0]")  # of a message: NUL is that of GELF over TCP
_BLANK: Final = b"\0 \t\r\n"


def gelf_codec(decoding: Decoding) -> Codec:
    """The codec of one process."""

    async def batch_of(body: bytes) -> Batch:
        builder = BatchBuilder(body, decoding.records_max)
        await decoding.run(_steps(builder, body, decoding.received_ns), len(body))
        return builder.build(_accepted)

    def decode(_head: RequestHead) -> Decode:
        return batch_of

    return Codec(ProtocolName.GELF, decoding.bytes_max, decoding.inflate, decode, _rejected, is_one_way=True)


def _accepted() -> Response:
    return Response(202, b"", "text/plain; charset=utf-8")


def _rejected(_head: RequestHead, error: SluiceError) -> Response:
    return error_response(error)


def _steps(builder: BatchBuilder, body: bytes, received_ns: int) -> Generator[None, None, None]:
    """Add the events of a body, some in each step. Raises BodyTooLargeError."""
    builder.check_commas(body)
    for count, record in enumerate(_records(body), start=1):
        _add(builder, record if isinstance(record, dict) else {"short_message": record}, received_ns)
        if count % RECORDS_A_STEP == 0:
            yield


def _records(body: bytes) -> Iterator[Any]:
    """The messages of a body: objects, or texts."""
    body = without_mark(body).strip(_BLANK)
    if not body:
        return
    if body[:1] == b"[":
        try:
            raws = _decode_array(body)
        except _NO_JSON:
            pass
        else:
            yield from (_value(bytes(raw)) for raw in raws)
            return
    first = _END.split(body, 1)[0]
    if len(first) == len(body) or not isinstance(_value(first), dict):
        yield _value(body)  # one message, perhaps on several lines
        return
    for line in _END.split(body):
        if line and not line.isspace():
            yield _value(line.rstrip(b"\r"))


def _value(text: bytes) -> Any:
    """An object or a text; any other content as the text that it is."""
    try:
        value = _decode_any(text)
    except _NO_JSON:
        value = None
    return value if isinstance(value, dict | str) else text.decode(errors="replace")


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
