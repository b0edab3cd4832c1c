"""A TCP proxy on loopback that can cut connections, swallow their data like a black hole, or delay it."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from stack.servers import LOOPBACK, free_port

CHUNK_BYTES = 1 << 16


@dataclass
class Counts:
    """What the proxy has done to connections since its start."""

    opened: int = 0
    cut: int = 0
    refused: int = 0
    withheld: int = 0  # chunks that waited in a black hole
    delayed: int = 0  # chunks
    swallowed: int = 0  # answers
    requests: int = 0  # round trips: all that a client sends between two answers, or before the first


@dataclass(eq=False)
class _Link:
    """One connection through the proxy: both ends, and whether to swallow its next answer."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    is_swallowing: bool = False
    is_answered: bool = True  # since the client last sent something

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Forwards connections to a port of this machine; all its methods may be called from any thread.

    When a black hole ends, the proxy forwards the withheld bytes, as TCP would, unless the client has gone.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = free_port()
        self.counts = Counts()
        self._loop: asyncio.AbstractEventLoop  # from `start` on
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._started = threading.Event()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._is_cut = False
        self._delay_seconds = 0.0
        self._request: bytes | None = None  # swallow the answer to this
        self._answer = b""
        self._swallows_left = 0

    def start(self) -> "Proxy":
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        self._started.wait(5)
        return self

    def stop(self) -> None:
        """End all connections, and the proxy."""
        if self._thread.is_alive():
            self._do(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)

    def cut(self) -> None:
        """Reset all connections, and new ones as soon as they open."""
        self._do(self._set(is_open=True, is_cut=True))

    def blackhole(self) -> None:
        """Forward nothing more; connections stay open, and new ones are accepted."""
        self._do(self._set(is_open=False))

    def delay(self, seconds: float) -> None:
        """Delay every chunk by `seconds`."""
        self._do(self._set(delay_seconds=seconds))

    def swallow(self, request: bytes, answer: bytes, *, times: int = sys.maxsize) -> None:
        """Forward a chunk with `request` in it, but reset the connection instead of forwarding `answer` to it."""
        self._do(self._set(request=request, answer=answer, times=times))

    def restore(self) -> None:
        """Forward everything."""
        self._do(self._set())

    # --- the proxy's own thread ------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, LOOPBACK, self.port))
        self._open.set()
        self._loop.call_soon(self._started.set)
        self._loop.run_forever()
        server.close()
        self._loop.close()

    async def _set(
        self,
        *,
        is_open: bool = True,
        is_cut: bool = False,
        delay_seconds: float = 0.0,
        request: bytes | None = None,
        answer: bytes = b"",
        times: int = 0,
    ) -> None:
        self._is_cut, self._delay_seconds = is_cut, delay_seconds
        self._request, self._answer, self._swallows_left = request, answer, times
        if is_open:
            self._open.set()
        else:
            self._open.clear()
        if is_cut:
            self.counts.cut += len(self._links)
            for link in list(self._links):
                link.abort()

    async def _end(self) -> None:
        self._open.set()
        for link in list(self._links):
            link.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._connect(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            self.counts.refused += 1
            return
        await self._open.wait()
        try:
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self.target_port)
        except OSError:
            self.counts.refused += 1
            return
        self.counts.opened += 1
        link = _Link((writer, server_writer))
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(link, reader, server_writer, is_request=True),
                self._pump(link, server_reader, writer, is_request=False),
            )
        finally:
            self._links.discard(link)
            link.abort()

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if is_request and link.is_answered:
                    self.counts.requests += 1
                link.is_answered = not is_request
                if not self._open.is_set():
                    self.counts.withheld += 1
                    await self._open.wait()
                if self._delay_seconds:
                    self.counts.delayed += 1
                    await asyncio.sleep(self._delay_seconds)
                if is_request and self._request is not None and self._request in data:
                    link.is_swallowing = True
                if not is_request and link.is_swallowing and self._answer in data and self._swallows_left:
                    self._swallows_left -= 1
                    self.counts.swallowed += 1
                    link.abort()
                    return
                writer.write(data)
                await writer.drain()
        # If one side ends, end the other. These servers do not use half-closed connections.
        link.abort()
