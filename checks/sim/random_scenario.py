"""A random scenario, made from its seed: a mix of all conditions of the other scenarios, in a short time.

Only its bounds are judged. Its last seconds have no faults, and a constant load and capacity.
"""

import math
import random
from typing import Final

from checks.sim.arms import ARMS
from checks.sim.bounds import Violation
from checks.sim.processes import AfterRefusal, Load
from checks.sim.scenarios import Of, Shares, steps
from checks.sim.timeline import Timeline
from checks.sim.world import FAULTS, Arm, Fault, Scenario
from pipeline.names import Mode

NAME: Final = "random"
_SECONDS: Final = 12.0
_QUIET_SECONDS: Final = 4.0
_STEP_SECONDS: Final = 0.05
_FAULTS_MAX: Final = 3
# The size of bodies is chosen so that one run offers about this many: each costs the same time.
_BODIES: Final = 150
# At the end, this share of the events that the rate allows must be admitted. Two more bodies may be missing, and one
# in the lease of each process.
_USED_SHARE: Final = 0.85


def random_scenario(seed: int) -> tuple[Scenario, Arm]:
    """The scenario and the control law of a seed."""
    rng = random.Random(seed)
    sink = round(10 ** rng.uniform(2.0, 4.3))
    times = rng.choice((0.3, 0.8, 1.0, 1.5, 2.0, 5.0, 10.0))
    partitions = rng.choice((1, 2, 4, 4, 8))
    period = rng.choice((0.5, 1.0, 2.0, 5.0))
    rate_min = rng.choice((1.0, 10.0, 100.0))
    scenario = Scenario(
        f"{NAME} {seed}",
        _SECONDS,
        _loads(rng, times * sink),
        _wandering(rng, sink),
        shares=_shares(rng, partitions),
        partitions=partitions,
        processes=rng.choice((1, 1, 2, 3, 8)),
        batch_max=rng.choice((100, 500, 5000)),
        nominal=sink,
        noise=rng.choice(((0.0, 1.0), (0.0, 1.0), (0.2, 3.0))),
        faults=_faults(rng, sink),
        settings={
            "rate_min": rate_min,
            "regulate_seconds": period,
            "rate_hold_seconds": period * rng.choice((1.5, 3.0, 6.0)),
            "rate_halving_seconds": rng.choice((0.5, 1.0, 5.0)),
            "burst_seconds": rng.choice((0.3, 1.0, 1.0, 5.0)),
            "lease_seconds": rng.choice((0.03, 0.1, 0.3)),
            "sink_call_seconds_max": rng.choice((0.2, 1.0, 2.0)),
            "probe_seconds": rng.choice((0.5, 2.0)),
        },
        judged_from=_SECONDS - _QUIET_SECONDS,
        step_seconds=_STEP_SECONDS,
    )
    return scenario, rng.choice(tuple(ARMS.values()))


def _loads(rng: random.Random, rate: float) -> list[Load]:
    parts = [rng.random() + 0.1 for _ in range(rng.choice((1, 1, 2, 3)))]
    body = max(1, round(rate * _SECONDS / _BODIES))
    loads = []
    for part in parts:
        offered = rate * part / sum(parts)
        begins = rng.choice((0.0, 0.0, rng.uniform(0, _SECONDS - _QUIET_SECONDS)))
        loads.append(
            Load(
                lambda at, offered=offered, begins=begins: offered if at >= begins else offered / 20,  # type: ignore[misc]
                body=min(1000, max(1, round(body * rng.choice((0.3, 1.0, 1.0, 3.0))))),
                after_refusal=rng.choice(tuple(AfterRefusal)),
                is_even=rng.random() < 0.3,
            )
        )
    return loads


def _wandering(rng: random.Random, sink: float) -> Of:
    """A capacity that changes at most three times before the quiet seconds."""
    changes = [(0.0, float(sink))]
    for _ in range(rng.randrange(4)):
        changes.append((rng.uniform(0, _SECONDS - _QUIET_SECONDS), sink * rng.choice((0.0, 0.3, 0.5, 2.0))))
    changes.append((_SECONDS - _QUIET_SECONDS, float(sink)))
    return steps(*sorted(changes))


def _shares(rng: random.Random, partitions: int) -> Shares | None:
    if rng.random() < 0.5:
        return None
    parts = [rng.random() ** 2 + 0.02 for _ in range(partitions)]
    shares = tuple(part / sum(parts) for part in parts)
    return lambda _: shares


def _faults(rng: random.Random, sink: float) -> list[Fault]:
    faults = []
    for _ in range(rng.randrange(_FAULTS_MAX + 1)):
        begin = rng.uniform(0, _SECONDS - _QUIET_SECONDS)
        end = rng.uniform(begin, _SECONDS - _QUIET_SECONDS)
        faults.append(
            Fault(rng.choice(tuple(FAULTS)), begin, end, value=float(round(sink * rng.uniform(0.01, 5.0))) + 1)
        )
    return faults


def unused(scenario: Scenario, timeline: Timeline) -> Violation | None:
    """Whether the last, quiet seconds admitted too little: clients are refused although the bucket has tokens.

    Not judged while the rate decays in the bucket: the lag is unknown, or no rate is published.
    """
    count = int(_QUIET_SECONDS / 2)
    tail, since = timeline.seconds[-count:], timeline.seconds[-count - 1 :]  # each second records the mode at its end
    hold_seconds = scenario.settings["rate_hold_seconds"]
    # Without a mode, the store held no rate at the end of that second: the fault took its state.
    if any(second.mode in ("", Mode.UNKNOWN) or second.rate_age > hold_seconds for second in since):
        return None
    if any(math.isinf(second.rate_lowest) for second in since):  # no rate was published yet
        return None
    rate = min(second.rate_lowest for second in since)
    offered = sum(second.offered for second in tail)
    admitted = sum(second.admitted for second in tail)
    body = max(load.body for load in scenario.loads)
    due = sum(min(second.offered, rate) for second in tail)
    if admitted >= _USED_SHARE * due - (2 + scenario.processes) * body:
        return None
    return Violation(scenario.seconds, "unused", f"{admitted} events admitted of {offered}, at a rate of {rate:g}/s")
