"""The bands and the decay, at their edges."""

import pytest

from pipeline.flow.rate import BandPolicy, hold_or_decay
from pipeline.names import Mode
from pipeline.settings import Settings

POLICY = BandPolicy.from_settings(Settings())


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
    decision = POLICY.decide(lag)
    assert decision.rate == pytest.approx(rate)
    assert decision.mode is mode


def test_the_floor_is_the_lowest_rate() -> None:
    assert POLICY.floor_rate == 100.0


def test_equal_rates_are_a_constant_rate() -> None:
    policy = BandPolicy(rate_max=7.0, rate_min=7.0, lag_degraded=1, lag_critical=2)
    assert {policy.decide(lag).rate for lag in range(4)} == {7.0}


@pytest.mark.parametrize(
    ("age", "rate"),
    [(0, 1000.0), (30, 1000.0), (35, 500.0), (40, 250.0), (45, 125.0), (50, 100.0), (10**9, 100.0), (-5, 1000.0)],
)
def test_an_unknown_lag_holds_for_six_periods_and_then_halves_the_rate_in_each(age: float, rate: float) -> None:
    assert hold_or_decay(1000.0, age, period_seconds=5.0, hold_periods=6, floor=100.0) == pytest.approx(rate)


def test_a_rate_below_the_floor_becomes_the_floor() -> None:
    assert hold_or_decay(10.0, 0, period_seconds=5.0, hold_periods=6, floor=100.0) == 100.0
