"""What the charts draw, from entries of the history and from one process' own view."""

import pytest

from ingest.dashboard.points import COLUMNS, Point, merged, next_point
from pipeline.ports.history import COUNTS, HistoryEntry


def entry(at: float, *, consumed: int | None = 0, **counts: int) -> HistoryEntry:
    sample = {} if consumed is None else {"consumed": consumed, "lags": [3, 4]}
    return HistoryEntry(f"{at}", at, tuple(counts.get(name, 0) for name in COUNTS), sample)


def row(point: Point) -> dict[str, object]:
    return dict(zip(COLUMNS, point.row(), strict=True))


def test_rates_are_differences_over_the_time_between_two_entries() -> None:
    first = entry(10.0, consumed=100)
    point = next_point(first, entry(12.0, consumed=300, admitted=50, refused=6, accepted=10, limited=4, unavailable=2))
    found = row(point)
    assert (found["admitted"], found["offered"], found["s202"], found["s429"], found["s503"]) == (25, 28, 5, 2, 1)
    assert (found["drained"], found["lag"], found["lags"]) == (100, 7, [3, 4])
    assert found["breaker"] == "unknown"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(None, entry(10, admitted=5), id="the first one"),
        pytest.param(entry(1, admitted=1), entry(10, admitted=5), id="after a hole"),
        pytest.param(entry(9, admitted=9), entry(10, admitted=5), id="after a flush"),
        pytest.param(entry(10, admitted=1), entry(10, admitted=5), id="at the same moment"),
    ],
)
def test_no_rate_is_made_up(before: HistoryEntry | None, after: HistoryEntry) -> None:
    found = row(next_point(before, after))
    assert found["admitted"] is None
    assert found["offered"] is None
    assert found["drained"] is None
    assert found["lag"] == 7


def test_what_was_not_sampled_is_unknown_and_not_nothing() -> None:
    found = row(next_point(entry(1, consumed=5), entry(2, consumed=None)))
    assert (found["lag"], found["lags"], found["drained"], found["rate"]) == (None, None, None, None)
    assert found["admitted"] == 0


def test_own_points_fill_the_holes_of_the_history() -> None:
    own = [Point(float(t) + 0.3, None, {}, is_local=True) for t in range(12)]
    history = [Point(float(t), None, {}) for t in (0, 1, 2, 8, 9)]
    found = [(point.t, point.is_local) for point in merged(history, own[:10])]
    assert [t for t, is_local in found if not is_local] == [0, 1, 2, 8, 9]
    local = [t for t, is_local in found if is_local]
    assert local
    assert all(2 < t < 8 for t in local)
    assert [t for t, _ in found] == sorted(t for t, _ in found)
    # And go on after its end
    assert [point.t for point in merged(history, own)][-1] == pytest.approx(11.3)
    assert merged([], own) == own
    assert merged(history, []) == history
