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
    assert take(some, now=50.0, rate=100.0, burst=100, needed=1, wanted=30).granted == 12


def test_a_refusal_takes_nothing_and_says_when_there_will_be_a_token() -> None:
    taken = take(EMPTY, now=50.0, rate=100.0, burst=100, needed=5, wanted=30)
    assert (taken.granted, taken.state.tokens) == (0, 0.0)
    assert taken.wait_seconds == pytest.approx(0.01)
    assert take(taken.state, now=50.0 + taken.wait_seconds, rate=100.0, burst=100, needed=5, wanted=5).granted == 5


def test_one_token_is_enough_for_any_need_and_the_rest_is_a_debt() -> None:
    almost = BucketState(tokens=0.99, at=50.0, rate=100.0)
    assert take(almost, now=50.0, rate=100.0, burst=100, needed=250, wanted=400).granted == 0
    taken = take(BucketState(1.0, 50.0, 100.0), now=50.0, rate=100.0, burst=100, needed=250, wanted=400)
    assert (taken.granted, taken.state.tokens) == (250, -249.0)
    # Then all sizes wait for the same time
    waits = [take(taken.state, now=51.0, rate=100.0, burst=100, needed=n, wanted=n).wait_seconds for n in (1, 90, 900)]
    assert waits == pytest.approx([1.5] * 3)


@pytest.mark.parametrize(
    ("tokens", "needed", "wanted", "ran_dry"),
    [
        (100.0, 1, 100, False),
        (100.0, 1, 130, False),  # a lease larger than the burst
        (100.0, 250, 260, False),  # a body larger than the burst
        (50.0, 1, 50, False),
        (50.0, 1, 60, True),  # clients use the rate: a part of the lease
        (1.2, 250, 260, True),
        (0.5, 1, 1, True),
    ],
)
def test_a_bucket_that_was_full_has_not_run_dry(tokens: float, needed: int, wanted: int, ran_dry: bool) -> None:
    before = BucketState(tokens, 50.0, 100.0)
    assert take(before, now=50.0, rate=100.0, burst=100, needed=needed, wanted=wanted).ran_dry == ran_dry


def test_tokens_that_come_back_count_first_and_never_above_the_burst() -> None:
    taken = take(EMPTY, now=50.0, rate=100.0, burst=100, needed=1, wanted=30, returned=12)
    assert (taken.granted, taken.state.tokens) == (12, 0.0)
    assert take(FULL, now=50.0, rate=100.0, burst=100, needed=0, wanted=0, returned=50).state.tokens == 100.0
    owed = BucketState(tokens=-50.0, at=50.0, rate=100.0)
    assert take(owed, now=50.0, rate=100.0, burst=100, needed=7, wanted=7, returned=12).state.tokens == -38.0


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
