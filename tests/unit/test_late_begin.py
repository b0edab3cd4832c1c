"""Late begins: which of them an operator has accepted, which are shown, and what a tick reads and records for that."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from pipeline.late_begin import LateBegin, LateBegins, accepted_data, late_begin_data, not_accepted, shown_late_begins
from pipeline.names import BreakerState, ControlEventKind
from pipeline.ports.control import Alarm, ControlEvent, ControlState
from pipeline.ports.log import LOST_SHOWN_SECONDS, PartitionPosition
from pipeline.settings import Settings

LOG, NOW = "a.2", 100_000.0
SETTINGS = Settings()


def event(kind: ControlEventKind, data: dict[str, str], *, at: float = NOW) -> ControlEvent:
    return ControlEvent("1-0", at, kind, "ann@host", "a new server", data)


def accepted(late: dict[int, LateBegin], settings: Settings = SETTINGS) -> ControlEvent:
    return event(ControlEventKind.LATE_BEGIN_ACCEPTED, accepted_data(settings, LOG, late))


def recorded(partition: int, begin: int, committed: int, *, at: float = NOW) -> ControlEvent:
    late = LateBegin(LOG, begin, committed)
    return event(ControlEventKind.BEGAN_LATE, late_begin_data(SETTINGS, partition, late), at=at)


@dataclass
class Events:
    """The control events; counts reads."""

    kept: list[ControlEvent] = field(default_factory=list)
    reads: int = 0

    def last(self, count: int) -> Sequence[ControlEvent]:
        self.reads += 1
        return self.kept[-count:]

    def record(self, kind: ControlEventKind, *, actor: str, why: str, data: dict[str, str]) -> None:
        self.kept.append(event(kind, data))


def look(late_begins: LateBegins, events: Any, *positions: PartitionPosition, log_id: str = LOG) -> Alarm | None:
    """A look of a tick after one without alarms, at a sink that has nothing."""
    state = ControlState(rate=None, pauses=(), breaker=BreakerState.CLOSED, time=NOW, generation=0)
    return late_begins.look(SETTINGS, log_id, positions, {}, state=state, events=events, actor="controller")


ELSEWHERE = PartitionPosition(0, 100, 100, 100)  # the log has deleted what was stored elsewhere
KEPT = PartitionPosition(0, 40, 100, 100)  # the log holds some of it


@pytest.mark.parametrize(
    ("partition", "begin", "committed", "log_id", "is_accepted"),
    [
        (0, 40, 100, LOG, True),
        (0, 40, 90, LOG, True),  # less is missing
        (0, 40, 101, LOG, False),  # drains have stored one more record elsewhere
        (0, 41, 100, LOG, False),  # the log has lost one more
        (1, 40, 100, LOG, False),
        (0, 40, 100, "b.2", False),
    ],
)
def test_what_is_accepted_is_that_of_one_partition_and_no_more_of_it(
    partition: int, begin: int, committed: int, log_id: str, is_accepted: bool
) -> None:
    late = {partition: LateBegin(log_id, begin, committed)}
    told = [accepted({0: LateBegin(LOG, 40, 100)})]
    assert not_accepted(SETTINGS, log_id, late, told) == ({} if is_accepted else late)


def test_what_is_accepted_is_that_of_one_database() -> None:
    late = {0: LateBegin(LOG, 40, 100)}
    other = Settings(database_url="postgresql://another/sluice")
    assert not_accepted(SETTINGS, LOG, late, [accepted(late, other)]) == late


def test_an_acceptance_that_names_no_begins_is_of_logs_that_delete_what_is_stored() -> None:
    told = accepted({0: LateBegin(LOG, 100, 100)})
    del told.data["begins"]
    assert not_accepted(SETTINGS, LOG, {0: LateBegin(LOG, 100, 100)}, [told]) == {}


@pytest.mark.parametrize("is_larger_first", [False, True])
def test_of_several_late_begins_of_a_partition_the_one_that_misses_most_is_shown(is_larger_first: bool) -> None:
    told = [recorded(0, 50, 0), recorded(0, 60, 0)]
    shown = shown_late_begins(SETTINGS, LOG, [], {0: 70}, events=told[:: -1 if is_larger_first else 1], now=NOW)
    assert shown == {0: LateBegin(LOG, 60, 0)}


@pytest.mark.parametrize(("stored", "committed", "is_shown"), [({}, 100, True), ({0: 45}, 100, False), ({}, 0, False)])
def test_what_was_stored_elsewhere_is_shown_until_it_is_stored_here(
    stored: dict[int, int], committed: int, is_shown: bool
) -> None:
    # Given a tick that recorded it long ago, and has corrected the commit that showed it
    told = [recorded(0, 40, committed, at=NOW - LOST_SHOWN_SECONDS - 1)]
    positions = [PartitionPosition(0, 40, 100, 0)]
    shown = shown_late_begins(SETTINGS, LOG, positions, stored, events=told, now=NOW)
    assert (0 in shown) is is_shown


def test_what_is_accepted_of_one_partition_does_not_hide_what_a_drain_has_recorded_of_another_one() -> None:
    told = [recorded(1, 60, 0), accepted({0: LateBegin(LOG, 100, 100)})]
    shown = shown_late_begins(SETTINGS, LOG, [], {0: 101, 1: 70}, events=told, now=NOW)
    assert shown == {1: LateBegin(LOG, 60, 0)}


def test_it_is_recorded_once_whatever_process_ticks() -> None:
    events = Events()
    for late_begins in (LateBegins(), LateBegins()):
        for _ in range(2):
            assert look(late_begins, events, KEPT) is not None
    assert [one.kind for one in events.kept] == [ControlEventKind.BEGAN_LATE]


def test_what_is_accepted_is_not_recorded_anew_and_costs_no_more_reads() -> None:
    # Given an acceptance that is kept, of a record that is not
    for position in (KEPT, ELSEWHERE):
        events = Events([accepted({0: LateBegin.of(LOG, position)})])
        late_begins = LateBegins()
        for _ in range(3):
            assert look(late_begins, events, position) is None
        # Then the first tick of a process has read that, and nothing is told
        assert (events.reads, len(events.kept)) == (1, 1)


def test_what_is_accepted_of_one_log_does_not_hide_the_same_of_another_one() -> None:
    events, late_begins = Events([accepted({0: LateBegin.of(LOG, ELSEWHERE)})]), LateBegins()
    assert look(late_begins, events, ELSEWHERE) is None
    assert look(late_begins, events, ELSEWHERE, log_id="b.2") is not None
