"""Makes a worker for `batches` wait for its schema: in a rolling upgrade it may start before the control worker.

The control worker of a version migrates the schema. Without the migration, each drain of that version would fail, and
the breaker would stop the drains of the older version too. These continue during the wait.
"""

import contextlib
import logging
from typing import Any, Final

from celery import bootsteps
from celery.worker import state as worker_state

from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.errors import SluiceError
from pipeline.names import Queue
from pipeline.ports.schema import Schema

_logger = logging.getLogger(__name__)

_ASK_SECONDS: Final = 0.5


class SchemaStep(bootsteps.StartStopStep):
    """A step of the worker: it does not consume before the schema has the worker's version, or a newer one."""

    requires = ("celery.worker.components:Pool", "tasks.sessions:SessionsStep")

    def start(self, worker: Any) -> None:
        """Wait; a worker that is stopped ends. A worker that migrates itself does not wait."""
        consume_from = worker.app.amqp.queues.consume_from
        if Queue.BATCHES.value not in consume_from or Queue.CONTROL.value in consume_from:
            return
        clock, schema = SystemClock(), wiring.make_schema(worker.app.sluice_settings)
        was_missing: list[str] = []
        while missing := _missing(schema):
            if not was_missing:
                _logger.warning(
                    "this worker waits: the database lacks %s: a control worker of this version applies it, or "
                    "`python -m pipeline migrate`",
                    ", ".join(missing),
                    extra={"action": "schema_awaited"},
                )
            was_missing = missing
            worker_state.maybe_shutdown()
            clock.sleep(_ASK_SECONDS)
        if was_missing:
            _logger.warning("the schema is up to date: this worker starts", extra={"action": "schema_came"})


def _missing(schema: Schema) -> list[str]:
    # If PostgreSQL does not respond, drains find out, and the breaker handles it.
    with contextlib.suppress(SluiceError):
        return schema.missing()
    return []
