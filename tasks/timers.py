"""Timers of a worker's event loop that fire together: each turn of the loop costs more than what most of them do."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import bootsteps
from kombu.asynchronous.timer import Entry, Timer

from pipeline.clock import Clock, SystemClock


class AlignedTimer(Timer):
    """Kombu's timer; a repeated call comes at the whole multiples of its period on the monotonic clock.

    So calls of one period come in one turn of the loop, whenever each was set, and so do those of a multiple of it.
    The first call comes within one period, which may be at once.
    """

    def __init__(self, *args: Any, clock: Clock | None = None, **options: Any) -> None:
        self._clock = clock or SystemClock()
        super().__init__(*args, **options)

    def call_repeatedly(
        self,
        secs: float,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Entry:
        """Call `fun` at each multiple of `secs` until the entry is cancelled; one that was missed is left out."""
        entry = Entry(fun, list(args), dict(kwargs or {}))

        def call_and_repeat(*args: Any, **kwargs: Any) -> Any:
            try:
                return fun(*args, **kwargs)
            finally:
                if not entry.canceled:
                    self.enter_at(entry, self._next(secs), priority)

        entry.fun = call_and_repeat
        self.enter_at(entry, self._next(secs), priority)
        return entry

    def _next(self, seconds: float) -> float:
        """The next multiple of a period, monotonic."""
        return (math.floor(self._clock.monotonic() / seconds) + 1) * seconds


class TimersStep(bootsteps.Step):
    """A step of the worker: its event loop uses the timer above. Nothing has set a timer before."""

    requires = ("celery.worker.components:Hub",)

    def create(self, worker: Any) -> None:
        """Replace the timer. A pool without an event loop keeps its own."""
        if worker.hub is not None:
            worker.timer = worker.hub.timer = AlignedTimer(max_interval=worker.timer.max_interval)
