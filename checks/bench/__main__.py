"""Measures Sluice against baselines of the same run, and prints one table of ratios with their goals.

examples:
  ./bench.sh                        all goals, M8 at reduced size; about half an hour
  ./bench.sh --only M1,M3 --rounds 5
  ./bench.sh --only M7 --log kafka
  ./bench.sh --only M11             what a record costs in each protocol; five minutes
  ./bench.sh --only M5,M6,M9,M10 --arms drain-time --step-runs 5
  ./bench.sh --only M8 --full       the goal's own sizes: 5 million stored, a backlog of 2 million
  ./bench.sh --quick --only M3      seconds; to see that it works, its figures mean nothing
  .venv/bin/python -m checks.bench.backlog   a backlog on a running system
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from checks.bench.machine import LOAD_CORE, SERVER_CORE, Options
from checks.bench.table import Line, document, made_of, table

MARKS: Final = ("M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M9", "M10", "M11")
OVERLOAD_MARKS: Final = ("M5", "M6", "M9", "M10")  # on a whole system, under overload
# As in checks.bench.overload, which --help does not wait for.
ARM_WORDS: Final = ("off", "static", "bands", "bands-high", "drain-time")


def marks_of(text: str) -> list[str]:
    """The marks of a list like `M1,m3`, in order. Raises argparse.ArgumentTypeError."""
    wanted = {word.strip().upper() for word in text.split(",") if word.strip()}
    unknown = sorted(wanted - set(MARKS))
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'} is none of {', '.join(MARKS)}")
    return [mark for mark in MARKS if mark in wanted]


def arms_of(text: str) -> tuple[str, ...]:
    """The arms of a list like `bands,drain-time`. Raises argparse.ArgumentTypeError."""
    wanted = {word.strip() for word in text.split(",") if word.strip()}
    unknown = sorted(wanted - set(ARM_WORDS))
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'} is none of {', '.join(ARM_WORDS)}")
    return tuple(word for word in ARM_WORDS if word in wanted)


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError("from 1 to 100")
    return value


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./bench.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=marks_of, default=list(MARKS), metavar="M1,M3", help="run only these goals")
    parser.add_argument("--log", choices=("redis", "kafka"), default="redis", help="the event log (no effect on M3)")
    parser.add_argument(
        "--rounds", type=_count, metavar="N", help="rounds of M1, M2, M3, M4, M7, M8 and M11 (5; --quick 1)"
    )
    overload = parser.add_argument_group("M5, M6, M9, M10: a whole system under overload")
    overload.add_argument(
        "--arms", type=arms_of, default=(), metavar="bands,drain-time",
        help=f"ways to limit the rate, of {', '.join(ARM_WORDS)} (default: all except bands-high)",
    )  # fmt: skip
    overload.add_argument(
        "--overload-rounds", type=_count, default=1, metavar="N", help="rounds; each starts every system again (1)"
    )
    overload.add_argument(
        "--step-runs", type=_count, default=10, metavar="N", help="runs of M6 with drain_time, in all rounds (10)"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a short trial: its figures mean nothing")
    size.add_argument("--full", action="store_true", help="M8 with the sizes of the goal")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all figures, with those of each round")
    return parser.parse_args(words)


def _groups() -> list[tuple[set[str], Callable[[Options, set[str]], list[Line]]]]:
    # Imported late: --help should not wait for FastAPI and Celery.
    from checks.bench import decision, drain, edge, overload, protocols  # noqa: PLC0415

    return [
        (set(edge.MARKS), edge.run),
        ({"M3"}, decision.run),
        (set(OVERLOAD_MARKS), overload.run),
        ({"M7", "M8"}, drain.run),
        ({protocols.MARK}, protocols.run),
    ]


def measure(options: Options, only: Sequence[str]) -> list[Line]:
    """Run what is wanted; a measurement that fails is a line that says why."""
    lines: list[Line] = []
    for marks, run in _groups():
        wanted = marks & set(only)
        if not wanted:
            continue
        began = time.monotonic()
        try:
            lines += run(options, wanted)
        except Exception as error:  # the others are worth having
            lines += [Line(mark, "could not be measured", problem=repr(error)) for mark in MARKS if mark in wanted]
        print(
            f"{', '.join(mark for mark in MARKS if mark in wanted)}: {time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return sorted(lines, key=lambda line: MARKS.index(line.mark))


def main() -> int:
    """Measure, print, and return 0 if everything could be measured, whether its goal is reached or not."""
    arguments = arguments_of()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    options = Options(
        log=arguments.log, rounds=rounds, quick=arguments.quick, full=arguments.full, arms=arguments.arms,
        overload_rounds=arguments.overload_rounds, step_runs=arguments.step_runs,
    )  # fmt: skip
    load = os.getloadavg()[0]
    lines = measure(options, arguments.only)
    print(f"\nlog: {options.log}; medians of {rounds} rounds in turns", end="")
    print(f" (M5, M6, M9, M10: {options.overload_rounds}; a long backlog: once); ", end="")
    print(f"measured process on core {SERVER_CORE}, load and servers on core {LOAD_CORE}; ", end="")
    print(f"load average before {load:.1f}" + ("; --quick: these figures mean nothing" if options.quick else ""))
    print("\n" + table(lines))
    if words := made_of(lines):
        print("\nmade of (medians of the rounds; --json has each):\n\n" + words)
    if arguments.json:
        about = {"log": options.log, "rounds": rounds, "quick": options.quick, "full": options.full}
        about |= {"overload_rounds": options.overload_rounds, "arms": list(options.arms)}
        about |= {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        arguments.json.write_text(document(lines, **about, load_average_before=load) + "\n")
    return 1 if any(not line.values for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
