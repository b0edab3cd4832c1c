"""`./hostile.sh`: hostile input at scale, and the verdict. Exit status: 0 held, 1 broken, 2 could not run."""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from checks.hostile import fuzzing
from checks.hostile.arguments import PARTS, Plan, parse
from checks.hostile.report import as_markdown, write
from checks.hostile.run import run
from stack.servers import ServerError

_SHORT = {"cases": 600, "fuzz_seconds": 30, "attack_seconds": 60.0}


def plan_of(asked: argparse.Namespace) -> Plan:
    """The plan that the arguments request. Raises ValueError if they make no sense."""
    parts = tuple(name for name in asked.only.split(",") if name) or PARTS
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    plan = Plan(int(time.time()) if asked.seed is None else asked.seed, parts, processes=asked.processes)
    if asked.short:
        plan = replace(plan, **_SHORT)  # type: ignore[arg-type]  # each its own type
    given = {name: getattr(asked, name) for name in _SHORT if getattr(asked, name) is not None}
    plan = replace(plan, **given)
    if min(plan.cases, plan.fuzz_seconds, plan.attack_seconds, plan.processes) < 1 or plan.seed < 0:
        raise ValueError("counts and seconds are at least 1, a seed at least 0")
    return plan


def main(words: list[str]) -> int:
    """Run, and write the report. The exit status gives the result."""
    asked = parse(words)
    try:
        plan = plan_of(asked)
    except ValueError as error:
        print(f"hostile: {error}", file=sys.stderr)
        return 2
    # Both end it in order, servers included; programs in a shell's background ignore Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    missing = fuzzing.missing()
    if missing is not None and "fuzz" in plan.parts and (asked.only or asked.keep_corpus):
        print(f"hostile: the fuzzer was requested, and can't run: {missing}", file=sys.stderr)
        return 2
    print(f"again with: {again(plan)}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="sluice-hostile-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user and needs to enter it
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    try:
        result = run(plan, folder, tell)
        if asked.keep_corpus and "fuzz" in plan.parts and result.is_good:
            tell(f"corpus: {fuzzing.keep(folder / 'fuzz' / 'corpus', folder / 'fuzz')} inputs are kept")
    except KeyboardInterrupt:
        print("hostile: stopped", file=sys.stderr)
        return 2
    except (ServerError, AssertionError, RuntimeError, OSError) as error:
        print(f"hostile: could not run: {error}; its files are in {folder}", file=sys.stderr)
        return 2
    path = write(result, asked.out)
    print(as_markdown(result))
    print(f"written to {path}")
    if result.is_good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"logs, data and wrong inputs are kept in {folder}")
    return 0 if result.is_good else 1


def again(plan: Plan) -> str:
    """The command that repeats the run."""
    words = [
        f"./hostile.sh --seed {plan.seed} --cases {plan.cases} --fuzz-seconds {plan.fuzz_seconds}",
        f"--attack-seconds {plan.attack_seconds:g} --processes {plan.processes}",
    ]
    if plan.parts != PARTS:
        words.append(f"--only {','.join(plan.parts)}")
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
