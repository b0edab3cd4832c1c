"""Messages that workers drop from their queues: logged from time to time, and counted for the system's metrics."""

import logging
import os
import threading
from collections import defaultdict
from contextlib import suppress
from functools import cache
from typing import Any, Final
from uuid import uuid4

from celery.signals import task_revoked

from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.errors import StoreUnavailableError
from pipeline.loops import Loops
from pipeline.names import DropReason, LoopName
from pipeline.settings import Settings

_logger = logging.getLogger(__name__)

_SAY_SECONDS: Final = 60.0  # between two lines about messages of one kind: a queue may have thousands
_ADD_SECONDS: Final = 1.0  # between two updates of the counters
WHAT_CHARS_MAX: Final = 200  # of a message in a log line


class Drops:
    """The counts of one process. A thread adds them to the counters: the worker's event loop must not wait."""

    def __init__(self, settings: Settings, loops: Loops) -> None:
        self._loop = loops.add(LoopName.DROPS, on_demand=True)
        self._counters = wiring.make_counters(settings)
        self._clock = SystemClock()
        self._lock = threading.Lock()
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._said: dict[DropReason, tuple[float, int]] = {}  # time of the last line, and messages since
        self._sender, self._number = uuid4().hex, 1
        self._thread: threading.Thread | None = None

    def note(self, reason: DropReason, what: str) -> None:
        """Count a dropped message, and log it if no line about its kind was logged for a while."""
        now = self._clock.monotonic()
        said_at, unsaid = self._said.get(reason, (now - _SAY_SECONDS, 0))
        if now - said_at >= _SAY_SECONDS:
            _logger.warning(
                "dropped a message from the queue (%s): %s%s", reason, what[:WHAT_CHARS_MAX],
                f"; {unsaid} more since the last of these lines" if unsaid else "",
                extra={"action": "message_dropped", "reason": reason.value},
            )  # fmt: skip
            self._said[reason] = (now, 0)
        else:
            self._said[reason] = (said_at, unsaid + 1)
        with self._lock:
            self._counts[f"dropped:{reason.value}"] += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._add, name="drops", daemon=True)
                self._thread.start()

    def _add(self) -> None:
        sent: dict[str, float] = {}
        while True:
            threading.Event().wait(_ADD_SECONDS)
            with self._lock:
                if not sent and not self._counts:
                    self._thread = None
                    return
                if not sent:
                    sent = {name: float(count) for name, count in self._counts.items()}
                    self._counts.clear()
            with self._loop.turn(), suppress(StoreUnavailableError):
                self._counters.add(sent, sender=self._sender, number=self._number)
                # Otherwise retry the same counts with the same number.
                sent, self._number = {}, self._number + 1


_connected: Final[list[tuple[Settings, Loops]]] = []


@cache
def _drops_of(_pid: int) -> Drops | None:
    return Drops(*_connected[-1]) if _connected else None


def note_dropped(reason: DropReason, what: object) -> None:
    """Count a message that this process dropped."""
    drops = _drops_of(os.getpid())  # a forked child has none of its parent's threads
    if drops is not None:
        drops.note(reason, str(what))


def connect_drops(settings: Settings, loops: Loops) -> None:
    """Count the messages that Celery itself discards. Celery reports them on a level that is not logged.

    `loops`: those of the worker's main process, which health shows.
    """
    _connected[:] = [(settings, loops)]
    task_revoked.connect(_on_revoked, weak=False, dispatch_uid="sluice.drops")


def _on_revoked(request: Any = None, expired: bool = False, **_: Any) -> None:
    note_dropped(DropReason.EXPIRED if expired else DropReason.REVOKED, getattr(request, "name", "a task"))
