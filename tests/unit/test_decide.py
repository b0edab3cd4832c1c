"""The decision of a tick: what reaches the policy, what does not, and how any policy explains itself to everybody."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from ingest.dashboard.view import document_of as page_document_of
from pipeline.__main__ import screen
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlStore, MemoryServer
from pipeline.control_store.memory_counters import MemoryCounters
from pipeline.decide import Ages, Decided, Measured, decide, decide_shadow
from pipeline.flow.rate import Decay
from pipeline.health.snapshot import Outlook, make_inputs
from pipeline.names import BreakerState, Mode, PauseReason
from pipeline.policies import make_policy, make_shadow
from pipeline.policies.bands import BandPolicy
from pipeline.policies.drain_time import DrainTimePolicy
from pipeline.ports.control import ControlState, Pause, PublishedRate
from pipeline.ports.rate import (
    BatchStart,
    Explanation,
    Figure,
    PartitionSample,
    PolicyRecord,
    PolicyState,
    RateDecision,
    RateSample,
    Threshold,
)
from pipeline.settings import Settings
from pipeline.status import SystemStatus
from pipeline.system_metrics import MetricsContext, SystemCollector

DECAY = Decay(30.0, 5.0)
MEASURED = Measured({0: 50, 1: 20}, {0: 30, 1: 0}, {2: 7}, {0: BatchStart(10, 1e9)}, "log")


@dataclass
class ToyPolicy:
    """Admits 7 events/s for each sample so far: a policy is this much, and a row in the table of policies."""

    samples: list[RateSample]
    floor_rate: float = 2.0

    def describe(self) -> Explanation:
        return self._explained(())

    def decide(self, sample: RateSample, state: PolicyState | None) -> RateDecision:
        self.samples.append(sample)
        count = (0 if state is None else state["count"]) + 1
        figures = (Figure("heat", "heat", 20.5 + count, "°C"), Figure("heat", "heat", 3.0, "°C", partition=1))
        return RateDecision(7.0 * count, Mode.DEGRADED, self._explained(figures), {"count": count})

    def _explained(self, figures: tuple[Figure, ...]) -> Explanation:
        return Explanation(
            policy="toy",
            sentence="seven more each time",
            reason="it is warm" if figures else "",
            because="21.5 °C" if figures else "",
            rate_max=70.0,
            look_at="the thermometer",
            thresholds=(Threshold("hot above", 40.0, "°C", Mode.CRITICAL, measure="heat"),),
            figures=figures,
            parameters={"step": 7},
        )


def state_with(record: PolicyRecord | None, **changes: Any) -> ControlState:
    """The control store's state after a publication of 400 events/s."""
    rate = PublishedRate(5, 400.0, 400.0, Mode.NORMAL, 0, 100.0, 100.0, policy=record)
    known: dict[str, Any] = {"rate": rate, "pauses": (), "breaker": BreakerState.CLOSED, "time": 105.0, "generation": 3}
    return ControlState(**known | changes)


def decided(state: ControlState, measured: Measured | None = MEASURED, lag_age: float = 5.0) -> tuple[Decided, Any]:
    """The decision of a new toy policy, and the sample that it got (None: it was not called)."""
    policy = ToyPolicy([])
    found = decide(policy, state, measured, Ages(lag_age, 5.0), DECAY)
    return found, policy.samples[0] if policy.samples else None


def test_a_policy_without_a_state_begins_with_the_rate_that_was_published_last() -> None:
    found, sample = decided(state_with(None, bucket_ran_dry=4))
    assert sample == RateSample(
        seconds=None,
        partitions={0: PartitionSample(50, 30, BatchStart(10, 1e9)), 1: PartitionSample(20, 0)},
        lag_held=7,
        ran_dry=False,  # the count is of the bucket's whole life
        was_paused=False,
        last_rate=400.0,
        log_id="log",
    )
    assert (sample.lag, sample.partitions[0].stored) == (37, 20)
    assert (found.rate, found.mode) == (7.0, Mode.DEGRADED)
    assert (found.record.state, found.record.ran_dry, found.record.generation) == ({"count": 1}, 4, 3)
    # A state of another policy is no state
    other = PolicyRecord(Explanation("other", "", "", "", 1.0, ""), {"count": 8}, ran_dry=2)
    found, sample = decided(state_with(other, bucket_ran_dry=4))
    assert (found.record.state, sample.ran_dry) == ({"count": 1}, False)
    # A fresh system has published no rate
    assert decided(state_with(None, rate=None))[1].last_rate is None


def test_a_policy_gets_its_state_back_and_what_happened_since() -> None:
    first = decided(state_with(None, bucket_ran_dry=4))[0].record
    # Given that nothing happened since
    found, sample = decided(state_with(first, bucket_ran_dry=4), lag_age=4.5)
    assert (sample.seconds, sample.ran_dry, sample.was_paused) == (4.5, False, False)
    assert (found.rate, found.record.state) == (14.0, {"count": 2})
    # A bucket that ran dry; and one whose server was flushed, which begins to count again
    assert decided(state_with(first, bucket_ran_dry=5))[1].ran_dry
    assert decided(state_with(first, bucket_ran_dry=1))[1].ran_dry
    assert not decided(state_with(first, bucket_ran_dry=0))[1].ran_dry


def test_a_pause_is_seen_while_it_lasts_after_it_and_where_it_is_of_one_partition() -> None:
    first = decided(state_with(None))[0].record
    pause = Pause(PauseReason.OPERATOR, 3, 90.0, "ann", "why")
    sample = decided(state_with(first, pauses=(pause,)))[1]
    assert (sample.was_paused, [one.is_paused for one in sample.partitions.values()]) == (True, [True, True])
    # One that began and ended between two ticks has left its generation
    assert decided(state_with(first, generation=5))[1].was_paused
    of_one = Pause(PauseReason.POISON, 3, 90.0, "drain", "why", partition=1)
    sample = decided(state_with(first, pauses=(of_one,)))[1]
    assert (sample.was_paused, [one.is_paused for one in sample.partitions.values()]) == (False, [False, True])
    # After a flush the reasons are unknown
    assert decided(state_with(first, pauses=None))[1].was_paused


@pytest.mark.parametrize(("lag_age", "rate"), [(30.0, 400.0), (35.0, 200.0), (1e9, 2.0)])
def test_an_unknown_lag_does_not_reach_the_policy(lag_age: float, rate: float) -> None:
    first = decided(state_with(None, bucket_ran_dry=4))[0].record
    policy = ToyPolicy([])
    known = state_with(first, bucket_ran_dry=9, generation=8)
    found = decide(policy, known, None, Ages(lag_age, lag_age), DECAY)
    assert (found.rate, found.mode, policy.samples) == (rate, Mode.UNKNOWN, [])
    # Its state stays, with the counts of its last sample; it explains its thresholds, and no figure of an old sample
    assert (found.record.state, found.record.ran_dry, found.record.generation) == ({"count": 1}, 4, 3)
    assert found.record.explanation == policy.describe()
    # A lag that was never known is not 0
    assert decide(policy, state_with(None, rate=None), None, None, DECAY).rate == 2.0


def test_page_terminal_and_metrics_show_a_policy_that_they_do_not_know() -> None:
    # Given a toy policy that has decided in a tick
    settings, clock = Settings(), ManualClock()
    server = MemoryServer(clock)
    store = MemoryControlStore(settings, server)
    store.restore([], actor="controller")
    found = decide(ToyPolicy([]), store.state(), MEASURED, None, DECAY)
    store.publish_rate(
        base_rate=found.rate, floor_rate=2.0, mode=found.mode, lag=37, lag_known_at=clock.now(), actor="controller",
        policy=found.record,
    )  # fmt: skip
    # When somebody looks
    inputs = make_inputs(
        settings, at=clock.now(), state=store.state(), controller_age=1.0, outlook=Outlook(), store_problem=None,
        log_problem=None,
    )  # fmt: skip
    # Then the terminal has its words, figures and thresholds
    text = screen(SystemStatus(inputs))
    assert "rate         7 events/s [##..................] of 70: it is warm" in text
    assert "policy       toy: seven more each time" in text
    assert "  heat       22 °C [###########.........] hot above 40" in text
    # And the page
    page = page_document_of(inputs)
    assert (page["rateDecidedBy"], page["bands"]) == ("it is warm", None)
    assert page["ratePolicy"]["thresholds"] == [
        {"label": "hot above", "value": 40.0, "unit": "°C", "mode": "critical", "measure": "heat"}
    ]
    assert page["ratePolicy"]["figures"][0] == {
        "name": "heat", "label": "heat", "value": 21.5, "unit": "°C", "partition": None,
    }  # fmt: skip
    # And the metrics
    context = MetricsContext(settings, clock, store, MemoryCounters(server), None)
    values = {
        tuple(sample.labels.values()): sample.value
        for metric in SystemCollector(context).collect() if metric.name == "sluice_rate_policy_figure"
        for sample in metric.samples
    }  # fmt: skip
    assert values == {
        ("toy", "heat_critical", "°C", ""): 40.0,
        ("toy", "heat", "°C", ""): 21.5,
        ("toy", "heat", "°C", "1"): 3.0,
    }
    # And the control event
    [event] = [event for event in server.content().events if event.data.get("policy_reason")]
    assert (event.data["policy_reason"], event.why) == ("it is warm", "21.5 °C")


def test_a_shadow_decides_beside_the_policy_with_a_state_and_a_rate_of_its_own() -> None:
    # Given a tick without a shadow before: it begins with the rate that was published
    first, shadow = decided(state_with(None))[0], ToyPolicy([])
    beside = decide_shadow(shadow, state_with(first.record), MEASURED, Ages(5.0, 5.0), DECAY)
    assert (shadow.samples[0].last_rate, shadow.samples[0].seconds) == (400.0, None)
    assert (beside.rate, beside.mode, beside.record.state) == (7.0, Mode.DEGRADED, {"count": 1})
    # When the next tick decides, then it has its own state and last rate, and the first policy its own
    record = replace(first.record, shadow=beside)
    again = decide_shadow(shadow, state_with(record), MEASURED, Ages(5.0, 5.0), DECAY)
    assert (shadow.samples[1].last_rate, shadow.samples[1].seconds, again.rate) == (7.0, 5.0, 14.0)
    assert decided(state_with(record))[1].last_rate == 400.0
    # And an unknown lag lets its own rate decay
    held = decide_shadow(shadow, state_with(record), None, Ages(35.0, 35.0), DECAY)
    assert (held.rate, held.mode, held.record.state) == (3.5, Mode.UNKNOWN, {"count": 1})


def test_a_shadow_is_shown_and_admits_nothing() -> None:
    settings, clock = Settings(), ManualClock()
    server = MemoryServer(clock)
    store = MemoryControlStore(settings, server)
    store.restore([], actor="controller")
    beside = decide_shadow(ToyPolicy([]), store.state(), MEASURED, None, DECAY)
    store.publish_rate(
        base_rate=900.0, floor_rate=2.0, mode=Mode.NORMAL, lag=37, lag_known_at=clock.now(), actor="controller",
        policy=PolicyRecord(make_policy(settings).describe(), shadow=beside),
    )  # fmt: skip
    inputs = make_inputs(
        settings, at=clock.now(), state=store.state(), controller_age=1.0, outlook=Outlook(), store_problem=None,
        log_problem=None,
    )  # fmt: skip
    assert inputs.rate == 900.0
    assert "shadow       toy would admit 7/s: it is warm (degraded)" in screen(SystemStatus(inputs))
    shown = page_document_of(inputs)["ratePolicy"]
    assert (shown["name"], shown["shadow"]["name"], shown["shadow"]["rate"]) == ("bands", "toy", 7.0)
    context = MetricsContext(settings, clock, store, MemoryCounters(server), None)
    [family] = [one for one in SystemCollector(context).collect() if one.name == "sluice_shadow_rate_limit"]
    assert [(sample.labels, sample.value) for sample in family.samples] == [({"policy": "toy"}, 7.0)]


def test_the_shadow_of_the_settings() -> None:
    assert make_shadow(Settings()) is None
    # Given no RATE_MAX, each policy has its own; one that is given holds for both
    shadow = make_shadow(Settings.from_environ({"RATE_POLICY_SHADOW": "drain_time"}))
    assert shadow == DrainTimePolicy(50_000.0, 100.0, 2.0, 5.0)
    shadow = make_shadow(Settings.from_environ({"RATE_POLICY": "drain_time", "RATE_POLICY_SHADOW": "bands"}))
    assert shadow == BandPolicy(1000.0, 100.0, 10_000, 50_000)
    given = Settings.from_environ({"RATE_POLICY_SHADOW": "drain_time", "RATE_MAX": "3000"})
    assert make_shadow(given) == DrainTimePolicy(3000.0, 100.0, 2.0, 5.0)
