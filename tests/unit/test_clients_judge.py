"""The judge of the real clients: what is a loss, what a double, and what the table and the exit status say."""

from collections import Counter
from pathlib import Path

import pytest

from checks.clients.catalog import CLIENTS
from checks.clients.judge import May, Outcome, Situation, judge
from checks.clients.table import Result, as_markdown, exit_status

SENT = 200
ALL = dict.fromkeys(range(SENT), 1)
LOSER = next(client for client in CLIENTS if client.may(Situation.LIMIT) == {May.LOSE})
KEEPER = next(client for client in CLIENTS if not client.allowed)


def without(*numbers: int) -> dict[int, int]:
    return {number: count for number, count in ALL.items() if number not in numbers}


def result(rows: dict[int, int], *, client: object = KEEPER, problems: tuple[str, ...] = ()) -> Result:
    """A client to which this happened under the rate limit, and nothing in the other situations."""
    assert client in CLIENTS
    found = next(one for one in CLIENTS if one is client)
    outcomes = dict.fromkeys(Situation, Outcome(SENT, ALL)) | {Situation.LIMIT: Outcome(SENT, rows, problems)}
    return Result(found, "1.0", Path(), outcomes)


def test_all_stored_once_is_kept() -> None:
    assert judge(Outcome(SENT, Counter(range(SENT)))) == []
    assert exit_status([result(ALL)], named=False) == 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (without(7), "lost 1 (number 7)"),
        (without(*range(20)), "lost 20 (number 0, 1, 2, 3, 4 …)"),
        (without(0, SENT - 1), "lost 2 (number 0, 199)"),
        (ALL | {7: 2}, "doubled 1 (number 7)"),
        (ALL | {SENT: 1}, "stored without being sent: 1 (number 200)"),
        ({}, "nothing is stored"),
    ],
)
def test_a_loss_and_a_double_fail(rows: dict[int, int], words: str) -> None:
    assert judge(Outcome(SENT, rows)) == [words]
    broken = result(rows)
    assert (broken.verdict, broken.problems) == ("BROKEN", [f"429: {words}"])
    assert exit_status([result(ALL), broken], named=False) == 1
    assert f"{KEEPER.name}: BROKEN: 429: {words}" in as_markdown([broken])


def test_a_loss_by_design_is_allowed_in_its_situation_and_nothing_else_is() -> None:
    lose = frozenset({May.LOSE})
    assert judge(Outcome(SENT, without(7)), lose) == []
    assert judge(Outcome(SENT, without(7) | {8: 2}), lose) == ["doubled 1 (number 8)"]
    assert judge(Outcome(SENT, {}), lose) == ["nothing is stored"]
    assert judge(Outcome(SENT, ALL | {8: 2}), frozenset({May.DOUBLE})) == []
    assert judge(Outcome(SENT, without(7)), frozenset({May.DOUBLE})) == ["lost 1 (number 7)"]
    assert result(without(7), client=LOSER).verdict == "loses, by its own design"
    assert exit_status([result(without(7), client=LOSER)], named=False) == 0


def test_a_situation_that_did_not_happen_proves_nothing() -> None:
    nothing_cut = result(ALL, problems=("not within 60 s: a request is refused",))
    assert not nothing_cut.is_kept
    assert exit_status([nothing_cut], named=False) == 1


def test_a_skipped_client_has_not_passed() -> None:
    skipped = Result(KEEPER, skipped="no java")
    assert not skipped.is_kept
    assert skipped.verdict == "skipped: no java"
    assert exit_status([skipped], named=False) == 2
    assert exit_status([skipped, result(ALL)], named=False) == 0
    assert exit_status([skipped, result(ALL)], named=True) == 2, "the user asked for it"
    assert exit_status([skipped, result(without(7))], named=True) == 1


def test_the_table_counts_what_was_sent_and_stored() -> None:
    row = as_markdown([result(without(7, 8) | {9: 3}, client=LOSER)]).splitlines()[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "1.0"
    assert cells[3:6] == ["600", "598", "2"]
    assert cells[6:9] == ["BROKEN", "all once", "all once"]
    row = as_markdown([result(without(7, 8), client=LOSER)]).splitlines()[2]
    assert row.endswith("| loses 2 | all once | all once | loses, by its own design |")
