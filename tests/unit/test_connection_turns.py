"""What a client sends without waiting for answers: its connection takes turns with all others."""

from collections.abc import Awaitable, Callable
from itertools import groupby
from typing import Any

import pytest

from checks.testbed.wire import Wire, request
from ingest.http.protocol import IngestProtocol
from ingest.http.request import CHUNKS_AT_ONCE, IngestHttp
from support.running_ingest import eventually, running_ingest

ALIVE = request(method="GET", path="/healthz", content_type=None)
UNKNOWN = request(method="GET", path="/nothing", content_type=None)
NO_EVENTS = request(b"")
TIMES = 30
CHUNKS = 3 * CHUNKS_AT_ONCE
CHUNKED = b"POST /%b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * CHUNKS + b"0\r\n\r\n"


@pytest.mark.parametrize("sent", [ALIVE, UNKNOWN, NO_EVENTS], ids=["others", "errors", "events"])
def test_many_requests_at_once_on_one_connection_do_not_delay_another(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    # Then neither waits for more than a request of the other
    assert _longest_turn(monkeypatch, IngestProtocol, "_handle", sent * TIMES, 2 * TIMES) <= 2


@pytest.mark.parametrize("path", [b"api/logs/lines", b"nothing"], ids=["read", "discarded"])
def test_many_chunks_at_once_on_one_connection_do_not_delay_another(
    monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    longest = _longest_turn(monkeypatch, IngestHttp, "_next_chunk", CHUNKED % path, 2 * (CHUNKS + 1))
    assert longest <= CHUNKS_AT_ONCE + 1


def test_a_first_request_that_is_there_at_once_is_stored_though_its_client_has_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As over TLS, where the last message of the handshake brings the request and the end
    connected = IngestProtocol.connection_made

    def all_at_once(protocol: IngestProtocol, transport: Any) -> None:
        connected(protocol, transport)
        protocol.data_received(request(b'{"short_message":"a"}', path="/gelf"))
        protocol.loop.call_soon(protocol.connection_lost, None)

    with running_ingest() as edge:
        monkeypatch.setattr(IngestProtocol, "connection_made", all_at_once)
        with Wire(edge.port):
            eventually(lambda: len(edge.records()) == 1, "the message is stored")
        monkeypatch.undo()


def _longest_turn(monkeypatch: pytest.MonkeyPatch, of: type, name: str, sent: bytes, calls: int) -> int:
    """The most calls of a method of one connection before one of the other, when both have sent the same at once."""
    connections: list[IngestProtocol] = []
    called: list[object] = []
    connected = IngestProtocol.connection_made
    method: Callable[..., Awaitable[Any]] = getattr(of, name)

    def noted(protocol: IngestProtocol, transport: Any) -> None:
        connected(protocol, transport)
        connections.append(protocol)

    async def counted(self: object, *arguments: Any) -> Any:
        called.append(self)
        return await method(self, *arguments)

    def arrive() -> None:
        for protocol in connections:
            protocol.data_received(sent)

    with running_ingest() as edge:
        monkeypatch.setattr(IngestProtocol, "connection_made", noted)
        monkeypatch.setattr(of, name, counted)
        with Wire(edge.port), Wire(edge.port):
            eventually(lambda: len(connections) == 2, "both are connected")
            connections[0].loop.call_soon_threadsafe(arrive)
            eventually(lambda: len(called) == calls, "all is read")
    return max(len(list(turn)) for _, turn in groupby(called))
