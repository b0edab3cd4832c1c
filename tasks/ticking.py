"""Beat's scheduler. Celery's own uses the wall clock: after it is set back an hour, it sends no ticks for an hour."""

import logging
from typing import Any, Final

from celery.beat import Scheduler

from pipeline import wiring
from pipeline.clock import Clock, SystemClock
from pipeline.errors import StoreUnavailableError
from pipeline.names import BreakerState, Queue
from pipeline.ports.control import ControlStore

_logger = logging.getLogger(__name__)

PROBE: Final = "sluice.probe"  # does nothing while the breaker is closed
TICKS_WAITING_MAX: Final = 20  # about ten seconds of ticks, which run within one second


class TickScheduler(Scheduler):
    """Ticks on the monotonic clock, and stores nothing between two runs of Beat.

    A tick has no expiry, since that would be compared with another host's clock. Instead, no tick is sent while many
    wait in its queue: no worker takes them then. And no probe is sent while the breaker is closed: a look at the
    state is one call, and a task without work a dozen.
    """

    def __init__(self, app: Any, *args: Any, clock: Clock | None = None, **options: Any) -> None:
        self._clock = clock or SystemClock()
        self._due: dict[str, float] = {}  # when each entry is sent next, monotonic
        self._is_full: set[Queue] = set()  # queues for which this was logged
        self._queues = wiring.make_queues(app.sluice_settings)
        self._store: ControlStore = wiring.make_control_store(app.sluice_settings)
        super().__init__(app, *args, **options)

    def tick(self, *_: Any, **__: Any) -> float:
        """Send the ticks that are due; returns the seconds until the next one."""
        now = self._clock.monotonic()
        wait = float(self.max_interval or 0)
        schedule: dict[str, Any] = self.schedule
        for name, entry in schedule.items():
            period = entry.schedule.run_every.total_seconds()
            due = self._due.setdefault(name, now + period)
            if due <= now:
                self.apply_entry(entry, producer=self.producer)
                # Missed ticks are not repeated: one tick measures the present, and so would many.
                due = self._due[name] = due + period if due + period > now else now + period
            wait = min(wait, due - now)
        return max(0.0, wait)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        """Send an entry's task, unless its queue is full, or it is a probe and the breaker is closed."""
        if entry.task == PROBE and self._is_closed():
            return None
        if self._has_room(Queue(entry.options["queue"])):
            return super().apply_async(entry, producer=producer, advance=advance, **options)
        return None

    def _is_closed(self) -> bool:
        """Whether the breaker is known to be closed."""
        try:
            return self._store.state().breaker is BreakerState.CLOSED
        except StoreUnavailableError:
            return False

    def _has_room(self, queue: Queue) -> bool:
        try:
            count = self._queues.waiting(queue)
        except StoreUnavailableError:
            return True  # sending reports the error, and reconnects
        if count < TICKS_WAITING_MAX:
            self._is_full.discard(queue)
            return True
        if queue not in self._is_full:
            self._is_full.add(queue)
            _logger.warning(
                "no more ticks for queue %s: %d messages wait there, and no worker takes them out", queue, count,
                extra={"action": "ticks_held_back"},
            )  # fmt: skip
        return False
