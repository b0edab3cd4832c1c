"""The parts of the Python client that decide: events, the queue, and what an answer means. Nothing is sent here."""

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.codecs.event_bodies import parse_body
from ingest.codecs.media_type import BodyKind
from sluice_client.buffer import ITEM_BYTES, Buffer, Item
from sluice_client.delivery import BATCH_BYTES_MAX, Batch, Cause, Delivery
from sluice_client.events import DROPPED_KEY, LEVELS, RANKS, last_part, line_of, severity_named, severity_numbered
from sluice_client.ids import uuid7
from sluice_client.requests import RequestIds
from sluice_client.wire import MESSAGE_CHARS_MAX, Endpoint, NoResponseError, NotSentError, Response, _retry_after

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(object()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)


def fields(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "event_id": uuid7(), "correlation_id": "c", "severity": "INFO", "message": "m", "source": "s",
        "timestamp_ms": 1_700_000_000_000,
    }  # fmt: skip
    return given | changes


@settings(max_examples=50)
@example(texts=("", "", ""), attributes={"zero": -0.0}, timestamp_ms=0, surrogate="")
@given(
    texts=st.tuples(st.text(), st.text(), st.text()),
    attributes=st.dictionaries(st.text(), VALUES),
    timestamp_ms=st.integers(),
    surrogate=st.sampled_from(["", "\ud800", "\0", "é" * 33_000, "\U0001f600" * 17_000]),
)
def test_the_server_takes_every_event_whatever_it_is_made_of(
    texts: tuple[str, str, str], attributes: dict[str, Any], timestamp_ms: int, surrogate: str
) -> None:
    line = line_of(
        **fields(
            correlation_id=surrogate + texts[0], message=texts[1] + surrogate, source=texts[2] + surrogate,
            timestamp_ms=timestamp_ms, attributes={**attributes, surrogate: surrogate},
        )
    )  # fmt: skip
    [event] = parse_ndjson(line)
    assert event.event_id is not None
    assert b"\n" not in line


def parse_ndjson(body: bytes) -> list[Any]:
    return list(parse_body(body, BodyKind.NDJSON, events_max=1000))


def test_attributes_are_flat_and_within_their_limit() -> None:
    circle: list[Any] = []
    circle.append(circle)

    class Bad:
        def __str__(self) -> str:
            raise RuntimeError

    given = {
        "a": {"b": {"c": 1}}, "list": [1, {"x": 2}], "none": None, "big": 2**70, "nan": float("nan"),
        "circle": circle, "bad": Bad(), "id": uuid.UUID(int=5), "flag": True, "minus": -0.0,
    }  # fmt: skip
    found = json.loads(line_of(**fields(attributes=given)))["attributes"]
    assert found == {
        "a.b.c": 1, "list": '[1,{"x":2}]', "big": str(2**70), "nan": "nan", "circle": "[[...]]", "bad": "<Bad>",
        "id": "00000000-0000-0000-0000-000000000005", "flag": True, "minus": "-0.0",
    }  # fmt: skip
    many = json.loads(line_of(**fields(attributes={str(n): n for n in range(3000)})))["attributes"]
    assert (len(many), many[DROPPED_KEY]) == (64, 3000 - 63)
    large = json.loads(line_of(**fields(attributes={"a": "x" * 5000, "b": "y" * 5000, "c": 1})))["attributes"]
    assert set(large) == {"a", "c", DROPPED_KEY}


def test_an_object_that_holds_itself_takes_no_long_time() -> None:
    tree: dict[str, Any] = {"leaf": 1}
    tree |= {f"branch {number}": tree for number in range(20)}  # 20 to the power of 8 paths
    found = json.loads(line_of(**fields(attributes={"a": 1, "tree": tree, "b": 2})))["attributes"]
    assert (found["a"], found["tree.leaf"]) == (1, 1)
    assert 900 < found[DROPPED_KEY] < 2000
    wide = json.loads(line_of(**fields(attributes={"w": {str(n): n for n in range(3000)}})))["attributes"]
    assert wide[DROPPED_KEY] == 3000 - 63


def test_severities_have_the_names_of_others() -> None:
    assert [severity_named(name) for name in ("warning", "Critical", "exception", "success", "error", "odd")] == [
        "WARN", "FATAL", "ERROR", "INFO", "ERROR", "INFO",
    ]  # fmt: skip
    assert [severity_numbered(number) for number in (-5, 5, 10, 25, 30, 45, 50, 1000)] == [
        "TRACE", "TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL", "FATAL",
    ]  # fmt: skip


def test_a_traceback_keeps_its_end() -> None:
    assert last_part("short", 100) == "short"
    cut = last_part("é" * 100 + "the end", 50)
    assert cut.endswith("the end")
    assert len(cut.encode()) <= 50


def test_ids_are_uuidv7_and_differ() -> None:
    ids = [uuid7() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {(uuid.UUID(one).version, uuid.UUID(one).variant) for one in ids} == {(7, uuid.RFC_4122)}
    assert ids[0][:8] <= ids[-1][:8]


# --- The queue ------------------------------------------------------------------------------------------------------


def item(number: int, severity: str = "INFO", size: int = 100) -> Item:
    return Item(b"x" * size, RANKS[severity], number)


def test_the_lowest_severity_goes_first_and_of_one_severity_the_oldest() -> None:
    buffer = Buffer(4 * (100 + ITEM_BYTES))
    for number, severity in enumerate(["INFO", "DEBUG", "ERROR", "DEBUG"]):
        assert buffer.add(item(number, severity)) == []
    assert [one.number for one in buffer.add(item(4, "WARN"))] == [1]
    assert [one.number for one in buffer.add(item(5, "INFO"))] == [3]
    assert [one.number for one in buffer.add(item(6, "DEBUG"))] == [6], "it displaces nothing that is higher"
    assert [one.number for one in buffer.add(item(7, "INFO"))] == [0]
    assert [one.number for one in buffer.take(10, 10_000)] == [2, 4, 5, 7], "in the order of their emission"


def test_what_was_taken_counts_until_it_is_settled() -> None:
    buffer = Buffer(2 * (100 + ITEM_BYTES))
    buffer.add(item(1))
    buffer.add(item(2))
    taken = buffer.take(10, 10_000)
    assert [one.number for one in buffer.add(item(3, "FATAL"))] == [3], "there is no room, and nothing to drop"
    buffer.put_back(taken)
    assert [one.number for one in buffer.add(item(4, "FATAL"))] == [1]
    buffer.settle(buffer.take(10, 10_000))
    assert (buffer.bytes_held, buffer.bytes_waiting, len(buffer)) == (0, 0, 0)


def test_events_of_one_level_are_taken_and_none_that_must_wait() -> None:
    buffer = Buffer(1 << 20)
    for number, severity in enumerate(["INFO", "TRACE", "ERROR", "DEBUG", "WARN", "INFO", "FATAL"]):
        buffer.add(item(number, severity))
    debug, info = LEVELS[RANKS["DEBUG"]], LEVELS[RANKS["INFO"]]
    assert buffer.bytes_above(debug) == 5 * (100 + ITEM_BYTES)
    assert buffer.bytes_above(info) == 3 * (100 + ITEM_BYTES)

    def taken(events_max: int = 10, **options: Any) -> list[int]:
        found = buffer.take(events_max, 10_000, **options)
        buffer.put_back(found)
        return [one.number for one in found]

    # The level of the oldest event that may be sent; TRACE has that of DEBUG, and FATAL that of ERROR
    assert taken(is_one_level=True) == [0, 5]
    assert taken(above=info, is_one_level=True) == [2, 6]
    assert taken(above=info) == [2, 4, 6]
    assert taken(above=debug, events_max=2) == [0, 2]
    assert taken(above=LEVELS[RANKS["FATAL"]]) == []
    buffer.settle(buffer.take(1, 10_000))
    assert taken(is_one_level=True) == [1, 3]
    assert buffer.bytes_above(-1) == buffer.bytes_waiting == 6 * (100 + ITEM_BYTES)


@given(st.lists(st.tuples(st.sampled_from(list(RANKS)), st.integers(1, 400), st.sampled_from("atlsp")), max_size=80))
def test_the_queue_is_bounded_and_loses_nothing_uncounted(steps: list[tuple[str, int, str]]) -> None:
    buffer, taken, gone, added = Buffer(3000), [], 0, 0
    for number, (severity, size, step) in enumerate(steps):
        match step:
            case "a" | "l":
                added += 1
                one = item(number, severity, size)
                dropped = buffer.add(one)
                gone += len(dropped)
                assert all(each.rank <= one.rank for each in dropped)
            case "t":
                taken += buffer.take(3, 500)
            case "s":
                buffer.settle(taken)
                gone += len(taken)
                taken = []
            case _:
                buffer.put_back(taken)
                taken = []
        assert buffer.bytes_held <= 3000
        assert added == gone + len(buffer) + len(taken)
    numbers = [one.number for one in buffer.take(1000, 1 << 20)]
    assert numbers == sorted(numbers)


# --- Answers --------------------------------------------------------------------------------------------------------


class Heard:
    def __init__(self) -> None:
        self.accepted_count = 0
        self.repeated = 0
        self.reasons: list[str] = []

    def accepted(self, items: Any, *, is_repeat: bool) -> None:
        self.accepted_count += len(items)
        self.repeated += len(items) if is_repeat else 0

    def rejected(self, item: Item, reason: str) -> None:
        self.reasons.append(reason)


def delivery(count: int, size: int = 100) -> tuple[Delivery[Item], Heard]:
    heard = Heard()
    made: Delivery[Item] = Delivery(heard, events_max=1000, draw=lambda: 0.5)
    made.add(Batch([item(number, size=size) for number in range(count)]))
    return made, heard


def too_large(**limit: object) -> Response:
    return Response(413, None, {"code": "too_large", "message": "large", **limit})


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        ({"limit": 30, "unit": "events"}, [30, 20, 30, 20]),
        ({"limit": 3029, "unit": "bytes"}, [30, 20, 30, 20]),  # 101 bytes a line
        ({}, [50, 50]),  # a proxy: half of what was too large
        ({"limit": True, "unit": "events"}, [50, 50]),
        ({"limit": "many", "unit": "bytes"}, [50, 50]),
    ],
)
def test_a_413_makes_this_body_smaller_and_all_later_ones(limit: dict[str, object], sizes: list[int]) -> None:
    made, heard = delivery(100)
    made.next()
    assert made.answered(too_large(**limit)) is None
    found = []
    while made.pending:
        found.append(len(made.next().items))
        made.answered(Response(202, None, {}))
    assert found == sizes
    made.add(Batch([item(number) for number in range(100)]))
    assert len(made.next().items) == sizes[0]
    assert heard.accepted_count == 100


def test_an_event_that_is_too_large_alone_is_rejected_and_teaches_nothing() -> None:
    made, heard = delivery(1, size=5000)
    made.next()
    assert made.answered(too_large()) is None
    assert heard.reasons == ["large"]
    assert made.bytes_max == BATCH_BYTES_MAX


def test_a_long_retry_after_is_kept_and_a_missing_one_grows() -> None:
    made, _ = delivery(10)
    made.next()
    pause = made.answered(Response(429, 300.0, {}))
    assert pause is not None
    assert (pause.cause, pause.seconds) == (Cause.LIMITED, 300.0)
    made, _ = delivery(10)
    made.next()
    pauses = [made.failed(NotSentError("away")).seconds for _ in range(7)]
    assert pauses == [0.1, 0.2, 0.5, 1.0, 2.0, 2.0, 2.0]


LEVEL_REFUSED = Response(429, 7.0, {"code": "rate_limited", "message": "for higher levels", "limitedBy": "level"})


def levelled(*batches: Sequence[str]) -> tuple[Delivery[Item], Heard]:
    """Batches with these severities."""
    heard = Heard()
    made: Delivery[Item] = Delivery(heard, level_of=lambda one: one.level, draw=lambda: 0.5)
    for batch in batches:
        made.add(Batch([item(number, severity) for number, severity in enumerate(batch)]))
    return made, heard


def severities(batches: Iterable[Batch[Item]]) -> list[list[str]]:
    return [[one.severity for one in batch.items] for batch in batches]


def test_a_level_that_is_refused_waits_and_higher_ones_do_not() -> None:
    # Given a batch that is refused for its level, and another behind it
    made, heard = levelled(["DEBUG", "INFO"], ["INFO", "ERROR", "TRACE", "WARN"])
    made.next()
    pause = made.answered(LEVEL_REFUSED)
    # Then only events up to that level wait
    assert pause is not None
    assert (pause.cause, pause.seconds, pause.level) == (Cause.LIMITED, 7.0, LEVELS[RANKS["INFO"]])
    assert severities(made.pending) == [["ERROR", "WARN"]]
    assert severities(made.held) == [["DEBUG", "INFO"], ["INFO", "TRACE"]]
    made.next()
    assert made.answered(Response(202, None, {})) is None
    assert (heard.accepted_count, len(made.pending)) == (2, 0)
    # When their time has come, they are the first
    made.add(Batch([item(9, "FATAL")]))
    made.release()
    assert severities(made.pending) == [["DEBUG", "INFO"], ["INFO", "TRACE"], ["FATAL"]]
    assert not made.held
    # And what is sent is not made smaller: size is not why it was refused
    made.add(Batch([item(number) for number in range(500)]))
    assert made.events_max > 500


def test_a_file_waits_as_a_whole() -> None:
    # Given a delivery that knows no levels, as that of `sluice send`
    made, _ = delivery(10)
    made.next()
    pause = made.answered(LEVEL_REFUSED)
    assert pause is not None
    assert (pause.level, len(made.pending), len(made.held)) == (None, 1, 0)


def test_a_refusal_for_the_rate_makes_all_levels_wait() -> None:
    made, _ = levelled(["DEBUG"], ["ERROR"])
    made.next()
    pause = made.answered(Response(429, 7.0, {"code": "rate_limited", "limitedBy": "rate"}))
    assert pause is not None
    assert (pause.level, len(made.pending)) == (None, 2)


def test_a_part_of_what_is_not_settled_can_be_removed() -> None:
    made, _ = levelled(["DEBUG", "DEBUG"], ["ERROR"])
    made.next()
    made.answered(LEVEL_REFUSED)
    assert made.remove(lambda one: one.severity == "DEBUG" and one.number == 1) == 1
    assert severities(made.unsettled) == [["DEBUG"], ["ERROR"]]
    assert made.remove(lambda one: one.severity == "ERROR") == 1
    assert severities(made.unsettled) == [["DEBUG"]]


def test_a_retry_after_of_zero_starts_no_rush() -> None:
    made, _ = delivery(10)
    made.next()
    pause = made.answered(Response(503, 0.0, {}))
    assert pause is not None
    assert pause.seconds == 0.1


@pytest.mark.parametrize("status", [400, 422])
def test_a_400_that_is_not_of_sluice_rejects_nothing(status: int) -> None:
    # Given the answer of a proxy, such as that of nginx to HTTP on its port for TLS
    made, heard = delivery(10)
    made.next()
    pause = made.answered(Response(status, None, {}))
    assert pause is not None
    assert pause.cause is Cause.MISDIRECTED
    assert (len(made.next().items), heard.reasons) == (10, [])


def test_only_an_unknown_outcome_counts_as_a_repeat() -> None:
    for answer, repeated in (
        (NotSentError("away"), 0),
        (NoResponseError("cut"), 10),
        (Response(503, 1.0, {"code": "unavailable"}), 0),
        (Response(503, 1.0, {"code": "indeterminate"}), 10),
        (Response(502, None, {}), 10),
        (Response(408, None, {}), 0),
    ):
        made, heard = delivery(10)
        made.next()
        pause = made.answered(answer) if isinstance(answer, Response) else made.failed(answer)
        assert pause is not None
        assert pause.cause is Cause.FAILED
        made.next()
        made.answered(Response(202, None, {}))
        assert (heard.accepted_count, heard.repeated) == (10, repeated), answer


@pytest.mark.parametrize("status", [301, 401, 403, 404, 415, 200])
def test_an_answer_that_is_not_of_the_contract_keeps_the_events(status: int) -> None:
    made, heard = delivery(10)
    made.next()
    pause = made.answered(Response(status, None, {}))
    assert pause is not None
    assert pause.cause is Cause.MISDIRECTED
    assert len(made.next().items) == 10
    assert (heard.accepted_count, heard.reasons) == (0, [])


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("120", None, 120.0),
        ("86400", None, 3600.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", 60.0),
        ("Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:01:00 GMT", 0.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", None, None),
        ("soon", None, None),
        ("Thu, 01 Jan 99999999999 00:01:00 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", None),
        ("Thu, 01 Jan 2026 00:01:00 +99999999999999999", "Thu, 01 Jan 2026 00:00:00 GMT", None),
        ("-1", None, None),
        (None, None, None),
    ],
)
def test_a_retry_after_is_read_by_the_servers_own_clock(
    value: str | None, date: str | None, seconds: float | None
) -> None:
    assert _retry_after(value, date) == seconds


def test_a_reason_of_the_server_is_bounded() -> None:
    problems = [{"index": 0, "field": "x", "reason": "y" * 10_000}] * 3
    assert len(Response(422, None, {"errors": problems}).reasons(1)[0]) == MESSAGE_CHARS_MAX


@pytest.mark.parametrize("url", ["http://[::1]", "https://[fe80::a]/x"])
def test_an_address_without_a_port_has_that_of_its_scheme(url: str) -> None:
    connection = Endpoint(url, gzipped=False, timeout_seconds=1)._connection
    assert (connection.host, connection.port) == (("::1", 80) if "::1" in url else ("fe80::a", 443))


@pytest.mark.parametrize(
    ("request_id", "traceparent", "found"),
    [
        ("abc-1", None, ("abc-1", "abc-1")),
        ("abc-1", "00-" + "a" * 32 + "-" + "b" * 16 + "-01", ("abc-1", "a" * 32)),
        ("abc-1", "00-" + "0" * 32 + "-" + "b" * 16 + "-01", ("abc-1", "abc-1")),
        ("abc-1", "garbage", ("abc-1", "abc-1")),
    ],
)
def test_the_ids_of_a_request(request_id: str, traceparent: str | None, found: tuple[str, str]) -> None:
    ids = RequestIds.of(request_id, traceparent)
    assert (ids.request, ids.correlation) == found


@pytest.mark.parametrize("request_id", [None, "", "a\nb", "a b", "é", "x" * 129])
def test_an_id_that_could_forge_something_is_replaced(request_id: str | None) -> None:
    ids = RequestIds.of(request_id, None)
    assert uuid.UUID(ids.request).version == 7
    assert ids.correlation == ids.request
