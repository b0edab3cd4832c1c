"""One eventId twice in one body: the same content is a repeat, other content is refused with its place."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from ingest.codecs.event_bodies import parse_body, parse_carefully, parse_quickly
from ingest.codecs.large_json import LARGE_BYTES, check_large
from ingest.codecs.media_type import BodyKind
from ingest.codecs.turns import run
from ingest.errors import InvalidEventsError
from pipeline.event import Event

EVENT: dict[str, Any] = {"correlationId": "c", "severity": "INFO", "message": "m", "source": "s", "timestamp": 10**12}
GIVEN = {**EVENT, "eventId": "e-1", "attributes": {"n": 1, "ok": True}}
Parse = Callable[[bytes, BodyKind], list[Event]]
WAYS: dict[str, Parse] = {
    "as a body comes": lambda body, kind: parse_body(body, kind, events_max=2000),
    "carefully": lambda body, kind: parse_carefully(body, kind, 2000),
    "as a large one": lambda body, kind: run(check_large(body, kind, events_max=2000)),
}


def _body(events: list[dict[str, Any]], kind: BodyKind) -> bytes:
    lines = [json.dumps(event) for event in events]
    return ("\n".join(lines) if kind is BodyKind.NDJSON else f"[{','.join(lines)}]").encode()


@pytest.mark.parametrize("kind", BodyKind)
@pytest.mark.parametrize("parse", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"message": "other"}, "message"),
        ({"severity": "WARN"}, "severity"),
        ({"source": "other"}, "source"),
        ({"correlationId": "other"}, "correlationId"),
        ({"timestamp": 10**12 + 1}, "timestamp"),
        ({"attributes": {"n": 2, "ok": True}}, "attributes"),
        ({"attributes": {"n": True, "ok": True}}, "attributes"),
        ({"attributes": {}}, "attributes"),
        ({"attributes": None}, "attributes"),
        ({"message": "other", "source": "other"}, "message and source"),
    ],
    ids=str,
)
def test_other_content_is_refused_with_its_place(
    parse: Parse, kind: BodyKind, change: dict[str, Any], field: str
) -> None:
    events = [EVENT, GIVEN, EVENT, GIVEN, {**GIVEN, **change}]
    with pytest.raises(InvalidEventsError) as refused:
        parse(_body(events, kind), kind)
    [problem] = refused.value.problems
    assert (problem.index, problem.field) == (4, "eventId")
    assert problem.reason == f"is that of the event with index 1, which has another {field}"


@pytest.mark.parametrize("kind", BodyKind)
@pytest.mark.parametrize("parse", WAYS.values(), ids=WAYS.keys())
def test_a_repeat_is_taken(parse: Parse, kind: BodyKind) -> None:
    # Given events without an id, and one that is sent again, with its fields written in another way
    again = dict(reversed(GIVEN.items())) | {"severity": "info", "attributes": {"ok": True, "n": 1.0}}
    events = [EVENT, EVENT, {**EVENT, "eventId": None}, GIVEN, again]
    # Then all are taken
    assert len(parse(_body(events, kind), kind)) == 5


def test_a_repeat_takes_the_quick_way() -> None:
    assert parse_quickly(_body([GIVEN, GIVEN], BodyKind.JSON), BodyKind.JSON, 10) is not None


def test_many_conflicts_are_told_as_the_first_twenty() -> None:
    # Given a large body in which one id comes a thousand times, each time with another content
    body = _body([{**GIVEN, "message": str(number)} for number in range(1000)], BodyKind.JSON)
    assert len(body) > LARGE_BYTES
    with pytest.raises(InvalidEventsError) as refused:
        parse_body(body, BodyKind.JSON, events_max=2000)
    assert [problem.index for problem in refused.value.problems] == list(range(1, 21))
