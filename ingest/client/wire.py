"""The client's side of the HTTP contract: one persistent connection, and answers that show what to do next."""

import gzip
import http.client
import json
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

PATH: Final = "/api/logs"
MESSAGE_CHARS_MAX: Final = 300  # of the message of a server, or of a proxy in between
RETRY_AFTER_SECONDS_MAX: Final = 3600.0


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

    def reasons(self, count: int) -> dict[int, str]:
        """Reasons for the rejection of events of a batch of `count`, by index; empty if the answer names no events."""
        found: dict[int, str] = {}
        for problem in self.error.get("errors") or ():
            index, field = problem.get("index"), problem.get("field")
            if isinstance(index, int) and 0 <= index < count:
                reason = f"{field} {problem.get('reason')}" if field else f"{problem.get('reason')}"
                found[index] = f"{found[index]}; {reason}" if index in found else reason
        line = self.error.get("line")
        if self.status == 400 and isinstance(line, int) and 1 <= line <= count:
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


class Endpoint:
    """POST /api/logs of one server, over one connection. A broken connection is replaced."""

    def __init__(self, base_url: str, *, gzipped: bool, timeout_seconds: float) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"INGEST_URL={base_url!r} is not an http:// or https:// address")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout_seconds)
        path = parts.path.rstrip("/")
        self._path = path if path.endswith(PATH) else path + PATH
        self._headers = {"Content-Type": "application/x-ndjson"} | ({"Content-Encoding": "gzip"} if gzipped else {})
        self._gzipped = gzipped
        self.url = f"{parts.scheme}://{parts.netloc}{self._path}"

    def post(self, body: bytes) -> Response:
        """Send one body. Raises NotSentError, NoResponseError."""
        if self._gzipped:
            body = gzip.compress(body, compresslevel=6, mtime=0)
        connection = self._connection
        if connection.sock is None:
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                raise NotSentError(f"{self.url}: {error}") from error
        try:
            connection.request("POST", self._path, body=body, headers=self._headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise NoResponseError(f"{self.url}: {error or type(error).__name__}") from error
        return Response(response.status, _retry_after(response.getheader("Retry-After")), _error_of(text))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After; None if it is missing, or a date, which no Sluice sends."""
    if value is None or not value.isascii() or not value.isdigit():
        return None
    return min(float(value), RETRY_AFTER_SECONDS_MAX)


def _error_of(text: bytes) -> dict[str, Any]:
    try:
        error = json.loads(text)["error"]
    except (ValueError, LookupError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}
