"""The checker on histories made up for it: each broken promise is seen, and nothing else is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from checks.soak.admissions import Outage
from checks.soak.answers import AnswerRules
from checks.soak.checker import Disturbed, Rules, check, lost_by_the_machine
from checks.soak.control import PolicyRules
from checks.soak.found import AdmissionRules, Found, Hole, OffsetSample, Place, RateSample, Recovery, Stored
from checks.soak.history import EventNote, History, Outcome, Request, Told, given_id
from checks.soak.seen import Seen
from checks.soak.windows import Refusal

LOG = "log.2"
RULES = Rules(
    AdmissionRules(burst_seconds=1.0, lease_events=10, body_events=20, ingests=2, rate_min=100, late_seconds=0.5),
    AnswerRules(append_seconds_max=1.0, retry_seconds_max=5, log_after_seconds=5.0, dead_log_takes_nothing=True),
    PolicyRules(rate_max=1000.0, rate_min=100.0, lag_degraded=100, lag_critical=1000, lag_tolerance=10),
)
WELL = Recovery(2.0, 60.0)
STATUSES = {Outcome.ACKED: "202", Outcome.REFUSED: "429", Outcome.INDETERMINATE: "no answer: TimeoutError"}
REFUSED = Disturbed(refusals=[Refusal(0.0, 9999.0, "22023", 1, 0)])  # PostgreSQL may have refused any row


def note(number: int, *, given: bool = True) -> EventNote:
    return EventNote(f"c0-{number}", f"digest {number}", given)


def request(outcome: Outcome, *, events: int = 1, sent_at: float = 1000.0, seconds: float = 0.01) -> Request:
    told = Told("r-1", accepted=events if outcome is Outcome.ACKED else None, retry_after="1")
    return Request(sent_at, events, sent_at + seconds, STATUSES[outcome], outcome, "r-1", told)


def history(outcomes: Sequence[Outcome]) -> History:
    """Event k was sent once, with outcome k."""
    made = History()
    for number, outcome in enumerate(outcomes):
        made.add([note(number)], request(outcome, sent_at=1000.0 + number))
    return made


def stored(number: int, *, partition: int = 0, offset: int | None = None) -> Stored:
    """Event k as it stands at offset k."""
    place = Place(partition, number if offset is None else offset)
    key = f"c0-{number}"
    return Stored(
        place,
        key,
        f"digest {number}",
        given_id(key),
        "r-1",
        1000.0 + number,
        stored_at=1001.0 + number,
        sqlstate="22023",
    )


def found(numbers: Sequence[int]) -> Found:
    """Everything that is in the log is stored."""
    return Found(
        LOG,
        rows=[stored(number) for number in numbers],
        log=[stored(number) for number in numbers],
        begins={0: 0},
        stored_offsets={(LOG, 0): len(numbers)},
        offset_samples=[OffsetSample(1000.0 + n, LOG, 0, n) for n in range(len(numbers) + 1)],
    )


def verdict(of: History, what: Found, recovery: Recovery = WELL) -> list[str]:
    return check(
        of, what, recovery=recovery, rates=[RateSample(999.0, 100.0)], rules=RULES, seen=Seen(), disturbed=REFUSED
    )


ACKED = [Outcome.ACKED] * 4


def test_a_kept_promise_is_no_violation() -> None:
    # Given acknowledged, indeterminate (stored and not) and refused events
    of = history([*ACKED, Outcome.INDETERMINATE, Outcome.INDETERMINATE, Outcome.REFUSED])
    # When all that were acknowledged, and one of the indeterminate, are stored
    what = found(range(5))
    # Then there is nothing to say
    assert verdict(of, what) == []


@pytest.mark.parametrize("rates", [[], [RateSample(999.0, None)]])
def test_a_promise_that_nobody_watched_is_not_kept(rates: list[RateSample]) -> None:
    unwatched = replace(found(range(4)), offset_samples=())
    violations = check(
        history(ACKED), unwatched, recovery=WELL, rates=rates, rules=RULES, seen=Seen(), disturbed=REFUSED
    )
    assert [words.split(" was sampled")[0] for words in violations] == ["no stored offset", "no published rate"]


Change = Callable[[Found], Found]

BROKEN: dict[str, tuple[Change, str]] = {
    "a row is missing": (
        lambda f: replace(f, rows=f.rows[:-1]),
        "acknowledged, and neither stored nor a dead letter",
    ),
    "an offset has no row": (
        lambda f: replace(f, rows=f.rows[:-1]),
        "below the stored offset, in the log, and not stored",
    ),
    "a row twice": (
        lambda f: replace(f, rows=[*f.rows, f.rows[0]._replace(place=Place(0, 9))]),
        "stored more than once",
    ),
    "two rows from one offset": (
        lambda f: replace(f, rows=[*f.rows, f.rows[0]]),
        "stored twice from one offset",
    ),
    "another content": (
        lambda f: replace(f, rows=[f.rows[0]._replace(digest="other"), *f.rows[1:]]),
        "stored with another content than was sent",
    ),
    "another id": (
        lambda f: replace(f, rows=[f.rows[0]._replace(event_id="other"), *f.rows[1:]]),
        "stored under another id than was given",
    ),
    "a stranger": (
        lambda f: replace(f, rows=[*f.rows, stored(77, offset=4)], stored_offsets={(LOG, 0): 5}),
        "stored that nobody sent",
    ),
    "a stranger in the log": (
        lambda f: replace(f, log=[*f.log, stored(77, offset=4)]),
        "in the log that nobody sent",
    ),
    "the log lost a record": (
        lambda f: replace(f, log=f.log[:-1]),
        "acknowledged, and not in the log that never trims",
    ),
    "an offset from nowhere": (
        lambda f: replace(f, log=f.log[:-1]),
        "stored from an offset that the log never had",
    ),
    "an offset used twice": (
        lambda f: replace(f, log=[*f.log[:-1], stored(2, offset=3)]),
        "offsets that were used twice",
    ),
    "an offset far ahead": (
        lambda f: replace(f, stored_offsets={(LOG, 0): 5}),
        "below the stored offset, and neither stored nor in the log",
    ),
    "a row beyond the offset": (
        lambda f: replace(f, stored_offsets={(LOG, 0): 3}),
        "stored from beyond the stored offset",
    ),
    "another log's offset": (
        lambda f: replace(f, stored_offsets={(LOG, 0): 4, ("old", 0): 2}),
        "offsets of another log",
    ),
    "a hole": (
        lambda f: replace(f, holes=[Hole(0, 4, 6, declared=False)]),
        "a hole that the log does not declare",
    ),
    "a hole that nothing explains": (
        lambda f: replace(f, holes=[Hole(0, 4, 6, declared=True)]),
        "a declared hole over offsets that no fault has lost",
    ),
    "a falling offset": (
        lambda f: replace(f, offset_samples=[*f.offset_samples, OffsetSample(1010.0, LOG, 0, 3)]),
        "where the stored offset fell",
    ),
    "a dead letter beside its row": (
        lambda f: replace(
            f, letters=[f.rows[0]._replace(place=Place(1, 0))], stored_offsets={(LOG, 0): 4, (LOG, 1): 1}
        ),
        "both stored and a dead letter",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_seen(name: str) -> None:
    change, words = BROKEN[name]
    violations = verdict(history(ACKED), change(found(range(4))))
    assert [violation for violation in violations if words in violation], violations


def test_a_dead_letter_is_as_good_as_a_row() -> None:
    what = found(range(4))
    assert verdict(history(ACKED), replace(what, rows=what.rows[1:], letters=what.rows[:1])) == []


@pytest.mark.parametrize("where", ["rows", "letters", "log"])
def test_what_was_refused_is_nowhere(where: str) -> None:
    what = found(range(3))
    if where == "rows":
        what = found(range(4))
    elif where == "letters":
        what = replace(found(range(4)), rows=found(range(3)).rows, letters=[stored(3)])
    else:
        what = replace(what, log=[*what.log, stored(3)])
    violations = verdict(history([*ACKED[:3], Outcome.REFUSED]), what)
    assert any("refused, and" in violation for violation in violations), violations


def test_a_repeat_in_the_log_is_no_second_event() -> None:
    # Given an event whose answer was indeterminate, sent again and acknowledged
    of = history(ACKED)
    of.add([note(0)], request(Outcome.INDETERMINATE))
    # When the log has it twice, and PostgreSQL once
    what = found(range(4))
    what = replace(what, log=[*what.log, stored(0, offset=4)], stored_offsets={(LOG, 0): 5})
    # Then that is as it should be
    assert verdict(of, what) == []


def test_what_the_machine_lost_is_not_the_systems_fault_but_counted() -> None:
    # Given a log that came back without its last two records, of which one was stored already
    of = history([*ACKED, *ACKED])
    whole = found(range(8))
    what = replace(
        whole,
        rows=whole.rows[:7],
        log=whole.log[:6],
        lost=whole.log[6:],
        holes=[Hole(0, 6, 7, declared=True)],
        stored_offsets={(LOG, 0): 7},
        offset_samples=whole.offset_samples[:8],
    )
    # Then nothing was broken, and one acknowledged event is gone
    assert verdict(of, what) == []
    assert lost_by_the_machine(of, what) == 1
    # But what stood before the tail has no such excuse
    assert verdict(of, replace(what, rows=[*whole.rows[:3], *whole.rows[4:7]]))


def test_an_offset_of_a_lost_tail_is_not_used_again_once_stored() -> None:
    of = history([*ACKED, *ACKED])
    whole = found(range(8))
    # Given a stored record whose offset the log gave to another one after it came back
    log = [*whole.log[:6], stored(7, offset=6)]
    what = replace(whole, rows=whole.rows[:7], log=log, lost=whole.log[6:], stored_offsets={(LOG, 0): 7})
    assert any("used twice" in violation for violation in verdict(of, replace(what, offset_samples=())))


@pytest.mark.parametrize("recovery", [Recovery(None, 60.0, "the breaker is open"), Recovery(61.0, 60.0)])
def test_a_system_that_does_not_recover_is_broken(recovery: Recovery) -> None:
    violations = verdict(history(ACKED), found(range(4)), recovery)
    assert len(violations) == 1
    assert "within 60 s" in violations[0]


# --- admissions: 100 events/s, a burst of 100, leases of 10, bodies of 20 --------------------------------


def admitted(times: Sequence[float], events: int) -> History:
    """Requests of so many events each, sent and acknowledged at these times; nothing else is looked at."""
    made = History()
    made.requests = [request(Outcome.ACKED, events=events, sent_at=at) for at in times]
    return made


def excess(of: History, rates: Sequence[RateSample], outages: Sequence[Outage] = ()) -> list[str]:
    disturbed = Disturbed(outages=outages)
    violations = check(of, Found(LOG), recovery=WELL, rates=rates, rules=RULES, seen=Seen(), disturbed=disturbed)
    return [violation for violation in violations if "admitted" in violation]


STEADY = [RateSample(990.0 + tick, 100.0) for tick in range(40)]


def test_a_burst_a_body_and_then_the_rate_is_allowed() -> None:
    assert excess(admitted([1000.0] * 13 + [1000.1 + n / 10 for n in range(100)], 10), STEADY) == []


def test_more_than_burst_body_and_leases_at_once_is_not() -> None:
    assert excess(admitted([1000.0] * 14, 10), STEADY)


def test_a_rate_that_is_a_little_too_high_shows_in_a_long_window() -> None:
    times = [1000.0 + n / 11 for n in range(11 * 25)]  # 110 events/s
    assert excess(admitted(times[: 11 * 5], 10), STEADY) == []
    assert excess(admitted(times, 10), STEADY)


def test_a_lower_rate_counts_once_it_must_have_arrived() -> None:
    # Given a rate that falls from 1,000 to 100 at 1005
    rates = [RateSample(990.0 + tick, 1000.0 if tick < 15 else 100.0) for tick in range(40)]
    before = [1000.0 + n / 100 for n in range(500)]
    # Then 1,000 a second are in order until then, and not for ten seconds more
    assert excess(admitted(before, 10), rates) == []
    assert excess(admitted([*before, *(1005.0 + n / 100 for n in range(1000))], 10), rates)
    # But for as long as nobody could hear of it
    outage = [Outage(1004.0, 1015.0)]
    assert excess(admitted([*before, *(1005.0 + n / 100 for n in range(1000))], 10), rates, outage) == []


def test_an_outage_of_the_bucket_brings_two_bursts_and_no_third() -> None:
    outage = [Outage(1000.2, 1000.4)]
    full = [1000.0] * 13  # a burst, a body and the leases
    within = [*full, *[1000.3] * 13]
    after = [*within, *[1000.95] * 13]
    assert excess(admitted(full, 10), STEADY) == []
    assert excess(admitted(within, 10), STEADY)
    assert excess(admitted(within, 10), STEADY, outage) == []
    assert excess(admitted(after, 10), STEADY, outage) == []
    assert excess(admitted([*after, *[1000.96] * 20], 10), STEADY, outage)


def test_a_request_counts_only_in_windows_that_hold_all_of_it() -> None:
    # Given 50 requests that hung for ten seconds and were answered together: they may have been admitted before
    made = History()
    made.requests = [request(Outcome.ACKED, events=10, sent_at=1000.0 + n / 5, seconds=10 - n / 5) for n in range(50)]
    assert excess(made, STEADY) == []


def test_refusals_admit_nothing() -> None:
    made = History()
    made.requests = [request(Outcome.REFUSED, events=1000), request(Outcome.INDETERMINATE, events=1000)]
    assert excess(made, STEADY) == []


def test_what_only_a_killed_master_had_excuses_no_acknowledged_event() -> None:
    # Given a record that a failover has lost
    whole = found(range(4))
    what = replace(
        whole, rows=whole.rows[:3], log=whole.log[:3], lost=whole.log[3:], lost_unread=frozenset(),
        stored_offsets={(LOG, 0): 3}, offset_samples=whole.offset_samples[:4],
    )  # fmt: skip
    # Then that is a violation if it was acknowledged, and none if its outcome is not known
    told = "1 events: acknowledged, lost by the log where no fault excuses that, and not stored (c0-3)"
    assert verdict(history(ACKED), what) == [told]
    assert verdict(history([*ACKED[:3], Outcome.INDETERMINATE]), what) == []
