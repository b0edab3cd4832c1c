"""The results as a table in Markdown, and as an exit status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from checks.clients.catalog import Client
from checks.clients.judge import May, Outcome, Situation, judge

_HEAD = (
    *("client", "version", "protocol", "sent", "stored", "doubled"),
    *(f"after {one}" for one in Situation),
    "verdict",
)


@dataclass
class Result:
    """The result of one client. `skipped`: why it was not tried."""

    client: Client
    version: str = ""
    folder: Path | None = None  # of its kit, installed
    outcomes: Mapping[Situation, Outcome] = field(default_factory=dict)
    skipped: str = ""

    @property
    def problems(self) -> list[str]:
        """The client's deviations from its page, with the situation."""
        return [
            f"{situation}: {problem}"
            for situation, outcome in self.outcomes.items()
            for problem in judge(outcome, self.client.may(situation))
        ]

    @property
    def is_kept(self) -> bool:
        """Whether the client was tried and kept its page's promise."""
        return not self.skipped and not self.problems

    @property
    def verdict(self) -> str:
        """One or more words for the table."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        if self.problems:
            return "BROKEN"
        lost = any(outcome.lost for outcome in self.outcomes.values())
        doubled = any(outcome.doubled for outcome in self.outcomes.values())
        words = [word for word, is_so in ((May.LOSE, lost), (May.DOUBLE, doubled)) if is_so]
        return f"{' and '.join(words)}, by its own design" if words else "kept"


def as_markdown(results: Sequence[Result]) -> str:
    """The table, followed by all problems."""
    lines = [_row(_HEAD), _row(["---"] * 3 + ["--:"] * 3 + ["---"] * (len(Situation) + 1))]
    lines += [_row(_cells(result)) for result in results]
    lines += [f"\n{result.client.name}: BROKEN: {problem}" for result in results for problem in result.problems]
    return "\n".join(lines)


def exit_status(results: Sequence[Result], *, named: bool) -> int:
    """0: every client that could be tried kept its promise; 1: one did not; 2: nothing is proven.

    `named`: the user named these clients, so none may be skipped.
    """
    if any(result.problems for result in results):
        return 1
    tried = [result for result in results if not result.skipped]
    return 2 if not tried or (named and len(tried) < len(results)) else 0


def _cells(result: Result) -> list[str]:
    client, outcomes = result.client, result.outcomes
    if result.skipped:
        return [client.title, result.version, client.form, *["-"] * (3 + len(Situation)), result.verdict]
    rows = [outcome.rows for outcome in outcomes.values()]
    return [
        client.title,
        result.version,
        client.form,
        f"{sum(outcome.sent for outcome in outcomes.values()):,}",
        f"{sum(len(one) for one in rows):,}",
        f"{sum(count - 1 for one in rows for count in one.values()):,}",
        *(_cell(outcomes.get(situation), client.may(situation)) for situation in Situation),
        result.verdict,
    ]


def _cell(outcome: Outcome | None, may: frozenset[May]) -> str:
    if outcome is None:
        return "-"
    if judge(outcome, may):
        return "BROKEN"
    words = [f"loses {len(outcome.lost):,}"] if outcome.lost else []
    words += [f"doubles {len(outcome.doubled):,}"] if outcome.doubled else []
    return " and ".join(words) or "all once"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
