"""Pausing for reasons that only a person may lift."""

import logging

from pipeline.errors import RecoverableError
from pipeline.names import PauseReason
from pipeline.sink.control_settings import SavedPause, save_pause
from tasks.parts import Parts

_logger = logging.getLogger(__name__)


def pause_until_resumed(parts: Parts, reason: PauseReason, *, by: str, why: str) -> bool:
    """Pause consumption, and keep the reason in PostgreSQL, so that a flush of Redis does not lift it.

    False where PostgreSQL could not keep it. Raises StoreUnavailableError where the pause itself could not be set.
    """
    parts.control.pause(reason, by=by, why=why)
    return keep_pause(parts, SavedPause(reason, by, why, parts.clock.now()))


def keep_pause(parts: Parts, pause: SavedPause) -> bool:
    """Keep a pause that holds in PostgreSQL, where it is not there yet; False where PostgreSQL does not answer."""
    try:
        save_pause(parts.sink, pause)
    except RecoverableError as error:
        _logger.warning(
            "pause (%s) would not outlive a flush of Redis: %s", pause.reason, error, extra={"action": "pause"}
        )
        return False
    return True
