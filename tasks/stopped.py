"""Commands for a partition that is stopped until an operator decides, with text answers; see `pipeline.stopped`."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from pipeline import wiring
from pipeline.errors import RecoverableError, SluiceError
from pipeline.event_text import clock_time
from pipeline.names import ControlEventKind, PauseReason, SinkName
from pipeline.ports.control import Pause
from pipeline.ports.event_sink import EventSink
from pipeline.ports.log import PartitionPosition
from pipeline.ports.storage import Storage
from pipeline.stopped import (
    DoesNotFitError,
    Hole,
    PartitionState,
    Poisoned,
    StoppedContext,
    accept_poison,
    look,
    skip_gap,
)
from pipeline.text import counted
from tasks.context import WorkerContext

_logger = logging.getLogger(__name__)

_SHOWN_CHARS_MAX: Final = 200  # of a record's start
_SHOWN_REASONS_MAX: Final = 3  # different reasons in one answer
_DRY: Final = "Dry run, nothing was changed. "


# --- Looking ----------------------------------------------------------------------------------------------------------


def show_gap(context: WorkerContext, partition: int) -> tuple[str, dict[str, Any]]:
    """The position of a partition: as text, and as a JSON document."""
    place = look(_stopped_context(context, context.sink), partition)
    hole, log = place.hole, place.log
    document = {
        "partition": partition,
        "stored": place.stored,
        "logBegin": log.begin,
        "logEnd": log.end,
        "gap": None if hole is None else {"from": hole.first, "to": hole.end},
        "nextRecord": None if place.next_record is None else _shown(place.next_record),
    }
    stored = "nothing is stored yet" if place.stored is None else f"stored up to offset {place.stored}"
    held = f"holds offsets {log.begin} to {log.end - 1}" if log.end > log.begin else f"is empty, and ends at {log.end}"
    lines = [f"partition {partition}: {stored}; the event log {held}"]
    if hole is None:
        lines.append("no gap: the log holds the next record to store")
    else:
        lines.append(
            f"{_hole_words(context.settings.sink_name, hole)}{_passed_words(context.settings.sink_name, place, hole)}"
        )
        lines.append(f"to go on: {_skip_command(partition, hole, log)}")
    if place.next_record is not None:
        lines.append(f"the next record begins: {_shown(place.next_record)}")
    return "\n".join([*lines, *_pause_lines(context, PauseReason.LOG_GAP, partition)]), document


def show_poison(context: WorkerContext, partition: int) -> tuple[str, dict[str, Any]]:
    """The records for which a partition stopped, as far as they were stored: as text, and as a JSON document."""
    evidence = context.operators.pause_evidence(PauseReason.POISON, partition)
    lines = _pause_lines(context, PauseReason.POISON, partition)
    if evidence is None:
        lines.append(f"partition {partition}: {_NO_EVIDENCE}" if lines else f"partition {partition} is not poisoned")
        return "\n".join(lines), {"partition": partition, "batch": None}
    lines.append(_batch_words(partition, evidence))
    lines += map(_letter_words, evidence["sample"])
    lines.append(
        "the schema is at fault: correct it, then `control resume_consumption`. The events are: "
        f"`control accept_poison {partition} --dry-run`, then without it"
    )
    return "\n".join(lines), {"partition": partition, "batch": evidence}


def stops_again(context: WorkerContext, pauses: list[Pause]) -> str:
    """The reasons why these partitions will stop again at once, as text; empty if none is known."""
    words = []
    for pause in pauses:
        partition = pause.partition
        if partition is None:
            continue
        if pause.reason is PauseReason.LOG_GAP:
            with contextlib.suppress(SluiceError):
                place = look(_stopped_context(context, context.sink), partition)
                hole = place.hole
                if hole is not None:
                    what = _hole_words(context.settings.sink_name, hole)
                    words.append(
                        f" Partition {partition} will stop again at once: {what}. "
                        f"`inspect gap {partition}` shows more, {_skip_command(partition, hole, place.log)} goes on."
                    )
        elif pause.reason is PauseReason.POISON:
            words.append(
                f" Partition {partition} tries its batch again, and stops again if the schema still refuses it: "
                f"`inspect poison {partition}` shows it, `control accept_poison {partition}` makes dead letters of it."
            )
    return "".join(words)


# --- Deciding ---------------------------------------------------------------------------------------------------------


def skip(context: WorkerContext, actor: str, partition: int, hole: Hole, why: str, *, dry_run: bool) -> str:
    """Give up the offsets of a hole, exactly as the operator named them."""
    first, end = hole.first, hole.end
    goes_on = skip_gap(_stopped_context(context, context.sink), partition, hole, dry_run=dry_run)
    what = (
        f"offsets {first} to {end - 1} are given up: {counted(end - first, 'record')}, each perhaps an acknowledged "
        "event that no table has"
        if end > first
        else f"the log lost its tail, which ended at {first}, and accepts events again; no event is stored twice"
    )
    if dry_run:
        return f"{_DRY}Partition {partition} would go on at offset {goes_on}; {what}."
    data = {"partition": str(partition), "first": str(first), "end": str(end)}
    told = _decided(
        context, ControlEventKind.GAP_SKIPPED, PauseReason.LOG_GAP, partition, actor=actor, why=why, data=data
    )
    return f"Partition {partition} goes on at offset {goes_on}, by {actor}: {why}; {what}.{told}"


def accept(context: WorkerContext, actor: str, partition: int, why: str, *, dry_run: bool) -> str:
    """Store the batch for which a partition stopped; records that the sink rejects become dead letters."""
    evidence = context.operators.pause_evidence(PauseReason.POISON, partition)
    if evidence is None:
        raise DoesNotFitError(f"partition {partition}: {_NO_EVIDENCE}")
    log_id, first, end = str(evidence["logId"]), int(evidence["first"]), int(evidence["end"])
    # The evidence of an older version has neither of these fields.
    batch = Poisoned(log_id, first, end, evidence.get("expected"), bool(evidence.get("condemned")))
    letters: dict[int, str] = {}
    with _storage_without_limit(context) as storage:

        def count() -> None:
            letters.update(storage.dead_letters.between(log_id, partition, first, end))

        means = _stopped_context(context, storage.events)
        result = accept_poison(means, partition, batch, rehearsed=count if dry_run else None)
        if not dry_run:
            count()
    records = end - first
    what = (
        f"offsets {first} to {end - 1}, {counted(records, 'record')}: {counted(len(letters), 'dead letter')}"
        f"{_reasons(letters)}, {records - len(letters):,} stored, or stored before"
    )
    if result is None:
        return f"{_DRY}The result for partition {partition} would be: {what}."
    data = {
        "partition": str(partition), "first": str(first), "end": str(end), "dead_lettered": str(len(letters)),
    }  # fmt: skip
    told = _decided(
        context, ControlEventKind.POISON_ACCEPTED, PauseReason.POISON, partition, actor=actor, why=why, data=data
    )
    return (
        f"Accepted, by {actor}: {why}. Partition {partition}, {what}. `control replay_dead_letters` tries them again "
        f"once the schema takes them.{told}"
    )


_NO_EVIDENCE: Final = (
    "no batch is saved that you could look at or accept. If the partition is paused for poison, "
    "`control resume_consumption` makes it try again, and the next failure saves the batch"
)


@contextlib.contextmanager
def _storage_without_limit(context: WorkerContext) -> Iterator[Storage]:
    """Storage without a limit on the number of dead letters."""
    settings = context.settings
    # The batch is stored as a whole, even if many of its records are rejected.
    whole = max(settings.drain_careful_records_max, settings.drain_batch_records_max)
    storage = wiring.make_storage(
        replace(settings, poison_ratio_max=1.0, poison_condemned_records_max=whole, drain_careful_records_max=whole)
    )
    try:
        yield storage
    finally:
        storage.close()


def _decided(
    context: WorkerContext,
    kind: ControlEventKind,
    reason: PauseReason,
    partition: int,
    *,
    actor: str,
    why: str,
    data: dict[str, str],
) -> str:
    """Record the decision and lift the partition's pause; returns what failed, as text."""
    _logger.warning("%s of partition %d by %s: %s", kind, partition, actor, why, extra={"action": kind.value, **data})
    told = ""
    try:
        context.events.record(kind, actor=actor, why=why, data=data)
        context.control_store.resume(reason, generation=None, actor=actor, why=why, partition=partition)
    except RecoverableError as error:
        _logger.warning(
            "decided, but the control store does not have it: %s", error, extra={"action": "decision_not_told"}
        )
        return (
            " The control store (Redis) could not end the pause, which still holds: lift it with "
            "`control resume_consumption`."
        )
    try:
        context.operators.delete_pause(reason.value, partition)
    except RecoverableError as error:
        _logger.warning("not kept in PostgreSQL: %s", error, extra={"action": "command_not_kept"})
        told += " PostgreSQL could not store the end of the pause: Sluice tries again until it can."
    if any(pause.partition in (None, partition) for pause in context.control_store.state().pauses or ()):
        return f"{told} It stays paused for another reason: `inspect sluice` says which."
    return told


def _stopped_context(context: WorkerContext, sink: EventSink[Any]) -> StoppedContext:
    return StoppedContext(context.log, sink, context.fence)


# --- Words ------------------------------------------------------------------------------------------------------------


def _hole_words(sink: SinkName, hole: Hole) -> str:
    if hole.end > hole.first:
        count = hole.end - hole.first
        where = f"neither the event log nor {sink}"
        if count == 1:
            return f"offset {hole.first} is missing: 1 record that is in {where}"
        return f"offsets {hole.first} to {hole.end - 1} are missing: {counted(count, 'record')} that are in {where}"
    if hole.is_refilled:
        return (
            f"the event log holds another record at offset {hole.end} than the one that was stored from there: it lost "
            "its tail, and has records below the stored offset that are not stored. Set the offset back to the "
            "offset at which the log was reset, or lower"
        )
    return (
        f"the event log ends at {hole.end}, before offset {hole.first}, up to which it was stored or about to be: "
        "it lost its tail. Set the offset back to the offset at which the log was reset, or lower; "
        f"to {hole.end} only if no event arrived since"
    )


def _passed_words(sink: SinkName, place: PartitionState, hole: Hole) -> str:
    """What is known about whether missing records were stored; follows their offsets."""
    if hole.end <= hole.first:
        return ""
    if place.passed <= hole.first:
        return ". Whether they were ever stored is not known"
    of_them = "all of them" if place.passed >= hole.end else f"those below offset {place.passed}"
    return (
        f". Drains had stored {of_them}, or were about to: if they did, {sink} has lost them since (a backup, a "
        "standby), or is another one than then"
    )


def _skip_command(partition: int, hole: Hole, log: PartitionPosition) -> str:
    """The command that loses no event in the event log: if the log lost its tail, the command returns to its start."""
    end = hole.end if hole.end > hole.first else log.begin
    return f"`control skip_gap {partition} {hole.first} {end}`"


def _letter_words(letter: dict[str, Any]) -> str:
    reason = f"{_plain(letter['reason'])} ({letter['sqlstate'] or 'not decoded'})"
    return f"  offset {letter['offset']}: {reason}: {_plain(letter['content'])}"


def _batch_words(partition: int, evidence: dict[str, Any]) -> str:
    first, end = evidence["first"], evidence["end"]
    return (
        f"partition {partition}: at least {evidence['refused']:,} of the {end - first:,} records at offsets {first} to "
        f"{end - 1} were refused; the first of them:"
    )


def _pause_lines(context: WorkerContext, reason: PauseReason, partition: int) -> list[str]:
    return [
        f"paused since {clock_time(pause.since)} by {_plain(pause.actor)}: {_plain(pause.why)}"
        for pause in context.control_store.state().pauses or ()
        if pause.reason is reason and pause.partition in (None, partition)
    ]


def _reasons(letters: dict[int, str]) -> str:
    """The first few different reasons."""
    different = list(dict.fromkeys(_plain(reason) for reason in letters.values()))
    if not different:
        return ""
    more = ", …" if len(different) > _SHOWN_REASONS_MAX else ""
    return f" ({'; '.join(different[:_SHOWN_REASONS_MAX])}{more})"


def _shown(record: bytes) -> str:
    return _plain(record[: 4 * _SHOWN_CHARS_MAX].decode("utf-8", "backslashreplace"))[:_SHOWN_CHARS_MAX]


def _plain(text: str) -> str:
    """Text for one line of a terminal: escapes unprintable characters."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
