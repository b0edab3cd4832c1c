"""The task that deletes expired events and dead letters."""

import logging
from typing import Any

from celery import shared_task

from pipeline.errors import SluiceError, in_brief
from pipeline.names import AlarmCode, BreakerState, Mode
from pipeline.ports.control import Trouble, paused
from pipeline.retention import Expired, expire, is_on, may_be_prepared
from tasks.context import WorkerContext, context_of

_logger = logging.getLogger(__name__)

_REPORTER = "retention"  # in place of a process: each control process may run the next tick


@shared_task(name="sluice.expire", bind=True)
def expire_rows(self: Any) -> None:
    """Delete expired events and dead letters for a while; nothing while PostgreSQL fails or consumption is paused."""
    tick(context_of(self.app.sluice_settings))


def tick(context: WorkerContext) -> None:
    """One tick of retention. Raises nothing that is a server's fault."""
    if not is_on(context.settings):
        return
    try:
        state = context.control_store.state()
        if state.breaker is not BreakerState.CLOSED or state.pauses is None or paused(state.pauses):
            return
        done = _expire(context, is_behind=state.rate is None or state.rate.mode is not Mode.NORMAL)
    except SluiceError as error:
        done = Expired(problem=f"nothing is deleted: {in_brief(error)}")
    _report(context, done)


def _expire(context: WorkerContext, *, is_behind: bool) -> Expired:
    settings, facts = context.settings, context.retention.facts()
    if may_be_prepared(settings, facts):
        for words in context.schema.set_retention(
            event_days=settings.retention_days or None, letter_days=settings.dead_letter_days or None
        ):
            _logger.warning("retention: %s", words, extra={"action": "retention_set"})
    return expire(settings, context.retention, context.clock, is_behind=is_behind)


def _report(context: WorkerContext, done: Expired) -> None:
    """Count what was deleted, log it, and let health show the problem."""
    counts = {"expired:log_events": done.events, "expired:dead_letters": done.letters}
    context.drain_counters.count({name: float(count) for name, count in counts.items() if count})
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
    if done.problem is not None:
        _logger.warning("retention: %s", done.problem, extra={"action": "retention_problem"})
    try:
        context.troubles.report(_REPORTER, [] if done.problem is None else [Trouble(AlarmCode.RETENTION, done.problem)])
    except SluiceError as error:
        _logger.warning("retention: the problem can't be reported: %s", error, extra={"action": "retention_problem"})
