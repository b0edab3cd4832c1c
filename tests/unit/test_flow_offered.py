"""The table of the heaviest accounts."""

import pytest

from pipeline.flow.offered import OfferedTable
from pipeline.flow.shares import Offered


def folded(*seconds: dict[str, float], accounts_max: int = 8) -> OfferedTable:
    table = OfferedTable(accounts_max)
    for counts in seconds:
        table.fold(counts, 1.0)
    return table


def test_a_steady_offer_is_its_rate_from_the_first_second_on() -> None:
    for seconds in (1, 2, 20):
        table = folded(*[{"a": 100.0, "b": 7.0}] * seconds)
        assert table.rate("a") == pytest.approx(100.0)
        found = table.offered(0.25)
        assert found.accounts == {"a": pytest.approx(100.0), "b": pytest.approx(7.0)}
        assert found.rest == pytest.approx(0.0, abs=1e-9)
        assert (found.rest_max, found.fill) == (0.0, 0.25)


def test_an_account_that_appears_is_counted_at_once_and_fully_within_seconds() -> None:
    table = folded(*[{"a": 10.0}] * 20, {"a": 10.0, "new": 500.0})
    assert table.rate("new") == table.offered(None).accounts["new"] == pytest.approx(142, abs=2)
    for _ in range(9):
        table.fold({"a": 10.0, "new": 500.0}, 1.0)
    assert table.offered(None).accounts["new"] == pytest.approx(482, abs=5)


def test_an_account_that_stops_fades_and_is_forgotten() -> None:
    table = folded(*[{"a": 10.0, "b": 10.0}] * 10)
    table.fold({"b": 10.0}, 1.0)
    assert table.rate("a") == pytest.approx(10 * 0.7165, abs=0.1)
    for _ in range(30):
        table.fold({"b": 10.0}, 1.0)
    assert "a" not in table
    assert "b" in table
    assert table.rate("a") is None


def test_the_sum_is_right_whatever_comes_and_goes() -> None:
    """An account that sends once in ten seconds must not count for more than that."""
    table = OfferedTable(64)
    totals = []
    for second in range(200):
        table.fold({f"rare {second % 10}": 20.0}, 1.0)
        found = table.offered(None)
        totals.append(sum(found.accounts.values()) + found.rest)
    assert totals[100:] == pytest.approx([20.0] * 100)


def test_memory_is_bounded_and_the_others_are_counted_together() -> None:
    counts = {f"small {number}": 1.0 for number in range(100)} | {"heavy": 50.0}
    found = folded(*[counts] * 10, accounts_max=4).offered(None)
    assert len(found.accounts) == 4
    assert found.accounts["heavy"] == pytest.approx(50.0)
    assert sum(found.accounts.values()) + found.rest == pytest.approx(150.0)
    assert found.rest_max >= 1.0  # what one of the others offers


def test_nothing_offered() -> None:
    assert OfferedTable(4).offered(0.5) == Offered({}, fill=0.5)
    assert folded({}, {"a": 0.0}).offered(None) == Offered({}, 0.0, 0.0, None)


def test_accounts_without_a_name_count_with_the_others() -> None:
    table = OfferedTable(4)
    table.fold({"a": 10.0}, 1.0, others=5.0)
    assert table.offered(None).rest == pytest.approx(5.0)
