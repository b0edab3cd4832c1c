"""Connections of ingest: Sanic's protocol with limits, and rejections without a request object."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from sanic.exceptions import RequestCancelled
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from ingest.accounts import Accounts, Client
from ingest.client_certificate import client_certificate
from ingest.collect import Collector
from ingest.http.connection_counter import ConnectionCounter, Place
from ingest.http.cors import Cors
from ingest.http.early_rejection import ConnectionRejections, EarlyRejections
from ingest.http.request import ConnectionLimits, EventsRequest, IngestHttp
from ingest.http.routes import IngestRequest
from ingest.types import Codec
from pipeline.names import ConnectionRefusal

RECEIVED_BYTES_MAX: Final = 64 << 10  # not read yet by the task of the connection; above it, no more is received
WRITE_SECONDS_MAX: Final = 10.0  # for a client to read the response
EXPIRY_SECONDS_MAX: Final = 86_400.0  # after which a connection with a client's certificate begins anew


@dataclass(frozen=True, slots=True)
class HttpContext:
    """The dependencies of connections. Sanic creates connections, so they find these in `app.ctx.http`."""

    limits: ConnectionLimits
    connections: ConnectionCounter
    busy_responses: Mapping[ConnectionRefusal, bytes]  # to a connection above a limit
    collector: Collector
    accounts: Accounts
    codecs: Mapping[str, Codec]  # by the target of a POST, as it is sent
    early_rejections: EarlyRejections
    wall: Callable[[], float]  # by which the certificates of clients expire
    cors: Cors | None = None  # None: no page of another origin reads an answer


class IngestProtocol(HttpProtocol):
    """Sanic's protocol with limits; see HttpContext."""

    __slots__ = (
        "_arrival", "_context", "_expiry_timer", "_is_one_way", "_is_reading_paused", "_place", "_refused_left",
        "_refused_timer", "_rejections", "client", "codecs", "cors", "has_begun", "has_waited", "is_ending", "limits",
        "verified",
    )  # fmt: skip
    HTTP_CLASS = IngestHttp

    def __init__(self, *, place: Place | None = None, **kwargs: Any) -> None:
        context: HttpContext = kwargs["app"].ctx.http
        self._context = context
        self._place = place  # None: it gets one when it is accepted
        self.has_begun = False  # after its handshake, if it has one
        self.limits = context.limits
        self.codecs = context.codecs
        self.cors = context.cors
        super().__init__(**kwargs)
        self._http: IngestHttp | None = None
        self._arrival: asyncio.Future[None] | None = None  # the task of the connection waits for bytes
        self._is_reading_paused = False
        self.request_handler = self._handle
        self.has_waited = True  # its first request comes in a turn of its own
        self.is_ending = False  # after its current request; also if the head of that is still coming
        self._is_one_way = False  # the request in progress is of such a protocol
        self._refused_left = 0  # bytes still to come of a body that was rejected without a request object
        self._refused_timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self.verified: ssl.SSLObject | None = None  # of a connection with a client's certificate
        # Both are set when the connection is accepted.
        self.client: Client
        self._rejections: ConnectionRejections

    async def _handle(self, request: IngestRequest | EventsRequest) -> None:
        """Answer a request. The collector answers events; Sanic's handlers answer everything else.

        Sanic's path runs the router, the middleware and checks of a handler's result. Events need none of these.
        """
        http: IngestHttp = self._http  # type: ignore[assignment]  # a request has one
        if isinstance(request, EventsRequest):
            codec = request.codec
            self._is_one_way = codec.is_one_way
            http.is_for_events = True
            await http.answer(await self._context.collector.collect(codec, http))
        else:
            self._is_one_way = False
            await self.app.handle_request(request)
        if http.request_body and http.stage is Stage.IDLE:
            await http.discard_body()

    def connection_made(self, transport: Any) -> None:
        """Accept a connection, or reject it if there are too many, or if its certificate has expired since."""
        self.has_begun = True
        address = transport.get_extra_info("peername")
        peer = address[0] if isinstance(address, tuple) else None
        place = self._place
        if place is None:
            place = self._place = self._context.connections.enter(peer)
        if place.refusal is not None:
            transport.write(self._context.busy_responses[place.refusal])
            transport.close()
            return
        certificate = client_certificate(transport.get_extra_info("peercert"))
        if certificate is None:
            self.client = self._context.accounts.client(peer)
        else:
            seconds = certificate.expires - self._context.wall()
            if seconds <= 0:
                transport.close()
                return
            self.client = self._context.accounts.client(peer, certificate.name)
            self.verified = transport.get_extra_info("ssl_object")
            self._expiry_timer = self.loop.call_later(min(seconds, EXPIRY_SECONDS_MAX), self.end)
        self._rejections = ConnectionRejections(self._context.early_rejections, self.client)
        super().connection_made(transport)  # type: ignore[no-untyped-call]

    def data_received(self, data: bytes) -> None:
        """Process bytes, unless the connection was rejected. Reject at once if an early rejection applies."""
        if self.transport is None:
            return
        if self._refused_left:
            data = self._throw_away(data)
        now = self._time = monotonic()
        rejections = self._rejections
        while (
            data
            and (now < rejections.responses.closed_until or rejections.may_reject())
            and self._is_between_requests()
        ):
            rejected = rejections.reject(data, now)
            if rejected is None:
                break
            response, size = rejected
            self.transport.write(response)
            left = size - len(data)
            if left >= 0:
                self._refused_left = left
                if left:
                    self._refused_timer = self.loop.call_later(self.limits.request_seconds_max, self._close_refused)
                return
            data = data[size:]
        if data:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        """Keep bytes for the task of the connection, and wake it."""
        self.recv_buffer += data
        if len(self.recv_buffer) >= RECEIVED_BYTES_MAX and self.transport is not None:
            self.transport.pause_reading()
            self._is_reading_paused = True
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(None)

    async def receive_more(self) -> None:
        """Wait for bytes.

        Sanic uses an asyncio.Event, which looks up the running loop in each wait. For this, Python 3.11 requests the
        process' id from the operating system: a twentieth of the CPU of a request.
        """
        if self._is_reading_paused and self.transport is not None:
            self._is_reading_paused = False
            self.transport.resume_reading()
        self._arrival = self.loop.create_future()
        await self._arrival
        self.has_waited = True

    def end(self) -> None:
        """Close the connection: at once if it is idle, else after the response to its request."""
        self.is_ending = True
        if not self.close_if_idle() and self._http is not None:
            self._http.keep_alive = False

    def _is_between_requests(self) -> bool:
        """Whether the next byte starts a request, all earlier ones are answered, and the client reads its responses."""
        http = self._http
        return (
            http is not None
            and http.stage is Stage.IDLE
            and http.keep_alive
            and not http.request_body
            and not self.recv_buffer
            and self._can_write.is_set()
            and self.transport is not None
            and not self.transport.is_closing()
        )

    def _throw_away(self, data: bytes) -> bytes:
        """Discard bytes of a rejected body; returns the rest of `data`."""
        rest = data[self._refused_left :]
        self._refused_left = max(0, self._refused_left - len(data))
        if not self._refused_left:
            self._disarm_refused()
        return rest

    def _close_refused(self) -> None:
        """Close after a rejected body that is sent too slowly: it has its response, and its time is up."""
        self._refused_timer = None
        self.close()

    def _disarm_refused(self) -> None:
        if self._refused_timer is not None:
            self._refused_timer.cancel()
            self._refused_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection."""
        if self._place is not None:
            self._place.leave()
        if self.conn_info is None:
            return  # rejected
        self._disarm_refused()
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        self.client.close()
        http = self._http
        if http is None:
            super().connection_lost(exc)  # type: ignore[no-untyped-call]
            return
        http.disarm()
        # Sanic cancels the task of the connection.
        task = self._task
        if self._is_one_way and http.stage is Stage.HANDLER and not http.request_body:
            self._task = None
        super().connection_lost(exc)  # type: ignore[no-untyped-call]
        self._task = task

    async def send(self, data: bytes) -> None:
        """Write within a time limit. Raises RequestCancelled if the client disconnected or does not read."""
        if not self._can_write.is_set():
            try:
                await asyncio.wait_for(self._can_write.wait(), WRITE_SECONDS_MAX)
            except TimeoutError:
                self.abort()  # type: ignore[no-untyped-call]
        transport = self.transport
        if transport is None or transport.is_closing():
            raise RequestCancelled
        transport.write(data)
        self._time = monotonic()
