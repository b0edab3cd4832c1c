"""JSON Schemas (2020-12) of all requests and answers, from the constants that ingest itself uses.

If JSON Schema can't express a rule, the description has it. Two schemas are stricter than ingest: it accepts a number
of an attribute beyond 64 bits if it has a fraction or an exponent, and it treats null as a missing `eventId` or
`attributes`.
"""

from collections.abc import Mapping
from typing import Any, Final

from ingest.errors import NAME_CHARS_MAX, PROBLEMS_MAX
from pipeline.event import (
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_KEYS_MAX,
    CORRELATION_ID_CHARS_MAX,
    EVENT_ID_CHARS_MAX,
    MESSAGE_BYTES_MAX,
    SEVERITIES,
    SEVERITY_ALIASES,
    SOURCE_CHARS_MAX,
    TIMESTAMP_MS_MAX,
)
from pipeline.names import BreakerState, Health, PauseReason
from pipeline.settings import Settings

Schema = dict[str, Any]

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
_NO_NUL: Final = "^[^\\u0000]*$"

EVENT: Final[dict[str, Any]] = {
    "correlationId": "test-1",
    "severity": "INFO",
    "message": "Test",
    "source": "cli",
    "timestamp": 1234567890000,
}
RICH_EVENT: Final[dict[str, Any]] = {
    "correlationId": "order-4711",
    "severity": "WARN",
    "message": "payment took 2.1 s",
    "source": "checkout",
    "timestamp": 1764000000000,
    "eventId": "order-4711-payment",
    "attributes": {"seconds": 2.1, "retries": 1, "card": True, "shop": "Bern"},
}


def ref(name: str, kind: str = "schemas") -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def _object(description: str, properties: Schema, *, optional: tuple[str, ...] = ()) -> Schema:
    """An object with these properties and no others; all are required except `optional`."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _text(description: str, chars_max: int, *, chars_min: int = 1, optional: bool = False) -> Schema:
    """A string of the event."""
    return {
        "type": ["string", "null"] if optional else "string",
        "minLength": chars_min,
        "maxLength": chars_max,
        "pattern": _NO_NUL,
        "description": description,
    }


def _any_case(words: tuple[str, ...]) -> str:
    """A pattern for words in any case; JSON Schema's regular expressions have no flag for this."""
    return "^(?:" + "|".join("".join(f"[{c}{c.lower()}]" for c in word) for word in words) + ")$"


def event_schema(settings: Settings) -> Schema:
    """The event as a client sends it."""
    aliases = " and ".join(f"{alias} is taken for {name}" for alias, name in SEVERITY_ALIASES.items())
    properties = {
        "correlationId": _text(
            "What belongs together: events with the same one keep their order.", CORRELATION_ID_CHARS_MAX
        ),
        "severity": {
            "type": "string",
            "pattern": _any_case((*SEVERITIES, *SEVERITY_ALIASES)),
            "description": f"{', '.join(SEVERITIES)}, in any case; {aliases}.",
            "examples": list(SEVERITIES),
        },
        "message": {
            "type": "string",
            "maxLength": MESSAGE_BYTES_MAX,
            "pattern": _NO_NUL,
            "description": f"Up to {MESSAGE_BYTES_MAX:,} bytes as UTF-8; may be empty.",
        },
        "source": _text("What sent it: a service, a host, a device.", SOURCE_CHARS_MAX),
        "timestamp": {
            "type": "integer",
            "format": "int64",
            "minimum": settings.event_time_min_ms,
            "maximum": TIMESTAMP_MS_MAX,
            "description": "When it happened: milliseconds since 1970, up to the year 9999. `1.0` is no integer here. "
            "A value that looks like seconds is refused.",
        },
        "eventId": _text(
            "The same id again is stored once, so a repeated request does no harm. The same id with other content is "
            "refused within one body; later, it is kept apart and not stored. Given here where it is missing.",
            EVENT_ID_CHARS_MAX,
            optional=True,
        ),
        "attributes": {
            "type": ["object", "null"],
            "maxProperties": ATTRIBUTES_KEYS_MAX,
            "propertyNames": {"pattern": _NO_NUL},
            "additionalProperties": ref("AttributeValue"),
            "description": f"Flat; up to {ATTRIBUTES_KEYS_MAX} keys and {ATTRIBUTES_BYTES_MAX:,} bytes as JSON. "
            "A number that would change when it is stored is refused: one of more than 17 significant digits, one too "
            "near to 0, -0.0.",
        },
    }
    description = (
        "One event or log line. A field that is not listed is an error that names it: nothing is dropped in silence. "
        "No string may contain a NUL character or half of a surrogate pair. The last of duplicate keys wins."
    )
    schema = _object(description, properties, optional=("eventId", "attributes"))
    return schema | {"examples": [EVENT, RICH_EVENT]}


def attribute_value_schema() -> Schema:
    """The allowed values of an attribute."""
    return {
        "description": (
            "A string, a boolean, or a finite number; integers have at most 64 bits. Numbers beyond that are taken "
            "where they are written with a fraction or an exponent."
        ),
        "anyOf": [
            {"type": "string", "pattern": _NO_NUL},
            {"type": "boolean"},
            {"type": "integer", "format": "int64", "minimum": INT64_MIN, "maximum": INT64_MAX},
            {"type": "number", "format": "double", "exclusiveMinimum": INT64_MIN, "exclusiveMaximum": INT64_MAX},
        ],
    }


def batch_schema(settings: Settings, description: str) -> Schema:
    """Several events."""
    return {
        "type": "array",
        "description": description,
        "items": ref("Event"),
        "minItems": 1,
        "maxItems": settings.body_events_max,
    }


def _rate(description: str) -> Schema:
    return {"type": ["number", "null"], "minimum": 0, "description": description}


def health_schema() -> Schema:
    """The document of GET /api/logs/health."""
    properties = {
        "status": {
            "enum": [status.value for status in Health],
            "description": (
                "critical: the lag is above its upper threshold, the circuit breaker is open, the log is down, or "
                "events wait and none was stored for NO_PROGRESS_SECONDS_MAX. degraded: the lag is above its lower "
                "threshold, something is unknown, consumption is paused, or more than REFUSED_RATIO_MAX of the offered "
                "events were refused. unknown: nothing can be told; an ingest process does not say it of itself."
            ),
        },
        "consumerLag": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "Events in the log that are not stored yet.",
        },
        "rateLimit": {
            "type": "number",
            "minimum": 0,
            "description": "Events a second that are admitted, over all processes.",
        },
        "rateOverride": {
            "anyOf": [ref("RateOverride"), {"type": "null"}],
            "description": "A rate that was set by hand, while it holds.",
        },
        "availablePermissions": {
            "type": ["integer", "null"],
            "description": "Tokens in the bucket; below 0 after a body larger than the bucket.",
        },
        "circuitBreaker": {"enum": [state.value for state in BreakerState], "description": "Of PostgreSQL."},
        "consumption": {
            "enum": ["running", "paused", "stalled", "unknown"],
            "description": (
                f"Pauses have reasons: {', '.join(reason.value for reason in PauseReason)}. stalled: events wait, and "
                "none was stored for NO_PROGRESS_SECONDS_MAX."
            ),
        },
        "controllerAgeSeconds": {
            "type": ["number", "null"],
            "minimum": 0,
            "description": "Since the controller last published a rate.",
        },
        "eventLog": {"enum": ["kafka", "redis"], "description": "The kind of event log."},
        "offered": _rate("Events a second that clients sent in the last seconds: admitted and refused."),
        "admitted": _rate("Events a second that were admitted in the last seconds."),
        "refused": _rate(
            "Events a second that were refused with 429 or 503 in the last seconds; a body that was refused unread "
            "counts as one."
        ),
        "stored": _rate("Events a second that were stored in PostgreSQL in the last seconds."),
        "drainSeconds": _rate(
            "Seconds until the lag is stored at that pace while nothing more is admitted; null: no end in sight."
        ),
        "reasons": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Why it is not healthy, in words; empty where it is.",
        },
    }
    example = {
        "status": "degraded",
        "consumerLag": 21730,
        "rateLimit": 736.075,
        "rateOverride": None,
        "availablePermissions": 0,
        "circuitBreaker": "closed",
        "consumption": "running",
        "controllerAgeSeconds": 2.417,
        "eventLog": "redis",
        "offered": 735.2,
        "admitted": 735.2,
        "refused": 0,
        "stored": 611.9,
        "drainSeconds": 35.5,
        "reasons": ["Consumers are behind: 21,730 events wait; the rate is 736/s; at this pace stored in about 36 s"],
    }
    description = "How the whole system is, as this process knows it; made from memory."
    return _object(description, properties) | {"examples": [example]}


def error_schemas(codes: Mapping[str, str]) -> dict[str, Schema]:
    """The JSON form of errors, and errors with more fields. `codes` has the meaning of each code."""
    code = {
        "type": "string",
        "description": "For programs.",
        "oneOf": [{"const": name, "description": meaning} for name, meaning in codes.items()],
    }
    message = {"type": "string", "description": "For people."}
    shape = {
        "type": "object",
        "description": "Every error looks like this.",
        "properties": {
            "error": {
                "type": "object",
                "properties": {"code": code, "message": message},
                "required": ["code", "message"],
            }
        },
        "required": ["error"],
        "additionalProperties": False,
    }
    problem = _object(
        "Why one event is refused.",
        {
            "index": {"type": "integer", "minimum": 0, "description": "Of the event in the body, from 0."},
            "field": {
                "type": ["string", "null"],
                "description": f"Null where it is the event as a whole; {NAME_CHARS_MAX} characters of an unknown one.",
            },
            "reason": {"type": "string"},
        },
    )
    place = {"type": ["integer", "null"], "minimum": 0}
    return {
        "Error": shape,
        "Problem": problem,
        "MalformedError": _error(
            "It is not JSON, or too much of it.",
            {"enum": ["malformed", "bad_request"]},
            {
                "byte": place | {"description": "Where, from 0, in the inflated body; null where that is not known."},
                "line": place | {"minimum": 1, "description": "Its line, from 1."},
            },
            optional=("byte", "line"),
        ),
        "InvalidError": _error(
            "It is JSON, but not one or more events.",
            {"const": "invalid"},
            {
                "errors": {
                    "type": "array",
                    "items": ref("Problem"),
                    "maxItems": PROBLEMS_MAX,
                    "description": f"The first {PROBLEMS_MAX} problems; none for an empty batch.",
                }
            },
        ),
        "TooLargeError": _error(
            "The body or batch is too large.",
            {"const": "too_large"},
            {
                "limit": {"type": "integer", "description": "How large it may be."},
                "unit": {"enum": ["bytes", "events"], "description": "What the limit counts; bytes after inflating."},
            },
        ),
        "UnsupportedError": _error(
            "The media type, charset or content coding is not taken.",
            {"const": "unsupported_media_type"},
            {
                "accepted": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "Media types that are taken.",
                },
                "codings": {"type": "array", "items": {"type": "string"}, "description": "Content codings that are."},
            },
        ),
    }


def _error(description: str, code: Schema, more: Schema, *, optional: tuple[str, ...] = ()) -> Schema:
    """The schema of an error with more fields than code and message."""
    inner = _object(description, {"code": code, "message": {"type": "string"}, **more}, optional=optional)
    return _object(description, {"error": inner})


def schemas(settings: Settings, codes: Mapping[str, str]) -> dict[str, Schema]:
    """All components of the kind schemas; `codes` as in `error_schemas`."""
    override = _object(
        "A rate that was set by hand.",
        {
            "rate": {"type": "number", "description": "Events a second."},
            "endsInSeconds": {"type": "number", "minimum": 0},
            "by": {"type": "string"},
            "why": {"type": "string"},
        },
    )
    accepted = _object(
        "Every event of the body is durable in the event log.",
        {"accepted": {"type": "integer", "minimum": 1, "description": "How many events."}},
    )
    return {
        "Event": event_schema(settings),
        "AttributeValue": attribute_value_schema(),
        "Batch": batch_schema(settings, f"1 to {settings.body_events_max:,} events, taken or refused as a whole."),
        "Accepted": accepted,
        "Health": health_schema(),
        "RateOverride": override,
        "Alive": _object("This process answers.", {"status": {"const": "alive"}}),
        "Ready": _object("This process takes events.", {"status": {"const": "ready"}}),
        **error_schemas(codes),
    }
