"""The proxy of Compose, as a real HAProxy with the shipped configuration: how it finds ingest, what it says of clients.

A name server of the test gives the addresses of `ingest`, as Docker's does. In place of ingest, servers that tell what
they were sent.
"""

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from checks.testbed.processes import ROOT
from checks.testbed.waiting import WAIT_SECONDS_MAX, eventually
from stack.servers import free_port
from support.certificates import Authority

CONFIGURATION = ROOT / "deploy" / "compose" / "haproxy.cfg"


class NameServer:
    """Answers every question for an address with `addresses`, over UDP."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                question, asker = self._socket.recvfrom(512)
            except OSError:
                return
            if not question:
                return
            end = question.index(b"\0", 12) + 5
            wanted = struct.unpack("!H", question[end - 4 : end - 2])[0]
            found = self.addresses if wanted == 1 else []  # A, and no AAAA
            head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
            records = [b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(one) for one in found]
            with contextlib.suppress(OSError):
                self._socket.sendto(head + question[12:end] + b"".join(records), asker)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()


class Told(BaseHTTPRequestHandler):
    """Says which server it is, and what it was sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer({"body": body.decode()})

    def _answer(self, more: dict[str, str]) -> None:
        host, port = self.connection.getsockname()
        forwarded = self.headers.get_all("X-Forwarded-For", [])
        told = {"host": host, "port": port, "path": self.path, "forwarded": forwarded, **more}
        text = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


class Proxy:
    def __init__(self, folder: Path, names: NameServer, **environ: str) -> None:
        self.ports = {name: free_port() for name in ("events", "operators", "https", "ingest", "ingest-operators")}
        text = CONFIGURATION.read_text()
        for shipped, here in (
            ("127.0.0.11:53", f"127.0.0.1:{names.port}"),
            ("bind :8080", f"bind 127.0.0.1:{self.ports['events']}"),
            ("bind :8081", f"bind 127.0.0.1:{self.ports['operators']}"),
            ("bind :8443", f"bind 127.0.0.1:{self.ports['https']}"),
            ("ingest:8080", f"ingest:{self.ports['ingest']}"),
            ("ingest:8081", f"ingest:{self.ports['ingest-operators']}"),
        ):
            assert text.count(shipped) == 1, shipped
            text = text.replace(shipped, here)
        self.path = folder / "haproxy.cfg"
        self.path.write_text(text)
        self.log = folder / "haproxy.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["haproxy", "-db", "-f", str(self.path)], stdout=log, stderr=log, env={"PATH": "/usr/sbin", **environ}
            )

    def ask(
        self, which: str = "events", method: str = "GET", body: str | None = None, tls: Path | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """(status, answer, headers) of one request on a connection of its own."""
        connection: http.client.HTTPConnection
        if tls is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.ports[which], timeout=WAIT_SECONDS_MAX)
        else:
            context = ssl.create_default_context(cafile=str(tls))
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.ports[which], timeout=WAIT_SECONDS_MAX, context=context
            )
        with contextlib.closing(connection):
            connection.request(method, "/api/logs", body, {"X-Forwarded-For": "198.51.100.7"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), answer.headers

    def hosts(self) -> set[str]:
        """The servers that answer some requests in a row."""
        answers = [self.ask() for _ in range(8)]
        return {told["host"] for status, told, _ in answers if status == 200}

    def wait(self, condition: Callable[[], bool]) -> None:
        try:
            eventually(condition, "the proxy's servers", passing=(OSError, http.client.HTTPException))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()}") from None

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_SECONDS_MAX)


@pytest.fixture
def names() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.stop()


@pytest.fixture
def serve() -> Iterator[Callable[[str, int], ThreadingHTTPServer]]:
    started: list[ThreadingHTTPServer] = []

    def start(host: str, port: int) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer((host, port), Told)
        started.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_ingest_may_be_none_one_or_several_while_it_runs(
    tmp_path: Path,
    names: NameServer,
    serve: Callable[[str, int], ThreadingHTTPServer],
    missing: Callable[[str], None],
) -> None:
    if shutil.which("haproxy", path="/usr/sbin:/usr/bin") is None:
        missing("there is no haproxy (Debian: haproxy)")
    certificate = Authority(tmp_path).issue("proxy")
    proxy = Proxy(tmp_path, names, TLS_CERTIFICATE=str(certificate.both))
    try:
        # Given no ingest: a 503 that says so, and when to come back
        proxy.wait(lambda: _listens(proxy))
        status, told, headers = proxy.ask()
        assert (status, told["status"], headers["Retry-After"]) == (503, 503, "5")
        assert headers["Content-Type"] == "application/problem+json"
        # When there is one: it gets everything, with the address of the client as the last one that is said
        first = serve("127.0.0.2", proxy.ports["ingest"])
        names.addresses = ["127.0.0.2"]
        proxy.wait(lambda: proxy.hosts() == {"127.0.0.2"})
        status, told, _ = proxy.ask(method="POST", body="an event")
        assert (status, told["body"]) == (200, "an event")
        assert told["forwarded"][-1].split(",")[-1].strip() == "127.0.0.1"
        # and the same with HTTPS
        status, told, _ = proxy.ask("https", method="POST", body="an event", tls=tmp_path / "ca.pem")
        assert (status, told["body"]) == (200, "an event")
        # What operators see has its own port on the way too
        serve("127.0.0.2", proxy.ports["ingest-operators"])
        proxy.wait(lambda: proxy.ask("operators")[0] == 200)
        assert proxy.ask("operators")[1]["port"] == proxy.ports["ingest-operators"]
        # When it is scaled, both get requests
        serve("127.0.0.3", proxy.ports["ingest"])
        names.addresses = ["127.0.0.2", "127.0.0.3"]
        proxy.wait(lambda: proxy.hosts() == {"127.0.0.2", "127.0.0.3"})
        # When one dies, not one request fails: a refused connection goes to the other
        first.shutdown()
        first.server_close()
        answers = [proxy.ask(method="POST", body="an event") for _ in range(40)]
        assert {status for status, _, _ in answers} == {200}
        assert {told["host"] for _, told, _ in answers} == {"127.0.0.3"}
    finally:
        proxy.stop()


def _listens(proxy: Proxy) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", proxy.ports["events"]), 1):
        return True
    return False


def test_without_a_certificate_there_is_no_https(tmp_path: Path, missing: Callable[[str], None]) -> None:
    if shutil.which("haproxy", path="/usr/sbin:/usr/bin") is None:
        missing("there is no haproxy (Debian: haproxy)")
    # The file as it is, without a variable
    said = subprocess.run(
        ["haproxy", "-c", "-f", str(CONFIGURATION)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/sbin"},
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "warning" not in (said.stdout + said.stderr).lower()
    assert len(re.findall(r"^ *bind ", CONFIGURATION.read_text(), re.MULTILINE)) == 3
