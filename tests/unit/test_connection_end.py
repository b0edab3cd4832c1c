"""The end of a connection whose client's certificate has expired, or was verified by former files."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from checks.testbed.wire import Wire, request
from ingest.client_certificate import ClientCertificate
from ingest.http.protocol import IngestProtocol
from support.running_ingest import eventually, running_ingest, sample

ALIVE = request(method="GET", path="/healthz", content_type=None)


@pytest.mark.parametrize(
    ("sent", "status"),
    [(request(json.dumps(sample()).encode()), 202), (ALIVE, 200), (ALIVE.replace(b"Host", b"Ho st"), 400)],
    ids=["events", "others", "no-head"],
)
def test_a_connection_in_the_middle_of_a_head_ends_after_that_request(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, status: int
) -> None:
    connections: list[IngestProtocol] = []
    connected = IngestProtocol.connection_made

    def noted(protocol: IngestProtocol, transport: Any) -> None:
        connections.append(protocol)
        connected(protocol, transport)

    with running_ingest() as edge:
        monkeypatch.setattr(IngestProtocol, "connection_made", noted)
        with Wire(edge.port) as wire:
            wire.send(sent[:9])
            eventually(lambda: bool(connections) and connections[0].recv_buffer == sent[:9], "half a head has come")
            connections[0].loop.call_soon_threadsafe(connections[0].end)
            # When the client always has another half sent
            wire.send(sent[9:] + ALIVE + ALIVE[:9])
            answer = wire.answer()
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert wire.is_closed()


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_a_connection_whose_certificate_has_expired_already_is_not_heard(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., None]
) -> None:
    connected = IngestProtocol.connection_made

    def connected_with_a_request(protocol: IngestProtocol, transport: Any) -> None:
        connected(protocol, transport)
        protocol.data_received(ALIVE)

    monkeypatch.setattr(uvloop, "run", run)
    with running_ingest() as edge:
        monkeypatch.setattr(IngestProtocol, "connection_made", connected_with_a_request)
        monkeypatch.setattr("ingest.http.protocol.client_certificate", lambda _: ClientCertificate("shop", 0.0))
        with Wire(edge.port) as wire:
            assert wire.is_closed()


def test_a_live_stream_ends_with_its_connection_s_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[IngestProtocol] = []
    connected = IngestProtocol.connection_made

    def noted(protocol: IngestProtocol, transport: Any) -> None:
        connections.append(protocol)
        connected(protocol, transport)

    with running_ingest() as edge:
        monkeypatch.setattr(IngestProtocol, "connection_made", noted)
        with Wire(edge.port) as wire:
            wire.send(request(method="GET", path="/events", content_type=None))
            assert wire.socket.recv(65536).startswith(b"HTTP/1.1 200 ")
            connections[0].loop.call_soon_threadsafe(connections[0].end)
            # The stream has a message a second, and the socket's time-out bounds each wait.
            messages = 0
            while wire.socket.recv(65536):
                messages += 1
                assert messages < 30, "the stream goes on"
