"""A small token endpoint (RFC 6749, client credentials), with unsigned JWTs, as a Kafka for tests takes them."""

import base64
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus

from stack.servers import LOOPBACK, free_port

SCOPE = "kafka"
CLIENT_ID, CLIENT_SECRET = "sluice:client", "s3cret;@%:/#+ ü"


def unsigned_token(*, subject: str = "sluice", scope: str = SCOPE, seconds: float = 3600) -> str:
    """A JWT with `alg: none`."""
    now = time.time()
    claims = {"sub": subject, "scope": scope, "iat": now - 1, "exp": now + seconds}
    parts = ({"alg": "none"}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


class TokenServer:
    """Gives tokens to one client. It can be stopped and started again at its port."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.port = free_port()
        self.scheme = "http" if context is None else "https"
        self.seconds: float = 3600  # of a token's life
        self.answer: tuple[int, bytes] | None = None  # in place of its own
        self.scope: str | None = None  # of its tokens; None: the requested one
        self.forms: list[dict[str, str]] = []  # of the requests
        self.given: list[str] = []
        self.hold: threading.Event | None = None  # requests wait for it
        self._context = context
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://{LOOPBACK}:{self.port}/oauth2/token"

    def start(self) -> "TokenServer":
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                status, body = endpoint.respond(self.headers["Authorization"], form)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing: it would be on the test's output."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """Nothing: a client that does not trust the certificate ends the handshake."""

        self._server = Server((LOOPBACK, self.port), Handler)
        if self._context is not None:
            self._server.socket = self._context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def respond(self, login: str | None, form: dict[str, list[str]]) -> tuple[int, bytes]:
        """The status and the body for a request."""
        if self.hold is not None:
            self.hold.wait(60)
        self.forms.append({name: values[0] for name, values in form.items()})
        if self.answer is not None:
            return self.answer
        given = base64.b64decode((login or "").removeprefix("Basic ")).decode().split(":")
        if [unquote_plus(part) for part in given] != [CLIENT_ID, CLIENT_SECRET]:
            # An endpoint that repeats what it got: no message may show that
            words = f"no client {login}, {given}, {[unquote_plus(part) for part in given]}"
            return 401, json.dumps({"error": "invalid_client", "error_description": words}).encode()
        scope = self.scope if self.scope is not None else self.forms[-1].get("scope", "")
        self.given.append(unsigned_token(scope=scope, seconds=self.seconds))
        answer = {"access_token": self.given[-1], "token_type": "Bearer", "expires_in": self.seconds}
        return 200, json.dumps(answer).encode()
