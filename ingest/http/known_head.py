"""Recognises a head that a connection has sent before, so that it need not be read again.

Most clients send the same head with each request of a connection. Only the digits of Content-Length differ, and the
value of X-Request-ID if there is one. To compare a request with such a head takes a tenth of the time of reading it.
"""

from collections.abc import Mapping
from typing import Final

from ingest.grammar import LENGTH_DIGITS_MAX
from ingest.http import request_id
from ingest.http.request_id import CHARS_MAX

BYTES_MAX: Final = 1024  # of a head that a connection keeps; a larger one is read each time

Span = tuple[int, int]  # the first byte, and the one after the last


class KnownHead:
    """A valid head with a Content-Length, with which later ones are compared.

    A request that differs from it in the digits of Content-Length and in a valid X-Request-ID has the same fields: both
    values are checked, and neither can end a line.
    """

    __slots__ = ("_begin", "_begin_bytes", "_end", "_find_until", "_has_id", "_is_id_first", "_middle", "fields")

    def __init__(self, head: bytes, fields: Mapping[str, str], length_at: Span, id_at: Span | None) -> None:
        """`head` ends with its empty line. `id_at` is None if it has no valid X-Request-ID."""
        self.fields = fields  # with the values of this head
        self._has_id = id_at is not None
        self._is_id_first = id_at is not None and id_at < length_at
        first, last = sorted((length_at, length_at if id_at is None else id_at))
        self._begin, self._end = head[: first[0]], head[last[1] :]
        self._middle = self._end if id_at is None else head[first[1] : last[0]]
        self._begin_bytes = len(self._begin)
        self._find_until = self._begin_bytes + max(LENGTH_DIGITS_MAX, CHARS_MAX) + len(self._middle)

    def match(self, data: bytes) -> tuple[int, int, bytes] | None:
        """Compare the head at the start of `data`; None if it is another one.

        Returns where it ends, its Content-Length, and its X-Request-ID: empty if this head has no valid one.
        """
        if not data.startswith(self._begin):
            return None
        at, middle = self._begin_bytes, self._middle
        end = data.find(middle, at, self._find_until)
        if end < 0:
            return None
        length, name = data[at:end], b""
        end += len(middle)
        if self._has_id:
            at = end
            end = data.find(self._end, at, at + CHARS_MAX + len(self._end))
            if end < 0:
                return None
            name = data[at:end]
            end += len(self._end)
            if self._is_id_first:
                length, name = name, length
            if not request_id.is_valid(name):
                return None
        if len(length) > LENGTH_DIGITS_MAX or not length.isdigit():
            return None
        return end, int(length), name
