"""Requests to Kafka end in bounded time, whatever is at the other end of the socket."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from checks.testbed.waiting import BUSY_SECONDS, WAIT_SECONDS_MAX
from pipeline.clock import SystemClock
from pipeline.errors import LogUnavailableError, SettingsError
from pipeline.log.kafka_topic import parse_bootstrap
from pipeline.log.kafka_wire import KafkaWire

CALL_SECONDS = 0.3


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, int]]:
    """A server that does `answer` with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_SECONDS_MAX)


def silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def closing(connection: socket.socket) -> None:
    connection.recv(65536)


def http(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def of_another_request(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(struct.pack(">ii", 4, 999_999))


def cut_short(connection: socket.socket) -> None:
    correlation = connection.recv(65536)[8:12]
    connection.sendall(struct.pack(">i", 7) + correlation + b"\0\0\0")


def trickling(connection: socket.socket) -> None:
    correlation = connection.recv(65536)[8:12]
    connection.sendall(struct.pack(">i", 1000) + correlation)
    pause = threading.Event()
    while not pause.wait(0.02):
        connection.sendall(b"\0")


@pytest.mark.parametrize("answer", [silent, closing, http, of_another_request, cut_short, trickling])
def test_a_bad_answer_is_unavailable_in_bounded_time(answer: Callable[[socket.socket], None]) -> None:
    # Given something that listens, and is no Kafka that is well
    with listening(answer) as address:
        wire = KafkaWire([address], call_seconds_max=CALL_SECONDS, clock=SystemClock())
        for _ in range(2):
            started = time.monotonic()
            # Then a call fails in time, each time
            with pytest.raises(LogUnavailableError):
                wire.topic("t")
            assert time.monotonic() - started < 3 * CALL_SECONDS + BUSY_SECONDS
        wire.close()


def test_a_broker_that_was_silent_is_tried_last() -> None:
    # Given two brokers, the first of which never answers and the second at once
    asked: list[str] = []

    def first(connection: socket.socket) -> None:
        asked.append("first")
        silent(connection)

    def second(connection: socket.socket) -> None:
        asked.append("second")
        closing(connection)

    with listening(first) as one, listening(second) as two:
        wire = KafkaWire([one, two], call_seconds_max=CALL_SECONDS, clock=SystemClock())
        with pytest.raises(LogUnavailableError):
            wire.topic("t")
        # When it is asked again
        with pytest.raises(LogUnavailableError):
            wire.topic("t")
        # Then the time is not spent on the first one again before the second had its turn
        wire.close()
    assert asked[0] == "first"
    assert "second" in asked


def test_nobody_listening_is_unavailable_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    wire = KafkaWire([address], call_seconds_max=WAIT_SECONDS_MAX, clock=SystemClock())
    started = time.monotonic()
    with pytest.raises(LogUnavailableError, match="refused"):
        wire.commit("g", "t", {0: 1})
    assert time.monotonic() - started < BUSY_SECONDS


@pytest.mark.parametrize(
    ("url", "brokers"),
    [
        ("kafka://localhost", [("localhost", 9092)]),
        ("kafka://a:1,b:2", [("a", 1), ("b", 2)]),
        ("kafka://a,b:2/", [("a", 9092), ("b", 2)]),
        ("kafka://[::1]:9093,[::2]", [("::1", 9093), ("::2", 9092)]),
        ("kafka://a:1,[::1]:9093", [("a", 1), ("::1", 9093)]),
    ],
)
def test_brokers_are_read_from_the_url(url: str, brokers: list[tuple[str, int]]) -> None:
    assert parse_bootstrap(url) == brokers


@pytest.mark.parametrize("url", ["kafka://", "kafka://a:x", "kafka://a,,b", "kafka://:9092"])
def test_a_url_without_brokers_is_an_error(url: str) -> None:
    with pytest.raises(SettingsError, match="does not name Kafka's brokers"):
        parse_bootstrap(url)
