"""Serves the metrics of one process on a port of its own."""

import logging
import selectors
import socket
import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

logger = logging.getLogger(__name__)


def serve_metrics(host: str, port: int, registry: CollectorRegistry) -> Callable[[], None]:
    """Serve them from a thread, which sleeps until a request comes. Returns the function that ends it.

    If the port is taken, it logs a warning, and the process works without metrics: events are more important.

    The library's `start_http_server` does the same, but its thread wakes twice a second.
    """
    try:
        server = _make_server(host, port, registry)
    except OSError as error:
        logger.warning(
            "no metrics: can't listen on %s, port %d: %s", host, port, error, extra={"action": "metrics_port_taken"}
        )
        return lambda: None
    ended, end = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(server, ended), name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        end.shutdown(socket.SHUT_RDWR)  # a close alone would not do: children that were forked since have it too
        end.close()
        thread.join()
        server.server_close()

    return stop


class _Quiet(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _make_server(host: str, port: int, registry: CollectorRegistry) -> ThreadingWSGIServer:
    """A server that listens. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]

    class Server(ThreadingWSGIServer):
        address_family = family

    return make_server(str(address[0]), port, make_wsgi_app(registry), Server, _Quiet)


def _serve(server: ThreadingWSGIServer, ended: socket.socket) -> None:
    """Handle requests, each on a thread of its own, until the other end of `ended` is shut down."""
    server.timeout = 0  # a client may be gone before its connection is accepted
    with ended, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while all(key.fileobj is not ended for key, _ in selector.select()):
            server.handle_request()
