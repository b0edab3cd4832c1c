"""The steps of a tick, in their order, from the state in the control store to the rate that is published."""

from collections.abc import Callable
from dataclasses import replace

from pipeline.decide import Ages, decide, decide_shadow
from pipeline.flow.clocks import Look
from pipeline.flow.rate import Decay
from pipeline.flow.shares import Shares, share_out, together
from pipeline.names import AlarmCode, SinkName
from pipeline.ports.control import Bands, Consumption, ControlState, account_limits, effective_rate
from pipeline.ports.log import EventLog
from pipeline.ports.rate import RatePolicy
from pipeline.regulate.clocks import Looks, compare_clocks
from pipeline.regulate.context import ControlAdapters, PolicyOf, SinkQueries
from pipeline.regulate.lost_tail import record_lost_tail
from pipeline.regulate.measure import measure
from pipeline.regulate.offsets import look_after_offsets
from pipeline.regulate.refusal import name_refused_sink
from pipeline.regulate.report import RegulateReport
from pipeline.regulate.restore import restore
from pipeline.regulate.sample import Sample
from pipeline.regulate.stalled import end_stalled, name_standing, note_progress
from pipeline.regulate.troubles import hear_troubles
from pipeline.settings import Settings


def tick(
    *,
    settings: Settings,
    policy_of: PolicyOf,
    shadow_of: Callable[[Bands | None], RatePolicy | None],
    log: EventLog,
    sink: SinkQueries,
    control: ControlAdapters,
    actor: str,
) -> RegulateReport:
    """Run the steps of one tick; the caller holds the leases. Arguments and errors are those of `regulate`."""
    wall, asked_at = control.clock.now(), control.clock.monotonic()
    state = control.store.state()
    looks = Looks(
        by_wall=Look(state.time, wall, control.clock.now()),
        by_monotonic=Look(state.time, asked_at, control.clock.monotonic()),
    )
    ages = _ages(state, control)
    sample = Sample(settings.sink_name)
    if sink.schema_problem is not None:
        sample.critical(
            AlarmCode.SCHEMA_REFUSED,
            f"The database's schema is refused: {sink.schema_problem}",
            "which version of Sluice runs where, and the table schema_migrations",
        )
    if sink.server_problem is not None and sample.sink is SinkName.POSTGRESQL:
        name_refused_sink(sample, sink.server_problem)
    elif sink.server_problem is not None:  # an archive stores without it
        sample.problems.append(f"PostgreSQL is refused, and does not keep what operators set: {sink.server_problem}")
    if sink.session_problem is not None:
        sample.degraded(
            AlarmCode.FEW_SESSIONS,
            f"Workers for batches do not start, because PostgreSQL allows too few sessions: {sink.session_problem}",
            "docs/database.md; those that run already go on",
        )
    restored = restore(state, control.store, sink, sample, actor)
    positions = measure(state, log, sink, sample, control.clock)
    record_lost_tail(state, sample, control.events, actor)
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
        look_after_offsets(log, positions, sample, sink=sink, control=control, state=state, actor=actor)
        sample.alarms += [] if late is None else [late]
    hear_troubles(control, sample)
    compare_clocks(looks, sample, settings, actor)
    known = control.store.state() if restored else state
    policy = policy_of(known.bands)
    decay = Decay.from_settings(settings)
    decided = decide(policy, known, sample.measured, ages, decay)
    shadow = shadow_of(known.bands)
    beside = None if shadow is None else decide_shadow(shadow, known, sample.measured, ages, decay)
    note_progress(state, sample, settings, control)
    name_standing(sample, settings, sink)  # before a drain is ended, because that could change the reason
    terminated = end_stalled(state, sample, settings=settings, sink=sink, control=control, actor=actor)
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


def _ages(state: ControlState, control: ControlAdapters) -> Ages | None:
    """The age of the published values, independent of steps of the store's wall clock; None: no lag was ever known."""
    if state.rate is None or state.rate.lag_known_at is None:
        return None
    published_at, known_at, now = state.rate.published_at, state.rate.lag_known_at, control.clock.monotonic()
    return Ages(
        lag=control.lag_age.of(known_at, state.time - known_at, now=now),
        rate=control.rate_age.of(published_at, state.time - published_at, now=now),
    )


def _consumption(state: ControlState, sample: Sample, ages: Ages | None) -> Consumption | None:
    """How far the log is consumed, and the drain rate since the last tick with a known lag."""
    if sample.lag is None or sample.consumed is None:
        return None
    last = state.rate.consumption if state.rate is not None else None
    drain_rate = None
    if last is not None and ages is not None and ages.lag > 0 and sample.consumed >= last.consumed:
        drain_rate = (sample.consumed - last.consumed) / ages.lag
    return Consumption(sample.lag, sample.consumed, drain_rate, sample.no_progress_seconds, sample.held)
