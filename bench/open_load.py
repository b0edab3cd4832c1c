"""An open-loop HTTP load: requests are due at a constant rate whatever the server does, and late ones count as slow."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

CONNECTIONS: Final = 64
WAITING_MAX: Final = 50_000  # requests that are due and find no connection: then the server has stopped answering
LAST_SECONDS_MAX: Final = 10.0  # for the last answers
TICK_SECONDS: Final = 0.002


@dataclass(slots=True)
class Answers:
    """What became of each request: when it was due (epoch s), how long after that its answer was there, the status."""

    due: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    number: list[int] = field(default_factory=list)  # of the request, from 1 on
    sent: int = 0  # requests that were begun, answered or not
    late_seconds: float = 0.0  # the most by which a request was begun after it was due, for want of a connection or CPU


class _Connection(asyncio.Protocol):
    """Sends what it is given and reports the answer; short answers only."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._buffer = b""
        self._due = 0.0
        self._number = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._load.free.append(self)

    def send(self, due: float, number: int, request: bytes) -> None:
        """Send a request; the connection is free again when its answer is there."""
        assert self._transport is not None
        self._due, self._number = due, number
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        self._buffer = b""
        self._load.answered(self, self._due, self._number, int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost = self._load.lost or not self._load.is_over

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


class _Load:
    def __init__(self, make: Callable[[int], bytes]) -> None:
        self.free: deque[_Connection] = deque()
        self.answers = Answers()
        self.lost = False
        self.is_over = False
        self.open = 0
        self._make = make
        self._waiting: deque[float] = deque()
        self._number = 0

    def due(self, at: float) -> None:
        """A request is due now."""
        self.open += 1
        if len(self._waiting) >= WAITING_MAX or self.lost:
            raise RuntimeError("the server under load closed a connection, or has stopped answering")
        self._waiting.append(at)
        self._send()

    def _send(self) -> None:
        while self._waiting and self.free:
            self._number += 1
            due = self._waiting.popleft()
            self.answers.sent = self._number
            self.answers.late_seconds = max(self.answers.late_seconds, time.time() - due)
            self.free.popleft().send(due, self._number, self._make(self._number))

    def answered(self, connection: _Connection, due: float, number: int, status: int) -> None:
        """An answer is there, and its connection free."""
        self.open -= 1
        self.answers.due.append(due)
        self.answers.seconds.append(time.time() - due)
        self.answers.status.append(status)
        self.answers.number.append(number)
        self.free.append(connection)
        self._send()


async def offer(
    host: str,
    port: int,
    requests: Sequence[bytes] | Callable[[int], bytes],
    phases: Sequence[tuple[float, float]],
) -> Answers:
    """Send for each phase of (seconds, requests/s) in turn. Raises RuntimeError where the server gives up.

    `requests` are sent in turn, or made from their number.
    """
    load = _Load(requests if callable(requests) else lambda number: requests[number % len(requests)])
    loop = asyncio.get_running_loop()
    connections = [(await loop.create_connection(lambda: _Connection(load), host, port))[1] for _ in range(CONNECTIONS)]
    begin = time.time()
    for seconds, rate in phases:
        due, end = begin, begin + seconds
        while due < end:
            while due <= min(time.time(), end):
                load.due(due)
                due += 1 / rate
            await asyncio.sleep(TICK_SECONDS)
        begin = end
    deadline = time.time() + LAST_SECONDS_MAX
    while load.open and time.time() < deadline:  # noqa: ASYNC110  # the answers come by a callback each
        await asyncio.sleep(TICK_SECONDS)
    load.is_over = True
    for connection in connections:
        connection.close()
    return load.answers
