"""Serves the metrics of one process on a port of its own."""

import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry, start_http_server

logger = logging.getLogger(__name__)


def serve_metrics(host: str, port: int, registry: CollectorRegistry) -> Callable[[], None]:
    """Serve them from a thread. Returns the function that ends it.

    If the port is taken, it logs a warning, and the process works without metrics: events are more important.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        logger.warning(
            "no metrics: can't listen on %s, port %d: %s", host, port, error, extra={"action": "metrics_port_taken"}
        )
        return lambda: None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
