"""The OpenAPI document is valid, says what ingest's own rules say, and its examples are what they claim to be."""

import json
from dataclasses import replace
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from ingest.codecs import validation
from ingest.codecs.event_bodies import parse_body
from ingest.codecs.media_type import BodyKind
from ingest.codecs.validation import check_times
from ingest.errors import InvalidEventsError, rows_by_code
from ingest.openapi.answers import CODES_NEVER_ANSWERED, code_meanings
from ingest.openapi.curl import origin_of
from ingest.openapi.document import COMMON, openapi_document
from ingest.openapi.page import load_style, render
from pipeline.event import SEVERITIES
from pipeline.settings import Settings
from support.edge import SAMPLE, sample

DOCUMENT = openapi_document(Settings())


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


def test_its_limits_are_those_of_the_settings() -> None:
    settings = replace(Settings(), body_bytes_max=4321, body_events_max=17, request_seconds_max=2.5)
    document = openapi_document(settings)
    post = document["paths"]["/api/logs"]["post"]
    assert document["components"]["schemas"]["Batch"]["maxItems"] == 17
    assert post["requestBody"]["content"]["application/x-ndjson"]["schema"]["maxItems"] == 17
    assert "4,321 bytes" in document["components"]["responses"]["TooLarge"]["description"]
    assert "within 2.5 s" in document["components"]["responses"]["Timeout"]["description"]
    assert "4,321 bytes" in document["info"]["description"]


def test_every_code_is_in_it_with_its_status() -> None:
    rows = rows_by_code()
    assert set(code_meanings()) == set(rows) - CODES_NEVER_ANSWERED
    for code, meaning in code_meanings().items():
        assert meaning.startswith(f"{rows[code].status}: ")
        assert ("`Retry-After`" in meaning) == rows[code].repeats
    # Each status stands at an operation, or is what a wrong address or method gets
    answers = {status for item in DOCUMENT["paths"].values() for one in item.values() for status in one["responses"]}
    assert {str(rows[code].status) for code in code_meanings()} - answers == {"405"}
    assert COMMON.keys() < answers


def test_every_field_of_an_event_is_in_it() -> None:
    event = DOCUMENT["components"]["schemas"]["Event"]
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


def test_examples_are_what_their_schemas_say() -> None:
    seen = 0
    for part in _parts(DOCUMENT):
        if "schema" in part and "examples" in part and isinstance(part["examples"], dict):
            validator = OAS31Validator({**part["schema"], "components": DOCUMENT["components"]})
            for example in part["examples"].values():
                assert list(validator.iter_errors(example["value"])) == []
                seen += 1
    for name, schema in DOCUMENT["components"]["schemas"].items():
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


# --- The page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "proto", "origin"),
    [
        ("localhost:8080", None, "http://localhost:8080"),
        ("logs.example.org", "https", "https://logs.example.org"),
        ("[::1]:8080", "http", "http://[::1]:8080"),
        (None, None, "http://here"),
        ("", None, "http://here"),
        ("a;rm -rf /", None, "http://here"),
        ("a'b", None, "http://here"),
        ("<script>", None, "http://here"),
        ("$(id)", None, "http://here"),
        ("a\nb", None, "http://here"),
        ("a/b", None, "http://here"),
        ("ä.example", None, "http://here"),
        ("a" * 300, None, "http://here"),
        ("a", "javascript", "http://a"),
    ],
)
def test_only_an_address_gets_into_a_command(host: str | None, proto: str | None, origin: str) -> None:
    assert origin_of(host, proto, otherwise="http://here") == origin


def test_the_page_has_every_operation_answer_and_field() -> None:
    page = render(DOCUMENT, "http://localhost:8080", load_style())
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            assert f'id="{operation["operationId"]}"' in page
            assert f"<code>{path}</code>" in page
    for code in code_meanings():
        assert f"<code>{code}</code>" in page
    for name in DOCUMENT["components"]["schemas"]["Event"]["properties"]:
        assert f"<code>{name}</code>" in page
    assert "<script" not in page
    targets = {piece.partition('"')[0] for piece in page.split('href="#')[1:]}
    ids = {piece.partition('"')[0] for piece in page.split(' id="')[1:]}
    assert targets <= ids


def test_what_stands_in_the_document_is_text_on_the_page() -> None:
    evil = "<img src=x>`<b>`"
    document = openapi_document(Settings())
    document["info"]["description"] = evil
    document["paths"]["/api/logs"]["post"]["summary"] = evil
    page = render(document, "http://localhost:8080", load_style())
    assert "<img" not in page
    assert "<b>" not in page
    assert "&lt;img src=x&gt;<code>&lt;b&gt;</code>" in page
