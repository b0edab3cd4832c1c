"""What the system's health is, as a pure function of what this process has in memory."""

from dataclasses import dataclass
from typing import Any, Final

from ingest.appender import LogStatus
from pipeline.follower import Followed
from pipeline.names import BreakerState, Mode, PauseReason
from pipeline.ports.control import ControlState, Pause, consumption_word

STALE_PERIODS: Final = 3  # periods of the control loop without news, after which what it said counts as unknown

_CRITICAL: Final = "critical"
_DEGRADED: Final = "degraded"


@dataclass(frozen=True, slots=True)
class Vitals:
    """Everything that health is judged by. `now` is the monotonic clock that the ages are counted on."""

    now: float
    followed: Followed | None  # None: the control store was never reached
    period_seconds: float  # of the control loop
    log: LogStatus
    event_log: str  # kind of the log: kafka or redis
    rate: float  # events/s admitted, as this process knows it
    available_permissions: int | None
    is_local: bool  # the bucket is away
    loop_problems: tuple[str, ...] = ()  # what is wrong with this process' own loops

    @property
    def controller_age_seconds(self) -> float | None:
        """Seconds since the controller last published, where that is known."""
        return None if self.followed is None else self.followed.controller_age_seconds(self.now)


def health_document(vitals: Vitals) -> dict[str, Any]:
    """The body of GET /api/logs/health."""
    followed = vitals.followed
    stale_seconds = STALE_PERIODS * vitals.period_seconds
    is_known = followed is not None and followed.state_age_seconds(vitals.now) <= stale_seconds
    state = followed.state if followed is not None and is_known else None
    age = vitals.controller_age_seconds
    rate = state.rate if state is not None and age is not None and age <= stale_seconds else None
    lag = None if rate is None else rate.lag
    breaker = BreakerState.UNKNOWN if state is None else state.breaker
    pauses = None if state is None else state.pauses
    problems = [
        *_log_problems(vitals.log),
        *_store_problems(vitals, is_known=is_known),
        *_lag_problems(Mode.UNKNOWN if rate is None else rate.mode, lag, age),
        *_breaker_problems(breaker),
        *_pause_problems(pauses),
        *((_DEGRADED, problem) for problem in vitals.loop_problems),
    ]
    severities = {severity for severity, _ in problems}
    return {
        "status": _CRITICAL if _CRITICAL in severities else _DEGRADED if severities else "healthy",
        "consumerLag": lag,
        "rateLimit": round(vitals.rate, 3),
        "rateOverride": None if state is None or state.override is None else _override_row(state),
        "availablePermissions": vitals.available_permissions,
        "circuitBreaker": breaker.value,
        "consumption": consumption_word(pauses),
        "controllerAgeSeconds": None if age is None else round(age, 3),
        "eventLog": vitals.event_log,
        "reasons": [reason for _, reason in problems],
    }


def _override_row(state: ControlState) -> dict[str, Any]:
    """A rate that was set by hand: until when, by whom and why. It is no problem, but nobody should wonder about it."""
    held = state.override
    assert held is not None  # noqa: S101 - asked by the caller
    return {
        "rate": held.rate,
        "endsInSeconds": round(max(0.0, held.until - state.time), 1),
        "by": held.by,
        "why": held.why,
    }


def _log_problems(log: LogStatus) -> list[tuple[str, str]]:
    if not log.answers:
        return [(_CRITICAL, f"the event log is down: {log.problem}")]
    return [(_CRITICAL, "the event log is full and takes no events")] if log.is_full else []


def _store_problems(vitals: Vitals, *, is_known: bool) -> list[tuple[str, str]]:
    problems = []
    if not is_known:
        age = None if vitals.followed is None else vitals.followed.state_age_seconds(vitals.now)
        since = "since this process began" if age is None else f"for {age:.0f} s"
        problems.append((_DEGRADED, f"the control store has not answered {since}: what it knows is unknown here"))
    if vitals.is_local:
        problems.append((_DEGRADED, "the token bucket is away: each process admits its share of the last known rate"))
    return problems


def _lag_problems(mode: Mode, lag: int | None, age: float | None) -> list[tuple[str, str]]:
    match mode:
        case Mode.CRITICAL:
            return [(_CRITICAL, f"consumers are far behind: lag {lag}")]
        case Mode.DEGRADED:
            return [(_DEGRADED, f"consumers are behind: lag {lag}")]
        case Mode.UNKNOWN:
            spoke = "has not spoken yet" if age is None else f"last spoke {age:.0f} s ago"
            return [(_DEGRADED, f"the lag is unknown; the controller {spoke}")]
        case Mode.NORMAL:
            return []


def _breaker_problems(breaker: BreakerState) -> list[tuple[str, str]]:
    match breaker:
        case BreakerState.OPEN:
            return [(_CRITICAL, "the circuit breaker is open: PostgreSQL failed")]
        case BreakerState.HALF_OPEN:  # still nothing is stored; it lasts for one try
            return [(_CRITICAL, "the circuit breaker is half-open: PostgreSQL failed, and is being tried")]
        case BreakerState.UNKNOWN:
            return [(_DEGRADED, "the state of the circuit breaker is unknown")]
        case BreakerState.CLOSED:
            return []


def _pause_problems(pauses: tuple[Pause, ...] | None) -> list[tuple[str, str]]:
    if pauses is None:
        return [(_DEGRADED, "whether consumption is paused is unknown")]
    return [
        (_DEGRADED, f"consumption{_where(pause)} is paused ({pause.name}) by {pause.by}: {pause.why}")
        for pause in pauses
        if pause.reason is not PauseReason.BREAKER  # told above
    ]


def _where(pause: Pause) -> str:
    return "" if pause.partition is None else f" of partition {pause.partition}"
