"""The snapshot that health is judged by. It is built in one place for all processes that show it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.flow.refusals import Refusals
from pipeline.names import BreakerState, Level, Mode, ProtocolName, SinkName
from pipeline.policies import explanation_of
from pipeline.ports.control import Alarm, ControlState, Override, Pause, PublishedRate, consumption_word, paused
from pipeline.ports.rate import Explanation, Shadow
from pipeline.settings import Settings

STALE_PERIODS: Final = 3  # periods of the control loop without a publication, after which it counts as silent
# But not before this: a tick that waits for a frozen PostgreSQL takes some seconds.
SILENT_SECONDS_MIN: Final = 5.0
PACE_SECONDS: Final = 10.0  # interval for measuring rates: batches are stored as a whole


@dataclass(frozen=True, slots=True)
class LevelTraffic:
    """The part of the traffic that has one level, events/s."""

    admitted: float
    refused: float

    @property
    def refused_share(self) -> float:
        """The refused part of what was offered, 0 to 1."""
        offered = self.admitted + self.refused
        return self.refused / offered if offered else 0.0


@dataclass(frozen=True, slots=True)
class ProtocolTraffic:
    """The part of the traffic that comes in one protocol, records/s. A body refused unread counts as one."""

    accepted: float
    refused: float
    rejected: float  # records that can't become events

    @property
    def refused_share(self) -> float:
        """The refused part of what could become events, 0 to 1."""
        offered = self.accepted + self.refused
        return self.refused / offered if offered else 0.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """The traffic that clients offered in the last seconds, events/s. A body refused unread counts as one event."""

    admitted: float
    refused: float
    refused_share: float  # of the traffic offered in the last `share_seconds`, 0 to 1
    unavailable_share: float  # share of the refusals with 503 in that time, 0 to 1
    share_seconds: float = 60.0
    # Events that were refused in that time, by the rate that held, events/s. Those of which it is unknown are left out.
    refused_at: Mapping[float, float] = field(default_factory=dict)
    # Empty if ADMISSION_LEVELS is off. Bodies that were refused before their level was known are in none.
    levels: Mapping[Level, LevelTraffic] = field(default_factory=dict)
    # Empty unless another protocol than Sluice's own was used. Only those that were used.
    protocols: Mapping[ProtocolName, ProtocolTraffic] = field(default_factory=dict)

    @property
    def share_time(self) -> str:
        """The time over which the shares are counted, in words; follows "in the" or "of the"."""
        return "last minute" if self.share_seconds == 60 else f"last {self.share_seconds:g} s"

    @property
    def offered(self) -> float:
        """Admitted plus refused."""
        return self.admitted + self.refused


@dataclass(frozen=True, slots=True)
class Outlook:
    """Measures of the last seconds, from the history and from the log. None and empty mean unknown."""

    traffic: Traffic | None = None
    lag_by_partition: Mapping[int, int] | None = None  # events
    drain_rate: float | None = None  # events/s stored
    no_progress_seconds: Mapping[int, float] = field(default_factory=dict)  # by partition, if events wait
    bucket_tokens: float | None = None
    ticks_waiting: int | None = None  # tasks in the queue of the control worker; only read if the controller is silent
    store_memory: tuple[int, int] | None = None  # bytes used by the control store, and its limit (0: none); likewise


@dataclass(frozen=True, slots=True)
class HealthInputs:
    """The known state of the system at one moment; None is unknown. Times are seconds since the epoch."""

    at: float  # by the control store's clock, if it answers
    mode: Mode
    rate: float | None  # events/s, effective
    base_rate: float | None  # events/s, as the policy decided
    floor_rate: float  # events/s
    override: Override | None
    explanation: Explanation  # of the rate policy
    lag: int | None  # events in the log that are not stored yet
    lag_by_partition: Mapping[int, int] | None  # events
    drain_rate: float | None  # events/s stored in the last seconds
    breaker: BreakerState
    pauses: tuple[Pause, ...] | None
    controller_age: float | None  # seconds since the controller published
    controller_period: float  # seconds
    event_log: str  # kafka or redis
    log_copies: int = 1  # servers that have an accepted event; 1: a single copy
    sink: SinkName = SinkName.POSTGRESQL
    no_progress_seconds: Mapping[int, float] = field(default_factory=dict)  # by partition, if events wait
    no_progress_seconds_max: float = 30.0
    traffic: Traffic | None = None
    refused_ratio_max: float = 0.05
    refusals: Refusals | None = None  # who was refused in the last minutes
    alarms: tuple[Alarm, ...] = ()
    bucket_tokens: float | None = None
    bucket_capacity: float | None = None
    is_bucket_unavailable: bool = False  # as this process found; what others found is among the alarms
    bucket_problem: str = ""  # the error of its last call that failed
    is_log_full: bool = False  # likewise
    loop_problems: tuple[str, ...] = ()  # problems with the loops of the process that made this
    process: str = ""  # the process that made this, by its name in reports
    store_problem: str | None = None  # the error of the part that does not answer
    log_problem: str | None = None
    database_problem: str | None = None
    shadow: Shadow | None = None  # what the policy of RATE_POLICY_SHADOW would decide
    ticks_waiting: int | None = None  # tasks in the queue of the control worker; only read if the controller is silent
    store_memory: tuple[int, int] | None = None  # bytes used by the control store, and its limit (0: none); likewise
    serves_clients: bool = False  # an ingest process made it: its clients can't reach what it can't reach either

    @property
    def is_controller_silent(self) -> bool:
        """Whether the controller has not published for too long, or never has."""
        return self.controller_age is None or self.controller_age > silent_seconds(self.controller_period)

    @property
    def seconds_to_empty(self) -> float | None:
        """Seconds until the lag is stored at the current pace, if no more is admitted; None: unknown.

        While consumption is paused, the last pace does not predict anything.
        """
        if self.lag is None:
            return None
        if self.lag == 0:
            return 0.0
        if self.pauses:
            return None
        return self.lag / self.drain_rate if self.drain_rate else None

    @property
    def stuck(self) -> dict[int, float]:
        """Seconds without a stored event, for each partition that has events, is not paused, and exceeds the limit."""
        return {
            partition: seconds
            for partition, seconds in sorted(self.no_progress_seconds.items())
            if seconds >= self.no_progress_seconds_max and not paused(self.pauses or (), partition)
        }

    @property
    def consumption(self) -> str:
        """Whether events are read from the log and stored: running, paused, stalled or unknown."""
        word = consumption_word(self.pauses)
        return "stalled" if word != "paused" and self.stuck else word

    @property
    def rate_decided_by(self) -> str:
        """The reason for the current rate, in a few words."""
        if self.rate is None:
            return "unknown"
        if self.store_problem is not None:
            return "last known, falling"
        if self.breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN) and self.rate == self.floor_rate:
            return "breaker is open"
        if self.override is not None:
            return "set by an operator"
        if self.is_controller_silent:
            return "controller is silent"
        is_full = self.mode is Mode.NORMAL and self.rate == self.explanation.rate_max
        explained = "the full rate" if is_full else self.explanation.reason
        return "lag is unknown" if self.mode is Mode.UNKNOWN else explained or f"the mode is {self.mode.value}"


def silent_seconds(period: float) -> float:
    """The time without a publication after which the controller counts as silent; `period` is of the control loop."""
    return max(STALE_PERIODS * period, SILENT_SECONDS_MIN)


def make_inputs(
    settings: Settings,
    *,
    at: float,
    state: ControlState | None,
    controller_age: float | None,
    outlook: Outlook,
    store_problem: str | None,
    log_problem: str | None,
) -> HealthInputs:
    """The snapshot. `state` is None if the control store does not answer: then no old state is shown as current.

    Lag and progress come from the controller, because it reads PostgreSQL: the log may have commits for events that
    PostgreSQL has lost. If the controller is silent, they come from the log.
    """
    rate = None if state is None else state.rate
    known = HealthInputs(
        at=at,
        mode=Mode.UNKNOWN,
        rate=None if rate is None else rate.rate,
        base_rate=None if rate is None else rate.base_rate,
        floor_rate=settings.rate_min if state is None or not state.floor_rate else state.floor_rate,
        override=None if state is None else state.override,
        explanation=explanation_of(settings, state),
        lag=None if outlook.lag_by_partition is None else sum(outlook.lag_by_partition.values()),
        lag_by_partition=outlook.lag_by_partition,
        drain_rate=outlook.drain_rate,
        breaker=BreakerState.UNKNOWN if state is None else state.breaker,
        pauses=None if state is None else state.pauses,
        controller_age=controller_age,
        controller_period=settings.regulate_seconds,
        event_log="kafka" if settings.log_scheme == "kafka" else "redis",
        log_copies=settings.log_copies,
        sink=settings.sink_name,
        no_progress_seconds=outlook.no_progress_seconds,
        no_progress_seconds_max=settings.no_progress_seconds_max,
        traffic=outlook.traffic,
        refused_ratio_max=settings.refused_ratio_max,
        bucket_tokens=outlook.bucket_tokens,
        ticks_waiting=outlook.ticks_waiting,
        store_memory=outlook.store_memory,
        store_problem=store_problem,
        log_problem=log_problem,
    )
    if rate is None or known.is_controller_silent:
        explanation = known.explanation.without_figures()
        return replace(known, mode=explanation.mode_of_lag(known.lag), explanation=explanation)
    return _with_controllers_word(known, rate)


def _with_controllers_word(known: HealthInputs, rate: PublishedRate) -> HealthInputs:
    shadow = None if rate.policy is None else rate.policy.shadow
    known = replace(
        known,
        mode=rate.mode,
        alarms=rate.alarms,
        lag=rate.lag,
        lag_by_partition=None,
        shadow=shadow,
    )
    consumption = rate.consumption
    if consumption is None:
        return known
    stood = consumption.no_progress_seconds
    return replace(
        known,
        lag_by_partition=consumption.lag_by_partition,
        drain_rate=consumption.drain_rate if known.drain_rate is None else known.drain_rate,
        no_progress_seconds=known.no_progress_seconds if stood is None else stood,
    )
