"""Virtual time: an event loop whose clock moves only from one timer to the next.

The shipped code runs on it unchanged: it gets the loop as its event loop, and the loop's clock as its clock.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from pipeline.clock import ManualClock


class Timer:
    """A callback and its due time; `cancel` makes it do nothing."""

    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        """Do nothing when due."""
        self.callback = None

    def run(self) -> None:
        """Call the callback, unless it was cancelled."""
        if self.callback is not None:
            self.callback(*self.args)


class VirtualLoop:
    """The part of an event loop that ingest's admission uses. Nothing here waits, and nothing runs on a thread.

    `run_in_executor` is the call to the control store: it takes a round trip of virtual time, and the function runs
    halfway through. An error in a callback is a defect, and is raised.
    """

    def __init__(self, clock: ManualClock, rng: random.Random, *, round_trip_seconds: float = 0.001) -> None:
        self.clock = clock
        self._rng = rng
        self._round_trip_seconds = round_trip_seconds
        self._timers: list[tuple[float, int, Timer]] = []
        self._number = 0  # timers with the same time run in order of creation
        self._ready: deque[Timer] = deque()

    def time(self) -> float:
        return self.clock.monotonic()

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Timer:
        timer = Timer(callback, args)
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, timer))
        return timer

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Timer:
        return self.call_at(self.clock.monotonic() + delay, callback, *args)

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Timer:
        timer = Timer(callback, args)
        self._ready.append(timer)
        return timer

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self.as_event_loop())

    def as_event_loop(self) -> asyncio.AbstractEventLoop:
        """The loop as the type that the shipped code expects; it has only the methods that this code calls."""
        return cast(asyncio.AbstractEventLoop, self)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        answer = self.create_future()
        half_seconds = self._round_trip_seconds * (0.5 + self._rng.random()) / 2

        def reach_server() -> None:
            self.call_later(half_seconds, answer.set_result, func(*args))

        self.call_later(half_seconds, reach_server)
        return answer

    def get_debug(self) -> bool:
        return False

    def run_until(self, at: float) -> None:
        """Run every timer that is due by `at` (monotonic), each at its own time; then move the clock there."""
        timers, clock = self._timers, self.clock
        self.run_ready()
        while timers and timers[0][0] <= at:
            when, _, timer = heapq.heappop(timers)
            ahead = when - clock.monotonic()
            if ahead > 0:
                clock.advance(ahead)
            timer.run()
            self.run_ready()
        ahead = at - clock.monotonic()
        if ahead > 0:
            clock.advance(ahead)

    def run_ready(self) -> None:
        """Run what is due now."""
        ready = self._ready
        while ready:
            ready.popleft().run()
