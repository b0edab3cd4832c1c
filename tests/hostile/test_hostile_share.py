"""A share of what ./hostile.sh does, against a real ingest process."""

import statistics
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from checks.hostile.answers import (
    JSON,
    NDJSON,
    wrong_answers_of_protocols,
    wrong_answers_to_cases,
    wrong_answers_to_corpus,
)
from checks.hostile.contract import Report
from checks.hostile.siege import environ, flood_problems, flooding, siege
from checks.hostile.victim import Victim
from checks.hostile.watch import SHORT_GROWTH_BYTES_MAX, Watch
from checks.testbed.waiting import RUN_SECONDS_MAX

ROOT = Path(__file__).resolve().parents[2]
# Other tests run beside these: the p99 may be this much and say nothing.
BUSY_SECONDS = 0.5
FLOODS_MAX = 6


def test_requests_that_break_the_contract_are_refused(victim: Victim) -> None:
    command = [sys.executable, "-m", "checks.hostile.contract", victim.url, "--short", "--mode", "negative"]
    said = subprocess.run(
        [*command, "--cases", "120", "--seed", "8"],
        cwd=ROOT, env=environ(), capture_output=True, text=True, check=False, timeout=RUN_SECONDS_MAX,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:]
    report = Report.of(said.stdout)
    assert report.failures == {}, report.examples
    assert report.cases >= 100
    assert {400, 415, 422} <= set(report.statuses) <= {202, 400, 413, 415, 422}


@pytest.mark.parametrize("content_type", [JSON, NDJSON])
def test_what_is_json_is_called_json_and_nothing_else(victim: Victim, content_type: str) -> None:
    count, wrong = wrong_answers_to_cases(victim.port, content_type)
    assert wrong == []
    assert count > 250


def test_no_case_is_a_defect_of_another_protocol(victim: Victim) -> None:
    count, wrong = wrong_answers_of_protocols(victim.port)
    assert wrong == []
    assert count > 2000


def test_what_the_fuzzer_has_found_is_answered_as_the_oracle_says(victim: Victim) -> None:
    corpus = sorted((Path(__file__).parent / "corpus").iterdir())
    seen, wrong = wrong_answers_to_corpus(victim.port, [(path.name, path.read_bytes()) for path in corpus])
    assert wrong == []
    assert {"J 202", "J 400", "J 422", "N 202", "N 400", "N 422", "G 202", "G 400", "H 400"} <= set(seen)


def test_a_flood_of_connections_is_hardly_noticed(victim: Victim) -> None:
    with Watch({"ingest": victim.program.pid}) as watch:
        seen = siege(
            victim.port,
            lambda: flooding(victim.port, idle=500, trickling=200, seconds=7.0),
            rate=100,
            before_seconds=4.0,
            seconds=7.0,
        )
    problems = seen.problems(p99_seconds_sure=2 * BUSY_SECONDS)
    assert problems + flood_problems(seen.attack, victim.settings.request_seconds_max) == [], seen.lines()
    assert seen.attack["opened"] >= 700, seen.lines()
    assert watch.problems() == []


def test_bodies_that_are_hard_to_read_keep_nobody_waiting(victim: Victim) -> None:
    seen = siege(
        victim.port, lambda: flooding(victim.port, hard=4, seconds=5.0), rate=100, before_seconds=3.0, seconds=5.0
    )
    # Where each is read all at once, the median is 0.3 s and the p99 two seconds. A busy machine makes both longer, and
    # before the attack too.
    assert seen.problems(p99_seconds_sure=2 * BUSY_SECONDS) + flood_problems(seen.attack, 2.0) == [], seen.lines()
    before, during = (statistics.median(load.seconds) for load in (seen.before, seen.during))
    assert during < max(0.15, 5 * before), seen.lines()
    assert seen.attack["refusals"].get("422", 0) > 0, seen.lines()


def test_nor_do_those_of_other_protocols_which_take_no_more_memory_each_time(victim: Victim) -> None:
    # Given an ingest that has read large bodies before: what the first ones need is kept for those that follow
    process = psutil.Process(victim.program.pid)
    with flooding(victim.port, others=2, seconds=5.0):
        pass
    # When more come, Then they take no more: what keeps growing grows each time. A busy machine reads few in the time,
    # so the first of a kind may still be among them.
    grown: list[int] = []
    while not grown or (grown[-1] > SHORT_GROWTH_BYTES_MAX and len(grown) < FLOODS_MAX):
        before = process.memory_info().rss
        seen = siege(
            victim.port, lambda: flooding(victim.port, others=2, seconds=5.0), rate=50, before_seconds=1.0, seconds=5.0
        )
        assert seen.problems(p99_seconds_sure=2 * BUSY_SECONDS) + flood_problems(seen.attack, 2.0) == [], seen.lines()
        assert sum(seen.attack["others"].values()) > 2, seen.lines()
        grown.append(process.memory_info().rss - before)
    assert grown[-1] <= SHORT_GROWTH_BYTES_MAX, grown
