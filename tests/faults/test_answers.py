"""What the judge says of answers, columns, dead letters and order; and what clients send."""

import random
from collections.abc import Sequence

import pytest

from checks.soak.answers import AnswerRules, check_answers
from checks.soak.columns import check_columns, check_letters
from checks.soak.content import Content, any_text, encoded, pieces, severity_of
from checks.soak.found import Found, Place, Stored
from checks.soak.history import EventNote, History, Outcome, Request, Told, given_id, key_of, outcome_of
from checks.soak.order import check_order
from checks.soak.windows import ClockSpan, Part, Refusal, Window, Windows

RULES = AnswerRules(append_seconds_max=1.0, retry_seconds_max=5, log_after_seconds=5.0, dead_log_takes_nothing=True)
LOG = frozenset({Part.LOG})


def request(
    status: str,
    *,
    sent_at: float = 1000.0,
    seconds: float = 0.01,
    name: str = "r",
    accepted: int | None = None,
    retry_after: str | None = None,
    named: str | None = None,
) -> Request:
    told = Told(named or name, accepted, retry_after)
    return Request(sent_at, 2, sent_at + seconds, status, outcome_of(status), name, told)


OK = request("202", accepted=2)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (OK, None),
        (request("429", retry_after="1"), None),
        (request("503 unavailable", retry_after="2"), None),
        (request("no answer: TimeoutError"), None),
        (request("500 internal"), "a status other than 202, 429 or 503"),
        (request("422 invalid"), "a status other than 202, 429 or 503"),
        (request("202", accepted=1), "a wrong count"),
        (request("202"), "a wrong count"),
        (request("202", accepted=2, named="other"), "an X-Request-ID that is not the request"),
        (request("429"), "without a valid Retry-After"),
        (request("429", retry_after="0"), "without a valid Retry-After"),
        (request("503 unavailable", retry_after="600"), "without a valid Retry-After"),
        (request("503 indeterminate", retry_after="1"), "without a fault of the log"),
    ],
)
def test_an_answer_fits(one: Request, words: str | None) -> None:
    found = list(check_answers([one], Windows(), RULES))
    assert (found == []) if words is None else (len(found) == 1 and words in found[0])


def test_indeterminate_needs_a_log_that_was_disturbed_and_could_be_reached() -> None:
    window = Window("log.kill", 999.0, 1004.0, LOG, LOG, made_at=999.5, repair_at=1003.0)
    told = "indeterminate responses while the log was dead"

    def said(at: float, seconds: float = 0.01) -> list[str]:
        one = request("503 indeterminate", sent_at=at, seconds=seconds, retry_after="1")
        return list(check_answers([one], Windows([window]), RULES))

    # An append may have been under way when the log died, and while it came back; not in between
    assert said(999.6) == []
    assert said(1001.0) == [told]
    assert said(1002.5, 1.0) == []
    assert said(1008.0) == []
    assert said(1010.0) == ["indeterminate responses without a fault of the log"]
    # A library that keeps an append for later may have one under way all the time
    kept = AnswerRules(1.0, 5, 5.0, dead_log_takes_nothing=False)
    one = request("503 indeterminate", sent_at=1001.0, retry_after="1")
    assert check_answers([one], Windows([window]), kept) == {}


def test_a_busy_machine_may_time_out_now_and_then() -> None:
    def slow(at: float) -> Request:
        return request("503 indeterminate", sent_at=at, seconds=1.1, retry_after="1")

    told = ["appends that timed out without a fault of the log"]
    # All that was under way in one such moment, and in some others
    moments = (0, 0, 0.2, 0.5, 30, 30, 40, 50, 60, 70)
    assert check_answers([slow(1000 + at) for at in moments], Windows(), RULES) == {}
    # But not all the time, nor again and again
    assert list(check_answers([slow(1000 + at) for at in range(8)], Windows(), RULES)) == told
    often = [slow(1000 + 10 * at) for at in range(8)]
    assert list(check_answers(often, Windows(), RULES)) == told
    # A long run has more of such moments
    others = [request("202", sent_at=1000 + at, seconds=1.0, accepted=2) for at in range(1000)]
    assert check_answers(often + others, Windows(), RULES) == {}


# --- columns and dead letters ----------------------------------------------------------------------


def of(*requests: Request) -> History:
    """A history in which each of these requests has brought the event c0-1."""
    made = History()
    for one in requests:
        made.add([EventNote("c0-1", "digest", True)], one)
    return made


ROW = Stored(Place(1, 0), "c0-1", "digest", "c0-1", "r", 1000.0, hash=3, log_id="log.2", stored_at=1001.0)


def columns(row: Stored, *requests: Request, clocks: Sequence[ClockSpan] = ()) -> list[str]:
    found = Found("log.2", rows=[row], partition_counts=frozenset({2}))
    return list(check_columns(of(*(requests or (OK,))), found, clocks))


def test_columns_are_those_of_the_request() -> None:
    assert columns(ROW) == []
    assert "request that did not bring them" in columns(ROW._replace(request_id="other"))[0]
    assert "time of arrival" in columns(ROW._replace(received_at=1002.0))[0]
    assert "time of arrival" in columns(ROW._replace(received_at=998.0))[0]
    assert "another partition" in columns(ROW._replace(hash=4))[0]
    assert "another log" in columns(ROW._replace(log_id="log.3"))[0]


def test_an_event_that_came_twice_may_be_stored_of_either_request() -> None:
    again = request("202", sent_at=1010.0, name="again")
    assert columns(ROW._replace(request_id="again", received_at=1010.0), OK, again) == []
    # One that was refused brings nothing
    refused = request("429", sent_at=1010.0, name="again")
    assert columns(ROW._replace(request_id="again", received_at=1010.0), OK, refused) != []


def test_a_clock_that_was_wrong_is_wrong_by_what_it_was_set() -> None:
    clocks = [ClockSpan(999.0, 1001.0, -90)]
    assert columns(ROW._replace(received_at=910.0), clocks=clocks) == []
    assert columns(ROW._replace(received_at=900.0), clocks=clocks) != []
    assert columns(ROW._replace(received_at=910.0), clocks=[ClockSpan(1010.0, 1020.0, -90)]) != []


def test_a_request_whose_client_waits_no_longer_may_be_taken_up_until_it_is_stored() -> None:
    given_up = request("no answer: TimeoutError", seconds=2.5, name="r")
    killed = Request(1000.0, 2, given_id="r")
    # A busy ingest process reads what its socket holds at some time, however late
    late = ROW._replace(received_at=1060.0, stored_at=1060.5)
    for one in (given_up, killed):
        assert columns(late, one) == []
        assert columns(late._replace(received_at=970.0), one, clocks=[ClockSpan(1050.0, 1070.0, -90)]) == []
        # Not before it was sent, not after it was stored, and not without the clock that was shifted
        assert "time of arrival" in columns(late._replace(received_at=998.0), one)[0]
        assert "time of arrival" in columns(late._replace(received_at=1062.0), one)[0]
        assert "time of arrival" in columns(late._replace(received_at=970.0), one)[0]
    # A record of the log says nothing of a time after its arrival
    found = Found("log.2", log=[late._replace(stored_at=None)], partition_counts=frozenset({2}))
    assert check_columns(of(given_up), found, ()) == {}
    # One with an answer was under way until then
    assert columns(late, request("202", accepted=1, seconds=2.5, name="r")) != []


@pytest.mark.parametrize(
    ("change", "is_explained"),
    [
        ({}, True),
        ({"place": Place(1, 8)}, False),
        ({"sqlstate": "23514"}, False),
        ({"sqlstate": None}, False),
        ({"stored_at": 1012.0}, True),
        ({"stored_at": 1030.0}, False),
        ({"stored_at": None}, False),
    ],
)
def test_a_dead_letter_needs_a_database_that_refused_it(change: dict[str, object], is_explained: bool) -> None:
    letter = ROW._replace(place=Place(1, 47), sqlstate="22023")._replace(**change)  # type: ignore[arg-type]
    said = check_letters(Found("log.2", letters=[letter]), [Refusal(1000.0, 1010.0, "22023", 40, 7)])
    assert (said == {}) is is_explained


# --- order -------------------------------------------------------------------------------------------


def stands(keys: list[tuple[str, str]]) -> Found:
    """Events (key, request) in one partition, in this order."""
    return Found("log.2", rows=[Stored(Place(0, n), key, "", "", name) for n, (key, name) in enumerate(keys)])


def test_events_stand_as_they_stood_in_their_body() -> None:
    assert check_order(of(OK), stands([("c0-1", "r"), ("c0-2", "r"), ("c1-0", "r2"), ("c0-3", "r")])) == {}
    assert list(check_order(of(OK), stands([("c0-2", "r"), ("c0-1", "r")]))) == ["in another order than in their body"]


def test_what_was_acknowledged_stands_before_what_was_sent_later() -> None:
    first, second = request("202", name="a"), request("202", sent_at=1001.0, name="b")
    assert check_order(of(first, second), stands([("c0-1", "a"), ("c0-2", "b")])) == {}
    swapped = stands([("c0-2", "b"), ("c0-1", "a")])
    assert len(check_order(of(first, second), swapped)) == 1
    # What overlapped in time, or was never acknowledged, has no order
    assert check_order(of(request("202", name="a", seconds=1.5), second), swapped) == {}
    assert check_order(of(request("no answer", name="a"), second), swapped) == {}
    assert Outcome.ACKED is first.outcome


# --- what is sent --------------------------------------------------------------------------------------


def test_content_is_wide() -> None:
    content = Content(random.Random(1))
    events = [content.event(f"c0-{n:07d}", is_long=n < 4) for n in range(4000)]
    assert {key_of(event["message"]) for event in events} == {f"c0-{n:07d}" for n in range(4000)}
    assert {len(event["message"].encode()) for event in events[:4]} == {64 * 1024}
    assert {event.get("attributes") is None for event in events} == {True, False}
    assert {} in [event.get("attributes") for event in events]
    assert max(len(event.get("attributes") or {}) for event in events) == 64
    assert {severity_of(event["severity"]) for event in events} == {"TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"}
    text = "".join(event["message"] for event in events)
    assert {ord(char) >> 16 for char in text} == set(range(17))
    assert "\0" not in text


def test_text_is_what_utf_8_carries() -> None:
    assert len(any_text(random.Random(2), 500).encode()) > 500


def test_bodies_come_in_one_piece_or_in_many() -> None:
    data = encoded([{"a": 1}], 1)[0]
    assert pieces(data, 1) is None
    assert b"".join(pieces(data, 5) or []) == data


def test_a_given_id_is_as_long_as_is_allowed() -> None:
    assert given_id("c0-0000001") == "c0-0000001"
    assert len(given_id("c0-0000007")) == 64


def test_nothing_is_acknowledged_while_no_replica_can_have_it() -> None:
    window = Window("log-replica.kill", 999.0, 1004.0, LOG, made_at=999.5, repair_at=1003.0, accepts_nothing=True)

    def said(at: float, *, seconds: float = 0.01) -> list[str]:
        return list(check_answers([request("202", sent_at=at, seconds=seconds, accepted=2)], Windows([window]), RULES))

    # What was sent before may have been confirmed before, and what is answered after the repair after it
    assert said(999.4) == said(1002.9, seconds=0.2) == said(1003.1) == []
    assert said(999.6) == said(1002.9) == ["events acknowledged while no replica could have them"]
    # A fault after which other copies are left is no reason to refuse
    other = Window("log.freeze", 999.0, 1004.0, LOG, made_at=999.5, repair_at=1003.0)
    assert check_answers([request("202", sent_at=1000.0, accepted=2)], Windows([other]), RULES) == {}
