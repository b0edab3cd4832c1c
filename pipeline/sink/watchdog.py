"""Ends a call to a server that has become silent, by shutting down the socket.

A frozen PostgreSQL, or a network that drops packets, sends nothing: no `statement_timeout` fires, and libpq waits in C,
where Python handles no signal. A socket that was shut down reads as ended, so libpq returns with an error.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class Watchdog:
    """One thread that watches one socket at a time; designed for thousands of short calls a second.

    To start a watch, it takes a lock and sets a number. The thread is only woken if it was idle, which happens at most
    once every `silence_seconds_max`. Not for use by several threads at once. Does not survive a fork: create another
    one.
    """

    def __init__(self, silence_seconds_max: float) -> None:
        self._silence_seconds_max = silence_seconds_max
        self._condition = threading.Condition()
        self._socket: socket.socket | None = None  # the socket that is watched now
        self._deadline = 0.0
        self._idle = False
        self._closed = False
        self._bitten = False
        self._thread: threading.Thread | None = None

    @property
    def bit(self) -> bool:
        """Whether the last guarded call was ended because of silence."""
        return self._bitten

    @contextlib.contextmanager
    def guard(self, watched: socket.socket) -> Iterator[None]:
        """Shut `watched` down if the body lasts longer than the allowed silence; `touch` restarts the time.

        `watched` must be a duplicate that the caller keeps open. The number of libpq's own descriptor could already
        belong to another file when it is shut down.
        """
        with self._condition:
            self._deadline = time.monotonic() + self._silence_seconds_max
            self._socket = watched
            self._bitten = False
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="sink-watchdog", daemon=True)
                self._thread.start()
            elif self._idle:
                self._condition.notify()
        try:
            yield
        finally:
            with self._condition:
                self._socket = None

    def touch(self) -> None:
        """Report progress of the call: the time of silence restarts."""
        self._deadline = time.monotonic() + self._silence_seconds_max

    def close(self) -> None:
        """End the thread; idempotent."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(1.0)

    def _watch(self) -> None:
        with self._condition:
            while not self._closed:
                if self._socket is None:
                    self._idle = True
                    self._condition.wait()
                    self._idle = False
                    continue
                remaining_seconds = self._deadline - time.monotonic()
                if remaining_seconds > 0:
                    self._condition.wait(remaining_seconds)
                    continue
                self._bitten = True
                with contextlib.suppress(OSError):  # the server has closed it at the same moment
                    self._socket.shutdown(socket.SHUT_RDWR)
                self._socket = None
