"""Pausing for reasons that only a person may lift."""

import logging
from typing import Any

from pipeline.errors import RecoverableError
from pipeline.event_words import pause_words
from pipeline.names import PauseReason
from pipeline.ports.control import AskedPause
from pipeline.sink.control_settings import save_pause
from tasks.parts import Parts

_logger = logging.getLogger(__name__)


def pause_until_resumed(
    parts: Parts,
    reason: PauseReason,
    *,
    by: str,
    why: str,
    partition: int | None = None,
    evidence: dict[str, Any] | None = None,
) -> bool:
    """Pause consumption, of a partition or of all, and keep the reason in PostgreSQL, where a flush of Redis leaves it.

    `evidence` is what made the partition stop, kept with it for people to look at. False where PostgreSQL could not
    keep it. Raises StoreUnavailableError where the pause itself could not be set.
    """
    parts.control.pause(reason, by=by, why=why, partition=partition)
    return keep_pause(parts, AskedPause(reason, by, why, parts.clock.now(), partition), evidence)


def keep_pause(parts: Parts, pause: AskedPause, evidence: dict[str, Any] | None = None) -> bool:
    """Keep a pause that holds in PostgreSQL, where it is not there yet; False where PostgreSQL does not answer."""
    try:
        save_pause(parts.sink, pause, evidence)
    except RecoverableError as error:
        _logger.warning(
            "pause (%s) would not outlive a flush of Redis: %s",
            pause_words(pause.name, pause.partition),
            error,
            extra={"action": "pause"},
        )
        return False
    return True
