"""The OpenAPI document is valid, says what ingest's own rules say, and its examples are what they claim to be."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from ingest.codecs import validation
from ingest.codecs.event_bodies import parse_body
from ingest.codecs.media_type import BodyKind
from ingest.codecs.validation import check_times
from ingest.errors import (
    BodyTooLargeError,
    ForbiddenError,
    InvalidEventsError,
    KeysUnknownError,
    MalformedBodyError,
    NotReadyError,
    Problem,
    RateLimitedError,
    UnauthorizedError,
    UnsupportedBodyError,
    error_response,
    rows_by_code,
)
from ingest.openapi.document import CONTRACT, TYPES, openapi_document, shapes
from pipeline.event import SEVERITIES
from pipeline.names import KeyRefusal
from pipeline.settings import Settings
from support.running_ingest import SAMPLE, sample

DOCUMENT = openapi_document(Settings())
SCHEMAS = DOCUMENT["components"]["schemas"]
# Codes that no request can get: Sanic's own errors, which can't occur after ingest's parser of heads.
CODES_NEVER_ANSWERED = {"uri_too_long"}
ANY_REQUEST = {"400", "408", "417", "431", "503"}
# What clients rely on: each operation with its answers beside those of any request.
OPERATIONS = {
    "postLogs": ("POST /api/logs", {"202", "401", "403", "413", "415", "422", "429"}),
    "postLines": ("POST /api/logs/lines", {"202", "401", "403", "413", "429"}),
    "postLoki": ("POST /loki/api/v1/push", {"204", "401", "403", "413", "429"}),
    "postLokiOld": ("POST /api/prom/push", {"204", "401", "403", "413", "429"}),
    "postGelf": ("POST /gelf", {"202", "401", "403", "413", "429"}),
    "postOtlpLogs": ("POST /v1/logs", {"200", "401", "403", "413", "415", "429"}),
    "postBulk": ("POST /_bulk", {"200", "401", "403", "413", "429"}),
    "putBulk": ("PUT /_bulk", {"200", "401", "403", "413", "429"}),
    "postIndexBulk": ("POST /{index}/_bulk", {"200", "401", "403", "413", "429"}),
    "putIndexBulk": ("PUT /{index}/_bulk", {"200", "401", "403", "413", "429"}),
    "getLicense": ("GET /_license", {"200"}),
    "getClusterHealth": ("GET /_cluster/health", {"200"}),
    "postCollector": ("POST /services/collector", {"200", "401", "403", "413"}),
    "postCollectorEvent": ("POST /services/collector/event", {"200", "401", "403", "413"}),
    "postCollectorEvent1": ("POST /services/collector/event/1.0", {"200", "401", "403", "413"}),
    "optionsCollectorEvent1": ("OPTIONS /services/collector/event/1.0", {"200"}),
    "postCollectorRaw": ("POST /services/collector/raw", {"200", "401", "403", "413"}),
    "postCollectorRaw1": ("POST /services/collector/raw/1.0", {"200", "401", "403", "413"}),
    "getCollectorHealth": ("GET /services/collector/health", {"200"}),
    "getCollectorHealth1": ("GET /services/collector/health/1.0", {"200"}),
    "postCollectorAck": ("POST /services/collector/ack", set()),
    "getHealth": ("GET /api/logs/health", {"200", "401"}),
    "getThrottle": ("GET /api/logs/throttle", {"200", "401"}),
    "getHealthz": ("GET /healthz", {"200"}),
    "getReadyz": ("GET /readyz", {"200"}),
    "getMetrics": ("GET /metrics", {"200", "401"}),
    "getPage": ("GET /", {"200", "401"}),
    "getEvents": ("GET /events", {"200", "401"}),
    "getCharts": ("GET /charts/{span}", {"200", "401", "404"}),
    "getAsset": ("GET /assets/{name}", {"200", "401", "404"}),
    "getOpenApi": ("GET /openapi.json", {"200", "401", "304"}),
    "getDocs": ("GET /docs", {"200", "401", "304"}),
    "getRunbooks": ("GET /runbooks", {"200", "401"}),
    "getRunbook": ("GET /runbooks/{name}", {"200", "401", "404"}),
}
# The answers of POST /api/logs: schema, and headers beside X-Request-ID.
ANSWERS = {
    "202": ("Accepted", set()),
    "400": ("MalformedError", set()),
    "401": ("Error", {"WWW-Authenticate"}),
    "403": ("Error", set()),
    "408": ("Error", set()),
    "413": ("TooLargeError", set()),
    "415": ("UnsupportedError", {"Accept-Encoding"}),
    "417": ("Error", set()),
    "422": ("InvalidError", set()),
    "429": ("Error", {"Retry-After", "RateLimit", "RateLimit-Policy"}),
    "431": ("Error", set()),
    "503": ("Error", {"Retry-After"}),
}


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is repeated in a mapping: PyYAML takes the last one silently."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    repeated = [key for key, count in Counter(key.value for key, _ in node.value).items() if count > 1]
    assert repeated == [], f"{node.start_mark}: {repeated}"
    loader.flatten_mapping(node)
    return {loader.construct_object(key, deep=True): loader.construct_object(one, deep=True) for key, one in node.value}


_UniqueKeys.add_constructor("tag:yaml.org,2002:map", _mapping)


def _code_meanings() -> dict[str, str]:
    codes = SCHEMAS["Error"]["properties"]["error"]["properties"]["code"]["oneOf"]
    return {one["const"]: one["description"] for one in codes}


def _schema(name: str) -> OAS31Validator:
    return OAS31Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


def _takes(value: Any) -> bool:
    """Whether ingest takes an event."""
    try:
        events = parse_body(json.dumps(value).encode(), BodyKind.JSON, events_max=10)
        check_times(events, Settings().event_time_min_ms)
    except InvalidEventsError:
        return False
    return True


def _parts(part: Any) -> list[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(part, list):
        return [found for one in part for found in _parts(one)]
    if isinstance(part, dict):
        return [part, *(found for one in part.values() for found in _parts(one))]
    return []


def test_it_is_openapi_3_1() -> None:
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []


def test_the_file_has_no_repeated_key_and_no_empty_value() -> None:
    # A comma that YAML takes for the end of a description leaves an empty value behind
    def check(part: Any) -> None:
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if key not in ("value", "examples"):
                assert value is not None, (key, part)
                if isinstance(value, dict | list):
                    check(value)

    check(yaml.load(CONTRACT.read_text(), Loader=_UniqueKeys))  # a SafeLoader


def test_its_operations_are_those_that_clients_know() -> None:
    found = {
        operation["operationId"]: (f"{method.upper()} {path}", set(operation["responses"]))
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
    }
    assert found == {name: (address, ANY_REQUEST | more) for name, (address, more) in OPERATIONS.items()}
    assert [one for one in DOCUMENT if one.startswith("x-")] == []


def test_its_answers_have_the_schemas_and_headers_that_clients_know() -> None:
    found = {}
    for status, one in DOCUMENT["paths"]["/api/logs"]["post"]["responses"].items():
        answer = DOCUMENT["components"]["responses"][one["$ref"].rpartition("/")[2]]
        schema = answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert "X-Request-ID" in answer["headers"]
        found[status] = (schema, set(answer["headers"]) - {"X-Request-ID"})
    assert found == ANSWERS


def test_the_file_describes_every_field_of_the_types_and_no_other() -> None:
    file = yaml.safe_load(CONTRACT.read_text())["components"]["schemas"]
    for name, shape in shapes().items():
        assert set(file[name]["properties"]) == set(shape["properties"]), name
        # And types say which fields there are, and which of them are required
        assert file[name].keys() <= {"description", "properties", "examples"}
    for name in TYPES:
        assert SCHEMAS[name]["additionalProperties"] is False
        assert all("description" in one for one in SCHEMAS[name]["properties"].values())


def test_its_limits_are_those_of_the_settings() -> None:
    settings = replace(Settings(), body_bytes_max=4321, body_events_max=17, request_seconds_max=2.5)
    document = openapi_document(settings)
    post = document["paths"]["/api/logs"]["post"]
    assert document["components"]["schemas"]["Batch"]["maxItems"] == 17
    assert post["requestBody"]["content"]["application/x-ndjson"]["schema"]["maxItems"] == 17
    assert "4321 bytes" in document["components"]["responses"]["TooLarge"]["description"]
    assert "within 2.5 s" in document["components"]["responses"]["Timeout"]["description"]
    assert "4321 bytes" in document["info"]["description"]


def test_every_code_is_in_it_with_its_status() -> None:
    rows = rows_by_code()
    assert set(_code_meanings()) == set(rows) - CODES_NEVER_ANSWERED
    for code, meaning in _code_meanings().items():
        assert meaning.startswith(f"{rows[code].status}: ")
        assert ("`Retry-After`" in meaning) == rows[code].retryable
    # Each status stands at an operation, or is what a wrong address or method gets
    answers = {status for item in DOCUMENT["paths"].values() for one in item.values() for status in one["responses"]}
    assert {str(rows[code].status) for code in _code_meanings()} - answers == {"405"}


def test_every_field_of_an_event_is_in_it() -> None:
    event = SCHEMAS["Event"]
    assert list(event["properties"]) == list(validation.RULES)
    assert set(event["required"]) == set(validation.RULES) - validation.OPTIONAL


@pytest.mark.parametrize(
    ("event", "is_taken"),
    [
        (SAMPLE, True),
        (sample(eventId="e", attributes={"a": 1, "b": 1.5, "c": "", "d": True}), True),
        ({**SAMPLE, "eventId": None, "attributes": None}, True),
        *((sample(severity=word), True) for word in ("warning", "Critical", *SEVERITIES, *map(str.lower, SEVERITIES))),
        (sample(severity="LOUD"), False),
        (sample(severity="XINFO"), False),
        *((sample(correlationId="x" * size), size in (1, 128)) for size in (0, 1, 128, 129)),
        *((sample(source="x" * size), size in (1, 256)) for size in (0, 1, 256, 257)),
        *((sample(eventId="x" * size), size in (1, 64)) for size in (0, 1, 64, 65)),
        *((sample(message="x" * size), size < 65537) for size in (0, 65536, 65537)),
        *((sample(message=text), False) for text in ("\0", "a\0b")),
        *((sample(timestamp=time), False) for time in (-1, 0, 99_999_999_999, 253402300800000)),
        *((sample(timestamp=time), True) for time in (100_000_000_000, 253402300799999)),
        *((sample(timestamp=time), False) for time in (1.5, "1", True)),
        *((sample(attributes={"a": n}), abs(n) < 2**63) for n in (2**63 - 1, 2**63, 1 - 2**63, -(2**63) - 1)),
        *((sample(attributes={"a": value}), False) for value in (None, [1], {"b": 1}, "\0")),
        (sample(attributes={"\0": 1}), False),
        *((sample(attributes={str(n): 1 for n in range(count)}), count == 64) for count in (64, 65)),
        (sample(attributes=[]), False),
        (sample(color="red"), False),
        *(({name: SAMPLE[name] for name in SAMPLE if name != left}, False) for left in SAMPLE),
        ([], False),
        ("event", False),
    ],
)
def test_its_event_is_the_one_that_is_taken(event: Any, is_taken: bool) -> None:
    assert _takes(event) is is_taken
    assert _schema("Event").is_valid(event) is is_taken


HEALTH = SCHEMAS["Health"]["examples"][0]
OVERRIDE = {"rate": 5.0, "endsInSeconds": 1.5, "by": "ann@host", "why": "test"}


@pytest.mark.parametrize(
    ("change", "is_valid"),
    [
        ({}, True),
        *(({"status": word}, True) for word in ("healthy", "degraded", "critical", "unknown")),
        ({"status": "fine"}, False),
        *(({"circuitBreaker": word}, True) for word in ("closed", "open", "half-open", "unknown")),
        ({"circuitBreaker": "half_open"}, False),
        *(({"consumption": word}, True) for word in ("running", "paused", "stalled", "unknown")),
        *(({"consumption": word}, False) for word in ("stopped", None)),
        ({"eventLog": "memory"}, False),
        *(({name: None}, True) for name in ("consumerLag", "availablePermissions", "controllerAgeSeconds", "offered")),
        *(({name: None}, True) for name in ("admitted", "refused", "stored", "drainSeconds", "rateOverride")),
        *(({name: None}, False) for name in ("rateLimit", "reasons", "status", "eventLog")),
        *(({name: -1}, False) for name in ("consumerLag", "rateLimit", "offered", "stored", "drainSeconds")),
        ({"availablePermissions": -1}, True),
        ({"consumerLag": 1.5}, False),
        ({"rateOverride": OVERRIDE}, True),
        ({"rateOverride": {**OVERRIDE, "endsInSeconds": -1}}, False),
        ({"rateOverride": {**OVERRIDE, "more": 1}}, False),
        ({"rateOverride": {"rate": 5.0}}, False),
        ({"reasons": [1]}, False),
        ({"more": 1}, False),
    ],
)
def test_its_health_is_the_one_that_clients_know(change: dict[str, Any], is_valid: bool) -> None:
    assert _schema("Health").is_valid({**HEALTH, **change}) is is_valid


def test_every_field_of_health_but_none_is_required() -> None:
    for name in HEALTH:
        assert not _schema("Health").is_valid({one: value for one, value in HEALTH.items() if one != name}), name


@pytest.mark.parametrize(
    ("error", "schema"),
    [
        (MalformedBodyError("not JSON", byte=3, line=1), "MalformedError"),
        (MalformedBodyError("not gzip"), "MalformedError"),
        (InvalidEventsError("empty", []), "InvalidError"),
        (
            InvalidEventsError("broken", [Problem(0, None, "is null"), Problem(1, "source", "is missing")]),
            "InvalidError",
        ),
        (BodyTooLargeError(7, "bytes"), "TooLargeError"),
        (BodyTooLargeError(7, "events"), "TooLargeError"),
        (UnsupportedBodyError("no"), "UnsupportedError"),
        (RateLimitedError(1.0, quota=5, left=0), "Error"),
        (NotReadyError("no"), "Error"),
        (UnauthorizedError(KeyRefusal.MISSING), "Error"),
        (ForbiddenError(KeyRefusal.PROTOCOL), "Error"),
        (KeysUnknownError(), "Error"),
    ],
)
def test_an_error_is_as_its_schema_says(error: Exception, schema: str) -> None:
    body = json.loads(error_response(error).body)
    assert list(_schema(schema).iter_errors(body)) == []
    assert list(_schema("Error").iter_errors(body)) == []
    # And the schema refuses what is not as it says
    assert not _schema(schema).is_valid({**body, "more": 1})
    assert not _schema(schema).is_valid({"error": {**body["error"], "code": "strange"}})
    assert not _schema(schema).is_valid({"error": {"code": body["error"]["code"]}})


def test_examples_are_what_their_schemas_say() -> None:
    seen = 0
    for part in _parts(DOCUMENT):
        if "schema" in part and "examples" in part and isinstance(part["examples"], dict):
            validator = OAS31Validator({**part["schema"], "components": DOCUMENT["components"]})
            for example in part["examples"].values():
                assert list(validator.iter_errors(example["value"])) == []
                seen += 1
    for name, schema in SCHEMAS.items():
        for example in schema.get("examples", []):
            assert list(_schema(name).iter_errors(example)) == []
            seen += 1
    assert seen >= 20


def test_an_error_s_example_has_the_code_of_its_answer() -> None:
    rows = rows_by_code()
    answers = {**DOCUMENT["components"]["responses"]}
    statuses = {
        one["$ref"].rpartition("/")[2]: status
        for item in DOCUMENT["paths"].values()
        for operation in item.values()
        for status, one in operation["responses"].items()
        if "$ref" in one
    }
    for name, answer in answers.items():
        for example in answer.get("content", {}).get("application/json", {}).get("examples", {}).values():
            if "error" in example["value"]:
                assert rows[example["value"]["error"]["code"]].status == int(statuses.get(name, "405"))


def test_the_files_of_swagger_ui_are_those_that_were_shipped() -> None:
    folder = Path(CONTRACT).parent / "assets" / "vendor"
    lines = [line for line in (folder / "SOURCES").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 5
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
