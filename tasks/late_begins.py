"""The command that accepts a late begin: the sink is meant to lack what the reason `began_late` is about."""

import logging

from pipeline.health.judge import duration
from pipeline.late_begin import EVENTS_SEARCHED, accepted_data, late_begin_words, shown_late_begins
from pipeline.names import ControlEventKind
from tasks.commands import CommandError
from tasks.context import WorkerContext

_logger = logging.getLogger(__name__)


def accept(context: WorkerContext, actor: str, why: str) -> str:
    """Record that the late begins which are shown now are meant. Raises CommandError if there are none.

    The control event is the only record: the next tick of the controller leaves these late begins out, by their
    partitions and offsets.
    """
    settings, log_id = context.settings, context.log.identity().log_id
    positions = context.log.positions()  # before the offsets
    stored = context.offsets.stored_offsets(log_id)
    events, now = context.events.last(EVENTS_SEARCHED), context.control_store.state().time
    shown = shown_late_begins(settings, log_id, positions, stored, events=events, now=now)
    if not shown:
        raise CommandError("there is nothing to accept: `began_late` is no reason now")
    data = accepted_data(settings, log_id, shown)
    context.events.record(ControlEventKind.LATE_BEGIN_ACCEPTED, actor=actor, why=why, data=data)
    _logger.warning("late begin accepted by %s: %s", actor, why, extra={"action": "late_begin_accepted", **data})
    return (
        f"Accepted by {actor}: {why}. {late_begin_words(settings, shown.values())}. Health leaves that out "
        f"from the next tick on (within {duration(settings.regulate_seconds)}). A later, other late begin is a reason "
        "again."
    )
