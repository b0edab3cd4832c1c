"""Schedules, and that the mutants still fit the source."""

import random

import pytest

from faults.catalog import FAULTS, possible_names, schedule
from faults.mutants import MUTANTS, Edit, Mutant, MutantError, mutated


@pytest.mark.parametrize("log", ["redis", "kafka"])
def test_a_schedule_follows_from_its_seed(log: str) -> None:
    assert schedule(log, 100, 7) == schedule(log, 100, 7)
    assert schedule(log, 100, 7) != schedule(log, 100, 8)


@pytest.mark.parametrize("log", ["redis", "kafka"])
def test_a_schedule_has_each_fault_before_any_comes_again(log: str) -> None:
    names = possible_names(log)
    plan = [planned.name for planned in schedule(log, 2 * len(names), 1)]
    assert sorted(plan[: len(names)]) == sorted(plan[len(names) :]) == sorted(names)


def test_faults_are_named_as_they_call_themselves() -> None:
    assert {name: make(random.Random(1)).name for name, make in FAULTS.items()} == {name: name for name in FAULTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_still_fits_the_source(mutant: Mutant) -> None:
    texts = mutated(mutant)
    assert set(texts) == {edit.path for edit in mutant.edits}
    assert set(mutant.faults) <= set(FAULTS)
    for path, text in texts.items():
        if path.endswith(".py"):
            compile(text, path, "exec")


def test_a_mutant_that_does_not_fit_fails_loudly() -> None:
    lost = Mutant("lost", (Edit("pipeline/drain.py", "words that are not in it", ""),), (), ())
    with pytest.raises(MutantError, match="0 times"):
        mutated(lost)
