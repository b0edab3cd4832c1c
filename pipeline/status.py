"""The one view of the whole system: what is known of it, and what is wrong in words.

Times of day are in UTC, as in the log lines. `read_status` asks, `diagnose` and `status_document` are pure.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipeline.clock import Clock
from pipeline.errors import SluiceError, in_brief
from pipeline.event_words import clock_time, event_words, pause_advice, pause_words, rate_words
from pipeline.flow.lag import lag_by_partition
from pipeline.names import BreakerState, Mode, PauseReason
from pipeline.ports.control import (
    Bands,
    ControlEvent,
    ControlEvents,
    ControlState,
    ControlStore,
    Override,
    Pause,
    consumption_word,
)
from pipeline.ports.log import EventLog
from pipeline.ports.sink import DeadLetterCounts
from pipeline.settings import Settings

STALE_PERIODS: Final = 3  # periods of the control loop without a publication, after which it counts as silent
EVENTS_SHOWN: Final = 50

# What an adapter's error says before the reason; the problem says it already.
_SAYS_WHO: Final = re.compile(
    r"^the (?:control store|event log) \(\w+\) (?:does not answer|can't be reached)[:.] *", re.I
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `look_at`: where to begin."""

    severity: Literal["critical", "degraded"]
    what: str
    look_at: str


@dataclass(frozen=True, slots=True)
class SystemStatus:
    """What is known of the system at one moment; None is unknown. Times are seconds since the epoch."""

    at: float  # by the control store's clock where it answers
    mode: Mode
    rate: float | None  # events/s, effective
    base_rate: float | None  # events/s, as the policy decided
    floor_rate: float  # events/s
    override: Override | None
    bands: Bands  # `by` is empty where those of the settings hold
    lag: int | None  # events
    lag_by_partition: dict[int, int] | None
    drain_rate: float | None  # events/s stored, between the controller's last two ticks
    breaker: BreakerState
    pauses: tuple[Pause, ...] | None
    controller_age: float | None  # seconds since the controller published
    controller_period: float  # seconds
    event_log: str  # kafka or redis
    dead_letters: int | None
    events: tuple[ControlEvent, ...]  # oldest first
    dead_letter_conflicts: int | None = None  # of dead_letters: an eventId that is stored with other content
    bucket_tokens: float | None = None
    bucket_capacity: float | None = None
    store_problem: str | None = None  # what the part that is away said
    log_problem: str | None = None
    database_problem: str | None = None

    @property
    def seconds_to_empty(self) -> float | None:
        """Seconds until the lag is stored at the present pace, while nothing more is admitted; None: not in sight.

        While consumption is paused the last pace promises nothing.
        """
        if self.lag is None:
            return None
        if self.lag == 0:
            return 0.0
        if self.pauses:
            return None
        return self.lag / self.drain_rate if self.drain_rate else None

    @property
    def rate_decided_by(self) -> str:
        """Why the rate is what it is, in a few words."""
        if self.rate is None:
            return "nobody says"
        if self.store_problem is not None:
            return "last known, falling"
        if self.breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN) and self.rate == self.floor_rate:
            return "breaker is open"
        if self.override is not None:
            return "set by hand"
        return {
            Mode.NORMAL: "the full rate" if self.rate == self.bands.rate_max else "lag is low",
            Mode.DEGRADED: "lag is degraded",
            Mode.CRITICAL: "lag is critical",
            Mode.UNKNOWN: "lag is unknown",
        }[self.mode]


@dataclass(frozen=True, slots=True)
class StatusParts:
    """What `read_status` asks. The optional ones are not asked where they are None."""

    settings: Settings
    clock: Clock
    store: ControlStore
    events: ControlEvents
    log: EventLog
    count_dead_letters: Callable[[], DeadLetterCounts] | None = (
        None  # asks PostgreSQL; not called while the breaker is not closed
    )


def read_status(parts: StatusParts) -> SystemStatus:
    """Ask every part once. Blocks; never raises for one that is away: what it knows is None, and a Problem."""
    settings = parts.settings
    state, events, store_problem = _ask_store(parts)
    lags, log_problem = _ask_log(parts.log)
    rate = state.rate if state is not None else None
    consumption = rate.consumption if rate is not None else None
    if lags is None and consumption is not None and log_problem is None:
        lags = dict(consumption.lag_by_partition)
    breaker = state.breaker if state is not None else BreakerState.UNKNOWN
    letters, database_problem = _ask_database(parts, breaker)
    return SystemStatus(
        at=state.time if state is not None else parts.clock.now(),
        mode=rate.mode if rate is not None else Mode.UNKNOWN,
        rate=rate.rate if rate is not None else None,
        base_rate=rate.base_rate if rate is not None else None,
        floor_rate=state.floor_rate if state is not None and state.floor_rate else settings.rate_min,
        override=state.override if state is not None else None,
        bands=(state.bands if state is not None else None) or bands_of(settings),
        lag=sum(lags.values()) if lags is not None else None,
        lag_by_partition=lags,
        drain_rate=consumption.drain_rate if consumption is not None else None,
        breaker=breaker,
        pauses=state.pauses if state is not None else None,
        controller_age=max(0.0, state.time - rate.published_at) if state is not None and rate is not None else None,
        controller_period=settings.regulate_seconds,
        event_log="kafka" if settings.log_scheme == "kafka" else "redis",
        dead_letters=None if letters is None else letters.open,
        dead_letter_conflicts=None if letters is None else letters.conflicts,
        events=events,
        store_problem=store_problem,
        log_problem=log_problem,
        database_problem=database_problem,
    )


def bands_of(settings: Settings) -> Bands:
    """The bands of the settings; nobody set them by hand."""
    return Bands(settings.rate_max, settings.rate_min, settings.lag_degraded, settings.lag_critical, "", "", 0.0)


def _ask_store(parts: StatusParts) -> tuple[ControlState | None, tuple[ControlEvent, ...], str | None]:
    try:
        return parts.store.state(), tuple(parts.events.last(EVENTS_SHOWN)), None
    except SluiceError as error:
        return None, (), str(error)


def _ask_log(log: EventLog) -> tuple[dict[int, int] | None, str | None]:
    """Lag by what the log itself was told; None where it was told nothing, and PostgreSQL would have to be asked."""
    try:
        return lag_by_partition(log.positions(), None), None
    except SluiceError as error:
        return None, str(error)


def _ask_database(parts: StatusParts, breaker: BreakerState) -> tuple[DeadLetterCounts | None, str | None]:
    if parts.count_dead_letters is None or breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN):
        return None, None
    try:
        return parts.count_dead_letters(), None
    except SluiceError as error:
        return None, str(error)


def diagnose(status: SystemStatus) -> list[Problem]:
    """Everything that is wrong, worst first."""
    found = [*_away(status)]
    if status.store_problem is None:
        found += [*_breaker(status), *_pauses(status), *_controller(status), *_lag(status)]
    return worst_first(found)


def worst_first(problems: list[Problem]) -> list[Problem]:
    """Critical ones before the others; causes stay before what follows from them."""
    return sorted(problems, key=lambda problem: problem.severity != "critical")


def severity(problems: list[Problem]) -> Literal["healthy", "degraded", "critical"]:
    """The worst of them, in one word."""
    severities = {problem.severity for problem in problems}
    return "critical" if "critical" in severities else "degraded" if severities else "healthy"


def duration(seconds: float) -> str:
    """About how long, for people."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _away(status: SystemStatus) -> Iterator[Problem]:
    if status.log_problem is not None:
        yield Problem(
            "critical",
            f"The event log ({status.event_log}) does not answer: clients get 503, nothing is taken",
            f"the log's server and the network to it{_it_says(status.log_problem)}",
        )
    if status.store_problem is not None:
        yield Problem(
            "degraded",
            "The control store (Redis) does not answer: rate, breaker and pauses are unknown; ingest goes by the last "
            "rate that it knew, which falls to the floor",
            f"the server of REDIS_URL{_it_says(status.store_problem)}",
        )
    if status.database_problem is not None:
        yield Problem(
            "degraded",
            "PostgreSQL did not answer this question: dead letters are not counted",
            f"PostgreSQL; the breaker opens by itself if drains fail too{_it_says(status.database_problem)}",
        )


def _it_says(problem: str) -> str:
    said = _SAYS_WHO.sub("", in_brief(problem))
    return f"; it says: {said}" if said else ""


def _breaker(status: SystemStatus) -> Iterator[Problem]:
    if status.breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN):
        held = next((pause for pause in status.pauses or () if pause.reason is PauseReason.BREAKER), None)
        since = f" since {clock_time(held.since)}" if held is not None else ""
        at_floor = "" if status.rate is None else f" ({rate_words(status.rate)})"
        rate = f"at its floor{at_floor}"
        if status.rate is not None and status.rate < status.floor_rate and status.override is not None:
            rate = f"{rate_words(status.rate)}, set by hand"
        why = f": {held.why}" if held is not None else ""
        others = [pause_words(p.name, p.partition) for p in status.pauses or () if p.reason is not PauseReason.BREAKER]
        stays = f"the breaker closes by itself, but consumption stays paused ({', '.join(others)})"
        then = stays if others else "all resumes by itself"
        yield Problem(
            "critical",
            f"PostgreSQL fails{since}: the breaker is {status.breaker.value}, consumption is paused, "
            f"the rate is {rate}",
            f"PostgreSQL and the network to it{why}. Once it takes a write, {then}",
        )


def _pauses(status: SystemStatus) -> Iterator[Problem]:
    if status.pauses is None:
        yield Problem(
            "degraded",
            "Breaker and pauses are unknown: the control store was emptied, and nobody has restored them yet",
            "the control worker and PostgreSQL: it restores them from there within a period",
        )
    for pause in status.pauses or ():
        if pause.reason is not PauseReason.BREAKER:
            # The cause stands before the lag that it makes, so it is as bad as that.
            yield Problem(
                "critical" if status.mode is Mode.CRITICAL else "degraded",
                f"{_paused_what(pause)} is paused ({pause_words(pause.name, None)}) since "
                f"{clock_time(pause.since)} by {pause.by}: {pause.why}; {_its(pause)}events are taken, but not stored",
                pause_advice(pause.reason, pause.partition),
            )


def _paused_what(pause: Pause) -> str:
    return "Consumption" if pause.partition is None else f"Consumption of partition {pause.partition}"


def _its(pause: Pause) -> str:
    return "" if pause.partition is None else "its "


def _controller(status: SystemStatus) -> Iterator[Problem]:
    age = status.controller_age
    if age is None or age > STALE_PERIODS * status.controller_period:
        spoke = "has not spoken yet" if age is None else f"is silent since {clock_time(status.at - age)}"
        yield Problem(
            "degraded",
            f"The controller {spoke}: the last rate holds for a while, then falls to the floor",
            "Beat and the control worker: do both run, and do they reach Redis?",
        )


def _lag(status: SystemStatus) -> Iterator[Problem]:
    lag, rate = status.lag, status.rate
    if rate is None:
        return
    rate_now = rate_words(rate) if status.override is None else f"{rate_words(rate)}, {status.rate_decided_by}"
    if status.mode is Mode.UNKNOWN:
        yield Problem(
            "degraded",
            "The controller does not know the lag: the last rate holds for a while, then falls to the floor",
            "whether the event log answers the control worker",
        )
    elif status.mode in (Mode.DEGRADED, Mode.CRITICAL):
        is_critical = status.mode is Mode.CRITICAL
        waits = "an unknown number of events waits" if lag is None else f"{lag:,} events wait"
        ends = (
            "" if status.seconds_to_empty is None else f"; at this pace stored in {duration(status.seconds_to_empty)}"
        )
        pace = "" if status.drain_rate is None else f" (now {rate_words(status.drain_rate)})"
        look_at = f"the drain rate{pace}: at 0, the workers; else PostgreSQL takes less than comes"
        yield Problem(
            "critical" if is_critical else "degraded",
            f"Consumers are {'far behind' if is_critical else 'behind'}: {waits}; the rate is {rate_now}{ends}",
            "why consumption is paused: the lag only follows from that" if status.pauses else look_at,
        )


def status_document(status: SystemStatus) -> dict[str, Any]:
    """The same for JSON, named as in the health answer; null is unknown."""
    problems, override, bands = diagnose(status), status.override, status.bands
    return {
        "at": round(status.at, 3),
        "status": severity(problems),
        "reasons": [{"severity": p.severity, "what": p.what, "lookAt": p.look_at} for p in problems],
        "mode": status.mode.value,
        "rateLimit": status.rate,
        "baseRate": status.base_rate,
        "floorRate": status.floor_rate,
        "rateDecidedBy": status.rate_decided_by,
        "rateOverride": None
        if override is None
        else {"rate": override.rate, "until": override.until, "by": override.by, "why": override.why},
        "bands": {
            "rateMax": bands.rate_max,
            "rateMin": bands.rate_min,
            "lagDegraded": bands.lag_degraded,
            "lagCritical": bands.lag_critical,
            "setBy": bands.by or None,
        },
        "consumerLag": status.lag,
        "lagByPartition": None
        if status.lag_by_partition is None
        else {str(partition): lag for partition, lag in sorted(status.lag_by_partition.items())},
        "drainRate": status.drain_rate,
        "secondsToEmpty": status.seconds_to_empty,
        "circuitBreaker": status.breaker.value,
        "consumption": consumption_word(status.pauses),
        "pauses": None
        if status.pauses is None
        else [
            {"reason": p.name, "partition": p.partition, "since": p.since, "by": p.by, "why": p.why}
            for p in status.pauses
        ],
        "controllerAgeSeconds": status.controller_age,
        "eventLog": status.event_log,
        "availablePermissions": status.bucket_tokens,
        "bucketCapacity": status.bucket_capacity,
        "deadLetters": status.dead_letters,
        "deadLetterConflicts": status.dead_letter_conflicts,
        "events": [event_document(event) for event in status.events],
    }


def event_document(event: ControlEvent) -> dict[str, Any]:
    """One control event for JSON; `what` is it in words."""
    return {
        "id": event.id,
        "at": event.at,
        "kind": event.kind.value,
        "what": event_words(event),
        "by": event.by,
        "why": event.why,
        "data": event.data,
        "count": event.count,
        "firstAt": event.at if event.first_at is None else event.first_at,
    }
