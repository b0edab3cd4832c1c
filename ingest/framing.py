"""Converts a received body to its bytes: content coding and byte order mark, within a limit."""

import codecs
import zlib
from typing import Final

from ingest.errors import BodyTooLargeError, MalformedBodyError, UnsupportedBodyError
from ingest.grammar import ascii_lower

GZIP_MEMBERS_MAX: Final = 100  # of one stream: each member costs an inflate state and a copy of the data after it
_GZIP_WINDOW: Final = 31  # zlib: the largest window, with a gzip header only


def is_gzip(content_encoding: str | None) -> bool:
    """Whether a Content-Encoding is gzip; False for none. Raises UnsupportedBodyError for any other."""
    if content_encoding is None:
        return False
    match ascii_lower(content_encoding.strip()):
        case "gzip" | "x-gzip":
            return True
        case "" | "identity":
            return False
        case _:
            raise UnsupportedBodyError("the Content-Encoding is not gzip")


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
