"""What the charts draw, from entries of the history and from one process' own view."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from ingest.dashboard.points import COLUMNS, Point, merged, next_point
from ingest.dashboard.sse import Reader
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlEvents, MemoryServer
from pipeline.control_store.memory_history import MemoryHistory
from pipeline.ports.history import COUNTS, HistoryEntry
from pipeline.settings import Settings


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


def test_charts_go_on_while_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a page that shows a history
    monkeypatch.setattr("ingest.dashboard.sse.page_document", lambda _sources: {})
    clock, none = ManualClock(), MemoryServer()
    history = MemoryHistory(MemoryServer(clock))
    reader = Reader(history, MemoryControlEvents(Settings(), none))

    def second() -> tuple[list[float], list[float]]:
        """The times of the new points, and of all that a new page gets, after another second."""
        clock.advance(1.0)
        history.add({}, {})
        sources: Any = SimpleNamespace(health=SimpleNamespace(wall=clock.now()))
        frame = reader.frame(sources, [], for_new=True)
        assert frame.snapshot is not None
        documents = [json.loads(text.rpartition(b"data: ")[2]) for text in (frame.tick, frame.snapshot)]
        new, shown = ([point[0] for point in document["points"]] for document in documents)
        return new, shown

    begin = [second() for _ in range(20)][-1][1]
    assert len(begin) == 20
    # When the clock is set back, then each second has its point, and none is in the future
    clock.step(-10.0)
    found = [second() for _ in range(5)]
    now = round(clock.now(), 2)
    assert [new[-1] for new, _ in found] == [now - 4, now - 3, now - 2, now - 1, now]
    assert found[-1][1] == sorted(found[-1][1])
    assert found[-1][1][-1] == now
