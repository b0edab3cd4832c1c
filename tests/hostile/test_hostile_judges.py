"""What judges a run of ./hostile.sh finds what is wrong, and nothing else."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checks.hostile.__main__ import again, main, plan_of
from checks.hostile.arguments import Plan, parse
from checks.hostile.part import Part
from checks.hostile.report import as_markdown, write
from checks.hostile.run import Result
from checks.hostile.siege import Siege, flood_problems
from checks.hostile.watch import MIB, Watch
from checks.loadgen.open_load import Responses

TOLD: dict[str, Any] = {
    "opened": 705,
    "refused": 0,
    "answers": {"408": 200, "none": 500},
    "cut_seconds": [10.0, 10.4],
    "refusals": {},
    "oldest_seconds": 3.0,
}


def _responses(seconds: float, status: int = 202) -> Responses:
    return Responses(due=[0.0] * 200, seconds=[seconds] * 200, status=[status] * 200)


def _watch_that_saw(megabytes: list[float], *, seconds_each: float) -> Watch:
    watch = Watch({"ingest": os.getpid()})
    watch._samples["ingest"] = [(number * seconds_each, int(mib * MIB)) for number, mib in enumerate(megabytes)]
    return watch


def test_a_load_that_keeps_its_p99_is_no_problem() -> None:
    assert Siege(_responses(0.002), _responses(0.04), {}).problems() == []
    assert Siege(_responses(0.2), _responses(0.39), {}).problems() == []  # a machine that is slow anyway
    assert Siege(_responses(0.002), _responses(0.002, 429), {}).problems() == []


@pytest.mark.parametrize(
    "seen",
    [
        Siege(_responses(0.002), _responses(0.06), {}),
        Siege(_responses(0.2), _responses(0.41), {}),
        Siege(_responses(0.002), _responses(0.002, 503), {}),
        Siege(_responses(0.002, 500), _responses(0.002), {}),
    ],
)
def test_a_load_that_suffers_is_a_problem(seen: Siege) -> None:
    assert len(seen.problems()) == 1


def test_rounds_of_an_attack_add_up() -> None:
    one = Siege(_responses(0.002), _responses(0.002), dict(TOLD))
    one.add(Siege(_responses(0.002), _responses(0.5, 500), {**TOLD, "cut_seconds": [9.9, 10.1], "oldest_seconds": 4.0}))
    assert len(one.problems()) == 2
    assert one.attack["opened"] == 1410
    assert one.attack["answers"] == {"408": 400, "none": 1000}
    assert one.attack["cut_seconds"] == [9.9, 10.4]
    assert one.attack["oldest_seconds"] == 4.0


def test_a_flood_that_is_cut_off_in_time_is_no_problem() -> None:
    assert flood_problems(TOLD, 10.0) == []
    assert flood_problems({**TOLD, "answers": {}, "cut_seconds": [], "refusals": {"422": 9}}, 10.0) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"refused": 1},
        {"answers": {"408": 200, "500": 1}},
        {"answers": {"none": 700}},
        {"cut_seconds": [2.0, 10.4]},
        {"cut_seconds": [10.0, 14.0]},
        {"oldest_seconds": 14.0},
        {"refusals": {"422": 3, "202": 1}},
        {"refusals": {"none": 1}},
    ],
)
def test_a_flood_that_is_not_is_a_problem(changed: dict[str, Any]) -> None:
    assert len(flood_problems({**TOLD, **changed}, 10.0)) == 1


def test_memory_that_goes_up_and_down_is_no_growth() -> None:
    assert _watch_that_saw([60, 75] * 600, seconds_each=0.5).problems() == []
    assert _watch_that_saw([40, *[70] * 1200], seconds_each=0.5).problems() == []  # warming up
    assert _watch_that_saw([70, 74] * 20, seconds_each=0.5).problems() == []


@pytest.mark.parametrize(("length", "mib_each"), [(1200, 0.01), (40, 2.0)])
def test_memory_that_grows_is_a_problem(length: int, mib_each: float) -> None:
    grown = [60 + number * mib_each + (number % 2) * 4 for number in range(length)]
    assert len(_watch_that_saw(grown, seconds_each=0.5).problems()) == 1


def test_a_process_that_ends_is_a_problem() -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process, Watch({"one": process.pid}) as watch:
        assert watch.problems() == []
        process.kill()
        process.wait()
    assert watch.problems() == ["one has ended"]


def test_the_command_line() -> None:
    assert plan_of(parse(["--seed", "7"])) == Plan(7)
    short = plan_of(parse(["--short", "--seed", "7", "--cases", "50", "--only", "cases,contract"]))
    assert (short.cases, short.parts) == (50, ("cases", "contract"))
    assert short.attack_seconds < Plan(7).attack_seconds
    # What is printed does the same again
    assert plan_of(parse(again(short).split()[1:])) == short
    assert plan_of(parse([])).seed > 1_700_000_000  # the clock's


@pytest.mark.parametrize(
    "words", [["--only", "flood"], ["--cases", "0"], ["--attack-seconds", "0.5"], ["--seed", "-1"]]
)
def test_nonsense_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("hostile: ")


def test_the_report_says_what_broke(tmp_path: Path) -> None:
    held = Result(Plan(7), [Part("cases", lines=["362 bodies"]), Part("fuzz", skipped="no fuzzer here")])
    broken = replace(held, parts=[*held.parts, Part("floods", problems=["p99 900 ms"])])
    assert held.is_good
    assert "all of it held" in as_markdown(held)
    assert "skipped: no fuzzer here" in as_markdown(held)
    assert not broken.is_good
    text = write(broken, tmp_path).read_text()
    assert "BROKEN" in text.splitlines()[0]
    assert "p99 900 ms" in text
    assert '"verdict": "broken"' in (tmp_path / "hostile-7.json").read_text()
