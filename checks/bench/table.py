"""The results of the benchmarks: one line per ratio, with its goal, its spread over the rounds, and the verdict."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound that a value must reach: from below (`at_least`) or from above.

    The value is the median of the rounds. With `share`, at least this share of the rounds must reach the bound.
    """

    bound: float
    at_least: bool
    share: float | None = None

    def is_met(self, value: float) -> bool:
        """Whether a value is on the right side of the bound, or equal to it."""
        return value >= self.bound if self.at_least else value <= self.bound

    def is_met_by(self, values: Sequence[float]) -> bool:
        """Whether the rounds reach the goal; there is at least one."""
        if self.share is None:
            return self.is_met(statistics.median(values))
        return sum(self.is_met(value) for value in values) >= self.share * len(values)

    def __str__(self) -> str:
        bound = f"{'>=' if self.at_least else '<='} {self.bound:g}"
        return bound if self.share is None else f"{bound} in {100 * self.share:g} % of the runs"


def at_least(bound: float) -> Goal:
    """A goal from below."""
    return Goal(bound, at_least=True)


def at_most(bound: float, *, share: float | None = None) -> Goal:
    """A goal from above."""
    return Goal(bound, at_least=False, share=share)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of the table, with a value for each round. The goal defines which of them must reach it.

    `goal` None: reported only. `problem` is the reason for a missing figure. `figures` are its inputs.
    """

    mark: str
    what: str
    values: Sequence[float] = ()
    goal: Goal | None = None
    unit: str = ""
    problem: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The median of the rounds; None if nothing was measured."""
        return statistics.median(self.values) if self.values else None

    @property
    def verdict(self) -> str:
        """`reached`, `not reached`, `reported` (no goal) or `not measured`."""
        value = self.value
        if value is None:
            return "not measured"
        if self.goal is None:
            return "reported"
        return "reached" if self.goal.is_met_by(self.values) else "not reached"

    def document(self) -> dict[str, Any]:
        """The line as JSON has it."""
        return {
            "mark": self.mark,
            "what": self.what,
            "value": self.value,
            "unit": self.unit or "ratio",
            "rounds": list(self.values),
            "goal": None if self.goal is None else str(self.goal),
            "verdict": self.verdict,
            "problem": self.problem or None,
            "figures": self.figures,
        }


def joined(lines: Sequence[Line]) -> list[Line]:
    """One line for all lines of the same figure, with the values and figures of each, in the order of the first ones.

    A line without a value counts only if no line has a value.
    """
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.mark, line.what), []).append(line)
    found = []
    for same in groups.values():
        group = [line for line in same if line.values] or same[:1]
        if len(group) == 1:
            found += group
            continue
        values = [value for line in group for value in line.values]
        figures = {key: [line.figures.get(key) for line in group] for key in group[0].figures}
        found.append(replace(group[0], values=values, figures=figures))
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Each round's ratio. Effects on a whole round (a busy neighbour, a warm cache) cancel out."""
    return [a / b for a, b in zip(above, below, strict=True)]


def number(value: float) -> str:
    """Three significant digits."""
    if value == float("inf"):
        return "never"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if size >= 1 or value == 0 else f"{value:.3f}"


def table(lines: Sequence[Line]) -> str:
    """All lines, for people."""
    rows = [("", "ratio or figure", "median", "lowest to highest", "goal", "")]
    for line in lines:
        value = line.value
        unit = f" {line.unit}" if line.unit else ""
        spread = f"{number(min(line.values))} to {number(max(line.values))}" if len(line.values) > 1 else ""
        rows.append(
            (
                line.mark,
                line.what,
                "-" if value is None else number(value) + unit,
                spread,
                "" if line.goal is None else str(line.goal),
                line.verdict + (f": {line.problem}" if line.problem else ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    left = (True, True, False, False, True)
    text = []
    for row in rows:
        cells = [row[i].ljust(widths[i]) if left[i] else row[i].rjust(widths[i]) for i in range(5)]
        text.append("  ".join([*cells, row[5]]).rstrip())
    return "\n".join(text)


def made_of(lines: Sequence[Line]) -> str:
    """The inputs of the ratios, for people: medians of rates, of CPU seconds and of wall time, each shown once."""
    told: dict[tuple[str, str], str] = {}
    for line in lines:
        groups = {name: found for name, found in line.figures.items() if isinstance(found, dict)}
        groups = groups or {line.what: line.figures}
        for name, figures in groups.items():
            medians = {key: _median(found) for key, found in figures.items()}
            words = [f"{key.replace('_', ' ')} {number(value)}" for key, value in medians.items() if value is not None]
            if words and ", ".join(words) not in told.values():
                told.setdefault((line.mark, name), ", ".join(words))
    width = max((len(name) for _, name in told), default=0)
    return "\n".join(f"{mark}  {name.ljust(width)}  {words}" for (mark, name), words in told.items())


def _median(found: object) -> float | None:
    """The median of a number or of numbers; None for anything else."""
    values = found if isinstance(found, list) else [found]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return statistics.median(numbers) if numbers and len(numbers) == len(values) else None


def document(lines: Sequence[Line], **about: Any) -> str:
    """All lines as JSON."""
    return json.dumps({**about, "lines": [line.document() for line in lines]}, indent=1)
