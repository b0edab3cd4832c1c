"""Cuts a large body into its JSON values without building any of them, one after another.

A parser builds a whole array at once: 16 MiB of `1,1,…` become eight million objects.
"""

import contextlib
import re
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

import msgspec

from ingest.protocols.json_ends import NO_JSON, end_of_value
from ingest.protocols.json_records import RECORD_BYTES_MAX, object_of
from ingest.protocols.records import TOO_DEEP

LEVELS_MAX: Final = 200  # of arrays and objects: a parser reads some hundred, depending on how deep its caller is
TOKENS_MAX: Final = 2_000_000  # brackets and strings of a body that is made less deep: it takes half a second

_BETWEEN: Final = re.compile(rb"[\s,]*+")
_LINE: Final = re.compile(rb"[^ \t\r\n][^\n]*+")

_ESCAPE: Final = re.compile(  # group 1: half of a surrogate pair
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_ESCAPES_A_STEP: Final = 2000
# Up to a bracket, or to the end of a string or of the body; group 1: it opens, group 2: it closes. Without the end
# of the body, a long rest that has no bracket would be searched again from each of its bytes.
_BRACKET: Final = re.compile(rb'[^"\[\]{}]*+(?:"(?:[^"\\]++|\\.)*+"?|([\[{])|([\]}])|\Z)', re.DOTALL)
_BRACKETS_A_STEP: Final = 2000
_OPENS: Final = 1
_CLOSES: Final = 2

_decode_text = msgspec.json.Decoder(str).decode
_DEEP: Final = msgspec.json.encode(TOO_DEEP)

_Decoded = TypeVar("_Decoded")

# None: nothing yet, another step may follow. Returns what follows in the body, and whether the values are all there.
Pieces = Generator[bytes | None, None, tuple[bytes, bool]]


def array_values(body: bytes, at: int) -> Pieces:
    """The values of an array whose content begins at `at`, up to the bracket that ends it, or to what is no JSON.

    If not even the first of them is JSON, the body itself follows.
    """
    values = _values(body, at, is_array=True)
    has_value = False
    while True:
        try:
            piece = next(values)
        except StopIteration as end:
            rest, is_whole = end.value
            return (rest, is_whole) if has_value or is_whole else (body, False)
        has_value = has_value or piece is not None
        yield piece


def objects(body: bytes) -> Pieces:
    """JSON objects one after another, with or without blanks between them, up to what is none."""
    return _values(body, 0, is_array=False)


def _values(body: bytes, at: int, *, is_array: bool) -> Pieces:
    is_shallow = False
    while True:
        at = _after_separators(body, at)
        if at >= len(body):
            return b"", not is_array
        if is_array and body[at] == 0x5D:  # ]
            return body[at + 1 :], True
        if not is_array and body[at] != 0x7B:  # {
            return body[at:], True
        try:
            end = end_of_value(body, at)
        except RecursionError:
            if is_shallow:
                return body[at:], False
            body, at, is_shallow = (yield from without_deep_values(body[at:])), 0, True
            continue
        if end is None:
            return body[at:], False
        yield body[at:end]
        at = end


def lines(body: bytes) -> Generator[bytes, None, tuple[bytes, bool]]:
    """The lines that are not blank, without leading blanks."""
    for found in _LINE.finditer(body):
        yield found[0].rstrip(b"\r")
    return b"", True


def record_of(piece: bytes) -> Any:
    """A JSON object or a text; anything else, and a record that is too large, is the text that it is."""
    if piece[:1] == b"{" and (found := object_of(piece)) is not None:
        return found
    if piece[:1] == b'"' and len(piece) <= RECORD_BYTES_MAX:
        with contextlib.suppress(*NO_JSON):
            return _decode_text(piece)
    return piece[:RECORD_BYTES_MAX].decode(errors="replace")


def _after_separators(body: bytes, at: int) -> int:
    found = _BETWEEN.match(body, at)
    return at if found is None else found.end()


def repaired(decode: Callable[[bytes], _Decoded], body: bytes) -> Generator[None, None, _Decoded]:
    """What a body is, without what keeps a parser from reading all of it: halves of surrogate pairs, and deep values.

    Raises NO_JSON.
    """
    while True:
        try:
            return decode(body)
        except RecursionError:
            found = yield from without_deep_values(body)
            if found == body:
                raise
        except (msgspec.MsgspecError, UnicodeDecodeError):
            found = yield from without_lone_surrogates(body)
            if found == body:
                raise
        body = found


def without_deep_values(body: bytes) -> Generator[None, None, bytes]:
    """Replace the arrays and objects that are nested deeper than parsers read by a text; in steps."""
    if 2 * (body.count(b"[") + body.count(b"{")) + body.count(b'"') // 2 > TOKENS_MAX:
        return body
    parts: list[bytes] = []
    done = start = level = 0
    for count, match in enumerate(_BRACKET.finditer(body)):
        if match.lastindex == _OPENS:
            level += 1
            if level == LEVELS_MAX + 1:
                start = match.end() - 1
        elif match.lastindex == _CLOSES:
            if level == LEVELS_MAX + 1:
                parts += (body[done:start], _DEEP)
                done = match.end()
            level -= 1
        if count % _BRACKETS_A_STEP == 0:
            yield
    return b"".join((*parts, body[done:]))


def without_lone_surrogates(body: bytes) -> Generator[None, None, bytes]:
    """Replace the escapes of half surrogate pairs, which JavaScript sends and msgspec refuses, by U+FFFD; in steps."""
    if b"\\ud" not in body and b"\\uD" not in body:
        return body
    parts: list[bytes] = []
    done = 0
    for count, match in enumerate(_ESCAPE.finditer(body)):
        if match[1] is not None:
            parts += (body[done : match.start()], b"\\ufffd")
            done = match.end()
        if count % _ESCAPES_A_STEP == 0:
            yield
    return b"".join((*parts, body[done:]))
