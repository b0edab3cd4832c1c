"""Measures Sluice against baselines of the same run, and prints one table of ratios with their goals."""

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from checks.bench.arguments import MARKS, OVERLOAD_MARKS, arguments_of
from checks.bench.machine import LOAD_CORE, SERVER_CORE, Options
from checks.bench.table import Line, document, made_of, table
from checks.testbed.machine import commit, processor


def _groups() -> list[tuple[set[str], Callable[[Options, set[str]], list[Line]]]]:
    # Imported late, so that a wrong mark is reported at once.
    from checks.bench import (  # noqa: PLC0415
        collector,
        costs,
        decision,
        drain,
        edge,
        kafka_clients,
        overload,
        protocols,
        sizes,
    )

    return [
        (set(edge.MARKS), edge.run),
        ({"M3"}, decision.run),
        (set(OVERLOAD_MARKS), overload.run),
        ({"M7", "M8"}, drain.run),
        ({protocols.MARK}, protocols.run),
        ({costs.MARK}, costs.run),
        ({sizes.MARK}, sizes.run),
        ({collector.MARK}, collector.run),
        ({kafka_clients.MARK}, kafka_clients.run),
    ]


def measure(options: Options, only: Sequence[str]) -> list[Line]:
    """Run the wanted measurements. If one fails, its line gives the reason."""
    lines: list[Line] = []
    for marks, run in _groups():
        wanted = marks & set(only)
        if not wanted:
            continue
        began = time.monotonic()
        try:
            lines += run(options, wanted)
        except Exception as error:  # the other results are useful
            lines += [Line(mark, "could not be measured", problem=repr(error)) for mark in MARKS if mark in wanted]
        print(
            f"{', '.join(mark for mark in MARKS if mark in wanted)}: {time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return sorted(lines, key=lambda line: MARKS.index(line.mark))


def main() -> int:
    """Measure and print. Returns 0 if everything could be measured, even if a goal is not reached."""
    arguments = arguments_of()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    options = Options(
        log=arguments.log, rounds=rounds, quick=arguments.quick, full=arguments.full, arms=arguments.arms,
        overload_rounds=arguments.overload_rounds, step_runs=arguments.step_runs, by_day=arguments.by_day,
    )  # fmt: skip
    load = os.getloadavg()[0]
    lines = measure(options, arguments.only)
    print(f"\nlog: {options.log}; medians of {rounds} rounds in turns", end="")
    print(f" (M5, M6, M9, M10: {options.overload_rounds}); ", end="")
    print(f"measured process on core {SERVER_CORE}, load and servers on core {LOAD_CORE} (M7, M8: both); ", end="")
    print(f"load average before {load:.1f}" + ("; --quick: these figures mean nothing" if options.quick else ""))
    print("\n" + table(lines))
    if words := made_of(lines):
        print("\nmade of (medians of the rounds; --json has each):\n\n" + words)
    if arguments.json:
        about = {"log": options.log, "rounds": rounds, "quick": options.quick, "full": options.full}
        about |= {"by_day": options.by_day}
        about |= {"overload_rounds": options.overload_rounds, "arms": list(options.arms)}
        about |= {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        about |= {"processor": processor(), "day": datetime.now(UTC).date().isoformat(), "commit": commit()}
        arguments.json.write_text(document(lines, **about, load_average_before=load) + "\n")
    return 1 if any(not line.values for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
