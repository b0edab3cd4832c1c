"""A short run with the log on Redis Streams, and a mutant that it must catch. ./soak.sh runs the long ones."""

import os
from pathlib import Path

from checks.soak.mutant import is_caught, run_mutant
from checks.soak.mutants import MUTANTS
from checks.testbed.clocks import fake_time_library
from faults.short import assert_promises_are_kept

FAULTS = [
    *("child.freeze", "ingest.kill", "control-redis+log.kill", "copy.terminate", "user.trigger", "both-redis.back"),
    "postgres.kill",
]
if fake_time_library() is not None or os.environ.get("CI") == "true":  # in CI nothing may be missing
    FAULTS.append("worker.step")


def test_promises_are_kept_under_faults(tmp_path: Path) -> None:
    assert_promises_are_kept("redis", FAULTS, tmp_path)


def test_a_system_that_breaks_its_promise_is_caught() -> None:
    mutant = next(one for one in MUTANTS if one.name == "offset-in-a-transaction-of-its-own")
    result = run_mutant(mutant)
    assert is_caught(mutant, result), result
