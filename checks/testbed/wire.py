"""A connection to ingest that sends bytes as they are, and the answer as it came."""

import json
import socket
from dataclasses import dataclass
from typing import Any

from checks.testbed.waiting import WAIT_SECONDS_MAX


@dataclass(frozen=True)
class Response:
    """One HTTP answer. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object in its one shape, which must be the whole body."""
        document = self.json
        assert list(document) == ["error"]
        assert {"code", "message"} <= document["error"].keys()
        assert self.headers["content-type"] == "application/json"
        found: dict[str, Any] = document["error"]
        return found


class Wire:
    """A connection that sends bytes as they are."""

    def __init__(self, port: int, *, seconds_max: float = WAIT_SECONDS_MAX, source: str | None = None) -> None:
        address = None if source is None else (source, 0)
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds_max, source_address=address)
        self._buffer = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_eof(self) -> None:
        """Close the sending side."""
        self.socket.shutdown(socket.SHUT_WR)

    def answer(self, *, has_body: bool = True) -> Response:
        """The next answer; EOFError if the server closed instead."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0")) if has_body else 0
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Response(int(first.split()[1]), headers, body)

    def is_closed(self) -> bool:
        """Whether the server has closed the connection without sending more; waits for it."""
        try:
            return not self._buffer and self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(self._buffer)
        self._buffer += data


def request(
    body: bytes = b"", *, method: str = "POST", path: str = "/api/logs", content_type: str | None = "application/json",
    headers: dict[str, str] | None = None, length: int | None = None,
) -> bytes:  # fmt: skip
    """The bytes of a request; `length` is a Content-Length other than the body's."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    if method == "POST" and not (headers and "Transfer-Encoding" in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def send(port: int, data: bytes, *, has_body: bool = True) -> Response:
    """The answer to one request on a connection of its own."""
    with Wire(port) as wire:
        wire.send(data)
        return wire.answer(has_body=has_body)


def post(port: int, document: Any, **options: Any) -> Response:
    """POST a document as JSON; bytes are sent as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return send(port, request(body, **options))


def get(port: int, path: str) -> Response:
    """GET a path on a connection of its own."""
    return send(port, request(method="GET", path=path, content_type=None))
