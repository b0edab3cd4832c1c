"""Limits of connections, of one address and in all, on real sockets: plain, and while TLS begins."""

import contextlib
import errno
import http.client
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from checks.testbed.waiting import WAIT_SECONDS_MAX
from checks.testbed.wire import Wire, request
from ingest.http import tls_listener
from ingest.http.protocol import IngestProtocol
from ingest.http.tls_listener import TlsListener
from stack.servers import free_port
from support.certificates import Authority, Certificate, openssl_problem
from support.running_ingest import RunningIngest, edge_settings, eventually, running_ingest, sample

CONNECTIONS_MAX = 6
PER_ADDRESS_MAX = 2
LOOPBACK, ONE, OTHER = "127.0.0.1", "127.0.0.2", "127.0.0.3"
HEALTH = request(method="GET", path="/healthz", content_type=None)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]) -> Authority:
    problem = openssl_problem()
    if problem is not None:
        missing(problem)
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Certificate:
    return authority.issue("ingest")


@dataclass
class Secured:
    """An ingest with TLS, and sockets of clients that the test forgets."""

    edge: RunningIngest
    ca: Path
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def count(self) -> int:
        return self.edge.service.count_connections()

    @property
    def refusing(self) -> int:
        refusing: int = self.edge.app.ctx.http.connections.refusing
        return refusing

    def refused(self, reason: str) -> float:
        return refusals(self.edge, reason)

    def silent(self, *, source: str = LOOPBACK, port: int | None = None) -> socket.socket:
        """A connection that sends nothing of its handshake."""
        to = (LOOPBACK, port or self.edge.port)
        return self.held.enter_context(socket.create_connection(to, WAIT_SECONDS_MAX, (source, 0)))

    def connect(self, *, source: str = LOOPBACK, port: int | None = None) -> ssl.SSLSocket:
        """A connection after its handshake. Raises OSError."""
        context = ssl.create_default_context(cafile=str(self.ca))
        plain = self.silent(source=source, port=port)
        return self.held.enter_context(context.wrap_socket(plain, server_hostname=LOOPBACK))

    def status(self, *, source: str = LOOPBACK, port: int | None = None) -> tuple[int, str]:
        """The status of a request on a connection of its own, which stays open, and the message of an error."""
        return ask(self.connect(source=source, port=port))

    def leave(self) -> None:
        """Close all sockets of the test, and see that ingest has forgotten them."""
        self.held.close()
        eventually(lambda: (self.count, self.refusing) == (0, 0), "no connection is left")
        assert not self.edge.app.ctx.http.connections.by_address


def refusals(edge: RunningIngest, reason: str) -> float:
    name = "sluice_ingest_connection_refusals_total"
    return edge.service.registry.get_sample_value(name, {"reason": reason}) or 0.0


def ask(connection: socket.socket) -> tuple[int, str]:
    with contextlib.suppress(OSError):  # a connection that is refused may be closed already
        connection.sendall(HEALTH)
    response = http.client.HTTPResponse(connection)
    response.begin()
    document: Any = json.loads(response.read())
    return response.status, document.get("error", {}).get("message", "")


@pytest.fixture
def secured(authority: Authority, issued: Certificate) -> Iterator[Callable[..., Secured]]:
    with contextlib.ExitStack() as stack:

        def start(**changes: Any) -> Secured:
            settings = edge_settings(
                **{"ingest_tls_cert": str(issued.both), "ingest_connections_max": CONNECTIONS_MAX,
                   "request_seconds_max": WAIT_SECONDS_MAX, **changes},
            )  # fmt: skip
            edge = RunningIngest(settings)
            found = Secured(edge, authority.ca)
            stack.callback(edge.stop)
            stack.enter_context(found.held)
            edge.begin()
            eventually(lambda: found.status()[0] == 200, "ingest answers")
            found.leave()
            return found

        yield start


def wait_closed(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


# --- TLS: connections count from the start ----------------------------------------------------------------------------


def test_handshakes_that_do_not_begin_count_and_leave_their_places(secured: Callable[..., Secured]) -> None:
    # Given a client that has opened as many connections as there may be, and sends nothing
    rig = secured(operator_port=free_port())
    for _ in range(CONNECTIONS_MAX):
        rig.silent()
    eventually(lambda: rig.count == CONNECTIONS_MAX, "they count")
    # Then others get an answer that says so, and operators are served
    assert rig.status() == (503, "this process has too many connections")
    assert rig.status(port=rig.edge.operator_port)[0] == 200
    assert (rig.refused("process"), rig.refused("operators")) == (1, 0)
    # When it leaves, then the full number can be open, and one more is refused
    rig.leave()
    assert [rig.status()[0] for _ in range(CONNECTIONS_MAX)] == [200] * CONNECTIONS_MAX
    assert rig.status()[0] == 503
    rig.leave()


def test_the_connections_that_are_told_of_the_limit_are_bounded_too(
    secured: Callable[..., Secured], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_listener, "REFUSED_MAX", 2)
    rig = secured()
    counted = [rig.silent() for _ in range(CONNECTIONS_MAX)]
    eventually(lambda: rig.count == CONNECTIONS_MAX, "they count")
    told = [rig.silent() for _ in range(2)]
    eventually(lambda: rig.refusing == 2, "these would be told")
    # Then further ones are closed at once, and those before them stay
    for _ in range(5):
        assert wait_closed(rig.silent()) == b""
    assert (rig.count, rig.refusing, rig.refused("process")) == (CONNECTIONS_MAX, 2, 7)
    # And a place that becomes free is taken by the next one
    counted.pop().close()
    eventually(lambda: rig.count == CONNECTIONS_MAX - 1, "one has left")
    assert rig.status()[0] == 200
    told.pop().close()
    eventually(lambda: rig.refusing == 1, "one of the others has left")
    assert rig.status()[0] == 503
    rig.leave()


def test_a_handshake_that_comes_byte_by_byte_has_one_time_for_all(secured: Callable[..., Secured]) -> None:
    rig = secured(request_seconds_max=0.5)
    slow = rig.silent()
    hello = client_hello()
    # When a client sends the next byte of its handshake now and then
    with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):  # noqa: PT012 - it takes many
        for at in range(len(hello)):
            slow.sendall(hello[at : at + 1])
            time.sleep(0.05)  # noqa: TID251 - the client's pace; ingest must end it before the last byte
    # Then its time is over before it has sent all of them, and it counts no more
    eventually(lambda: rig.count == 0, "it does not count")
    rig.leave()


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=LOOPBACK)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_a_handshake_in_pieces_and_bytes_that_come_with_it_are_read(secured: Callable[..., Secured]) -> None:
    rig = secured()
    raw = rig.silent()
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(rig.ca))
    client = context.wrap_bio(incoming, outgoing, server_hostname=LOOPBACK)
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            for byte in outgoing.read():
                raw.sendall(bytes([byte]))
            incoming.write(raw.recv(65536))
    # Given the last bytes of the handshake in one piece with a first request that fills several buffers
    client.write(HEALTH + HEALTH[:-2] + b"X-Filling: " + b"x" * 6000 + b"\r\n\r\n" + HEALTH * 3)
    raw.sendall(outgoing.read())
    received = b""
    while received.count(b"HTTP/1.1 200 ") < 5:
        with contextlib.suppress(ssl.SSLWantReadError):
            received += client.read(65536)
            continue
        incoming.write(raw.recv(65536) or pytest.fail(f"closed after {received!r}"))
    assert rig.count == 1
    rig.leave()


def test_a_connection_counts_no_more_however_it_ends(secured: Callable[..., Secured]) -> None:
    rig = secured(ingest_connections_per_address_max=CONNECTIONS_MAX)

    def reset(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def half_hello() -> socket.socket:
        connection = rig.silent()
        connection.sendall(client_hello()[:-10])
        return connection

    def no_answer() -> socket.socket:
        connection = rig.silent()
        connection.sendall(client_hello())
        assert connection.recv(65536)  # the server's part of the handshake
        return connection

    def garbage(connection: socket.socket) -> None:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        wait_closed(connection)

    def half_request() -> socket.socket:
        connection = rig.connect()
        connection.sendall(HEALTH[:-2])
        return connection

    def answered() -> socket.socket:
        connection = rig.connect()
        assert ask(connection)[0] == 200
        return connection

    def no_trust() -> None:
        context = ssl.create_default_context()  # which does not know the authority: the client ends the handshake
        with pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(rig.silent(), server_hostname=LOOPBACK)

    for begin in (rig.silent, half_hello, no_answer, rig.connect, half_request, answered):
        for end in (reset, socket.socket.close, garbage):
            if end is garbage and begin is not rig.silent:
                continue
            connection = begin()
            eventually(lambda: rig.count == 1, "it counts")
            end(connection)
            eventually(lambda: rig.count == 0, f"it has left: {begin} {end}")
    no_trust()
    rig.leave()


def test_handshakes_whose_time_is_up_leave_their_places(secured: Callable[..., Secured]) -> None:
    rig = secured(request_seconds_max=0.3, ingest_connections_per_address_max=CONNECTIONS_MAX)
    for _ in range(3):
        assert wait_closed(rig.silent()) == b""
    eventually(lambda: rig.count == 0, "none counts")
    rig.leave()


def test_a_stop_ends_handshakes_at_once(secured: Callable[..., Secured]) -> None:
    rig = secured(stop_seconds_max=WAIT_SECONDS_MAX, operator_port=free_port())
    waiting = [rig.silent(), rig.silent(port=rig.edge.operator_port)]
    eventually(lambda: rig.count == 1, "it counts")
    # Given a request whose body is awaited, for which the stop waits
    running = rig.connect()
    body = json.dumps(sample()).encode()
    running.sendall(request(body, headers={"Expect": "100-continue"})[: -len(body)])
    assert running.recv(65536).startswith(b"HTTP/1.1 100 ")
    assert rig.count == 2
    rig.edge.begin_stop()
    # Then the handshakes are ended, and the request ends well
    for one in waiting:
        assert wait_closed(one) == b""
    eventually(lambda: rig.count == 1, "it does not count")
    running.sendall(body)
    assert wait_closed(running).startswith(b"HTTP/1.1 202 ")
    rig.edge.join()
    assert rig.count == 0


def test_a_stop_right_after_a_handshake_does_not_cut_the_connection(
    monkeypatch: pytest.MonkeyPatch, secured: Callable[..., Secured]
) -> None:
    # Given a stop in the turn of the event loop in which a handshake ends: a request may have come with it
    listeners: list[TlsListener] = []
    start, close, connection_made = TlsListener.start, TlsListener.close, IngestProtocol.connection_made
    is_stopping = False

    def started(listener: TlsListener) -> None:
        listeners.append(listener)
        start(listener)

    def made(protocol: IngestProtocol, transport: Any) -> None:
        connection_made(protocol, transport)
        if is_stopping:
            close(listeners[0])

    monkeypatch.setattr(TlsListener, "start", started)
    monkeypatch.setattr(TlsListener, "close", lambda _: None)  # once is enough
    monkeypatch.setattr(IngestProtocol, "connection_made", made)
    rig = secured()
    is_stopping = True
    # Then the request is answered
    assert rig.status()[0] == 200
    rig.leave()


def test_ingest_accepts_again_after_it_had_no_files(
    secured: Callable[..., Secured], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a process that may open no more files
    monkeypatch.setattr(tls_listener, "NO_FILE_SECONDS", 0.05)
    rig = secured()
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3 + [
        ConnectionAbortedError(),
        OSError(errno.EPROTO, ""),
    ]
    accept = socket.socket.accept

    def accept_later(listener: socket.socket) -> Any:
        if failures:
            raise failures.pop(0)
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", accept_later)
    # Then it accepts those that waited, and says so once
    assert rig.status()[0] == 200
    assert not failures
    assert [line.getMessage() for line in caplog.records if "can't be accepted" in line.getMessage()] == [
        "connections can't be accepted now: [Errno 24] Too many open files"
    ]
    rig.leave()


# --- One address ------------------------------------------------------------------------------------------------------


def test_one_address_has_a_limit_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with running_ingest(ingest_connections_per_address_max=PER_ADDRESS_MAX) as edge, contextlib.ExitStack() as held:

        def open_one(source: str) -> Wire:
            wire = held.enter_context(Wire(edge.port, source=source))
            wire.send(HEALTH)
            return wire

        by_address = edge.app.ctx.http.connections.by_address
        wires = [open_one(ONE) for _ in range(PER_ADDRESS_MAX)]
        assert [wire.answer().status for wire in wires] == [200] * PER_ADDRESS_MAX
        # When one address has all that it may have, then its next one gets a 503, and other addresses are served
        for _ in range(3):
            refused = open_one(ONE)
            answer = refused.answer()
            assert (answer.status, answer.error["code"]) == (503, "unavailable")
            assert "your address has too many connections" in answer.error["message"]
            assert "retry-after" in answer.headers
            assert refused.is_closed()
        assert open_one(OTHER).answer().status == 200
        assert (refusals(edge, "address"), refusals(edge, "process")) == (3, 0)
        # Which the log says once a minute
        said = [line.getMessage() for line in caplog.records if "is refused" in line.getMessage()]
        assert said == [
            f"a connection from {ONE} is refused: its address has as many connections as "
            f"INGEST_CONNECTIONS_PER_ADDRESS_MAX={PER_ADDRESS_MAX}"
        ]
        # And each that leaves makes room for one
        wires.pop().socket.close()
        eventually(lambda: by_address[ONE] == PER_ADDRESS_MAX - 1, "one has left")
        wires.append(open_one(ONE))
        assert wires[-1].answer().status == 200
        assert open_one(ONE).answer().status == 503
        held.close()
        eventually(lambda: not {ONE, OTHER} & by_address.keys(), "both are forgotten")


def test_one_address_does_not_keep_out_others_by_handshakes(secured: Callable[..., Secured]) -> None:
    rig = secured(ingest_connections_per_address_max=PER_ADDRESS_MAX)
    for _ in range(PER_ADDRESS_MAX + 3):
        rig.silent(source=ONE)
    eventually(lambda: rig.refusing == 3, "three are above the limit")
    assert rig.count == PER_ADDRESS_MAX
    status, message = rig.status(source=ONE)
    assert status == 503
    assert "your address" in message
    assert rig.status(source=OTHER)[0] == 200
    rig.leave()
    assert [rig.status(source=ONE)[0] for _ in range(PER_ADDRESS_MAX + 1)] == [200] * PER_ADDRESS_MAX + [503]
    rig.leave()


def test_trusted_proxies_have_no_limit_of_an_address() -> None:
    with (
        running_ingest(ingest_connections_per_address_max=1, trusted_proxies=ONE) as edge,
        contextlib.ExitStack() as held,
    ):
        for source, statuses in ((ONE, [200, 200, 200]), (OTHER, [200, 503])):
            for status in statuses:
                wire = held.enter_context(Wire(edge.port, source=source))
                wire.send(HEALTH)
                assert wire.answer().status == status


def test_the_limit_of_an_address_is_not_one_of_operators() -> None:
    with (
        running_ingest(operator_port=free_port(), ingest_connections_per_address_max=1) as edge,
        contextlib.ExitStack() as held,
    ):
        for _ in range(3):
            wire = held.enter_context(Wire(edge.operator_port, source=ONE))
            wire.send(HEALTH)
            assert wire.answer().status == 200
