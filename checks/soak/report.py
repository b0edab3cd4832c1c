"""The report of a run: Markdown for people, JSON for programs."""

import json
from pathlib import Path
from typing import Any

from checks.soak.run import Done, Result, Verdict

_TITLES = {
    Verdict.KEPT: "every promise was kept",
    Verdict.BROKEN: "BROKEN",
    Verdict.NOT_PROVEN: "NOT PROVEN",
}


def as_json(result: Result) -> dict[str, Any]:
    """All data of a run except its history."""
    return {
        "log": result.options.log,
        "seed": result.options.seed,
        "trims": result.options.trims,
        "replicated": result.options.replicated,
        "by_day": result.options.by_day,
        "faults": len(result.plan),
        "expected": result.expected,
        "hits": result.hits,
        "verdict": result.verdict.value,
        "not_proven": result.not_proven,
        "violations": result.violations,
        "seconds": round(result.seconds, 1),
        "outcomes": result.outcomes,
        "statuses": result.statuses,
        "found": result.found,
        "lost_by_the_machine": result.lost_acked,
        "drained_seconds": result.recovery.seconds,
        "unplanned_ends": result.unplanned,
        "schedule": [str(planned) for planned in result.plan],
        "done": [
            {
                "fault": one.planned.name,
                "at": round(one.at, 1),
                "hit": one.effect.hit,
                "effect": one.effect.words,
                "seconds": round(one.seconds, 2),
                "recovered_seconds": None if one.recovered_seconds is None else round(one.recovered_seconds, 2),
                "skipped": one.skipped,
                "impossible": one.impossible,
                "note": one.note,
            }
            for one in result.done
        ],
    }


def as_markdown(result: Result) -> str:
    """The verdict, the figures, and a line for each fault."""
    outcomes = result.outcomes
    lines = [
        f"## {len(result.plan)} faults on {_log_words(result)}, seed {result.options.seed}: {_TITLES[result.verdict]}",
        "",
        f"{result.found.get('events sent', 0):,} events in {sum(result.statuses.values()):,} requests within "
        f"{result.seconds:.0f} s: {outcomes.get('acked', 0):,} acknowledged, {outcomes.get('refused', 0):,} refused, "
        f"{outcomes.get('indeterminate', 0):,} indeterminate. {result.found.get('rows', 0):,} rows, "
        f"{result.found.get('dead letters', 0):,} dead letters, {result.found.get('records in the log', 0):,} records "
        f"in the log. {_hits_words(result)} {_drained_words(result)}",
    ]
    if result.lost:
        lines += [
            "",
            f"{len(result.lost)} records were lost with a log's tail, or since it went back in time (by the fault "
            f"itself); {result.lost_acked} of them were acknowledged and not stored yet.",
        ]
    if result.unplanned:
        lines += ["", "Ended by themselves, and were started again: " + ", ".join(result.unplanned) + "."]
    if result.violations:
        lines += ["", "Violations:", *(f"- {violation}" for violation in result.violations)]
    if result.not_proven:
        lines += [
            "",
            "Not proven, since less was tried than was asked for:",
            *(f"- {why}" for why in result.not_proven),
        ]
    lines += [
        "",
        "Answers: " + ", ".join(f"{count:,} times {name}" for name, count in sorted(result.statuses.items())) + ".",
    ]
    return "\n".join([*lines, "", *_table(result.done), ""])


def _log_words(result: Result) -> str:
    if result.options.log == "kafka":
        return "three brokers of Kafka" if result.options.replicated else "Kafka"
    copies = " with a replica" if result.options.replicated else ""
    return f"Redis Streams{copies} ({'trimmed' if result.options.trims else 'never trimmed'})"


def _hits_words(result: Result) -> str:
    left_out = len(result.plan) - result.expected
    more = f"; {left_out} more were left out, since this machine can't make them" if left_out else ""
    return f"{result.hits} of {result.expected} faults took effect{more}."


def _drained_words(result: Result) -> str:
    if result.recovery.seconds is None:
        return "It was not drained at the end."
    return f"Drained {result.recovery.seconds:.1f} s after the last event."


def _table(done: list[Done]) -> list[str]:
    """One line for each kind of fault, with the effect of its last occurrence."""
    kinds: dict[str, list[Done]] = {}
    for one in done:
        kinds.setdefault(one.planned.name, []).append(one)
    lines = ["| fault | times | took effect | outage | well again after | for example |", "|---|--:|--:|--:|--:|---|"]
    for name, some in sorted(kinds.items()):
        skipped = [one.skipped for one in some if one.skipped]
        made = [one for one in some if not one.skipped]
        if not made:
            lines.append(f"| {name} | {len(some)} | 0 | | | {_cell(skipped[0])} |")
            continue
        hits = [one for one in made if one.effect.hit]
        example = (hits or made)[-1]
        notes = f" ({example.note})" if example.note else ""
        lines.append(
            f"| {name} | {len(some)} | {len(hits)} | {_range([one.seconds for one in made])} | "
            f"{_range([one.recovered_seconds for one in made if one.recovered_seconds is not None])} | "
            f"{_cell(example.effect.words + notes + (f'; {len(skipped)} {skipped[-1]}' if skipped else ''))} |"
        )
    return lines


def _cell(words: str) -> str:
    """Words as a cell of a table. Messages of servers have line breaks."""
    return " ".join(words.replace("|", r"\|").split())


def _range(seconds: list[float]) -> str:
    if not seconds:
        return ""
    low, high = min(seconds), max(seconds)
    return f"{low:.1f} s" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f} s"


def write(result: Result, folder: Path) -> Path:
    """Write both forms; returns the Markdown's path."""
    folder.mkdir(parents=True, exist_ok=True)
    log = f"{result.options.log}{'-replicated' if result.options.replicated else ''}"
    name = f"{log}-{len(result.plan)}-{result.options.seed}"
    (folder / f"{name}.json").write_text(json.dumps(as_json(result), indent=1) + "\n")
    path = folder / f"{name}.md"
    path.write_text(as_markdown(result))
    return path
