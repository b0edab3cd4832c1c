"""An HTTP server that answers as a test says, and keeps the events that it has accepted."""

import contextlib
import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from checks.testbed.waiting import WAIT_SECONDS_MAX


@dataclass
class Answer:
    """An answer; `error` is the object of the JSON error form. Its events are kept if the status is 202."""

    status: int = 202
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    is_lost: bool = False  # the connection ends instead; the events are kept


def limited(seconds: int) -> Answer:
    """429 with a Retry-After."""
    return Answer(429, {"Retry-After": str(seconds)}, {"code": "rate_limited", "message": "used up"})


Script = Callable[[list[dict[str, Any]]], Answer]


class ScriptedIngest:
    """Answers each body with `script(events)`; accepts everything if there is none."""

    def __init__(self, script: Script | None = None, port: int = 0) -> None:
        self.script: Script = script or (lambda _: Answer())
        self.bodies: list[list[dict[str, Any]]] = []
        self.heads: list[dict[str, str]] = []
        self.kept: list[dict[str, Any]] = []
        self._ended = threading.Event()
        ingest = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                events = [json.loads(line) for line in body.split(b"\n")]
                ingest.heads.append({name.lower(): value for name, value in self.headers.items()})
                ingest.bodies.append(events)
                answer = ingest.script(events)
                if answer.status == 202 or answer.is_lost:
                    ingest.kept += events
                if answer.is_lost:
                    self.close_connection = True
                    return
                document = {"error": answer.error} if answer.error else {"accepted": len(events)}
                text = json.dumps(document).encode()
                self.send_response(answer.status)
                for name, value in {**answer.headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def hang(self, _: list[dict[str, Any]]) -> Answer:
        """A script that answers nothing until the server ends."""
        self._ended.wait(WAIT_SECONDS_MAX)
        return Answer(503)

    @property
    def messages(self) -> Counter[str]:
        """How often each message was accepted."""
        return Counter(event["message"] for event in self.kept)

    def stop(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_SECONDS_MAX)


@contextlib.contextmanager
def scripted_ingest(script: Script | None = None, port: int = 0) -> Iterator[ScriptedIngest]:
    """Such a server until the block ends."""
    ingest = ScriptedIngest(script, port)
    try:
        yield ingest
    finally:
        ingest.stop()
