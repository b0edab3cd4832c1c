"""Schedules, and that the mutants still fit the source."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psycopg2
import pytest

from checks.soak import of_processes
from checks.soak.__main__ import main
from checks.soak.catalog import FAULTS, POOLED, possible_names, schedule
from checks.soak.mutant import ROOT, Edit, Mutant, MutantError, mutated
from checks.soak.mutants import MUTANTS
from checks.soak.of_people import ColumnAdded
from checks.soak.rig import Ended, Rig
from checks.testbed.processes import Program
from checks.testbed.waiting import wait_until
from pipeline.settings import Settings


@pytest.mark.parametrize("log", ["redis", "kafka"])
def test_a_schedule_follows_from_its_seed(log: str) -> None:
    assert schedule(log, 100, 7) == schedule(log, 100, 7)
    assert schedule(log, 100, 7) != schedule(log, 100, 8)


@pytest.mark.parametrize("log", ["redis", "kafka"])
def test_a_schedule_has_each_fault_before_any_comes_again(log: str) -> None:
    names = possible_names(log)
    plan = [planned.name for planned in schedule(log, 2 * len(names), 2)]
    assert sorted(plan[: len(names)]) == sorted(plan[len(names) :]) == sorted(names)
    # Half of the seeds reach PostgreSQL without a pooler: there is none to be killed.
    without = [planned.name for planned in schedule(log, len(names) - 1, 1)]
    assert sorted(without) == sorted(set(names) - {POOLED})


@pytest.mark.parametrize("log", ["redis", "kafka"])
def test_copies_of_servers_have_faults_of_their_own_and_none_that_all_copies_would_share(log: str) -> None:
    single, replicated = (set(possible_names(log, replicated=copies)) for copies in (False, True))
    assert {"postgres.failover", "postgres-standby.kill", "postgres-standby.freeze"} <= replicated - single
    assert ({"broker.kill", "broker.freeze"} <= replicated - single) is (log == "kafka")
    assert ({"log.failover", "log-replica.kill", "log-replica.freeze"} <= replicated - single) is (log == "redis")
    assert not {"log.tail-lost", "log.back", "both-redis.back", "postgres.disk-full", POOLED} & replicated
    plan = {planned.name for planned in schedule(log, len(replicated), 3, replicated=True)}
    assert plan == replicated


def test_an_older_worker_has_no_part_in_a_run_by_day(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(possible_names("redis")) - set(possible_names("redis", by_day=True)) == {"worker.old"}
    assert main(["--by-day", "--only", "copy.terminate", "--faults", "1", "--seed", "4", "--plan"]) == 0
    assert "--log redis --by-day --only copy.terminate" in capsys.readouterr().out


def test_a_run_without_copies_cannot_be_asked_for_a_failover(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "log.failover", "--plan"]) == 2
    assert "no such fault on redis (single): log.failover" in capsys.readouterr().err
    assert main(["--only", "log.failover", "--topology", "replicated", "--faults", "1", "--seed", "4", "--plan"]) == 0
    again = "./soak.sh --faults 1 --events 200000 --seed 4 --log redis --topology replicated --only log.failover"
    assert again in capsys.readouterr().out


def test_faults_are_named_as_they_call_themselves() -> None:
    assert {name: make(random.Random(1)).name for name, make in FAULTS.items()} == {name: name for name in FAULTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_still_fits_the_source(mutant: Mutant) -> None:
    texts = mutated(mutant)
    assert set(texts) == {edit.path for edit in mutant.edits}
    assert set(mutant.faults) <= set(FAULTS)
    # It is shown by a run that must say something, or by one test that there is.
    assert bool(mutant.faults) is bool(mutant.expected) is not bool(mutant.test)
    path, _, name = mutant.test.partition("::")
    assert not mutant.test or f"def {name}(" in (ROOT / path).read_text()
    for source, text in texts.items():
        if source.endswith(".py"):
            compile(text, source, "exec")


def test_a_mutant_that_does_not_fit_fails_loudly() -> None:
    lost = Mutant("lost", (Edit("pipeline/drain/run.py", "words that are not in it", ""),), (), ())
    with pytest.raises(MutantError, match="0 times"):
        mutated(lost)


def test_a_fault_during_which_postgresql_never_answers_has_not_hit() -> None:
    def stored_offsets() -> dict[tuple[str, int], int]:
        raise psycopg2.OperationalError("no answer")

    rig = cast(Rig, SimpleNamespace(stored_offsets=stored_offsets))
    assert not ColumnAdded(random.Random(1)).has_hit(rig)


def test_an_older_version_that_ends_by_itself_is_told_with_its_status_and_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_processes, "old_checkout", lambda _: tmp_path)
    program = Program("ingest-0", ["no_such_module"], Settings(), tmp_path)
    program.log_path.write_text("ingest listens on 127.0.0.1:8000\n")  # today's, before the fault
    rig = cast(Rig, SimpleNamespace(folder=tmp_path, down=set()))
    fault = of_processes.OlderVersion(random.Random(1), "ingest", lambda _, __: program)
    fault.inject(rig)
    try:
        wait_until(lambda: not program.is_running, "the end of the program")
        fault.look(rig)
        assert not fault.has_hit(rig)
        fault.repair(rig)
    finally:
        program.stop()
    (complaint,) = fault.complaints
    assert "exit status 1, last line of its log:" in complaint
    assert "No module named no_such_module" in complaint


def test_an_older_version_does_not_run_under_a_clock_that_can_be_stepped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_processes, "old_checkout", lambda _: tmp_path)
    (tmp_path / "older.py").write_text("import os\nprint('under', os.environ['LD_PRELOAD'] or 'no clock')\n")
    program = Program("ingest-0", ["older"], Settings(), tmp_path)
    program.environ = {"LD_PRELOAD": "libfaketime.so"}
    fault = of_processes.OlderVersion(random.Random(1), "ingest", lambda _, __: program)
    fault.inject(cast(Rig, SimpleNamespace(folder=tmp_path, down=set())))
    try:
        wait_until(lambda: not program.is_running, "the end of the program")
    finally:
        program.stop()
    assert program.log().splitlines()[-1] == "under no clock"


@pytest.mark.parametrize(("status", "words"), [(-11, "SIGSEGV"), (1, "exit status 1"), (None, "exit status unknown")])
def test_a_program_that_ended_by_itself_is_told_with_its_status(status: int | None, words: str) -> None:
    assert str(Ended("ingest-1", 12.25, status)) == f"ingest-1 at 12.2 ({words})"
