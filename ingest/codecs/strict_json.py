"""The slow path for a body: distinguishes events, bodies that are not JSON (400), and events that break a rule (422).

It handles what the fast path could not: a lone surrogate, which JSON's grammar allows; an escaped NUL, which PostgreSQL
rejects; integers of any length; and all errors. Its time is linear in the body, and it stops at the first twenty
problems. Large bodies go through `ingest.codecs.large_json`, which gives the same answers.
"""

import json
import re
from itertools import accumulate, islice
from typing import Any, Final, NoReturn

from ingest.codecs.numbers import number_of
from ingest.codecs.turns import run
from ingest.codecs.validation import HUGE, HugeInteger, events_in_steps
from ingest.errors import BodyTooLargeError, MalformedBodyError
from pipeline.event import Event

DEPTH_MAX: Final = 32
INT_CHARS_SURE: Final = 20  # including the sign, no 64-bit integer is longer

# A string, even if it is not closed: it contains no structural brackets. Possessive, so that it never backtracks.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_STRING_OR_BRACKET: Final = re.compile(_STRING.pattern + rb"|[\[\]{}]", re.DOTALL)
_STRING_OR_CONSTANT: Final = re.compile(_STRING.pattern + rb"|NaN|-?Infinity", re.DOTALL)
_BRACKETS_SOUGHT_MAX: Final = 50_000  # some milliseconds
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_BRACKET_STEP: Final = [{"[": 1, "{": 1, "]": -1, "}": -1}.get(chr(code), 0) for code in range(256)]
_DEPTH_BLOCK: Final = 4096  # brackets counted in one step: the search for too deep nesting ends soon after it
_JSON_SPACE: Final = " \t\r"


def check_json(body: bytes, *, events_max: int) -> list[Event]:
    """The events of a JSON body. Raises the errors of `ingest.codecs.event_bodies.parse_body`."""
    text = text_of(body, 0, 1)
    value = value_of(body, text, 0, 1)
    items = value if isinstance(value, list) else [value]
    if len(items) > events_max:
        raise BodyTooLargeError(events_max, "events")
    return run(events_in_steps(items))


def check_ndjson(body: bytes, *, events_max: int) -> list[Event]:
    """The events of an NDJSON body. Raises the errors of `ingest.codecs.event_bodies.parse_body`."""
    lines = body.split(b"\n")
    if sum(1 for raw in lines if raw and not raw.isspace()) > events_max:
        raise BodyTooLargeError(events_max, "events")
    items: list[Any] = []
    byte = 0
    for number, raw in enumerate(lines, 1):
        if raw and not raw.isspace():
            items.append(value_of(raw, text_of(raw, byte, number), byte, number))
        byte += len(raw) + 1
    return run(events_in_steps(items))


# --- 400: is it JSON? -------------------------------------------------------------------------------------------


def text_of(raw: bytes, byte: int, line: int) -> str:
    """The text of a part of the body that starts at `byte` and `line`. Raises MalformedBodyError."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        raise MalformedBodyError(
            f"not UTF-8: {error.reason}", byte=byte + at, line=line + raw.count(b"\n", 0, at)
        ) from None


def value_of(raw: bytes, text: str, byte: int, line: int) -> Any:
    """The value of a part of the body. If a key is repeated, the last value wins. Raises MalformedBodyError."""
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
        return load(text)
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
    except RecursionError:  # can't happen, since the depth was counted before; the check is cheap
        raise MalformedBodyError(f"nested deeper than {DEPTH_MAX}", byte=None, line=None) from None


def load(text: str) -> Any:
    """The value of JSON text. Raises the errors of json.loads, including RecursionError if it is nested very deep."""
    return json.loads(text, parse_int=_integer, parse_float=number_of, parse_constant=_refuse_constant)


def _too_deep_bracket(raw: bytes) -> int | None:
    """The number, from 0, of the first bracket outside of strings that is nested too deep; None if there is none."""
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
    """The byte offset of a bracket outside of strings; None if the search would take too long."""
    if number > _BRACKETS_SOUGHT_MAX:
        return None
    found = (match.start() for match in _STRING_OR_BRACKET.finditer(raw) if match[0][:1] != b'"')
    return next(islice(found, number, None))


def _integer(digits: str) -> int | HugeInteger:
    return int(digits) if len(digits) <= INT_CHARS_SURE else HUGE


class _ConstantError(Exception):
    """NaN or an infinity: Python reads it, but JSON does not have it."""


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(name)
