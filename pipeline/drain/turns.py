"""The runs of several partitions in one thread: each gets a turn, in a round that leaves none out."""

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Generic

from pipeline.drain.context import DrainContext
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.drain.run import Run, back_off
from pipeline.errors import RecoverableError
from pipeline.ports.event_sink import Encoded

_logger = logging.getLogger(__name__)


class Turns(Generic[Encoded]):
    """The runs of several partitions in one thread."""

    def __init__(
        self,
        runs: list[Run[Encoded]],
        context: DrainContext[Encoded],
        on_end: Callable[[DrainReport], None] | None,
    ) -> None:
        """`context`: that of any of the runs; they share all but the pace."""
        self._order = runs  # in which their turns are due
        self._reports: dict[Run[Encoded], DrainReport] = {}  # of those that have ended
        self._log = context.log
        self._context = context
        self._clock = context.clock
        self._on_end = on_end

    def take(self, paused: Callable[[int], bool]) -> list[DrainReport]:
        """Give the runs turns until all have ended. Returns their reports, in the order of their next turns."""
        with contextlib.ExitStack() as stack:
            for run in self._order:
                stack.callback(self._finish, run)  # after an error: each one, though the end of another may fail too
            while self._live():
                self._round(paused)
                self._wait(paused)
        return [self._reports[run] for run in self._order]

    def _finish(self, run: Run[Encoded]) -> None:
        if run not in self._reports:
            run.finish()

    def _live(self) -> list[Run[Encoded]]:
        return [run for run in self._order if run not in self._reports]

    def _end(self, run: Run[Encoded], outcome: DrainOutcome, error: str | None) -> None:
        report = run.report(outcome, error)
        if self._on_end is not None:
            self._on_end(report)
        self._reports[run] = report
        run.finish()

    def _round(self, paused: Callable[[int], bool]) -> None:
        """One turn for each run that has something to do. The others keep their places in the order."""
        for run in self._live():
            end = run.end()
            if end is None and run.due_at <= self._clock.monotonic():
                self._order.remove(run)
                self._order.append(run)
                end = run.turn(partial(paused, run.partition))
            if end is not None:
                self._end(run, *end)
        if self._is_anothers():
            for run in self._live():
                self._end(run, DrainOutcome.BUSY, None)

    def _is_anothers(self) -> bool:
        """Whether another run goes on with these partitions: the run with most of them; with half each, the lowest one.

        Two that go on side by side would keep a process from the partitions of another share.
        """
        live = self._live()
        busy = [run.partition for run in live if run.is_busy]
        if 2 * len(busy) != len(live):
            return 2 * len(busy) > len(live)
        return bool(busy) and min(busy) == min(run.partition for run in live)

    def _wait(self, paused: Callable[[int], bool]) -> None:
        """Wait until a run has something to do."""
        live, now = self._live(), self._clock.monotonic()
        if not live:
            return
        until = min([now + self._context.poll_seconds(), *(run.due_at for run in live)])
        self._wake(live, max(0.0, until - now))
        if until > now:
            for run in live:
                if paused(run.partition):
                    self._end(run, DrainOutcome.PAUSED, None)
                elif run.waits_from is not None and self._context.is_ending():
                    self._end(run, DrainOutcome.FINISHED, None)

    def _wake(self, live: list[Run[Encoded]], seconds: float) -> None:
        """Wait for events of the runs that wait for some, or only for this time."""
        offsets = {run.partition: run.waits_from for run in live if run.waits_from is not None}
        if not offsets:
            self._clock.sleep(seconds)
            return
        try:
            ready = self._log.ready(offsets, wait_seconds=seconds)
        except RecoverableError as error:
            _logger.debug("whether there are events is unknown: %s", error)
            ready = set(offsets)  # their own reads find the reason, and what to do about it
            self._clock.sleep(back_off(1))
        for run in live:
            if run.partition in ready:
                run.wake()
