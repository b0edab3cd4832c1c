"""Other protocols: how their bodies are sent, and what ingest must make of any of them.

`judge_protocol` takes a letter for a target, then a body. For any body, ingest produces valid events, the same ones
each time, or refuses it with one of its own statuses. A protocol that accepts any content never refuses a body for it.
"""

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import cramjam
import msgspec

from ingest.app import routes
from ingest.errors import BodyTooLargeError, MalformedBodyError, RequestError, row_of
from ingest.framing import found_coding
from ingest.held_bodies import HeldBodies
from ingest.types import Batch, Codec, Head
from pipeline.clock import Clock
from pipeline.event import (
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_KEYS_MAX,
    CORRELATION_ID_CHARS_MAX,
    EVENT_ID_CHARS_MAX,
    MESSAGE_BYTES_MAX,
    SEVERITIES,
    SOURCE_CHARS_MAX,
    TIMESTAMP_MS_MAX,
    TIMESTAMP_MS_MIN,
    Event,
    decode_record,
    encode_record,
    record_head,
)
from pipeline.settings import Settings

RECORDS_MAX: Final = 20
BYTES_MAX: Final = 1 << 16
_NOW: Final = 1_700_000_000.0
_INT64_MAX: Final = 2**63 - 1

_Result = TypeVar("_Result")


class WrongError(AssertionError):
    """Ingest's decoder is wrong about an input."""


def must(condition: bool, what: str, data: Any) -> None:
    """Raise WrongError unless the condition holds."""
    if not condition:
        raise WrongError(f"{what}: {data!r}")


class _StillClock(Clock):
    """A clock that does not move, so that two readings of a body are comparable."""

    def now(self) -> float:
        return _NOW

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here sleeps")


@dataclass(frozen=True, slots=True)
class Target:
    """An address of a protocol, and how a body is sent to it.

    `takes_all`: the protocol never refuses a body for its content. `pack` converts an input before it is sent.
    """

    path: str
    media_type: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    takes_all: bool = False
    pack: Callable[[bytes], bytes] = bytes

    @property
    def head(self) -> Head:
        """The head of a request."""
        fields = dict(self.headers)
        if self.media_type is not None:
            fields["content-type"] = self.media_type
        return Head(fields, self.path)


def _in_snappy(body: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(body))


_JSON: Final = "application/json"
_PROTOBUF: Final = "application/x-protobuf"
_LOKI: Final = "/loki/api/v1/push"
TARGETS: Final[dict[str, Target]] = {
    "t": Target("/api/logs/lines", "text/plain", takes_all=True),
    "m": Target("/api/logs/lines", "application/msgpack", takes_all=True),
    "f": Target("/api/logs/lines", "application/x-www-form-urlencoded", takes_all=True),
    "v": Target("/api/logs/lines", None, {"ce-specversion": "1.0", "ce-id": "7", "ce-source": "/s"}, takes_all=True),
    "g": Target("/gelf", None, {"content-encoding": "gzip,deflate"}, takes_all=True),
    "j": Target("/v1/logs", _JSON),
    "p": Target("/v1/logs", _PROTOBUF),
    "e": Target("/_bulk", "application/x-ndjson"),
    "l": Target(_LOKI, _JSON),
    "s": Target(_LOKI, _PROTOBUF, pack=_in_snappy),
    "w": Target(_LOKI),  # raw: its first bytes decide how it is read
    "c": Target("/services/collector/event"),
    "r": Target("/services/collector/raw"),
}
_LETTERS: Final = "".join(TARGETS)

_SETTINGS: Final = Settings(protocol_body_bytes_max=BYTES_MAX, protocol_body_events_max=RECORDS_MAX)
_CODECS: Final[dict[str, Codec]] = {
    route.path: route.codec for route in routes(_SETTINGS, _StillClock()) if route.format is None
}


def target_of(data: bytes) -> tuple[Target, bytes]:
    """The target of an input, and the body that is sent to it."""
    letter = chr(data[0]) if data and chr(data[0]) in TARGETS else _LETTERS[(data[0] if data else 0) % len(_LETTERS)]
    target = TARGETS[letter]
    return target, target.pack(data[1:])


def judge_protocol(data: bytes) -> str:
    """The outcome: `events`, `nothing` (accepted, without an event), or the code of the refusal. Raises WrongError."""
    target, body = target_of(data)
    codec = _CODECS[target.path]
    try:
        batch = _decoded(codec, target, body)
        again = _decoded(codec, target, body)
    except RequestError as error:
        return _judge_refusal(codec, target, body, error)
    except Exception as error:
        raise WrongError(f"{error!r} is no answer to a body for {target.path}: {body!r}") from error
    events = batch.events
    must(len(events) <= RECORDS_MAX, "more records than allowed", body)
    must(batch.partition_keys is not None and len(batch.partition_keys) == len(events), "keys of partitions", body)
    for event in events:
        _judge_event(event, body)
    must(_shown(events) == _shown(again.events), "other events the second time", body)
    answer = batch.accepted()
    must(200 <= answer.status < 300, f"a good body is answered with {answer.status}", body)
    if target.path == "/_bulk":
        items = json.loads(answer.body)["items"]
        stored = sum(item[op]["status"] == 201 for item in items for op in item)
        must((stored, len(items) - stored) == (len(events), batch.rejected), "items of the answer", body)
    return "events" if events else "nothing"


def _judge_refusal(codec: Codec, target: Target, body: bytes, error: RequestError) -> str:
    """A refusal applies to the whole body, and has an answer."""
    answer = codec.rejected(target.head, error)
    must(400 <= answer.status < 500, f"{error!r} is answered with {answer.status}", body)
    is_packed = found_coding(body, declared="gzip") is not None
    if target.takes_all and not is_packed:
        must(isinstance(error, BodyTooLargeError), f"a body is refused for its content ({error})", body)
    if isinstance(error, MalformedBodyError):
        must(error.byte is None or 0 <= error.byte <= max(len(body), BYTES_MAX), "no byte of the body", body)
    return row_of(error).code


def _decoded(codec: Codec, target: Target, body: bytes) -> Batch:
    head = target.head

    async def batch() -> Batch:
        decode, inflate = codec.decode(head), codec.inflate(head.headers)
        with HeldBodies(1 << 30).begin() as held:
            return await decode(body if inflate is None else await inflate(body, held))

    return _run(batch)


def _run(make: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    """The result of a coroutine. It rarely waits, and an event loop would take longer than all other work."""
    coroutine = make()
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _Result = end.value
        return result
    coroutine.close()
    return asyncio.run(make())


def _shown(events: list[Event]) -> list[str]:
    return [repr(event) for event in events]  # NaN would not be equal to itself


def _judge_event(event: Event, body: bytes) -> None:
    """The event of a record keeps the rules of an event, and survives the log unchanged."""
    for text in _texts(event):
        must("\0" not in text, "NUL", body)
        must(text.isascii() or text.encode("utf-8", "replace").decode() == text, "half of a surrogate pair", body)
    must(1 <= len(event.correlation_id) <= CORRELATION_ID_CHARS_MAX, "correlation id", body)
    must(1 <= len(event.source) <= SOURCE_CHARS_MAX, "source", body)
    must(event.severity in SEVERITIES, "severity", body)
    must(len(event.message.encode()) <= MESSAGE_BYTES_MAX, "message", body)
    must(TIMESTAMP_MS_MIN <= event.timestamp <= TIMESTAMP_MS_MAX, "timestamp", body)
    must(event.event_id is None or 1 <= len(event.event_id) <= EVENT_ID_CHARS_MAX, "event id", body)
    attributes = event.attributes
    must(attributes is None or 1 <= len(attributes) <= ATTRIBUTES_KEYS_MAX, "attributes", body)
    must(attributes is None or len(msgspec.json.encode(attributes)) <= ATTRIBUTES_BYTES_MAX, "attributes' size", body)
    for name, value in (attributes or {}).items():
        must(type(value) in (str, int, float, bool), f"attribute {name}", body)
        must(not isinstance(value, float) or math.isfinite(value), f"number {name}", body)
        must(not isinstance(value, int) or -_INT64_MAX - 1 <= value <= _INT64_MAX, f"integer {name}", body)
    given, event.event_id = event.event_id, event.event_id or "given"
    back = decode_record(encode_record(event, record_head(7, "a-1")))
    for name in ("correlation_id", "severity", "message", "source", "timestamp", "event_id", "attributes"):
        must(getattr(back, name) == getattr(event, name), f"{name} through the log", body)
    event.event_id = given


def _texts(event: Event) -> list[str]:
    """Every string of an event, names of attributes included."""
    attributes = event.attributes or {}
    values = [value for value in attributes.values() if isinstance(value, str)]
    return [event.correlation_id, event.message, event.source, event.event_id or "", *attributes, *values]
