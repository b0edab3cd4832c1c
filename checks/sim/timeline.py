"""The record of one run, second by second, and its figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from checks.sim.bounds import Violation, Violations
from checks.sim.processes import Counts, Load

# An ideal admission keeps a queue of this length in front of the sink, and refuses the rest.
IDEAL_QUEUE_SECONDS = 2.0


@dataclass(slots=True)
class Second:
    """One second of a run. Events, or events/s."""

    offered: int = 0  # a body counts at each try
    admitted: int = 0
    stored: int = 0
    in_time: int = 0  # stored soon enough after they were accepted to count as goodput
    could: float = 0.0  # what the sink could have stored
    lag: int = 0  # at its end
    oldest_seconds: float = 0.0  # age of the oldest event that waited or was stored
    rate: float = 0.0  # published and effective, at its end
    rate_lowest: float = math.inf  # the lowest one that was in effect
    rate_age: float = 0.0  # seconds since the controller published, at most: an old rate decays
    mode: str = ""
    breaker: str = ""


@dataclass
class Timeline:
    """All seconds of one run, and its other counts."""

    seconds: list[Second] = field(default_factory=list)
    offered_before: int = 0
    admitted_before: int = 0
    violations: Violations = field(default_factory=lambda: Violations(0.0))
    bucket_used_max: float = 0.0  # over-admission as a share of what is allowed: burst and one body
    loads: list[tuple[Load, Counts]] = field(default_factory=list)
    counts_before: list[Counts] = field(default_factory=list)  # of each load, when the judged time began


def ideal(seconds: Sequence[Second]) -> list[float]:
    """The events an ideal admission would store in each second: it knows the sink, and keeps a short queue."""
    queue, stored = 0.0, []
    for second in seconds:
        queue += second.offered
        done = min(queue, second.could)
        queue = min(queue - done, IDEAL_QUEUE_SECONDS * second.could)
        stored.append(done)
    return stored


def goodput(timeline: Timeline, begin: int, end: int | None = None) -> float:
    """Events that were stored in time, as a share of the offered events that the sink could have stored."""
    seconds = timeline.seconds[begin:end]
    could = sum(ideal(timeline.seconds)[begin:end])
    return sum(second.in_time for second in seconds) / could if could else math.nan


def late_share(timeline: Timeline) -> float:
    """The share of the stored events that are too late to count as goodput."""
    stored = sum(second.stored for second in timeline.seconds)
    return 1 - sum(second.in_time for second in timeline.seconds) / stored if stored else 0.0


def oldest_seconds(timeline: Timeline, begin: int, end: int | None = None) -> float:
    """The greatest age of an event when it was stored, or while it waits."""
    return max((second.oldest_seconds for second in timeline.seconds[begin:end]), default=0.0)


def settle_seconds(
    timeline: Timeline, begin: int, end: int | None = None, *, tolerance: float = 0.10, mean_seconds: int = 1
) -> float:
    """Seconds from `begin` until the admitted rate stays within 10 % of what the sink could store; inf: it never does.

    `mean_seconds`: the rate is averaged over this time, for a noisy load or sink.
    """
    seconds = timeline.seconds[begin:end]
    last_outside = 0
    count = len(seconds) - mean_seconds + 1
    for number in range(count):
        part = seconds[number : number + mean_seconds]
        could = sum(second.could for second in part)
        if abs(sum(second.admitted for second in part) - could) > tolerance * could:
            last_outside = number + 1
    return math.inf if last_outside >= count else float(last_outside)


def recovery_seconds(timeline: Timeline, begin: int, end: int | None = None) -> float:
    """Seconds from `begin` until goodput over five seconds stays above 0.9 of the capacity for ten seconds."""
    seconds = timeline.seconds[begin:end]
    good = []
    for number in range(len(seconds) - 4):
        part = seconds[number : number + 5]
        good.append(sum(second.in_time for second in part) >= 0.9 * sum(second.could for second in part))
    for number in range(len(good) - 9):
        if all(good[number : number + 10]):
            return float(number)
    return math.inf


def body_shares(timeline: Timeline) -> dict[int, float]:
    """For each body size, its admitted events as a share of its max-min share of all admitted events."""
    offered = [counts.offered for _, counts in timeline.loads]
    total = sum(counts.admitted for _, counts in timeline.loads)
    fair = fair_share(offered, total)
    return {
        load.body: counts.admitted / min(fair, counts.offered) if counts.offered else math.nan
        for load, counts in timeline.loads
    }


def account_shares(timeline: Timeline) -> dict[str, float]:
    """For each account, the admitted share of its offered events since the judged time began."""
    return {
        load.account: (counts.admitted - before.admitted) / max(1, counts.offered - before.offered)
        for (load, counts), before in zip(timeline.loads, timeline.counts_before, strict=True)
    }


def rate_used(timeline: Timeline, begin: int) -> float:
    """The events admitted from second `begin` on, as a share of the rate."""
    seconds = timeline.seconds[begin:]
    return sum(second.admitted for second in seconds) / sum(second.rate for second in seconds)


def fair_share(offered: Sequence[float], total: float) -> float:
    """The max-min share: a client that offers less gets all of it, and the others divide the rest equally."""
    left = total
    for number, demand in enumerate(sorted(offered)):
        equal = left / (len(offered) - number)
        if demand > equal:
            return equal
        left -= demand
    return math.inf


def lines(timeline: Timeline, violations: Sequence[Violation]) -> list[str]:
    """The timeline as text: one line a second, and the violations below the second in which they happened."""
    out = ["second  offered admitted  stored  in time    could      lag   oldest       rate  mode      breaker"]
    for number, one in enumerate(timeline.seconds):
        out.append(
            f"{number:6}{one.offered:9,}{one.admitted:9,}{one.stored:8,}{one.in_time:9,}{one.could:9,.0f}"
            f"{one.lag:9,}{one.oldest_seconds:7.1f} s{one.rate:11,.1f}  {one.mode:10}{one.breaker}"
        )
        out += [_violation_line(found) for found in violations if number <= found.at < number + 1]
    out += [_violation_line(found) for found in violations if found.at >= len(timeline.seconds)]
    return out


def _violation_line(violation: Violation) -> str:
    return f"        !! {violation.at:.2f} s  bound {violation.bound!r}: {violation.what}"
