"""A server for every SDK. It does not parse their protocols; it finds the events' markers in a body.

An event is stored if its body is answered with success, or if the answer is cut on purpose.
"""

import gzip
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

# A marker, and the eventId of Sluice's own protocol: Sluice stores an id once.
MARKER: Final = re.compile(rb"evt-[a-z]+-[0-9]+-x")
EVENT: Final = re.compile(rb'"eventId":"([^"]+)"[^\n]*?(evt-[a-z]+-[0-9]+-x)')
ANSWERS: Final = {"/api/logs": (202, b'{"accepted":0}'), "/v1/logs": (200, b"")}  # others: 200 and an object


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to a request. `is_cut`: its events are stored, and the connection ends without an answer."""

    status: int = 200
    retry_after_seconds: int | None = None
    is_cut: bool = False
    delay_seconds: float = 0.0


Rule = Callable[[float, int], Reply]  # from the seconds since the start and the number of earlier requests


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Ignore that a client ended with its connection open."""


class Server:
    """Serves until `stop`."""

    def __init__(self, rule: Rule, port: int) -> None:
        self.stored: Counter[str] = Counter()
        self._ids: set[bytes] = set()
        self._lock = threading.Lock()
        self._requests = 0
        started = time.monotonic()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self._body()
                with server._lock:
                    number, server._requests = server._requests, server._requests + 1
                reply = rule(time.monotonic() - started, number)
                time.sleep(reply.delay_seconds)
                if reply.status == 200 or reply.is_cut:
                    server._store(body)
                if reply.is_cut:
                    self.close_connection = True
                    return
                status, text = ANSWERS.get(self.path.partition("?")[0], (200, b"{}"))
                if reply.status != 200:
                    status, text = reply.status, b"{}"
                self.send_response(status)
                if reply.retry_after_seconds is not None:
                    self.send_header("Retry-After", str(reply.retry_after_seconds))
                self.send_header("Content-Type", self.headers.get("Content-Type", "application/json"))
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _QuietServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _store(self, body: bytes) -> None:
        with self._lock:
            found = EVENT.findall(body)
            if not found:
                self.stored.update(one.decode() for one in MARKER.findall(body))
            for identity, marker in found:
                if identity not in self._ids:
                    self._ids.add(identity)
                    self.stored[marker.decode()] += 1

    def stop(self) -> None:
        """End, and close the port."""
        self._server.shutdown()
        self._server.server_close()
