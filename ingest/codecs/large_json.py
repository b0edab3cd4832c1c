"""The slow path for a large body, in steps of some milliseconds: the process serves other requests between them.

It gives the answers of `strict_json`. That module builds all values of a body before it checks any of them: a mebibyte
of `[],[],…` took a hundred milliseconds. Here msgspec first walks over the body without building anything. Then this
module builds only the values that an event may have. For all other values it needs only their type.
"""

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from ingest.codecs.media_type import BodyKind
from ingest.codecs.strict_json import DEPTH_MAX, load, text_of, value_of
from ingest.codecs.validation import RULES, VAST, events_in_steps
from ingest.errors import BodyTooLargeError, MalformedBodyError
from pipeline.event import ATTRIBUTES_BYTES_MAX, Event

LARGE_BYTES: Final = 16 * 1024  # smaller bodies take a millisecond or two, whatever they contain

_Result = TypeVar("_Result")
_Steps = Generator[None, None, _Result]

_walk = msgspec.json.Decoder(msgspec.Raw).decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_KNOWN: Final = [(name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in RULES]
_decode_known = msgspec.json.Decoder(msgspec.defstruct("Known", _KNOWN)).decode
_decode_known_alone = msgspec.json.Decoder(msgspec.defstruct("Alone", _KNOWN, forbid_unknown_fields=True)).decode
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_NTH: Final = "_{}"
_FIRST_MAX: Final = 5000  # a type of more fields takes long to create
_VAST_BYTES: Final = 8 * ATTRIBUTES_BYTES_MAX  # an escape has six bytes for a character of one byte
_UNREAD: Final = "\ud800"  # represents the name of a field that has surrogates: no field of an event has them

# Half of a surrogate pair is valid in JSON's grammar, but not for msgspec. So escapes of surrogates are disguised while
# msgspec reads, with bytes that UTF-8 does not have and msgspec does not check. Escaped backslashes are disguised too:
# otherwise one could look like the start of such an escape.
_DISGUISES: Final = ((b"\\\\", b"\xfe\xfe"), (b"\\ud", b"\xffud"), (b"\\uD", b"\xffuD"))
_CUT_ESCAPE: Final = re.compile(rb"\xffu[dD](?![0-9a-fA-F]{3})")
_REASON: Final = re.compile(r"(?:JSON is malformed: )?(.*?)(?: \(byte (\d+)\))?", re.DOTALL)
_LINE: Final = re.compile(rb"[^ \t\r\n][^\n]*+")
_BLANK: Final = b" \t\r\n"
_BRACES: Final = bytes.maketrans(b"{}", b"[]")
_UNSTRUCTURED: Final = bytes(set(range(256)) - set(b'[]{}"'))


def check_large(body: bytes, kind: BodyKind, *, events_max: int) -> _Steps[list[Event]]:
    """The events of a body, in steps. Raises the errors of `ingest.codecs.event_bodies.parse_body`."""
    items = yield from (_array_or_one(body, events_max) if kind is BodyKind.JSON else _lines(body, events_max))
    return (yield from events_in_steps(items))


def _array_or_one(body: bytes, events_max: int) -> _Steps[list[Any]]:
    """The values of a JSON body: the values of an array, or its single value."""
    text_of(body, 0, 1)
    yield
    body = yield from _checked_json(body, 0, 1)
    if body.lstrip(_BLANK)[:1] != b"[":
        return [_item(body)]
    raws = _elements(body, events_max)
    items = []
    for raw in raws:
        yield
        items.append(_item(raw))
    return items


def _lines(body: bytes, events_max: int) -> _Steps[list[Any]]:
    """The values of an NDJSON body."""
    lines = (match for match in _LINE.finditer(body) if not match[0].isspace())
    found = list(islice(lines, events_max + 1))
    if len(found) > events_max:
        raise BodyTooLargeError(events_max, "events")
    text_of(body, 0, 1)
    items: list[Any] = []
    line, seen = 1, 0
    for match in found:
        yield
        raw, at = match[0], match.start()
        line, seen = line + body.count(b"\n", seen, at), at
        if len(raw) <= LARGE_BYTES:
            items.append(value_of(raw, raw.decode(), at, line))
        else:
            items.append(_item((yield from _checked_json(raw, at, line))))
    return items


# --- 400: is it JSON? -----------------------------------------------------------------------------------------------


def _checked_json(raw: bytes, byte: int, line: int) -> _Steps[bytes]:
    """A part of the body that starts at `byte` and `line`, disguised. Raises MalformedBodyError."""
    if not raw.strip(_BLANK):
        raise MalformedBodyError("the body is empty", byte=byte, line=line)
    if b"\\ud" in raw or b"\\uD" in raw:
        for plain, disguise in _DISGUISES:
            raw = raw.replace(plain, disguise)
        if (cut := _CUT_ESCAPE.search(raw)) is not None:
            raise _malformed("invalid escaped character", raw, cut.start(), byte, line)
        yield
    try:
        _walk(raw)
    except msgspec.MsgspecError as error:
        match = _REASON.fullmatch(str(error))
        reason, place = (match[1], match[2]) if match is not None else (str(error), None)
        at = len(raw) if place is None else min(int(place), len(raw))
        raise _malformed(reason, raw, at, byte, line) from None
    except RecursionError:
        raise _too_deep() from None
    yield
    if raw.count(b"[") + raw.count(b"{") > DEPTH_MAX:
        yield from _check_depth(raw)
    return raw


def _malformed(reason: str, raw: bytes, at: int, byte: int, line: int) -> MalformedBodyError:
    """The error at a byte of a part of the body that starts at `byte` and `line`."""
    return MalformedBodyError(f"not JSON: {reason}", byte=byte + at, line=line + raw.count(b"\n", 0, at))


def _check_depth(raw: bytes) -> _Steps[None]:
    """Raise MalformedBodyError if JSON is nested too deep: each round removes the innermost brackets."""
    # Outside of strings nothing is between two quotes here; the quotes of adjacent strings disappear together.
    rest = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    yield
    rest = rest.translate(_BRACES, _UNSTRUCTURED)
    yield
    rest = rest.replace(b'""', b"")
    yield
    if b'"' in rest:
        rest = b"".join(rest.split(b'"')[::2])
        yield
    for _ in range(DEPTH_MAX):
        if not rest:
            return
        rest = rest.replace(b"[]", b"")
        yield
    if rest:
        raise _too_deep()


def _too_deep() -> MalformedBodyError:
    return MalformedBodyError(f"nested deeper than {DEPTH_MAX}, or not JSON at all", byte=None, line=None)


# --- Values ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _decoder_of_first(count: int) -> Callable[[bytes], Any]:
    """Decodes an array into its first values, unbuilt. msgspec skips the other values without building anything."""
    fields = [(_NTH.format(number), msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for number in range(count)]
    first = msgspec.json.Decoder(msgspec.defstruct("First", fields, array_like=True))
    return first.decode


def _elements(body: bytes, events_max: int) -> list[bytes]:
    """The values of an array, unbuilt. Raises BodyTooLargeError."""
    if events_max <= _FIRST_MAX:
        first = _decoder_of_first(events_max + 1)(body)
        found = [getattr(first, _NTH.format(number)) for number in range(events_max + 1)]
        raws = [bytes(raw) for raw in found if raw is not msgspec.UNSET]
    else:
        raws = [bytes(raw) for raw in _decode_array(body)]
    if len(raws) > events_max:
        raise BodyTooLargeError(events_max, "events")
    return raws


def _item(raw: bytes) -> Any:
    """The value of disguised JSON, built only as far as the rules of an event need it."""
    raw = raw.strip(_BLANK)
    if len(raw) <= LARGE_BYTES:
        return _loaded(raw)
    if raw[:1] != b"{":
        return _shallow(raw)
    known = _decode_known(raw)
    found: dict[str, Any] = {}
    for name in RULES:
        if (value := getattr(known, name)) is not msgspec.UNSET:
            found[name] = _attributes(bytes(value)) if name == "attributes" else _shallow(bytes(value))
    try:
        _decode_known_alone(raw)
    except msgspec.ValidationError as error:
        match = _UNKNOWN.fullmatch(str(error))
        found[_UNREAD if match is None else match[1]] = None
    except UnicodeDecodeError:  # a name in disguise
        found[_UNREAD] = None
    return found


def _attributes(raw: bytes) -> Any:
    """The attributes of an event; VAST if they are far too large."""
    if raw[:1] == b"{":
        is_vast = len(raw) > _VAST_BYTES and len(raw.translate(None, _BLANK)) > _VAST_BYTES
        return VAST if is_vast else _loaded(raw)
    return _shallow(raw)


def _shallow(raw: bytes) -> Any:
    """The value of JSON: arrays and objects without their contents."""
    match raw[:1]:
        case b"[":
            return []
        case b"{":
            return {}
        case _:
            return _loaded(raw)


def _loaded(raw: bytes) -> Any:
    """The value of disguised JSON."""
    for plain, disguise in _DISGUISES:
        raw = raw.replace(disguise, plain)
    return load(raw.decode())
