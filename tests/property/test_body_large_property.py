"""The way through large bodies gives the answers of the way through small ones, step by step."""

import gc
import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest import errors
from ingest.codecs import large_json, validation
from ingest.codecs.large_json import LARGE_BYTES, check_large
from ingest.codecs.media_type import BodyKind
from ingest.codecs.strict_json import check_json, check_ndjson
from ingest.codecs.turns import run
from ingest.codecs.validation import RULES
from ingest.errors import InvalidEventsError, Problem, RequestError

GOOD = {"correlationId": "c", "severity": "INFO", "message": "m", "source": "s", "timestamp": 1}
words = st.text(max_size=8) | st.sampled_from(["\0", "\ud800", "[", '"', "\\", "]}", "INFO", "\ud83d\ude00"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from([*RULES, "color", "\ud800", "a`b"])
events = st.builds(lambda changes: {**GOOD, **changes}, st.dictionaries(fields, values, max_size=3))


@pytest.fixture(autouse=True, scope="module")
def _everything_is_large() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "LARGE_BYTES", 0)
        # The two ways tell a different number of unknown fields, so that an answer of some problems ends elsewhere.
        for module in (errors, validation):
            patch.setattr(module, "PROBLEMS_MAX", 10_000)
        yield


def _outcome(parse: Any) -> tuple[str, Any]:
    """What comes of a parse. Of fields that are unknown a large body names the first alone."""
    try:
        return "events", [repr(event) for event in parse()]
    except InvalidEventsError as error:
        known = [p for p in error.problems if p.field in RULES or p.field is None]
        return "invalid", (list(map(_told, known)), {p.index for p in error.problems})
    except RequestError as error:
        return type(error).__name__, error.details.get("limit")


def _told(problem: Problem) -> tuple[int, str | None, str]:
    """A problem, as far as both ways tell it: of attributes only that something is wrong."""
    return problem.index, problem.field, "" if problem.field == "attributes" else problem.reason


def _both(raw: bytes, kind: BodyKind) -> tuple[tuple[str, Any], tuple[str, Any]]:
    check = check_json if kind is BodyKind.JSON else check_ndjson
    return (
        _outcome(lambda: check(raw, events_max=3)),
        _outcome(lambda: run(check_large(raw, kind, events_max=3))),
    )


@given(st.lists(events | values, max_size=4), st.booleans(), st.booleans())
@example([{"a": 1, "b": 1, "c": 1}, {"d": 1, "e": 1, "f": 1}, {}], False, False)
@settings(max_examples=200, deadline=None)
def test_both_ways_agree_on_json(items: list[Any], ascii_only: bool, alone: bool) -> None:
    document = items[0] if alone and items else items
    raw = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    small, large = _both(raw, BodyKind.JSON)
    assert small == large


@given(st.lists(events | values, max_size=4), st.sampled_from([b"\n", b"\r\n", b"\n \n", b"\n\x0b\n\n"]))
@settings(max_examples=150, deadline=None)
def test_both_ways_agree_on_lines(items: list[Any], end: bytes) -> None:
    raw = end.join(json.dumps(item).encode() for item in items)
    small, large = _both(raw, BodyKind.NDJSON)
    assert small == large


@given(st.lists(events, min_size=1, max_size=2), st.data())
@settings(max_examples=200, deadline=None)
def test_both_ways_agree_on_damaged_bytes(items: list[Any], data: st.DataObject) -> None:
    raw = json.dumps(items).encode()
    at, cut = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, 3))
    damage = st.binary(max_size=3) | st.sampled_from([b"\\ud800", b"\\\\", b"NaN", b"[", b'"', b"e9", b"[" * 40])
    raw = raw[:at] + data.draw(damage) + raw[at + cut :]
    for kind in BodyKind:
        small, large = _both(raw, kind)
        assert small == large


@given(st.integers(1, 60), st.lists(st.text('"\\[]{},', max_size=6), max_size=4), st.booleans())
@example(32, ["\\", '"]'], True)
@settings(max_examples=150, deadline=None)
def test_depth_is_counted_outside_of_strings(depth: int, texts: list[str], as_objects: bool) -> None:
    opening, closing = ('{"":', "}") if as_objects else ("[", "]")
    raw = (opening * (depth - 1) + json.dumps(texts) + closing * (depth - 1)).encode()
    small, large = _both(raw, BodyKind.JSON)
    assert small[0] == large[0]
    assert (large[0] == "MalformedBodyError") is (depth > 32)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 349_000 + b"[]]",
        b'{"a":[' + b"1," * 500_000 + b"1]}",
        b"{" + b",".join(b'"%d":1' % n for n in range(80_000)) + b"}",
        b'{"attributes":{' + b",".join(b'"%d":1' % n for n in range(80_000)) + b"}}",
        b'{"a":[' + (b"[" * 30 + b"]" * 30 + b",") * 16_000 + b"1]}",
        b'{"\\ud800":[' + b'"[",' * 250_000 + b"1]}",
        b"\n" * 1_000_000,
    ],
)
def test_no_step_takes_long(body: bytes) -> None:
    """Each takes about 5 ms on a quiet machine; all of the first body at once took 140."""
    gc.collect()
    gc.freeze()  # as ingest does: what the tests have made so far is not to be looked at again meanwhile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "LARGE_BYTES", LARGE_BYTES)
        for kind in BodyKind:
            # The best of three tries: a machine that is shared charges a step for others' work now and then.
            tries = [_longest_step(check_large(body, kind, events_max=1000)) for _ in range(3)]
            assert min(tries)[0] < 0.025, tries
    gc.unfreeze()


def _longest_step(steps: Any) -> tuple[float, str]:
    """CPU time of the longest step, seconds, and how they ended."""
    longest = 0.0
    while True:
        began = time.thread_time()
        try:
            next(steps)
        except RequestError as error:
            return max(longest, time.thread_time() - began), type(error).__name__
        longest = max(longest, time.thread_time() - began)
