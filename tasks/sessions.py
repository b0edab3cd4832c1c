"""Ends a worker for `batches` at its start if PostgreSQL allows fewer sessions than the system will use.

Other workers go on: control has two sessions, and without it there would be no rate, no alarm and no way to resume.
"""

import contextlib
import logging
from typing import Any, Final

from celery import bootsteps

from pipeline import wiring
from pipeline.clock import Clock
from pipeline.errors import SinkUnavailableError
from pipeline.names import Queue
from pipeline.settings import Settings

_logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 60.0  # each look is a connection


class SessionsStep(bootsteps.StartStopStep):
    """A step of the worker: it takes no batches if there are too few sessions of PostgreSQL for all processes.

    Without it, the worker would work until all are busy; then drains can't connect, and the breaker opens again and
    again. A PostgreSQL that is unavailable, or that can't be used for another reason, is left to the drains.
    """

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """Log one line that says what to set; for `batches` that ends the worker. Raises SystemExit."""
        takes_batches = Queue.BATCHES.value in worker.app.amqp.queues.consume_from
        most = worker.max_concurrency or worker.concurrency  # the former with --autoscale, where the latter is a guess
        own = most if takes_batches else 0
        with contextlib.suppress(SinkUnavailableError):
            problem = wiring.session_problem(worker.app.sluice_settings, own_processes=own)
            if problem is not None:
                then = "this worker ends" if takes_batches else "this worker starts, and those for batches do not"
                _logger.critical(
                    "%s: PostgreSQL: %s (docs/database.md)", then, problem, extra={"action": "few_sessions"}
                )
                if takes_batches:
                    raise SystemExit(1)


class FewSessions:
    """What the control loop knows of the sessions that PostgreSQL allows. Limits may change while it runs."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.problem: str | None = None  # why they are too few, as of the last look that got an answer
        self._settings, self._clock = settings, clock
        self._due = clock.monotonic()

    def look(self) -> None:
        """Ask PostgreSQL, at most once a minute. Its failures are named by what else asks it."""
        if self._clock.monotonic() < self._due:
            return
        with contextlib.suppress(SinkUnavailableError):
            self.problem = wiring.session_problem(self._settings, own_processes=0, warns=False)
        self._due = self._clock.monotonic() + _LOOK_SECONDS
