"""What holds for every band and every age."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.flow.rate import Decay
from pipeline.names import Mode
from pipeline.policies.bands import BandPolicy

rates = st.floats(min_value=1.0, max_value=1e7)
lags = st.integers(min_value=0, max_value=10**10)
ages = st.floats(min_value=0.0, max_value=1e6)
periods = st.floats(min_value=0.1, max_value=300.0)
holds = st.integers(min_value=1, max_value=20)


@st.composite
def policies(draw: st.DrawFn) -> BandPolicy:
    low, high = sorted([draw(rates), draw(rates)])
    degraded = draw(st.integers(min_value=1, max_value=10**9))
    return BandPolicy(high, low, degraded, degraded + draw(st.integers(min_value=1, max_value=10**9)))


@given(policies(), lags)
def test_the_rate_stays_within_its_bounds(policy: BandPolicy, lag: int) -> None:
    rate, mode = policy.rate_of(lag)
    assert policy.rate_min <= rate <= policy.rate_max
    assert (mode is Mode.NORMAL) == (lag < policy.lag_degraded)
    assert (mode is Mode.CRITICAL) == (lag > policy.lag_critical)


@given(policies(), lags, lags)
def test_more_lag_never_gives_more_rate(policy: BandPolicy, one: int, other: int) -> None:
    less, more = sorted([one, other])
    assert policy.rate_of(more)[0] <= policy.rate_of(less)[0]


@given(policies())
def test_the_line_meets_both_bands(policy: BandPolicy) -> None:
    assert policy.rate_of(policy.lag_degraded)[0] == policy.rate_max
    # The line ends at the floor but for the last bits of a float.
    assert policy.rate_of(policy.lag_critical)[0] - policy.rate_min <= policy.rate_max * 1e-12


@given(rates, st.tuples(ages, ages), periods, holds, rates)
def test_decay_falls_with_age_and_stays_within_its_bounds(
    rate: float, both: tuple[float, float], period: float, hold: int, floor: float
) -> None:
    young, old = sorted(both)
    decay = Decay(hold * period, period)
    younger = decay.rate(rate, young, floor=floor)
    older = decay.rate(rate, old, floor=floor)
    assert floor <= older <= younger <= max(rate, floor)


@given(rates, ages, ages, periods, holds)
def test_decaying_in_two_steps_is_decaying_at_once(
    rate: float, one: float, other: float, period: float, hold: int
) -> None:
    between, end = sorted([one, other])
    floor = 1.0
    decay = Decay(hold * period, period)
    at_once = decay.rate(rate, end, floor=floor)
    first = decay.rate(rate, between, floor=floor)
    second = decay.rate(first, end, floor=floor, decided_after_seconds=between)
    assert abs(second - at_once) <= 1e-6 * at_once
