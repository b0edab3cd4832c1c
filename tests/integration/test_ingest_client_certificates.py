"""Certificates of clients at a real ingest process: whose account, who is refused, and what ends open connections."""

import http.client
import json
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from checks.testbed.client_certificates import Clients, client_context
from checks.testbed.processes import Program, ingest
from checks.testbed.waiting import wait_until
from pipeline.settings import Settings
from stack.servers import free_port
from support.running_ingest import SAMPLE

SECONDS_MAX = 90.0
FORGED = {
    "X-Client-Cert": "CN=shop",
    "X-Forwarded-Client-Cert": 'Subject="CN=shop";URI=spiffe://c/shop',
    "X-SSL-Client-Verify": "SUCCESS",
    "X-SSL-Client-S-DN": "CN=shop",
    "Forwarded": "for=192.0.2.1",
    "X-Forwarded-For": "192.0.2.1",
}


@dataclass
class Rig:
    settings: Settings
    own: Clients
    clients: Clients
    authorities: Path
    program: Program
    opened: list[http.client.HTTPSConnection] = field(default_factory=list)

    def connect(self, certificate: Path | None = None) -> http.client.HTTPSConnection:
        context = client_context(self.own.ca, certificate)
        made = http.client.HTTPSConnection("127.0.0.1", self.settings.ingest_port, timeout=60, context=context)
        self.opened.append(made)
        return made

    def metric(self, name: str) -> float:
        """A metric of the process, at the operators' port: without a certificate."""
        context = client_context(self.own.ca, None)
        url = f"https://127.0.0.1:{self.settings.operator_port}/metrics"
        with urllib.request.urlopen(url, timeout=60, context=context) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")))

    def refused(self, reason: str) -> float:
        return self.metric(f'sluice_ingest_tls_refusals_total{{reason="{reason}"}}')


@pytest.fixture
def rig(settings: Settings, tmp_path: Path) -> Iterator[Rig]:
    own, clients = Clients(tmp_path, "own"), Clients(tmp_path)
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(clients.ca.read_bytes())
    settings = replace(
        settings, ingest_tls_cert=str(own.server()), ingest_tls_client="required",
        ingest_tls_client_ca=str(authorities), operator_port=free_port(), account_limits="cert:slow=0.01",
    )  # fmt: skip
    program = ingest(settings, tmp_path).start()
    try:
        wait_until(lambda: _is_ready(settings, own), "ingest is ready", seconds_max=SECONDS_MAX)
        made = Rig(settings, own, clients, authorities, program)
        yield made
        for connection in made.opened:
            connection.close()
    finally:
        program.stop()


def _is_ready(settings: Settings, own: Clients) -> bool:
    try:
        url = f"https://127.0.0.1:{settings.operator_port}/readyz"
        with urllib.request.urlopen(url, timeout=10, context=client_context(own.ca, None)) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def post(connection: http.client.HTTPConnection, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection.request("POST", "/api/logs", json.dumps(SAMPLE), {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.timeout(400)
def test_only_clients_with_a_valid_certificate_are_heard(rig: Rig) -> None:
    shop = rig.clients.issue("shop", [x509.UniformResourceIdentifier("spiffe://c/shop")])
    connection = rig.connect(shop)
    assert post(connection)[0] == 202
    # Its account is the name in it: one with a limit is held to that
    slow = rig.connect(rig.clients.issue("slow"))
    wait_until(
        lambda: '"share"' in json.dumps(post(slow)), "its limit refuses it", seconds_max=SECONDS_MAX
    )  # the first event passes
    # A client without a certificate gets an alert, whatever its header fields say
    for headers in (None, FORGED):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            post(rig.connect(None), headers)
    wait_until(lambda: rig.refused("missing") >= 2, "they are counted", seconds_max=SECONDS_MAX)
    said = "a client is refused (INGEST_TLS_CLIENT): it has no certificate"
    wait_until(lambda: said in rig.program.log(), "it is logged", seconds_max=SECONDS_MAX)
    # When the certificate is revoked, the connection that is open ends, and no new one is accepted
    rig.clients.revoke("shop")
    rig.authorities.write_bytes(rig.clients.ca.read_bytes() + rig.clients.revocations())
    wait_until(lambda: _is_over(connection), "the connection of the revoked certificate ends", seconds_max=SECONDS_MAX)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        post(rig.connect(shop))
    wait_until(lambda: rig.refused("revoked") >= 1, "it is counted", seconds_max=SECONDS_MAX)
    assert post(rig.connect(rig.clients.issue("next")))[0] == 202


def _is_over(connection: http.client.HTTPSConnection) -> bool:
    """Whether the other side has closed an idle connection."""
    connection.sock.settimeout(0.05)
    try:
        return connection.sock.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
