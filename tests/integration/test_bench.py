"""./bench.sh runs: one goal, far too short to mean anything."""

import json
import subprocess
from pathlib import Path

from checks.bench.drain import TRIED_ROWS
from checks.testbed.waiting import RUN_SECONDS_MAX
from stack.servers import ROOT

TRIES = 3


def test_one_goal_in_a_hurry(tmp_path: Path, control_redis: object) -> None:
    # When one goal is measured, again where its Redis got no processor for a second: the bench says so
    found = tmp_path / "found.json"
    for _ in range(TRIES):
        done = subprocess.run(
            [str(ROOT / "bench.sh"), "--quick", "--only", "M3", "--json", str(found)],
            capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False,
        )  # fmt: skip
        if "could not be measured" not in done.stdout:
            break
    # Then there is a table, and the same as JSON, with a verdict for each goal
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one decision on leases" in done.stdout
    assert "these figures mean nothing" in done.stdout
    lines = json.loads(found.read_text())["lines"]
    assert {line["mark"] for line in lines} == {"M3"}
    assert all(line["rounds"] for line in lines)
    goals = {line["goal"] for line in lines}
    assert {"<= 150", ">= 500", "<= 1"} <= goals
    assert next(line for line in lines if line["unit"] == "%")["value"] <= 1


def test_each_short_drain_finds_the_table_at_its_size(tmp_path: Path) -> None:
    # When short drains into a filled table are measured, in several rounds
    found = tmp_path / "found.json"
    subprocess.run(
        [str(ROOT / "bench.sh"), "--quick", "--only", "M8", "--json", str(found)],
        capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=True,
    )  # fmt: skip
    # Then the last one has added its rows alone
    line = next(one for one in json.loads(found.read_text())["lines"] if "with 20,000 stored" in one["what"])
    assert len(line["rounds"]) > 1
    assert line["figures"]["rows_after"] == 20_000 + TRIED_ROWS


def test_help_has_examples() -> None:
    done = subprocess.run(
        [str(ROOT / "bench.sh"), "--help"], capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=True
    )
    assert "--only M1,M3" in done.stdout
