"""Force-exits a worker that hangs during shutdown, so that its supervisor can restart it.

A worker that shuts down, for SIGTERM or for an error of its own, waits for its children without a limit. It no longer
enforces the time limits of their tasks. One child that hangs would keep the process forever: alive, and idle.
"""

import logging
import os
import signal
import sys
import threading
from typing import Any, Final

from celery import bootsteps

from pipeline.names import Queue
from pipeline.settings import Settings

_logger = logging.getLogger(__name__)

CONTROL_SECONDS_MAX: Final = 30.0  # of a task on `control`; then it is killed
MIGRATION_SECONDS_MAX: Final = 330.0  # of a tick that migrates the schema
_SPARE_SECONDS: Final = 5.0  # for a task that ends at its limit, and for the rest of a worker's shutdown
_EXIT_STATUS: Final = 70  # EX_SOFTWARE, as Celery's status for an unrecoverable error


def task_seconds_max(settings: Settings, *, is_control: bool) -> float:
    """The longest time that a task of a worker may run, without one that migrates."""
    return CONTROL_SECONDS_MAX if is_control else settings.drain_hard_seconds_max


def end_seconds_max(settings: Settings, *, is_control: bool) -> float:
    """The longest time of a worker's shutdown: its longest normal task, and some spare seconds."""
    return task_seconds_max(settings, is_control=is_control) + _SPARE_SECONDS


class ForcedShutdownStep(bootsteps.StartStopStep):
    """A step of the worker: after the start of a shutdown, it ends in time, with its children."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._timer: threading.Timer | None = None

    def start(self, worker: Any) -> None:
        """Nothing to do at the start."""

    def close(self, worker: Any) -> None:
        """The shutdown starts. Celery calls this for every step, before it waits for any step."""
        queues, settings = worker.app.amqp.queues.consume_from, worker.app.sluice_settings
        worker.app.sluice_known_pauses.note_ending()
        # A worker of both queues may have a drain, which may run for longer. A pause takes `batches` out of the list.
        is_control = Queue.CONTROL.value in queues and Queue.BATCHES.value not in queues
        seconds = end_seconds_max(settings, is_control=is_control)
        self._timer = threading.Timer(seconds, _end, [worker, seconds])
        self._timer.daemon = True
        self._timer.start()


def _children(worker: Any) -> list[int]:
    """Process ids of the pool's children."""
    pool = getattr(worker.pool, "_pool", None)
    return [process.pid for process in getattr(pool, "_pool", ())]


def _end(worker: Any, seconds: float) -> None:
    pids = _children(worker)
    _logger.critical(
        "this worker did not end within %.0f s: it is killed with its children %s", seconds, pids,
        extra={"action": "worker_killed", "children": list(pids)},
    )  # fmt: skip
    end_now(worker)


def end_now(worker: Any) -> None:
    """Kill a worker's children, which is safe at any time, and end this process, the worker's main one."""
    pids = _children(worker)
    sys.stderr.flush()
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os._exit(_EXIT_STATUS)
