"""The decay of a rate and the breaker's cap, at their edges."""

import math
import random
from typing import Any

import pytest

from pipeline.flow.rate import LOW_RATES_MAX, Decay, LowRate, capped_by_breaker, lowest_since, with_low_rate
from pipeline.settings import Settings

DECAY = Decay.from_settings(Settings())


@pytest.mark.parametrize(
    ("age", "rate"),
    [(0, 1000.0), (30, 1000.0), (35, 500.0), (40, 250.0), (45, 125.0), (50, 100.0), (10**9, 100.0), (-5, 1000.0)],
)
def test_an_unknown_lag_holds_for_30_s_and_then_halves_the_rate_every_5_s(age: float, rate: float) -> None:
    assert DECAY.rate(1000.0, age, floor=100.0) == pytest.approx(rate)


def test_a_rate_below_the_floor_becomes_the_floor() -> None:
    assert DECAY.rate(10.0, 0, floor=100.0) == 100.0


@pytest.mark.parametrize(
    ("changes", "decay"),
    [
        ({}, Decay(30.0, 5.0)),
        ({"regulate_seconds": 1.0}, Decay(30.0, 5.0)),  # the period of the control loop does not matter
        ({"rate_hold_seconds": 4.0, "rate_halving_seconds": 2.0}, Decay(4.0, 2.0)),
        ({"rate_hold_periods": 6, "regulate_seconds": 1.0}, Decay(6.0, 1.0)),  # the setting of earlier versions
    ],
)
def test_the_decay_counts_in_seconds(changes: dict[str, Any], decay: Decay) -> None:
    assert Decay.from_settings(Settings(**changes)) == decay


@pytest.mark.parametrize(
    ("rate", "is_open", "effective"), [(800.0, False, 800.0), (800.0, True, 100.0), (50.0, True, 50.0)]
)
def test_an_open_breaker_caps_the_rate_at_the_floor(rate: float, is_open: bool, effective: float) -> None:
    assert capped_by_breaker(rate, 100.0, is_open=is_open) == effective


def test_the_lowest_rate_since_any_version_is_known() -> None:
    draw = random.Random(5)
    lows: tuple[LowRate, ...] = ()
    published: list[LowRate] = []
    for version in range(400):
        published.append(LowRate(version, float(draw.randrange(20))))
        lows = with_low_rate(lows, version, published[-1].rate)
        assert len(lows) <= LOW_RATES_MAX
        for since in range(-1, version + 1):
            expected = min((one.rate for one in published if one.version > since), default=math.inf)
            found = lowest_since(lows, since)
            # The two oldest of too many are one, with the lower rate
            assert found <= expected
            assert found == expected or since < lows[0].version


def test_many_rates_one_above_the_other_forget_none_that_was_lower() -> None:
    lows: tuple[LowRate, ...] = ()
    for version in range(1, 21):
        lows = with_low_rate(lows, version, 100.0 * version)
    assert lows[0] == LowRate(13, 100.0)
    assert lows[1:] == tuple(LowRate(version, 100.0 * version) for version in range(14, 21))
    assert (lowest_since(lows, 12), lowest_since(lows, 13), lowest_since(lows, 20)) == (100.0, 1400.0, math.inf)
