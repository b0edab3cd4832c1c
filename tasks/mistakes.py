"""Logs a problem that only an operator can fix as one line, once a minute: not a traceback for each task."""

import logging
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import PermanentError

_logger = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 60.0  # until the same process logs the same problem again
_TEXTS_MAX: Final = 100  # that are remembered; a configuration has few mistakes


class Mistakes:
    """The problems that this process has logged."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}  # text -> when (monotonic)

    def say(self, error: PermanentError) -> None:
        """Log a mistake in the configuration, unless it was logged within the last minute."""
        text, now = str(error), self._clock.monotonic()
        if now - self._said.get(text, float("-inf")) < AGAIN_SECONDS:
            return
        if len(self._said) >= _TEXTS_MAX:
            self._said.clear()
        self._said[text] = now
        _logger.error("an operator must change the set-up: %s", text, extra={"action": "set_up_mistake"})
