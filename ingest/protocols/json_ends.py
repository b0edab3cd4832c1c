"""Finds where JSON values end, without building them.

msgspec walks over one value, and its complaint about what follows says where the value ends.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec

WINDOW_BYTES: Final = 4096  # in which the end of a value is looked for at first
WINDOW_GROWTH: Final = 16
CUT_BYTES_MAX: Final = 16  # at the end of a window, a number or an escape that is cut off is malformed

_SCALAR: Final = re.compile(rb"[^,\]\s}]++")
_TRAILING: Final = re.compile(r"trailing characters \(byte (\d+)\)")
_PLACE: Final = re.compile(r"\(byte (\d+)\)")

_walk = msgspec.json.Decoder(msgspec.Raw).decode
NO_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def end_of_value(body: bytes, at: int, on_lost: Callable[[int], None] = lambda _: None) -> int | None:
    """Where the JSON value that begins at `at` ends; None if none does. Raises RecursionError.

    Only a value that the window cuts is looked for in a larger one: what is malformed costs one window. `on_lost` gets
    the bytes of the last window if there is no end.
    """
    if body[at] not in b'{["':
        found = _SCALAR.match(body, at)
        return found.end() if found is not None and _is_json(found[0]) else None
    window = WINDOW_BYTES
    while True:
        piece = body[at : at + window]
        try:
            _walk(piece)
        except msgspec.MsgspecError as error:
            what = str(error)
            trailing = _TRAILING.search(what)
            if trailing is not None:
                return at + int(trailing[1]) - 1  # it names the byte behind the first that trails
            if at + window >= len(body) or not _may_be_cut(what, window):
                on_lost(len(piece))
                return None
        except RecursionError:
            on_lost(len(piece))
            raise
        else:
            return at + len(piece)
        window *= WINDOW_GROWTH


def _may_be_cut(what: str, window: int) -> bool:
    """Whether more bytes may complete a value of which msgspec says this."""
    place = _PLACE.search(what)
    return place is None or int(place[1]) > window - CUT_BYTES_MAX


def _is_json(piece: bytes) -> bool:
    try:
        _walk(piece)
    except NO_JSON:
        return False
    return True
