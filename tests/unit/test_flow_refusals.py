"""Refusals by account: sums, bounds, slices, and what is reported again."""

from pipeline.flow.refusals import (
    SLICE_SECONDS,
    SLICES_MAX,
    Refusals,
    RefusalTable,
    Refused,
    together,
    total,
)


def of(events: int, requests: int = 1, reason: str = "rate") -> dict[str, Refused]:
    return {reason: Refused(requests, events)}


def test_a_sum_is_by_account_and_by_reason() -> None:
    one = Refusals({"a": of(10) | of(5, 2, "share")}, of(1))
    other = Refusals({"a": of(20), "b": of(7)}, of(2, reason="level"))
    summed = together([one, other], accounts_max=8)
    assert summed == Refusals(
        {"a": {"rate": Refused(2, 30), "share": Refused(2, 5)}, "b": of(7)},
        {"rate": Refused(1, 1), "level": Refused(1, 2)},
    )
    assert summed.total == Refused(7, 45)
    assert total({}) == Refused()
    assert together([], accounts_max=8) == Refusals()


def test_the_heaviest_accounts_stay_and_the_others_are_counted_together() -> None:
    summed = together([Refusals({"a": of(3), "b": of(9), "c": of(5), "d": of(5)}, of(1))], accounts_max=2)
    assert summed == Refusals({"b": of(9), "c": of(5)}, {"rate": Refused(3, 9)})
    assert [name for name, _ in summed.heaviest()] == ["b", "c"]


def test_a_table_is_bounded_whatever_comes() -> None:
    table = RefusalTable(2)
    for second in range(int(SLICES_MAX * SLICE_SECONDS * 2)):
        table.add(Refusals({f"a{second}": of(1), "heavy": of(50)}), float(second))
    window = table.window(SLICES_MAX * SLICE_SECONDS * 2 - 1)
    assert len(table._slices) == SLICES_MAX
    assert all(len(one.accounts) <= 2 for one in table._slices.values())
    assert window.accounts["heavy"] == {"rate": Refused(960, 48_000)}
    assert window.total == Refused(2 * 960, 960 * 51)


def test_the_window_ends() -> None:
    table = RefusalTable(8)
    table.add(Refusals({"a": of(1)}), 30.0)
    assert table.window(30.0 + 15 * SLICE_SECONDS).total.events == 1
    assert table.window(30.0 + 16 * SLICE_SECONDS) == Refusals()
    assert table.changed() == {}


def test_a_slice_is_reported_until_it_was_reported_as_it_is() -> None:
    table = RefusalTable(8)
    table.add(Refusals({"a": of(1)}), 59.0)
    table.add(Refusals({"a": of(2)}), 60.0)
    lost = table.changed()
    assert lost == {0: Refusals({"a": of(1)}), 1: Refusals({"a": of(2)})}
    # When one of them changes before the report has arrived
    table.add(Refusals({"a": of(3)}), 61.0)
    table.note_reported(lost)
    # Then it is reported again
    assert table.changed() == {1: Refusals({"a": of(5, 2)})}
    table.note_reported(table.changed())
    assert table.changed() == {}
