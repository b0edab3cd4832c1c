"""The OpenAPI 3.1 document of the HTTP contract: `openapi.yaml`, with limits from settings and schemas from types."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ingest.codecs.event_bodies import CheckedEvent
from ingest.codecs.events import Accepted
from ingest.codecs.strict_json import DEPTH_MAX
from ingest.errors import NAME_CHARS_MAX, PROBLEMS_MAX, Problem
from ingest.grammar import HEAD_BYTES_MAX
from ingest.health import HealthDocument, RateOverride
from ingest.http.request_id import CHARS_MAX
from ingest.protocols.lines import LinesAccepted
from pipeline.event import (
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_KEYS_MAX,
    MESSAGE_BYTES_MAX,
    SEVERITIES,
    SEVERITY_ALIASES,
)
from pipeline.names import LimitedBy, PauseReason
from pipeline.refusals_text import RefusedAccount, RefusedCounts, RefusedOther, ThrottleDocument
from pipeline.settings import Settings

Json = dict[str, Any]

CONTRACT: Final = Path(__file__).parent / "openapi.yaml"
# Schemas that come from the types of ingest. Their text, and rules that types do not have, are in the YAML file.
TYPES: Final[dict[str, type]] = {
    "Event": CheckedEvent,
    "Accepted": Accepted,
    "LinesAccepted": LinesAccepted,
    "Health": HealthDocument,
    "RateOverride": RateOverride,
    "Problem": Problem,
    "Throttle": ThrottleDocument,
    "RefusedAccount": RefusedAccount,
    "RefusedOther": RefusedOther,
    "RefusedCounts": RefusedCounts,
}
_NAME: Final = re.compile(r"\$\{([A-Z0-9_]+)\}")


def openapi_document(settings: Settings) -> Json:
    """The contract of an ingest with these settings; everything in it is JSON."""
    values = _values(settings)
    text = _NAME.sub(lambda found: values[found[1]], CONTRACT.read_text(encoding="utf-8"))
    document: Json = yaml.load(text, Loader=yaml.CSafeLoader)
    del document["x-any-request"]  # a part that operations include
    if settings.operator_port:
        events = {
            "url": f"{settings.ingest_scheme}://{{host}}:{settings.ingest_port}",
            "description": "For clients: events",
            "variables": {"host": {"default": "localhost"}},
        }
        document["servers"] = [events, {"url": "/", "description": "For operators: state and pages"}]
    schemas = document["components"]["schemas"]
    for name, shape in shapes().items():
        schemas[name] = _merged(shape, schemas[name])
    return document


def shapes() -> dict[str, Json]:
    """The schemas of `TYPES` as msgspec makes them."""
    _, found = msgspec.json.schema_components(TYPES.values(), ref_template="#/components/schemas/{name}")
    return {name: _plain(found[one.__name__]) for name, one in TYPES.items()}


def _values(settings: Settings) -> dict[str, str]:
    """The text for each ${NAME} of the YAML file."""
    words = (*SEVERITIES, *SEVERITY_ALIASES)
    any_case = "|".join("".join(f"[{c}{c.lower()}]" for c in word) for word in words)
    constants = {
        "ATTRIBUTES_BYTES_MAX": ATTRIBUTES_BYTES_MAX,
        "ATTRIBUTES_KEYS_MAX": ATTRIBUTES_KEYS_MAX,
        "DEPTH_MAX": DEPTH_MAX,
        "HEAD_BYTES_MAX": HEAD_BYTES_MAX,
        "MESSAGE_BYTES_MAX": MESSAGE_BYTES_MAX,
        "LIMITED_BY": ", ".join(LimitedBy),
        "METRICS_MEDIA_TYPE": CONTENT_TYPE_LATEST,
        "NAME_CHARS_MAX": NAME_CHARS_MAX,
        "PAUSE_REASONS": ", ".join(PauseReason),
        "PROBLEMS_MAX": PROBLEMS_MAX,
        "REQUEST_ID_CHARS_MAX": CHARS_MAX,
        "SEVERITY_PATTERN": f"^(?:{any_case})$",  # regular expressions of JSON Schema have no flag for this
    }
    # Numbers only: a URL may hold a password, and the document is public.
    limits = {name.upper(): value for name, value in asdict(settings).items() if isinstance(value, int | float)}
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in (limits | constants).items()
    }


def _merged(shape: Json, text: Json) -> Json:
    """A schema of a type with its part of the YAML file, which wins. A reference replaces what it stands for."""
    merged = {**shape}
    for key, value in text.items():
        old = shape.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and "$ref" not in value:
            merged[key] = _merged(old, value)
        else:
            merged[key] = value
    return merged


def _plain(schema: Any) -> Any:
    """A schema of msgspec in the form that people write: `null` is one more type, and titles and defaults go."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _plain(value) for key, value in schema.items() if key not in ("title", "default")}
    match plain.pop("anyOf", None):
        case [{"type": str(kind)} as one, {"type": "null"}]:
            return {**one, **plain, "type": [kind, "null"]}
        case list(kinds):
            plain["anyOf"] = kinds
    return plain
