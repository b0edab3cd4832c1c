"""The bucket's arithmetic, at its edges."""

import pytest

from pipeline.flow.bucket import BucketState, burst_of, refill, take

FULL = BucketState(tokens=100.0, at=50.0, rate=100.0)
EMPTY = BucketState(tokens=0.0, at=50.0, rate=100.0)


def test_a_new_bucket_is_full() -> None:
    taken = take(None, now=50.0, rate=100.0, burst=100, needed=1, wanted=30)
    assert (taken.granted, taken.wait_seconds, taken.state.tokens) == (30, 0.0, 70.0)


def test_a_grant_is_what_there_is_between_needed_and_wanted() -> None:
    some = BucketState(tokens=12.7, at=50.0, rate=100.0)
    assert take(some, now=50.0, rate=100.0, burst=100, needed=12, wanted=30).granted == 12
    assert take(some, now=50.0, rate=100.0, burst=100, needed=1, wanted=5).granted == 5
    assert take(some, now=50.0, rate=100.0, burst=100, needed=13, wanted=30).granted == 0


def test_a_refusal_takes_nothing_and_says_when_there_will_be_enough() -> None:
    taken = take(EMPTY, now=50.0, rate=100.0, burst=100, needed=5, wanted=30)
    assert (taken.granted, taken.state.tokens) == (0, 0.0)
    assert taken.wait_seconds == pytest.approx(0.05)
    assert take(taken.state, now=50.0 + taken.wait_seconds, rate=100.0, burst=100, needed=5, wanted=5).granted == 5


def test_a_need_above_the_burst_waits_for_a_full_bucket_and_leaves_it_in_debt() -> None:
    almost = BucketState(tokens=99.0, at=50.0, rate=100.0)
    assert take(almost, now=50.0, rate=100.0, burst=100, needed=250, wanted=400).wait_seconds == pytest.approx(0.01)
    taken = take(FULL, now=50.0, rate=100.0, burst=100, needed=250, wanted=400)
    assert (taken.granted, taken.state.tokens) == (250, -150.0)
    refused = take(taken.state, now=50.5, rate=100.0, burst=100, needed=1, wanted=1)
    assert refused.granted == 0
    assert refused.wait_seconds == pytest.approx(1.01)


def test_a_lower_rate_clamps_the_tokens_at_once() -> None:
    assert refill(FULL, now=50.0, rate=10.0, burst=10).tokens == 10.0


def test_an_interval_in_which_the_rate_changed_fills_at_the_lower_rate() -> None:
    assert refill(EMPTY, now=50.5, rate=1000.0, burst=1000).tokens == pytest.approx(50.0)
    assert refill(EMPTY, now=50.5, rate=10.0, burst=10).tokens == pytest.approx(5.0)


def test_a_clock_that_goes_backwards_fills_nothing_and_does_not_stop_the_bucket() -> None:
    back = refill(EMPTY, now=10.0, rate=100.0, burst=100)
    assert back == BucketState(0.0, 10.0, 100.0)
    assert refill(back, now=10.1, rate=100.0, burst=100).tokens == pytest.approx(10.0)


@pytest.mark.parametrize(("rate", "seconds", "burst"), [(1000.0, 1.0, 1000), (1.0, 0.01, 1), (10.0, 0.25, 2)])
def test_the_burst_is_seconds_of_the_rate_and_at_least_one(rate: float, seconds: float, burst: int) -> None:
    assert burst_of(rate, seconds) == burst
