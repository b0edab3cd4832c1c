"""The HTTP contract: the function of each address."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from ingest.appender import Appender
from ingest.collect import Collector
from ingest.errors import NotReadyError
from ingest.health import HealthSources, health_document
from ingest.http.response import response_to, to_sanic
from ingest.types import JSON, Codec, Lifecycle
from pipeline.clock import Clock

IngestApp = Sanic[Any, Any]
IngestRequest = Request[Any, Any]

_READ: Final = ("GET", "HEAD")


def add_collecting(app: IngestApp, collector: Collector, codecs: Mapping[str, Codec]) -> None:
    """Add the addresses for events: 202, or the codec's answer, once all events are durable."""

    def add(path: str, codec: Codec) -> None:
        async def post_events(request: IngestRequest) -> HTTPResponse:
            # Only requests that the protocol does not answer itself arrive here, such as an address with a query.
            return to_sanic(await collector.collect(codec, request.stream))  # type: ignore[arg-type]

        # stream: the handler runs before the body is read, so that it can reject the request without it.
        app.add_route(post_events, path, methods=["POST"], stream=True, name=f"post{path.replace('/', '_')}")

    for path, codec in codecs.items():
        add(path, codec)


def add_watching(
    app: IngestApp,
    *,
    health: Callable[[], HealthSources],
    appender: Appender,
    registry: CollectorRegistry,
    clock: Clock,
    lifecycle: Lifecycle,
) -> None:
    """Add health, liveness, readiness and metrics."""

    async def get_health(_request: IngestRequest) -> HTTPResponse:
        """The health of the whole system, from memory."""
        return _json(health_document(health()))

    async def get_healthz(_request: IngestRequest) -> HTTPResponse:
        """This process is alive."""
        return _json({"status": "alive"})

    async def get_readyz(_request: IngestRequest) -> HTTPResponse:
        """Whether this process accepts events: 503 until the event log responds, and while shutting down."""
        log = appender.status(clock.monotonic())
        if lifecycle.is_stopping:
            return to_sanic(response_to(NotReadyError("this process is shutting down")))
        if not log.answers:
            return to_sanic(response_to(NotReadyError(f"the event log does not answer: {log.problem}")))
        return _json({"status": "ready"})

    async def get_metrics(_request: IngestRequest) -> HTTPResponse:
        """This process' own metrics."""
        return HTTPResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    app.add_route(get_health, "/api/logs/health", methods=_READ)
    app.add_route(get_healthz, "/healthz", methods=_READ)
    app.add_route(get_readyz, "/readyz", methods=_READ)
    app.add_route(get_metrics, "/metrics", methods=_READ)


def _json(document: dict[str, Any]) -> HTTPResponse:
    return HTTPResponse(
        msgspec.json.encode(document), status=200, content_type=JSON, headers={"cache-control": "no-store"}
    )
