"""Partitions with events that store none: for how long, why, and the end of a drainer that is frozen."""

import logging
from contextlib import suppress
from typing import Final

from pipeline.errors import SluiceError, in_brief
from pipeline.names import AlarmCode, ControlEventKind
from pipeline.ports.control import ControlEvents, ControlState, paused
from pipeline.regulate.context import EVENTS_SEARCHED, ControlAdapters, SinkQueries
from pipeline.regulate.sample import Sample
from pipeline.settings import Settings

_logger = logging.getLogger(__name__)

# Time without a tick after which the progress of the partitions is forgotten: periods, but no less than the seconds. A
# tick may take seconds while a server does not respond, whatever the period is.
_PROGRESS_PERIODS_MAX: Final = 3
_PROGRESS_SECONDS_MIN: Final = 15.0


def note_progress(state: ControlState, sample: Sample, settings: Settings, control: ControlAdapters) -> None:
    """Measure for how long each partition with events has stored none."""
    if sample.log_id is None or sample.stored is None or sample.lag is None:
        return
    # A paused partition is right to store nothing. If the pauses are unknown, no partition is measured either.
    running = [p for p in sample.lag if state.pauses is not None and not paused(state.pauses, p)]
    behind = {p: sample.stored.get(p, 0) for p in running if sample.lag[p] > 0}
    forget_seconds = max(_PROGRESS_PERIODS_MAX * settings.regulate_seconds, _PROGRESS_SECONDS_MIN)
    last = state.rate.consumption if state.rate is not None else None
    if behind or last is None or last.no_progress_seconds != {}:  # otherwise nothing is noted that is to be forgotten
        noted = control.progress.note(sample.log_id, behind, forget_seconds=forget_seconds)
    else:
        noted = {}
    if state.pauses is not None:
        sample.no_progress_seconds = noted


def end_stalled(
    state: ControlState, sample: Sample, *, settings: Settings, sink: SinkQueries, control: ControlAdapters, actor: str
) -> tuple[int, ...]:
    """End the drainers of partitions that have lag and make no progress: a frozen one keeps its lock for ever.

    One that is not quiet is looked at again at each tick. Once one is ended, the next one gets until the time has
    passed once more.
    """
    limit = settings.drain_stalled_seconds_max
    standing = {p: seconds for p, seconds in (sample.no_progress_seconds or {}).items() if seconds >= limit}
    if sample.log_id is None or sample.stored is None or not standing:
        return ()
    terminated = []
    ended_at = _ended_at(control.events)
    last = state.rate.consumption if state.rate is not None else None
    before = (last.no_progress_seconds if last is not None else None) or {}
    for partition, seconds in standing.items():
        offset, earlier = sample.stored.get(partition, 0), before.get(partition, 0.0)
        has_passed_again = seconds // limit > (earlier // limit if earlier <= seconds else 0)
        if (partition, offset) in ended_at and not has_passed_again:
            continue
        try:
            if not sink.terminate_drainer(sample.log_id, partition):
                continue  # no backend holds it, or it has just sent something: it is busy with other partitions
        except SluiceError as error:
            sample.degraded(
                AlarmCode.DRAINER_NOT_ENDED,
                f"The drain of partition {partition} makes no progress and could not be terminated: {in_brief(error)}",
                f"{sample.sink}, and the workers",
                partition,
            )
            break  # each further query could take as long, and the rate is not published yet
        terminated.append(partition)
        why = f"partition {partition} stood at offset {offset} for {seconds:.0f} s"
        _logger.warning("ended a stalled drainer: %s", why, extra={"action": "drainer_terminated"})
        data = {"partition": str(partition), "offset": str(offset)}
        control.events.record(ControlEventKind.DRAINER_TERMINATED, actor=actor, why=why, data=data)
    return tuple(terminated)


def _ended_at(events: ControlEvents) -> set[tuple[int, int]]:
    """The partitions whose drainer was ended lately, each with the offset at which it stood."""
    found = set()
    for event in events.last(EVENTS_SEARCHED):
        if event.kind is ControlEventKind.DRAINER_TERMINATED:
            with suppress(KeyError, ValueError):  # of another version: it does not say which
                found.add((int(event.data["partition"]), int(event.data["offset"])))
    return found


def name_standing(sample: Sample, settings: Settings, sink: SinkQueries) -> None:
    """Add the reason for each partition that has stored nothing for long; health adds the time and the event count."""
    for partition, seconds in (sample.no_progress_seconds or {}).items():
        if seconds < settings.no_progress_seconds_max or sample.log_id is None:
            continue
        try:
            why = sink.why_standing(sample.log_id, partition)
        except SluiceError as error:
            why = f"{sample.sink} does not say why: {in_brief(error)}"
        look_at = "the session or worker that is named; the log of the workers for `batches`"
        sample.critical(AlarmCode.STANDS_STILL, f"partition {partition}: {why}", look_at, partition)
