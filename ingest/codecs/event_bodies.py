"""Decodes a body into its events, all or nothing.

There are two paths. The fast path decodes directly into events, and accepts nearly every body. All other bodies take
the slow path (`strict_json`, and `large_json` for large bodies). Only the slow path decides what is wrong, and where.
So the fast path may reject too much, but never accept more; the property tests compare the two.
"""

import re
from itertools import islice
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from ingest.codecs.large_json import LARGE_BYTES, check_large
from ingest.codecs.media_type import BodyKind
from ingest.codecs.numbers import are_kept
from ingest.codecs.strict_json import check_json, check_ndjson
from ingest.codecs.turns import run
from ingest.codecs.validation import conflicts
from ingest.errors import BodyTooLargeError
from pipeline.event import (
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_KEYS_MAX,
    CORRELATION_ID_CHARS_MAX,
    EVENT_ID_CHARS_MAX,
    MESSAGE_BYTES_MAX,
    SEVERITIES,
    SEVERITY_ALIASES,
    SOURCE_CHARS_MAX,
    TIMESTAMP_MS_MAX,
    TIMESTAMP_MS_MIN,
    Event,
)

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1

_Value = str | Annotated[int, Meta(ge=_INT64_MIN, le=_INT64_MAX)] | float | bool


class CheckedEvent(Event, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """An event whose simple rules are checked while it is decoded. `/openapi.json` gets its schema from this type."""

    correlation_id: Annotated[str, Meta(min_length=1, max_length=CORRELATION_ID_CHARS_MAX)]
    severity: str
    message: str
    source: Annotated[str, Meta(min_length=1, max_length=SOURCE_CHARS_MAX)]
    timestamp: Annotated[int, Meta(ge=TIMESTAMP_MS_MIN, le=TIMESTAMP_MS_MAX)]
    event_id: Annotated[str, Meta(min_length=1, max_length=EVENT_ID_CHARS_MAX)] | None = None
    attributes: Annotated[dict[str, _Value], Meta(max_length=ATTRIBUTES_KEYS_MAX)] | None = None


_decode_one = msgspec.json.Decoder(CheckedEvent).decode
_decode_many = msgspec.json.Decoder(list[CheckedEvent]).decode
_walk = msgspec.json.Decoder(msgspec.Raw).decode
_encode = msgspec.json.encode

# The spellings that clients use; any other spelling takes the slow path.
_SEVERITY: Final = {
    spelling: name
    for given, name in (*((name, name) for name in SEVERITIES), *SEVERITY_ALIASES.items())
    for spelling in (given, given.lower(), given.title())
}
_ESCAPED_NUL: Final = b"\\u0000"  # may also be an escaped backslash before u0000: the slow path distinguishes them
_WHITESPACE: Final = b" \t\r\n"
_LINE: Final = re.compile(rb"[^ \t\r\n][^\n]*+")
_MESSAGE_CHARS_SURE: Final = MESSAGE_BYTES_MAX // 4  # no character has more than four bytes
# The attributes of such a short body are within their limit, although a number may be written longer than it was sent.
_BODY_BYTES_SURE: Final = ATTRIBUTES_BYTES_MAX // 2


def parse_body(body: bytes, kind: BodyKind, *, events_max: int) -> list[Event]:
    """The events of an inflated body, with severities in capitals.

    Raises MalformedBodyError if it is not JSON, BodyTooLargeError for more than `events_max` events, and
    InvalidEventsError if it has no event or one breaks a rule.
    """
    events = parse_quickly(body, kind, events_max)
    return events if events is not None else parse_carefully(body, kind, events_max)


def hint(body: bytes, kind: BodyKind) -> str:
    """A hint for a rejected body that looks like the other media type; "" if it does not."""
    text = body.lstrip(_WHITESPACE)
    if kind is BodyKind.JSON:
        first, _, rest = text.partition(b"\n")
        if rest.lstrip(_WHITESPACE)[:1] == b"{" and _is_object(first):
            return "this looks like one event a line: send it as application/x-ndjson"
    elif text[:1] == b"[" or (text[:1] == b"{" and not _is_object(text.partition(b"\n")[0])):
        return (
            "application/x-ndjson has one event a line: send an array, or one event on many lines, as application/json"
        )
    return ""


def _is_object(line: bytes) -> bool:
    """Whether a line is a JSON object. A line that is too long to check counts as none."""
    if len(line) > LARGE_BYTES or line[:1] != b"{":
        return False
    try:
        _walk(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def parse_carefully(body: bytes, kind: BodyKind, events_max: int) -> list[Event]:
    """The events of a body that the fast path did not accept. Raises the errors of `parse_body`."""
    if len(body) > LARGE_BYTES:
        return run(check_large(body, kind, events_max=events_max))
    check = check_json if kind is BodyKind.JSON else check_ndjson
    return check(body, events_max=events_max)


def parse_quickly(body: bytes, kind: BodyKind, events_max: int) -> list[Event] | None:
    """The events, or None if the slow path must decide."""
    if _ESCAPED_NUL in body:
        return None
    events: list[CheckedEvent]
    try:
        if kind is BodyKind.NDJSON:
            events = [_decode_one(line) for line in _lines(body, events_max)]
        elif body.lstrip(_WHITESPACE)[:1] == b"[":
            events = _decode_many(body)
            if len(events) > events_max:
                raise BodyTooLargeError(events_max, "events")
        else:
            events = [_decode_one(body)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not events or not _passes(events, body):
        return None
    return events  # type: ignore[return-value]  # a list is invariant; no caller adds to this one


def _lines(body: bytes, events_max: int) -> list[bytes]:
    """The lines of NDJSON that are not blank. Raises BodyTooLargeError if there are too many."""
    if body.count(b"\n") <= events_max:
        lines = [line for line in body.split(b"\n") if line and not line.isspace()]
    else:  # most lines are blank, or there are too many: a million lines would be slow to build
        found = (match[0] for match in _LINE.finditer(body) if not match[0].isspace())
        lines = list(islice(found, events_max + 1))
    if len(lines) > events_max:
        raise BodyTooLargeError(events_max, "events")
    return lines


def _passes(events: list[CheckedEvent], body: bytes) -> bool:
    """Check the rules that decoding does not check, and normalise the spelling of severities."""
    is_short = len(body) <= _BODY_BYTES_SURE
    has_floats = False
    for event in events:
        severity = _SEVERITY.get(event.severity)
        if severity is None:
            return False
        event.severity = severity
        message = event.message
        if len(message) > _MESSAGE_CHARS_SURE and len(message.encode()) > MESSAGE_BYTES_MAX:
            return False
        attributes = event.attributes
        if attributes is not None:
            if not has_floats:
                for value in attributes.values():
                    if type(value) is float:
                        has_floats = True
                        break
            if not is_short and len(_encode(attributes)) > ATTRIBUTES_BYTES_MAX:
                return False
    return (not has_floats or are_kept(body)) and (len(events) == 1 or _ids_agree(events))


def _ids_agree(events: list[CheckedEvent]) -> bool:
    """Whether events with the same id are the same event. Nearly always, no two events have the same id."""
    ids = [event.event_id for event in events if event.event_id is not None]
    return len(set(ids)) == len(ids) or next(conflicts(events), None) is None
