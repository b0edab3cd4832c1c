"""Loops of a process that must not end: an error in one turn is logged and counted, and the next turn follows.

Health shows a problem if a loop's latest turn failed, or if the loop has begun no new turn for too long. A loop that
has ended shows the same problem, because it begins no new turn.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from pipeline.clock import Clock
from pipeline.errors import in_brief
from pipeline.names import LoopName

_logger = logging.getLogger(__name__)

# Waits and calls of a loop take a second or two each, by their own limits; more on a machine that is short of CPU.
TURN_SECONDS_MAX: Final = 15.0


class Loop:
    """One loop. Only the loop itself calls `turn`; any thread may read the rest.

    A loop with `on_demand` turns only when needed: it can hang only within a turn.
    """

    def __init__(self, name: LoopName, clock: Clock, *, on_demand: bool = False) -> None:
        self.name = name
        self._on_demand = on_demand
        self.failures = 0  # turns that ended with an error, since the process started
        self._clock = clock
        self._began_at: float | None = None  # monotonic: start of the latest turn; None if there is none
        self._error: str | None = None  # of the latest turn

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Run one turn. Its error is caught here; the caller waits before the next turn."""
        self._began_at = self._clock.monotonic()
        try:
            yield
        except Exception as error:
            self.failures += 1
            said = in_brief(f"{type(error).__name__}: {error}")
            if said != self._error:  # a repeated error is logged once
                extra = {"action": "loop_failed", "loop": self.name.value}
                _logger.exception(
                    "the %s of this process failed because of a defect, and continues", self.name, extra=extra
                )
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
        """The problem of this loop, in words; None while it works, and before its first turn."""
        if self._began_at is not None and now - self._began_at > TURN_SECONDS_MAX:
            return f"the {self.name} of this process makes no progress since {now - self._began_at:.0f} s"
        error = self._error
        return None if error is None else f"the {self.name} of this process fails: {error}"


class Watched(Protocol):
    """Something in a process that must not stop; health, logs and metrics read this interface."""

    failures: int  # since the process started

    def problem(self, now: float) -> str | None:
        """Its problem, in words; None if there is none."""
        ...


class Loops:
    """All loops of one process, and other things in it that must not stop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loops: dict[LoopName, Watched] = {}

    def add(self, name: LoopName, *, on_demand: bool = False) -> Loop:
        """A loop of this name; replaces an earlier one of the same name."""
        earlier = self._loops.get(name)
        loop = self._loops[name] = Loop(name, self._clock, on_demand=on_demand)
        loop.failures = 0 if earlier is None else earlier.failures
        return loop

    def put(self, name: LoopName, watched: Watched) -> None:
        """Add something else that must not stop."""
        self._loops[name] = watched

    def problems(self, now: float) -> list[str]:
        """The problems of all of them."""
        found = (loop.problem(now) for loop in list(self._loops.values()))
        return [problem for problem in found if problem is not None]

    def failures(self) -> Mapping[LoopName, int]:
        """Turns that ended with an error, by loop."""
        return {name: loop.failures for name, loop in list(self._loops.items())}
