"""Control events in words: a table of what happens, and events that another version wrote."""

import re

import pytest

from pipeline.errors import in_brief
from pipeline.event_text import event_text, pause_advice
from pipeline.names import ControlEventKind, PauseReason
from pipeline.ports.control import ControlEvent

K = ControlEventKind
RATE = {"rate": "100.0", "previous": "1000.0", "mode": "normal"}
BANDS = {"rate_max": "800", "rate_min": "0.5", "lag_degraded": "100", "lag_critical": "20000"}


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (K.RATE_CHANGED, RATE | {"decided_by": "breaker"}, "Rate 1,000 → 100/s (breaker is open)"),
        (K.RATE_CHANGED, RATE | {"decided_by": "override"}, "Rate 1,000 → 100/s (set by an operator)"),
        (K.RATE_CHANGED, RATE | {"decided_by": "lag", "mode": "critical"}, "Rate 1,000 → 100/s (lag is critical)"),
        (K.RATE_CHANGED, RATE | {"previous": "", "decided_by": "lag"}, "Rate 100/s (lag is low)"),
        (K.RATE_CHANGED, RATE | {"previous": "100", "mode": "unknown"}, "Lag is unknown, rate stays 100/s"),
        (K.RATE_CHANGED, RATE | {"policy_reason": "at the limit", "mode": "odd"}, "Rate 1,000 → 100/s (at the limit)"),
        (K.RATE_CHANGED, RATE | {"policy_reason": ""}, "Rate 1,000 → 100/s (lag is low)"),
        (K.RATE_CHANGED, RATE | {"rate": "894.857"}, "Rate 1,000 → 895/s (lag is low)"),
        (K.BREAKER_OPENED, {"reason": "breaker"}, "Breaker opened"),
        (K.BREAKER_CLOSED, {"reason": "breaker"}, "Breaker closed"),
        (K.PAUSED, {"reason": "log_gap"}, "Consumption paused (log gap)"),
        (K.RESUMED, {"reason": "operator", "left": ""}, "Consumption resumed (operator)"),
        (K.RESUMED, {"reason": "breaker", "left": "operator log_gap"},
         "Pause lifted (breaker), still paused (operator, log gap)"),
        (K.STATE_RESTORED, {"reasons": ""}, "Control state begun"),
        (K.STATE_RESTORED, {"reasons": "operator override"}, "Control state restored: operator, override"),
        (K.OVERRIDE_SET, {"rate": "300", "until": "1700000000.5"}, "Override: 300/s until 22:13:20 UTC"),
        (K.OVERRIDE_ENDED, {"rate": "300"}, "Override ended: it was 300/s"),
        (K.BANDS_SET, BANDS, "Thresholds set: 800/s below a lag of 100, 0.5/s above 20,000"),
        (K.BANDS_SET, {"bands": "settings"}, "Thresholds of the settings hold again"),
        (K.DEAD_LETTERS_REPLAYED, {}, "Dead letters replayed"),
        (K.DRAINER_TERMINATED, {"partition": "3", "offset": "5"}, "Stalled drain of partition 3 ended"),
        (K.PAUSED, {"reason": "poison", "partition": "3"}, "Partition 3 paused (poison)"),
        (K.RESUMED, {"reason": "poison", "partition": "3", "left": "log_gap:1 operator"},
         "Pause lifted (poison of partition 3), still paused (log gap of partition 1, operator)"),
        (K.STATE_RESTORED, {"reasons": "log_gap:4"}, "Control state restored: log gap of partition 4"),
        (K.GAP_SKIPPED, {"partition": "3", "first": "10", "end": "15"}, "Hole of partition 3 skipped: 10 to 15"),
        (K.BEGAN_LATE, {"partition": "3", "first": "0", "end": "15"},
         "Partition 3 begins at offset 15: nothing below is stored from this log"),
        (K.BEGAN_LATE, {"partition": "3", "first": "0", "end": "15", "committed": "20"},
         "Partition 3 is stored again from offset 15: drains had stored it up to 20, and this database had nothing"),
        (K.LATE_BEGIN_ACCEPTED, {"ends": "0:100 3:7"}, "Late begin of 2 partitions accepted"),
        (K.LOG_TAIL_LOST, {"events": "1200"}, "The event log lost up to 1,200 accepted events"),
        (K.POISON_ACCEPTED, {"partition": "3", "dead_lettered": "8"},
         "Poisoned batch of partition 3 accepted: 8 dead letters"),
        # as another version of Sluice may have written them
        (K.OVERRIDE_SET, {}, "Override set"),
        (K.RATE_CHANGED, {"rate": "many", "mode": "normal"}, "Rate changed"),
        (K.RATE_CHANGED, RATE | {"mode": "odd"}, "Rate changed"),
    ],
)  # fmt: skip
def test_an_event_in_words(kind: ControlEventKind, data: dict[str, str], words: str) -> None:
    assert event_text(ControlEvent("1", 0.0, kind, "ann@host", "why", data)) == words


def test_what_repeats_says_how_often() -> None:
    told = ControlEvent("1", 1e9, K.DRAINER_TERMINATED, "c", "why", {"partition": "3"}, count=1068, first_at=0.0)
    assert event_text(told) == "Stalled drain of partition 3 ended, 1,068 times since 00:00:00 UTC"


def test_a_rate_that_came_back_has_moved() -> None:
    data = RATE | {"rate": "1000.0", "event_ratio": "0.1"}
    assert event_text(ControlEvent("1", 1e9, K.RATE_CHANGED, "c", "why", data)) == "Lag is low, rate stays 1,000/s"
    told = event_text(ControlEvent("1", 1e9, K.RATE_CHANGED, "c", "why", data, count=3, first_at=0.0))
    assert told == "Rate 1,000 → 1,000/s (lag is low), 3 times since 00:00:00 UTC"


def test_every_kind_has_words_of_its_own() -> None:
    everything = {**RATE, **BANDS, "reason": "poison", "reasons": "", "until": "0", "partition": "1", "rate": "5"}
    told = {event_text(ControlEvent("1", 0.0, kind, "", "", everything)) for kind in K}
    assert len(told) == len(K)


def test_an_error_in_brief_is_one_line_that_asks_nothing_back() -> None:
    said = (
        'no connection to PostgreSQL: connection to server at "db" (::1), port 5432 failed: Connection refused\n'
        "\tIs the server running on that host and accepting TCP/IP connections?\n"
        'connection to server at "db" (127.0.0.1), port 5432 failed: Connection refused\n'
        "\tIs the server running on that host and accepting TCP/IP connections?"
    )
    assert in_brief(said) == (
        'no connection to PostgreSQL: connection to server at "db" (::1), port 5432 failed: Connection refused '
        'connection to server at "db" (127.0.0.1), port 5432 failed: Connection refused'
    )
    assert len(in_brief("x" * 5000)) == 240


@pytest.mark.parametrize("partition", [None, 3])
@pytest.mark.parametrize("reason", list(PauseReason))
def test_a_command_of_an_advice_can_be_copied_as_it_is(reason: PauseReason, partition: int | None) -> None:
    commands = re.findall(r"`([^`]+)`", pause_advice(reason, partition))
    assert [one for one in commands if not one.startswith("celery -A tasks.app ")] == []
