"""Judges the recorded run: each phase by its expectations, and the whole by the stored events."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from checks.loadtest.scenario import DEGRADED_ABOVE_SECONDS, TARGET_SECONDS, Limits, Phase
from pipeline.policies.drain_time import START_RATE

P99_ADMITTED_SECONDS_MAX: Final = 1.0  # an append waits for a disk; a second is its time-out
P99_REFUSED_SECONDS_MAX: Final = 0.5
RATE_TOLERANCE: Final = 0.15  # of the admitted rate over a phase, which begins with a full bucket
CAPACITY_TOLERANCE: Final = 0.15  # of PostgreSQL's rate, against the one that drain_time measures
PROBE_SECONDS_MAX: Final = 4.0  # until drain_time finds a rate above its first one
LATE_SECONDS_MAX: Final = 0.5  # the generator may be this far behind its own schedule


@dataclass(frozen=True)
class Request:
    """One request: its due time (epoch s), number of events, status (0: no answer) and duration."""

    due: float
    events: int
    status: int
    seconds: float


@dataclass(frozen=True)
class Sample:
    """The health answer at one moment."""

    at: float
    status: str
    lag: int | None
    rate: float
    breaker: str
    consumption: str
    drain: float | None = None  # s; of the worst partition, measured by drain_time; None: it does not run
    capacity: float | None = None  # events/s that PostgreSQL stores, measured by drain_time
    shadow: float | None = None  # events/s that the shadow policy would admit at most


@dataclass
class Figures:
    """The results of a phase, in events unless a field has another unit."""

    phase: Phase
    begin: float
    end: float
    offered: int = 0
    admitted: int = 0
    refused: int = 0
    other: int = 0  # requests with another answer, or none
    server_errors: int = 0  # requests answered with 5xx
    p50_admitted: float = 0.0
    p99_admitted: float = 0.0
    p50_refused: float = 0.0
    p99_refused: float = 0.0
    lag_max: int = 0
    drain_max: float | None = None  # s; None: drain_time was not seen
    rate_lowest: float = 0.0
    last: Sample | None = None
    states: list[str] = field(default_factory=list)  # of health, in the order of their first appearance
    breakers: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Stored:
    """The rows of this run in PostgreSQL; `checked` is False if it could not be queried."""

    checked: bool
    acknowledged: int = 0
    lost: int = 0  # acknowledged and not stored
    unasked: int = 0  # rows of this run that were refused, or never sent
    twice: int = 0  # rows beyond the first of the same event, by its content
    why_not: str = "give DATABASE_URL"  # if it is not checked


@dataclass
class Asked:
    """The ids of a run's events: all sent ones, and among them the acknowledged and the refused ones."""

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)


def compare(asked: Asked, rows: Iterable[tuple[str, str]]) -> Stored:
    """Compare the sent events with the rows of the run, each as (event id, message).

    Each event has its id in its message too. The id is the key of the table, so it cannot be there twice;
    the message shows an event that was stored again under another id.
    """
    counts: Counter[str] = Counter()
    whole: set[str] = set()  # ids whose row has the content that was sent with this id
    for event_id, message in rows:
        counts[message] += 1
        if event_id == message:
            whole.add(event_id)
    allowed = asked.sent - asked.refused
    return Stored(
        checked=True,
        acknowledged=len(asked.acknowledged),
        lost=len(asked.acknowledged - whole),
        unasked=sum(count for message, count in counts.items() if message not in allowed),
        twice=sum(count - 1 for count in counts.values()),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all values does not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def figures(phase: Phase, begin: float, end: float, requests: Sequence[Request], samples: Sequence[Sample]) -> Figures:
    """Sum a phase up; requests count to the phase in which they were due."""
    mine = [request for request in requests if begin <= request.due < end]
    seen = [sample for sample in samples if begin <= sample.at < end]
    admitted = [request for request in mine if request.status == 202]
    refused = [request for request in mine if request.status == 429]
    found = Figures(phase, begin, end)
    found.offered = sum(request.events for request in mine)
    found.admitted = sum(request.events for request in admitted)
    found.refused = sum(request.events for request in refused)
    found.other = len(mine) - len(admitted) - len(refused)
    found.server_errors = sum(request.status >= 500 for request in mine)
    found.p50_admitted, found.p99_admitted = (percentile([r.seconds for r in admitted], s) for s in (0.5, 0.99))
    found.p50_refused, found.p99_refused = (percentile([r.seconds for r in refused], s) for s in (0.5, 0.99))
    found.lag_max = max((sample.lag or 0 for sample in seen), default=0)
    found.drain_max = max((sample.drain for sample in seen if sample.drain is not None), default=None)
    found.rate_lowest = min((sample.rate for sample in seen), default=0.0)
    found.last = seen[-1] if seen else None
    found.states = list(dict.fromkeys(sample.status for sample in seen))
    found.breakers = list(dict.fromkeys(sample.breaker for sample in seen))
    return found


def judge(found: Figures, limits: Limits, *, late_seconds: float) -> list[str]:
    """The unmet expectations of a phase, as text."""
    problems = []
    if late_seconds > LATE_SECONDS_MAX:
        problems.append(f"generator too slow: a request was begun {late_seconds:.1f} s late, so this says nothing")
    if found.offered == 0 or found.last is None:
        return [*problems, "nothing was offered, or the system was never seen"]
    if found.other:
        problems.append(f"{found.other} requests got another answer than 202 or 429, or none")
    if found.admitted and found.p99_admitted > P99_ADMITTED_SECONDS_MAX:
        problems.append(f"p99 of admitted requests is {found.p99_admitted:.2f} s, above {P99_ADMITTED_SECONDS_MAX} s")
    if found.refused and found.p99_refused > P99_REFUSED_SECONDS_MAX:
        problems.append(f"p99 of refused requests is {found.p99_refused:.2f} s, above {P99_REFUSED_SECONDS_MAX} s")
    return problems + (_by_drain(found, limits) if limits.follows_drain else _by_lag(found, limits))


def _by_drain(found: Figures, limits: Limits) -> list[str]:
    """Under `drain_time`: the rate is PostgreSQL's speed, and the time to drain is near the target."""
    seconds = found.end - found.begin
    rate = found.admitted / seconds
    last = found.last
    assert last is not None
    match found.phase.name:
        case "normal":
            # The policy has a first rate of its own, and refuses events until it finds a higher one.
            missing = max(0.0, found.offered / seconds - START_RATE) * PROBE_SECONDS_MAX
            return [f"{found.refused} events were refused"] if found.refused > 0.01 * found.offered + missing else []
        case "1.5 times the rate" | "5 times the rate":
            problems = []
            if rate < (1 - RATE_TOLERANCE) * limits.rate_max:
                problems.append(f"{rate:,.0f} events/s were admitted, less than {limits.rate_max:,.0f}")
            return problems if limits.sink is None else problems + _at_the_limit(found, limits, rate, seconds)
        case "backlog":
            problems = [] if "degraded" in found.states else ["was never degraded"]
            if found.drain_max is None or found.drain_max <= DEGRADED_ABOVE_SECONDS:
                problems.append(f"the drain time came to {_seconds(found.drain_max)} only")
            if found.rate_lowest > limits.rate_min * 1.01:
                problems.append(f"the rate fell to {found.rate_lowest:,.0f}/s only, not to {limits.rate_min:,.0f}")
            return problems
        case "PostgreSQL outage":
            return _in_an_outage(found, limits)
        case _:  # catching up, recovery
            problems = [] if last.breaker == "closed" else [f"the breaker is {last.breaker} at the end"]
            if last.drain is None or last.drain > TARGET_SECONDS:
                problems.append(f"the drain time is {_seconds(last.drain)} at the end, above {TARGET_SECONDS:g} s")
            if last.rate < (1 - CAPACITY_TOLERANCE) * limits.rate_max:
                problems.append(f"the rate is {last.rate:,.0f}/s at the end, not about {limits.rate_max:,.0f}")
            return problems


def _at_the_limit(found: Figures, limits: Limits, rate: float, seconds: float) -> list[str]:
    """The offered rate is above the known rate at which PostgreSQL stores."""
    last = found.last
    assert last is not None
    problems = []
    # On top: a full bucket, and the events that wait in the log from then on.
    highest = limits.rate_max * (1 + (1 + TARGET_SECONDS) / seconds)
    if rate > (1 + RATE_TOLERANCE) * highest:
        problems.append(f"{rate:,.0f} events/s were admitted, more than about {limits.rate_max:,.0f}")
    if found.refused == 0:
        problems.append("nothing was refused")
    if found.drain_max is None or found.drain_max > DEGRADED_ABOVE_SECONDS:
        problems.append(f"the drain time came to {_seconds(found.drain_max)}, above {DEGRADED_ABOVE_SECONDS:g} s")
    if last.capacity is None or abs(last.capacity - limits.rate_max) > CAPACITY_TOLERANCE * limits.rate_max:
        measured = "unknown" if last.capacity is None else f"{last.capacity:,.0f}/s"
        problems.append(f"the capacity is {measured} at the end, not about {limits.rate_max:,.0f}/s")
    return problems


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} s"


def _in_an_outage(found: Figures, limits: Limits) -> list[str]:
    last = found.last
    assert last is not None
    problems = [] if "open" in found.breakers else ["the breaker did not open"]
    if last.consumption != "paused":
        problems.append("consumption was not paused")
    if last.rate > limits.rate_min * 1.01:
        problems.append(f"the rate was {last.rate:,.0f}/s at the end, not at its lowest")
    return problems


def _by_lag(found: Figures, limits: Limits) -> list[str]:
    seconds = found.end - found.begin
    rate = found.admitted / seconds
    last = found.last
    assert last is not None
    match found.phase.name:
        case "normal":
            return [f"{found.refused} events were refused"] if found.refused > 0.01 * found.offered else []
        case "1.5 times the rate" | "5 times the rate":
            # The bucket is full at first: a second's worth on top.
            expected = limits.rate_max * (1 + 1 / seconds)
            problems = []
            if not (1 - RATE_TOLERANCE) * limits.rate_max <= rate <= (1 + RATE_TOLERANCE) * expected:
                problems.append(f"{rate:,.0f} events/s were admitted, not about {limits.rate_max:,.0f}")
            if found.refused == 0:
                problems.append("nothing was refused")
            return problems
        case "backlog":
            problems = [f"was never {state}" for state in ("degraded", "critical") if state not in found.states]
            if found.rate_lowest > limits.rate_min * 1.01:
                problems.append(f"the rate fell to {found.rate_lowest:,.0f}/s only, not to {limits.rate_min:,.0f}")
            return problems
        case "PostgreSQL outage":
            return _in_an_outage(found, limits)
        case _:  # catching up, recovery
            assert limits.lag_degraded is not None  # only a system of our own has these phases
            problems = [] if last.breaker == "closed" else [f"the breaker is {last.breaker} at the end"]
            if last.lag is None or last.lag >= limits.lag_degraded:
                problems.append(f"the lag is {last.lag} at the end")
            if last.rate < limits.rate_max * 0.99:
                problems.append(f"the rate is {last.rate:,.0f}/s at the end, not {limits.rate_max:,.0f}")
            return problems


def judge_stored(stored: Stored) -> list[str]:
    """The rules that the whole test broke: each acknowledged event is stored once, and no other event is stored."""
    problems = []
    if stored.lost:
        problems.append(f"{stored.lost} of {stored.acknowledged} acknowledged events are not stored")
    if stored.unasked:
        problems.append(f"{stored.unasked} events are stored that were refused or never sent")
    if stored.twice:
        problems.append(f"{stored.twice} events are stored twice")
    return problems
