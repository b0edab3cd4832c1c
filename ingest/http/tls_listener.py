"""Accepts the connections of a port with TLS, and counts them before TLS begins.

Event loops accept such connections themselves, and tell nobody of them before their handshake has ended. A client that
sends nothing of its handshake would hold an open file that no limit knows. So this module accepts, and the event loop
begins with a connection that has its place already (`loop.connect_accepted_socket`). From there on nothing differs.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from ingest.http.connection_counter import ConnectionCounter, Place
from ingest.http.protocol import IngestProtocol

logger = logging.getLogger(__name__)

# Connections above a limit that get an answer at the same time: it comes after the handshake. More are closed at once.
REFUSED_MAX: Final = 32
ACCEPTS_MAX: Final = 64  # before other connections have their turn
NO_FILE_SECONDS: Final = 1.0  # until the next attempt, if the process or the system has no file or memory for one
_NO_FILE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class TlsListener:
    """Accepts the connections of one port. For the event loop only.

    `listener` already listens, and is not closed here. Handshake and end of TLS take at most `seconds_max` each.
    """

    def __init__(
        self,
        listener: socket.socket,
        connections: ConnectionCounter,
        make_protocol: Callable[[Place], IngestProtocol],
        *,
        context: ssl.SSLContext,
        seconds_max: float,
    ) -> None:
        self._listener = listener.dup()  # the server of the event loop has the other one, and never accepts
        self._listener.setblocking(False)
        self._connections = connections
        self._make_protocol = make_protocol
        self._context = context
        self._seconds_max = seconds_max
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[asyncio.Task[None], tuple[socket.socket, IngestProtocol]] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._has_failed = False

    def start(self) -> None:
        """Begin to accept."""
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept no more, and end all connections on which TLS has not begun."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for accepted, protocol in self._handshakes.values():
            if protocol.has_begun:  # its task does not know it yet
                continue
            # Its task ends as after any client that leaves. Cancelled at its start, it would leave TLS to itself.
            with contextlib.suppress(OSError):
                accepted.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                accepted, address = self._listener.accept()
            except OSError as error:  # none waits any more, or the next one has left already
                if error.errno in _NO_FILE:
                    self._wait(error)
                return
            self._begin(accepted, address[0])

    def _wait(self, error: OSError) -> None:
        """Try again later. Until then, connections wait in the backlog."""
        if not self._has_failed:
            self._has_failed = True
            logger.error("connections can't be accepted now: %s", error, extra={"action": "accept_failed"})
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(NO_FILE_SECONDS, self.start)

    def _begin(self, accepted: socket.socket, peer: str) -> None:
        place = self._connections.enter(peer)
        if place.refusal is not None and self._connections.refusing > REFUSED_MAX:
            place.leave()
            accepted.close()
            return
        accepted.setblocking(False)
        protocol = self._make_protocol(place)
        handshake = self._loop.create_task(self._shake_hands(accepted, protocol))
        self._handshakes[handshake] = accepted, protocol

        def end(ended: asyncio.Task[None]) -> None:
            del self._handshakes[ended]
            if not protocol.has_begun:  # else it leaves at its end
                place.leave()
                accepted.close()

        handshake.add_done_callback(end)

    async def _shake_hands(self, accepted: socket.socket, protocol: IngestProtocol) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=self._seconds_max,
                ssl_shutdown_timeout=self._seconds_max,
            )
        except OSError:  # of TLS too: it failed, the client has left, or its time was up
            pass
        else:
            self._has_failed = False
