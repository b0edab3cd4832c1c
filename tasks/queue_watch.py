"""Checks whether a worker takes the messages of its queue, and restarts its consumer if it takes none.

Possible causes: the broker or Celery has lost a subscription; a connection never becomes readable; slots in the pool
are never released; an event loop hangs. A thread does the check, since the event loop may be the cause.
"""

import logging
import threading
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from celery import bootsteps
from celery.bootsteps import RUN  # type: ignore[attr-defined]  # celery-types leaves it out
from celery.worker import state as worker_state

from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.control_store.redis_queues import RedisQueues
from pipeline.errors import StoreUnavailableError
from pipeline.loops import Loops
from pipeline.names import DRAIN_TASK, LoopName, Queue
from pipeline.settings import Settings
from tasks.consumer import messages_taken
from tasks.forced_shutdown import MIGRATION_SECONDS_MAX, end_now, task_seconds_max
from tasks.pause import PauseFollower

_logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5  # between two checks of the queue while messages wait in it
QUIET_LOOK_SECONDS: Final = 2.0  # while none waited at the last check: the first one is seen so much later
FULL_LOOK_SECONDS: Final = 1.0  # the same with a full pool: drains without records learn here that others wait for one
# The most that one check may add: a process that was frozen, or got no CPU, has seen nothing of the time between.
_LOOK_COUNTS_MAX: Final = 2 * LOOK_SECONDS
# A remedy stays visible in health for so many periods of the control loop. Each period reads health once.
_SHOWN_PERIODS: Final = 3


class Remedy(StrEnum):
    """The action for a worker that takes nothing."""

    CONNECT = "it reconnects to the broker"
    END = "it exits, so that its supervisor restarts it"


class QueueProgress:
    """Decides whether a worker takes nothing although it could. Pure; times are monotonic seconds.

    It takes nothing if messages waited at each check and none was taken. The limit is `seconds_max` while it is able to
    take one: it has a connection, and a free slot in the pool. Otherwise it is the longest task plus `seconds_max`: a
    slot that no task releases by then is lost. The first remedy is to reconnect. If no task has started since then, the
    second is to end. Messages alone prove nothing, since a new connection empties lost slots, and fills them again.
    """

    def __init__(self, queue: Queue, *, seconds_max: float, task_seconds_max: float, shown_seconds: float) -> None:
        self.failures = 0  # remedies that were needed since the process started
        self._queue = queue
        self._seconds_max = seconds_max
        self._unable_seconds_max = task_seconds_max + seconds_max
        self._shown_seconds = shown_seconds
        self.is_quiet = True  # whether nothing proved anything at the last check
        self._looked_at: float | None = None
        self._taken = 0  # messages, at the last check
        self._able_seconds = 0.0  # for which it took nothing though it was able to
        self._seconds = 0.0  # for which it took nothing at all
        self._is_tried = False  # whether it has reconnected since it last took a message
        self._begun_before: int | None = None  # tasks, when it last reconnected
        self._words = ""  # the last finding
        self._found_at: float | None = None

    def skip(self, now: float) -> None:
        """Reset: no message may be taken, or their number is unknown. Earlier observations prove nothing then."""
        self.is_quiet = True
        self._looked_at = now
        self._able_seconds = self._seconds = 0.0

    def look(self, now: float, *, waiting: int, taken: int, begun: int, is_able: bool) -> Remedy | None:
        """Record one check; returns the remedy, or None.

        `taken` counts the messages taken, and `begun` the tasks that the pool has started, since the process started.
        """
        # The first message that waits may have come just now.
        most = LOOK_SECONDS if self.is_quiet else _LOOK_COUNTS_MAX
        step = 0.0 if self._looked_at is None else min(now - self._looked_at, most)
        if waiting == 0 or taken != self._taken:
            self.skip(now)
            self._taken, self._is_tried = taken, False
            return None
        self.is_quiet = False
        self._looked_at = now
        self._seconds += step
        self._able_seconds = self._able_seconds + step if is_able else 0.0
        if self._able_seconds < self._seconds_max and self._seconds < self._unable_seconds_max:
            return None
        remedy = Remedy.END if begun == self._begun_before else Remedy.CONNECT
        self._begun_before = begun
        self._words = (
            f"this worker has taken nothing for {self._seconds:.0f} s, though {waiting} messages wait in queue "
            f"{self._queue}: {remedy}"
        )
        self._found_at, self._is_tried = now, True
        self.failures += 1
        self._able_seconds = self._seconds = 0.0
        return remedy

    @property
    def words(self) -> str:
        """The text of the last finding."""
        return self._words

    def problem(self, now: float) -> str | None:
        """The problem, until some time after it was fixed: at least one tick of the control loop must see it."""
        if self._found_at is None:
            return None
        return self._words if self._is_tried or now - self._found_at < self._shown_seconds else None


class QueueWatch:
    """Checks one queue of a worker, acts and logs. `queues` are all queues that the worker takes messages from."""

    def __init__(self, consumer: Any, queue: Queue, queues: Sequence[Queue] = ()) -> None:
        self._consumer = consumer
        self._queue = queue
        settings: Settings = consumer.app.sluice_settings
        self._clock = SystemClock()
        self._queues: RedisQueues = wiring.make_queues(settings)
        self.progress = QueueProgress(
            queue,
            seconds_max=settings.queue_untaken_seconds_max,
            # The tasks of all its queues share the pool.
            task_seconds_max=max(
                _task_seconds_max(settings, one, places=consumer.pool.num_processes) for one in (queue, *queues)
            ),
            shown_seconds=_SHOWN_PERIODS * settings.regulate_seconds,
        )
        # Whether the event loop is asked to answer, and has answered since the last check. It is asked only while
        # messages wait: each answer wakes it.
        self._is_asked = self._is_answered = False

    def look(self) -> None:
        """Check once."""
        worker = self._consumer.controller
        try:
            waiting = self._queues.waiting(self._queue) if self._may_take() else None
        except StoreUnavailableError:
            waiting = None
        self._note_short(waiting)
        if waiting is None or worker.blueprint.state != RUN:  # a worker that ends takes no more messages
            self.progress.skip(self._clock.monotonic())
            return
        # While it connects its loop stands still, and Celery waits up to five seconds between two attempts.
        is_connecting = self._consumer.connection is None
        # A loop that hangs does not receive the ends of tasks: its pool looks full.
        is_full = self._is_answered and len(worker_state.reserved_requests) >= worker.pool.num_processes
        self._ask(is_needed=waiting > 0)
        begun = _tasks_begun(self._queue)
        remedy = self.progress.look(
            self._clock.monotonic(), waiting=waiting, taken=messages_taken(self._queue), begun=begun,
            is_able=not (is_connecting or is_full),
        )  # fmt: skip
        if remedy is None:
            return
        _logger.error("%s", self.progress.words, extra={"action": "takes_nothing", "queue": self._queue.value})
        if remedy is Remedy.CONNECT:
            # An error of one callback makes the event loop drop those of the same turn, perhaps the answer.
            self._is_asked = False
            self._consumer.hub.call_soon(self._lose, self._consumer.connection)
        else:
            end_now(worker)

    def _note_short(self, waiting: int | None) -> None:
        """Tell the drains whether others wait for a process: one without records then gives its own away."""
        if self._queue is Queue.BATCHES:
            self._consumer.app.sluice_known_pauses.note_short(is_short=bool(waiting) and self.is_full)

    @property
    def is_full(self) -> bool:
        """Whether no process of the pool is free, as far as the event loop knows."""
        return len(worker_state.reserved_requests) >= int(self._consumer.pool.num_processes)

    def _ask(self, *, is_needed: bool) -> None:
        """Ask the event loop for an answer until the next check, unless it has not given the last one."""
        if self._is_answered:
            self._is_asked = self._is_answered = False
        if is_needed and not self._is_asked:
            self._is_asked = True
            self._consumer.hub.call_soon(self._answer)

    def _answer(self) -> None:
        """Runs in the event loop: shows that it works."""
        self._is_answered = True

    def _lose(self, connection: Any) -> None:
        """Runs in the event loop: Celery's handling of a lost connection rebuilds everything. Tasks continue."""
        if connection is self._consumer.connection:  # otherwise it has reconnected by itself
            raise ConnectionResetError("closed, since it delivered no messages")

    def _may_take(self) -> bool:
        """Whether the consumer may take messages: it consumes `batches` by what this follower has read last."""
        if self._queue is not Queue.BATCHES:  # only `batches` is ever paused
            return True
        follower: PauseFollower | None = self._consumer.app.sluice_pause_follower
        return follower is None or not follower.paused


class QueueWatches:
    """The thread that checks all queues of a worker, and what health sees of that."""

    failures: int  # remedies that were needed since the process started

    def __init__(self, consumer: Any, queues: Sequence[Queue]) -> None:
        self.failures = 0
        self._watches = [QueueWatch(consumer, queue, queues) for queue in queues]
        loops: Loops = consumer.app.sluice_loops
        loops.put(LoopName.QUEUE, self)
        self._loop = loops.add(LoopName.QUEUE_WATCH)
        self._stopping = threading.Event()

    def problem(self, now: float) -> str | None:
        """The problem of the first queue that has one."""
        found = (watch.progress.problem(now) for watch in self._watches)
        return next((problem for problem in found if problem is not None), None)

    def start(self) -> None:
        """Start to check."""
        threading.Thread(target=self._run, name="queue-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop checking."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self.wait_seconds):
            self.look()

    @property
    def wait_seconds(self) -> float:
        """The time until the next check."""
        if not all(watch.progress.is_quiet for watch in self._watches):
            return LOOK_SECONDS
        return FULL_LOOK_SECONDS if any(watch.is_full for watch in self._watches) else QUIET_LOOK_SECONDS

    def look(self) -> None:
        """Check each queue once."""
        for watch in self._watches:
            with self._loop.turn():
                watch.look()
        self.failures = sum(watch.progress.failures for watch in self._watches)


def _tasks_begun(queue: Queue) -> int:
    """Tasks of this queue that the pool has begun. All tasks of `batches` are drains."""
    counts: dict[str, int] = worker_state.total_count
    drains = counts.get(DRAIN_TASK, 0)
    return drains if queue is Queue.BATCHES else sum(counts.values()) - drains


def _task_seconds_max(settings: Settings, queue: Queue, *, places: int) -> float:
    """How long normal tasks may occupy all slots of a pool."""
    if queue is Queue.CONTROL and places == 1:  # with more slots, ticks continue beside a migration
        return MIGRATION_SECONDS_MAX
    return task_seconds_max(settings, is_control=queue is Queue.CONTROL)


class QueueWatchStep(bootsteps.StartStopStep):
    """A step of the worker's consumer: watches its queues from the first connection on."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        consume_from = consumer.app.amqp.queues.consume_from
        self._queues = [queue for queue in Queue if queue.value in consume_from]
        self._watch: QueueWatches | None = None

    def start(self, consumer: Any) -> None:
        """Start the watch at the first connection; it covers later connections too."""
        if self._watch is None and self._queues:
            self._watch = QueueWatches(consumer, self._queues)
            self._watch.start()

    def stop(self, consumer: Any) -> None:
        """The connection is lost: the watch also covers the reconnection."""

    def shutdown(self, consumer: Any) -> None:
        """Stop the watch: the worker ends."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
