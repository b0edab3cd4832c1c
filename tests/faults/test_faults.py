"""Short runs of the harness: both logs under faults, and a mutant that it must catch. ./soak.sh runs the long ones."""

from pathlib import Path

import pytest

from faults.catalog import schedule
from faults.mutants import MUTANTS, is_caught, run_mutant
from faults.report import as_markdown
from faults.rig import Options
from faults.run import run
from stack.servers import Server

SHORT = {
    "redis": [
        *("child.freeze", "ingest.kill", "log.kill", "copy.terminate", "control-redis.flushall"),
        *("log.tail-lost", "postgres.kill", "control-worker.kill"),
    ],
    "kafka": [
        *("worker.kill", "commit.terminate", "commit.unanswered", "link-postgres.blackhole"),
        *("control-redis.kill", "log.freeze", "beat.kill", "rows.refused"),
    ],
}
SEED = 20


@pytest.mark.parametrize("log", [pytest.param("redis", id="redis-faults"), pytest.param("kafka", id="kafka-faults")])
def test_promises_are_kept_under_faults(log: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if log == "kafka":
        _kafka: Server = request.getfixturevalue("kafka")  # skips where there is none
    plan = schedule(log, len(SHORT[log]), SEED, SHORT[log])
    result = run(Options(log, tmp_path, SEED, rate=600.0), plan)
    # Every fault took effect, and no promise was broken
    assert result.violations == [], as_markdown(result)
    assert result.hits == len(plan), as_markdown(result)
    # And the run was one that could have broken them
    assert result.outcomes["acked"] > 1_000
    assert result.outcomes["indeterminate"] + result.outcomes["refused"] > 0


def test_a_system_that_breaks_its_promise_is_caught(tmp_path: Path) -> None:
    mutant = next(one for one in MUTANTS if one.name == "offset-in-a-transaction-of-its-own")
    result = run_mutant(mutant)
    assert is_caught(mutant, result), result
