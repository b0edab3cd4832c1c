"""The careful way through a body: decides between events, not JSON (400), and events that break a rule (422).

It takes what the quick way could not: a lone surrogate, which JSON's grammar allows; an escaped NUL, which PostgreSQL
does not take; integers of any length; and everything that is wrong. Time is linear in the body, and it stops at the
first twenty problems.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from itertools import accumulate, islice
from typing import Any, Final, NoReturn

import msgspec

from ingest.errors import (
    NAME_CHARS_MAX,
    PROBLEMS_MAX,
    BodyTooLargeError,
    InvalidEventsError,
    MalformedBodyError,
    Problem,
)
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

DEPTH_MAX: Final = 32
INT_CHARS_SURE: Final = 20  # with its sign, no integer of 64 bits is longer

# A string, also one that is not closed: what it contains are no brackets. Possessive, so that it never looks back.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_STRING_OR_BRACKET: Final = re.compile(_STRING.pattern + rb"|[\[\]{}]", re.DOTALL)
_STRING_OR_CONSTANT: Final = re.compile(_STRING.pattern + rb"|NaN|-?Infinity", re.DOTALL)
_BRACKETS_SOUGHT_MAX: Final = 50_000  # some milliseconds
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_BRACKET_STEP: Final = [{"[": 1, "{": 1, "]": -1, "}": -1}.get(chr(code), 0) for code in range(256)]
_DEPTH_BLOCK: Final = 4096  # brackets counted at once: the look for too deep nesting ends soon after it
_JSON_SPACE: Final = " \t\r"


class _HugeInteger:
    """An integer of more digits than 64 bits need: converting it would take quadratic time."""


_HUGE: Final = _HugeInteger()
_KINDS: Final[dict[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    _HugeInteger: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
}


def check_json(body: bytes, *, events_max: int) -> list[Event]:
    """The events of a JSON body. Raises as `ingest.body.parse_body` does."""
    text = _text(body, 0, 1)
    value = _parse(body, text, 0, 1)
    items = value if isinstance(value, list) else [value]
    if len(items) > events_max:
        raise BodyTooLargeError(events_max, "events")
    return _events(items)


def check_ndjson(body: bytes, *, events_max: int) -> list[Event]:
    """The events of an NDJSON body. Raises as `ingest.body.parse_body` does."""
    lines = body.split(b"\n")
    if sum(1 for raw in lines if raw and not raw.isspace()) > events_max:
        raise BodyTooLargeError(events_max, "events")
    items: list[Any] = []
    byte = 0
    for number, raw in enumerate(lines, 1):
        if raw and not raw.isspace():
            items.append(_parse(raw, _text(raw, byte, number), byte, number))
        byte += len(raw) + 1
    return _events(items)


# --- 400: is it JSON? -------------------------------------------------------------------------------------------


def _text(raw: bytes, byte: int, line: int) -> str:
    """The text of a part of the body that begins at `byte` and `line`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        raise MalformedBodyError(
            f"not UTF-8: {error.reason}", byte=byte + at, line=line + raw.count(b"\n", 0, at)
        ) from None


def _parse(raw: bytes, text: str, byte: int, line: int) -> Any:
    """The value of a part of the body; the last of duplicate keys wins."""
    if not text.strip(_JSON_SPACE + "\n"):
        raise MalformedBodyError("the body is empty", byte=byte, line=line)
    if raw.count(b"[") + raw.count(b"{") > DEPTH_MAX and (number := _too_deep_bracket(raw)) is not None:
        at = _bracket_byte(raw, number)
        raise MalformedBodyError(
            f"nested deeper than {DEPTH_MAX}, or not JSON at all",
            byte=None if at is None else byte + at,
            line=None if at is None else line + raw.count(b"\n", 0, at),
        )
    try:
        return json.loads(text, parse_int=_integer, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        at = len(text[: error.pos].encode())
        raise MalformedBodyError(
            f"not JSON: {error.msg}", byte=byte + at, line=line + raw.count(b"\n", 0, at)
        ) from None
    except _ConstantError as error:
        found = (match.start() for match in _STRING_OR_CONSTANT.finditer(raw) if match[0][:1] != b'"')
        at = next(found, 0)
        raise MalformedBodyError(
            f"not JSON: {error} is no number", byte=byte + at, line=line + raw.count(b"\n", 0, at)
        ) from None
    except RecursionError:  # cannot be, with the depth counted before; cheap to be sure of
        raise MalformedBodyError(f"nested deeper than {DEPTH_MAX}", byte=None, line=None) from None


def _too_deep_bracket(raw: bytes) -> int | None:
    """Which bracket outside of strings, counted from 0, is the first to open deeper than allowed; None if none does."""
    brackets = _STRING.sub(b"", raw).translate(None, _NO_BRACKETS)
    depth = 0
    for start in range(0, len(brackets), _DEPTH_BLOCK):
        steps = map(_BRACKET_STEP.__getitem__, brackets[start : start + _DEPTH_BLOCK])
        depths = list(accumulate(steps, initial=depth))
        if max(depths) > DEPTH_MAX:
            return start + depths.index(DEPTH_MAX + 1) - 1
        depth = depths[-1]
    return None


def _bracket_byte(raw: bytes, number: int) -> int | None:
    """Where a bracket outside of strings stands; None where finding it would take too long."""
    if number > _BRACKETS_SOUGHT_MAX:
        return None
    found = (match.start() for match in _STRING_OR_BRACKET.finditer(raw) if match[0][:1] != b'"')
    return next(islice(found, number, None))


def _integer(digits: str) -> int | _HugeInteger:
    return int(digits) if len(digits) <= INT_CHARS_SURE else _HUGE


class _ConstantError(Exception):
    """NaN or an infinity, which Python reads and JSON has not."""


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(name)


# --- 422: are they events? ----------------------------------------------------------------------------------------


def _events(items: list[Any]) -> list[Event]:
    """Events of parsed values, or InvalidEventsError with the first problems."""
    if not items:
        raise InvalidEventsError("there is no event in the body", [])
    problems: list[Problem] = []
    for index, item in enumerate(items):
        problems.extend(Problem(index, field, reason) for field, reason in _event_problems(item))
        if len(problems) >= PROBLEMS_MAX:
            break
    if problems:
        raise InvalidEventsError("events break their rules; none was taken", problems)
    return [_event(item) for item in items]


def _event(item: dict[str, Any]) -> Event:
    """The event of an object that keeps every rule."""
    return Event(
        correlation_id=item["correlationId"],
        severity=_severity(item["severity"]),
        message=item["message"],
        source=item["source"],
        timestamp=item["timestamp"],
        event_id=item.get("eventId"),
        attributes=item.get("attributes"),
    )


def _severity(text: str) -> str:
    """The one spelling of a severity; the text itself where it is none."""
    # Beyond ASCII there are other characters whose capitals are I or S.
    capitals = text.upper() if text.isascii() else text
    return SEVERITY_ALIASES.get(capitals, capitals)


def _event_problems(item: Any) -> Iterable[tuple[str | None, str]]:
    """(field, reason) of every rule that a value breaks."""
    if not isinstance(item, dict):
        yield None, f"is {_kind(item)}, not an object"
        return
    for field, check in _RULES.items():
        if field not in item:
            if field not in _OPTIONAL:
                yield field, "is missing"
        elif item[field] is not None or field not in _OPTIONAL:
            reason = check(item[field])
            if reason is not None:
                yield field, reason
    for field in item:
        if field not in _RULES:
            yield _printable(field), "is not a field of an event"


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "an object")


def _printable(text: str) -> str:
    """A client's own text, short, and such that UTF-8 can carry it."""
    return text[:NAME_CHARS_MAX].encode("utf-8", "backslashreplace").decode("utf-8")


def _unstorable(text: str) -> str | None:
    """Why PostgreSQL would not take a text."""
    if "\0" in text:
        return "contains a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "contains half of a surrogate pair"
    return None


def _text_rule(chars_min: int, chars_max: int) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"is {_kind(value)}, not a string"
        if not chars_min <= len(value) <= chars_max:
            return f"has {len(value)} characters; {chars_min} to {chars_max} are allowed"
        return _unstorable(value)

    return check


def _message_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"is {_kind(value)}, not a string"
    if (reason := _unstorable(value)) is not None:
        return reason
    size = len(value.encode())
    return None if size <= MESSAGE_BYTES_MAX else f"has {size} bytes as UTF-8; {MESSAGE_BYTES_MAX} are allowed"


def _severity_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"is {_kind(value)}, not a string"
    if _severity(value) not in SEVERITIES:
        return "is none of TRACE, DEBUG, INFO, WARN, ERROR, FATAL"
    return None


def _timestamp_problem(value: Any) -> str | None:
    if isinstance(value, _HugeInteger):
        return "lies outside of the years 1970 to 9999"
    if type(value) is not int:  # a bool is an int to Python, and 1.0 is written as something else than an integer
        return f"is {_kind(value)}, not an integer"
    if not TIMESTAMP_MS_MIN <= value <= TIMESTAMP_MS_MAX:
        return "lies outside of the years 1970 to 9999"
    return None


def _attributes_problem(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"is {_kind(value)}, not an object"
    if len(value) > ATTRIBUTES_KEYS_MAX:
        return f"has {len(value)} keys; {ATTRIBUTES_KEYS_MAX} are allowed"
    for key, one in value.items():
        reason = _unstorable(key)
        if reason is not None:
            return f"has a key that {reason}"
        reason = _attribute_problem(one)
        if reason is not None:
            return f"{_printable(key)!r} {reason}"
    size = len(msgspec.json.encode(value))
    return None if size <= ATTRIBUTES_BYTES_MAX else f"has {size} bytes as JSON; {ATTRIBUTES_BYTES_MAX} are allowed"


def _attribute_problem(value: Any) -> str | None:
    match value:
        case bool():
            return None
        case str():
            return _unstorable(value)
        case int() if -(2**63) <= value < 2**63:
            return None
        case int() | _HugeInteger():
            return "is an integer of more than 64 bits"
        case float():
            return None if math.isfinite(value) else "is not a finite number"
        case _:
            return f"is {_kind(value)}, not a string, number or boolean"


_RULES: Final[dict[str, Callable[[Any], str | None]]] = {
    "correlationId": _text_rule(1, CORRELATION_ID_CHARS_MAX),
    "severity": _severity_problem,
    "message": _message_problem,
    "source": _text_rule(1, SOURCE_CHARS_MAX),
    "timestamp": _timestamp_problem,
    "eventId": _text_rule(1, EVENT_ID_CHARS_MAX),
    "attributes": _attributes_problem,
}
_OPTIONAL: Final = frozenset({"eventId", "attributes"})  # null counts as missing: many encoders write it so
