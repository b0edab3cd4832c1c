"""Moves a partition's events from the log to the sink, for a bounded time, batch by batch.

A run is only the work of one hint: it may come twice, late or never. The sink's offset alone decides what is stored and
where to continue. Reading the next batch overlaps with storing this one. With more partitions than drains, one run
drains several of them in turn.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.clock import Clock
from pipeline.drain.context import DrainContext, Quiet
from pipeline.drain.interpreter import tuned_interpreter
from pipeline.drain.known_log import KnownLog
from pipeline.drain.report import DrainReport
from pipeline.drain.run import Run
from pipeline.drain.turns import Turns
from pipeline.pace import Pace
from pipeline.ports.breaker import Breaker
from pipeline.ports.control import OffsetFence
from pipeline.ports.event_sink import Encoded, EventSink, StoreResult
from pipeline.ports.log import EventLog
from pipeline.settings import Settings


def drain(
    partition: int,
    *,
    log: EventLog,
    sink: EventSink[Encoded],
    fence: OffsetFence,
    breaker: Breaker,
    paused: Callable[[], bool],
    settings: Settings,
    clock: Clock,
    on_stored: Callable[[int, StoreResult], None] | None = None,
    pace: Pace | None = None,
    quiet: Quiet | None = None,
) -> DrainReport:
    """Drain one partition for `settings.drain_run_seconds_max`, and longer only while PostgreSQL is failing.

    With `quiet`, a run without records may last twice as long, and ends when the worker stops. `paused` is called
    before every batch. `on_stored` is called after every commit with the next offset and the counts. `pace` holds the
    state of earlier runs of this partition. Raises only errors in the configuration, which an operator
    must fix (LogMisconfiguredError); all other errors are in the report.
    """
    with tuned_interpreter(), ThreadPoolExecutor(max_workers=1, thread_name_prefix="drain-ahead") as ahead:
        context = DrainContext(log, sink, fence, breaker, settings, clock, on_stored, pace or Pace(settings), quiet)
        run = Run(partition, context, ahead, KnownLog(log, fence))
        run.allow_idle()
        try:
            outcome, error = run.run(paused)
        finally:
            run.finish()
        return run.report(outcome, error)


def drain_in_turn(
    partitions: Sequence[int],
    *,
    log: EventLog,
    sink: EventSink[Encoded],
    fence: OffsetFence,
    breaker: Breaker,
    paused: Callable[[int], bool],
    settings: Settings,
    clock: Clock,
    on_stored: Callable[[int, StoreResult], None] | None = None,
    pace_of: Callable[[int], Pace] | None = None,
    on_end: Callable[[DrainReport], None] | None = None,
    quiet: Quiet | None = None,
) -> list[DrainReport]:
    """Drain several partitions in turn, for the time that `drain` has for one.

    It holds all of them until its end, waits for events of all at once, and gives each one that has some a turn of a
    fraction of a second, or of one batch. `paused` and `pace_of` take a partition. `on_end` gets the report of a
    partition as soon as its run ends, and before another drain can take it. The reports are in the order in
    which the next turns are due: the next run for these partitions begins with the first.
    """
    with tuned_interpreter(), ThreadPoolExecutor(max_workers=1, thread_name_prefix="drain-ahead") as ahead:
        known, runs = KnownLog(log, fence), []
        for partition in partitions:
            pace = pace_of(partition) if pace_of is not None else Pace(settings)
            context = DrainContext(log, sink, fence, breaker, settings, clock, on_stored, pace, quiet)
            runs.append(Run(partition, context, ahead, known))
        return Turns(runs, context, on_end).take(paused)
