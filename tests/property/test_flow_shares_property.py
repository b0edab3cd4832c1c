"""Properties of the max-min shares, and the bound of the table of the heaviest accounts."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.flow.offered import OfferedTable
from pipeline.flow.shares import fair_share

RATES = st.floats(0.0, 1e6)
DEMANDS = st.lists(st.tuples(RATES, st.floats(0.01, 100.0)), min_size=1, max_size=40)


@given(DEMANDS, st.floats(0.0, 1e7))
def test_max_min(demands: list[tuple[float, float]], supply: float) -> None:
    """All of the supply is used, nobody gets more than it wants, and nobody could get more but from one with less."""
    level = fair_share(demands, supply)
    admitted = [min(demand, level * weight) for demand, weight in demands]
    total = sum(demand for demand, _ in demands)
    tolerance = 1e-6 * max(1.0, supply, total)
    assert abs(sum(admitted) - min(supply, total)) <= tolerance
    if total <= supply:
        assert all(demand <= level * weight + tolerance for demand, weight in demands)


@given(DEMANDS, st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_more_supply_is_less_for_nobody(demands: list[tuple[float, float]], supply: float, more: float) -> None:
    assert fair_share(demands, supply + more) >= fair_share(demands, supply) * (1 - 1e-9)


@given(
    st.lists(st.dictionaries(st.integers(0, 60).map(str), st.integers(1, 1000), max_size=40), min_size=1, max_size=12),
    st.integers(1, 12),
)
def test_an_account_above_the_bound_is_counted_by_itself(seconds: list[dict[str, int]], accounts_max: int) -> None:
    table = OfferedTable(accounts_max)
    for counts in seconds:
        before = dict(table._heaviest)
        table.fold(counts, 1.0)
        everything = sum(before.values()) * 0.7165313105737893 + sum(counts.values())  # of this table
        assert len(table._heaviest) <= accounts_max
        for account, count in counts.items():
            if count > everything / accounts_max:
                assert account in table
        found = table.offered(None)
        for account in set(counts) - set(table._heaviest):
            assert counts[account] <= found.rest_max * 1.000001 or found.rest_max == found.rest
