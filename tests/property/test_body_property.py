"""The fast path through a body never takes what the slow path refuses, and never gives another event."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.codecs import event_bodies as quick
from ingest.codecs.event_bodies import parse_body
from ingest.codecs.media_type import BodyKind
from ingest.codecs.strict_json import DEPTH_MAX, check_json, check_ndjson
from ingest.errors import BodyTooLargeError, InvalidEventsError, MalformedBodyError, RequestError
from ingest.framing import inflate
from pipeline.event import decode_record, encode_record, record_head

texts = st.text(max_size=40) | st.sampled_from(
    ["", "INFO", "warning", "Critical", "\0", "\ud800", "é" * 130, "x" * 300]
)
numbers = (
    st.integers(-(2**66), 2**66)
    | st.floats()
    | st.sampled_from([0, -1, 2**63, 2**63 - 1, -(2**63), -(2**63) - 1, 253_402_300_799_999, 253_402_300_800_000])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
good_events = st.fixed_dictionaries(
    {
        "correlationId": st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=128),
        "severity": st.sampled_from(["INFO", "info", "Warning", "FATAL", "wARN"]),
        "message": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60),
        "source": st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=256),
        "timestamp": st.integers(0, 253_402_300_799_999),
    },
    optional={
        "eventId": st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=64),
        "attributes": st.none()
        | st.dictionaries(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10),
            st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: repr(number) != "-0.0")
            | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
            max_size=8,
        ),
    },
)


@st.composite
def nearly_events(draw: st.DrawFn) -> dict[str, Any]:
    """An event with some fields changed to anything, left out, or added."""
    event = draw(good_events)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*event, "color", "eventId", "attributes"]))
        if draw(st.booleans()):
            event.pop(name, None)
        else:
            event[name] = draw(values)
    return event


def _outcome(parse: Any) -> tuple[str, Any]:
    """What comes of a parse, so that two can be compared."""
    try:
        return "events", [(type(e.timestamp), repr(e).partition("(")[2]) for e in parse()]
    except RequestError as error:
        return type(error).__name__, (str(error), json.dumps(error.details, default=str))


def _dumps(value: Any, *, ascii_only: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


@given(st.lists(nearly_events(), max_size=3), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_both_ways_agree_on_json(events: list[dict[str, Any]], ascii_only: bool, alone: bool) -> None:
    document = events[0] if alone and events else events
    raw = _dumps(document, ascii_only=ascii_only)
    assert _outcome(lambda: parse_body(raw, BodyKind.JSON, events_max=2)) == _outcome(
        lambda: check_json(raw, events_max=2)
    )


@given(st.lists(nearly_events(), max_size=3), st.booleans(), st.sampled_from([b"\n", b"\r\n", b"\n \n"]))
@settings(max_examples=100, deadline=None)
def test_both_ways_agree_on_ndjson(events: list[dict[str, Any]], ascii_only: bool, end: bytes) -> None:
    raw = end.join(_dumps(event, ascii_only=ascii_only) for event in events)
    assert _outcome(lambda: parse_body(raw, BodyKind.NDJSON, events_max=2)) == _outcome(
        lambda: check_ndjson(raw, events_max=2)
    )


@given(good_events.map(lambda event: _dumps(event, ascii_only=False)), st.data())
@settings(max_examples=150, deadline=None)
def test_both_ways_agree_on_damaged_bytes(raw: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(raw)))
    cut = data.draw(st.integers(0, 3))
    damage = st.sampled_from([b"\\u0000", b"\\ud800", b"NaN", b"[", b'"', b"e9"])
    raw = raw[:at] + data.draw(st.binary(max_size=3) | damage) + raw[at + cut :]
    assert _outcome(lambda: parse_body(raw, BodyKind.JSON, events_max=2)) == _outcome(
        lambda: check_json(raw, events_max=2)
    )


@given(good_events)
@settings(max_examples=100, deadline=None)
def test_a_good_event_is_taken_by_the_quick_way_and_survives_the_log(event: dict[str, Any]) -> None:
    raw = _dumps(event, ascii_only=False)
    [parsed] = parse_body(raw, BodyKind.JSON, events_max=1)
    if event["severity"] != "wARN" and b"\\u0000" not in raw:
        assert quick.parse_quickly(raw, BodyKind.JSON, 1) is not None
    parsed.event_id = parsed.event_id or "given"
    record = decode_record(encode_record(parsed, record_head(17, "request-1")))
    assert (record.correlation_id, record.message, record.source, record.timestamp) == (
        event["correlationId"], event["message"], event["source"], event["timestamp"],
    )  # fmt: skip
    assert (record.received_at, record.request_id) == (17, "request-1")
    assert record.severity in ("INFO", "WARN", "FATAL")
    assert record.attributes == event.get("attributes")
    assert record.event_id == (event.get("eventId") or "given")


@given(values)
@settings(max_examples=100, deadline=None)
def test_any_json_is_refused_as_no_event_or_taken_but_never_called_malformed(value: Any) -> None:
    # Given any JSON value, where Python would write NaN as something that JSON has not
    if _has_unfinite(value):
        return
    outcome, _ = _outcome(lambda: parse_body(_dumps(value, ascii_only=True), BodyKind.JSON, events_max=10))
    assert outcome in ("InvalidEventsError", "events", "BodyTooLargeError")


def _has_unfinite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, list):
        return any(map(_has_unfinite, value))
    return isinstance(value, dict) and any(map(_has_unfinite, value.values()))


@given(st.binary(max_size=60) | st.text('[]{}":,\\u01nulltrue. \n', max_size=60).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_bytes_give_an_answer_or_events_and_nothing_else(raw: bytes) -> None:
    for kind in BodyKind:
        outcome, _ = _outcome(lambda kind=kind: parse_body(raw, kind, events_max=5))
        assert outcome in ("InvalidEventsError", "MalformedBodyError", "events", "BodyTooLargeError")


@given(st.integers(1, 60), st.text('"\\[]{}x', max_size=10))
@example(DEPTH_MAX, "")
@example(DEPTH_MAX + 1, '"[')
def test_depth_is_counted_outside_of_strings(depth: int, text: str) -> None:
    raw = b"[" * depth + json.dumps(text).encode() + b"]" * depth
    outcome, _ = _outcome(lambda: check_json(raw, events_max=5))
    assert outcome == ("MalformedBodyError" if depth > DEPTH_MAX else "InvalidEventsError")


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.integers(0, 900), st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_inflating_gives_what_was_packed_or_a_refusal(parts: list[bytes], limit: int, cut: int) -> None:
    import gzip

    whole = b"".join(parts)
    packed = b"".join(gzip.compress(part, mtime=0) for part in parts)
    if len(whole) <= limit:
        assert inflate(packed, limit) == whole
    else:
        with pytest.raises(BodyTooLargeError):
            inflate(packed, limit)
    if cut:
        with pytest.raises((MalformedBodyError, BodyTooLargeError)):
            inflate(packed[:-cut] if cut < len(gzip.compress(parts[-1])) else packed[:-1], limit)


def test_the_quick_way_is_taken_at_all() -> None:
    raw = json.dumps([{"correlationId": "a", "severity": "INFO", "message": "", "source": "s", "timestamp": 1}] * 3)
    assert quick.parse_quickly(raw.encode(), BodyKind.JSON, 3) is not None
    with pytest.raises(InvalidEventsError):
        parse_body(b"[]", BodyKind.JSON, events_max=1)
