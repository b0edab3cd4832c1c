"""The bucket's arithmetic, at its edges."""

import random

import pytest

from pipeline.flow.bucket import ALLOWANCE, BucketState, Taken, burst_of, refill, reserve_of, take
from pipeline.names import Level

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


# --- Levels -------------------------------------------------------------------------------------------------------


def ask(state: BucketState | None, level: Level, needed: int = 1, *, now: float = 50.0, burst: int = 100) -> Taken:
    """A body of a level, without a lease, from a bucket that fills at `burst` a second."""
    return take(state, now=now, rate=float(burst), burst=burst, needed=needed, wanted=needed, level=level)


def holding(tokens: float, **more: object) -> BucketState:
    """A bucket with this level, whose allowances are used up."""
    return BucketState(tokens, 50.0, 100.0, **{"allowances": (0.0, 0.0), **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(("level", "reserve"), [(0, 59.4), (1, 39.6), (2, 19.8), (3, 0.0)])
def test_a_level_leaves_its_reserve(level: int, reserve: float) -> None:
    one = Level(level)
    assert reserve_of(one, 100) == pytest.approx(reserve)
    assert not ask(holding(reserve + 0.99), one).granted
    assert ask(holding(reserve + 1.0), one).granted
    assert ask(holding(reserve), one).wait_seconds == pytest.approx(0.01)


@pytest.mark.parametrize("burst", [1, 2, 3, 100])
def test_a_full_bucket_admits_every_level_at_any_burst(burst: int) -> None:
    for level in Level:
        assert (
            ask(BucketState(float(burst), 50.0, float(burst), allowances=(0.0, 0.0)), level, burst=burst).granted == 1
        )


def test_a_refused_level_still_gets_a_lease_for_higher_ones() -> None:
    taken = take(holding(30.0), now=50.0, rate=100.0, burst=100, needed=5, wanted=25, level=Level.INFO)
    assert (taken.granted, taken.state.tokens) == (20, 10.0)
    assert taken.wait_seconds == pytest.approx(0.106)
    assert taken.ran_dry
    # But none where the bucket has none
    assert take(holding(-5.0), now=50.0, rate=100.0, burst=100, needed=5, wanted=25, level=Level.INFO).granted == 0


def test_a_large_body_of_a_low_level_leaves_the_reserve_to_higher_ones() -> None:
    # Given a body of ten times the burst, at a level that may just pass
    taken = ask(holding(41.0), Level.INFO, 1000)
    assert (taken.granted, taken.state.tokens) == (1000, -959.0)
    # Then higher levels have the whole reserve, and its own and lower ones wait until the debt is paid
    state = taken.state
    for _ in range(39):
        taken = ask(state, Level.ERROR)
        assert taken.granted
        state = taken.state
    assert not ask(state, Level.ERROR).granted
    assert state.tokens == -998.0
    assert ask(state, Level.DEBUG).wait_seconds == pytest.approx(10.584)
    assert ask(state, Level.INFO).wait_seconds == pytest.approx(1.0), "its allowance"
    # And what arrives fills the reserve first
    assert ask(state, Level.ERROR, now=50.1).granted
    assert not ask(state, Level.WARN, now=50.1).granted
    assert ask(state, Level.WARN, now=50.3).granted


def test_a_higher_level_makes_no_debt_beside_a_debt_of_a_lower_one() -> None:
    owed = holding(-500.0, deferred=530.0, deferred_by=Level.INFO)
    assert ask(owed, Level.ERROR, 30).granted == 30
    taken = ask(owed, Level.ERROR, 31)
    assert not taken.granted
    assert taken.wait_seconds == pytest.approx(0.01 / 0.99)
    # One that needs more than the whole reserve waits for the debt
    assert ask(owed, Level.ERROR, 40).wait_seconds == pytest.approx(5.01)


def test_deferred_tokens_are_paid_when_the_reserve_is_full_and_slowly_before() -> None:
    owed = holding(-500.0, deferred=539.6, deferred_by=Level.INFO)
    later = refill(owed, now=51.0, rate=100.0, burst=100)
    assert later.tokens + later.deferred == pytest.approx(39.6)
    # Where higher levels use up all that arrives, a hundredth of the rate pays
    pressed = holding(-539.6, deferred=539.6, deferred_by=Level.INFO)
    for _ in range(1000):
        pressed = ask(pressed, Level.ERROR, now=pressed.at + 0.1, needed=1).state
        while (taken := ask(pressed, Level.ERROR, now=pressed.at)).granted:
            pressed = taken.state
    assert pressed.deferred == pytest.approx(539.6 - 100.0, abs=0.5)


@pytest.mark.parametrize("level", [Level.INFO, Level.WARN])
@pytest.mark.parametrize("needed", [1, 5])
def test_a_level_gets_a_hundredth_of_the_rate_whatever_the_highest_wants(level: Level, needed: int) -> None:
    # Given bodies at random times, with twice the rate of the highest level
    chance, now, got = random.Random(4), 50.0, 0
    state = BucketState(0.0, now, 1000.0)
    for _ in range(20_000):
        now += chance.expovariate(2500 / needed)
        one = level if chance.random() < 0.2 else Level.ERROR
        taken = ask(state, one, needed, now=now, burst=1000)
        state = taken.state
        got += taken.granted if one is level else 0
    assert got == pytest.approx(ALLOWANCE * 1000 * (now - 50.0), rel=0.2)


def test_the_lowest_level_has_no_allowance_and_others_use_theirs_only_below_their_reserve() -> None:
    assert not ask(BucketState(10.0, 50.0, 100.0), Level.DEBUG).granted
    state = BucketState(10.0, 50.0, 100.0)
    taken = ask(state, Level.INFO)
    assert (taken.granted, taken.state.allowances) == (1, (0.0, 1.0))
    assert ask(taken.state, Level.INFO).wait_seconds == pytest.approx(0.316)  # by the reserve, before the allowance
    assert ask(BucketState(90.0, 50.0, 100.0), Level.INFO).state.allowances == (1.0, 1.0)


def test_a_large_body_by_an_allowance_does_not_hold_up_the_highest_level() -> None:
    taken = ask(BucketState(10.0, 50.0, 100.0), Level.INFO, 500)
    assert (taken.granted, taken.state.tokens, taken.state.allowances[0]) == (500, -490.0, -499.0)
    assert ask(taken.state, Level.ERROR, 9).granted
    assert not ask(taken.state, Level.ERROR, 10).granted


def test_a_clock_that_goes_backwards_fills_no_allowance_and_pays_nothing() -> None:
    before = BucketState(-40.0, 50.0, 100.0, 60.0, Level.INFO, (0.0, -7.0))
    back = refill(before, now=10.0, rate=100.0, burst=100)
    assert back == BucketState(-40.0, 10.0, 100.0, 60.0, Level.INFO, (0.0, -7.0))
