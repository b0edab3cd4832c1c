"""What happens when a worker is ready, and which of Celery's own messages are worth a line."""

import logging
from typing import Any, Final

from celery.signals import after_setup_logger, worker_ready

from pipeline.names import Queue

# A line for each task received, done and discarded would be several a second for ever; Flower counts them.
_CHATTY_LOGGERS: Final = (
    "celery.app.trace",
    "celery.worker.strategy",
    "celery.worker.request",
    "celery.beat",
    "kafka",
)


def connect_signals() -> None:
    """Follow Celery's signals; the receivers live as long as the process."""
    worker_ready.connect(_tick_at_once, weak=False)
    after_setup_logger.connect(_quieten, weak=False)


def _tick_at_once(sender: Any = None, **_: Any) -> None:
    """The control worker's first tick does not wait for a period of Beat's: without it nothing is consumed."""
    app = sender.app
    if Queue.CONTROL.value in app.amqp.queues.consume_from:
        app.send_task("sluice.regulate", queue=Queue.CONTROL.value, expires=app.sluice_settings.regulate_seconds)


def _quieten(**_: Any) -> None:
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
