"""An open-loop HTTP load: requests are due at a constant rate, independent of the server. Late ones count as slow."""

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

CONNECTIONS: Final = 64
WAITING_MAX: Final = 50_000  # due requests without a connection; at more, the server has stopped answering
LAST_SECONDS_MAX: Final = 10.0  # for the last responses
TICK_SECONDS: Final = 0.002


@dataclass(slots=True)
class Responses:
    """The result of each request: when it was due (epoch s), the seconds from then to its answer, the status."""

    due: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    number: list[int] = field(default_factory=list)  # of the request, from 1 on
    sent: int = 0  # requests that were started, answered or not
    unanswered: list[tuple[float, int]] = field(default_factory=list)  # when due, number; not sent if number > `sent`
    late_seconds: float = 0.0  # the longest delay before a request started, for lack of a connection or CPU


class ServerGoneError(RuntimeError):
    """The server under load is gone; `responses` has the results of the requests until then."""

    def __init__(self, message: str, responses: Responses) -> None:
        super().__init__(message)
        self.responses = responses


class _Connection(asyncio.Protocol):
    """Sends a request and reports the answer; short responses only."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._buffer = b""
        self.request: tuple[float, int] | None = None  # when due, number: of the request that waits for its answer
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._load.connected(self)

    def send(self, due: float, number: int, request: bytes) -> None:
        """Send a request. The connection is free again when its answer has arrived."""
        assert self._transport is not None
        self.request = due, number
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
        self._load.answered(self, int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.dropped(self)

    def abort(self) -> None:
        """End the connection at once. A proper TLS end would wait for the server."""
        if self._transport is not None:
            self._transport.abort()


class _Load:
    def __init__(self, make: Callable[[int], bytes]) -> None:
        self.free: deque[_Connection] = deque()
        self.responses = Responses()
        self.alive = 0  # connections
        self.open = 0  # requests that are due or sent, and have no answer
        self._is_lost = False
        self._is_over = False
        self._make = make
        self._waiting: deque[float] = deque()
        self._number = 0
        # Durations use the monotonic clock, since the wall clock can jump. Reports need the time of day.
        self._epoch = time.time() - time.monotonic()

    def connected(self, connection: _Connection) -> None:
        """A connection is open and free."""
        self.alive += 1
        self.free.append(connection)

    def due(self, at: float) -> None:
        """A request is due now; `at` is by the monotonic clock."""
        self.open += 1
        self._waiting.append(at)
        self._send()
        if self._is_lost:
            raise ServerGoneError("the server under load closed a connection", self.responses)
        if len(self._waiting) > WAITING_MAX:
            raise ServerGoneError("the server under load has stopped answering", self.responses)

    def _send(self) -> None:
        while self._waiting and self.free:
            self._number += 1
            due = self._waiting.popleft()
            self.responses.sent = self._number
            self.responses.late_seconds = max(self.responses.late_seconds, time.monotonic() - due)
            self.free.popleft().send(due, self._number, self._make(self._number))

    def answered(self, connection: _Connection, status: int) -> None:
        """An answer has arrived, and its connection is free."""
        if connection.request is None:
            return  # an answer without a request: the server is about to close, and `dropped` handles that
        due, number = connection.request
        connection.request = None
        self.open -= 1
        self.responses.due.append(due + self._epoch)
        self.responses.seconds.append(time.monotonic() - due)
        self.responses.status.append(status)
        self.responses.number.append(number)
        self.free.append(connection)
        self._send()

    def dropped(self, connection: _Connection) -> None:
        """A connection has ended, with or without a request that waited for its answer."""
        self.alive -= 1
        if self._is_over:
            return
        self._is_lost = True
        with contextlib.suppress(ValueError):
            self.free.remove(connection)
        self._give_up(connection)

    def end(self, connections: Sequence[_Connection]) -> None:
        """Stop: requests without a response stay unanswered, including requests that were never sent."""
        self._is_over = True
        for connection in connections:
            self._give_up(connection)
            connection.abort()
        waiting = enumerate(self._waiting, start=self._number + 1)
        self.responses.unanswered += [(due + self._epoch, number) for number, due in waiting]

    def _give_up(self, connection: _Connection) -> None:
        if connection.request is not None:
            self.open -= 1
            due, number = connection.request
            self.responses.unanswered.append((due + self._epoch, number))
            connection.request = None


async def offer(
    host: str,
    port: int,
    requests: Sequence[bytes] | Callable[[int], bytes],
    phases: Sequence[tuple[float, float]],
    *,
    tls: ssl.SSLContext | None = None,
) -> Responses:
    """Send for each phase of (seconds, requests/s) in turn. Raises ServerGoneError if the server is gone.

    `requests` are sent in turn, or made from their number. Without `tls` the connections are plain.
    """
    load = _Load(requests if callable(requests) else lambda number: requests[number % len(requests)])
    connections: list[_Connection] = []
    gone = None
    try:
        await _connect(load, host, port, connections, tls)
        await _keep_pace(load, phases)
    except ServerGoneError as error:
        gone = error
    deadline = time.monotonic() + LAST_SECONDS_MAX
    while load.open and load.alive and time.monotonic() < deadline:  # noqa: ASYNC110  # each response calls back
        await asyncio.sleep(TICK_SECONDS)
    load.end(connections)
    deadline = time.monotonic() + LAST_SECONDS_MAX
    while load.alive and time.monotonic() < deadline:  # noqa: ASYNC110  # a loop that closes before them logs errors
        await asyncio.sleep(TICK_SECONDS)
    if gone is not None:
        raise gone
    return load.responses


async def _connect(
    load: _Load, host: str, port: int, connections: list[_Connection], tls: ssl.SSLContext | None
) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(CONNECTIONS):
        try:
            _, connection = await loop.create_connection(lambda: _Connection(load), host, port, ssl=tls)
        except OSError as error:
            raise ServerGoneError(f"the server under load takes no connection: {error}", load.responses) from error
        connections.append(connection)


async def _keep_pace(load: _Load, phases: Sequence[tuple[float, float]]) -> None:
    begin = time.monotonic()
    for seconds, rate in phases:
        due, end = begin, begin + seconds
        while due < end:
            while due <= min(time.monotonic(), end):
                load.due(due)
                due += 1 / rate
            await asyncio.sleep(TICK_SECONDS)
        begin = end
