"""Cuts a large body into its JSON values without building any of them, one after another.

A parser builds a whole array at once: 16 MiB of `1,1,…` become eight million objects. Here msgspec only walks over one
value, and its complaint about what follows says where the value ends.
"""

import contextlib
import re
from collections.abc import Generator
from typing import Any, Final

import msgspec

from ingest.protocols.json_records import RECORD_BYTES_MAX, object_of

WINDOW_BYTES: Final = 4096  # in which the end of a value is looked for at first
WINDOW_GROWTH: Final = 16

_SCALAR: Final = re.compile(rb"[^,\]\s]++")
_BETWEEN: Final = re.compile(rb"[\s,]*+")
_LINE: Final = re.compile(rb"[^ \t\r\n][^\n]*+")
_TRAILING: Final = re.compile(r"trailing characters \(byte (\d+)\)")

_ESCAPE: Final = re.compile(  # group 1: half of a surrogate pair
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_ESCAPES_A_STEP: Final = 2000

_walk = msgspec.json.Decoder(msgspec.Raw).decode
_decode_text = msgspec.json.Decoder(str).decode
NO_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

Pieces = Generator[bytes, None, int]  # returns where it ended in the body


def array_values(body: bytes, at: int) -> Pieces:
    """The values of an array whose content begins at `at`, up to the bracket that ends it, or to what is no JSON."""
    while True:
        at = _after_separators(body, at)
        if at >= len(body) or body[at] == 0x5D:  # ]
            return at + 1
        end = end_of_value(body, at)
        if end is None:
            return at
        yield body[at:end]
        at = end


def objects(body: bytes, at: int = 0) -> Pieces:
    """JSON objects one after another, with or without blanks between them, up to what is none."""
    while True:
        at = _after_separators(body, at)
        if at >= len(body) or body[at] != 0x7B:  # {
            return at
        end = end_of_value(body, at)
        if end is None:
            return at
        yield body[at:end]
        at = end


def lines(body: bytes, at: int = 0) -> Pieces:
    """The lines that are not blank, without leading blanks."""
    for found in _LINE.finditer(body, at):
        yield found[0].rstrip(b"\r")
    return len(body)


def record_of(piece: bytes) -> Any:
    """A JSON object or a text; anything else, and a record that is too large, is the text that it is."""
    if piece[:1] == b"{" and (found := object_of(piece)) is not None:
        return found
    if piece[:1] == b'"' and len(piece) <= RECORD_BYTES_MAX:
        with contextlib.suppress(*NO_JSON):
            return _decode_text(piece)
    return piece[:RECORD_BYTES_MAX].decode(errors="replace")


def end_of_value(body: bytes, at: int) -> int | None:
    """Where the JSON value that begins at `at` ends; None if none does."""
    if body[at] not in b'{["':
        found = _SCALAR.match(body, at)
        return found.end() if found is not None and _is_json(found[0]) else None
    window = WINDOW_BYTES
    while True:
        piece = body[at : at + window]
        try:
            _walk(piece)
        except msgspec.MsgspecError as error:
            trailing = _TRAILING.search(str(error))
            if trailing is not None:
                return at + int(trailing[1]) - 1  # it names the byte behind the first that trails
            if at + window >= len(body):
                return None
        except RecursionError:
            return None
        else:
            return at + len(piece)
        window *= WINDOW_GROWTH


def _after_separators(body: bytes, at: int) -> int:
    found = _BETWEEN.match(body, at)
    return at if found is None else found.end()


def _is_json(piece: bytes) -> bool:
    try:
        _walk(piece)
    except NO_JSON:
        return False
    return True


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
