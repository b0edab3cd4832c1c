"""The task that deletes expired events and dead letters, and records of the event log that were stored long ago."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import shared_task

from pipeline.errors import SluiceError, in_brief
from pipeline.names import AlarmCode, BreakerState, Mode
from pipeline.ports.control import Trouble, paused
from pipeline.retention import Expired, Trimmed, expire, has_rows, may_be_prepared, prepare
from tasks.context import WorkerContext, context_of

_logger = logging.getLogger(__name__)

_REPORTER = "retention"  # in place of a process: each control process may run the next tick


@shared_task(name="sluice.expire", bind=True)
def expire_rows(self: Any) -> None:
    """Delete expired events and dead letters for a while; nothing while PostgreSQL fails or consumption is paused."""
    tick(context_of(self.app.sluice_settings))


def tick(context: WorkerContext) -> None:
    """One tick of retention. Raises nothing that is a server's fault."""
    settings = context.settings
    if not has_rows(settings) and not settings.log_keep_hours:
        return
    done, trimmed = Expired(), Trimmed()
    try:
        state = context.control_store.state()
        if state.breaker is not BreakerState.CLOSED or state.pauses is None or paused(state.pauses):
            return
        if has_rows(settings):
            done = _expire(context, is_behind=state.rate is None or state.rate.mode is not Mode.NORMAL)
        if settings.log_keep_hours:
            trimmed = _trim(context, partial(paused, state.pauses))
    except SluiceError as error:
        done.problem = done.problem or f"nothing is deleted: {in_brief(error)}"
    _report(context, done, trimmed)


def _trim(context: WorkerContext, is_paused: Callable[[int], bool]) -> Trimmed:
    try:
        return context.log_retention.tick(context.known_log().log_id, is_paused)
    except SluiceError as error:
        return Trimmed(problem=f"the event log is not trimmed: {in_brief(error)}")


def _expire(context: WorkerContext, *, is_behind: bool) -> Expired:
    settings, facts = context.settings, context.retention.facts()
    if may_be_prepared(settings, facts):
        for words in prepare(settings, context.schema):
            _logger.warning("retention: %s", words, extra={"action": "retention_set"})
    return expire(settings, context.retention, context.clock, is_behind=is_behind)


def _report(context: WorkerContext, done: Expired, trimmed: Trimmed) -> None:
    """Count what was deleted, log it, and let health show the problems."""
    counts = {
        "expired:log_events": done.events,
        "expired:dead_letters": done.letters,
        "expired:event_log": trimmed.records,
        "expired:event_ids": done.ids,
    }
    context.drain_counters.count({name: float(count) for name, count in counts.items() if count})
    if done.days:
        _logger.info(
            "retention: dropped %s%s",
            ", ".join(done.days),
            f"; the events of {done.days_uncounted} of them are not counted" if done.days_uncounted else "",
            extra={"action": "days_dropped", "days": done.days},
        )
    if done.ids:
        _logger.info("retention: deleted %d expired ids", done.ids, extra={"action": "ids_expired", "ids": done.ids})
    if done.events or done.letters:
        level = logging.WARNING if done.letters_never_stored else logging.INFO
        _logger.log(
            level,
            "retention: deleted %d events and %d dead letters, of which %d were never stored",
            done.events,
            done.letters,
            done.letters_never_stored,
            extra={"action": "expired", "events": done.events, "dead_letters": done.letters},
        )
    if trimmed.records:
        _logger.info(
            "retention: deleted %d stored records of the event log",
            trimmed.records,
            extra={"action": "log_trimmed", "records": trimmed.records},
        )
    problems = [problem for problem in (done.problem, trimmed.problem) if problem is not None]
    for problem in problems:
        _logger.warning("retention: %s", problem, extra={"action": "retention_problem"})
    try:
        context.troubles.report(_REPORTER, [Trouble(AlarmCode.RETENTION, problem) for problem in problems])
    except SluiceError as error:
        _logger.warning("retention: the problem can't be reported: %s", error, extra={"action": "retention_problem"})
