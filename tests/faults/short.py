"""The short run that the tests make on each log."""

from pathlib import Path

import pytest

from checks.soak import answers, control, watcher
from checks.soak.catalog import schedule
from checks.soak.report import as_markdown
from checks.soak.rig import Options
from checks.soak.run import Verdict, run

SEED = 21  # odd: the log is trimmed
EVENTS_PER_SECOND = 600.0  # beside surges, which go above the admitted rate
# Other tests run beside this, on a machine that may have a tenth of its processor left for it. What hangs is seen all
# the same; ./soak.sh has the machine for itself, and keeps the narrow limits.
RECOVERY_SECONDS_MAX = 180.0
WIDE_LIMITS = (
    (control, "STAND_SECONDS_MAX", 40.0),
    (control, "BOOT_SECONDS", 20.0),
    (watcher, "HEALTH_SECONDS_MAX", 20.0),
    (answers, "SLOW_SPELLS_MAX", 40.0),
)


def assert_promises_are_kept(log: str, faults: list[str], folder: Path) -> None:
    """Carry out these faults, and fail with the report unless each took effect and no promise was broken."""
    plan = schedule(log, len(faults), SEED, faults)
    # Several processes have to use a partition that is added.
    ingests = 2 if "log.partition-added" in faults else 1
    options = Options(log, folder, SEED, EVENTS_PER_SECOND, ingests=ingests)
    with pytest.MonkeyPatch.context() as patch:
        for module, name, limit in WIDE_LIMITS:
            patch.setattr(module, name, limit)
        result = run(options, plan, recovery_seconds_max=RECOVERY_SECONDS_MAX)
    assert result.violations == [], as_markdown(result)
    assert result.hits == len(plan), as_markdown(result)
    assert result.verdict is Verdict.KEPT, as_markdown(result)
    # The run was one that could have broken them.
    assert result.outcomes["acked"] > 1_000, as_markdown(result)
    assert result.outcomes["indeterminate"] + result.outcomes["refused"] > 0, as_markdown(result)
