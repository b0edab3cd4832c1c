"""The control loop's tasks: regulate, probe, measure, and the fallback hints.

None of them does what an operator requests. That is the job of remote commands (tasks/remote.py), which are carried out
once: a task's name is not signed, so a recorded tick can be sent again as each other task without arguments.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Final

from celery import Celery, shared_task

from pipeline.errors import (
    RecoverableError,
    SchemaError,
    SchemaNewerError,
    SinkMisconfiguredError,
    SinkStandbyError,
    SluiceError,
    in_brief,
)
from pipeline.event_text import pause_text, rate_text
from pipeline.names import BreakerState, Queue
from pipeline.policies import make_policy, make_shadow
from pipeline.ports.control import ControlState, PublishedRate, paused
from pipeline.probe import ProbeOutcome, probe
from pipeline.regulate import regulate
from pipeline.regulate.context import ControlAdapters, SinkQueries
from pipeline.retention import overdue_seconds
from pipeline.system_metrics import FACTS_SECONDS
from tasks.context import WorkerContext, context_of
from tasks.hints import HINTS_WAITING_MAX, hinted, send_net_hint, shares
from tasks.persist_overrides import persist_changes
from tasks.standstill import Workers
from tasks.sync_keys import are_equal, sync_keys

_logger = logging.getLogger(__name__)

# Of DRAIN_STALLED_SECONDS_MAX: a session that has sent something within this time is not frozen. It drains other
# partitions meanwhile.
QUIET_SHARE: Final = 1 / 3


def _one_line_when_unavailable(function: Callable[..., str | None]) -> Callable[..., str | None]:
    """Log a part of the system that is unavailable, or misconfigured, as one line; the next tick retries.

    The text that a task returns is the result that Flower shows; it is stored nowhere.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> str | None:
        try:
            return function(*args, **kwargs)
        except SluiceError as error:
            name = function.__name__.lstrip("_")
            _logger.warning("%s: %s", name, error, extra={"action": f"{name}_failed"})
            return f"failed: {in_brief(error)}"

    return run


@dataclass(slots=True)
class _Found:
    """What a tick of the control loop leaves for the duties after it."""

    state: ControlState | None = None  # if the last thing that it read of the servers is that
    is_measure_due: bool = False


@shared_task(name="sluice.regulate", bind=True)
def regulate_rate(self: Any) -> str:
    """Tick the control loop, then the fallback for the hints of drains, and measure what PostgreSQL holds if it is due.

    So an idle system needs no tasks for these.
    """
    context = context_of(self.app.sluice_settings)
    found = _Found()
    try:
        words = _regulate_rate(self.app, context, found)
    finally:  # drains don't wait for a control loop with a defect
        hint_words = _send_hints(self.app, context, found)
    if found.is_measure_due:
        _measure(context, found.state)
    return "; ".join(filter(None, (words, hint_words)))


@_one_line_when_unavailable
def _send_hints(app: Celery, context: WorkerContext, found: _Found) -> str | None:
    return tick_hints(app, context, found.state)


@_one_line_when_unavailable
def _regulate_rate(app: Celery, context: WorkerContext, found: _Found) -> str | None:
    """Measure the lag, decide the admitted rate, publish it, and end drainers that are stuck."""
    _migrate_once(context)
    workers = Workers(app, context.settings.sink_name, context.settings.drains_max)
    report = regulate(
        settings=context.settings,
        policy_of=partial(make_policy, context.settings),
        shadow_of=partial(make_shadow, context.settings),
        log=context.log,
        sink=SinkQueries(
            stored_offsets=context.offsets.stored_offsets_and_time,
            settled_offsets=context.offsets.settled_offsets,
            load_operator_state=context.operators.load,
            terminate_drainer=partial(
                context.offsets.end_stalled_drain,
                quiet_seconds=context.settings.drain_stalled_seconds_max * QUIET_SHARE,
            ),
            schema_problem=context.schema_problem,
            server_problem=context.server_problem,
            session_problem=context.few_sessions.problem,
            why_standing=lambda log_id, partition: (
                context.offsets.why_not_stored(log_id, partition) or workers.why_not_drained(partition)
            ),
            see_log=context.former_logs.see,
            former_logs=context.former_logs.alarms,
        ),
        control=ControlAdapters(
            context.control_store,
            context.events,
            context.leases,
            context.progress,
            context.fence,
            context.troubles,
            clock=context.clock,
            lag_age=context.lag_age,
            rate_age=context.rate_age,
            late_begins=context.late_begins,
            offers=context.offers,
        ),
        actor=context.name,
    )
    found.is_measure_due = report.is_measure_due
    if report.database_answered:
        context.few_sessions.look()
        compared = persist_changes(context)
        if are_equal(compared.state.keys_version, compared.saved.keys_version):
            found.state = compared.state
        elif sync_keys(context):
            _logger.info("the API keys were copied to the control store", extra={"action": "keys_mirrored"})
    for problem in report.problems:
        _logger.warning("regulate: %s", problem, extra={"action": "regulate_problem"})
    if report.published is not None:
        _logger.info(
            "rate %.0f events/s (%s), lag %s",
            report.published.rate,
            report.published.mode,
            "unknown" if report.published.lag is None else report.published.lag,
            extra={"action": "regulated", "rate": report.published.rate, "lag": report.published.lag},
        )
    return None if report.published is None else rate_words(report.published)


def rate_words(published: PublishedRate) -> str:
    """What a tick published, for Flower."""
    lag = "unknown" if published.lag is None else f"{published.lag:,}"
    return f"rate {rate_text(published.rate)} ({published.mode}), lag {lag}"


def _migrate_once(context: WorkerContext) -> None:
    """Migrate the schema, once in each process; if that fails, the next tick retries.

    It does not wait for another process that migrates: so a tick ends at once, and a worker can stop at once.
    """
    if context.is_migrated:
        return
    known, context.schema_problem, context.server_problem = context.schema_problem, None, None
    try:
        context.schema.migrate(wait_seconds=0)
        context.is_migrated = True
        context.few_sessions.look()  # so that the first tick names it
    except SchemaNewerError as error:
        # Two versions run together during an upgrade: the control loop must also tick in the older one.
        _logger.warning("%s", error, extra={"action": "schema_newer"})
        context.is_migrated = True
    except RecoverableError as error:
        if isinstance(error, SinkMisconfiguredError) and not isinstance(error, SinkStandbyError):
            context.server_problem = str(error)  # the alarm of each tick repeats it
            return
        _logger.warning("the schema is not checked yet: %s", error, extra={"action": "migrate_failed"})
    except SchemaError as error:
        context.schema_problem = str(error)
        if known != context.schema_problem:  # health and the log line of each tick repeat it
            _logger.error("the schema is refused: %s", error, extra={"action": "schema_refused"})  # noqa: TRY400


@shared_task(name="sluice.probe", bind=True)
@_one_line_when_unavailable
def probe_postgres(self: Any) -> None:
    """While the breaker is open: try a small write, and close the breaker if it succeeds."""
    context = context_of(self.app.sluice_settings)
    report = probe(
        context.control_store,
        context.leases,
        context.sink.probe,
        context.backoff,
        settings=context.settings,
        actor=context.name,
        troubles=context.troubles,
    )
    if report.outcome not in (ProbeOutcome.NOT_OPEN, ProbeOutcome.BUSY):
        level = logging.INFO if report.outcome is ProbeOutcome.WAITING else logging.WARNING  # at each tick
        _logger.log(level, "probe: %s %s", report.outcome, report.why, extra={"action": "probed"})


@shared_task(name="sluice.send_hints", bind=True)
@_one_line_when_unavailable
def send_hints(self: Any) -> str | None:
    """Fallback for the hints of drains: send one where partitions have neither a drain nor a hint, unless paused."""
    return tick_hints(self.app, context_of(self.app.sluice_settings))


def tick_hints(app: Celery, context: WorkerContext, state: ControlState | None = None) -> str:
    """One tick of the fallback; returns what it did, for Flower. Raises StoreUnavailableError, LogUnavailableError.

    `state` is what was just read; otherwise it reads the pauses itself.
    """
    pauses = (context.control_store.pause_state() if state is None else state).pauses
    if pauses is None:  # counts as paused
        return "PAUSED: the pauses are unknown"
    held = ", ".join(pause_text(pause.name, pause.partition) for pause in pauses)
    if paused(pauses):
        return f"PAUSED ({held}): no drain runs"
    identity = context.known_log()
    found = shares(identity.partitions, context.settings.drains_max)
    drained = context.drained.of(identity.log_id, range(identity.partitions))
    left_of = {
        share[0]: [partition for partition in share if partition not in drained and not paused(pauses, partition)]
        for share in found
    }
    lacking = {share: left for share, left in left_of.items() if left}
    most = HINTS_WAITING_MAX * len(found)
    waiting = context.queues.messages(Queue.BATCHES, most) if lacking else []
    if len(waiting) == most:
        return "no hint: no worker takes those that wait"
    # A hint that waits is not lost. Were it sent again, its share would have more turns than others, where a worker has
    # fewer processes than drains.
    under_way = {partition % context.settings.drains_max for partition in hinted(waiting)}
    for share, left in lacking.items():
        if share in under_way:
            continue
        # Any of them: one whose drain always ends its process must not keep the others from their turns.
        send_net_hint(app, context.leases, share, random.choice(left))  # noqa: S311 - no secret
    except_for = f", PAUSED ({held})" if held else ""
    return f"{len(lacking)} of {len(found)} shares have no drain{except_for}"


@shared_task(name="sluice.measure", bind=True)
def measure(self: Any) -> str | None:
    """Measure in case that the control loop's ticks do not."""
    return _measure(context_of(self.app.sluice_settings), None)


@_one_line_when_unavailable
def _measure(context: WorkerContext, state: ControlState | None) -> None:
    """Read PostgreSQL's size, connections and open dead letters, for the metrics; not while it is failing.

    `state` is what was just read; otherwise it reads the breaker's itself.
    """
    if (state or context.control_store.pause_state()).breaker is not BreakerState.CLOSED:
        return
    _make_days(context)
    letters, database = context.dead_letters.count(), context.operators.database_facts()
    facts = {
        "dead_letters": letters.open,
        "dead_letter_conflicts": letters.conflicts,
        "database_bytes": database.size_bytes,
        "connections": database.connections,
        "connections_max": database.connections_max,
        "retention_overdue": _overdue_seconds(context),
    }
    context.counters.note(facts, seconds=FACTS_SECONDS)


def _make_days(context: WorkerContext) -> None:
    """Make the next days' partitions, also if EVENTS_BY_DAY is not set here, and end a change that was given up."""
    try:
        context.retention.make_days()
    except SluiceError as error:  # a lock that passes; otherwise `sluice.expire` reports that no day is ahead
        _logger.debug("the partitions of the next days can't be made: %s", error)


def _overdue_seconds(context: WorkerContext) -> float | None:
    """See overdue_seconds. None also if it can't be read: before a migration, or if PostgreSQL takes too long."""
    if not context.settings.retention_days:
        return None
    try:
        return overdue_seconds(context.settings, context.retention.facts())
    except SluiceError as error:  # the task `sluice.expire` reports it
        _logger.debug("the oldest event's age is unknown: %s", error)
        return None
