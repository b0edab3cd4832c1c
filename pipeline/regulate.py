"""One tick of the control loop: measures the lag, decides and publishes the rate, and handles stuck partitions."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from pipeline.clock import Clock, SystemClock
from pipeline.decide import Ages, Measured, decide, decide_shadow
from pipeline.errors import SinkMisconfiguredError, SinkStandbyError, SluiceError, StoreUnavailableError, in_brief
from pipeline.flow.age import Age
from pipeline.flow.clocks import Look, difference_words
from pipeline.flow.lag import held_lags, lag_by_partition
from pipeline.flow.rate import Decay
from pipeline.flow.shares import Shares, share_out, together
from pipeline.late_begin import LateBegins
from pipeline.names import (
    LEASE_MEASURE,
    LEASE_REGULATE,
    LEASE_TICK,
    REFUSALS,
    AlarmCode,
    BreakerState,
    ControlEventKind,
    PauseReason,
    ProblemCode,
    Severity,
    SinkName,
)
from pipeline.ports.control import (
    Alarm,
    Bands,
    Consumption,
    ControlEvents,
    ControlState,
    ControlStore,
    Leases,
    OffsetFence,
    Progress,
    PublishedRate,
    Troubles,
    account_limits,
    effective_rate,
    paused,
)
from pipeline.ports.log import LOST_SHOWN_SECONDS, EventLog, LogIdentity, PartitionPosition
from pipeline.ports.offers import Offers
from pipeline.ports.offset_store import StoredOffsets
from pipeline.ports.operator_store import OperatorState
from pipeline.ports.rate import BatchStart, RatePolicy
from pipeline.settings import Settings
from pipeline.text import NAMED_MAX, counted, some_of

_logger = logging.getLogger(__name__)

# Share of the period. The tick of a second Beat finds the lease taken; a late tick does not block the next one.
_LEASE_SHARE: Final = 0.8
# A tick that waits for a silent server takes seconds. Those that come meanwhile return at once: they would occupy all
# processes of `control`, and probes and hints would wait behind them. After this time a tick counts as killed.
_TICK_SECONDS_MAX: Final = 10.0
# Makes the rate policy from the bands that an operator set (None: none).
PolicyOf = Callable[[Bands | None], RatePolicy]

# Time without a tick after which the progress of the partitions is forgotten: periods, but no less than the seconds. A
# tick may take seconds while a server does not respond, whatever the period is.
_PROGRESS_PERIODS_MAX: Final = 3
_PROGRESS_SECONDS_MIN: Final = 15.0
# Problems with a server that ingest processes report. All of them usually have the same one: it is one alarm.
_OF_SERVERS: Final[Mapping[str, Severity]] = {
    ProblemCode.LOG_DOWN: Severity.CRITICAL,
    ProblemCode.LOG_FULL: Severity.CRITICAL,
    ProblemCode.BUCKET_UNAVAILABLE: Severity.DEGRADED,
}
_REPORTERS_SHOWN: Final = 3  # processes
_EVENTS_SEARCHED: Final = 1000  # control events, for a loss that was recorded within the hour: as many as are kept


@dataclass(frozen=True, slots=True)
class ControlAdapters:
    """The adapters of the control store that a tick uses."""

    store: ControlStore
    events: ControlEvents
    leases: Leases
    progress: Progress
    fence: OffsetFence
    troubles: Troubles | None = None  # None: no process reports problems
    clock: Clock = field(default_factory=SystemClock)
    lag_age: Age = field(default_factory=Age)  # of the last known lag; kept from tick to tick, as rate_age is
    rate_age: Age = field(default_factory=Age)  # of the last publication
    late_begins: LateBegins = field(default_factory=LateBegins)  # kept from tick to tick
    offers: Offers | None = None  # None: no ingest process reports what accounts offer


@dataclass(frozen=True, slots=True)
class SinkQueries:
    """The queries that a tick sends to PostgreSQL; each may raise a SluiceError."""

    stored_offsets: Callable[[str], StoredOffsets]  # of a log_id
    settled_offsets: Callable[[str], dict[int, int]]  # log_id -> the offsets, after all open transactions have ended
    load_operator_state: Callable[[], OperatorState]  # settings of operators, and pauses of drains that stopped
    terminate_drainer: Callable[[str, int], bool]  # log_id, partition -> whether a holding backend was ended
    # log_id, partition -> the reason why no record of it is stored, in words; may also query Celery's workers
    why_standing: Callable[[str, int], str]
    schema_problem: str | None = None  # the reason why the schema could not be updated, if only an operator can fix it
    server_problem: str | None = None  # the reason why the server can't be used at all, as the migration found
    session_problem: str | None = None  # the reason why workers for batches do not start, as the last look found
    # log_id, end of each partition: what a tick has seen, also if PostgreSQL does not answer; raises nothing
    see_log: Callable[[str, Mapping[int, int]], None] = field(default=lambda *_: None)
    # log_id, end of each partition -> an alarm for each former log with events that are not stored
    former_logs: Callable[[str, Mapping[int, int]], Sequence[Alarm]] = field(default=lambda *_: ())


@dataclass(frozen=True, slots=True)
class RegulateReport:
    """The result of one tick; `problems` has the steps that failed, in words."""

    ran: bool  # False: another tick ran within this period, or is still under way
    published: PublishedRate | None = None
    lag: dict[int, int] | None = None  # events, for each partition that answered; None: unknown
    restored: bool = False
    terminated: tuple[int, ...] = ()
    database_answered: bool = False  # PostgreSQL returned the stored offsets
    problems: tuple[str, ...] = ()
    is_measure_due: bool = False  # the caller is to measure what PostgreSQL holds


@dataclass(frozen=True, slots=True)
class _Looks:
    """One read of the control store's clock, timed by the two clocks of this machine."""

    by_wall: Look
    by_monotonic: Look


@dataclass(slots=True)
class _Sample:
    """A tick's measurements of the log; None if unknown."""

    sink: SinkName
    is_database_unavailable: bool = False
    log_id: str | None = None
    stored: dict[int, int] | None = None
    database_clock: Look | None = None  # by the monotonic clock
    lag: dict[int, int] | None = None  # of each partition that answered
    held: dict[int, int] = field(default_factory=dict)  # the assumed lag of the others
    ends: dict[int, int] = field(default_factory=dict)  # next offset to append, of each partition that answered
    batches: dict[int, BatchStart] = field(default_factory=dict)  # where and when the newest ones began
    consumed: int | None = None  # next offsets to store, summed
    no_progress_seconds: dict[int, float] | None = None  # by partition with events
    lost: int = 0  # accepted events that the log lost before they were stored
    incarnation: str = ""  # that lost them
    alarms: list[Alarm] = field(default_factory=list)  # published with the rate, and logged
    problems: list[str] = field(default_factory=list)  # logged only

    @property
    def total_lag(self) -> int | None:
        """Events; None if unknown."""
        return None if self.lag is None else sum(self.lag.values()) + sum(self.held.values())

    @property
    def measured(self) -> Measured | None:
        """The policy's part of the measurements; None if the lag is unknown."""
        if self.lag is None:
            return None
        return Measured(self.ends, self.lag, self.held, self.batches, self.log_id or "")

    def degraded(self, code: str, what: str, look_at: str, partition: int | None = None) -> None:
        """Add a problem that does not stop accepting and storing events."""
        self.alarms.append(Alarm(code, Severity.DEGRADED, what, look_at, partition))

    def critical(self, code: AlarmCode, what: str, look_at: str, partition: int | None = None) -> None:
        """Add a problem because of which events are not accepted, not stored or lost."""
        self.alarms.append(Alarm(code, Severity.CRITICAL, what, look_at, partition))


def regulate(
    *,
    settings: Settings,
    policy_of: PolicyOf,
    log: EventLog,
    sink: SinkQueries,
    control: ControlAdapters,
    actor: str,
    shadow_of: Callable[[Bands | None], RatePolicy | None] = lambda _: None,
) -> RegulateReport:
    """Run one tick, unless another ran within the period or is under way.

    Raises StoreUnavailableError; other errors are in the report. An unknown lag is never treated as 0: the last rate
    stays, then decays by the time since the lag was known. `policy_of` makes the rate policy from the bands that an
    operator set, `shadow_of` one that only shows its rate.
    """
    period = settings.regulate_seconds
    held = control.leases.take_in_order(
        [
            (LEASE_REGULATE, period * _LEASE_SHARE),
            (LEASE_TICK, _TICK_SECONDS_MAX),
            # Ticks come a little early or late: the one that is due finds this lease at its end.
            (LEASE_MEASURE, max(period * _LEASE_SHARE, settings.measure_seconds - period / 2)),
        ]
    )
    if len(held) < 2:
        return RegulateReport(ran=False)
    under_way = held[1]
    try:
        report = _tick(
            settings=settings,
            policy_of=policy_of,
            shadow_of=shadow_of,
            log=log,
            sink=sink,
            control=control,
            actor=actor,
        )
    finally:
        with suppress(StoreUnavailableError):  # then it expires
            control.leases.give_back(LEASE_TICK, under_way)
    return replace(report, is_measure_due=len(held) > 2)


def _tick(
    *,
    settings: Settings,
    policy_of: PolicyOf,
    shadow_of: Callable[[Bands | None], RatePolicy | None],
    log: EventLog,
    sink: SinkQueries,
    control: ControlAdapters,
    actor: str,
) -> RegulateReport:
    wall, asked_at = control.clock.now(), control.clock.monotonic()
    state = control.store.state()
    looks = _Looks(
        by_wall=Look(state.time, wall, control.clock.now()),
        by_monotonic=Look(state.time, asked_at, control.clock.monotonic()),
    )
    ages = _ages(state, control)
    sample = _Sample(settings.sink_name)
    if sink.schema_problem is not None:
        sample.critical(
            AlarmCode.SCHEMA_REFUSED,
            f"The database's schema is refused: {sink.schema_problem}",
            "which version of Sluice runs where, and the table schema_migrations",
        )
    if sink.server_problem is not None and sample.sink is SinkName.POSTGRESQL:
        _name_refused_sink(sample, sink.server_problem)
    elif sink.server_problem is not None:  # an archive stores without it
        sample.problems.append(f"PostgreSQL is refused, and does not keep what operators set: {sink.server_problem}")
    if sink.session_problem is not None:
        sample.degraded(
            AlarmCode.FEW_SESSIONS,
            f"Workers for batches do not start, because PostgreSQL allows too few sessions: {sink.session_problem}",
            "docs/database.md; those that run already go on",
        )
    restored = _restore(state, control.store, sink, sample, actor)
    positions = _measure(state, log, sink, sample, control.clock)
    _record_lost_tail(state, sample, control.events, actor)
    if sample.stored is not None:
        # Before the log's commits are corrected: they say what another sink has stored.
        late = control.late_begins.look(
            settings,
            sample.log_id or "",
            positions,
            sample.stored,
            state=state,
            events=control.events,
            actor=actor,
        )
        _look_after_offsets(log, positions, sample, sink=sink, control=control, state=state, actor=actor)
        sample.alarms += [] if late is None else [late]
    _hear_troubles(control, sample)
    _compare_clocks(looks, sample, settings, actor)
    known = control.store.state() if restored else state
    policy = policy_of(known.bands)
    decay = Decay.from_settings(settings)
    decided = decide(policy, known, sample.measured, ages, decay)
    shadow = shadow_of(known.bands)
    beside = None if shadow is None else decide_shadow(shadow, known, sample.measured, ages, decay)
    _note_progress(state, sample, settings, control)
    _name_standing(sample, settings, sink)  # before a drain is ended, because that could change the reason
    terminated = _end_stalled(state, sample, settings=settings, sink=sink, control=control, actor=actor)
    known_at = state.rate.lag_known_at if state.rate is not None else None
    # If the reasons to pause are lost and PostgreSQL is unavailable, the breaker's reason may be among them.
    base_rate = policy.floor_rate if sample.is_database_unavailable else decided.rate
    published = control.store.publish_rate(
        base_rate=base_rate,
        floor_rate=policy.floor_rate,
        mode=decided.mode,
        lag=sample.total_lag,
        lag_known_at=state.time if sample.lag is not None else known_at,
        actor=actor,
        consumption=_consumption(state, sample, ages),
        alarms=sample.alarms,
        policy=replace(decided.record, shadow=beside),
        shares=_share_out(effective_rate(known, base_rate, policy.floor_rate), settings, known, control),
    )
    now = control.clock.monotonic()
    control.rate_age.begin(published.published_at, now=now)
    if sample.lag is not None:
        control.lag_age.begin(published.lag_known_at, now=now)
    problems = [*(alarm.what for alarm in sample.alarms), *sample.problems]
    answered = sample.stored is not None
    return RegulateReport(True, published, sample.lag, restored, terminated, answered, tuple(problems))


def _share_out(rate: float, settings: Settings, state: ControlState, control: ControlAdapters) -> Shares | None:
    """The accounts' shares of a rate; without a share if they are off. None if nothing holds any account back."""
    limits = account_limits(settings, state.accounts)
    rates = {account: limit.rate for account, limit in limits.items() if limit.rate is not None}
    if control.offers is None or not (settings.admission_shares or rates):
        return None
    shares = share_out(
        together(control.offers.reported()),
        rate=rate,
        burst_seconds=settings.burst_seconds,
        period_seconds=settings.regulate_seconds,
        weights={account: limit.weight for account, limit in limits.items()},
        limits=rates,
        has_levels=settings.admission_levels,
    )
    return shares if settings.admission_shares else shares.limits_only(rates)


def _restore(state: ControlState, store: ControlStore, sink: SinkQueries, sample: _Sample, actor: str) -> bool:
    """Restore the reasons to pause, and what operators set, after a flush; returns whether anything was missing.

    Without PostgreSQL they stay unknown. Then workers use the last state that they know; they could not store anything
    anyway. Only the limits of accounts are missing if an earlier version restored, or runs beside this one.
    """
    has_pauses = state.pauses is not None
    if has_pauses and (state.accounts is not None or state.breaker is not BreakerState.CLOSED):
        return False
    try:
        asked = sink.load_operator_state()
    except SluiceError as error:
        if has_pauses:
            sample.degraded(
                AlarmCode.NOT_RESTORED,
                f"The limits of accounts that operators set are not restored: {in_brief(error)}",
                "PostgreSQL: they are restored from there",
            )
            return False
        sample.is_database_unavailable = True
        sample.degraded(
            AlarmCode.NOT_RESTORED,
            f"The reasons to pause are lost and not restored: {in_brief(error)}",
            "PostgreSQL: they are restored from there",
        )
        return False
    has_restored_limits = store.restore_account_limits(asked.accounts, actor=actor)
    return store.restore(asked.pauses, actor=actor, override=asked.override, bands=asked.bands) or has_restored_limits


def _hear_troubles(control: ControlAdapters, sample: _Sample) -> None:
    """Turn the problems that processes report into alarms of the system."""
    by_code: dict[str, list[tuple[str, str]]] = {}
    for process, problems in (control.troubles.reported() if control.troubles is not None else {}).items():
        for problem in problems:
            if problem.code in _OF_SERVERS:
                by_code.setdefault(problem.code, []).append((process, problem.what))
            elif problem.code == AlarmCode.DATABASE_REFUSED:
                _name_refused_sink(sample, problem.what)
            else:
                sample.degraded(problem.code, f"{process}: {problem.what}", _where(process, problem.code))
    for code, found in sorted(by_code.items()):
        names, (_, what) = sorted(process for process, _ in found), found[0]
        reporters = ", ".join(names[:_REPORTERS_SHOWN]) + (
            f" and {len(names) - _REPORTERS_SHOWN} more" if len(names) > _REPORTERS_SHOWN else ""
        )
        sample.alarms.append(Alarm(code, _OF_SERVERS[code], f"{reporters}: {what}", f"reported by {reporters}"))


def _where(process: str, code: str) -> str:
    """Where to look at a problem that a process reports."""
    if code == AlarmCode.CLOCKS_DIFFER:
        return _synchronise(process)
    return "docs/retention.md" if code == AlarmCode.RETENTION else _read_log(process)


def _read_log(process: str) -> str:
    return f"the log of {process} (action loop_failed); a restart of that process may help"


def _synchronise(who: str) -> str:
    return (
        f"time synchronisation (NTP, chrony) on the host of {who}; where several differ, on that of the control store"
    )


def _name_refused_sink(sample: _Sample, problem: str) -> None:
    """Report a database or an archive in which nothing can be stored until an operator changes it."""
    if any(alarm.code in REFUSALS for alarm in sample.alarms):
        return
    sink = "database" if sample.sink is SinkName.POSTGRESQL else "archive"
    what = f"The {sink} is refused, and nothing is stored: {problem}"
    sample.critical(AlarmCode.DATABASE_REFUSED, what, f"docs/{sink}.md; events wait in the event log meanwhile")


def _is_refused(error: SluiceError, state: ControlState) -> bool:
    """Whether the database can't be used until an operator changes it.

    A standby counts from the second tick in a row that finds it: in a failover, DATABASE_URL may reach the demoted
    server for some seconds. The last tick may have been another process', so its published alarms say what it found.
    """
    if not isinstance(error, SinkStandbyError):
        return isinstance(error, SinkMisconfiguredError)
    last = () if state.rate is None else state.rate.alarms
    return any(in_brief(error) in alarm.what for alarm in last)


def _compare_clocks(looks: _Looks, sample: _Sample, settings: Settings, actor: str) -> None:
    """Report this process and PostgreSQL if their clocks differ from the store's. No decision depends on it."""
    beyond = settings.clock_difference_seconds_max
    ahead = looks.by_wall.ahead_seconds(beyond=beyond)
    if ahead is not None:  # the store's clock is ahead, so this one is behind
        what = f"{actor}: its clock is {difference_words(-ahead)} the control store's (Redis)"
        sample.degraded(AlarmCode.CLOCKS_DIFFER, what, _synchronise(actor))
    database = sample.database_clock
    ahead = None if database is None else database.ahead_of(looks.by_monotonic, beyond=beyond)
    if ahead is not None:
        what = f"PostgreSQL's clock is {difference_words(ahead)} the control store's (Redis)"
        sample.degraded(AlarmCode.CLOCKS_DIFFER, what, _synchronise("PostgreSQL"))


def _ages(state: ControlState, control: ControlAdapters) -> Ages | None:
    """The age of the published values, independent of steps of the store's wall clock; None: no lag was ever known."""
    if state.rate is None or state.rate.lag_known_at is None:
        return None
    published_at, known_at, now = state.rate.published_at, state.rate.lag_known_at, control.clock.monotonic()
    return Ages(
        lag=control.lag_age.of(known_at, state.time - known_at, now=now),
        rate=control.rate_age.of(published_at, state.time - published_at, now=now),
    )


def _consumption(state: ControlState, sample: _Sample, ages: Ages | None) -> Consumption | None:
    """How far the log is consumed, and the drain rate since the last tick with a known lag."""
    if sample.lag is None or sample.consumed is None:
        return None
    last = state.rate.consumption if state.rate is not None else None
    drain_rate = None
    if last is not None and ages is not None and ages.lag > 0 and sample.consumed >= last.consumed:
        drain_rate = (sample.consumed - last.consumed) / ages.lag
    return Consumption(sample.lag, sample.consumed, drain_rate, sample.no_progress_seconds, sample.held)


def _measure(
    state: ControlState, log: EventLog, sink: SinkQueries, sample: _Sample, clock: Clock
) -> list[PartitionPosition]:
    """Measure the lag and the stored offsets. PostgreSQL is not queried if it is known to be unavailable."""
    try:
        identity = log.identity()
        sample.log_id = identity.log_id
        positions = log.positions()
    except SluiceError as error:
        sample.degraded(AlarmCode.LAG_UNKNOWN, f"The lag is unknown: {in_brief(error)}", "the event log's server")
        return []
    for fault in identity.faults:
        raise_alarm = sample.critical if fault.loses_events else sample.degraded
        raise_alarm(AlarmCode.LOG_SET_UP, fault.what, fault.remedy)
    missing = identity.missing_replicas
    if missing is not None:
        raise_alarm = sample.critical if missing.refuses_events else sample.degraded
        raise_alarm(AlarmCode.REPLICAS_MISSING, missing.what, missing.look_at)
    _name_lost_tail(identity, positions, sample)
    if state.breaker in (BreakerState.CLOSED, BreakerState.UNKNOWN) and not sample.is_database_unavailable:
        try:
            asked_at = clock.monotonic()
            stored = sink.stored_offsets(sample.log_id)
            sample.stored, sample.batches = stored.offsets, stored.batches
            if stored.time is not None:
                sample.database_clock = Look(stored.time, asked_at, clock.monotonic())
        except SluiceError as error:
            if _is_refused(error, state):
                _name_refused_sink(sample, str(error))
            else:
                sample.degraded(
                    AlarmCode.OFFSETS_UNKNOWN,
                    f"The stored offsets are unknown; the lag is measured by the log's commits: {in_brief(error)}",
                    f"{sample.sink}; the breaker opens by itself if drains fail too",
                )
    sample.lag = lag_by_partition(positions, sample.stored)
    sample.ends = {position.partition: position.end for position in positions}
    sink.see_log(sample.log_id, sample.ends)
    if sample.lag is not None:
        _measure_missing(state, sample, identity.partitions)
        sample.consumed = sum(position.end for position in positions) - sum(sample.lag.values())
        sample.consumed += sum((sample.stored or {}).get(partition, 0) for partition in sample.held)
    if sample.lag is None:
        sample.degraded(
            AlarmCode.LAG_UNKNOWN,
            f"The lag is unknown: neither the log nor {sample.sink} says how far the log was consumed",
            f"{sample.sink}: it has the stored offsets",
        )
    return positions


def _name_lost_tail(identity: LogIdentity, positions: Sequence[PartitionPosition], sample: _Sample) -> None:
    """Report accepted events that the log lost before they were stored."""
    lost = {position.partition: position.lost for position in positions if position.lost}
    if lost:
        sample.lost, sample.incarnation = sum(lost.values()), identity.incarnation
        where = ", ".join(f"partition {partition}: {count:,}" for partition, count in lost.items())
        sample.critical(
            AlarmCode.LOG_TAIL_LOST,
            f"The event log came back without up to {sample.lost:,} accepted events that were not stored ({where}): "
            f"{identity.began_by or 'it was restarted'}",
            "docs/replication.md, A Redis log that lost its tail",
        )


def _record_lost_tail(state: ControlState, sample: _Sample, events: ControlEvents, actor: str) -> None:
    """Record a loss as a control event, once: the alarm ends, and the event stays.

    Two losses may have the same words, but not the same incarnation of the log too.
    """
    for alarm in sample.alarms:
        if alarm.code == AlarmCode.LOG_TAIL_LOST:
            data = {"events": str(sample.lost), "incarnation": sample.incarnation}
            if _is_recorded(alarm.what, data, events, since=state.time - LOST_SHOWN_SECONDS):
                continue
            _logger.error("%s", alarm.what, extra={"action": "log_tail_lost", "events": sample.lost})
            events.record(ControlEventKind.LOG_TAIL_LOST, actor=actor, why=alarm.what, data=data)


def _is_recorded(what: str, data: Mapping[str, str], events: ControlEvents, *, since: float) -> bool:
    """Whether this loss is among the latest control events. Those of an earlier version have no incarnation."""
    return any(
        event.kind is ControlEventKind.LOG_TAIL_LOST
        and event.why == what
        and (event.data["incarnation"] == data["incarnation"] if "incarnation" in event.data else event.at >= since)
        for event in events.last(_EVENTS_SEARCHED)
    )


def _look_after_offsets(
    log: EventLog,
    positions: list[PartitionPosition],
    sample: _Sample,
    *,
    sink: SinkQueries,
    control: ControlAdapters,
    state: ControlState,
    actor: str,
) -> None:
    """Compare PostgreSQL's stored offsets with the log's own figures and with the mirror of the lowest offsets.

    `positions` were read before PostgreSQL: a higher commit in them belongs to another database.
    """
    log_id, stored = sample.log_id, sample.stored
    assert log_id is not None  # noqa: S101 - the caller has read them
    assert stored is not None  # noqa: S101
    for position in positions:
        consumed = max(position.begin, stored.get(position.partition, 0))
        if position.committed is not None and position.committed > consumed:
            _logger.warning(
                "partition %d: the log has committed offset %d, %s has stored up to %d: the log is corrected",
                position.partition,
                position.committed,
                sample.sink,
                consumed,
                extra={"action": "log_commit_corrected", "partition": position.partition},
            )
            log.commit(log_id, position.partition, consumed)
    if any(_is_behind(position, stored) for position in positions):
        _stop_behind(log, sample, control.store, actor)
    _stop_forgotten(positions, sample, state, control.store, actor)
    try:
        mirror = control.fence.mirror(log_id)
        if not mirror.is_complete:
            control.fence.seed(log_id, mirror.life, sink.settled_offsets(log_id))
        sample.alarms += sink.former_logs(log_id, {position.partition: position.end for position in positions})
    except SluiceError as error:
        sample.problems.append(f"the mirror of the stored offsets, or former logs: {in_brief(error)}")


def _is_behind(position: PartitionPosition, stored: Mapping[int, int]) -> bool:
    """Whether the log would give stored offsets to new events.

    This does not apply to a restarted log that waits for its first append: it reads its lowest offsets before that.
    """
    return position.next_offset is not None and position.next_offset < stored.get(position.partition, 0)


def _stop_behind(log: EventLog, sample: _Sample, store: ControlStore, actor: str) -> None:
    """Stop the partitions whose next event would get an offset that is already stored: drains would skip it.

    A stopped partition is not trimmed. The log's positions are read again, because it may just have advanced.
    """
    try:
        positions = log.positions()
    except SluiceError as error:
        sample.problems.append(f"the log's ends are unknown: {in_brief(error)}")
        return
    stored = sample.stored or {}
    for position in positions:
        if not _is_behind(position, stored):
            continue
        partition, offset = position.partition, stored[position.partition]
        why = (
            f"partition {partition}: {sample.sink} has stored up to offset {offset:,}, and the log goes on with "
            f"{position.next_offset:,}: drains would skip events with the offsets between"
        )
        _logger.error("%s", why, extra={"action": "log_behind_stored", "partition": partition})
        store.pause(PauseReason.LOG_GAP, actor=actor, why=why, partition=partition)
        sample.critical(
            AlarmCode.LOG_BEHIND_STORED,
            f"The event log was reset to an earlier state: {why}",
            "docs/guarantees.md, A log that ends before the stored offset",
            partition,
        )


def _stop_forgotten(
    positions: Sequence[PartitionPosition], sample: _Sample, state: ControlState, store: ControlStore, actor: str
) -> None:
    """Stop the partitions that lack events which neither the sink nor the log has.

    That happens if PostgreSQL is restored, or a standby without the newest commits takes its place, after the log was
    trimmed; or if somebody deletes records of the log that are not stored. If the log has later records, the drain
    finds the hole. An empty partition has no drain that would find it, and its lag is 0. The log was read before the
    sink, so its begin can't have passed the stored offset meanwhile.
    """
    stopped = {pause.partition for pause in state.pauses or () if pause.reason is PauseReason.LOG_GAP}
    for position in positions:
        partition, stored = position.partition, (sample.stored or {}).get(position.partition)
        if stored is None or not stored < position.begin == position.end or partition in stopped:
            continue
        was_stored = position.committed is not None and position.committed >= position.begin
        lost = position.begin - stored
        is_one = lost == 1
        cause = (
            f"{sample.sink} has lost {'it after it was' if is_one else 'them after they were'} trimmed"
            if was_stored
            else f"{'It was' if is_one else 'They were'} deleted from the log, and it does not know that "
            f"{sample.sink} had stored {'it' if is_one else 'all of them'}"
        )
        why = (
            f"partition {partition}: {sample.sink} has stored up to offset {stored:,} only, and the log begins at "
            f"{position.begin:,}: {counted(lost, 'record')} {'is' if is_one else 'are'} in neither. {cause}"
        )
        _logger.error("%s", why, extra={"action": "stored_events_lost", "partition": partition})
        store.pause(PauseReason.LOG_GAP, actor=actor, why=why, partition=partition)


def _measure_missing(state: ControlState, sample: _Sample, partitions: int) -> None:
    """Use the last known lag for partitions that do not answer, and report these partitions."""
    consumption = state.rate.consumption if state.rate is not None else None
    last = {} if consumption is None else {**consumption.lag_held, **consumption.lag_by_partition}
    sample.held = held_lags(sample.lag or {}, partitions, last)
    look_at = "Kafka's brokers; `kafka-topics.sh --describe --unavailable-partitions` names partitions without a leader"
    if len(sample.held) > NAMED_MAX:
        sample.critical(
            AlarmCode.PARTITION_UNAVAILABLE,
            f"{len(sample.held)} of the {partitions} partitions of the event log can't be asked "
            f"({some_of(sample.held)}): events for them are refused, and none are stored",
            f"{look_at}. Those of a topic that was just made get theirs within seconds",
        )
        return
    for partition in sample.held:
        sample.critical(
            AlarmCode.PARTITION_UNAVAILABLE,
            f"Partition {partition} of the event log can't be asked: events for it are refused, and none are stored",
            look_at,
            partition,
        )


def _note_progress(state: ControlState, sample: _Sample, settings: Settings, control: ControlAdapters) -> None:
    """Measure for how long each partition with events has stored none."""
    if sample.log_id is None or sample.stored is None or sample.lag is None:
        return
    # A paused partition is right to store nothing. If the pauses are unknown, no partition is measured either.
    running = [p for p in sample.lag if state.pauses is not None and not paused(state.pauses, p)]
    behind = {p: sample.stored.get(p, 0) for p in running if sample.lag[p] > 0}
    forget_seconds = max(_PROGRESS_PERIODS_MAX * settings.regulate_seconds, _PROGRESS_SECONDS_MIN)
    last = state.rate.consumption if state.rate is not None else None
    if behind or last is None or last.no_progress_seconds != {}:  # otherwise nothing is noted that is to be forgotten
        noted = control.progress.note(sample.log_id, behind, forget_seconds=forget_seconds)
    else:
        noted = {}
    if state.pauses is not None:
        sample.no_progress_seconds = noted


def _end_stalled(
    state: ControlState, sample: _Sample, *, settings: Settings, sink: SinkQueries, control: ControlAdapters, actor: str
) -> tuple[int, ...]:
    """End the drainers of partitions that have lag and make no progress: a frozen one keeps its lock for ever.

    One that is not quiet is looked at again at each tick. Once one is ended, the next one gets until the time has
    passed once more.
    """
    limit = settings.drain_stalled_seconds_max
    standing = {p: seconds for p, seconds in (sample.no_progress_seconds or {}).items() if seconds >= limit}
    if sample.log_id is None or sample.stored is None or not standing:
        return ()
    terminated = []
    ended_at = _ended_at(control.events)
    last = state.rate.consumption if state.rate is not None else None
    before = (last.no_progress_seconds if last is not None else None) or {}
    for partition, seconds in standing.items():
        offset, earlier = sample.stored.get(partition, 0), before.get(partition, 0.0)
        has_passed_again = seconds // limit > (earlier // limit if earlier <= seconds else 0)
        if (partition, offset) in ended_at and not has_passed_again:
            continue
        try:
            if not sink.terminate_drainer(sample.log_id, partition):
                continue  # no backend holds it, or it has just sent something: it is busy with other partitions
        except SluiceError as error:
            sample.degraded(
                AlarmCode.DRAINER_NOT_ENDED,
                f"The drain of partition {partition} makes no progress and could not be terminated: {in_brief(error)}",
                f"{sample.sink}, and the workers",
                partition,
            )
            break  # each further query could take as long, and the rate is not published yet
        terminated.append(partition)
        why = f"partition {partition} stood at offset {offset} for {seconds:.0f} s"
        _logger.warning("ended a stalled drainer: %s", why, extra={"action": "drainer_terminated"})
        data = {"partition": str(partition), "offset": str(offset)}
        control.events.record(ControlEventKind.DRAINER_TERMINATED, actor=actor, why=why, data=data)
    return tuple(terminated)


def _ended_at(events: ControlEvents) -> set[tuple[int, int]]:
    """The partitions whose drainer was ended lately, each with the offset at which it stood."""
    found = set()
    for event in events.last(_EVENTS_SEARCHED):
        if event.kind is ControlEventKind.DRAINER_TERMINATED:
            with suppress(KeyError, ValueError):  # of another version: it does not say which
                found.add((int(event.data["partition"]), int(event.data["offset"])))
    return found


def _name_standing(sample: _Sample, settings: Settings, sink: SinkQueries) -> None:
    """Add the reason for each partition that has stored nothing for long; health adds the time and the event count."""
    for partition, seconds in (sample.no_progress_seconds or {}).items():
        if seconds < settings.no_progress_seconds_max or sample.log_id is None:
            continue
        try:
            why = sink.why_standing(sample.log_id, partition)
        except SluiceError as error:
            why = f"{sample.sink} does not say why: {in_brief(error)}"
        look_at = "the session or worker that is named; the log of the workers for `batches`"
        sample.critical(AlarmCode.STANDS_STILL, f"partition {partition}: {why}", look_at, partition)
