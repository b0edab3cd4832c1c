"""The HTTP contract: the function of each address."""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from ingest.appender import Appender
from ingest.collect import Collector
from ingest.errors import (
    KeyRefusedError,
    KeysUnknownError,
    NotReadyError,
    OperatorRefusedError,
    UnsupportedFormatError,
)
from ingest.health import HealthSources, health_document
from ingest.http.cors import Cors
from ingest.http.response import response_to, to_sanic
from ingest.keys import KeyRing
from ingest.operators import OperatorGate
from ingest.throttle import ThrottleView
from ingest.types import JSON, Codec, Inquiry, Lifecycle, RequestHead, Response, Route
from pipeline.clock import Clock
from pipeline.errors import about_the_log

IngestApp = Sanic[Any, Any]
IngestRequest = Request[Any, Any]
Handler = Callable[..., Awaitable[HTTPResponse | None]]

_READ: Final = ("GET", "HEAD")
_OPTIONS: Final = "OPTIONS"
_THROTTLE_PATH: Final = "/api/logs/throttle"


def add_collecting(app: IngestApp, collector: Collector, routes: Iterable[Route]) -> None:
    """Add the addresses for events: the codec's answer, once all events are durable."""

    def add(path: str, codecs: dict[str | None, Codec], methods: tuple[str, ...]) -> None:
        async def post_events(request: IngestRequest, **_of_path: str) -> HTTPResponse:
            # Only requests that the protocol does not answer itself arrive here, such as an address with a query.
            request.stream.is_for_events = True  # type: ignore[union-attr]
            wanted = request.args.get("format") if len(codecs) > 1 else None
            codec = codecs.get(wanted)
            if codec is None:
                known = sorted(name for name in codecs if name is not None)
                return to_sanic(response_to(UnsupportedFormatError(f"the format is none of: {', '.join(known)}")))
            return to_sanic(await collector.collect(codec, request.stream))  # type: ignore[arg-type]

        # stream: the handler runs before the body is read, so that it can reject the request without it.
        name = f"post{re.sub('[^a-z]', '_', path)}"
        app.add_route(post_events, path, methods=list(methods), stream=True, name=name)

    by_path: dict[str, dict[str | None, Codec]] = {}
    methods: dict[str, tuple[str, ...]] = {}
    for route in routes:
        by_path.setdefault(route.path, {})[route.format] = route.codec
        methods[route.path] = route.methods
    for path, codecs in by_path.items():
        add(path, codecs, methods[path])


def add_inquiries(app: IngestApp, inquiries: Iterable[Inquiry]) -> None:
    """Add the addresses that clients ask before they send events."""

    def add(inquiry: Inquiry) -> None:
        async def get_answer(request: IngestRequest, **_of_path: str) -> HTTPResponse:
            return to_sanic(inquiry.answer(request.stream))  # type: ignore[arg-type]

        # stream: a body is not read
        name = f"ask{re.sub('[^a-z]', '_', inquiry.path)}_{inquiry.methods[0].lower()}"
        app.add_route(get_answer, inquiry.path, methods=list(inquiry.methods), stream=True, name=name)

    for inquiry in inquiries:
        add(inquiry)


def with_preflights(inquiries: Iterable[Inquiry], routes: Iterable[Route], cors: Cors) -> list[Inquiry]:
    """The inquiries, and what browsers ask with OPTIONS before a page's script sends events."""
    all_inquiries = list(inquiries)
    by_path = {one.path: one for one in all_inquiries if _OPTIONS in one.methods}

    def preflight(route: Route) -> Inquiry:
        known = by_path.get(route.path)

        def answer(head: RequestHead) -> Response:
            is_preflight = head.headers.get("access-control-request-method") is not None
            return cors.preflight(head.headers, route.methods) if known is None or is_preflight else known.answer(head)

        return Inquiry(route.path, answer, (_OPTIONS,))

    asked = {route.path: preflight(route) for route in routes}
    return [*(one for one in all_inquiries if one is not by_path.get(one.path)), *asked.values()]


class OperatorRoutes:
    """The addresses for operators in an application. Each needs their password, if there is one."""

    def __init__(self, app: IngestApp, gate: OperatorGate) -> None:
        self._app = app
        self._gate = gate

    def add(
        self,
        handler: Handler,
        path: str,
        *,
        name: str,
        instead: Callable[[RequestHead], Response | None] | None = None,
    ) -> None:
        """Add one. `instead` returns the answer to a client that is no operator, and for which the path is another."""

        async def answer(request: IngestRequest, **of_path: str) -> HTTPResponse | None:
            other = None if instead is None else instead(request.stream)  # type: ignore[arg-type]
            if other is not None:
                return to_sanic(other)
            try:
                self._gate.check(request.headers)
            except OperatorRefusedError as refusal:
                return to_sanic(response_to(refusal))
            return await handler(request, **of_path)

        # stream: a body is not read
        self._app.add_route(answer, path, methods=list(_READ), stream=True, name=name)


def add_throttle(routes: OperatorRoutes, view: ThrottleView) -> None:
    """Add who was refused, for operators."""

    async def get_throttle(request: IngestRequest) -> HTTPResponse:
        """Who was refused in the last minutes, how much, and why."""
        return _json(await view.document(request.args.get("account")))

    routes.add(get_throttle, _THROTTLE_PATH, name="get_throttle")


def add_own_throttle(app: IngestApp, view: ThrottleView, gate: OperatorGate | None) -> None:
    """Add who was refused, for clients with API keys: each sees its own account only.

    `gate` knows the operators, who see all accounts here; None if they do that on a port of their own.
    """

    async def get_throttle(request: IngestRequest) -> HTTPResponse:
        """How much of this client was refused in the last minutes, and why."""
        if gate is not None and gate.knows(request.headers):
            return _json(await view.document(request.args.get("account")))
        try:
            account = request.stream.identify(None).account  # type: ignore[union-attr]
        except KeyRefusedError as refusal:
            return to_sanic(response_to(refusal))
        return _json(await view.document(account, only=True))

    app.add_route(get_throttle, _THROTTLE_PATH, methods=_READ, stream=True)


def add_watching(routes: OperatorRoutes, *, health: Callable[[], HealthSources], registry: CollectorRegistry) -> None:
    """Add health and metrics, for operators."""

    async def get_health(_request: IngestRequest) -> HTTPResponse:
        """The health of the whole system, from memory."""
        return _json(health_document(health()))

    async def get_metrics(_request: IngestRequest) -> HTTPResponse:
        """This process' own metrics."""
        return HTTPResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    routes.add(get_health, "/api/logs/health", name="get_health")
    routes.add(get_metrics, "/metrics", name="get_metrics")


def add_probes(app: IngestApp, *, appender: Appender, clock: Clock, lifecycle: Lifecycle, keys: KeyRing | None) -> None:
    """Add liveness and readiness, which need no password: supervisors and load balancers have none."""

    async def get_healthz(_request: IngestRequest) -> HTTPResponse:
        """This process is alive."""
        return _json({"status": "alive"})

    async def get_readyz(_request: IngestRequest) -> HTTPResponse:
        """Whether this process accepts events: 503 until the event log responds, and while shutting down.

        Also until the API keys are known, if clients need one.
        """
        log = appender.status(clock.monotonic())
        if lifecycle.is_stopping:
            return to_sanic(response_to(NotReadyError("this process is shutting down")))
        if not log.answers:
            silent = "the event log does not answer"
            return to_sanic(response_to(NotReadyError(about_the_log(log.problem or silent, silent))))
        if keys is not None and not keys.is_known:
            return to_sanic(response_to(KeysUnknownError()))
        return _json({"status": "ready"})

    app.add_route(get_healthz, "/healthz", methods=_READ, stream=True)
    app.add_route(get_readyz, "/readyz", methods=_READ, stream=True)


def _json(document: dict[str, Any]) -> HTTPResponse:
    return HTTPResponse(
        msgspec.json.encode(document), status=200, content_type=JSON, headers={"cache-control": "no-store"}
    )
