"""The report of a run: Markdown for people, JSON for programs."""

import json
from pathlib import Path
from typing import Any

from checks.hostile.run import Result


def as_json(result: Result) -> dict[str, Any]:
    """All results of a run."""
    plan = result.plan
    return {
        "seed": plan.seed,
        "verdict": "held" if result.is_good else "broken",
        "seconds": round(result.seconds, 1),
        "asked": {
            "parts": list(plan.parts),
            "cases": plan.cases,
            "fuzz_seconds": plan.fuzz_seconds,
            "attack_seconds": plan.attack_seconds,
            "processes": plan.processes,
        },
        "parts": [
            {
                "name": part.name,
                "verdict": part.verdict,
                "seconds": round(part.seconds, 1),
                "skipped": part.skipped,
                "problems": part.problems,
                **part.figures,
            }
            for part in result.parts
        ],
    }


def as_markdown(result: Result) -> str:
    """The verdict, a line for each part, and the details of each part."""
    lines = [
        f"## Hostile input, seed {result.plan.seed}: {'all of it held' if result.is_good else 'BROKEN'}",
        "",
        f"{result.seconds / 60:.0f} minutes.",
        "",
        "| part | verdict | took |",
        "|---|---|--:|",
        *(f"| {part.name} | {part.verdict} | {part.seconds:.0f} s |" for part in result.parts),
    ]
    for part in result.parts:
        lines += ["", f"**{part.name}**", "", *(f"- {line}" for line in part.lines)]
        if part.skipped is not None:
            lines.append(f"- skipped: {part.skipped}")
        lines += [f"- BROKEN: {problem}" for problem in part.problems]
    return "\n".join([*lines, ""])


def write(result: Result, folder: Path) -> Path:
    """Write both forms; returns the Markdown's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"hostile-{result.plan.seed}.md"
    path.write_text(as_markdown(result))
    path.with_suffix(".json").write_text(json.dumps(as_json(result), indent=1) + "\n")
    return path
