"""The limit of an account is a bucket like that of all accounts, for bodies of the highest level."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.account_counter import Hold
from pipeline.flow.bucket import TOLERANCE_TOKENS, BucketState, burst_of, refill, take


class Step(NamedTuple):
    """What happens `seconds` after the last step; the clock may go backwards."""

    seconds: float
    rate: float | None  # a new rate
    events: int  # of a body
    goes_back: bool  # the body is not stored


steps = st.lists(
    st.builds(
        Step,
        seconds=st.floats(min_value=-1.0, max_value=5.0),
        rate=st.none() | st.floats(min_value=0.5, max_value=10_000.0),
        events=st.integers(min_value=1, max_value=2000),
        goes_back=st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(steps, st.floats(min_value=0.5, max_value=10_000.0), st.floats(min_value=0.01, max_value=10.0))
def test_a_limit_decides_as_the_bucket_of_all_does(walk: list[Step], first_rate: float, seconds: float) -> None:
    now = 1000.0
    rate, burst = first_rate, burst_of(first_rate, seconds)
    hold = Hold(0.0)
    hold.note_rate(rate, rate, burst_seconds=seconds, now=now)
    state: BucketState = refill(None, now=now, rate=rate, burst=burst)
    for step in walk:
        now += step.seconds
        if step.rate is not None:
            rate, burst = step.rate, burst_of(step.rate, seconds)
            hold.note_rate(rate, rate, burst_seconds=seconds, now=now)
            state = refill(state, now=now, rate=rate, burst=burst)
        missing = 1 - refill(state, now=now, rate=rate, burst=burst).tokens
        assert hold.wait_seconds(now) == (missing / rate if missing > TOLERANCE_TOKENS else 0.0)
        taken = take(state, now=now, rate=rate, burst=burst, needed=step.events, wanted=step.events)
        state = taken.state
        assert hold.take(step.events, now) == taken.wait_seconds
        if step.goes_back:
            hold.give_back(step.events, now)
            state = BucketState(min(float(burst), state.tokens + step.events), now, rate)
        assert hold.tokens(now) == pytest.approx(refill(state, now=now, rate=rate, burst=burst).tokens)
