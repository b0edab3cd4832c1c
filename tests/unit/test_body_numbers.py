"""Numbers in attributes: what is taken is stored as it was sent, whichever way a body is read."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.codecs.event_bodies import parse_body, parse_quickly
from ingest.codecs.large_json import check_large
from ingest.codecs.media_type import BodyKind
from ingest.codecs.turns import run
from ingest.errors import InvalidEventsError
from pipeline.event import Event, encode_record, record_head

BODY = (
    '{"correlationId":"c","severity":"INFO","message":"m","source":"s","timestamp":1000000000000,"attributes":{"a":%s}}'
)
KEPT = [
    "0", "-0", "0.0", "0e7", "0.5", "-0.5", "1e308", "-1.5E-7", "5e-324", "0.1", "1.10", "1.7976931348623157e308",
    "123456789012345", "9007199254740993", "9223372036854775807", "12.300000011920929", "0.30000000000000004",
    "1000000000000000000000.0", "1." + "0" * 300,
]  # fmt: skip
CHANGED = [
    "-0.0", "-0e3", "-0.00", "1e-400", "-1e-400", "1e-324", "0.12345678901234567890", "3.14159265358979323846",
    "123456789012345678.5", "9007199254740993.0", "1e-5000000000", "0." + "1" * 1000,
]  # fmt: skip


def _reading(body: bytes) -> list[Any]:
    """What both ways make of a body."""
    outcomes: list[Any] = []
    ways: list[Callable[[], list[Event]]] = [
        lambda: parse_body(body, BodyKind.JSON, events_max=1),
        lambda: run(check_large(body, BodyKind.JSON, events_max=1)),
    ]
    for parse in ways:
        try:
            outcomes.append(parse())
        except InvalidEventsError as error:
            outcomes.append([(problem.field, "would change" in problem.reason) for problem in error.problems])
    return outcomes


def _in_the_log(event: Event) -> Decimal:
    """The number, as the record in the log has it."""
    event.event_id = "e"
    found = json.loads(encode_record(event, record_head(1, "r")), parse_float=Decimal, parse_int=Decimal)
    number: Decimal = found["attributes"]["a"]
    return number


@pytest.mark.parametrize("text", KEPT)
def test_a_number_that_can_be_kept_is_kept(text: str) -> None:
    for outcome in _reading((BODY % text).encode()):
        assert _in_the_log(outcome[0]) == Decimal(text)
    assert parse_quickly((BODY % text).encode(), BodyKind.JSON, 1) is not None


@pytest.mark.parametrize("text", CHANGED)
def test_a_number_that_would_change_is_refused(text: str) -> None:
    assert _reading((BODY % text).encode()) == [[("attributes", True)]] * 2


@given(st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
@settings(max_examples=300, deadline=None)
@example("-0.0")
@example("1e400")
def test_whatever_is_taken_is_kept(text: str) -> None:
    for outcome in _reading((BODY % text).encode()):
        if isinstance(outcome[0], Event):
            number = _in_the_log(outcome[0])
            assert number == Decimal(text)
            assert number or text[0] != "-" or text == "-0"


def test_a_text_that_looks_like_such_a_number_is_taken() -> None:
    body = BODY.replace('"m"', '"took:1e-400 or: 0.12345678901234567890 or :1.2.3.4.5.6.7.8.9.0.1"') % "0.5"
    for [event] in _reading(body.encode()):
        assert event.attributes == {"a": 0.5}


def test_another_field_is_told_to_be_no_integer() -> None:
    with pytest.raises(InvalidEventsError) as refused:
        parse_body((BODY % "1").replace("1000000000000", "1e-400").encode(), BodyKind.JSON, events_max=1)
    assert refused.value.problems[0].reason == "is a number, not an integer"
