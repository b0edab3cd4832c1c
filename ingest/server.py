"""Serves the application from one process: start, a stop that loses no events, and the separate metrics port."""

import asyncio
import contextlib
import dataclasses
import logging
import resource
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Final

from sanic.server.async_server import AsyncioServer
from sanic.server.protocols.http_protocol import HttpProtocol

from ingest.http.connection_counter import Place
from ingest.http.protocol import IngestProtocol
from ingest.http.routes import IngestApp
from ingest.http.tls_listener import REFUSED_MAX, TlsListener
from ingest.service import IngestService
from ingest.tls import Certificate, follow
from pipeline.errors import SettingsError
from pipeline.metrics_server import serve_metrics
from pipeline.names import LoopName
from pipeline.settings import Settings, public_problem

logger = logging.getLogger(__name__)

FILES_BESIDE_CONNECTIONS: Final = 200  # servers, metrics, logs, and a connection that is rejected
BACKLOG: Final = 1024  # connections that wait to be accepted
FLUSH_SHARE: Final = 0.3  # share of the time to stop that is reserved for the appender
POLL_SECONDS: Final = (
    0.02  # between two checks: at the start whether events can be accepted, at the end whether all ended
)
# Connections that arrive earlier wait in the backlog for so long. A client that does not repeat loses what is refused.
READY_SECONDS_MAX: Final = 2.0


def with_connections_that_fit(settings: Settings) -> Settings:
    """Return the settings, with connections limited to the files that this process may open.

    The process raises its limit of open files as far as its user may. Without this check, accepting a connection would
    fail, and so would everything else that needs a file at that moment.
    """
    beside = FILES_BESIDE_CONNECTIONS + (settings.operator_connections_max if settings.operator_port else 0)
    if settings.ingest_tls_cert:
        beside += REFUSED_MAX * (2 if settings.operator_port else 1)
    wanted = settings.ingest_connections_max + beside
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    connections = max(1, soft - beside)
    logger.warning(
        "INGEST_CONNECTIONS_MAX=%d needs %d open files and this process may have %d: it takes %d connections "
        "(raise the limit: ulimit -n, LimitNOFILE=)",
        settings.ingest_connections_max,
        wanted,
        soft,
        connections,
        extra={"action": "connections_limited"},
    )
    return dataclasses.replace(settings, ingest_connections_max=connections)


def refuse_public(settings: Settings) -> None:
    """Raise SettingsError if other machines could send events or look, and no setting allows it."""
    problem = public_problem(
        settings.ingest_host,
        settings.operator_host if settings.operator_port else None,
        takes_all=not (settings.ingest_keys or settings.ingest_open or settings.ingest_tls_client == "required"),
        shows_all=not (settings.operator_password or settings.operator_open),
    )
    if problem is not None:
        raise SettingsError(problem)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. All ingest processes share its port. Raises OSError if the port can't be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


@dataclass(frozen=True, slots=True)
class Listener:
    """An application, and where it listens."""

    app: IngestApp
    listener: socket.socket


async def serve(
    place: Listener,
    stopping: asyncio.Event,
    certificate: Certificate | None = None,
    *,
    operators: Listener | None = None,
) -> None:
    """Serve until `stopping` is set. Then wait for running requests, flush the appender, and return.

    `operators`: OPERATOR_PORT, which listens before events can be accepted. With a certificate, connections are HTTPS,
    and the certificate is followed while ingest runs.
    """
    service: IngestService = place.app.ctx.service
    settings = service.settings
    server = await _make_server(place, settings, None if certificate is None else certificate.context)
    servers = [server]
    if operators is not None:
        operator_context = None if certificate is None else certificate.operator_context
        servers.append(await _make_server(operators, settings, operator_context))
    for one in servers:  # that of ingest is the first one: Sanic rewrites its classes for it
        await one.sanic.startup()  # type: ignore[no-untyped-call]
        await one.sanic.before_start()  # type: ignore[no-untyped-call]
    await service.start()
    for one in servers[1:]:
        await one.start()
    await _until_accepting(service, stopping)
    service.count_connections = lambda: place.app.ctx.http.connections.count
    await server.start()
    for one in servers:
        await one.sanic.after_start()  # type: ignore[no-untyped-call]
    following = None
    if certificate is not None:
        certificate.on_refused = service.note_tls_refusal
        loop = service.loops.add(LoopName.CERTIFICATE)
        following = asyncio.create_task(
            follow(certificate, lambda: _end_former(server.sanic.connections, certificate), loop)
        )
    end_metrics: Callable[[], None] | None = None
    if settings.ingest_metrics_port:
        end_metrics = serve_metrics(settings.metrics_host, settings.ingest_metrics_port, service.registry)
    _log_start("ingest", place)
    if operators is not None:
        _log_start("operators' port", operators)
    try:
        await stopping.wait()
    finally:
        service.lifecycle.is_stopping = True
        if following is not None:
            following.cancel()
        logger.info("ingest is shutting down", extra={"action": "ingest_stopping"})
        for one in servers:
            one.close()
            await one.sanic.before_stop()  # type: ignore[no-untyped-call]
        connections = [one.sanic.connections for one in servers]
        await _end_connections(connections, settings.stop_seconds_max * (1 - FLUSH_SHARE))
        await service.stop(seconds_max=settings.stop_seconds_max * FLUSH_SHARE)
        for one in servers:
            await one.sanic.after_stop()  # type: ignore[no-untyped-call]
        if end_metrics is not None:
            end_metrics()


def _log_start(what: str, place: Listener) -> None:
    logger.info("%s listens on %s port %d", what, *place.listener.getsockname()[:2], extra={"action": "ingest_started"})


def _end_former(connections: set[HttpProtocol], certificate: Certificate) -> None:
    """End connections whose client's certificate was verified by former files: it may be revoked now."""
    for connection in list(connections):
        if not isinstance(connection, IngestProtocol):
            continue
        if connection.verified is not None and not certificate.is_newest(connection.verified):
            connection.end()


@dataclass(frozen=True, slots=True)
class _Server:
    """A port that is served. With TLS, Sanic's server does not accept: then `tls` does."""

    sanic: AsyncioServer
    tls: TlsListener | None

    async def start(self) -> None:
        """Begin to accept connections."""
        if self.tls is not None:
            self.tls.start()
        else:
            await self.sanic.start_serving()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Accept no more."""
        if self.tls is not None:
            self.tls.close()
        self.sanic.close()  # type: ignore[no-untyped-call]


async def _make_server(place: Listener, settings: Settings, context: ssl.SSLContext | None) -> _Server:
    """A server that does not accept yet."""
    server = await place.app.create_server(
        sock=place.listener,
        protocol=IngestProtocol,
        backlog=BACKLOG,
        asyncio_server_kwargs={"start_serving": False},
    )
    if server is None:
        raise RuntimeError("Sanic made no server")
    if context is None:
        return _Server(server, None)

    def make_protocol(taken: Place) -> IngestProtocol:
        return IngestProtocol(place=taken, loop=server.loop, app=place.app, connections=server.connections)

    counter = place.app.ctx.http.connections
    # A handshake has as much time as a request: neither must hold a place for long.
    seconds_max = settings.request_seconds_max
    tls = TlsListener(place.listener, counter, make_protocol, context=context, seconds_max=seconds_max)
    return _Server(server, tls)


async def _until_accepting(service: IngestService, stopping: asyncio.Event) -> None:
    """Wait until events can be accepted: the event log has answered, and the API keys are known. Not for ever.

    After that, a log that does not answer is a 503, and health and page say why.
    """
    for _ in range(round(READY_SECONDS_MAX / POLL_SECONDS)):
        if service.is_accepting or stopping.is_set():
            return
        await asyncio.sleep(POLL_SECONDS)


async def _end_connections(connections: list[set[HttpProtocol]], seconds_max: float) -> None:
    """Close connections of all servers as they become idle, and after `seconds_max` abort the rest."""
    deadline = asyncio.get_running_loop().time() + seconds_max
    while any(connections) and asyncio.get_running_loop().time() < deadline:
        for connection in list(chain.from_iterable(connections)):
            connection.close_if_idle()
        await asyncio.sleep(POLL_SECONDS)
    for connection in list(chain.from_iterable(connections)):
        connection.abort()  # type: ignore[no-untyped-call]


def run(place: Listener, certificate: Certificate | None = None, *, operators: Listener | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Closes the listening sockets."""

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await serve(place, stopping, certificate, operators=operators)

    import uvloop  # noqa: PLC0415  # only the process that serves needs it

    with contextlib.ExitStack() as listeners:
        for one in (place, operators):
            if one is not None:
                listeners.enter_context(contextlib.closing(one.listener))
        uvloop.run(main())
