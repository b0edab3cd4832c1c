"""The OpenAPI 3.1 document of the HTTP contract. Pure: settings in, document out."""

from typing import Any, Final

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ingest.codecs.strict_json import DEPTH_MAX
from ingest.grammar import HEAD_BYTES_MAX
from ingest.openapi.answers import JSON, code_meanings, headers, ok, other, responses
from ingest.openapi.schemas import EVENT, RICH_EVENT, Schema, batch_schema, ref, schemas
from pipeline.event import MESSAGE_BYTES_MAX
from pipeline.settings import Settings

NDJSON: Final = "application/x-ndjson"
HTML: Final = "text/html; charset=utf-8"
EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
_VERSION: Final = "1.0.0"  # of the contract

# Answers that any request may get.
COMMON: Final = {
    "400": "BadRequest",
    "408": "Timeout",
    "417": "ExpectationFailed",
    "431": "HeadersTooLarge",
    "503": "NotNow",
}


def openapi_document(settings: Settings) -> Schema:
    """The contract of an ingest with these settings; everything in it is JSON."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sluice",
            "version": _VERSION,
            "summary": "Takes events over HTTP, and says honestly what became of them.",
            "description": _description(settings),
        },
        "servers": [{"url": "/", "description": "This ingest"}],
        "tags": [
            {"name": "events", "description": "What clients send."},
            {"name": "state", "description": "For operators, load balancers and Prometheus."},
            {"name": "pages", "description": "For browsers."},
        ],
        "paths": {
            "/api/logs": {"post": _post_logs(settings)},
            "/api/logs/health": {"get": _get_health()},
            "/healthz": {"get": _get_healthz()},
            "/readyz": {"get": _get_readyz()},
            "/metrics": {"get": _get_metrics()},
            "/": {"get": _get_page()},
            "/events": {"get": _get_events(settings)},
            "/assets/{name}": {"get": _get_asset()},
            "/openapi.json": {"get": _get_openapi()},
            "/docs": {"get": _get_docs()},
        },
        "components": {
            "schemas": schemas(settings, code_meanings()),
            "responses": responses(settings),
            "headers": headers(),
        },
    }


def _description(settings: Settings) -> str:
    return (
        "An event is durable in a log before it is acknowledged with 202, and is stored in PostgreSQL exactly once, "
        "soon after. When the store falls behind or fails, the admitted rate falls, and what is beyond it gets 429.\n\n"
        "What a client needs to know:\n\n"
        "- 202 is never taken back. Any other answer but 503 `indeterminate` means that nothing was stored. "
        "A connection that breaks without an answer is indeterminate too.\n"
        "- 429 and 503 are the only answers to repeat, after `Retry-After` seconds. "
        "Send an `eventId` with each event, and a repeat is safe.\n"
        "- A body is taken as a whole or not at all.\n"
        f"- Limits: {settings.body_bytes_max:,} bytes of body after inflating, {settings.body_events_max:,} events, "
        f"{MESSAGE_BYTES_MAX:,} bytes of message, nesting of {DEPTH_MAX}, {HEAD_BYTES_MAX:,} bytes of headers, "
        f"{settings.request_seconds_max:g} s for all of it to arrive.\n"
        "- There is no authentication here: that belongs to what stands before it.\n\n"
        "Every `GET` answers `HEAD` too. A 500 is a defect, and nothing that is sent may cause one."
    )


def _operation(name: str, tag: str, summary: str, description: str, answers: dict[str, Any], **more: Any) -> Schema:
    """An operation with these answers and those that any request may get. A string names a component."""
    named = {
        status: ref(one, "responses") if isinstance(one, str) else one for status, one in {**COMMON, **answers}.items()
    }
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "description": description,
        **more,
        "responses": dict(sorted(named.items())),
    }


def _post_logs(settings: Settings) -> Schema:
    encoding = {
        "name": "Content-Encoding",
        "in": "header",
        "description": "gzip where the body is; several members are taken, other codings are not.",
        "schema": {"enum": ["gzip", "identity"]},
    }
    request_id = {
        "name": "X-Request-ID",
        "in": "header",
        "description": (
            "The client's name for the request: letters, digits and `._:+=@-`, up to 64. It is answered, logged, and "
            "kept with each event. What is not such a name is replaced in silence."
        ),
        "schema": {"type": "string"},
        "example": "import-2026-11-24.17",
    }
    lines = f"One event a line, 1 to {settings.body_events_max:,} of them; blank lines do not count."
    body = {
        "required": True,
        "description": "One event, or a batch of them.",
        "content": {
            JSON: {
                "schema": {"anyOf": [ref("Event"), ref("Batch")]},
                "examples": {
                    "event": {"summary": "One event", "value": EVENT},
                    "batch": {"summary": "A batch", "value": [EVENT, RICH_EVENT]},
                },
            },
            NDJSON: {
                "schema": batch_schema(settings, lines),
                "examples": {"lines": {"summary": "One event a line", "value": [EVENT, RICH_EVENT]}},
            },
        },
    }
    answers = {
        "202": "Accepted",
        "400": "Malformed",
        "413": "TooLarge",
        "415": "Unsupported",
        "422": "Invalid",
        "429": "RateLimited",
        "503": "Unavailable",
    }
    return _operation(
        "postLogs",
        "events",
        "Take events",
        "Answers 202 once every event of the body is durable in the event log. Events with the same `correlationId` "
        "go to the same partition, in order.",
        answers,
        parameters=[encoding, request_id],
        requestBody=body,
    )


def _get_health() -> Schema:
    example = schemas(Settings(), code_meanings())["Health"]["examples"][0]
    return _operation(
        "getHealth",
        "state",
        "Health of the whole system",
        "Always 200, from memory, never waiting for a server: a client that backs off by it costs nothing.",
        {"200": ok("How it is.", "Health", example, "Cache-Control")},
    )


def _get_healthz() -> Schema:
    return _operation(
        "getHealthz",
        "state",
        "Is this process alive?",
        "200 for as long as it answers at all. For a supervisor.",
        {"200": ok("It is.", "Alive", {"status": "alive"}, "Cache-Control")},
    )


def _get_readyz() -> Schema:
    return _operation(
        "getReadyz",
        "state",
        "Does this process take events?",
        "503 until the event log answers, and while shutting down. For a load balancer.",
        {"200": ok("It does.", "Ready", {"status": "ready"}, "Cache-Control"), "503": "Unavailable"},
    )


def _get_metrics() -> Schema:
    return _operation(
        "getMetrics",
        "state",
        "Metrics for Prometheus",
        "Of this process alone: several ingest processes share a port, and each has a metrics port of its own.",
        {"200": other("Metrics in Prometheus' text format.", CONTENT_TYPE_LATEST)},
    )


def _get_page() -> Schema:
    return _operation(
        "getPage",
        "pages",
        "The live page",
        "What the gateway does and why, second by second.",
        {"200": other("The page.", HTML, "Cache-Control")},
    )


def _get_events(settings: Settings) -> Schema:
    answer = other("The stream; it does not end by itself.", EVENT_STREAM, "Cache-Control")
    answer["content"][EVENT_STREAM] = {}  # its events have no schema
    return _operation(
        "getEvents",
        "pages",
        "The live page's stream",
        "Server-sent events: `snapshot` first, then `tick` once a second. Made for the page, which comes with it: its "
        f"content may change. At most {settings.page_viewers_max} at once for each process.",
        {"200": answer},
    )


def _get_asset() -> Schema:
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "As the page has it; it changes with the content.",
        "schema": {"type": "string"},
    }
    answer = other("The file; it may be kept for ever.", "text/javascript; charset=utf-8", "Cache-Control")
    for media_type in ("text/css; charset=utf-8", "image/svg+xml"):
        answer["content"][media_type] = {"schema": {"type": "string"}}
    return _operation(
        "getAsset",
        "pages",
        "A file of the page",
        "Scripts, styles and icons.",
        {"200": answer, "404": "NotFound"},
        parameters=[name],
    )


_IF_NONE_MATCH: Final[Schema] = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The `ETag` of an answer that the client has kept.",
    "schema": {"type": "string"},
}


def _get_openapi() -> Schema:
    answer = other("The document.", JSON, "ETag", "Cache-Control")
    answer["content"][JSON] = {"schema": {"type": "object", "required": ["openapi", "info", "paths"]}}
    return _operation(
        "getOpenApi",
        "pages",
        "This document",
        "The contract in OpenAPI 3.1, with the limits of this ingest's settings.",
        {"200": answer, "304": "NotModified"},
        parameters=[_IF_NONE_MATCH],
    )


def _get_docs() -> Schema:
    return _operation(
        "getDocs",
        "pages",
        "The contract for people",
        "This document as a page, with commands to try.",
        {"200": other("The page.", HTML, "ETag", "Cache-Control"), "304": "NotModified"},
        parameters=[_IF_NONE_MATCH],
    )
