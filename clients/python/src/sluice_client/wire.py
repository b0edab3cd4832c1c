"""The client's side of the HTTP contract: one persistent connection, and answers that show what to do next."""

import contextlib
import email.utils
import gzip
import http.client
import json
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from sluice_client.clock import monotonic

VERSION: Final = "0.2.0"  # of this package; pyproject.toml has it too
PATH: Final = "/api/logs"
MESSAGE_CHARS_MAX: Final = 300  # of the message of a server, or of a proxy in between
RETRY_AFTER_SECONDS_MAX: Final = 3600.0  # a longer one is more likely a mistake than a plan
IDLE_SECONDS_MAX: Final = 4.0  # an older connection may be closed already: a new one costs less than an unknown outcome
ANSWER_BYTES_MAX: Final = 1 << 20  # of an answer that is read


class NotSentError(Exception):
    """The server could not be reached: nothing was sent."""


class NoResponseError(Exception):
    """The connection ended while the request was sent, or after that: the outcome is unknown."""


@dataclass(frozen=True, slots=True)
class Response:
    """The server's answer. `error` is the object of the JSON error form; empty if the body has another form."""

    status: int
    retry_after_seconds: float | None
    error: dict[str, Any]

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.error.get("code", ""))

    @property
    def message(self) -> str:
        """The error's message."""
        return str(self.error.get("message", http.client.responses.get(self.status, "")))[:MESSAGE_CHARS_MAX]

    @property
    def is_limited_by_level(self) -> bool:
        """Whether a body of a higher level would have been admitted."""
        return self.status == 429 and self.error.get("limitedBy") == "level"

    def reasons(self, count: int) -> dict[int, str]:
        """Reasons for the rejection of events of a batch of `count`, by index; empty if the answer names no events."""
        found: dict[int, str] = {}
        problems = self.error.get("errors")
        for problem in problems if isinstance(problems, list) else ():
            if not isinstance(problem, dict):
                continue
            index, field = problem.get("index"), problem.get("field")
            if type(index) is int and 0 <= index < count:
                reason = f"{field} {problem.get('reason')}" if field else f"{problem.get('reason')}"
                found[index] = (f"{found[index]}; {reason}" if index in found else reason)[:MESSAGE_CHARS_MAX]
        line = self.error.get("line")
        if self.status == 400 and type(line) is int and 1 <= line <= count:
            found[line - 1] = self.message
        return found

    def unconfirmed(self, count: int) -> list[int] | None:
        """Indices of the events of a batch of `count` that may not be stored; None if the answer does not say it.

        All others of the batch are stored.
        """
        indices = self.error.get("unconfirmed")
        if not isinstance(indices, list) or not all(type(one) is int and 0 <= one < count for one in indices):
            return None
        return indices or None

    def limit(self, unit: str) -> int | None:
        """The limit of a body in this unit (`bytes` or `events`) that a 413 names; None if it names none."""
        limit = self.error.get("limit")
        return limit if self.error.get("unit") == unit and type(limit) is int and limit > 0 else None


class Endpoint:
    """POST /api/logs of one server, over one connection. A broken connection is replaced."""

    def __init__(
        self,
        base_url: str,
        *,
        gzipped: bool,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`timeout_seconds` limits each step: to connect, to send, to wait for an answer. Raises ValueError."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is not an http:// or https:// address")
        path = parts.path.rstrip("/")
        self._path = path if path.endswith(PATH) else path + PATH
        self._headers = {
            "User-Agent": f"sluice-client/{VERSION}",
            **(headers or {}),
            "Content-Type": "application/x-ndjson",
            **({"Content-Encoding": "gzip"} if gzipped else {}),
        }
        port = parts.port or (
            443 if parts.scheme == "https" else 80
        )  # without it, the end of ::1 would be taken for one
        _check_request(parts.hostname, port, self._path, self._headers)
        self.tls = ssl.create_default_context() if tls is None and parts.scheme == "https" else tls
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                parts.hostname, port, timeout=timeout_seconds, context=self.tls
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout_seconds)
        self._gzipped = gzipped
        self._used_at = 0.0
        netloc = parts.netloc.rpartition("@")[2]  # without a password
        self.url = f"{parts.scheme}://{netloc}{self._path}"

    def post(self, body: bytes) -> Response:
        """Send one body. Raises NotSentError, NoResponseError."""
        if self._gzipped:
            body = gzip.compress(body, compresslevel=6, mtime=0)
        connection = self._connection
        if monotonic() - self._used_at > IDLE_SECONDS_MAX:
            connection.close()
        if connection.sock is None:
            try:
                connection.connect()
            except (OSError, ValueError) as error:
                connection.close()
                raise NotSentError(f"{self.url}: {error}") from error
        try:
            # A server may refuse a body before it has read it, and close the connection: its answer is there then.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", self._path, body=body, headers=self._headers)
            response = connection.getresponse()
            text = response.read(ANSWER_BYTES_MAX)
            if not response.isclosed():
                connection.close()  # the rest of a long answer
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise NoResponseError(f"{self.url}: {error or type(error).__name__}") from error
        self._used_at = monotonic()
        retry_after = _retry_after(response.getheader("Retry-After"), response.getheader("Date"))
        return Response(response.status, retry_after, _error_of(text))

    def abort(self) -> None:
        """Let a `post` in another thread fail now."""
        connected = self._connection.sock
        if isinstance(connected, socket.socket):
            with contextlib.suppress(OSError):
                # Not the method of an SSL socket: that takes its state away from the thread that reads.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def leave_to_parent(self) -> None:
        """In a forked child: close this process' descriptor of the connection, and nothing else.

        Another thread of the parent may have been reading an answer. Its buffer is locked here for ever.
        """
        connected, self._connection.sock = self._connection.sock, None
        if isinstance(connected, socket.socket) and (descriptor := connected.detach()) >= 0:
            os.close(descriptor)


def _check_request(host: str, port: int, path: str, headers: Mapping[str, str]) -> None:
    """Raise ValueError if no request can go to this host and path, or have these headers."""
    try:
        host.encode("idna")  # so will the resolver
        unsent = http.client.HTTPConnection(host, port)
        unsent.putrequest("POST", path)
    except (http.client.InvalidURL, ValueError) as error:
        raise ValueError(f"{host!r} and {path!r} are not a host and a path: {error}") from None
    for name, value in headers.items():
        try:
            unsent.putheader(name, value)
        except ValueError:  # its message has the value, which may be a key
            raise ValueError(f"the header {name!r} has a character that is not allowed, such as a line feed") from None


def _retry_after(value: str | None, date: str | None) -> float | None:
    """Seconds of a Retry-After; None if it is missing or unreadable.

    A time is compared with the server's own clock, since the clock of this machine may differ.
    """
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value), RETRY_AFTER_SECONDS_MAX)
    try:
        until, now = (email.utils.parsedate_to_datetime(text).timestamp() for text in (value, date or ""))
    except (ValueError, OverflowError):  # OverflowError: a year or a zone of many digits
        return None
    return min(max(until - now, 0.0), RETRY_AFTER_SECONDS_MAX)


def _error_of(text: bytes) -> dict[str, Any]:
    try:
        error = json.loads(text)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}
