"""A closed-loop HTTP load: prepared request bytes over persistent connections, limited in number and time."""

import asyncio
import math
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop

from pipeline.event import Event


@dataclass(frozen=True, slots=True)
class Tls:
    """HTTPS: the authority of the server, and a file with the client's key and certificate."""

    authority: Path
    client: Path | None

    def context(self) -> ssl.SSLContext:
        """A new context. Its connections can't resume sessions of another context."""
        context = ssl.create_default_context(cafile=str(self.authority))
        if self.client is not None:
            context.load_cert_chain(self.client)
        return context


@dataclass
class LoadResult:
    """Responses by status, and their wall time in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0


class _Connection(asyncio.Protocol):
    """Sends a request, waits for the whole answer, sends the next. The caller reconnects."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._next()

    def _next(self) -> None:
        assert self._transport is not None
        request = self._load.next_request()
        if request is None:
            self._transport.close()
        else:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < head_end + 4 + length:
            return
        self._load.result.statuses[int(head[9:12])] += 1
        self._buffer = self._buffer[head_end + 4 + length :]
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.closed()


class _Load:
    def __init__(self, requests: list[bytes], seconds: float, connections: int) -> None:
        self.result = LoadResult()
        self._requests = requests
        self._at = 0
        self._deadline = math.inf if seconds else 0.0  # 0: only connect
        self._open = connections
        self.done = asyncio.get_running_loop().create_future()

    def end_after(self, seconds: float) -> None:
        """Call this once all connections are open: end after `seconds`."""
        self._deadline = time.monotonic() + seconds

    def next_request(self) -> bytes | None:
        if time.monotonic() > self._deadline:
            return None
        self._at += 1
        return self._requests[self._at % len(self._requests)]

    def closed(self) -> None:
        self._open -= 1
        if self._open == 0 and not self.done.done():
            self.done.set_result(None)


def run_load(
    host: str, port: int, requests: list[bytes], *, seconds: float, connections: int, tls: Tls | None = None,
    connected: Callable[[LoadResult], None] = lambda _: None,
) -> LoadResult:  # fmt: skip
    """Send the requests in turn for `seconds` over `connections`. Ends early if the server closes them all.

    `connected` is called once all connections are open, with the responses so far.
    """
    context = None if tls is None else tls.context()

    async def main() -> LoadResult:
        load = _Load(requests, seconds, connections)
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        for _ in range(connections):
            await loop.create_connection(lambda: _Connection(load), host, port, ssl=context)
        load.end_after(seconds)  # the time of TLS handshakes is not counted
        connected(load.result)
        await asyncio.wait_for(load.done, seconds + 10)
        load.result.seconds = time.monotonic() - started
        return load.result

    return uvloop.run(main())


def an_event(number: int) -> Event:
    """An event as clients send them; every thousandth has the same correlation id."""
    return Event(
        correlation_id=f"order-{number % 1000}",
        severity="INFO",
        message="PacketResponder 1 for block blk_38865049064139660 terminating, status nominal",
        source="hdfs/dfs.DataNode",
        timestamp=1_700_000_000_000 + number,
    )


def post(path: str, body: bytes, query: str = "", line: str = "") -> bytes:
    """The bytes of a POST request of JSON on a persistent connection. `line` is one more header line."""
    head = (
        f"POST {path}{query} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{line}\r\n"
    )
    return head.encode() + body
