"""Keeps a worker's consumption of `batches` in step with the reasons to pause.

Celery's own `cancel_consumer` broadcast is forgotten when a worker restarts or reconnects. Here a thread follows the
control state, and a timer of the worker's event loop compares the consumer with it: whatever anybody did to the
consumer by hand is corrected within a fraction of a second.
"""

import logging
import threading
from typing import Any, Final

from celery import bootsteps

from pipeline import wiring
from pipeline.errors import StoreUnavailableError
from pipeline.names import Queue
from pipeline.ports.control import ControlEvents, ControlStore, paused
from pipeline.settings import Settings

_logger = logging.getLogger(__name__)

_WAIT_SECONDS: Final = 1.0  # how soon a change is seen even when its event was lost
_RETRY_SECONDS: Final = 0.5  # between two attempts while the control store is away


class PauseFollower:
    """Follows the control state in a thread of its own; `paused` is what was known last, True before anything is."""

    def __init__(self, store: ControlStore, events: ControlEvents) -> None:
        self.paused = True
        self._store = store
        self._events = events
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pause-follower", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns at once, the thread ends within its wait."""
        self._stopping.set()

    def _follow(self) -> None:
        position = ""
        while not self._stopping.is_set():
            try:
                pauses = self._store.state().pauses
                if pauses is not None:  # unknown after a flush: what was known last counts
                    self.paused = paused(pauses)  # one of a partition is its drain's to see
                position = self._events.wait(position, wait_seconds=_WAIT_SECONDS)
            except StoreUnavailableError:
                self._stopping.wait(_RETRY_SECONDS)


class PauseStep(bootsteps.StartStopStep):
    """A step of the worker's consumer: starts paused, and consumes once no reason to pause is known to hold."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._follower: PauseFollower | None = None
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Cancel the queue before the first message is taken, then follow. Does nothing for other workers."""
        if not self._is_for(consumer):
            return
        settings: Settings = consumer.app.sluice_settings
        consumer.cancel_task_queue(Queue.BATCHES.value)
        if self._follower is None:
            self._follower = PauseFollower(wiring.make_control_store(settings), wiring.make_control_events(settings))
            self._follower.start()
        self._timer = consumer.timer.call_repeatedly(settings.pause_reconcile_seconds, self._reconcile, (consumer,))

    def stop(self, consumer: Any) -> None:
        """The connection is lost or the worker ends: no more comparing. The follower goes on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def shutdown(self, consumer: Any) -> None:
        """The worker ends."""
        if self._follower is not None:
            self._follower.stop()
            self._follower = None

    def _is_for(self, consumer: Any) -> bool:
        """Whether this worker is one for `batches`. Once cancelled it is no longer among the queues consumed from."""
        return self._follower is not None or Queue.BATCHES.value in consumer.app.amqp.queues.consume_from

    def _reconcile(self, consumer: Any) -> None:
        follower, task_consumer = self._follower, consumer.task_consumer
        if follower is None or task_consumer is None:
            return
        consuming = task_consumer.consuming_from(Queue.BATCHES.value)
        if follower.paused and consuming:
            consumer.cancel_task_queue(Queue.BATCHES.value)
            _logger.warning("consumption paused", extra={"action": "pause"})
        elif not follower.paused and not consuming:
            consumer.add_task_queue(Queue.BATCHES.value)
            _logger.warning("consumption running", extra={"action": "resume"})
