"""The policy `drain_time`: exact figures, what it must not be misled by, and how it explains itself."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import SettingsError
from pipeline.names import Mode
from pipeline.policies import make_policy
from pipeline.policies.drain_time import DrainTimePolicy
from pipeline.ports.control import Bands
from pipeline.ports.rate import BatchStart, PartitionSample, RateDecision, RateSample
from pipeline.settings import Settings

POLICY = DrainTimePolicy(rate_max=50_000.0, rate_min=100.0, target_seconds=2.0, period_seconds=1.0)


def sample(*partitions: tuple[int, int, int, float], seconds: float | None = 1.0, **more: Any) -> RateSample:
    """A sample of partitions: appended, stored, and the offset and time at which the newest batch began (0: none)."""
    found = {
        number: PartitionSample(appended, appended - stored, BatchStart(began, at) if at else None)
        for number, (appended, stored, began, at) in enumerate(partitions)
    }
    return RateSample(seconds, found, **more)


def decide(one: RateSample, before: RateDecision | None = None, policy: DrainTimePolicy = POLICY) -> RateDecision:
    """The decision, with a state that was JSON in between."""
    return policy.decide(one, None if before is None else json.loads(json.dumps(before.state)))


def capacity(decision: RateDecision) -> float:
    found = decision.explanation.figure("capacity_events_per_second")
    assert found is not None
    return found


# seconds, ran dry, paused, both partitions; rate and capacity as the policy that was simulated gives them
STORY = [
    (1.0, True, False, (0, 0, 0, 0.0), (0, 0, 0, 0.0), 2000.0, 1000.0),
    (1.0, True, False, (600, 300, 200, 0.9), (600, 280, 180, 0.95), 1050.0, 1000.0),
    (1.1, True, False, (1300, 700, 600, 1.8), (1250, 640, 560, 1.9), 983.7716895017984, 936.9254185731413),
    (1.0, True, False, (2100, 1150, 1050, 2.9), (1990, 1040, 950, 2.8), 849.6866769799237, 894.4070283999198),
    (0.9, True, False, (2800, 1600, 1500, 3.9), (2650, 1450, 1380, 3.7), 864.9367022440207, 910.4596865726534),
    (1.0, False, True, (2900, 1600, 1500, 3.9), (2750, 1450, 1380, 3.7), 864.9367022440207, 910.4596865726534),
    (1.0, True, False, (3000, 2100, 2050, 5.8), (2850, 1900, 1850, 5.7), 867.2440113311161, 910.4596865726534),
    (1.0, False, False, (3050, 2700, 2600, 6.9), (2900, 2500, 2400, 6.8), 1007.9850634732877, 959.9857747364645),
    (1.0, False, False, (3100, 3100, 3050, 7.8), (2950, 2950, 2900, 7.9), 1007.9850634732877, 959.9857747364645),
    (1.0, True, False, (4100, 4000, 3900, 8.9), (3950, 3900, 3800, 8.8), 2686.462239505311, 1393.0514605671713),
    (1.0, True, False, (5200, 5150, 5000, 9.9), (5050, 5000, 4900, 9.8), 3521.2280149616536, 1785.6988056768391),
    (1.0, True, False, (9200, 5650, 5600, 10.9), (9050, 5500, 5450, 10.8), 100.0, 1785.6988056768391),
]


def test_it_is_the_policy_that_was_simulated() -> None:
    decision = None
    for number, (seconds, ran_dry, was_paused, one, other, rate, measured) in enumerate(STORY):
        given = sample(one, other, seconds=seconds if number else None, ran_dry=ran_dry, was_paused=was_paused)
        decision = decide(given, decision)
        assert (decision.rate, capacity(decision)) == pytest.approx((rate, measured), rel=1e-12), number


@pytest.mark.parametrize(("last_rate", "expected"), [(None, 1000.0), (1490.0, 1490.0), (1.0, 100.0), (1e9, 50_000.0)])
def test_without_a_state_it_begins_with_the_rate_that_was_published_last(
    last_rate: float | None, expected: float
) -> None:
    decision = decide(sample((0, 0, 0, 0.0), seconds=None, last_rate=last_rate))
    assert capacity(decision) == expected


def busy(speed: float, seconds: int, before: RateDecision | None = None, since: int = 0) -> RateDecision:
    """The decision after seconds in which one partition had enough, and `speed` events were stored in each."""
    decision = before or decide(sample((5000, 0, 0, 0.1), seconds=None))
    for second in range(since + 1, since + seconds + 1):
        stored = round(second * speed)
        decision = decide(sample((5000 + stored, stored, stored, second + 0.1)), decision)
    return decision


def test_the_capacity_is_what_a_busy_sink_stores() -> None:
    assert capacity(busy(1500.0, 20)) == pytest.approx(1500.0, rel=0.01)
    assert capacity(busy(300.0, 20)) == pytest.approx(300.0, rel=0.01)


def test_an_idle_sink_proves_nothing() -> None:
    # Given a known capacity
    known = busy(1500.0, 20)
    measured = capacity(known)
    # When hardly anything is appended for a long time, then the capacity stays
    decision = known
    for second in range(21, 80):
        stored = 35_000 + second
        decision = decide(sample((stored, stored, stored, second + 0.1)), decision)
    assert capacity(decision) == measured


def idle_at(rate: float, *partitions: int) -> RateDecision:
    """The decision of a sink that has stored all of these events, at a capacity of `rate`."""
    return decide(sample(*((end, end, end - 10, 1.1) for end in partitions), seconds=None, last_rate=rate))


def test_a_load_that_every_partition_has_kept_up_with_is_the_capacity_at_once() -> None:
    # Given a probe at 1,200/s by which as much was appended and stored, but for a few
    known = idle_at(600.0, 5000, 7000)
    probed = sample((5600, 5590, 5580, 2.1), (7610, 7600, 7590, 2.1), ran_dry=True, last_rate=1200.0)
    decision = decide(probed, known)
    # Then the next probe is larger, but no more can wait after a period than the target allows
    load = 590 / (600 / 1210)
    drain = 10 / (600 / 1210 * load)
    assert capacity(decision) == pytest.approx(load)
    assert decision.rate == pytest.approx(load * (1 + 1.5 * (2 - drain) / 2))
    long = replace(POLICY, period_seconds=5.0)
    assert decide(probed, known, long).rate == pytest.approx(load * (1 + (2 - drain) / 5))


@pytest.mark.parametrize(
    "what",
    [
        sample((5600, 5590, 5580, 2.1), (7610, 7600, 7590, 2.1), ran_dry=True, last_rate=630.0),  # no probe: a burst
        sample((5600, 5590, 5580, 2.1), (7610, 7400, 7390, 2.1), ran_dry=True, last_rate=1200.0),  # one is behind
        sample((6150, 6140, 6130, 2.1), (7050, 7050, 7040, 2.1), ran_dry=True, last_rate=1200.0),  # one got too little
    ],
)
def test_what_not_every_partition_has_kept_up_with_moves_the_capacity_slowly(what: RateSample) -> None:
    # Given two partitions with the same share of the load until now
    known = decide(sample((5000, 5000, 4990, 1.1), (7000, 7000, 6990, 1.1)), idle_at(600.0, 4700, 6700))
    decision = decide(what, known)
    assert 600.0 < capacity(decision) < 600 + 0.5 * 620
    assert decision.rate <= 2 * capacity(decision)


def test_one_odd_batch_does_not_take_more_than_half() -> None:
    # Given a batch that took a thousand seconds by PostgreSQL's clock, which was stepped
    known = busy(1500.0, 20)
    decision = decide(sample((36_500, 31_500, 31_500, 1020.1)), known)
    assert capacity(known) / 2 < capacity(decision) < capacity(known)


def test_a_clock_that_goes_back_begins_a_new_measurement() -> None:
    # Given PostgreSQL's clock that is set back by an hour
    known = busy(1500.0, 20)
    decision = decide(sample((36_500, 31_500, 31_500, -3579.0)), known)
    assert capacity(decision) == pytest.approx(capacity(known))
    # Then the next batch counts from there
    decision = decide(sample((38_000, 32_000, 32_000, -3578.0)), decision)
    assert capacity(decision) < capacity(known)
    # And so does another log, whose offsets begin again
    decision = decide(sample((5000, 10, 10, 5.0)), known)
    assert capacity(decision) == capacity(known)


def test_partitions_that_come_and_go_do_not_disturb_the_others() -> None:
    # Given a partition that does not answer for a while, and one that was added
    known = decide(sample((500, 0, 0, 0.1), (500, 0, 0, 0.1)), decide(sample((0, 0, 0, 0.0), (0, 0, 0, 0.0))))
    alone = decide(sample((900, 400, 400, 1.1)), known)
    back = decide(sample((1300, 800, 800, 2.1), (900, 100, 100, 2.2), (50, 0, 0, 0.0)), alone)
    assert set(back.state["partitions"]) == {"0", "1", "2"}
    # Then a partition whose share is not measured counts with an equal one: a short absence is no backlog
    drains = {one.partition: one.value for one in back.explanation.figures if one.name == "drain_seconds"}
    assert drains[1] == pytest.approx(800 / (capacity(back) / 3))
    assert drains[2] == pytest.approx(50 / (capacity(back) / 3))
    assert back.mode is Mode.NORMAL


def test_a_state_of_another_version_counts_as_none() -> None:
    given = sample((2000, 1000, 1000, 1.1), last_rate=700.0)
    without = POLICY.decide(given, None)
    known: dict[str, Any] = dict(busy(1500.0, 3).state)
    for unknown in (
        {"throughput": 1500.0},
        known | {"mode": "at the limit"},
        known | {"partitions": {"0": [1000]}},
        known | {"partitions": {"0": [1000, 500, 400.0, [1.0]]}},
        known | {"partitions": [1, 2]},
    ):
        assert POLICY.decide(given, unknown) == without, unknown
    assert POLICY.decide(given, known) != without


def test_two_samples_at_one_moment_are_one() -> None:
    known = busy(1500.0, 3)
    again = decide(sample((9500, 4500, 4500, 3.1), seconds=0.0), known)
    assert capacity(again) == capacity(known)


def test_a_paused_partition_proves_nothing() -> None:
    known = busy(1500.0, 20)
    paused = sample((36_500, 30_100, 30_100, 21.1))
    paused = replace(paused, partitions={0: replace(paused.partitions[0], is_paused=True)})
    assert capacity(decide(paused, known)) == capacity(known)
    # Unless it was not
    assert capacity(decide(sample((36_500, 30_100, 30_100, 21.1)), known)) < capacity(known)


@pytest.mark.parametrize(
    ("drains", "modes"),
    [
        ([4.0, 4.1, 3.0, 2.9], [Mode.NORMAL, Mode.DEGRADED, Mode.DEGRADED, Mode.NORMAL]),
        ([10.0, 10.1, 6.0, 5.9, 2.9], [Mode.DEGRADED, Mode.CRITICAL, Mode.CRITICAL, Mode.DEGRADED, Mode.NORMAL]),
        ([10.1, 3.5, 2.9], [Mode.CRITICAL, Mode.DEGRADED, Mode.NORMAL]),
    ],
)
def test_a_mode_is_left_later_than_it_is_entered(drains: list[float], modes: list[Mode]) -> None:
    # Given lags that take so long at a capacity of 1,000, with no time between the samples
    decision, found = None, []
    for drain in drains:
        decision = decide(sample((round(drain * 1000), 0, 0, 0.0), seconds=0.0), decision)
        found.append(decision.mode)
    assert found == modes


@pytest.mark.parametrize(("target", "thresholds"), [(0.5, [4.0, 10.0]), (2.0, [4.0, 10.0]), (15.0, [30.0, 75.0])])
def test_a_log_filled_up_to_a_long_target_is_normal(target: float, thresholds: list[float]) -> None:
    # Given lags in seconds at a capacity of 1,000
    policy = replace(POLICY, target_seconds=target)

    def mode(drain: float, before: RateDecision | None = None) -> RateDecision:
        return decide(sample((round(drain * 1000), 0, 0, 0.0), seconds=0.0), before, policy)

    # When the drain time is the target, then that is what was asked for
    assert mode(target).mode is Mode.NORMAL
    # And the thresholds that are shown are those that count
    at_target = mode(target).explanation
    assert [one.value for one in at_target.thresholds] == thresholds
    assert [one.value for one in policy.describe().thresholds] == thresholds
    assert mode(thresholds[0] + 0.1).mode is Mode.DEGRADED
    assert mode(thresholds[1] + 0.1).mode is Mode.CRITICAL
    # And a mode is left at three quarters and six tenths of them
    assert mode(0.76 * thresholds[0], mode(thresholds[0] + 0.1)).mode is Mode.DEGRADED
    assert mode(0.74 * thresholds[0], mode(thresholds[0] + 0.1)).mode is Mode.NORMAL
    assert mode(0.61 * thresholds[1], mode(thresholds[1] + 0.1)).mode is Mode.CRITICAL
    assert mode(0.59 * thresholds[1], mode(thresholds[1] + 0.1)).mode is Mode.DEGRADED


def explained(lag: int, **more: Any) -> Mapping[str, Any]:
    told = decide(sample((lag, 0, 0, 0.0), seconds=None, **more)).explanation
    return {"reason": told.reason, "because": told.because, "sentence": told.sentence}


def test_at_the_limit_is_normal_and_says_so() -> None:
    told = decide(sample((2000, 0, 0, 0.0), seconds=None, ran_dry=True))
    assert told.mode is Mode.NORMAL
    assert told.explanation.reason == "at the limit, which is normal: PostgreSQL stores 1,000/s"
    assert told.explanation.because == "drain 2.0 s, capacity 1,000/s"
    assert told.explanation.sentence == (
        "PostgreSQL stores 1,000/s; what waits in partition 0 is stored in 2.0 s, the target is 2 s"
    )
    assert explained(2000)["reason"] == "the limit is not reached"
    assert explained(0, ran_dry=True)["reason"] == "the limit is looked for: PostgreSQL stores at least 1,000/s"
    assert explained(0)["sentence"].startswith("PostgreSQL stores at least 1,000/s; what waits")
    assert explained(5000)["reason"] == "the backlog takes 5.0 s"


def test_its_thresholds_are_about_its_own_figure() -> None:
    told = decide(sample((2000, 0, 0, 0.0), (500, 0, 0, 0.0), seconds=None)).explanation
    assert [(one.label, one.value, one.unit, one.measure) for one in told.thresholds] == [
        ("degraded above", 4.0, "s", "drain_seconds"),
        ("critical above", 10.0, "s", "drain_seconds"),
    ]
    assert told.measure == 4.0  # two partitions of one size each, and nothing known of their shares
    assert [(one.partition, one.value) for one in told.figures if one.name == "drain_seconds"] == [
        (None, 4.0),
        (0, 4.0),
        (1, 1.0),
    ]
    # A lag alone says nothing: what it means depends on the sink
    assert told.mode_of_lag(10**9) is Mode.UNKNOWN
    assert POLICY.describe().measure is None


def test_its_settings() -> None:
    # Given no more than the policy's name, the ceiling and the period are its own
    settings = Settings.from_environ({"RATE_POLICY": "drain_time"})
    assert (settings.rate_max, settings.regulate_seconds) == (50_000.0, 1.0)
    bands = Bands(500.0, 50.0, 10, 100, "ann@host", "a slow disk", 0.0)
    assert make_policy(settings, bands) == replace(POLICY)
    # What is given counts
    given = {"RATE_POLICY": "drain_time", "RATE_MAX": "3000", "REGULATE_SECONDS": "2", "DRAIN_TARGET_SECONDS": "1"}
    assert make_policy(Settings.from_environ(given)) == DrainTimePolicy(3000.0, 100.0, 1.0, 2.0)
    # The bands stay as they are
    assert (Settings.from_environ({}).rate_max, Settings.from_environ({}).regulate_seconds) == (1000.0, 5.0)
    with pytest.raises(SettingsError, match="RATE_POLICY='fast' is none of bands, drain_time"):
        Settings.from_environ({"RATE_POLICY": "fast"})


def test_another_log_ends_all_measurements_and_the_capacity_stays() -> None:
    # Given a sink that stores 500/s, of a log with low offsets
    before = None
    for second in range(1, 6):
        one = (500 * second + 900, 500 * second, 500 * second - 100, float(second))
        before = decide(sample(one, log_id="first", last_rate=500.0), before)
    assert before is not None
    assert capacity(before) == pytest.approx(500.0)
    # When the next samples are of a log with offsets that are a million higher
    for second in range(6, 9):
        one = (500 * second + 900 + 10**6, 500 * second + 10**6, 500 * second - 100 + 10**6, float(second))
        before = decide(sample(one, log_id="second", ran_dry=True), before)
        # Then nothing was measured between the two logs, and the capacity is the sink's
        assert capacity(before) == pytest.approx(500.0), second
