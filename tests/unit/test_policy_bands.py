"""The policy `bands`: its edges, and how it explains itself."""

import pytest

from pipeline.names import Mode
from pipeline.policies.bands import BandPolicy
from pipeline.ports.control import Bands
from pipeline.ports.rate import PartitionSample, RateSample
from pipeline.settings import Settings

POLICY = BandPolicy.make(Settings(), None)


def sample(lag: int) -> RateSample:
    """A lag in two partitions, and one that did not answer."""
    held = lag // 4
    lags = {0: lag - held - lag // 3, 1: lag // 3}
    return RateSample(5.0, {p: PartitionSample(10**13, one) for p, one in lags.items()}, lag_held=held)


@pytest.mark.parametrize(
    ("lag", "rate", "mode"),
    [
        (0, 1000.0, Mode.NORMAL),
        (9_999, 1000.0, Mode.NORMAL),
        (10_000, 1000.0, Mode.DEGRADED),
        (20_000, 775.0, Mode.DEGRADED),
        (30_000, 550.0, Mode.DEGRADED),
        (49_999, 100.0225, Mode.DEGRADED),
        (50_000, 100.0, Mode.DEGRADED),
        (50_001, 100.0, Mode.CRITICAL),
        (10**12, 100.0, Mode.CRITICAL),
    ],
)
def test_the_bands_of_the_mission(lag: int, rate: float, mode: Mode) -> None:
    decision = POLICY.decide(sample(lag))
    assert decision.rate == pytest.approx(rate)
    assert decision.mode is mode
    assert decision.state == {}


def test_the_floor_is_the_lowest_rate() -> None:
    assert POLICY.floor_rate == 100.0


def test_equal_rates_are_a_constant_rate() -> None:
    policy = BandPolicy(rate_max=7.0, rate_min=7.0, lag_degraded=1, lag_critical=2)
    assert {policy.rate_of(lag)[0] for lag in range(4)} == {7.0}


def test_it_explains_itself() -> None:
    told = POLICY.decide(sample(20_000)).explanation
    assert (told.policy, told.reason, told.because) == ("bands", "lag is degraded", "lag 20000")
    assert told.sentence == "1,000/s below a lag of 10,000 events, falling to 100/s at 50,000"
    assert told.rate_max == 1000.0
    assert [(one.label, one.value, one.unit) for one in told.thresholds] == [
        ("degraded from", 10_000, "events"),
        ("critical above", 50_000, "events"),
    ]
    assert told.parameters == {
        "rateMax": 1000.0, "rateMin": 100.0, "lagDegraded": 10_000, "lagCritical": 50_000, "setBy": None,
    }  # fmt: skip
    # Without a sample, the thresholds are the same
    assert POLICY.describe().thresholds == told.thresholds
    assert POLICY.describe().reason == ""


def test_bands_of_an_operator_replace_those_of_the_settings_and_name_the_operator() -> None:
    policy = BandPolicy.make(Settings(), Bands(500.0, 50.0, 10, 100, "ann@host", "a slow disk", 0.0))
    assert policy.decide(sample(100)).rate == 50.0
    told = policy.describe()
    assert told.sentence.endswith("falling to 50/s at 100; set by ann@host: a slow disk")
    assert told.parameters["setBy"] == "ann@host"


@pytest.mark.parametrize(
    ("lag", "mode"),
    [
        (None, Mode.UNKNOWN), (9_999, Mode.UNKNOWN), (10_000, Mode.DEGRADED), (50_000, Mode.DEGRADED),
        (50_001, Mode.CRITICAL),
    ],
)  # fmt: skip
def test_a_lag_that_no_controller_has_judged_is_high_or_unknown(lag: int | None, mode: Mode) -> None:
    assert POLICY.describe().mode_of_lag(lag) is mode
