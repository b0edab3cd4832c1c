"""Ends a call to a server that has gone silent, by shutting its socket down.

A frozen PostgreSQL, or a network that swallows packets, answers nothing: no `statement_timeout` fires, and libpq
waits in C where no signal of Python's is seen. A socket that was shut down reads as ended, so libpq returns with an
error.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class Watchdog:
    """One thread that watches one socket at a time; made for thousands of short calls a second.

    Arming takes a lock and sets a number; the thread is only woken when it was idle, which it becomes at most once
    every `silence_seconds_max`. Not for use by several threads at once. Does not survive a fork: make another one.
    """

    def __init__(self, silence_seconds_max: float) -> None:
        self._silence_seconds_max = silence_seconds_max
        self._condition = threading.Condition()
        self._socket: socket.socket | None = None  # the one that is watched now
        self._deadline = 0.0
        self._idle = False
        self._closed = False
        self._bitten = False
        self._thread: threading.Thread | None = None

    @property
    def bit(self) -> bool:
        """Whether the last guarded call was ended for its silence."""
        return self._bitten

    @contextlib.contextmanager
    def guard(self, watched: socket.socket) -> Iterator[None]:
        """Shut `watched` down if the body lasts longer than the silence allowed; `touch` begins it anew.

        `watched` must be a duplicate that the caller keeps open: were it libpq's own descriptor, its number could
        be somebody else's by the time it is shut down.
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
        """The call makes progress: its silence begins anew."""
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
                with contextlib.suppress(OSError):  # the server has closed it in this very moment
                    self._socket.shutdown(socket.SHUT_RDWR)
                self._socket = None
