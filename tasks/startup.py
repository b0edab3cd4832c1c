"""Actions when a worker is ready, and the logging of workers and Beat."""

import logging
import os
import sys
from functools import partial
from typing import Any, Final, cast

from celery import current_task
from celery.apps import worker as worker_module
from celery.apps.beat import Beat
from celery.signals import beat_init, celeryd_init, setup_logging, worker_ready

from pipeline import logs, wiring
from pipeline.errors import SettingsError
from pipeline.names import Queue
from pipeline.settings import Settings
from pipeline.start_counter import count_start

_logger = logging.getLogger(__name__)
worker_program: Final[Any] = worker_module

# A line for each task received, done and discarded would be several a second, permanently; Flower counts them.
_CHATTY_LOGGERS: Final = (
    "celery.app.trace",
    "celery.worker.strategy",
    "celery.worker.request",
    "celery.beat",
    "celery.utils.functional",
    "celery.bootsteps",
)
_names: Final[list[str]] = []  # of this process' worker; Celery reports it once, before it sets up logging


def connect_signals(settings: Settings) -> None:
    """Connect to Celery's signals; the receivers live as long as the process."""
    worker_ready.connect(_tick_at_once, weak=False)
    celeryd_init.connect(_note_name, weak=False)
    # Celery warns of its user's rights before it sets up logging, and then prints its banner.
    celeryd_init.connect(partial(_prepare_output, settings), weak=False, dispatch_uid="sluice.output")
    # Before the worker starts its first thread, and long before it forks.
    celeryd_init.connect(partial(_load_adapters, settings), weak=False, dispatch_uid="sluice.adapters")
    celeryd_init.connect(partial(_check_redis, settings), weak=False, dispatch_uid="sluice.redis")
    beat_init.connect(partial(_note_beat, settings), weak=False, dispatch_uid="sluice.beat")
    # A receiver prevents Celery from setting up its own logging.
    setup_logging.connect(partial(_set_up_logging, settings), weak=False, dispatch_uid="sluice.logs")


class QuietBeat(Beat):
    """Beat without its banner, which is text, where log lines are JSON."""

    def run(self) -> None:
        """Run until a signal ends it."""
        settings: Settings = cast(Any, self.app).sluice_settings
        if settings.log_format == "json":
            self.quiet = True
        super().run()


def worker_name() -> str | None:
    """The name of the worker that this process belongs to, also after a fork; None if it belongs to none."""
    return _names[0] if _names else None


def _tick_at_once(sender: Any = None, **_: Any) -> None:
    """The control worker's first tick does not wait for Beat's period: without a tick nothing is consumed."""
    app = sender.app
    if Queue.CONTROL.value in app.amqp.queues.consume_from:
        app.send_task("sluice.regulate", queue=Queue.CONTROL.value)


def _load_adapters(settings: Settings, **_: Any) -> None:
    wiring.load_adapters(settings)


def _check_redis(settings: Settings, **_: Any) -> None:
    try:
        wiring.check_redis(settings, "worker")
    except SettingsError as error:
        raise SystemExit(f"celery: {error}") from None


def _note_beat(settings: Settings, **_: Any) -> None:
    _check_redis(settings)
    _logger.info("beat sends ticks of the control loop every %g s", settings.regulate_seconds)
    count_start(settings, "beat")


def _prepare_output(settings: Settings, instance: Any = None, **_: Any) -> None:
    """Set up logging before Celery does; where log lines are JSON, Celery prints nothing else."""
    handler = _set_up_logging(settings)
    if settings.log_format != "json":
        return
    instance.quiet = True

    def say(text: str, _stream: Any = None) -> None:
        """A line without logging's lock: a signal handler calls this, and the interrupted code may hold the lock."""
        record = logging.LogRecord(worker_program.__name__, logging.INFO, __file__, 0, text, None, None)
        os.write(sys.__stderr__.fileno(), f"{handler.format(record)}\n".encode())  # type: ignore[union-attr]

    worker_program.safe_say = say


def _note_name(sender: Any = None, **_: Any) -> None:
    _names[:] = [str(sender)]


def _set_up_logging(settings: Settings, **_: Any) -> logging.Handler:
    handler = logs.configure(
        level=settings.log_level, form=settings.log_format, process=_names[0] if _names else "beat"
    )
    handler.addFilter(_name_task)
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    return handler


def _name_task(record: logging.LogRecord) -> bool:
    """Add the task to each log line of a task: two drains may log alternately."""
    if current_task:
        record.task = current_task.name
        record.task_id = current_task.request.id
    return True
