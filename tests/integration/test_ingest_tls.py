"""HTTPS at ingest: real processes, real certificates, one that changes while clients send."""

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from checks.testbed.processes import ROOT, Program, ingest
from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from pipeline.settings import Settings
from stack.config import environ_with
from stack.servers import free_port
from support.certificates import Authority, openssl_problem
from support.running_ingest import SAMPLE

CONNECTIONS_MAX = 20
PASSWORD = "correct horse battery"


@dataclass
class Secured:
    """An ingest process with a certificate, and the authority that issued it."""

    authority: Authority
    cert: Path
    key: Path
    settings: Settings
    program: Program

    def use(self, name: str) -> None:
        """Put a certificate of this name where ingest looks: the key first, as a tool that renews it may."""
        issued = self.authority.issue(name, "IP:127.0.0.1")
        shutil.copyfile(issued.key, self.key)
        shutil.copyfile(issued.certificate, self.cert)

    def context(self) -> ssl.SSLContext:
        """What a careful client uses."""
        return ssl.create_default_context(cafile=str(self.authority.ca))

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "127.0.0.1", self.settings.ingest_port, timeout=WAIT_SECONDS_MAX, context=self.context()
        )

    def get(self, path: str) -> tuple[int, bytes]:
        connection = self.connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def name(self, port: int | None = None) -> str:
        """The name in the certificate that a new connection gets."""
        plain = socket.create_connection(("127.0.0.1", port or self.settings.ingest_port), timeout=WAIT_SECONDS_MAX)
        with self.context().wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            found: Any = connection.getpeercert()
        return str(dict(one[0] for one in found["subject"])["commonName"])


@pytest.fixture
def secured(settings: Settings, tmp_path: Path, missing: Callable[[str], None]) -> Iterator[Secured]:
    problem = openssl_problem()
    if problem is not None:
        missing(problem)
    authority = Authority(tmp_path / "authority")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    settings = replace(
        settings, ingest_tls_cert=str(cert), ingest_tls_key=str(key), request_seconds_max=5.0,
        ingest_connections_max=CONNECTIONS_MAX, operator_port=free_port(), operator_password=PASSWORD,
    )  # fmt: skip
    program = ingest(settings, tmp_path)
    found = Secured(authority, cert, key, settings, program)
    found.use("first")
    program.start()
    try:
        wait_until(lambda: _is_ready(settings), "ingest is ready")
        yield found
    finally:
        program.stop()


def _is_ready(settings: Settings) -> bool:
    command = [sys.executable, "-m", "ingest.ready"]
    return (
        subprocess.run(command, cwd=ROOT, env=environ_with(settings), capture_output=True, check=False).returncode == 0
    )


def test_events_are_accepted_over_tls_and_refused_without_it(secured: Secured) -> None:
    # Given a client that verifies the certificate, on one connection
    connection = secured.connect()
    for _ in range(3):
        connection.request("POST", "/api/logs", json.dumps(SAMPLE), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())) == (202, {"accepted": 1})
    connection.close()
    # Then a client that trusts other authorities does not connect
    with pytest.raises(ssl.SSLCertVerificationError):
        http.client.HTTPSConnection(
            "127.0.0.1", secured.settings.ingest_port, timeout=WAIT_SECONDS_MAX, context=ssl.create_default_context()
        ).request("GET", "/readyz")
    # And plain HTTP gets no answer
    plain = http.client.HTTPConnection("127.0.0.1", secured.settings.ingest_port, timeout=WAIT_SECONDS_MAX)
    plain.request("GET", "/readyz")
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        plain.getresponse()


def test_the_operators_port_speaks_tls_and_wants_its_password(secured: Secured) -> None:
    connection = http.client.HTTPSConnection(
        "127.0.0.1", secured.settings.operator_port, timeout=WAIT_SECONDS_MAX, context=secured.context()
    )
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {PASSWORD}"}, 200)):
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()


def test_a_new_certificate_is_used_without_a_restart_and_a_broken_one_is_not(secured: Secured) -> None:
    assert secured.name() == "first"
    # Given a connection that is open
    kept = secured.connect()
    kept.request("GET", "/readyz")
    assert kept.getresponse().read()
    # When the certificate is renewed, Then new connections get it, and the open one works on
    secured.use("second")
    wait_until(lambda: secured.name() == "second", "the new certificate is used")
    kept.request("GET", "/readyz")
    assert kept.getresponse().status == 200
    kept.close()
    # When one file is broken, Then the certificate before stays, and one line says why
    secured.cert.write_text("not a certificate\n")
    wait_until(lambda: "is not used" in _log(secured), "it says so")
    assert secured.name() == "second"
    # And it is mended
    secured.use("third")
    wait_until(lambda: secured.name() == "third", "the third certificate is used")
    # And the operators' port has the same
    assert secured.name(secured.settings.operator_port) == "third"
    assert _log(secured).count("is not used") <= 2  # a key that is there before its certificate may be one more


def test_a_handshake_that_never_ends_is_ended(secured: Secured) -> None:
    # Given a client that connects and says nothing
    with socket.create_connection(("127.0.0.1", secured.settings.ingest_port), timeout=WAIT_SECONDS_MAX) as silent:
        # Then the connection is closed by the time limit of requests, and others are served meanwhile
        assert secured.get("/readyz")[0] == 200
        assert silent.recv(1) == b""


def test_a_refused_connection_whose_client_does_not_end_tls_is_ended(secured: Secured) -> None:
    with contextlib.ExitStack() as held:

        def connect() -> ssl.SSLSocket:
            plain = held.enter_context(
                socket.create_connection(("127.0.0.1", secured.settings.ingest_port), WAIT_SECONDS_MAX)
            )
            return held.enter_context(secured.context().wrap_socket(plain, server_hostname="127.0.0.1"))

        # Given as many connections as there may be, and one more
        for _ in range(CONNECTIONS_MAX):
            connect()
        refused = connect()
        assert refused.recv(65536).startswith(b"HTTP/1.1 503 ")
        # When its client does not answer the end of TLS, then it is closed by the time limit of requests
        with contextlib.suppress(ConnectionResetError):
            while socket.socket.recv(refused, 65536):
                pass


def test_files_that_can_not_be_used_end_the_start_with_their_names(
    settings: Settings, tmp_path: Path, missing: Callable[[str], None]
) -> None:
    problem = openssl_problem()
    if problem is not None:
        missing(problem)
    authority = Authority(tmp_path / "authority")
    one, other = authority.issue("one"), authority.issue("other")
    for cert, key, words in (
        (tmp_path / "none.pem", one.key, "No such file"),
        (one.certificate, other.key, "mismatch"),
        (one.certificate, None, f"INGEST_TLS_CERT={one.certificate} can't be used"),
    ):
        wrong = replace(settings, ingest_tls_cert=str(cert), ingest_tls_key="" if key is None else str(key))
        done = subprocess.run(
            [sys.executable, "-m", "ingest"], cwd=ROOT, env=environ_with(wrong), capture_output=True, text=True,
            check=False, timeout=RUN_SECONDS_MAX,
        )  # fmt: skip
        assert done.returncode == 2
        assert words in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def _log(secured: Secured) -> str:
    return secured.program.log_path.read_text(encoding="utf-8")
