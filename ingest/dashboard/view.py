"""What the page shows beside the charts: the one view of the system, made from memory instead of asking. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ingest.dashboard.points import Point, pace
from ingest.health import Vitals
from pipeline.names import BreakerState, Mode
from pipeline.ports.control import ControlEvent
from pipeline.settings import Settings
from pipeline.status import (
    Problem,
    SystemStatus,
    bands_of,
    diagnose,
    event_document,
    severity,
    status_document,
    worst_first,
)

FRESH_SECONDS: Final = 5.0  # how old a point may be to be called the present


@dataclass(frozen=True, slots=True)
class Sources:
    """What the view is made from."""

    vitals: Vitals
    settings: Settings
    store_problem: str | None  # why the control store does not answer; None where it does
    now: float  # seconds since the epoch
    process: str
    viewers: int


def system_status(sources: Sources, points: Sequence[Point], events: Sequence[ControlEvent]) -> SystemStatus:
    """What is known of the system, by what this process follows and what the history holds."""
    vitals, settings = sources.vitals, sources.settings
    followed = None if sources.store_problem is not None else vitals.followed
    state = None if followed is None else followed.state
    rate = None if state is None else state.rate
    consumption = None if rate is None else rate.consumption
    lags = newest(points, "lags", sources.now)
    if lags is None and consumption is not None and vitals.log.answers:
        lags = [consumption.lag_by_partition[p] for p in sorted(consumption.lag_by_partition)]
    drain_rate = pace(points)
    if drain_rate is None and consumption is not None:
        drain_rate = consumption.drain_rate
    store_problem = sources.store_problem or (None if vitals.followed is not None else "it was never reached")
    tokens, capacity = newest(points, "tokens", sources.now), max(1, int(vitals.rate * settings.burst_seconds))
    return SystemStatus(
        at=sources.now,
        mode=Mode.UNKNOWN if rate is None else rate.mode,
        rate=vitals.rate,
        base_rate=None if rate is None else rate.base_rate,
        floor_rate=settings.rate_min if state is None or not state.floor_rate else state.floor_rate,
        override=None if state is None else state.override,
        bands=(None if state is None else state.bands) or bands_of(settings),
        lag=None if lags is None else sum(lags),
        lag_by_partition=None if lags is None else dict(enumerate(lags)),
        drain_rate=drain_rate,
        breaker=BreakerState.UNKNOWN if state is None else state.breaker,
        pauses=None if state is None else state.pauses,
        controller_age=None if followed is None else vitals.controller_age_seconds,
        controller_period=settings.regulate_seconds,
        event_log=vitals.event_log,
        dead_letters=None,
        events=tuple(events),
        # Leases that are still held come on top of a full bucket; more than what fits in would be a riddle.
        bucket_tokens=None if tokens is None else min(tokens, capacity),
        bucket_capacity=float(capacity),
        store_problem=store_problem,
        log_problem=None if vitals.log.answers else vitals.log.problem or "no reason",
    )


def page_document(sources: Sources, status: SystemStatus) -> dict[str, Any]:
    """The state of the system as the page shows it, but for its control events."""
    problems = worst_first([*diagnose(status), *_own_problems(sources.vitals)])
    document = status_document(status)
    del document["events"]
    return document | {
        "status": severity(problems),
        "reasons": [{"severity": p.severity, "what": p.what, "lookAt": p.look_at} for p in problems],
        "controllerPeriodSeconds": status.controller_period,
        "storeIsAway": status.store_problem is not None,
        "process": sources.process,
        "viewers": sources.viewers,
    }


def _own_problems(vitals: Vitals) -> list[Problem]:
    """What only an ingest process sees."""
    found = []
    if vitals.log.answers and vitals.log.is_full:
        what = "The event log is full: clients get 503, nothing is taken"
        found.append(Problem("critical", what, "the memory of the log's server, and why consumers are behind"))
    for problem in vitals.loop_problems:
        what = f"{problem[0].upper()}{problem[1:]}"
        found.append(Problem("degraded", what, "the log of this ingest process; a restart may help"))
    if vitals.is_local:
        what = "The token bucket (Redis) is away: each ingest process admits its share of the last known rate"
        found.append(Problem("degraded", what, "the server of REDIS_URL, and its memory limit"))
    return found


def newest(points: Sequence[Point], name: str, now: float) -> Any:
    """The newest known value of a sample, if it is of the present."""
    for point in reversed(points):
        if now - point.t > FRESH_SECONDS:
            return None
        if point.sample.get(name) is not None:
            return point.sample[name]
    return None


def event_documents(events: Sequence[ControlEvent]) -> list[dict[str, Any]]:
    """Control events for the table, newest first."""
    return [event_document(event) for event in reversed(events)]
