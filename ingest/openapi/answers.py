"""The answers of the contract as OpenAPI components: the meaning and the headers of each status."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from ingest.codecs.strict_json import DEPTH_MAX
from ingest.errors import rows_by_code
from ingest.grammar import HEAD_BYTES_MAX
from ingest.http.request_id import CHARS_MAX
from ingest.openapi.schemas import Schema, ref
from pipeline.settings import Settings

JSON: Final = "application/json"

# Codes that no request can get: Sanic's own errors, which can't occur after ingest's parser of heads.
CODES_NEVER_ANSWERED: Final = frozenset({"uri_too_long"})

_MEANINGS: Final[dict[str, str]] = {
    "malformed": "The body is not JSON, or not gzip where it says so. Send it otherwise.",
    "bad_request": "The request is not HTTP/1.1 as the RFC has it. Mend the client or what stands between.",
    "timeout": "Headers and body did not arrive in time. Nothing is stored; send it again, faster.",
    "not_found": "There is nothing at this address.",
    "method_not_allowed": "The address takes other methods: see `Allow`.",
    "too_large": "Send smaller bodies, or fewer events in each.",
    "unsupported_media_type": "Send `application/json` or `application/x-ndjson`, in UTF-8, plain or gzipped.",
    "expectation_failed": "Only `Expect: 100-continue` is understood.",
    "invalid": "An event breaks a rule; `errors` has the first problems. None of the body is stored.",
    "rate_limited": "The admitted rate is used up. Nothing is stored; repeat after `Retry-After` seconds.",
    "headers_too_large": "The request line and headers are too large.",
    "unavailable": "Nothing is stored. Repeat after `Retry-After` seconds.",
    "indeterminate": (
        "Any subset of the events may be stored. Repeat after `Retry-After` seconds, with the same `eventId`s: "
        "what is stored already is not stored twice."
    ),
}


def code_meanings() -> dict[str, str]:
    """The meaning of each code, with its status as a prefix, sorted by status."""
    rows = {code: row for code, row in rows_by_code().items() if code not in CODES_NEVER_ANSWERED}
    ordered = sorted(rows.values(), key=lambda row: (row.status, row.code))
    return {row.code: f"{row.status}: {_MEANINGS[row.code]}" for row in ordered}


def headers() -> dict[str, Schema]:
    """All components of the kind headers."""
    return {
        "X-Request-ID": {
            "description": f"The request's name: the client's own, or one given here. Up to {CHARS_MAX} characters.",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": CHARS_MAX},
            "example": "3f9a1c07be52-118",
        },
        "Retry-After": {
            "description": "Whole seconds to wait before the same request is sent again; spread over clients.",
            "required": True,
            "schema": {"type": "integer", "minimum": 1},
            "example": 2,
        },
        "RateLimit-Policy": {
            "description": "The admitted rate: `q` events in a window of `w` seconds (IETF draft).",
            "required": True,
            "schema": {"type": "string", "pattern": '^"events";q=[0-9]+;w=1$'},
            "example": '"events";q=1000;w=1',
        },
        "RateLimit": {
            "description": "What is left of it: `r` events, and `t` seconds until more come (IETF draft).",
            "required": True,
            "schema": {"type": "string", "pattern": '^"events";r=-?[0-9]+;t=[0-9]+$'},
            "example": '"events";r=0;t=2',
        },
        "Allow": {
            "description": "The methods that the address takes.",
            "required": True,
            "schema": {"type": "string"},
            "example": "POST",
        },
        "Accept-Encoding": {
            "description": "The content codings that a body may have.",
            "required": True,
            "schema": {"const": "gzip"},
        },
        "Cache-Control": {"description": "How long the answer may be kept.", "schema": {"type": "string"}},
        "ETag": {
            "description": "Names this content, for `If-None-Match`.",
            "required": True,
            "schema": {"type": "string"},
        },
    }


def _headers(*names: str) -> Schema:
    return {name: ref(name, "headers") for name in ("X-Request-ID", *names)}


def _answer(description: str, schema: str, *names: str, examples: Mapping[str, Any]) -> Schema:
    """A JSON answer with X-Request-ID and these headers. `examples`: a label for each document."""
    return {
        "description": description,
        "headers": _headers(*names),
        "content": {
            JSON: {
                "schema": ref(schema),
                "examples": {
                    f"example{number}": {"summary": summary, "value": value}
                    for number, (summary, value) in enumerate(examples.items(), 1)
                },
            }
        },
    }


def _example(code: str, message: str, **details: Any) -> Schema:
    return {"error": {"code": code, "message": message, **details}}


def ok(description: str, schema: str, example: Any, *names: str) -> Schema:
    """A 200 of JSON, with X-Request-ID and these headers."""
    return _answer(description, schema, *names, examples={"Example": example})


def other(description: str, media_type: str, *names: str) -> Schema:
    """A 200 of another type than JSON."""
    return {
        "description": description,
        "headers": _headers(*names),
        "content": {media_type: {"schema": {"type": "string"}}},
    }


def responses(settings: Settings) -> dict[str, Schema]:
    """All components of the kind responses."""
    bytes_max, events_max = settings.body_bytes_max, settings.body_events_max
    reason = "has 0 characters; 1 to 128 are allowed"
    busy = _example("unavailable", "this process has too many connections")
    away = _example("unavailable", "the event log does not answer")
    unsure = _example("indeterminate", "the event log did not confirm the append in time: any subset may be stored")
    return {
        "Accepted": _answer(
            "Every event of the body is durable in the event log. This is never taken back.",
            "Accepted",
            examples={"Two events": {"accepted": 2}},
        ),
        "Malformed": _answer(
            "The body is not JSON in UTF-8, has something after its end, contains NaN or an infinity, is nested deeper "
            f"than {DEPTH_MAX}, or is not gzip where it says so (`malformed`); or the request itself is not HTTP/1.1 "
            "as the RFC has it (`bad_request`, and the connection is closed).",
            "MalformedError",
            examples={
                "A trailing comma": _example(
                    "malformed", "not JSON: Illegal trailing comma before end of object", byte=103, line=1
                ),
                "Two lengths": _example("bad_request", "Content-Length and Transfer-Encoding: only one of them"),
            },
        ),
        "BadRequest": _answer(
            "The request is not HTTP/1.1 as the RFC has it; the connection is closed.",
            "Error",
            examples={
                "A blank before a colon": _example("bad_request", "the request line or a header is not HTTP/1.1")
            },
        ),
        "NotFound": _answer(
            "There is nothing at this address.",
            "Error",
            examples={"Example": _example("not_found", "there is nothing here; events go to POST /api/logs")},
        ),
        "MethodNotAllowed": _answer(
            "The address takes other methods.",
            "Error",
            "Allow",
            examples={"Example": _example("method_not_allowed", "Method GET not allowed for URL /api/logs")},
        ),
        "Timeout": _answer(
            f"Headers and body were not complete within {settings.request_seconds_max:g} s; the connection is closed.",
            "Error",
            examples={"Example": _example("timeout", "headers and body did not arrive within the time allowed")},
        ),
        "TooLarge": _answer(
            f"The body is larger than {bytes_max:,} bytes, inflated, or has more than {events_max:,} events.",
            "TooLargeError",
            examples={
                "Too many bytes": _example(
                    "too_large", f"the body is larger than {bytes_max} bytes, inflated", limit=bytes_max, unit="bytes"
                )
            },
        ),
        "Unsupported": _answer(
            "The media type, charset or content coding is not taken.",
            "UnsupportedError",
            "Accept-Encoding",
            examples={
                "No Content-Type": _example(
                    "unsupported_media_type",
                    "there is no Content-Type; it must be application/json or application/x-ndjson",
                    accepted=["application/json", "application/x-ndjson"],
                    codings=["gzip", "identity"],
                )
            },
        ),
        "ExpectationFailed": _answer(
            "Only `100-continue` can be expected.",
            "Error",
            examples={"Example": _example("expectation_failed", "only 100-continue can be expected")},
        ),
        "Invalid": _answer(
            "It is JSON, but empty, not objects, or an event breaks a rule. Nothing of it is stored.",
            "InvalidError",
            examples={
                "An empty id": _example(
                    "invalid",
                    "events break their rules; none was taken",
                    errors=[{"index": 0, "field": "correlationId", "reason": reason}],
                )
            },
        ),
        "RateLimited": _answer(
            "The admitted rate is used up. Nothing is stored. Often answered before the body is read.",
            "Error",
            *("Retry-After", "RateLimit", "RateLimit-Policy"),
            examples={"Example": _example("rate_limited", "the admitted rate is used up")},
        ),
        "HeadersTooLarge": _answer(
            f"The request line and headers are larger than {HEAD_BYTES_MAX:,} bytes; the connection is closed.",
            "Error",
            examples={"Example": _example("headers_too_large", f"the headers are larger than {HEAD_BYTES_MAX} bytes")},
        ),
        "Unavailable": _answer(
            "`unavailable`: the event log is away or full, or this process has too much to do; nothing is stored. "
            "`indeterminate`: the append was not confirmed; any subset may be stored. A process with too many "
            "connections answers so before it has read anything, without `X-Request-ID`.",
            "Error",
            "Retry-After",
            examples={"Nothing is stored": away, "Any subset may be stored": unsure},
        )
        | {"headers": {"Retry-After": ref("Retry-After", "headers"), "X-Request-ID": _request_id_where_read()}},
        "NotNow": _answer(
            "This process has too many connections or live pages, or is shutting down.",
            "Error",
            "Retry-After",
            examples={"Too many connections": busy},
        )
        | {"headers": {"Retry-After": ref("Retry-After", "headers"), "X-Request-ID": _request_id_where_read()}},
        "NotModified": {
            "description": "The content is still the one that `If-None-Match` names.",
            "headers": _headers("ETag"),
        },
    }


def _request_id_where_read() -> Schema:
    """X-Request-ID of an answer that may be sent before a request is read."""
    return {**headers()["X-Request-ID"], "required": False}


def phrase(status: str) -> str:
    """The phrase of a status."""
    return HTTPStatus(int(status)).phrase
