"""The watchdog over silent sockets."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from checks.testbed.waiting import BUSY_SECONDS, WAIT_SECONDS_MAX, wait_until, while_it_lasts
from pipeline.sink.watchdog import Watchdog


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with connected() as made:
        yield made


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    with one, two:
        one.settimeout(WAIT_SECONDS_MAX)
        yield one, two


def test_a_silent_call_is_ended_in_time(pair: tuple[socket.socket, socket.socket]) -> None:
    # Given a call that waits for somebody who never answers
    with contextlib.closing(Watchdog(0.2)) as watchdog:
        started = time.monotonic()
        with watchdog.guard(pair[0]):
            answer = pair[0].recv(1)
        # Then it reads as ended
        assert answer == b""
        assert 0.2 <= time.monotonic() - started < BUSY_SECONDS
        assert watchdog.bit


def test_each_call_is_watched_anew() -> None:
    def watched(seconds: float) -> None:
        # Given many calls that together last longer than the silence allowed
        with connected() as pair, contextlib.closing(Watchdog(seconds)) as watchdog:
            started = time.monotonic()
            while time.monotonic() - started < 1.3 * seconds:
                with watchdog.guard(pair[0]), contextlib.suppress(OSError):  # of a socket that was shut down
                    pair[1].sendall(b"x")
                    pair[0].recv(1)
                assert not watchdog.bit
            # Then a silent one behind them is still ended
            with watchdog.guard(pair[0]):
                assert pair[0].recv(1) == b""
            assert watchdog.bit

    while_it_lasts(watched, 1.0, seconds_max=20.0)


def test_progress_is_not_silence() -> None:
    def goes_on(seconds: float) -> None:
        with connected() as pair, contextlib.closing(Watchdog(seconds)) as watchdog, watchdog.guard(pair[0]):
            started = time.monotonic()
            while time.monotonic() - started < 1.3 * seconds:
                threading.Event().wait(0.05)
                watchdog.touch()
            assert not watchdog.bit
            pair[1].sendall(b"x")
            assert pair[0].recv(1) == b"x"

    while_it_lasts(goes_on, 1.0, seconds_max=20.0)


def test_nothing_is_shut_down_between_calls(pair: tuple[socket.socket, socket.socket]) -> None:
    # Given a call that has ended
    with contextlib.closing(Watchdog(0.1)) as watchdog:
        with watchdog.guard(pair[0]):
            pass
        # When more than the silence passes without another
        threading.Event().wait(0.3)
        # Then the socket is well
        pair[1].sendall(b"x")
        assert pair[0].recv(1) == b"x"


def test_it_is_cheap_and_one_thread(pair: tuple[socket.socket, socket.socket]) -> None:
    before = set(threading.enumerate())
    with contextlib.closing(Watchdog(2.0)) as watchdog:
        started = time.process_time()
        for _ in range(2000):
            with watchdog.guard(pair[0]):
                pass
        each_seconds = (time.process_time() - started) / 2000
        assert len(set(threading.enumerate()) - before) == 1
    assert each_seconds < 0.0003
    wait_until(lambda: set(threading.enumerate()) <= before, "its thread ends")
