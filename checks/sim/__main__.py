"""The simulator's commands.

python -m checks.sim                                     the table of all scenarios
python -m checks.sim --plots FOLDER                      also a picture of each scenario
python -m checks.sim --scenario NAME --seed N            one run, second by second
python -m checks.sim --many 100000                       random scenarios, judged by the bounds
python -m checks.sim --scenario random --seed N          one of these again
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from checks.sim import random_scenario
from checks.sim.arms import ARMS, EXPERIMENTS
from checks.sim.bounds import Violation
from checks.sim.figures import Figures, figures_of, shares_table, table
from checks.sim.scenarios import SCENARIOS
from checks.sim.timeline import Timeline, lines
from checks.sim.world import run

# Random scenarios in one task of a process.
_CHUNK: Final = 25
_FAILING_SHOWN_MAX: Final = 20
_ALL: Final = ARMS | EXPERIMENTS


@dataclass(frozen=True, slots=True)
class Failing:
    """A random scenario in which a bound did not hold."""

    seed: int
    arm: str
    violation: Violation


def run_random(seed: int) -> tuple[Timeline, str, list[Violation]]:
    """The timeline, the control law, and the violations in the random scenario of a seed."""
    scenario, arm = random_scenario.random_scenario(seed)
    timeline = run(scenario, arm, seed)
    found = list(timeline.violations.found)
    unused = random_scenario.unused(scenario, timeline)
    return timeline, arm.name, [*found, unused] if unused is not None else found


def _run_chunk(seeds: range) -> list[Failing]:
    found = []
    for seed in seeds:
        _, arm, violations = run_random(seed)
        found += [Failing(seed, arm, violation) for violation in violations[:1]]
    return found


def _run_many(seeds: range, jobs: int) -> Iterator[list[Failing]]:
    chunks = [range(at, min(at + _CHUNK, seeds.stop)) for at in range(seeds.start, seeds.stop, _CHUNK)]
    if jobs == 1:
        yield from map(_run_chunk, chunks)
    else:
        with ProcessPoolExecutor(jobs) as executor:
            yield from executor.map(_run_chunk, chunks)


def many(seeds: range, jobs: int) -> int:
    """Run random scenarios; the exit status is 1 if a bound did not hold in one of them."""
    began, cpu, done, failing = time.monotonic(), time.process_time(), 0, 0
    for found in _run_many(seeds, jobs):
        done = min(done + _CHUNK, len(seeds))
        for one in found:
            failing += 1
            if failing <= _FAILING_SHOWN_MAX:
                print(f"seed {one.seed} ({one.arm}): bound {one.violation.bound!r}: {one.violation.what}")
                print(f"    python -m checks.sim --scenario random --seed {one.seed}", flush=True)
        if done % 1000 < _CHUNK:
            print(f"{done:,} of {len(seeds):,}, {failing} failing, {time.monotonic() - began:,.0f} s", flush=True)
    each = f", {1000 * (time.process_time() - cpu) / len(seeds):.1f} ms of CPU each" if jobs == 1 else ""
    print(f"{len(seeds):,} random scenarios from seed {seeds.start}: {failing} failing{each}")
    return 1 if failing else 0


def replay(name: str, arm: str, seed: int) -> int:
    """Print the timeline of one run; the exit status is 1 if a bound did not hold."""
    if name == random_scenario.NAME:
        timeline, arm, violations = run_random(seed)
    else:
        timeline = run(SCENARIOS[name], _ALL[arm], seed)
        violations = list(timeline.violations.found)
    print(f"{name}, seed {seed}, {arm}")
    print("\n".join(lines(timeline, violations)))
    return 1 if violations else 0


def compare(scenarios: Sequence[str], arms: Sequence[str], seeds: int, plots: Path | None) -> int:
    """Print the table; the exit status is 1 if a bound did not hold."""
    found: dict[str, dict[str, Figures]] = {}
    for name in scenarios:
        first: dict[str, Timeline] = {}
        for arm in arms:
            timelines = [run(SCENARIOS[name], _ALL[arm], seed) for seed in range(seeds)]
            first[arm] = timelines[0]
            found.setdefault(name, {})[arm] = figures_of(SCENARIOS[name], timelines)
            print(f"{name}, {arm}: {found[name][arm].cell()}", file=sys.stderr, flush=True)
        if plots is not None:
            from checks.sim.plots import draw  # noqa: PLC0415  # only this needs matplotlib

            draw(name, first, plots)
    print("\n".join([*table(found), "", *shares_table(found)]))
    return 1 if any(figures.violations for by_arm in found.values() for figures in by_arm.values()) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m checks.sim", description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS, random_scenario.NAME], metavar="NAME")
    parser.add_argument("--arm", action="append", choices=list(_ALL), metavar="NAME", help=", ".join(_ALL))
    parser.add_argument("--seed", type=int, help="one run, second by second")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each scenario and control law (3)")
    parser.add_argument("--many", type=int, metavar="N", help="run N random scenarios")
    parser.add_argument("--first", type=int, default=0, help="the first seed of --many (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes for --many (1)")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write a picture of each scenario")
    parser.add_argument("--list", action="store_true", help="name the scenarios and control laws")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(["scenarios:", *SCENARIOS, "", "control laws:", *_ALL]))
        return 0
    if options.many is not None:
        return many(range(options.first, options.first + options.many), options.jobs)
    arms = options.arm or list(ARMS)
    if options.seed is not None:
        if not options.scenario or len(options.scenario) != 1:
            parser.error("--seed needs one --scenario")
        return replay(options.scenario[0], arms[0], options.seed)
    scenarios = options.scenario or list(SCENARIOS)
    if random_scenario.NAME in scenarios:
        parser.error("random scenarios: --many N, or --seed N")
    return compare(scenarios, arms, options.seeds, options.plots)


if __name__ == "__main__":
    sys.exit(main())
