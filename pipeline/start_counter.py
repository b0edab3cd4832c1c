"""Counts how often each program was started: more than one start means that something restarts it.

The programs count themselves, so this works under any supervisor: that of run.sh, Docker's, systemd.
"""

import logging
import threading
from uuid import uuid4

from pipeline import wiring
from pipeline.errors import StoreUnavailableError
from pipeline.settings import Settings

_logger = logging.getLogger(__name__)


def count_start(settings: Settings, program: str) -> None:
    """Count a start, on a separate thread: the program must not wait for it, and a lost count does no harm."""

    def note() -> None:
        try:
            wiring.make_counters(settings).add({f"starts:{program}": 1.0}, sender=uuid4().hex, number=1)
        except StoreUnavailableError as error:
            _logger.debug("this start is not counted: %s", error)

    threading.Thread(target=note, name="note-start", daemon=True).start()
