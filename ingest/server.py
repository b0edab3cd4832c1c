"""Serves the application from one process: start, a stop that loses no events, and the separate metrics port."""

import asyncio
import contextlib
import dataclasses
import logging
import resource
import signal
import socket
from typing import Final

from prometheus_client import start_http_server
from sanic.server.protocols.http_protocol import HttpProtocol

from ingest.http.protocol import IngestProtocol
from ingest.http.routes import IngestApp
from ingest.service import IngestService
from ingest.tls import Certificate, follow
from pipeline.account import is_loopback
from pipeline.errors import SettingsError
from pipeline.settings import Settings

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
    wanted = settings.ingest_connections_max + FILES_BESIDE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    connections = max(1, soft - FILES_BESIDE_CONNECTIONS)
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
    """Raise SettingsError if other machines could send events, and no setting allows it."""
    if settings.ingest_keys or settings.ingest_open or is_loopback(settings.ingest_host):
        return
    raise SettingsError(
        f"INGEST_HOST={settings.ingest_host} can be reached from other machines, and no client needs an API key: set "
        "INGEST_KEYS=yes (docs/keys.md), or INGEST_OPEN=yes if everybody who reaches it may send events"
    )


def listen(settings: Settings) -> socket.socket:
    """The listening socket. All ingest processes share its port. Raises OSError if the port can't be bound."""
    family = socket.AF_INET6 if ":" in settings.ingest_host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((settings.ingest_host, settings.ingest_port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


async def serve(
    app: IngestApp, listener: socket.socket, stopping: asyncio.Event, certificate: Certificate | None = None
) -> None:
    """Serve until `stopping` is set. Then wait for running requests, flush the appender, and return.

    With a certificate, connections are HTTPS, and the certificate is followed while ingest runs.
    """
    service: IngestService = app.ctx.service
    settings = service.settings
    arguments: dict[str, object] = {"start_serving": False}
    if certificate is not None:
        # A connection counts between its handshake and its end: one that never ends these must not live long.
        arguments["ssl_handshake_timeout"] = arguments["ssl_shutdown_timeout"] = settings.request_seconds_max
    server = await app.create_server(
        sock=listener,
        protocol=IngestProtocol,
        backlog=BACKLOG,
        ssl=None if certificate is None else certificate.context,
        asyncio_server_kwargs=arguments,
    )
    if server is None:
        raise RuntimeError("Sanic made no server")
    await server.startup()  # type: ignore[no-untyped-call]
    await server.before_start()  # type: ignore[no-untyped-call]
    await service.start()
    await _until_accepting(service, stopping)
    await server.start_serving()  # type: ignore[no-untyped-call]
    service.count_connections = lambda: len(server.connections)
    await server.after_start()  # type: ignore[no-untyped-call]
    following = None if certificate is None else asyncio.create_task(follow(certificate))
    metrics = None
    if settings.ingest_metrics_port:
        metrics, _ = start_http_server(settings.ingest_metrics_port, settings.metrics_host, service.registry)
    logger.info("ingest listens on %s port %d", *listener.getsockname()[:2], extra={"action": "ingest_started"})
    try:
        await stopping.wait()
    finally:
        service.lifecycle.is_stopping = True
        if following is not None:
            following.cancel()
        logger.info("ingest is shutting down", extra={"action": "ingest_stopping"})
        server.close()  # type: ignore[no-untyped-call]
        await server.before_stop()  # type: ignore[no-untyped-call]
        await _end_connections(server.connections, settings.stop_seconds_max * (1 - FLUSH_SHARE))
        await service.stop(seconds_max=settings.stop_seconds_max * FLUSH_SHARE)
        await server.after_stop()  # type: ignore[no-untyped-call]
        if metrics is not None:
            metrics.shutdown()


async def _until_accepting(service: IngestService, stopping: asyncio.Event) -> None:
    """Wait until events can be accepted: the event log has answered, and the API keys are known. Not for ever.

    After that, a log that does not answer is a 503, and health and page say why.
    """
    for _ in range(round(READY_SECONDS_MAX / POLL_SECONDS)):
        if service.is_accepting or stopping.is_set():
            return
        await asyncio.sleep(POLL_SECONDS)


async def _end_connections(connections: set[HttpProtocol], seconds_max: float) -> None:
    """Close connections as they become idle, and after `seconds_max` abort the rest."""
    deadline = asyncio.get_running_loop().time() + seconds_max
    while connections and asyncio.get_running_loop().time() < deadline:
        for connection in list(connections):
            connection.close_if_idle()
        await asyncio.sleep(POLL_SECONDS)
    for connection in list(connections):
        connection.abort()  # type: ignore[no-untyped-call]


def run(app: IngestApp, listener: socket.socket, certificate: Certificate | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await serve(app, listener, stopping, certificate)

    import uvloop  # noqa: PLC0415  # only the process that serves needs it

    with contextlib.closing(listener):
        uvloop.run(main())
