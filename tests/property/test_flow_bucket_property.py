"""What holds for every bucket, whatever is asked of it and however its rate and clock behave."""

from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.flow.bucket import BucketState, burst_of, take

rates = st.floats(min_value=1.0, max_value=10_000.0)
burst_seconds = st.floats(min_value=0.01, max_value=10.0)


class Step(NamedTuple):
    """A request `seconds` after the last one; the rate changed to `rate` at some point in between."""

    seconds: float
    rate: float
    needed: int
    more: int
    returned: float = 0.0  # the part of the tokens of the last grant that comes back


steps = st.lists(
    st.builds(
        Step,
        seconds=st.floats(min_value=0.0, max_value=5.0),
        rate=rates,
        needed=st.integers(min_value=1, max_value=2000),
        more=st.integers(min_value=0, max_value=500),
        returned=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
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
        )
        last_granted = taken.granted
        assert taken.granted == 0 or step.needed <= taken.granted <= step.needed + step.more
        assert taken.state.tokens > -step.needed or not taken.granted  # the debt is smaller than one body
        if taken.granted == step.needed:
            need_max = max(need_max, taken.granted)  # may leave a debt
        taken_at.append((allowed, taken.granted))
        state, rate_before = taken.state, step.rate
    for first in range(len(taken_at)):
        for last in range(first, len(taken_at)):
            granted = sum(tokens for _, tokens in taken_at[first : last + 1])
            over = granted - (taken_at[last][0] - taken_at[first][0])
            # What the bucket held at most, and what it may owe.
            assert over <= burst_max + max(0, need_max - 1) + 0.01


@given(st.floats(-1e4, 1e4), rates, burst_seconds, st.integers(1, 5000), st.integers(0, 500))
def test_whoever_waits_as_long_as_told_is_granted(
    tokens: float, rate: float, seconds: float, needed: int, more: int
) -> None:
    burst = burst_of(rate, seconds)
    state = BucketState(min(tokens, float(burst)), 1000.0, rate)
    refused = take(state, now=1000.0, rate=rate, burst=burst, needed=needed, wanted=needed + more)
    if refused.granted:
        assert refused.wait_seconds == 0.0
        return
    assert refused.wait_seconds > 0.0
    # A clock of the epoch's size resolves 0.2 µs; ask a moment later, as anybody would.
    later = take(
        refused.state, now=1000.0 + refused.wait_seconds + 1e-6, rate=rate, burst=burst, needed=needed, wanted=needed
    )
    assert later.granted == needed


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
        taken = take(state, now=now, rate=rate, burst=burst, needed=1, wanted=step.needed)
        state, granted = taken.state, granted + taken.granted
    assert granted <= forward * rate + 0.01
