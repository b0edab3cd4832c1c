"""What holds for every bucket, whatever is asked of it and however its rate and clock behave."""

from dataclasses import replace
from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.flow.bucket import BucketState, burst_of, missing, reserve_of, take
from pipeline.names import LEVEL_HIGHEST, Level

rates = st.floats(min_value=1.0, max_value=10_000.0)
burst_seconds = st.floats(min_value=0.01, max_value=10.0)
levels = st.sampled_from(Level)


class Step(NamedTuple):
    """A request `seconds` after the last one; the rate changed to `rate` at some point in between."""

    seconds: float
    rate: float
    needed: int
    more: int
    returned: float = 0.0  # the part of the tokens of the last grant that comes back
    level: Level = LEVEL_HIGHEST


steps = st.lists(
    st.builds(
        Step,
        seconds=st.floats(min_value=0.0, max_value=5.0),
        rate=rates,
        needed=st.integers(min_value=1, max_value=2000),
        more=st.integers(min_value=0, max_value=500),
        returned=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
        level=levels,
    ),
    min_size=1,
    max_size=40,
)


@example([Step(seconds=0.0, rate=2.0, needed=1, more=0), Step(seconds=0.0, rate=1.0, needed=2, more=0)], 1.0)
@given(steps, burst_seconds)
def test_admissions_of_any_window_stay_below_the_rate_over_it_one_burst_and_one_body(
    walk: list[Step], seconds: float
) -> None:
    state: BucketState | None = None
    now = 1000.0
    rate_before = walk[0].rate
    taken_at: list[tuple[float, int]] = []  # what the rate allowed since the start, at the least; tokens granted
    allowed, burst_max, need_max = 0.0, 0, 0
    last_granted = 0
    for step in walk:
        now += step.seconds
        allowed += step.seconds * min(rate_before, step.rate)
        burst = burst_of(step.rate, seconds)
        burst_max = max(burst_max, burst)
        returned, last_granted = int(last_granted * step.returned), 0
        if returned:
            before, granted = taken_at[-1]
            taken_at[-1] = (before, granted - returned)  # of these, nothing was stored
        taken = take(
            state,
            now=now,
            rate=step.rate,
            burst=burst,
            needed=step.needed,
            wanted=step.needed + step.more,
            returned=returned,
            level=step.level,
        )
        last_granted = taken.granted
        if taken.wait_seconds:
            assert 0 <= taken.granted <= step.more
        else:
            assert step.needed <= taken.granted <= step.needed + step.more
            need_max = max(need_max, step.needed)  # may leave a debt
        assert taken.state.tokens > -max(1, need_max) - 0.01  # the debt is smaller than one body
        assert taken.state.deferred <= max(0, need_max - 1)
        taken_at.append((allowed, taken.granted))
        state, rate_before = taken.state, step.rate
    for first in range(len(taken_at)):
        for last in range(first, len(taken_at)):
            granted = sum(tokens for _, tokens in taken_at[first : last + 1])
            over = granted - (taken_at[last][0] - taken_at[first][0])
            # What the bucket held at most, and what it may owe.
            assert over <= burst_max + max(0, need_max - 1) + 0.01


@st.composite
def states(draw: st.DrawFn) -> tuple[BucketState, int]:
    """A bucket at any time, and its burst."""
    rate = draw(rates)
    burst = burst_of(rate, draw(burst_seconds))
    tokens = draw(st.floats(-1e4, float(burst)))
    by = draw(st.sampled_from((Level.DEBUG, Level.INFO, Level.WARN)))
    deferred = draw(st.floats(0.0, 1.0)) * max(0.0, reserve_of(by, burst) - tokens)
    allowances = draw(st.sampled_from([(), (1.0, 1.0), (0.0, 0.5), (-700.0, 1.0)]))
    return BucketState(tokens, 1000.0, rate, deferred, by, allowances), burst


@given(states(), st.integers(1, 5000), st.integers(0, 500), levels)
def test_whoever_waits_as_long_as_told_is_granted(
    bucket: tuple[BucketState, int], needed: int, more: int, level: Level
) -> None:
    state, burst = bucket
    rate = state.rate
    refused = take(state, now=1000.0, rate=rate, burst=burst, needed=needed, wanted=needed, level=level)
    if refused.granted:
        assert refused.wait_seconds == 0.0
        return
    assert refused.wait_seconds > 0.0
    # A clock of the epoch's size resolves 0.2 µs; ask a moment later, as anybody would.
    later = take(
        refused.state,
        now=1000.0 + refused.wait_seconds * (1 + 1e-9) + 2e-6,
        rate=rate,
        burst=burst,
        needed=needed,
        wanted=needed + more,
        level=level,
    )
    assert later.granted >= needed
    assert not later.wait_seconds


@given(states(), st.integers(1, 5000), st.sampled_from((Level.DEBUG, Level.INFO, Level.WARN)), st.data())
def test_a_body_of_a_lower_level_leaves_its_reserve_to_a_higher_one(
    bucket: tuple[BucketState, int], needed: int, level: Level, data: st.DataObject
) -> None:
    state, burst = bucket
    state = replace(state, allowances=(0.0, 0.0))

    def short(of: BucketState, count: int, above: Level) -> float:
        return missing(
            of.tokens, needed=count, level=above, burst=burst, deferred=of.deferred, deferred_by=of.deferred_by
        )

    taken = take(state, now=1000.0, rate=state.rate, burst=burst, needed=needed, wanted=needed, level=level)
    above = data.draw(st.sampled_from(list(Level)[level + 1 :]))
    count = data.draw(st.integers(1, 2000))
    could = short(state, count, above) <= 0
    if taken.granted and count <= reserve_of(level, burst) - reserve_of(above, burst):
        assert short(taken.state, count, above) <= 1e-3
    elif not taken.granted:
        assert could == (short(taken.state, count, above) <= 0)


@given(rates, burst_seconds, levels, st.integers(1, 5000))
def test_a_full_bucket_admits_every_level(rate: float, seconds: float, level: Level, needed: int) -> None:
    burst = burst_of(rate, seconds)
    full = BucketState(float(burst), 1000.0, rate, allowances=(-1.0, -1.0))
    assert take(full, now=1000.0, rate=rate, burst=burst, needed=needed, wanted=needed, level=level).granted == needed


@given(steps, burst_seconds, st.floats(min_value=0.0, max_value=100.0))
def test_a_clock_that_jumps_back_gives_away_nothing(walk: list[Step], seconds: float, jump: float) -> None:
    rate, now = walk[0].rate, 1000.0
    burst = burst_of(rate, seconds)
    state = BucketState(0.0, now, rate)
    granted, forward = 0, 0.0
    for index, step in enumerate(walk):
        if index % 3 == 2:
            now -= jump
        else:
            now += step.seconds
            forward += step.seconds
        taken = take(state, now=now, rate=rate, burst=burst, needed=1, wanted=step.needed, level=step.level)
        state, granted = taken.state, granted + taken.granted
    assert granted <= forward * rate + 0.01
