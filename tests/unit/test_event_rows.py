"""Control events as rows of the page: steps of the rate in one row, the rare before the routine, short names."""

from typing import Any

import pytest

from ingest.dashboard.event_rows import event_rows
from pipeline import event_fold
from pipeline.names import ControlEventKind
from pipeline.ports.control import ControlEvent

CONTROL = "control-4ba73c@vm/22567"
NOW = 1_700_000_000.0


def event(number: int, kind: ControlEventKind, actor: str = CONTROL, why: str = "why", **data: str) -> ControlEvent:
    return ControlEvent(f"{number}-0", NOW + 5 * number, kind, actor, why, data)


def step(number: int, previous: int, rate: int, decided_by: str = "lag", **changes: Any) -> ControlEvent:
    return event(
        number, ControlEventKind.RATE_CHANGED, previous=f"{previous}", rate=f"{rate}", mode="degraded",
        decided_by=decided_by, **changes,
    )  # fmt: skip


def test_a_rate_that_steps_every_period_is_one_row() -> None:
    # Given a rate that falls and rises again, a step each period
    rates = [1000, 800, 500, 250, 300, 700]
    steps = [step(i, rates[i], rates[i + 1]) for i in range(5)]
    # When they become rows
    [row] = event_rows(steps)
    # Then it is one, from the first rate to the newest, with the range
    assert row["what"] == (
        "Rate 1,000 → 700/s in 5 steps since 22:13:20 UTC, between 250/s and 1,000/s (lag is degraded)"
    )
    assert (row["at"], row["firstAt"], row["count"]) == (NOW + 20, NOW, 5)
    assert row["isRoutine"] is True


def test_a_single_step_has_its_own_words() -> None:
    [row] = event_rows([step(1, 1000, 800)])
    assert row["what"] == "Rate 1,000 → 800/s (lag is degraded)"


def test_steps_the_store_has_folded_count_with_their_number() -> None:
    folded = ControlEvent("9-0", NOW + 40, ControlEventKind.RATE_CHANGED, CONTROL, "lag 3",
                          step(1, 1000, 800).data, count=7, first_at=NOW - 60)  # fmt: skip
    [row] = event_rows([step(1, 900, 1000), folded])
    assert "in 8 steps" in row["what"]
    assert (row["firstAt"], row["count"]) == (NOW - 60, 8)


def test_the_rare_come_before_the_routine() -> None:
    # Given a breaker that opened among many steps of the rate, long ago
    opened = event(2, ControlEventKind.BREAKER_OPENED)
    steps = [step(number, 100 + number, 101 + number) for number in range(3, 200)]
    rows = event_rows([step(1, 1000, 800), opened, *steps])
    # Then it is the first row, and the steps before and after it are one row each
    assert [(row["what"].split()[0], row["isRoutine"]) for row in rows] == [
        ("Breaker", False), ("Rate", True), ("Rate", True),
    ]  # fmt: skip
    assert "in 197 steps" in rows[1]["what"]


def test_a_rate_by_an_operator_or_the_breaker_is_no_routine() -> None:
    rows = event_rows([step(1, 1000, 150, "override"), step(2, 150, 100, "breaker")])
    assert [row["isRoutine"] for row in rows] == [False, False]
    assert [row["at"] for row in rows] == [NOW + 10, NOW + 5]


def test_workers_have_short_names_and_people_their_own() -> None:
    opened = ControlEventKind.BREAKER_OPENED
    rows = event_rows([event(1, opened), event(2, opened, "ann@host"), event(3, opened, "batches-11aa22@vm/7")])
    assert [(row["by"], row["byWhole"]) for row in rows] == [
        ("batches", "batches-11aa22@vm/7"), ("ann@host", "ann@host"), ("control", CONTROL),
    ]  # fmt: skip


def test_two_processes_of_a_kind_are_told_apart() -> None:
    opened = ControlEventKind.BREAKER_OPENED
    rows = event_rows([event(1, opened, "batches-11aa22@vm/7"), event(2, opened, "batches-33bb44@vm/8")])
    assert [row["by"] for row in rows] == ["batches-33bb44", "batches-11aa22"]
    rows = event_rows([event(1, opened, "batches-11aa22@vm/7"), event(2, opened, "batches-11aa22@vm/8")])
    assert [row["by"] for row in rows] == ["batches-11aa22/8", "batches-11aa22/7"]


def test_rows_are_bounded() -> None:
    rows = event_rows([event(number, ControlEventKind.BREAKER_OPENED) for number in range(300)])
    assert len(rows) == 50
    assert rows[0]["id"] == "299-0"


def test_an_event_that_cannot_be_read_is_a_row() -> None:
    [row] = event_rows([event(1, ControlEventKind.RATE_CHANGED)])
    assert row["what"] == "Rate changed"


@pytest.mark.parametrize("data", [{}, {"mode": "cautious"}], ids=["no mode", "a newer mode"])
def test_steps_whose_mode_cannot_be_read_are_one_row_without_it(data: dict[str, str]) -> None:
    changed = ControlEventKind.RATE_CHANGED
    steps = [event(n, changed, previous="1000", rate="800", decided_by="lag", **data) for n in range(2)]
    [row] = event_rows(steps)
    assert row["what"] == "Rate 1,000 → 800/s in 2 steps since 22:13:20 UTC, between 800/s and 1,000/s"


@pytest.mark.parametrize("figures", [{"rate": "nan"}, {"previous": "nan"}, {"rate": "inf"}, {"rate": "-inf"}])
def test_a_step_whose_figures_are_no_rates_is_a_row_of_its_own(figures: dict[str, str]) -> None:
    # Given steps that can't be folded, before two that can
    changed, rates = ControlEventKind.RATE_CHANGED, {"previous": "1000", "rate": "800", "mode": "normal"}
    odd = [event(number, changed, **rates | figures) for number in range(2)]
    rows = event_rows([*odd, step(2, 800, 900), step(3, 900, 950)])
    # Then each of them is a row, and the others still are one
    assert [row["count"] for row in rows] == [1, 1, 2]
    assert rows[2]["what"].startswith("Rate 800 → 950/s in 2 steps")


def test_a_row_that_fails_unexpectedly_is_left_out_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an event that nobody thought of
    def words(shown: ControlEvent) -> str:
        if shown.id == "2-0":
            raise IndexError(shown.id)
        return shown.kind.value

    monkeypatch.setattr(event_fold, "event_text", words)
    # Then the others are shown, and the log names it
    rows = event_rows([event(number, ControlEventKind.BREAKER_OPENED) for number in (1, 2, 3)])
    assert [row["id"] for row in rows] == ["3-0", "1-0"]
    assert "2-0" in caplog.text
