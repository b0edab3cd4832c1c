"""Where measurements run: the cores, servers that stop when a block ends, and the options."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from stack.servers import Server

_CORES: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
SERVER_CORE: Final = _CORES[0]  # of the process that is measured
LOAD_CORE: Final = _CORES[-1]  # of the generator and of the servers behind


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line."""

    log: str = "redis"
    rounds: int = 3
    quick: bool = False  # too short for useful figures: only shows that it works
    full: bool = False  # the goals' own sizes
    by_day: bool = False  # of M7, M8: log_events is partitioned by day
    arms: tuple[str, ...] = ()  # of M5, M6, M9, M10; empty: the usual ones
    overload_rounds: int = 1  # of M5, M6, M9, M10: each starts every system again
    step_runs: int = 10  # of M6 with drain_time, in all rounds together

    @property
    def seconds(self) -> float:
        """Length of one measurement of a rate."""
        return 0.5 if self.quick else 2.0


def run_on(core: int) -> None:
    """Move this process, and all that it starts from now on, to one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def run_anywhere() -> None:
    """Let this process run on every core again."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(_CORES))


@contextlib.contextmanager
def starting_on(core: int) -> Iterator[None]:
    """Processes that start in this block run on one core from their start, with the threads that they start at once."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {core}
    run_on(core)
    try:
        yield
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, before)


def started(stack: contextlib.ExitStack, server: Server) -> Server:
    """Start a server that stops with the stack."""
    stack.callback(server.stop)
    return server.start()
