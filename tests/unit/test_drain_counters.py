"""What a drain counts, and how it becomes histograms."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryServer
from pipeline.control_store.memory_counters import MemoryCounters
from pipeline.drain_counters import STORED_SECONDS, DrainCounters, buckets
from pipeline.errors import StoreUnavailableError
from pipeline.ports.event_sink import StoreResult


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = MemoryServer(self.clock)
        self.counters = MemoryCounters(self.server)
        self.drain_counters = DrainCounters(lambda: self.counters, self.clock)

    def store(self, *ages: float, **counts: int) -> None:
        received = [round((self.clock.now() - age) * 1000) for age in ages]
        self.drain_counters.on_stored(
            0, StoreResult(**{"stored": len(ages), **counts}, received_at_ms=received, seconds=0.03)
        )

    def totals(self) -> Mapping[str, float]:
        return self.counters.read().totals


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_counts_are_added_at_the_end_of_a_run(rig: Rig) -> None:
    rig.store(0.02, 0.3, repeated=4, conflicting=2, dead_lettered=1)
    assert rig.totals() == {}
    rig.drain_counters.on_runs(["finished"])
    found = rig.totals()
    assert (found["rows"], found["repeated"], found["conflicting"], found["dead_lettered"]) == (2, 4, 2, 1)
    assert found["runs:finished"] == 1
    assert found["batch_events:10.0"] == 1
    assert found["batch_seconds:0.05"] == 1


def test_a_long_run_adds_about_once_a_second_and_nothing_twice(rig: Rig) -> None:
    for _ in range(25):
        rig.store(0.0)
        rig.clock.advance(0.1)
    assert 15 <= rig.totals()["rows"] < 25
    rig.drain_counters.on_runs(["finished"])
    rig.drain_counters.on_runs(["finished"])
    assert rig.totals()["rows"] == 25


def test_counts_wait_for_a_server_that_is_away(rig: Rig) -> None:
    rig.server.is_unavailable = True
    rig.store(0.0)
    rig.drain_counters.on_runs(["finished"])
    rig.server.is_unavailable = False
    rig.store(0.0)
    rig.drain_counters.on_runs(["finished"])
    assert (rig.totals()["rows"], rig.totals()["runs:finished"]) == (2, 2)


def test_an_addition_whose_answer_was_lost_counts_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a server that makes two additions and loses its answers
    add, lost = MemoryCounters.add, [True, True]

    def answers_late(counters: MemoryCounters, counts: Mapping[str, float], **names: Any) -> None:
        add(counters, counts, **names)
        if lost:
            lost.pop()
            raise StoreUnavailableError

    monkeypatch.setattr(MemoryCounters, "add", answers_late)
    for _ in range(4):
        rig.store(0.0, 0.0)
        rig.drain_counters.on_runs(["finished"])
    assert (rig.totals()["rows"], rig.totals()["runs:finished"]) == (8, 4)


@given(st.lists(st.floats(-10, 4000), max_size=50))
def test_a_histogram_counts_each_value_below_each_of_its_bounds(ages: list[float]) -> None:
    rig = Rig()
    rig.clock.advance(10_000)
    rig.store(*ages)
    rig.drain_counters.on_runs(["finished"])
    now_ms = round(rig.clock.now() * 1000)
    taken = [max(0, now_ms - round((rig.clock.now() - age) * 1000)) / 1000 for age in ages]
    found, total = buckets(dict(rig.totals()), "stored_seconds", STORED_SECONDS)
    expected = [sum(age <= bound for age in taken) for bound in STORED_SECONDS]
    assert [count for _, count in found] == [*expected, len(ages)]
    assert total == pytest.approx(sum(taken))
