"""Converts a received body to its bytes: content coding and byte order mark, within a limit."""

import codecs
import zlib
from collections.abc import Generator
from functools import partial
from typing import Final

import zstandard

from ingest.errors import BodyTooLargeError, MalformedBodyError, UnsupportedBodyError
from ingest.grammar import ascii_lower
from ingest.held_bodies import HeldBytes
from ingest.types import Inflate

GZIP_MEMBERS_MAX: Final = 100  # of one stream: each member costs an inflate state and a copy of the data after it
_GZIP_WINDOW: Final = 31  # zlib: the largest window, with a gzip header only
_GZIP_OR_ZLIB_WINDOW: Final = 47  # zlib: the same, with either header
_RAW_WINDOW: Final = -15  # zlib: the same, without a header
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZLIB_FIRST_BYTE: Final = 0x78  # of all that is in use: deflate with a window of 32 KiB
_PROBE_BYTES: Final = 512  # of a body, to find out whether it is zlib
_ZSTD_WINDOW_MAX: Final = 8 << 20  # what RFC 8878 recommends that every decoder supports
# The library does not limit what it inflates at once. Four bytes may stand for 128 KiB: so much is 8 MiB at most.
_ZSTD_INPUT_BYTES: Final = 256
_PIECE_BYTES: Final = 256 * 1024


def declared_coding(content_encoding: str | None, bytes_max: int) -> Inflate | None:
    """Inflate what a Content-Encoding names: gzip; None for no coding. Raises UnsupportedBodyError for any other."""
    if content_encoding is None:
        return None
    match ascii_lower(content_encoding.strip()):
        case "gzip" | "x-gzip":
            return partial(_inflate_held, bytes_max)
        case "" | "identity":
            return None
        case _:
            raise UnsupportedBodyError("the Content-Encoding is not gzip")


async def _inflate_held(bytes_max: int, data: bytes, held: HeldBytes) -> bytes:
    """Inflate a body. Raises OverloadedError if all bodies together have too many bytes, as `inflate` does others."""
    body = inflate(data, bytes_max)
    held.take(len(body))
    return body


def without_mark(body: bytes) -> bytes:
    """Replace a byte order mark at the start of a body with blanks, so that byte positions stay the same."""
    return b"   " + body[3:] if body.startswith(codecs.BOM_UTF8) else body


def inflate(data: bytes, bytes_max: int) -> bytes:
    """Inflate a gzip stream of one or several members to at most `bytes_max` bytes.

    The limit bounds memory and time, whatever the stream claims. Raises BodyTooLargeError, MalformedBodyError.
    """
    parts: list[bytes] = []
    left = bytes_max
    for _ in range(GZIP_MEMBERS_MAX):
        inflater = zlib.decompressobj(_GZIP_WINDOW)
        try:
            part = inflater.decompress(data, left + 1)
        except zlib.error as error:
            raise MalformedBodyError(f"the body is not gzip: {error}") from error
        left -= len(part)
        if left < 0:
            raise BodyTooLargeError(bytes_max, "bytes")
        if not inflater.eof:
            raise MalformedBodyError("the gzip stream is cut off")
        parts.append(part)
        data = inflater.unused_data.lstrip(b"\0")  # gzip pads with zeros
        if not data:
            return b"".join(parts)
    raise MalformedBodyError(f"the gzip stream has more than {GZIP_MEMBERS_MAX} members")


def found_coding(data: bytes, *, declared: str = "") -> str | None:
    """The content coding of a body by its first bytes: `gzip`, `zstd`, `zlib`, `deflate`, or None.

    Clients name other codings than they use: GELF libraries say `gzip,deflate` and send zlib, and others name none. The
    first bytes of gzip and zstd begin no text. Those of zlib may, so the bytes behind them must be zlib too, unless a
    coding is `declared`. `deflate` has no header. It is only found if it is declared, since almost all bytes begin like
    it: `inflate_in_steps` finds out whether it is that.
    """
    if data.startswith(_GZIP_MAGIC):
        return "gzip"
    if data.startswith(_ZSTD_MAGIC):
        return "zstd"
    if len(data) >= 2 and data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0:
        if declared or (data[0] == _ZLIB_FIRST_BYTE and _begins_as_zlib(data)):
            return "zlib"
    elif "deflate" in declared:
        return "deflate"
    return None


def _begins_as_zlib(data: bytes) -> bool:
    """Whether a body that begins like zlib goes on like it; a short one must be zlib as a whole."""
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(data[:_PROBE_BYTES])  # half a megabyte at most
    except zlib.error:
        return False
    return inflater.eof or len(data) > _PROBE_BYTES


def inflate_in_steps(data: bytes, coding: str, bytes_max: int, held: HeldBytes) -> Generator[None, None, bytes]:
    """Inflate a body of one of the codings of `found_coding` in steps of some hundred kilobytes.

    What was declared as `deflate` and is none stays as it is. `held` counts the bytes. Raises BodyTooLargeError,
    MalformedBodyError, OverloadedError.
    """
    if coding == "zstd":
        pieces = _zstd_pieces(data)
    else:
        pieces = _zlib_pieces(data, _RAW_WINDOW if coding == "deflate" else _GZIP_OR_ZLIB_WINDOW)
    parts: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            size += len(piece)
            if size > bytes_max:
                raise BodyTooLargeError(bytes_max, "bytes")
            held.take(len(piece))
            parts.append(piece)
            yield
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        if coding == "deflate":
            return data
        raise MalformedBodyError(f"the body is not {coding}: {error}") from error
    return b"".join(parts)


def _zlib_pieces(data: bytes, window: int) -> Generator[bytes]:
    """The content of a zlib stream, or of a gzip stream with one or several members. Raises zlib.error, EOFError."""
    for _ in range(GZIP_MEMBERS_MAX):
        inflater = zlib.decompressobj(window)
        piece = inflater.decompress(data, _PIECE_BYTES)
        while piece or inflater.unconsumed_tail:
            yield piece
            piece = inflater.decompress(inflater.unconsumed_tail, _PIECE_BYTES)
        if not inflater.eof:
            raise EOFError("it is cut off")
        data = inflater.unused_data.lstrip(b"\0")  # gzip pads with zeros
        if not data:
            return
        if window == _RAW_WINDOW:
            raise EOFError("it goes on after its end")
    raise EOFError(f"it has more than {GZIP_MEMBERS_MAX} members")


def _zstd_pieces(data: bytes) -> Generator[bytes]:
    """The content of one or several zstd frames. Raises ZstdError, EOFError."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
    for _ in range(GZIP_MEMBERS_MAX):
        inflater = decompressor.decompressobj()
        at = 0
        while at < len(data) and not inflater.eof:
            yield inflater.decompress(data[at : at + _ZSTD_INPUT_BYTES])
            at += _ZSTD_INPUT_BYTES
        if not inflater.eof:
            raise EOFError("it is cut off")
        data = inflater.unused_data + data[at:]
        if not data:
            return
    raise EOFError(f"it has more than {GZIP_MEMBERS_MAX} frames")
