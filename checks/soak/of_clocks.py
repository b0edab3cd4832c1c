"""Faults of wall clocks: those of running processes and of running Redis servers are stepped, forward or back."""

import random
import time
from collections.abc import Callable

from checks.soak.fault import Effect, Fault
from checks.soak.rig import Rig
from checks.soak.windows import ClockSpan
from checks.testbed.clocks import SteppableClock, fake_time_library

SEEN_SECONDS = 3.0  # until a process has looked at its clock's file again
STEPS_SECONDS = (-3600, -90, -6, 6, 90, 3600)

Clocks = Callable[[Rig, random.Random], list[SteppableClock]]


class ClockStepped(Fault):
    """A wall clock jumps while its programs keep running, and jumps back some seconds later.

    It excuses nothing: no program may depend on a wall clock that only goes forward.
    """

    seconds = (4.0, 6.0)

    def __init__(self, pick: random.Random, name: str, clocks: Clocks, *, is_ingest: bool, is_control: bool) -> None:
        super().__init__(pick)
        self.name, self._which, self._is_ingest = f"{name}.step", clocks, is_ingest
        self.control_outage = is_control  # the bucket uses that clock, so it may be full at once
        self._step = pick.choice(STEPS_SECONDS)

    def impossible(self, rig: Rig) -> str | None:
        return None if fake_time_library() is not None else "there is no libfaketime on this machine"

    def inject(self, rig: Rig) -> None:
        self._clocks = self._which(rig, self.pick)
        self._began = time.time()
        for clock in self._clocks:
            clock.step(self._step)

    def repair(self, rig: Rig) -> None:
        for clock in self._clocks:
            clock.step(-self._step)
        if self._is_ingest:
            self.clocks.append(ClockSpan(self._began, time.time() + SEEN_SECONDS, self._step))

    def effect(self, rig: Rig) -> Effect:
        return Effect(bool(self._clocks), f"{len(self._clocks)} clocks stepped by {self._step:+d} s, and back")
