"""The figures of a scenario over several seeds, and the table that compares the control laws."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from checks.sim.timeline import (
    Timeline,
    body_shares,
    goodput,
    late_share,
    oldest_seconds,
    recovery_seconds,
    settle_seconds,
)
from checks.sim.world import Scenario


@dataclass(frozen=True)
class Figures:
    """The results of a control law in a scenario. Lists have a value for each seed, or for each seed and phase."""

    goodput: float  # mean
    late: float  # mean share of the stored events
    oldest_seconds: float  # the greatest
    settle_seconds: float  # median; nan: the scenario has no phase
    recovery_seconds: float  # median
    bucket_used_max: float  # the greatest over-admission, as a share of what is allowed
    body_shares: dict[int, float]  # by body size, the smallest
    violations: int

    def cell(self) -> str:
        """The figures as a cell of the table."""
        settle = "" if math.isnan(self.settle_seconds) else f", {seconds_word(self.settle_seconds)}"
        return f"{self.goodput:.3f}{settle}, {self.oldest_seconds:.1f} s"


def figures_of(scenario: Scenario, timelines: Sequence[Timeline]) -> Figures:
    """The figures of a scenario's runs."""
    begin = int(scenario.judged_from)
    ends = [*(int(at) for at in scenario.phases[1:]), int(scenario.seconds)]
    phases = list(
        zip((int(at) for at in scenario.phases), ends, strict=bool(scenario.phases)) if scenario.phases else []
    )
    shares = [body_shares(timeline) for timeline in timelines]
    return Figures(
        goodput=statistics.fmean(goodput(timeline, begin) for timeline in timelines),
        late=statistics.fmean(late_share(timeline) for timeline in timelines),
        oldest_seconds=max(oldest_seconds(timeline, begin) for timeline in timelines),
        settle_seconds=_median([settle_seconds(timeline, *phase) for timeline in timelines for phase in phases]),
        recovery_seconds=_median([recovery_seconds(timeline, *phase) for timeline in timelines for phase in phases]),
        bucket_used_max=max(timeline.bucket_used_max for timeline in timelines),
        body_shares={size: min(share[size] for share in shares) for size in shares[0]},
        violations=sum(timeline.violations.count for timeline in timelines),
    )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def seconds_word(seconds: float) -> str:
    """`7 s`, or `never`."""
    return "never" if math.isinf(seconds) else f"{seconds:.0f} s"


def table(found: dict[str, dict[str, Figures]]) -> list[str]:
    """Markdown: one row for each scenario, one column for each control law."""
    arms = list(next(iter(found.values())))
    out = ["| scenario | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    out += [f"| {name} | " + " | ".join(by_arm[arm].cell() for arm in arms) + " |" for name, by_arm in found.items()]
    used = [f"{max(by_arm[arm].bucket_used_max for by_arm in found.values()):.2f}" for arm in arms]
    broken = [f"{sum(by_arm[arm].violations for by_arm in found.values())}" for arm in arms]
    out.append("| *over-admission, share of what is allowed* | " + " | ".join(used) + " |")
    out.append("| *bounds that did not hold* | " + " | ".join(broken) + " |")
    return out


def shares_table(found: dict[str, dict[str, Figures]]) -> list[str]:
    """Markdown: for scenarios with mixed sizes, the part of its max-min share that each body size got."""
    out = []
    for name, by_arm in found.items():
        for arm, figures in by_arm.items():
            if len(figures.body_shares) > 1:
                parts = ", ".join(f"{size}: {share:.2f}" for size, share in figures.body_shares.items())
                out.append(f"- {name}, {arm}: {parts}")
    return out
