"""Loops of a process that must not end: an error in one turn is logged and counted, and the next turn comes.

A loop that fails again and again, or that has not come round for too long, is a problem that health shows. That one has
ended for good is the same: it comes round no more.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from pipeline.clock import Clock
from pipeline.errors import in_brief
from pipeline.names import LoopName

_logger = logging.getLogger(__name__)

# A loop's waits and calls take a second or two each, by their own limits; on a machine that is short of CPU, more.
TURN_SECONDS_MAX: Final = 15.0


class Loop:
    """One loop. `turn` is for the loop itself; the rest may be asked by any thread.

    One that is `on_demand` turns only when it is needed: it stands still only within a turn.
    """

    def __init__(self, name: LoopName, clock: Clock, *, on_demand: bool = False) -> None:
        self.name = name
        self._on_demand = on_demand
        self.failures = 0  # turns that ended with an error, since the process began
        self._clock = clock
        self._began_at: float | None = None  # monotonic: of the latest turn; None while there is none
        self._error: str | None = None  # of the latest turn

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Run one turn. Its error goes no further than here; whoever runs the loop waits before the next turn."""
        self._began_at = self._clock.monotonic()
        try:
            yield
        except Exception as error:
            self.failures += 1
            said = in_brief(f"{type(error).__name__}: {error}")
            if said != self._error:  # the same again and again is told once
                extra = {"action": "loop_failed", "loop": self.name.value}
                _logger.exception("the %s of this process failed by a defect, and goes on", self.name, extra=extra)
            self._error = said
        else:
            self._error = None
        finally:
            if self._on_demand:
                self._began_at = None

    @property
    def is_failing(self) -> bool:
        """Whether the latest turn ended with an error."""
        return self._error is not None

    def problem(self, now: float) -> str | None:
        """What is wrong with this loop, in words; None while it goes round, and before it has begun."""
        if self._began_at is not None and now - self._began_at > TURN_SECONDS_MAX:
            return f"the {self.name} of this process stands still since {now - self._began_at:.0f} s"
        error = self._error
        return None if error is None else f"the {self.name} of this process fails: {error}"


class Watched(Protocol):
    """What a process has that must not stop, as health, logs and metrics see it."""

    failures: int  # since the process began

    def problem(self, now: float) -> str | None:
        """What is wrong with it, in words; None while nothing is."""
        ...


class Loops:
    """All loops of one process, and what else of it must not stop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loops: dict[LoopName, Watched] = {}

    def add(self, name: LoopName, *, on_demand: bool = False) -> Loop:
        """A loop by this name, in place of an earlier one that had it."""
        earlier = self._loops.get(name)
        loop = self._loops[name] = Loop(name, self._clock, on_demand=on_demand)
        loop.failures = 0 if earlier is None else earlier.failures
        return loop

    def put(self, name: LoopName, watched: Watched) -> None:
        """Something else that must not stop."""
        self._loops[name] = watched

    def problems(self, now: float) -> list[str]:
        """What is wrong with any of them."""
        found = (loop.problem(now) for loop in list(self._loops.values()))
        return [problem for problem in found if problem is not None]

    def failures(self) -> Mapping[LoopName, int]:
        """Turns that ended with an error, by loop."""
        return {name: loop.failures for name, loop in list(self._loops.items())}
