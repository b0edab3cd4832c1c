"""The health of the system, from the memory of this process: no call to any server."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ingest.appender import LogStatus
from pipeline.flow.bucket import burst_of
from pipeline.flow.refusals import Refusals
from pipeline.follower import ControlSnapshot
from pipeline.health.judge import judge
from pipeline.health.snapshot import HealthInputs, Outlook, make_inputs, silent_seconds
from pipeline.names import BreakerState, Health
from pipeline.ports.control import Override
from pipeline.settings import Settings

_NO_OUTLOOK: Final = Outlook()


def _one_of(*words: StrEnum | str) -> Meta:
    """The allowed values of a text, for its schema."""
    return Meta(extra_json_schema={"enum": [str(word) for word in words]})


_Count = Annotated[int, Meta(ge=0)]
_Amount = Annotated[float, Meta(ge=0)]


class RateOverride(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A rate that an operator set for a time."""

    rate: float  # events/s
    ends_in_seconds: _Amount
    by: str
    why: str


class HealthDocument(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The answer of GET /api/logs/health. `/openapi.json` gets its schema from this type, and describes its fields."""

    status: Annotated[str, _one_of(*Health)]
    consumer_lag: _Count | None
    rate_limit: _Amount | None
    rate_override: RateOverride | None
    available_permissions: int | None
    circuit_breaker: Annotated[str, _one_of(*BreakerState)]
    consumption: Annotated[str, _one_of("running", "paused", "stalled", "unknown")]
    controller_age_seconds: _Amount | None
    event_log: Annotated[str, _one_of("kafka", "redis")]
    offered: _Amount | None
    admitted: _Amount | None
    refused: _Amount | None
    stored: _Amount | None
    drain_seconds: _Amount | None
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class HealthSources:
    """All inputs of health that this process has. `now` is the monotonic clock of the ages."""

    wall: float  # seconds since the epoch, on this host's clock
    now: float
    control: ControlSnapshot | None  # None: the control store was never reached
    store_problem: str | None  # the error of the last call; None: it was answered
    settings: Settings
    log: LogStatus
    rate: float  # events/s admitted, as this process sees it
    available_permissions: int | None
    is_local: bool  # the bucket is unavailable
    loop_problems: tuple[str, ...] = ()  # problems of this process' own loops
    bucket_problem: str = ""  # the error of the bucket's last call that failed
    process: str = ""  # its name in the reports of processes
    outlook: Outlook = _NO_OUTLOOK
    refusals: Refusals | None = None  # who was refused, if much is


def health_inputs(sources: HealthSources) -> HealthInputs:
    """The snapshot for the judgement of health, as this process sees the system."""
    control, settings = sources.control, sources.settings
    problem = _store_problem(sources)
    state = None if control is None or problem is not None else control.state
    inputs = make_inputs(
        settings,
        at=sources.wall if state is None or control is None else state.time + control.state_age_seconds(sources.now),
        state=state,
        controller_age=None if control is None else control.controller_age_seconds(sources.now),
        outlook=sources.outlook,
        store_problem=problem,
        log_problem=None if sources.log.answers else sources.log.problem or "no reason",
    )
    capacity = burst_of(sources.rate, settings.burst_seconds)
    tokens = sources.outlook.bucket_tokens
    return replace(
        inputs,
        rate=sources.rate,
        # Leases add to a full bucket. A number above the bucket's capacity would confuse the reader.
        bucket_tokens=None if tokens is None else min(tokens, capacity),
        bucket_capacity=float(capacity),
        is_bucket_unavailable=sources.is_local,
        bucket_problem=sources.bucket_problem,
        is_log_full=sources.log.is_full,
        loop_problems=sources.loop_problems,
        process=sources.process,
        refusals=sources.refusals,
        serves_clients=True,
    )


def _store_problem(sources: HealthSources) -> str | None:
    if sources.store_problem is not None:
        return sources.store_problem
    if sources.control is None:
        return "it has not answered since this process began"
    age = sources.control.state_age_seconds(sources.now)
    if age > silent_seconds(sources.settings.regulate_seconds):
        return f"nothing was read from it for {age:.0f} s"
    return None


def health_document(sources: HealthSources) -> dict[str, Any]:
    """The body of GET /api/logs/health."""
    return document_of(health_inputs(sources), sources.available_permissions)


def document_of(inputs: HealthInputs, available_permissions: int | None = None) -> dict[str, Any]:
    """The same from a snapshot; null is unknown."""
    traffic, age, verdict = inputs.traffic, inputs.controller_age, judge(inputs)
    document = HealthDocument(
        status=verdict.status.value,
        consumer_lag=inputs.lag,
        rate_limit=None if inputs.rate is None else round(inputs.rate, 3),
        rate_override=None if inputs.override is None else _rate_override(inputs.override, inputs.at),
        available_permissions=available_permissions,
        circuit_breaker=inputs.breaker.value,
        consumption=inputs.consumption,
        controller_age_seconds=None if age is None else round(age, 3),
        event_log=inputs.event_log,
        offered=None if traffic is None else round(traffic.offered, 1),
        admitted=None if traffic is None else round(traffic.admitted, 1),
        refused=None if traffic is None else round(traffic.refused, 1),
        stored=None if inputs.drain_rate is None else round(inputs.drain_rate, 1),
        drain_seconds=None if inputs.seconds_to_empty is None else round(inputs.seconds_to_empty, 1),
        reasons=[problem.what for problem in verdict.problems],
    )
    fields: dict[str, Any] = msgspec.to_builtins(document)
    return fields


def _rate_override(held: Override, at: float) -> RateOverride:
    """A rate that an operator set: its end, its actor and its reason. It is no problem, but readers should see it."""
    return RateOverride(held.rate, round(max(0.0, held.until - at), 1), held.actor, held.why)
