"""The state of the whole system for a terminal or a program: read once, judged, and formatted as JSON.

`read_status` queries the servers, `status_document` is pure. Only `pipeline.health.judge` decides what is a problem.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from pipeline.clock import Clock
from pipeline.errors import SluiceError, StoreRefusesError
from pipeline.event_fold import EVENTS_READ
from pipeline.event_text import event_text
from pipeline.flow.lag import lag_by_partition
from pipeline.flow.refusals import Refusals
from pipeline.health.judge import Problem, Verdict, judge
from pipeline.health.outlook import FRESH_SECONDS, outlook_of
from pipeline.health.runbooks import runbook_of
from pipeline.health.snapshot import PACE_SECONDS, HealthInputs, Traffic, make_inputs
from pipeline.names import BreakerState
from pipeline.ports.control import ControlEvent, ControlEvents, ControlState, ControlStore
from pipeline.ports.dead_letters import DeadLetterCounts
from pipeline.ports.history import History, HistoryEntry
from pipeline.ports.log import EventLog
from pipeline.ports.rate import Explanation, Shadow
from pipeline.ports.throttle import Throttle
from pipeline.refusals_text import throttle_document
from pipeline.settings import Settings

EVENTS_SHOWN: Final = 50  # in JSON
_Answer = TypeVar("_Answer")
_UNSEEN_SECONDS: Final = 1.0  # how long an ingest process may not have seen a publication


@dataclass(frozen=True, slots=True)
class SystemStatus:
    """The state of the system, read at one moment."""

    inputs: HealthInputs
    dead_letters: int | None = None  # None: unknown
    dead_letter_conflicts: int | None = None  # of dead_letters: an eventId that is stored with other content
    events: tuple[ControlEvent, ...] = ()  # oldest first
    runbooks_url: str = ""  # RUNBOOKS_URL
    unanswered: tuple[tuple[str, str], ...] = ()  # what else the control store did not answer, each with the reason

    @property
    def refusals(self) -> Refusals | None:
        """Who was refused in the last minutes; None: unknown."""
        return self.inputs.refusals

    @property
    def verdict(self) -> Verdict:
        """The health status, and the reasons for it."""
        return judge(self.inputs)


@dataclass(frozen=True, slots=True)
class StatusContext:
    """The sources that `read_status` reads. Optional ones that are None are not read."""

    settings: Settings
    clock: Clock
    store: ControlStore
    events: ControlEvents
    log: EventLog
    history: History | None = None
    # Queries PostgreSQL; not called unless the breaker is closed.
    count_dead_letters: Callable[[], DeadLetterCounts] | None = None
    throttle: Throttle | None = None
    ticks_waiting: Callable[[], int] | None = None  # tasks in the control worker's queue; called if it is silent
    store_memory: Callable[[], tuple[int, int]] | None = None  # bytes used by the control store, its limit; likewise


def read_status(context: StatusContext) -> SystemStatus:
    """Read every source once. Blocks. Does not raise for a source that does not answer: that is in the verdict."""
    state, store_problem, store = _ask_store(context)
    lags, log_problem = _ask_log(context.log)
    letters, database_problem = _ask_database(context, BreakerState.UNKNOWN if state is None else state.breaker)
    at = state.time if state is not None else context.clock.now()
    outlook = outlook_of(store.entries, context.settings, at)
    inputs = make_inputs(
        context.settings,
        at=at,
        state=state,
        controller_age=None if state is None else _controller_age(state, store.entries),
        outlook=replace(outlook, lag_by_partition=lags),
        store_problem=store_problem,
        log_problem=log_problem,
    )
    if inputs.is_controller_silent and store_problem is None:
        inputs = replace(
            inputs, ticks_waiting=_ask_about(context.ticks_waiting), store_memory=_ask_about(context.store_memory)
        )
    return SystemStatus(
        replace(inputs, database_problem=database_problem, refusals=store.refusals),
        dead_letters=None if letters is None else letters.open,
        dead_letter_conflicts=None if letters is None else letters.conflicts,
        events=store.events,
        runbooks_url=context.settings.runbooks_url,
        unanswered=tuple(store.unanswered.items()),
    )


def _ask_about(read: Callable[[], _Answer] | None) -> _Answer | None:
    try:
        return None if read is None else read()
    except SluiceError:
        return None


def _controller_age(state: ControlState, entries: Sequence[HistoryEntry]) -> float | None:
    """Seconds since the controller published; None if unknown.

    A reader that looks once can't measure this by its own clock, and the store's clock may have been stepped since. An
    ingest process measures it, and writes it into the history once a second. If none did, the store's clock counts,
    unless the publication is in that clock's future.
    """
    if state.rate is None:
        return None
    published_at = state.rate.published_at
    said = state.time - published_at
    newest = entries[-1] if entries else None
    seen = None if newest is None else newest.sample.get("published_age")
    if newest is None or seen is None or state.time - newest.at > FRESH_SECONDS:
        return said if said >= 0 else None
    since = max(0.0, state.time - newest.at)
    if newest.sample.get("published") == published_at:
        return float(seen) + since
    return min(max(0.0, said), since + _UNSEEN_SECONDS)  # published since then


@dataclass
class _Store:
    """What the control store answered beside its state. It is asked each question by itself: it may refuse one.

    Once it does not answer at all, it is asked nothing more: each question would take a time-out.
    """

    context: StatusContext
    is_unavailable: bool = False
    unanswered: dict[str, str] = field(default_factory=dict)
    events: tuple[ControlEvent, ...] = ()
    entries: Sequence[HistoryEntry] = ()
    refusals: Refusals | None = None

    def ask_all(self) -> None:
        """Ask every question."""
        history, throttle, settings = self.context.history, self.context.throttle, self.context.settings
        self.events = tuple(self._ask("control events", lambda: self.context.events.last(EVENTS_READ)) or ())
        if history is not None:
            entries_max = int(max(settings.refused_seconds, PACE_SECONDS) + FRESH_SECONDS)
            self.entries = self._ask("history", lambda: history.since("", entries_max=entries_max)) or ()
        if throttle is not None:
            self.refusals = self._ask("refused accounts", throttle.reported)

    def _ask(self, what: str, question: Callable[[], _Answer]) -> _Answer | None:
        if self.is_unavailable:
            return None
        try:
            return question()
        except SluiceError as error:
            self.unanswered[what] = str(error)
            self.is_unavailable = not isinstance(error, StoreRefusesError)
            return None


def _ask_store(context: StatusContext) -> tuple[ControlState | None, str | None, _Store]:
    """The state, or why it is unknown; and the rest."""
    state, problem, store = None, None, _Store(context)
    try:
        state = context.store.state()
    except SluiceError as error:
        problem, store.is_unavailable = str(error), not isinstance(error, StoreRefusesError)
    store.ask_all()
    return state, problem, store


def _ask_log(log: EventLog) -> tuple[dict[int, int] | None, str | None]:
    """The lag by the log's own commits; None if there are none, because then PostgreSQL would have to be queried.

    Also None if some partition does not answer: the lag of the others is not that of the whole log.
    """
    try:
        partitions, positions = log.identity().partitions, log.positions()
    except SluiceError as error:
        return None, str(error)
    return (lag_by_partition(positions, None) if len(positions) == partitions else None), None


def _ask_database(context: StatusContext, breaker: BreakerState) -> tuple[DeadLetterCounts | None, str | None]:
    if context.count_dead_letters is None or breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN):
        return None, None
    try:
        return context.count_dead_letters(), None
    except SluiceError as error:
        return None, str(error)


def problem_documents(problems: Sequence[Problem]) -> list[dict[str, str | None]]:
    """Problems for JSON; `runbook` is the name of a page, `command` the first one to run; "" if there is none."""
    return [
        {
            "code": p.code,
            "severity": p.severity.value,
            "what": p.what,
            "byItself": p.by_itself,
            "lookAt": p.look_at,
            "command": p.command,
            "runbook": runbook_of(p.code),
        }
        for p in problems
    ]


def status_document(status: SystemStatus) -> dict[str, Any]:
    """The complete status for JSON."""
    events = [event_document(event) for event in status.events[-EVENTS_SHOWN:]]
    return inputs_document(status.inputs, status.verdict) | {
        "deadLetters": status.dead_letters,
        "deadLetterConflicts": status.dead_letter_conflicts,
        "events": events,
        "unanswered": [{"what": what, "why": why} for what, why in status.unanswered],
        "throttle": None if status.refusals is None else throttle_document(status.refusals),
    }


def inputs_document(inputs: HealthInputs, verdict: Verdict) -> dict[str, Any]:
    """A snapshot and its verdict for JSON, with the names of the health response; null is unknown."""
    override, policy, traffic = inputs.override, inputs.explanation, inputs.traffic
    return {
        "at": round(inputs.at, 3),
        "status": verdict.status.value,
        "reasons": problem_documents(verdict.problems),
        "mode": inputs.mode.value,
        "rateLimit": inputs.rate,
        "baseRate": inputs.base_rate,
        "floorRate": inputs.floor_rate,
        "rateDecidedBy": inputs.rate_decided_by,
        "rateLevel": None if verdict.rate_level is None else verdict.rate_level.value,
        "rateOverride": None
        if override is None
        else {"rate": override.rate, "until": override.until, "by": override.actor, "why": override.why},
        "ratePolicy": policy_document(policy) | {"shadow": _shadow_document(inputs.shadow)},
        "bands": policy.parameters if policy.policy == "bands" else None,  # its name in earlier versions
        "consumerLag": inputs.lag,
        "lagByPartition": None
        if inputs.lag_by_partition is None
        else {str(partition): lag for partition, lag in sorted(inputs.lag_by_partition.items())},
        "offered": None if traffic is None else round(traffic.offered, 1),
        "admitted": None if traffic is None else round(traffic.admitted, 1),
        "refused": None if traffic is None else round(traffic.refused, 1),
        "refusedShare": None if traffic is None else round(traffic.refused_share, 4),
        "refusedShareTime": None if traffic is None else traffic.share_time,
        "levels": None if traffic is None or not traffic.levels else _levels_document(traffic),
        "protocols": None if traffic is None or not traffic.protocols else _protocols_document(traffic),
        "drainRate": inputs.drain_rate,
        "secondsToEmpty": inputs.seconds_to_empty,
        "circuitBreaker": inputs.breaker.value,
        "consumption": inputs.consumption,
        "pauses": None
        if inputs.pauses is None
        else [
            {"reason": p.name, "partition": p.partition, "since": p.since, "by": p.actor, "why": p.why}
            for p in inputs.pauses
        ],
        "controllerAgeSeconds": inputs.controller_age,
        "eventLog": inputs.event_log,
        "logCopies": inputs.log_copies,
        "availablePermissions": inputs.bucket_tokens,
        "bucketCapacity": inputs.bucket_capacity,
    }


def _levels_document(traffic: Traffic) -> dict[str, dict[str, float]]:
    """The traffic by level for JSON, events/s."""
    return {
        level.label: {
            "admitted": round(one.admitted, 1),
            "refused": round(one.refused, 1),
            "refusedShare": round(one.refused_share, 4),
        }
        for level, one in traffic.levels.items()
    }


def _protocols_document(traffic: Traffic) -> dict[str, dict[str, float]]:
    """The traffic by protocol for JSON, records/s."""
    return {
        name.value: {
            "accepted": round(one.accepted, 1),
            "refused": round(one.refused, 1),
            "rejected": round(one.rejected, 1),
        }
        for name, one in traffic.protocols.items()
    }


def policy_document(policy: Explanation) -> dict[str, Any]:
    """The explanation of the rate policy for JSON."""
    return {
        "name": policy.policy,
        "sentence": policy.sentence,
        "reason": policy.reason,
        "because": policy.because,
        "rateMax": policy.rate_max,
        "lookAt": policy.look_at,
        "thresholds": [
            {"label": t.label, "value": t.value, "unit": t.unit, "mode": t.mode.value, "measure": t.measure}
            for t in policy.thresholds
        ],
        "figures": [
            {"name": f.name, "label": f.label, "value": f.value, "unit": f.unit, "partition": f.partition}
            for f in policy.figures
        ],
        "parameters": policy.parameters,
    }


def _shadow_document(shadow: Shadow | None) -> dict[str, Any] | None:
    if shadow is None:
        return None
    return policy_document(shadow.record.explanation) | {"rate": shadow.rate, "mode": shadow.mode.value}


def event_document(event: ControlEvent) -> dict[str, Any]:
    """One control event for JSON; `what` describes it in words."""
    return {
        "id": event.id,
        "at": event.at,
        "kind": event.kind.value,
        "what": event_text(event),
        "by": event.actor,
        "why": event.why,
        "data": event.data,
        "count": event.count,
        "firstAt": event.at if event.first_at is None else event.first_at,
    }
