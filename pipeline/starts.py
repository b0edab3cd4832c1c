"""Counts how often each program was started: where that is more than once, something restarts it.

Counted by the programs themselves, so that it holds under any supervisor: the one of run.sh, Docker's, systemd.
"""

import logging
import threading
from uuid import uuid4

from pipeline import wiring
from pipeline.errors import StoreUnavailableError
from pipeline.settings import Settings

_logger = logging.getLogger(__name__)


def note_start(settings: Settings, program: str) -> None:
    """Count a start, on a thread beside: a program must not wait for it, and one that is not counted is no harm."""

    def note() -> None:
        try:
            wiring.make_tallies(settings).add({f"starts:{program}": 1.0}, sender=uuid4().hex, number=1)
        except StoreUnavailableError as error:
            _logger.debug("this start is not counted: %s", error)

    threading.Thread(target=note, name="note-start", daemon=True).start()
