"""Creates the Sanic application of ingest."""

import math
from collections.abc import Callable
from typing import Final

from sanic import HTTPResponse, Sanic
from sanic.config import Config
from sanic.exceptions import NotFound
from sanic.handlers import ErrorHandler

from ingest.client_address import ClientAddresses
from ingest.codecs.events import events_codec
from ingest.dashboard.routes import add_pages
from ingest.errors import NotReadyError, error_response
from ingest.grammar import HEAD_BYTES_MAX
from ingest.health import health_document
from ingest.http.assets import Assets, add_assets
from ingest.http.connection_counter import ConnectionCounter
from ingest.http.cors import Cors
from ingest.http.early_rejection import EarlyRejection, EarlyRejections
from ingest.http.protocol import HttpContext
from ingest.http.request import ConnectionLimits
from ingest.http.request_id import RequestIds
from ingest.http.response import head_of, response_to, to_sanic
from ingest.http.routes import (
    IngestApp,
    IngestRequest,
    OperatorRoutes,
    add_collecting,
    add_inquiries,
    add_own_throttle,
    add_probes,
    add_throttle,
    add_watching,
    with_preflights,
)
from ingest.openapi.routes import add_contract
from ingest.protocols.decoding import Decoding
from ingest.protocols.elasticsearch import bulk_inquiries, bulk_routes, version_response
from ingest.protocols.gelf import gelf_codec
from ingest.protocols.lines import lines_codec
from ingest.protocols.loki import loki_codec
from ingest.protocols.otlp import otlp_codec
from ingest.protocols.splunk import collector_inquiries, collector_routes
from ingest.runbooks.routes import add_runbooks
from ingest.service import IngestContext, IngestService
from ingest.types import Inquiry, RequestHead, Response, Route
from pipeline.clock import Clock
from pipeline.names import ConnectionRefusal, Health
from pipeline.settings import Settings, origins_of

EVENTS_PATH: Final = "/api/logs"
LINES_PATH: Final = "/api/logs/lines"
LOKI_PATH: Final = "/loki/api/v1/push"
LOKI_OLD_PATH: Final = "/api/prom/push"  # of handlers for Python whose `version` is not set
GELF_PATH: Final = "/gelf"
OTLP_PATH: Final = "/v1/logs"
OPERATOR_DISCARD_BYTES_MAX: Final = 64 << 10  # of a body that a client sends there: none is read
KEEP_ALIVE_SECONDS: Final = 75  # an idle connection; above the 60 s of common proxies, so that they close first


class OneShapeErrors(ErrorHandler):
    """Gives Sanic's own errors, and defects, the same JSON form as all errors."""

    def response(self, request: IngestRequest, exception: BaseException) -> HTTPResponse:
        """The response to an error that no handler caught."""
        return to_sanic(response_to(exception, getattr(request.stream, "request_id", "")))


def create_app(settings: Settings, context: IngestContext, *, name: str = "ingest") -> IngestApp:
    """Create the application of INGEST_PORT with its service in `ctx.service`; starts and connects nothing.

    Without OPERATOR_PORT, it has the addresses for operators too. `name` is unique in a process.
    """
    app = _empty_app(settings, name)
    service = app.ctx.service = IngestService(settings, context)
    table = routes(settings, context.clock)
    origins = origins_of(settings.ingest_cors_origins)
    cors = Cors(origins) if origins else None
    app.ctx.http = _http_context(service, table, cors)
    add_collecting(app, service.collector, table)
    _add_probes(app, service)
    asked = inquiries(service)
    if settings.operator_port:
        asked.append(Inquiry("/", _version_or_nothing))
    else:
        _add_operators(app, service, instead=version_response)
    if service.keys is not None:
        add_own_throttle(app, service.throttle, None if settings.operator_port else service.gate)
    add_inquiries(app, asked if cors is None else with_preflights(asked, table, cors))
    return app


def create_operator_app(service: IngestService, *, name: str = "operators") -> IngestApp:
    """Create the application of OPERATOR_PORT for the same process; it takes no events."""
    settings = service.settings
    app = _empty_app(settings, name)
    app.config.TOUCHUP = False  # Sanic rewrites its own classes for the first application of a process
    request_ids = RequestIds()
    app.ctx.http = HttpContext(
        limits=ConnectionLimits(
            service.lifecycle,
            request_ids,
            request_seconds_max=settings.request_seconds_max,
            discard_bytes_max=OPERATOR_DISCARD_BYTES_MAX,
        ),
        connections=ConnectionCounter(
            settings.operator_connections_max,
            service.note_connection_refusal,
            addresses=ClientAddresses(settings),
            full=ConnectionRefusal.OPERATORS,
        ),
        busy_responses=_busy_responses(),
        collector=service.collector,
        accounts=service.accounts,
        codecs={},
        early_rejections=EarlyRejections(service.collector, (), request_ids, service.lifecycle),
        wall=service.clock.now,
    )
    _add_probes(app, service)
    _add_operators(app, service, instead=None)
    return app


def _add_probes(app: IngestApp, service: IngestService) -> None:
    add_probes(app, appender=service.appender, clock=service.clock, lifecycle=service.lifecycle, keys=service.keys)


def _add_operators(
    app: IngestApp, service: IngestService, *, instead: Callable[[RequestHead], Response | None] | None
) -> None:
    """Add everything that only operators see. `instead`: see `add_pages`."""
    operators, assets = OperatorRoutes(app, service.gate), Assets()
    add_watching(operators, health=service.health_sources, registry=service.registry)
    if service.keys is None or service.settings.operator_port:
        add_throttle(operators, service.throttle)
    add_pages(app, operators, service.viewers, service.long_charts, assets, instead=instead)
    add_contract(operators, service.settings, assets)
    add_runbooks(operators, assets)
    add_assets(operators, assets)


def _version_or_nothing(head: RequestHead) -> Response:
    """The response to `GET /` without a page: shippers of Elasticsearch request the version before they send."""
    return version_response(head) or response_to(NotFound())


def _empty_app(settings: Settings, name: str) -> IngestApp:
    config = Config(env_prefix=None)
    config.ACCESS_LOG = False
    config.AUTO_EXTEND = False
    config.MOTD = False
    config.KEEP_ALIVE_TIMEOUT = KEEP_ALIVE_SECONDS
    config.REQUEST_MAX_HEADER_SIZE = HEAD_BYTES_MAX
    config.REQUEST_MAX_SIZE = max(settings.body_bytes_max, settings.protocol_body_bytes_max)
    # The protocol has its own limits. Sanic's limits are higher, for cases that the protocol does not see.
    config.REQUEST_TIMEOUT = math.ceil(settings.request_seconds_max + 5)
    config.RESPONSE_TIMEOUT = math.ceil(settings.request_seconds_max + 4 * settings.append_seconds_max + 5)
    return Sanic(name, config=config, error_handler=OneShapeErrors(), configure_logging=False)


def routes(settings: Settings, clock: Clock) -> list[Route]:
    """The addresses for events: a row for each, with the codec of its protocol."""
    decoding = Decoding(settings, clock)
    lines, loki = lines_codec(decoding), loki_codec(decoding)
    return [
        Route(EVENTS_PATH, events_codec(settings)),
        Route(EVENTS_PATH, lines, format="lines"),
        Route(LINES_PATH, lines),  # for clients that can't send a query
        Route(LOKI_PATH, loki),
        Route(LOKI_OLD_PATH, loki),
        Route(GELF_PATH, gelf_codec(decoding)),
        Route(OTLP_PATH, otlp_codec(decoding)),
        *bulk_routes(decoding),
        *collector_routes(decoding),
    ]


def inquiries(service: IngestService) -> list[Inquiry]:
    """The addresses that the clients of other protocols ask before they send."""

    def health() -> Health:
        return Health(health_document(service.health_sources())["status"])

    def is_ready() -> bool:
        return service.appender.status(service.clock.monotonic()).answers and not service.lifecycle.is_stopping

    return [*bulk_inquiries(health), *collector_inquiries(is_ready)]


def _http_context(service: IngestService, table: list[Route], cors: Cors | None) -> HttpContext:
    settings, request_ids = service.settings, RequestIds()
    codecs = {_target(route): route.codec for route in table if "POST" in route.methods}
    early = [
        EarlyRejection(
            target,
            codec,
            gate=service.collector,
            metrics=service.metrics,
            request_ids=request_ids,
            bytes_max=settings.body_bytes_max,
            cors=cors,
        )
        for target, codec in codecs.items()
    ]
    return HttpContext(
        limits=ConnectionLimits(
            service.lifecycle,
            request_ids,
            request_seconds_max=settings.request_seconds_max,
            discard_bytes_max=settings.body_bytes_max,
        ),
        connections=ConnectionCounter(
            settings.ingest_connections_max,
            service.note_connection_refusal,
            addresses=ClientAddresses(settings),
            per_address_max=settings.ingest_connections_per_address_max,
        ),
        busy_responses=_busy_responses(),
        collector=service.collector,
        accounts=service.accounts,
        codecs=codecs,
        wall=service.clock.now,
        early_rejections=EarlyRejections(
            service.collector, () if service.collector.traces else early, request_ids, service.lifecycle
        ),
        cors=cors,
    )


def _target(route: Route) -> str:
    """What clients send as the target of a route without variables."""
    return route.path if route.format is None else f"{route.path}?format={route.format}"


def _busy_responses() -> dict[ConnectionRefusal, bytes]:
    """The responses to a connection above each limit."""
    return {reason: _busy_response(reason) for reason in ConnectionRefusal}


def _busy_response(reason: ConnectionRefusal) -> bytes:
    """The response to a connection above a limit. It has no request to answer yet."""
    response = error_response(NotReadyError(reason.words))
    body = response.body
    head = head_of(response.status, response.media_type, len(body), response.headers.items(), keep_alive=False)
    return head + b"\r\n" + body
