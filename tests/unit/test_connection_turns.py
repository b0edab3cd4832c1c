"""Requests that a client sends without waiting for answers: its connection takes turns with all others."""

from itertools import groupby
from typing import Any

import pytest

from checks.testbed.wire import Wire, request
from ingest.http.protocol import IngestProtocol
from support.running_ingest import eventually, running_ingest

ALIVE = request(method="GET", path="/healthz", content_type=None)
UNKNOWN = request(method="GET", path="/nothing", content_type=None)
NO_EVENTS = request(b"")
REQUESTS = 30


@pytest.mark.parametrize("sent", [ALIVE, UNKNOWN, NO_EVENTS], ids=["others", "errors", "events"])
def test_many_requests_at_once_on_one_connection_do_not_delay_another(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    connections: list[IngestProtocol] = []
    handled: list[IngestProtocol] = []
    connected, handle = IngestProtocol.connection_made, IngestProtocol._handle

    def noted(protocol: IngestProtocol, transport: Any) -> None:
        connected(protocol, transport)
        connections.append(protocol)

    async def counted(protocol: IngestProtocol, asked: Any) -> None:
        handled.append(protocol)
        await handle(protocol, asked)

    def arrive() -> None:
        for protocol in connections:
            protocol.data_received(sent * REQUESTS)

    with running_ingest() as edge:
        monkeypatch.setattr(IngestProtocol, "connection_made", noted)
        monkeypatch.setattr(IngestProtocol, "_handle", counted)
        with Wire(edge.port), Wire(edge.port):
            eventually(lambda: len(connections) == 2, "both are connected")
            # When each has sent many requests by the same moment
            connections[0].loop.call_soon_threadsafe(arrive)
            eventually(lambda: len(handled) == 2 * REQUESTS, "all are answered")
    # Then neither waits for more than a request of the other
    assert max(len(list(turn)) for _, turn in groupby(handled)) <= 2
