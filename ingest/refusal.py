"""Refuses requests before they become objects: whole answers, made in advance, for what would be refused anyway.

While the bucket is empty or the log is away, most of what comes is refused, so a refusal must cost as little as it can.
Only the plainest of requests are answered here, those whose answer does not depend on anything but their head; all
others, and whatever has two readings, take the ordinary way and get the same answer there.
"""

import re
from collections.abc import Sequence
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from sanic.response import HTTPResponse

from ingest import request_id
from ingest.errors import RateLimitedError, UnsupportedBodyError, answer, row_of
from ingest.media import body_kind
from pipeline.errors import SluiceError

if TYPE_CHECKING:
    from ingest.edge import Edge

HEAD_BYTES_MAX: Final = 8192  # request line and headers
REFUSABLE: Final = b"POST /api/logs HTTP/1.1\r\n"  # what a request that is refused here begins with
ANSWERS_MADE: Final = 16  # with a Retry-After each, so that clients refused together do not come back together
ANSWERS_SECONDS_MAX: Final = 0.1  # after which they are made anew: what they tell changes

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_HEAD: Final = re.compile(re.escape(REFUSABLE) + rb"((?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n")
# Fields that say how the request must be read or answered.
_FIELDS: Final = re.compile(
    rb"(?:^|\n)(host|content-length|content-type|x-request-id|connection|content-encoding|transfer-encoding|expect|upgrade)"
    rb":[ \t]*([^\r]*)",
    re.IGNORECASE,
)
_NOT_HERE: Final = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"})
_DIGITS: Final = re.compile(rb"[0-9]{1,15}")
_HOST: Final = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")


class Refuser:
    """Answers for the requests of one process. For the event loop only."""

    def __init__(self, edge: "Edge") -> None:
        self._edge = edge
        self._turn = count()
        self._answers: Sequence[tuple[bytes, bytes]] = ()
        self._made_at = 0.0  # monotonic
        self._made_for_seconds = 0.0  # of waiting
        self._rate_limited: Any = None  # the counter of these answers, looked up once

    def refuse(self, data: bytes) -> tuple[bytes, int] | None:
        """The answer to the request that `data` begins with, and that request's length, body included.

        None where it is not to be refused, or not here. The body need not be there yet; it is within the limits.
        """
        edge = self._edge
        if edge.is_stopping or edge.traces:
            return None
        made = self._answer_now()
        if made is None:
            return None
        read = self._read(data)
        if read is None:
            return None
        (head, body, counter), (name, length) = made, read
        counter.inc()
        return b"%bx-request-id: %b\r\n\r\n%b" % (head, name, body), length

    def _answer_now(self) -> tuple[bytes, bytes, Any] | None:
        """Head and body of the answer that any request gets now, and its counter; None where they are taken."""
        edge = self._edge
        try:
            edge.appender.refuse_if_blocked()
        except SluiceError as error:
            return *_rendered(error), edge.metrics.answers.labels(row_of(error).code)
        wait_seconds = edge.admission.wait_if_empty()
        if wait_seconds <= 0:
            return None
        now = edge.clock.monotonic()
        if now - self._made_at > ANSWERS_SECONDS_MAX or wait_seconds > self._made_for_seconds:
            try:
                edge.admission.refuse_if_empty()
            except RateLimitedError as error:
                self._answers = [_rendered(error) for _ in range(ANSWERS_MADE)]
                self._made_at, self._made_for_seconds = now, wait_seconds
                if self._rate_limited is None:
                    self._rate_limited = edge.metrics.answers.labels(row_of(error).code)
            else:
                return None  # a token has come meanwhile
        head, body = self._answers[next(self._turn) % ANSWERS_MADE]
        return head, body, self._rate_limited

    def _read(self, data: bytes) -> tuple[bytes, int] | None:
        """The name and the whole length of a plain request; None where it is not that plain."""
        match = _HEAD.match(data)
        if match is None or match.end() > HEAD_BYTES_MAX:
            return None
        fields: dict[bytes, bytes] = {}
        for name, value in _FIELDS.findall(match[1]):
            lowered = name.lower()
            if lowered in fields or lowered in _NOT_HERE:
                return None
            fields[lowered] = value.rstrip(b" \t")
        length, kind = fields.get(b"content-length", b""), fields.get(b"content-type")
        if (
            kind is None
            or _HOST.fullmatch(fields.get(b"host", b" ")) is None
            or _DIGITS.fullmatch(length) is None
            or int(length) > self._edge.settings.body_bytes_max
        ):
            return None
        if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        try:
            body_kind(kind.decode())
        except (UnsupportedBodyError, UnicodeDecodeError):
            return None
        given = fields.get(request_id.HEADER.encode())
        ids = self._edge.request_ids
        text = ids.new() if given is None else ids.of(given.decode(errors="replace"))
        return text.encode(), match.end() + int(length)


def _rendered(error: SluiceError) -> tuple[bytes, bytes]:
    """An error's answer on a connection that stays open: its head but for the request's name, and its body."""
    made: HTTPResponse = answer(error)
    body = made.body or b""
    fields = "".join(f"{name}: {value}\r\n" for name, value in made.headers.items())
    head = (
        f"HTTP/1.1 {made.status} {HTTPStatus(made.status).phrase}\r\nconnection: keep-alive\r\n"
        f"content-type: {made.content_type}\r\ncontent-length: {len(body)}\r\n{fields}"
    )
    return head.encode("ascii"), body
