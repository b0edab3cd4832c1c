"""Looks whether a worker takes what waits in its queue, and starts its consumer anew where it takes nothing.

Whatever the cause: a subscription that the broker or Celery has lost, a connection that never becomes readable, places
in the pool that nobody gives back, an event loop that hangs. A thread looks, since the event loop may be the cause.
"""

import logging
import threading
from enum import StrEnum
from typing import Any, Final

from celery import bootsteps
from celery.bootsteps import RUN  # type: ignore[attr-defined]  # celery-types leaves it out
from celery.worker import state as worker_state

from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.errors import StoreUnavailableError
from pipeline.loops import Loops
from pipeline.names import LoopName, Queue
from pipeline.ports.control import ControlStore, paused
from pipeline.settings import Settings
from pipeline.store.redis_queues import RedisQueues
from tasks.consumer import messages_taken
from tasks.ending import MIGRATION_SECONDS_MAX, end_now, task_seconds_max

_logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5  # between two looks at the queue
# What one look may add: a process that was frozen, or got no CPU, has seen nothing of the time in between.
_LOOK_COUNTS_MAX: Final = 2 * LOOK_SECONDS
# For so many periods of the control loop a remedy stays visible in health, which is looked at once in each.
_SHOWN_PERIODS: Final = 3


class Remedy(StrEnum):
    """What to do about a worker that takes nothing."""

    CONNECT = "it connects to the broker anew"
    END = "it ends, for its supervisor to start it again"


class Taking:
    """Decides whether a worker takes nothing though it could. Pure; times are monotonic seconds.

    It takes nothing where messages waited at each look, and none was taken, for `seconds_max` with a free place in the
    pool, or for the longest task and `seconds_max` without one: a place that no task gives back by then is lost. The
    first remedy is to connect anew. Where no task has begun since then, the second is to end: messages alone prove
    nothing, since a new connection empties places that are lost, and fills them again.
    """

    def __init__(self, queue: Queue, *, seconds_max: float, task_seconds_max: float, shown_seconds: float) -> None:
        self.failures = 0  # remedies that were needed, since the process began
        self._queue = queue
        self._seconds_max = seconds_max
        self._full_seconds_max = task_seconds_max + seconds_max
        self._shown_seconds = shown_seconds
        self._looked_at: float | None = None
        self._taken = 0  # messages, at the last look
        self._free_seconds = 0.0  # for which it took nothing with a free place
        self._seconds = 0.0  # for which it took nothing at all
        self._is_tried = False  # whether it has connected anew since it last took something
        self._begun_before: int | None = None  # tasks, when it connected anew last
        self._words = ""  # what was found last
        self._found_at: float | None = None

    def skip(self, now: float) -> None:
        """Nothing may be taken, or nobody knows whether something waits: what was seen so far proves nothing."""
        self._looked_at = now
        self._free_seconds = self._seconds = 0.0

    def look(self, now: float, *, waiting: int, taken: int, begun: int, is_full: bool) -> Remedy | None:
        """Note what is so now; returns what to do.

        `taken` counts the messages taken, and `begun` the tasks that the pool has begun, since the process began.
        """
        step = 0.0 if self._looked_at is None else min(now - self._looked_at, _LOOK_COUNTS_MAX)
        if waiting == 0 or taken != self._taken:
            self.skip(now)
            self._taken, self._is_tried = taken, False
            return None
        self._looked_at = now
        self._seconds += step
        self._free_seconds = 0.0 if is_full else self._free_seconds + step
        if self._free_seconds < self._seconds_max and self._seconds < self._full_seconds_max:
            return None
        remedy = Remedy.END if begun == self._begun_before else Remedy.CONNECT
        self._begun_before = begun
        self._words = (
            f"this worker has taken nothing for {self._seconds:.0f} s, though {waiting} messages wait in queue "
            f"{self._queue}: {remedy}"
        )
        self._found_at, self._is_tried = now, True
        self.failures += 1
        self._free_seconds = self._seconds = 0.0
        return remedy

    @property
    def words(self) -> str:
        """What was found last."""
        return self._words

    def problem(self, now: float) -> str | None:
        """What is wrong, until a while after it was set right: one tick of the control loop at least must see it."""
        if self._found_at is None:
            return None
        return self._words if self._is_tried or now - self._found_at < self._shown_seconds else None


class QueueWatch:
    """The thread that looks, acts and says so."""

    def __init__(self, consumer: Any, queue: Queue) -> None:
        self._consumer = consumer
        self._queue = queue
        settings: Settings = consumer.app.sluice_settings
        self._clock = SystemClock()
        self._store: ControlStore | None = wiring.make_control_store(settings) if queue is Queue.BATCHES else None
        self._queues: RedisQueues = wiring.make_queues(settings)
        self.taking = Taking(
            queue,
            seconds_max=settings.queue_untaken_seconds_max,
            task_seconds_max=_task_seconds_max(settings, queue, places=consumer.pool.num_processes),
            shown_seconds=_SHOWN_PERIODS * settings.regulate_seconds,
        )
        loops: Loops = consumer.app.sluice_loops
        loops.put(LoopName.QUEUE, self.taking)
        self._loop = loops.add(LoopName.QUEUE_WATCH)
        self._stopping = threading.Event()
        self._is_answered = True  # by the event loop, since the last look

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._run, name="queue-watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            with self._loop.turn():
                self._look()

    def _look(self) -> None:
        worker = self._consumer.controller
        try:
            waiting = self._queues.waiting(self._queue) if self._may_take() else None
        except StoreUnavailableError:
            waiting = None
        if waiting is None or worker.blueprint.state != RUN:  # a worker that ends takes no more
            self.taking.skip(self._clock.monotonic())
            return
        # A loop that hangs does not hear of the tasks that end: its pool looks full.
        is_full = self._is_answered and len(worker_state.reserved_requests) >= worker.pool.num_processes
        if self._is_answered:
            self._is_answered = False
            self._consumer.hub.call_soon(self._answer)
        begun = worker_state.all_total_count[0]
        remedy = self.taking.look(
            self._clock.monotonic(), waiting=waiting, taken=messages_taken(), begun=begun, is_full=is_full
        )
        if remedy is None:
            return
        _logger.error("%s", self.taking.words, extra={"action": "takes_nothing", "queue": self._queue.value})
        if remedy is Remedy.CONNECT:
            self._consumer.hub.call_soon(self._lose, self._consumer.connection)
        else:
            end_now(worker)

    def _answer(self) -> None:
        """In the event loop: it comes round."""
        self._is_answered = True

    def _lose(self, connection: Any) -> None:
        """In the event loop: what Celery does about a connection that is lost makes all of it anew. Tasks go on."""
        if connection is self._consumer.connection:  # else it has connected anew by itself
            raise ConnectionResetError("given up, since it brought nothing")

    def _may_take(self) -> bool:
        """Whether the control state lets this worker take messages. Raises StoreUnavailableError."""
        if self._store is None:  # only `batches` is ever paused
            return True
        pauses = self._store.state().pauses
        return pauses is not None and not paused(pauses)


def _task_seconds_max(settings: Settings, queue: Queue, *, places: int) -> float:
    """How long all places of a pool may be taken by tasks that are well."""
    if queue is Queue.CONTROL and places == 1:  # with more of them, ticks go on beside a migration
        return MIGRATION_SECONDS_MAX
    return task_seconds_max(settings, is_control=queue is Queue.CONTROL)


class TakingStep(bootsteps.StartStopStep):
    """A step of the worker's consumer: watches its queue from the first connection on."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        consume_from = consumer.app.amqp.queues.consume_from
        self._queue = next((queue for queue in Queue if queue.value in consume_from), None)
        self._watch: QueueWatch | None = None

    def start(self, consumer: Any) -> None:
        """Begin to look, at the first connection; later ones are looked at too."""
        if self._watch is None and self._queue is not None:
            self._watch = QueueWatch(consumer, self._queue)
            self._watch.start()

    def stop(self, consumer: Any) -> None:
        """The connection is lost: that the worker connects again is watched too."""

    def shutdown(self, consumer: Any) -> None:
        """The worker ends."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
