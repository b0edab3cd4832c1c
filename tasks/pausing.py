"""Pauses that only an operator may lift."""

import logging
from typing import Any

from pipeline.errors import RecoverableError
from pipeline.event_text import pause_text
from pipeline.names import PauseReason
from pipeline.ports.control import OperatorPause
from tasks.context import WorkerContext

_logger = logging.getLogger(__name__)


def pause_until_resumed(
    context: WorkerContext,
    reason: PauseReason,
    *,
    actor: str,
    why: str,
    partition: int | None = None,
    evidence: dict[str, Any] | None = None,
) -> bool:
    """Pause consumption, of a partition or of all. Store the pause in PostgreSQL, so that it survives a Redis flush.

    `evidence` is the cause of a partition's stop, stored with the pause for operators. Returns False if PostgreSQL
    could not store it. Raises StoreUnavailableError if the pause itself could not be set.
    """
    context.control_store.pause(reason, actor=actor, why=why, partition=partition)
    return keep_pause(context, OperatorPause(reason, actor, why, context.clock.now(), partition), evidence)


def keep_pause(context: WorkerContext, pause: OperatorPause, evidence: dict[str, Any] | None = None) -> bool:
    """Store a pause that holds in PostgreSQL, if it is missing there; False if PostgreSQL does not respond."""
    try:
        context.operators.save_pause(pause, evidence)
    except RecoverableError as error:
        _logger.warning(
            "pause (%s) would not outlive a flush of Redis: %s",
            pause_text(pause.name, pause.partition),
            error,
            extra={"action": "pause"},
        )
        return False
    return True
