"""Ends a worker at its start if PostgreSQL allows fewer sessions than the system will use."""

import contextlib
import logging
from typing import Any

from celery import bootsteps

from pipeline import wiring
from pipeline.errors import SinkUnavailableError
from pipeline.names import Queue

_logger = logging.getLogger(__name__)


class SessionsStep(bootsteps.StartStopStep):
    """A step of the worker: it does not consume if there are too few sessions of PostgreSQL for all processes.

    Without it, the worker would work until all are busy; then drains can't connect, and the breaker opens again and
    again. A PostgreSQL that is unavailable, or that can't be used for another reason, is left to the drains.
    """

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """End the worker with one line that says what to set. Raises SystemExit."""
        takes_batches = Queue.BATCHES.value in worker.app.amqp.queues.consume_from
        most = worker.max_concurrency or worker.concurrency  # the former with --autoscale, where the latter is a guess
        own = most if takes_batches else 0
        with contextlib.suppress(SinkUnavailableError):
            problem = wiring.session_problem(worker.app.sluice_settings, own_processes=own)
            if problem is not None:
                _logger.critical(
                    "this worker ends: PostgreSQL: %s (docs/database.md)", problem, extra={"action": "few_sessions"}
                )
                raise SystemExit(1)
