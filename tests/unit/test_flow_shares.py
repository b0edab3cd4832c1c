"""The max-min shares by hand-computed figures."""

import pytest

from pipeline.flow.shares import FILL_TARGET, Offered, Shares, fair_share, share_out, together


@pytest.mark.parametrize(
    ("demands", "supply", "share"),
    [
        ([], 100, float("inf")),
        ([(50, 1)], 30, 30),  # one account gets the whole rate
        ([(50, 1)], 80, 80),  # enough for all: one may use what is left
        ([(10, 1), (50, 1)], 40, 30),
        ([(10, 1), (20, 1)], 100, 90),
        ([(30, 1), (30, 1), (30, 1)], 60, 20),
        ([(100, 1), (100, 3)], 80, 20),  # 20 and 60
        ([(100, 1), (15, 3)], 80, 65),
        ([(10, 1), (20, 1)], 0, 0),
        ([(10, 1), (20, 1)], -5, 0),
        ([(0, 1), (20, 1)], 10, 10),
    ],
)
def test_the_share_fills_the_rate(demands: list[tuple[float, float]], supply: float, share: float) -> None:
    assert fair_share(demands, supply) == pytest.approx(share)


def shares(
    offered: Offered,
    rate: float = 1500.0,
    weights: dict[str, float] | None = None,
    limits: dict[str, float] | None = None,
    period_seconds: float = 1.0,
) -> Shares:
    return share_out(
        offered,
        rate=rate,
        burst_seconds=1.0,
        period_seconds=period_seconds,
        weights=weights or {},
        limits=limits or {},
    )


SMALL = {f"small {number}": 20.0 for number in range(45)}


def test_one_heavy_account_beside_45_small_ones() -> None:
    found = shares(Offered({"heavy": 5000.0} | SMALL))
    assert found == Shares(600.0, 1500.0, {"heavy": 5000.0})  # 1500 - 45 * 20


def test_no_shortage_no_share() -> None:
    assert shares(Offered({"a": 700.0, "b": 600.0})) == Shares(None, 1500.0, {})
    assert shares(Offered({})) == Shares(None, 1500.0, {})
    assert shares(Offered({"a": 10.0}), rate=0.0) == Shares(None, 0.0, {})


def test_near_the_rate_an_account_may_use_what_is_left() -> None:
    found = shares(Offered({"a": 900.0, "b": 500.0}))
    assert found == Shares(1000.0, 1500.0, {"a": 900.0})


def test_accounts_that_no_process_counts_come_first_and_bound_the_share() -> None:
    assert shares(Offered({"a": 1500.0}, rest=300.0, rest_max=10.0)).share == pytest.approx(1200.0)
    assert shares(Offered({"a": 1500.0}, rest=1600.0, rest_max=10.0)).share == pytest.approx(10.0)
    assert shares(Offered({}, rest=1600.0, rest_max=10.0)) == Shares(None, 1500.0, {})


def test_a_weight_scales_the_share() -> None:
    found = shares(Offered({"a": 5000.0, "b": 5000.0}), weights={"b": 2.0})
    assert found.share == pytest.approx(500.0)
    assert found.offered == {"a": 5000.0, "b": 5000.0}


def test_a_hard_limit_is_all_that_an_account_demands_and_it_is_published_without_shortage() -> None:
    short = shares(Offered({"a": 5000.0, "b": 5000.0}), limits={"b": 100.0})
    assert short.share == pytest.approx(1400.0)
    assert short.offered == {"a": 5000.0, "b": 5000.0}
    enough = shares(Offered({"a": 500.0, "b": 5000.0}), limits={"b": 100.0})
    assert enough == Shares(None, 1500.0, {"b": 5000.0})


@pytest.mark.parametrize(
    ("fill", "period_seconds", "supply"),
    [
        (None, 1.0, 1500.0),
        (FILL_TARGET, 1.0, 1500.0),
        (1.0, 1.0, 1500.0 * (1 + 0.5 / 3)),  # the bucket is full: half a burst more, within three seconds
        (0.0, 1.0, 1500.0 * (1 - 0.5 / 3)),
        (-7.0, 1.0, 1500.0 * (1 - 1.5 / 3)),  # in debt for a large body: no more than a burst counts
        (1.0, 5.0, 1500.0 * (1 + 0.5 / 7)),  # the next share comes after five seconds
    ],
)
def test_how_full_the_bucket_is_corrects_the_supply(fill: float | None, period_seconds: float, supply: float) -> None:
    found = shares(Offered({"a": 9000.0}, fill=fill), period_seconds=period_seconds)
    assert found.share == pytest.approx(supply)


def test_reports_of_several_processes_are_added() -> None:
    one = Offered({"a": 10.0, "b": 5.0}, 3.0, 1.0, 0.2)
    other = Offered({"a": 20.0}, 4.0, 2.0, None)
    assert together([one, other]) == Offered({"a": 30.0, "b": 5.0}, 7.0, 3.0, 0.2)
    assert together([one, Offered({}, fill=0.4)]).fill == pytest.approx(0.3)
    assert together([]) == Offered({}, fill=None)


def test_without_shares_only_the_limited_accounts_are_published() -> None:
    assert Shares(600.0, 1500.0, {"a": 900.0, "b": 50.0}).limits_only({"b": 10.0}) == Shares(None, 1500.0, {"b": 50.0})


def test_with_levels_the_bucket_is_kept_above_their_reserves() -> None:
    found = share_out(
        Offered({"a": 9000.0}, fill=0.8),
        rate=1500.0,
        burst_seconds=1.0,
        period_seconds=1.0,
        weights={},
        limits={},
        has_levels=True,
    )
    assert found.share == pytest.approx(1500.0)
