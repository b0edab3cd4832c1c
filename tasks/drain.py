"""Drain tasks: each is a hint that a partition may have events to store."""

import contextlib
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from celery import shared_task

from pipeline.drain import drain, drain_in_turn
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.errors import PermanentError, StoreUnavailableError, in_brief
from pipeline.late_begin import LateBegin, late_begin_data, late_begin_words
from pipeline.names import DRAIN_TASK, ControlEventKind, DropReason, PauseReason
from pipeline.ports.control import Pause, paused
from pipeline.settings import Settings
from tasks.context import WorkerContext, context_of
from tasks.dropped import note_dropped
from tasks.hints import give_back_hint, is_hinted, send_hint
from tasks.known_pauses import KnownPauses, QuietWorker
from tasks.pausing import pause_until_resumed

_logger = logging.getLogger(__name__)

_PAUSE_REASONS: Final = {
    DrainOutcome.LOG_GAP: PauseReason.LOG_GAP,
    DrainOutcome.POISONED: PauseReason.POISON,
}
_ROUTINE: Final = frozenset({DrainOutcome.FINISHED, DrainOutcome.BUSY})
_NO_NEXT_HINT: Final = frozenset(
    {
        DrainOutcome.BUSY,  # the running drain sends it
        DrainOutcome.PAUSED,  # a hint would wait in the paused queue
        DrainOutcome.BREAKER_OPEN,
        DrainOutcome.LOG_GAP,
        DrainOutcome.POISONED,
    }
)


@shared_task(name=DRAIN_TASK, bind=True)
def drain_partition(self: Any, partition: int, hint: str | None = None) -> str:
    """Move a partition's events from the event log to PostgreSQL for a limited time, then send the next hint.

    Returns what it did, for Flower: the result is stored nowhere.

    With more partitions than drains, it drains all partitions of its share in turn, and this one first.
    """
    app = self.app
    settings: Settings = app.sluice_settings
    context = context_of(settings)
    if not context.has_partition(partition):
        # It would never end: each run sends the next hint for the same partition.
        note_dropped(DropReason.ARGUMENTS, f"sluice.drain: there is no partition {partition!r}")
        return "no work: there is no such partition"
    share = context.share_of(partition)
    with contextlib.suppress(StoreUnavailableError):  # the lease of the hint expires
        give_back_hint(context.leases, min(share), hint)
    is_paused = PausedCheck(context, app.sluice_known_pauses)
    running = [one for one in share if not is_paused(one)]
    if not running:
        return "no work: PAUSED"
    try:
        reports = _drain(running, context, is_paused, app.sluice_known_pauses)
    except PermanentError as error:  # the partition or the whole event log: an operator must change the configuration
        context.mistakes.say(error)
        return f"failed: {in_brief(error)}"
    context.drain_counters.on_runs([report.outcome.value for report in reports])
    following = next_of(reports)
    # Where drains wait for a process, a share with two hints would have two turns for one of the others.
    is_short = app.sluice_known_pauses.is_short
    if following is not None and not (is_short and is_hinted(context.queues, following, settings.drains_max)):
        send_hint(app, following, hint=None)
    return drain_words(reports)


def drain_words(reports: Sequence[DrainReport]) -> str:
    """What a run did; a run that moved nothing begins with "no work"."""
    counts = {
        "stored": sum(report.stored for report in reports),
        "stored before": sum(report.repeated for report in reports),
        "conflicts": sum(report.conflicting for report in reports),
        "dead letters": sum(report.dead_lettered for report in reports),
    }
    moved = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    ends = sorted({report.outcome.value.replace("_", " ") for report in reports if report.outcome not in _ROUTINE})
    if all(report.outcome is DrainOutcome.BUSY for report in reports):
        return "no work: another drain runs"
    return f"{moved or 'no work'}{': ' if ends else ''}{', '.join(ends).replace('paused', 'PAUSED')}"


def _drain(
    partitions: list[int], context: WorkerContext, is_paused: "PausedCheck", known: KnownPauses
) -> list[DrainReport]:
    """Drain one partition, or several in turn, and tell the result of each; see drain_in_turn."""
    adapters: dict[str, Any] = {
        "log": context.log,
        "sink": context.sink,
        "fence": context.fence,
        "breaker": context.breaker,
        "settings": context.settings,
        "clock": context.clock,
        "on_stored": context.drain_counters.on_stored,
        "quiet": QuietWorker(known, context.breaker, context.settings, context.clock),
    }
    if len(partitions) > 1:
        tell = partial(_tell, context=context)
        return drain_in_turn(partitions, paused=is_paused, pace_of=context.pace, on_end=tell, **adapters)
    [partition] = partitions
    report = drain(partition, paused=partial(is_paused, partition), pace=context.pace(partition), **adapters)
    _tell(report, context)
    return [report]


def next_of(reports: Sequence[DrainReport]) -> int | None:
    """The partition with which the next run for the same ones begins; None if no hint is to be sent."""
    return next((report.partition for report in reports if report.outcome not in _NO_NEXT_HINT), None)


class PausedCheck:
    """Whether consumption of a partition is paused. It reads the control store a few times a second at most.

    It reads nothing while the worker's main process has read the same pauses a moment ago, unless the breaker of this
    process is open: then it waits for the end of that reason.

    If a read fails, the last result stays valid. At first it is "not paused", since the hint came through a queue that
    is not consumed while paused.
    """

    SECONDS_BETWEEN: Final = 0.25

    def __init__(self, context: WorkerContext, known: KnownPauses) -> None:
        self._context = context
        self._known = known
        self._pauses: tuple[Pause, ...] = ()
        self._asked_at: float | None = None

    def __call__(self, partition: int) -> bool:
        now = self._context.clock.monotonic()
        if self._asked_at is None or now - self._asked_at >= self.SECONDS_BETWEEN:
            self._asked_at = now
            if self._context.breaker.is_open or not self._known.are(self._pauses, now):
                self._ask()
        return paused(self._pauses, partition)

    def _ask(self) -> None:
        try:
            state = self._context.control_store.pause_state()
        except StoreUnavailableError:
            self._context.breaker.reconcile(None)
            return
        self._context.breaker.reconcile(state)
        if state.pauses is not None:
            self._pauses = state.pauses


def _tell(report: DrainReport, context: WorkerContext) -> None:
    """Log the result of a run, and pause the partition if only an operator can fix the problem."""
    if report.error is not None:
        _logger.error(
            "drain of partition %d ended (%s): %s",
            report.partition,
            report.outcome,
            report.error,
            extra={"action": "drain_failed", "partition": report.partition, "outcome": report.outcome.value},
        )
    elif report.stored or report.dead_lettered or report.conflicting:
        _logger.info(
            "drained partition %d up to offset %s: %d stored, %d repeated, %d conflicting, %d dead letters",
            report.partition,
            report.next_offset,
            report.stored,
            report.repeated,
            report.conflicting,
            report.dead_lettered,
            extra={"action": "drained", "partition": report.partition, "offset": report.next_offset},
        )
    if report.began_late is not None:
        _record_late_begin(context, report.partition, report.began_late)
    reason = _PAUSE_REASONS.get(report.outcome)
    if reason is not None:
        pause_until_resumed(
            context,
            reason,
            actor=context.name,
            why=report.error or "",
            partition=report.partition,
            evidence=report.evidence,
        )


def _record_late_begin(context: WorkerContext, partition: int, late: LateBegin) -> None:
    """Report that an event log's first records are not stored. No reason to stop: often they were not needed."""
    why, data = late_begin_words(context.settings, [late]), late_begin_data(context.settings, partition, late)
    try:
        context.events.record(ControlEventKind.BEGAN_LATE, actor=context.name, why=why, data=data)
    except StoreUnavailableError as error:
        _logger.warning("not recorded: partition %d begins late: %s", partition, error, extra={"action": "not_told"})
