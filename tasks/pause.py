"""Starts and stops a worker's consumption of `batches` according to the pauses.

Celery's own `cancel_consumer` broadcast is lost when a worker restarts or reconnects. Here a thread follows the control
state, and wakes the worker's event loop when the consumer differs from it; the loop corrects that. The thread looks at
each change, and once a second, so nothing that is missed lasts. A timer compares them too, for the case that the thread
has ended. Each of its turns wakes the event loop, so it has few.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import bootsteps

from pipeline import wiring
from pipeline.clock import Clock, SystemClock
from pipeline.follower import ControlFollower, TroubleReporter, loop_troubles, read_not_before
from pipeline.loops import Loop, Loops
from pipeline.names import LoopName, Queue
from pipeline.ports.control import ControlState, ControlStore, PauseState, paused
from pipeline.settings import Settings
from tasks.known_pauses import KnownPauses

_logger = logging.getLogger(__name__)

_STOP_SECONDS = 0.0  # the thread only reads: the stop does not wait for it


class PausesReader:
    """Reads the pauses alone for the follower, since a worker needs nothing else of the state.

    `known` gets what was read, with a time before the read: it is at most as old as that.
    """

    def __init__(self, store: ControlStore, known: KnownPauses | None, clock: Clock) -> None:
        self._store = store
        self._known = known
        self._clock = clock

    def state(self) -> ControlState:
        """The state without the rest, as it is before anything is published."""
        asked_at = self._clock.monotonic()
        return self._noted(self._store.pause_state(), asked_at)

    def state_after(self, position: str, *, wait_seconds: float) -> tuple[str, ControlState | None]:
        """Wait for an event, and read the same if none came."""
        asked_at = self._clock.monotonic()
        position, read = self._store.pause_state_after(position, wait_seconds=wait_seconds)
        if read is None:
            return position, None
        return position, self._noted(read, read_not_before(asked_at, self._clock.monotonic(), wait_seconds))

    def _noted(self, read: PauseState, read_at: float) -> ControlState:
        if self._known is not None and read.pauses is not None:
            self._known.note(read.pauses, read_at)
        return ControlState(
            rate=None, pauses=read.pauses, breaker=read.breaker, time=read.time, generation=read.generation
        )


class PauseFollower:
    """Follows the control state; `paused` is the last known value, and True before the first one.

    `on_change` is called on the follower's thread when the value has changed, and when `differs` says after a read that
    the worker does something else. `known` gets what was read.
    """

    def __init__(
        self,
        store: ControlStore,
        loop: Loop,
        reporter: TroubleReporter | None = None,
        *,
        on_change: Callable[[], None] = lambda: None,
        differs: Callable[[], bool] = lambda: False,
        known: KnownPauses | None = None,
    ) -> None:
        self.paused = True
        self._on_change = on_change
        self._differs = differs
        self._known = known
        self._context = (store, loop, reporter)
        self._follower = self._make_follower()

    def start(self) -> None:
        """Start to follow."""
        self._follower.start()

    def stop(self) -> None:
        """Stop; returns at once, the thread ends within its wait."""
        self._follower.stop(seconds_max=_STOP_SECONDS)

    def keep_alive(self) -> None:
        """Start a new thread if the thread has ended, for any reason."""
        if not self._follower.is_alive:
            _logger.error(
                "the thread that reads the pauses has ended: it is restarted", extra={"action": "follow_again"}
            )
            self._follower = self._make_follower()
            self._follower.start()

    def _make_follower(self) -> ControlFollower:
        store, loop, reporter = self._context
        clock = SystemClock()
        reader = PausesReader(store, self._known, clock)
        return ControlFollower(reader, clock, self._on_state, loop, reporter=reporter)

    def _on_state(self, state: ControlState) -> None:
        if state.pauses is None:  # unknown after a flush: the last known value counts
            return
        was_paused, self.paused = self.paused, paused(state.pauses)  # a drain handles the pause of its partition itself
        if self.paused != was_paused or self._differs():
            self._on_change()


class PauseStep(bootsteps.StartStopStep):
    """A step of the worker's consumer: starts paused, and consumes once no pause is known to hold."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._follower: PauseFollower | None = None
        self._loop: Loop  # set by `start`
        self._timer: Any = None
        self._is_woken = False  # the event loop has not compared yet

    def start(self, consumer: Any) -> None:
        """Cancel the queue before the first message is taken, then follow. Does nothing for other workers."""
        if not self._is_for(consumer):
            return
        settings: Settings = consumer.app.sluice_settings
        consumer.cancel_task_queue(Queue.BATCHES.value)
        self._is_woken = False  # by the event loop of a former connection
        if self._follower is None:
            loops: Loops = consumer.app.sluice_loops
            self._loop = loops.add(LoopName.CONSUMER)
            self._follower = PauseFollower(
                wiring.make_control_store(settings),
                loops.add(LoopName.FOLLOWER),
                TroubleReporter(
                    wiring.make_troubles(settings),
                    str(consumer.hostname),
                    SystemClock(),
                    difference_seconds_max=settings.clock_difference_seconds_max,
                    own_problems=lambda: loop_troubles(loops, SystemClock()),
                    loop=loops.add(LoopName.REPORTS),
                ),
                on_change=partial(self._wake, consumer),
                differs=partial(self._differs, consumer),
                known=consumer.app.sluice_known_pauses,
            )
            self._follower.start()
            consumer.app.sluice_pause_follower = self._follower  # the queue watch needs the same state
        self._timer = consumer.timer.call_repeatedly(settings.pause_reconcile_seconds, self._reconcile, (consumer,))

    def stop(self, consumer: Any) -> None:
        """Stop comparing: the connection is lost or the worker ends. The follower continues."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def shutdown(self, consumer: Any) -> None:
        """Stop the follower: the worker ends."""
        if self._follower is not None:
            self._follower.stop()
            self._follower = None

    def _is_for(self, consumer: Any) -> bool:
        """Whether this worker consumes `batches`. A cancelled queue is no longer among the consumed queues."""
        return self._follower is not None or Queue.BATCHES.value in consumer.app.amqp.queues.consume_from

    def _wake(self, consumer: Any) -> None:
        """Make the event loop compare now. Called on the follower's thread; a pool without a loop has the timer."""
        if consumer.hub is not None:
            self._is_woken = True
            consumer.hub.call_soon(self._reconcile, consumer)

    def _differs(self, consumer: Any) -> bool:
        """Whether the consumer consumes although it is paused, or does not otherwise. Called on the follower's thread.

        False until the event loop has compared: it may be busy connecting, and would only find its queue longer.
        """
        follower, task_consumer = self._follower, consumer.task_consumer
        if self._is_woken or follower is None or task_consumer is None:
            return False
        try:
            return bool(task_consumer.consuming_from(Queue.BATCHES.value) == follower.paused)
        except Exception as error:  # the event loop changes it meanwhile; it compares by itself, and reports this
            _logger.debug("whether the consumer differs is unknown: %s", error)
            return True

    def _reconcile(self, consumer: Any) -> None:
        """Compare once. Its errors must not reach the worker's event loop: some of them would end the loop."""
        self._is_woken = False
        with self._loop.turn():
            follower, task_consumer = self._follower, consumer.task_consumer
            if follower is None or task_consumer is None:
                return
            follower.keep_alive()
            try:
                self._compare(follower, consumer)
            except consumer.connection_errors as error:
                if isinstance(error, KeyError):  # kombu lists it too: a defect
                    raise
                _logger.debug("not compared, since the broker is lost: %s", error)  # `start` follows

    def _compare(self, follower: PauseFollower, consumer: Any) -> None:
        task_consumer = consumer.task_consumer
        consuming = task_consumer.consuming_from(Queue.BATCHES.value)
        if follower.paused and consuming:
            consumer.cancel_task_queue(Queue.BATCHES.value)
            _logger.warning("consumption paused", extra={"action": "pause"})
        elif not follower.paused and not consuming:
            consumer.add_task_queue(Queue.BATCHES.value)
            _logger.info("consumption running", extra={"action": "resume"})
