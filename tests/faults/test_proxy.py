"""The proxy: what it does to connections that go through it."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from checks.loadgen.proxy import Proxy
from checks.testbed.waiting import WAIT_SECONDS_MAX, eventually


@pytest.fixture
def echo() -> Iterator[int]:
    """Port of a server that answers each message with itself."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(1000):
                connection.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    proxy = Proxy(echo).start()
    yield proxy
    proxy.stop()


@pytest.fixture
def connection(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=WAIT_SECONDS_MAX) as connection:
        assert said(connection, b"hello") == b"hello"
        yield connection


def said(connection: socket.socket, words: bytes) -> bytes:
    connection.sendall(words)
    return connection.recv(1000)


def is_reset(connection: socket.socket) -> bool:
    try:
        return said(connection, b"still there?") == b""
    except OSError:
        return True


def test_a_cut_resets_what_is_open_and_what_comes(proxy: Proxy, connection: socket.socket) -> None:
    proxy.cut()
    assert is_reset(connection)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=WAIT_SECONDS_MAX) as another:
        assert is_reset(another)
    eventually(lambda: (proxy.counts.cut, proxy.counts.refused) == (1, 1), "both are counted")
    proxy.restore()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=WAIT_SECONDS_MAX) as another:
        assert said(another, b"again") == b"again"


def test_a_black_hole_is_silent_and_gives_back_what_it_held(proxy: Proxy, connection: socket.socket) -> None:
    proxy.blackhole()
    connection.settimeout(0.2)
    with pytest.raises(TimeoutError):
        said(connection, b"anybody?")
    eventually(lambda: proxy.counts.withheld == 1, "it is withheld")
    proxy.restore()
    connection.settimeout(WAIT_SECONDS_MAX)
    assert connection.recv(1000) == b"anybody?"


def test_a_delay_is_felt(proxy: Proxy, connection: socket.socket) -> None:
    proxy.delay(0.1)
    started = time.monotonic()
    assert said(connection, b"slowly") == b"slowly"
    assert time.monotonic() - started >= 0.2  # there and back
    eventually(lambda: proxy.counts.delayed == 2, "both are counted")


def test_an_answer_is_swallowed_after_its_request_has_arrived(proxy: Proxy, connection: socket.socket) -> None:
    proxy.swallow(b"COMMIT\0", b"COMMIT\0")
    assert said(connection, b"ROLLBACK\0") == b"ROLLBACK\0"
    with contextlib.suppress(OSError):
        assert said(connection, b"COMMIT\0") == b""
    eventually(lambda: proxy.counts.swallowed == 1, "the answer came, and was swallowed")
