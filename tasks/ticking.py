"""Beat's scheduler. Celery's own uses the wall clock: after it is set back an hour, it sends no ticks for an hour."""

import logging
from typing import Any, Final

from celery.beat import Scheduler

from pipeline import wiring
from pipeline.clock import Clock, SystemClock
from pipeline.errors import StoreUnavailableError
from pipeline.names import BreakerState, Queue
from pipeline.ports.control import ControlStore, PauseState
from tasks.backlog import Backlog
from tasks.beat_watch import LogWatch, PausesWatch

_logger = logging.getLogger(__name__)

PROBE: Final = "sluice.probe"  # does nothing while the breaker is closed
HINTS: Final = "sluice.send_hints"  # does nothing while each partition has a drain
MEASURE: Final = "sluice.measure"  # the control loop's ticks do the same
# A tick of hints comes at least this often. It comes in each of its periods while records wait, and after each change
# of the pauses, since drains end with a pause. So a record that finds no drain waits for one period, as ever.
HINTS_SECONDS_MAX: Final = 5.0
# The control loop's tick sends hints too. If it is as frequent, an idle system needs one of its own only in case that
# the control loop fails, or is that of an earlier version.
HINTS_BESIDE_REGULATE_SECONDS: Final = 30.0
# The control loop's tick also measures what PostgreSQL holds, if it is as frequent as that. In case that it fails, or
# is that of an earlier version, this comes before the last measurement is too old to be shown (FACTS_SECONDS).
MEASURE_BESIDE_REGULATE_SECONDS: Final = 45.0
TICKS_WAITING_MAX: Final = 20  # about ten seconds of ticks, which run within one second

_SAME_MOMENT_SECONDS: Final = 0.2  # ticks that are due together need the pauses once


def _pauses_of(state: PauseState | None) -> object:
    """What changes with each change of the pauses; None if they are unknown."""
    if state is None or state.pauses is None:
        return None
    return [pause.occurrence for pause in state.pauses]


class TickScheduler(Scheduler):
    """Ticks on the monotonic clock, and stores nothing between two runs of Beat.

    A tick has no expiry, since that would be compared with another host's clock. Instead, no tick is sent while many
    wait in its queue: no worker takes them then. And none is sent that would do nothing: no probe while the breaker is
    closed, few ticks of hints while the event log holds nothing to store, and few that measure what the control loop
    measures too. A look is one call, and a task without work a dozen. While nothing changes, threads know without a
    look (`beat_watch`).
    """

    def __init__(self, app: Any, *args: Any, clock: Clock | None = None, **options: Any) -> None:
        self._clock = clock or SystemClock()
        self._due: dict[str, float] = {}  # when each entry is sent next, monotonic
        self._is_full: set[Queue] = set()  # queues for which this was logged
        self._queues = wiring.make_queues(app.sluice_settings)
        self._store: ControlStore = wiring.make_control_store(app.sluice_settings)
        self._backlog = Backlog(wiring.make_log(app.sluice_settings), self._clock)
        # They watch on the real clock only.
        self._pauses_watch = PausesWatch(self._store, self._clock) if clock is None else None
        is_redis_log = app.sluice_settings.log_scheme != "kafka"  # a wait for several brokers asks one after the other
        self._log_watch = (
            LogWatch(wiring.make_log(app.sluice_settings), self._clock) if clock is None and is_redis_log else None
        )
        self._is_started = False
        self._state: tuple[float, PauseState | None] | None = None  # when it was read; None in it: not available
        self._hinted: tuple[float, object] | None = None  # when the last tick of hints was sent, and the pauses then
        is_beside = app.sluice_settings.regulate_seconds <= HINTS_SECONDS_MAX
        self._hints_seconds_max = HINTS_BESIDE_REGULATE_SECONDS if is_beside else HINTS_SECONDS_MAX
        period = app.sluice_settings.measure_seconds
        is_measured = app.sluice_settings.regulate_seconds <= period
        # Whole periods, less a half: a tick that is due may come a little early or late.
        periods = max(1, MEASURE_BESIDE_REGULATE_SECONDS // period) - 0.5
        self._measure_seconds = periods * period if is_measured else 0.0
        self._measured_at = self._clock.monotonic()  # when that tick was last sent; at first, when Beat started
        super().__init__(app, *args, **options)

    def tick(self, *_: Any, **__: Any) -> float:
        """Send the ticks that are due; returns the seconds until the next one."""
        if not self._is_started:
            self._is_started = True
            for watch in filter(None, (self._pauses_watch, self._log_watch)):
                watch.start()
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
        """Send an entry's task, unless its queue is full, or it would have nothing to do."""
        if (entry.task == PROBE and self._is_closed()) or (entry.task == HINTS and not self._is_hint_due()):
            return None
        if entry.task == MEASURE and self._clock.monotonic() - self._measured_at < self._measure_seconds:
            return None
        if not self._has_room(Queue(entry.options["queue"])):
            return None
        hinted = (self._clock.monotonic(), _pauses_of(self._pause_state())) if entry.task == HINTS else self._hinted
        sent = super().apply_async(entry, producer=producer, advance=advance, **options)
        self._hinted = hinted  # not before: a broker that fails has not taken it
        if entry.task == MEASURE:
            self._measured_at = self._clock.monotonic()
        return sent

    def _pause_state(self) -> PauseState | None:
        """The pauses, read once for all ticks of one moment if they are not known; None if they are not available."""
        now = self._clock.monotonic()
        known = None if self._pauses_watch is None else self._pauses_watch.state(now)
        if known is not None:
            return known
        if self._state is None or now - self._state[0] >= _SAME_MOMENT_SECONDS:
            try:
                self._state = now, self._store.pause_state()
            except StoreUnavailableError:
                self._state = now, None
        return self._state[1]

    def _is_closed(self) -> bool:
        """Whether the breaker is known to be closed."""
        state = self._pause_state()
        return state is not None and state.breaker is BreakerState.CLOSED

    def _is_hint_due(self) -> bool:
        """Whether a partition may need a hint soon."""
        now, state = self._clock.monotonic(), self._pause_state()
        if self._hinted is None or state is None or now - self._hinted[0] >= self._hints_seconds_max:
            return True
        if _pauses_of(state) != self._hinted[1]:
            return True
        is_quiet = self._log_watch is not None and self._log_watch.is_quiet(now)
        return not is_quiet and self._backlog.may_exist()

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
