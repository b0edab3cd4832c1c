"""The share of each level that is admitted, at several loads: `python -m checks.sim.levels` prints the table.

The load has 40 % DEBUG, 40 % INFO, 15 % WARN and 5 % ERROR. The shipped bucket and leases run on virtual time.
"""

from collections.abc import Mapping
from typing import Final

from checks.sim.arms import ARMS
from checks.sim.processes import Load
from checks.sim.scenarios import constant
from checks.sim.timeline import Timeline
from checks.sim.world import Scenario, run
from pipeline.names import Level

MIX: Final = {Level.DEBUG: 0.4, Level.INFO: 0.4, Level.WARN: 0.15, Level.ERROR: 0.05}
RATE: Final = 1000.0  # events/s
_SECONDS: Final = 60.0
_CASES: Final = (  # times the rate, events of a body, processes
    *((times, 1, processes) for times in (2, 5, 10) for processes in (1, 2, 8)),
    *((times, body, 2) for times in (2, 5) for body in (5, 20, 100)),
)


def levels(
    times: float,
    *,
    bodies: Mapping[Level, int],
    processes: int,
    seconds: float,
    seed: int = 1,
    mix: Mapping[Level, float] = MIX,
    rate: float = RATE,
) -> Timeline:
    """Run clients that together send a multiple of the rate; they do not repeat refused bodies."""
    loads = [
        Load(constant(times * rate * share), body=bodies[level], level=level) for level, share in mix.items() if share
    ]
    scenario = Scenario(
        "levels",
        seconds,
        loads,
        capacity=constant(10 * rate),
        nominal=rate,
        processes=processes,
        settings={"admission_levels": True, "rate_min": rate},  # this rate from the first request on
        step_seconds=0.01,
    )
    return run(scenario, ARMS["static limit"], seed)


def admitted(timeline: Timeline) -> dict[Level, float]:
    """The admitted share of each level's offered events."""
    return {load.level: counts.admitted / counts.offered for load, counts in timeline.loads}


def rate_used(timeline: Timeline, seconds: float, rate: float = RATE) -> float:
    """The admitted events, as a share of the events that the rate allows."""
    return sum(counts.admitted for _, counts in timeline.loads) / (rate * seconds)


def main() -> None:
    """Print the table."""
    print("| load | events a body | processes | DEBUG | INFO | WARN | ERROR | rate used |")
    print("|---|---|---|---|---|---|---|---|")
    for times, body, processes in _CASES:
        found = levels(times, bodies=dict.fromkeys(Level, body), processes=processes, seconds=_SECONDS)
        parts = " | ".join(f"{part:.3f}" for part in admitted(found).values())
        print(f"| {times} x | {body} | {processes} | {parts} | {rate_used(found, _SECONDS):.3f} |")
        if found.violations.found:
            raise SystemExit(f"a bound did not hold: {found.violations.found[0]}")


if __name__ == "__main__":
    main()
