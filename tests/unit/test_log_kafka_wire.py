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

CALL_SECONDS = 0.5


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


# --- The coordinator of commits -----------------------------------------------------------------------------

FIND_COORDINATOR, OFFSET_COMMIT = 10, 8
NOT_COORDINATOR = 16


class Broker:
    """A broker that names a coordinator, and takes or refuses commits."""

    def __init__(self) -> None:
        self.asked: list[int] = []  # kinds of requests
        self.coordinator = ("", 0)  # that it names
        self.error = 0  # of commits
        self.is_silent = False

    def __call__(self, connection: socket.socket) -> None:
        while frame := connection.recv(65536):
            kind, _, correlation = struct.unpack(">hh4s", frame[4:12])
            self.asked.append(kind)
            if self.is_silent:
                continue
            host, port = self.coordinator
            body = {
                FIND_COORDINATOR: struct.pack(">hih", 0, 1, len(host)) + host.encode() + struct.pack(">i", port),
                OFFSET_COMMIT: struct.pack(">ih1siih", 1, 1, b"t", 1, 0, self.error),
            }[kind]
            connection.sendall(struct.pack(">i", 4 + len(body)) + correlation + body)


@pytest.mark.parametrize("how", ["moved", "silent", "gone"])
def test_a_coordinator_that_moved_is_found_again_within_one_commit(how: str) -> None:
    any_broker, old, new = Broker(), Broker(), Broker()
    seconds_max = 40.0  # half of it is for a silent coordinator
    with contextlib.ExitStack() as stack:
        bootstrap, old_address, new_address = (
            stack.enter_context(listening(broker)) for broker in (any_broker, old, new)
        )
        # Given a coordinator that has taken a commit, and is not looked up again for the next
        any_broker.coordinator = old_address
        wire = KafkaWire([bootstrap], call_seconds_max=seconds_max, clock=SystemClock())
        stack.callback(wire.close)
        wire.commit("g", "t", {0: 1})
        wire.commit("g", "t", {0: 2})
        assert (any_broker.asked, old.asked) == ([FIND_COORDINATOR], [OFFSET_COMMIT] * 2)
        # When another broker takes its place
        any_broker.coordinator = new_address
        old.error, old.is_silent = (NOT_COORDINATOR, False) if how == "moved" else (0, how == "silent")
        if how == "gone":
            wire._links[old_address].close()
            wire._coordinator = unused_address()
        # Then the next commit, which a tick waits for, finds it and succeeds
        wire.commit("g", "t", {0: 3})
        assert (any_broker.asked, new.asked) == ([FIND_COORDINATOR] * 2, [OFFSET_COMMIT])
        # And the one after that goes there directly
        wire.commit("g", "t", {0: 4})
        assert (any_broker.asked, new.asked) == ([FIND_COORDINATOR] * 2, [OFFSET_COMMIT] * 2)


def test_a_coordinator_that_refuses_is_looked_up_once_for_a_call() -> None:
    # Given brokers that still name the old coordinator, while it no longer is
    any_broker, old = Broker(), Broker()
    old.error = NOT_COORDINATOR
    with contextlib.ExitStack() as stack:
        bootstrap, any_broker.coordinator = (stack.enter_context(listening(broker)) for broker in (any_broker, old))
        wire = KafkaWire([bootstrap], call_seconds_max=WAIT_SECONDS_MAX, clock=SystemClock())
        stack.callback(wire.close)
        # Then a commit fails without more tries, and the next one looks it up again
        for looked_up in (1, 2):
            with pytest.raises(LogUnavailableError, match="OffsetCommit with error 16"):
                wire.commit("g", "t", {0: 1})
            assert (len(any_broker.asked), len(old.asked)) == (looked_up, looked_up)


def unused_address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address: tuple[str, int] = server.getsockname()
    return address
