"""The HTTP contract: what each address does."""

import logging
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sanic import Request, Sanic
from sanic.response import HTTPResponse
from uuid_utils import uuid7

from ingest.body import hint, parse_quickly
from ingest.dashboard.pages import add_pages
from ingest.edge import Edge
from ingest.errors import InvalidEventsError, MalformedBodyError, NotReadyError, answer, row_of
from ingest.event_rules import check_times
from ingest.health import health_document
from ingest.media import BodyKind, body_kind, inflate, is_gzip, without_mark
from ingest.openapi.routes import add_contract
from pipeline.errors import SluiceError
from pipeline.event import Event, encode_record, partition_of, record_head

if TYPE_CHECKING:
    from ingest.http1 import IngestHttp

_logger = logging.getLogger(__name__)

EVENTS_PATH: Final = "/api/logs"
_JSON: Final = "application/json"

IngestApp = Sanic[Any, Any]
IngestRequest = Request[Any, Any]


def add_routes(app: IngestApp) -> None:
    """Add everything of the contract."""
    # stream: the handler runs before the body is read, so that it can refuse without it.
    app.add_route(post_logs, EVENTS_PATH, methods=["POST"], stream=True)
    app.add_route(get_health, "/api/logs/health", methods=["GET", "HEAD"])
    app.add_route(get_healthz, "/healthz", methods=["GET", "HEAD"])
    app.add_route(get_readyz, "/readyz", methods=["GET", "HEAD"])
    app.add_route(get_metrics, "/metrics", methods=["GET", "HEAD"])
    add_pages(app)
    add_contract(app, app.ctx.edge.settings)


async def post_logs(request: IngestRequest) -> HTTPResponse:
    """Take events: 202 once every one of them is durable in the log."""
    taken = await take_events(request)
    if isinstance(taken, HTTPResponse):
        return taken
    return HTTPResponse(b'{"accepted":%d}' % taken, status=202, content_type=_JSON)


async def take_events(request: IngestRequest) -> int | HTTPResponse:
    """How many events were taken, once every one of them is durable in the log; or the answer that says why not."""
    edge: Edge = request.app.ctx.edge
    try:
        count = await _take_events(request, edge)
    except SluiceError as error:
        edge.metrics.answers.labels(row_of(error).code).inc()
        if edge.traces:
            _trace(request, row_of(error).code, str(error))
        return answer(error, _request_id(request))
    if edge.traces:
        _trace(request, "accepted", f"{count} events")
    edge.metrics.accepted_answers.inc()
    edge.metrics.accepted_events.inc(count)
    return count


def _request_id(request: IngestRequest) -> str:
    return cast("IngestHttp", request.stream).request_id


def _trace(request: IngestRequest, code: str, what: str) -> None:
    """Say what became of a request."""
    name = _request_id(request)
    extra = {"action": "request_answered", "request_id": name, "code": code}
    _logger.debug("request %s: %s, %s", name, code, what, extra=extra)


async def _take_events(request: IngestRequest, edge: Edge) -> int:
    """Read, check, admit and append the events of a request; returns how many. Raises SluiceError."""
    headers = request.headers
    kind = body_kind(headers.get("content-type"))
    gzipped = is_gzip(headers.get("content-encoding"))
    edge.appender.refuse_if_blocked()
    edge.admission.refuse_if_empty()
    bytes_max = edge.settings.body_bytes_max
    stream = cast("IngestHttp", request.stream)
    with edge.held_bodies.begin() as held:
        body = await stream.receive_body(bytes_max, held)
        head = record_head(int(edge.clock.now() * 1000), stream.request_id)
        if gzipped:
            body = inflate(body, bytes_max)
            held.note(len(body))
        body = without_mark(body)
        events = await _events_of(body, kind, edge)
        count = len(events)
        try:
            if not edge.admission.take_now(count):
                await edge.admission.take(count)
            entries, size = _records(events, head, edge.appender.partitions)
            await edge.appender.append(entries, size)
        except SluiceError:
            edge.refused_beyond_first += count - 1
            raise
    return count


async def _events_of(body: bytes, kind: BodyKind, edge: Edge) -> list[Event]:
    """The events of an inflated body. Raises as `ingest.body.parse_body`, and OverloadedError."""
    try:
        events = parse_quickly(body, kind, edge.settings.body_events_max)
        if events is None:
            events = await edge.hard_bodies.events(body, kind)
    except (MalformedBodyError, InvalidEventsError) as error:
        error.hint = hint(body, kind)
        raise
    check_times(events, edge.settings.event_time_min_ms)
    return events


def _records(events: list[Event], head: bytes, partitions: int) -> tuple[list[tuple[int, bytes]], int]:
    """(partition, record) of each event, and the bytes of all. Gives ids to events that have none."""
    entries = []
    size = 0
    for event in events:
        if event.event_id is None:
            event.event_id = str(uuid7())
        record = encode_record(event, head)
        size += len(record)
        entries.append((partition_of(event.correlation_id, partitions), record))
    return entries, size


async def get_health(request: IngestRequest) -> HTTPResponse:
    """The health of the whole system, from memory."""
    return _json(health_document(request.app.ctx.edge.vitals()))


async def get_healthz(_request: IngestRequest) -> HTTPResponse:
    """This process is alive."""
    return _json({"status": "alive"})


async def get_readyz(request: IngestRequest) -> HTTPResponse:
    """Whether this process takes events: 503 until the log answers, and while shutting down."""
    edge: Edge = request.app.ctx.edge
    log = edge.appender.status(edge.clock.monotonic())
    if edge.is_stopping:
        return answer(NotReadyError("this process is shutting down"))
    if not log.answers:
        return answer(NotReadyError(f"the event log does not answer: {log.problem}"))
    return _json({"status": "ready"})


async def get_metrics(request: IngestRequest) -> HTTPResponse:
    """This process' own metrics."""
    edge: Edge = request.app.ctx.edge
    return HTTPResponse(generate_latest(edge.registry), content_type=CONTENT_TYPE_LATEST)


def _json(document: dict[str, Any]) -> HTTPResponse:
    return HTTPResponse(
        msgspec.json.encode(document), status=200, content_type=_JSON, headers={"cache-control": "no-store"}
    )
