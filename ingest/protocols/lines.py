"""`POST /api/logs?format=lines`: JSON of any shape, or lines of text.

It takes what logging libraries and shippers send that have no protocol of their own: one JSON object, an array, an
object with an array `logs`, one object a line, msgpack, the form of Python's HTTPHandler, and CloudEvents. What is no
JSON is text: each line is a message. So no body is refused for its content.
"""

from collections.abc import Generator, Iterable
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

import msgspec

from ingest.errors import error_response
from ingest.framing import without_mark
from ingest.protocols.decoding import Decoding
from ingest.protocols.json_records import event_of_json
from ingest.protocols.records import BatchBuilder
from ingest.types import Batch, Codec, Decode, Headers, RequestHead, Response
from pipeline.errors import SluiceError
from pipeline.names import ProtocolName

RECORDS_A_STEP: Final = 20
FORM_FIELDS_MAX: Final = 1000
LIST_KEY: Final = "logs"  # of pino-http-send and others: the object around an array
_CLOUD_EVENT: Final = ("specversion", "id", "source", "type", "subject", "time", "traceparent")

_decode_any = msgspec.json.Decoder().decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NO_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class LinesAccepted(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The answer 202: the number of events, and of records that became none."""

    accepted: Annotated[int, msgspec.Meta(ge=0)]
    rejected: Annotated[int, msgspec.Meta(ge=0)]


def lines_codec(decoding: Decoding) -> Codec:
    """The codec of one process."""

    async def batch_of(media_type: str, cloud_event: dict[str, Any], body: bytes) -> Batch:
        builder = BatchBuilder(body, decoding.records_max)
        await decoding.run(_steps(builder, media_type, cloud_event, body, decoding.received_ns), len(body))
        return builder.build(lambda: _accepted(builder))

    def decode(head: RequestHead) -> Decode:
        media_type = (head.headers.get("content-type") or "").partition(";")[0].strip().lower()
        return partial(batch_of, media_type, _cloud_event(head.headers))

    return Codec(ProtocolName.LINES, decoding.bytes_max, decoding.inflate, decode, _rejected)


def _accepted(builder: BatchBuilder) -> Response:
    return Response(202, msgspec.json.encode(LinesAccepted(len(builder.events), builder.rejected)))


def _rejected(_head: RequestHead, error: SluiceError) -> Response:
    return error_response(error)


def _cloud_event(headers: Headers) -> dict[str, Any]:
    """The attributes of a CloudEvent in binary mode, which are header fields; empty if it is none."""
    found = {name: headers.get(f"ce-{name}") for name in _CLOUD_EVENT}
    return {name: value for name, value in found.items() if value is not None} if found["specversion"] else {}


def _steps(
    builder: BatchBuilder, media_type: str, cloud_event: dict[str, Any], body: bytes, received_ns: int
) -> Generator[None, None, None]:
    """Add the events of a body, some in each step."""
    for count, record in enumerate(_records(media_type, body), start=1):
        if cloud_event:
            fields = {**cloud_event, "data": record}
        else:
            fields = record if isinstance(record, dict) else {"message": record}
        mapped = event_of_json(fields, received_ns=received_ns)
        builder.add(mapped.event, key=mapped.key, has_time=mapped.has_time)
        if count % RECORDS_A_STEP == 0:
            yield


def _records(media_type: str, body: bytes) -> Iterable[Any]:
    """The records of a body: objects, or other JSON values, or texts."""
    if media_type == "application/x-www-form-urlencoded":
        return [dict(parse_qsl(body.decode(errors="replace"), max_num_fields=FORM_FIELDS_MAX))]
    try:
        if media_type in ("application/msgpack", "application/x-msgpack"):
            return _of_value(msgspec.msgpack.decode(body))
        body = without_mark(body).strip()
        if body[:1] == b"[":
            return (_of_json(bytes(raw)) for raw in _decode_array(body))
        if b"\n" not in body or not _is_object(body.partition(b"\n")[0]):
            return _of_value(_decode_any(body))
    except _NO_JSON:
        pass
    return _texts(body)


def _of_value(value: Any) -> Iterable[Any]:
    """The records of a whole body that is one value."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and isinstance(value.get(LIST_KEY), list):
        return list(value[LIST_KEY])
    return [value]


def _texts(body: bytes) -> Iterable[Any]:
    """The records of lines: JSON objects, and texts."""
    for line in body.split(b"\n"):
        if line and not line.isspace():
            yield _of_json(line.rstrip(b"\r"))


def _of_json(text: bytes) -> Any:
    """A JSON object or string; any other content as the text that it is."""
    try:
        value = _decode_any(text)
    except _NO_JSON:
        value = None
    return value if isinstance(value, dict | str) else text.decode(errors="replace")


def _is_object(line: bytes) -> bool:
    return line[:1] == b"{" and isinstance(_of_json(line), dict)
