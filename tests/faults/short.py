"""The short run that the tests make on each log."""

from pathlib import Path

from checks.soak.catalog import schedule
from checks.soak.report import as_markdown
from checks.soak.rig import Options
from checks.soak.run import Verdict, run

SEED = 21  # odd: the log is trimmed
EVENTS_PER_SECOND = 600.0  # beside surges, which go above the admitted rate


def assert_promises_are_kept(log: str, faults: list[str], folder: Path) -> None:
    """Carry out these faults, and fail with the report unless each took effect and no promise was broken."""
    plan = schedule(log, len(faults), SEED, faults)
    # Several processes have to use a partition that is added.
    ingests = 2 if "log.partition-added" in faults else 1
    result = run(Options(log, folder, SEED, EVENTS_PER_SECOND, ingests=ingests), plan)
    assert result.violations == [], as_markdown(result)
    assert result.hits == len(plan), as_markdown(result)
    assert result.verdict is Verdict.KEPT, as_markdown(result)
    # The run was one that could have broken them.
    assert result.outcomes["acked"] > 1_000, as_markdown(result)
    assert result.outcomes["indeterminate"] + result.outcomes["refused"] > 0, as_markdown(result)
