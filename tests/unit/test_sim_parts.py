"""The simulated parts of the simulator: virtual time, the sink, the bounds and the figures."""

import math
import random
from collections.abc import Callable

import pytest

from checks.sim.bounds import BucketBound, ControlBound, Holdings, LeaseBound, Violations
from checks.sim.processes import Counts, Load
from checks.sim.scenarios import SCENARIOS
from checks.sim.sink import Conditions, Sink, spread
from checks.sim.timeline import (
    Second,
    Timeline,
    body_shares,
    fair_share,
    goodput,
    lines,
    oldest_seconds,
    recovery_seconds,
    settle_seconds,
)
from checks.sim.virtual import VirtualLoop
from checks.sim.world import could_store
from pipeline.breaker import SinkBreaker
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlStore, MemoryServer
from pipeline.names import BreakerState, Mode, PauseReason
from pipeline.ports.bucket import Grant
from pipeline.ports.control import ControlState, Pause, PublishedRate
from pipeline.settings import Settings

FREE = 1e9


def constant(value: float) -> Callable[[float], float]:
    return lambda _: value


# --- Virtual time


def loop_of(clock: ManualClock) -> VirtualLoop:
    return VirtualLoop(clock, random.Random(1), round_trip_seconds=0.004)


def test_timers_run_in_order_each_at_its_own_time() -> None:
    clock = ManualClock()
    loop, began = loop_of(clock), clock.monotonic()
    ran: list[tuple[str, float]] = []

    def note(what: str) -> None:
        ran.append((what, round(clock.monotonic() - began, 6)))

    loop.call_later(2.0, note, "late")
    loop.call_later(1.0, note, "first")
    loop.call_later(1.0, note, "second")
    loop.call_later(1.5, note, "cancelled").cancel()
    loop.call_later(1.0, lambda: loop.call_soon(note, "at once"))
    loop.run_until(began + 1.75)
    assert ran == [("first", 1.0), ("second", 1.0), ("at once", 1.0)]
    assert clock.monotonic() == began + 1.75
    loop.run_until(began + 3)
    assert ran[3:] == [("late", 2.0)]


def test_a_call_to_the_store_runs_in_the_middle_of_its_round_trip() -> None:
    clock = ManualClock()
    loop, began = loop_of(clock), clock.monotonic()
    answer = loop.run_in_executor(None, lambda: clock.monotonic() - began)
    answer.add_done_callback(lambda _: answered.append(clock.monotonic() - began))
    answered: list[float] = []
    loop.run_until(began + 1)
    assert 0.001 <= answer.result() <= 0.003
    assert answered == [pytest.approx(2 * answer.result())]


def test_an_error_in_a_callback_ends_the_run() -> None:
    clock = ManualClock()
    loop = loop_of(clock)
    loop.call_soon(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.run_until(clock.monotonic())


# --- The sink


class _Rig:
    def __init__(self, partitions: int = 2, batch_max: int = 100, **settings: float) -> None:
        self.clock = ManualClock(now=1000.0)
        self.store = MemoryControlStore(Settings(), MemoryServer(self.clock))
        self.breaker = SinkBreaker(Settings(), self.store, self.clock, "test")
        self.sink = Sink(Settings(), partitions, self.breaker, batch_max=batch_max, late_seconds=1.0)
        self.at = 0.0

    def step(self, conditions: Conditions, *, is_paused: bool = False) -> tuple[int, int, float]:
        done = self.sink.step(self.at, 0.1, conditions, is_paused=is_paused)
        self.at += 0.1
        return done.events, done.in_time, round(done.oldest_seconds, 6)

    def lags(self) -> list[int]:
        return [one.lag for one in self.sink.partitions]


def test_busy_drains_share_the_sink_and_what_one_can_t_use_goes_to_the_others() -> None:
    rig = _Rig(partitions=3, batch_max=1)
    for number, count in enumerate((100, 100, 10)):
        rig.sink.partitions[number].append(count, 0.0)
    rig.step(Conditions(1000.0, caps=(200.0, FREE, FREE)))  # 100 events in this step: 20, 70 and 10
    assert rig.lags() == [80, 30, 0]


def test_a_batch_is_stored_as_a_whole_and_its_size_is_fixed_when_it_begins() -> None:
    rig = _Rig(partitions=1)
    one = rig.sink.partitions[0]
    one.append(60, 0.0)
    assert rig.step(Conditions(400.0)) == (0, 0, 0.0)  # 40 of 60 are written
    one.append(100, 0.1)
    assert rig.step(Conditions(400.0)) == (60, 60, 0.15)  # committed in the middle of the step
    assert (one.stored, one.began, one.began_at) == (60, 0, 0.0)
    assert one.batch == 100
    assert [one.left, one.batch_at] == pytest.approx([80.0, 0.15])


def test_events_are_late_by_their_own_age() -> None:
    rig = _Rig(partitions=1)
    rig.sink.partitions[0].append(10, -2.0)
    rig.sink.partitions[0].append(10, -0.5)
    assert rig.step(Conditions(200.0)) == (20, 10, 2.1)
    assert rig.sink.oldest_seconds(5.0) == 0.0


def test_a_paused_sink_stores_nothing_and_begins_its_batch_again() -> None:
    rig = _Rig(partitions=1)
    rig.sink.partitions[0].append(50, 0.0)
    rig.step(Conditions(400.0))
    assert rig.step(Conditions(400.0), is_paused=True) == (0, 0, 0.0)
    assert rig.step(Conditions(400.0)) == (0, 0, 0.0)
    assert rig.sink.partitions[0].left == pytest.approx(10.0)


def test_the_shipped_breaker_opens_when_the_sink_is_silent() -> None:
    rig = _Rig(partitions=2)
    for one in rig.sink.partitions:
        one.append(50, 0.0)
    while not rig.breaker.is_open:
        rig.step(Conditions(400.0, is_down=True))
        assert rig.at < 20
    # Two drains, five failures: the third try of each begins after two times two seconds of silence and one of rest.
    assert rig.at == pytest.approx(8.2, abs=0.3)
    assert rig.store.state().pauses is None or rig.store.state().breaker is not BreakerState.CLOSED


def test_events_are_spread_among_partitions_without_loss() -> None:
    rng = random.Random(1)
    sums = [0, 0, 0]
    for _ in range(2000):
        parts = spread(30, (0.5, 0.3, 0.2), rng)
        assert sum(parts) == 30
        assert min(parts) >= 0
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
    assert [round(total / 60_000, 2) for total in sums] == [0.5, 0.3, 0.2]
    assert spread(7, (1.0, 0.0), rng) == [7, 0]


def test_the_slowest_partition_limits_what_could_be_stored() -> None:
    assert could_store(SCENARIOS["hot partition"], 0.0, 1500.0, (600.0,) * 4) == pytest.approx(600 / 0.7)
    assert could_store(SCENARIOS["steady 2x"], 0.0, 1500.0, None) == 1500.0


# --- The bounds


def grant(granted: int, *, rate: float = 100.0, burst: int = 100, version: int = 1) -> Grant:
    return Grant(
        granted=granted, wait_seconds=0.0, tokens=0.0, rate=rate, burst=burst, version=version, live_processes=1
    )


def bucket_bound(violations: Violations) -> BucketBound:
    bound = BucketBound(violations, body_max=20, now=0.0)
    bound.note_rate(100.0, 0.0)
    return bound


def test_the_bucket_may_grant_a_burst_the_integral_of_the_rate_and_the_debt_of_one_body() -> None:
    violations = Violations(0.0)
    bound = bucket_bound(violations)
    bound.note_grant(grant(100), 0.0)
    bound.note_rate(50.0, 0.5)  # 50 tokens until here, then 50 a second
    bound.note_grant(grant(75), 1.0)
    bound.note_grant(grant(20), 1.0)
    assert violations.count == 0
    assert bound.used_max == 1.0
    bound.note_grant(grant(1), 1.0)
    assert [one.bound for one in violations.found] == ["bucket"]


def test_the_bucket_s_tokens_beyond_a_burst_are_lost() -> None:
    violations = Violations(0.0)
    bound = bucket_bound(violations)
    bound.note_grant(grant(100), 10.0)
    bound.note_grant(grant(121), 10.0)
    assert violations.count == 1


def test_a_lower_rate_voids_what_was_granted_under_a_higher_one() -> None:
    violations = Violations(0.0)
    bound = LeaseBound(violations, "a process")
    bound.note_grant(grant(30, rate=1000.0, version=1))
    bound.note_rate(2, 100.0)
    bound.note_grant(grant(3, version=2))
    bound.note_rate(3, 200.0)  # a higher rate voids nothing
    bound.note_admitted(3, 1.0)
    assert violations.count == 0
    bound.note_admitted(1, 1.0)
    assert [(one.bound, one.at) for one in violations.found] == [("lease", 1.0)]


def lease_bound(violations: Violations, lease: int = 0, owed: int = 0) -> LeaseBound:
    """The bound of a process that says that it holds these tokens."""
    bound = LeaseBound(violations, "a process")
    bound.holdings = lambda: Holdings(lease, owed)
    return bound


@pytest.mark.parametrize(("returned", "count"), [(30, 0), (31, 1)])
def test_a_process_may_give_back_what_became_void_on_the_way_but_no_more(returned: int, count: int) -> None:
    violations = Violations(0.0)
    bound = lease_bound(violations)
    bound.note_grant(grant(30, rate=1000.0, version=1))
    bound.note_rate(2, 100.0)
    bound.note_call(returned, 1.0)
    assert violations.count == count


@pytest.mark.parametrize(("lease", "owed", "count"), [(10, 5, 0), (11, 5, 1), (10, 6, 1)])
def test_what_a_process_keeps_counts_with_what_it_gives_back(lease: int, owed: int, count: int) -> None:
    violations = Violations(0.0)
    bound = lease_bound(violations, lease, owed)
    bound.note_grant(grant(30, rate=1000.0, version=1))
    bound.note_admitted(10, 1.0)
    bound.note_call(5, 1.0)
    assert violations.count == count


def test_tokens_that_a_process_has_lost_may_not_be_given_back_later() -> None:
    # Given a process that gave 20 tokens to a call that failed, and lost 3 more: it has 7
    violations = Violations(0.0)
    bound = lease_bound(violations, 7)
    bound.note_grant(grant(30, rate=1000.0, version=1))
    bound.note_call(20, 1.0)
    # When it gives back one more than these
    bound.holdings = lambda: Holdings(0, 0)
    assert violations.count == 0
    bound.note_call(8, 2.0)
    # Then that is one too many
    assert [(one.at, one.bound) for one in violations.found] == [(2.0, "lease")]
    assert "1 more than it can have" in violations.found[0].what


@pytest.mark.parametrize(
    ("rate", "base_rate", "lag", "is_open", "bound"),
    [
        (500.0, 500.0, 0, False, None),
        (5000.0, 500.0, 0, False, None),  # an operator's rate
        (1001.0, 1001.0, 0, False, "limits"),
        (99.0, 99.0, 0, False, "limits"),
        (100.0, 500.0, 0, True, None),
        (101.0, 500.0, 0, True, "breaker"),
        (400.0, 400.0, None, False, None),
        (401.0, 401.0, None, False, "unknown lag"),
    ],
)
def test_every_published_rate_keeps_to_its_limits(
    rate: float, base_rate: float, lag: int | None, is_open: bool, bound: str | None
) -> None:
    violations = Violations(0.0)
    control = ControlBound(violations, Settings())
    pauses = (Pause(PauseReason.BREAKER, 1, 0.0, "", ""),) if is_open else ()
    for published, held in (
        (PublishedRate(1, 400.0, 400.0, Mode.NORMAL, 0, 0.0, 0.0), ()),
        (PublishedRate(2, rate, base_rate, Mode.NORMAL, lag, 0.0, 0.0), pauses),
    ):
        control.note_state(ControlState(published, held, BreakerState.CLOSED, 0.0, 0), 0.0)
    assert [one.bound for one in violations.found] == ([] if bound is None else [bound])


# --- The figures


def timeline_of(*seconds: tuple[int, int, int, float]) -> Timeline:
    """Seconds of: offered, admitted, stored in time, could."""
    return Timeline([
        Second(offered=offered, admitted=admitted, stored=good, in_time=good, could=could)
        for offered, admitted, good, could in seconds
    ])  # fmt: skip


def test_goodput_is_a_share_of_what_an_ideal_admission_would_have_stored() -> None:
    assert goodput(timeline_of(*[(200, 90, 90, 100.0)] * 5), 0) == pytest.approx(0.9)
    assert goodput(timeline_of(*[(50, 50, 50, 100.0)] * 5), 0) == pytest.approx(1.0)
    # A burst of 350 may wait for two seconds of the sink's capacity; the rest would be refused.
    assert goodput(timeline_of((350, 100, 100, 100.0), *[(0, 0, 100, 100.0)] * 4), 0) == pytest.approx(500 / 300)


def test_settled_is_when_the_admitted_rate_stays_within_a_tenth() -> None:
    swing = timeline_of(*[(200, admitted, 0, 100.0) for admitted in (50, 95, 120, 110, 90, 100)])
    assert settle_seconds(swing, 0) == 3.0
    assert settle_seconds(swing, 3) == 0.0
    assert settle_seconds(timeline_of((200, 100, 0, 100.0), (200, 89, 0, 100.0)), 0) == math.inf
    noisy = timeline_of(*[(200, admitted, 0, 100.0) for admitted in (80, 120, 80, 120)])
    assert settle_seconds(noisy, 0) == math.inf
    assert settle_seconds(noisy, 0, mean_seconds=2) == 0.0


def test_recovered_is_when_goodput_stays_high_for_ten_seconds() -> None:
    good, bad = (200, 100, 100, 100.0), (200, 100, 0, 100.0)
    assert recovery_seconds(timeline_of(*[bad] * 4, *[good] * 15), 0) == 4.0
    assert recovery_seconds(timeline_of(*[bad, good, good] * 10), 0) == math.inf


def test_each_body_size_is_held_against_its_max_min_share() -> None:
    assert fair_share([100, 500, 900], 900) == 400.0
    assert fair_share([1, 2], 10) == math.inf
    timeline = Timeline()
    for body, offered, admitted in ((1, 100, 100), (20, 500, 600), (512, 900, 200)):
        counts = Counts()
        counts.offered, counts.admitted = offered, admitted
        timeline.loads.append((Load(constant(1.0), body=body), counts))
    assert body_shares(timeline) == {1: 1.0, 20: 1.5, 512: 0.5}


def test_a_timeline_shows_a_violation_below_its_second() -> None:
    timeline = timeline_of(*[(2, 1, 1, 1.0)] * 3)
    violations = Violations(100.0)
    violations.add(101.5, "lease", "too many")
    shown = lines(timeline, violations.found)
    assert shown[3] == "        !! 1.50 s  bound 'lease': too many"
    assert len(shown) == 5
    assert oldest_seconds(timeline, 0) == 0.0
