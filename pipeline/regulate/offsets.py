"""Compares the stored offsets with the log's, and stops partitions of which events would be skipped or are missing."""

import logging
from collections.abc import Mapping, Sequence

from pipeline.errors import SluiceError, in_brief
from pipeline.names import AlarmCode, PauseReason
from pipeline.ports.control import ControlState, ControlStore
from pipeline.ports.log import EventLog, PartitionPosition
from pipeline.regulate.context import ControlAdapters, SinkQueries
from pipeline.regulate.sample import Sample
from pipeline.text import counted

_logger = logging.getLogger(__name__)


def look_after_offsets(
    log: EventLog,
    positions: list[PartitionPosition],
    sample: Sample,
    *,
    sink: SinkQueries,
    control: ControlAdapters,
    state: ControlState,
    actor: str,
) -> None:
    """Compare PostgreSQL's stored offsets with the log's own figures and with the mirror of the lowest offsets.

    `positions` were read before PostgreSQL: a higher commit in them belongs to another database.
    """
    log_id, stored = sample.log_id, sample.stored
    assert log_id is not None  # noqa: S101 - the caller has read them
    assert stored is not None  # noqa: S101
    for position in positions:
        consumed = max(position.begin, stored.get(position.partition, 0))
        if position.committed is not None and position.committed > consumed:
            _logger.warning(
                "partition %d: the log has committed offset %d, %s has stored up to %d: the log is corrected",
                position.partition,
                position.committed,
                sample.sink,
                consumed,
                extra={"action": "log_commit_corrected", "partition": position.partition},
            )
            log.commit(log_id, position.partition, consumed)
    if any(_is_behind(position, stored) for position in positions):
        _stop_behind(log, sample, control.store, actor)
    _stop_forgotten(positions, sample, state, control.store, actor)
    try:
        mirror = control.fence.mirror(log_id)
        if not mirror.is_complete:
            control.fence.seed(log_id, mirror.life, sink.settled_offsets(log_id))
        sample.alarms += sink.former_logs(log_id, {position.partition: position.end for position in positions})
    except SluiceError as error:
        sample.problems.append(f"the mirror of the stored offsets, or former logs: {in_brief(error)}")


def _is_behind(position: PartitionPosition, stored: Mapping[int, int]) -> bool:
    """Whether the log would give stored offsets to new events.

    This does not apply to a restarted log that waits for its first append: it reads its lowest offsets before that.
    """
    return position.next_offset is not None and position.next_offset < stored.get(position.partition, 0)


def _stop_behind(log: EventLog, sample: Sample, store: ControlStore, actor: str) -> None:
    """Stop the partitions whose next event would get an offset that is already stored: drains would skip it.

    A stopped partition is not trimmed. The log's positions are read again, because it may just have advanced.
    """
    try:
        positions = log.positions()
    except SluiceError as error:
        sample.problems.append(f"the log's ends are unknown: {in_brief(error)}")
        return
    stored = sample.stored or {}
    for position in positions:
        if not _is_behind(position, stored):
            continue
        partition, offset = position.partition, stored[position.partition]
        why = (
            f"partition {partition}: {sample.sink} has stored up to offset {offset:,}, and the log goes on with "
            f"{position.next_offset:,}: drains would skip events with the offsets between"
        )
        _logger.error("%s", why, extra={"action": "log_behind_stored", "partition": partition})
        store.pause(PauseReason.LOG_GAP, actor=actor, why=why, partition=partition)
        sample.critical(
            AlarmCode.LOG_BEHIND_STORED,
            f"The event log was reset to an earlier state: {why}",
            "docs/guarantees.md, A log that ends before the stored offset",
            partition,
        )


def _stop_forgotten(
    positions: Sequence[PartitionPosition], sample: Sample, state: ControlState, store: ControlStore, actor: str
) -> None:
    """Stop the partitions that lack events which neither the sink nor the log has.

    That happens if PostgreSQL is restored, or a standby without the newest commits takes its place, after the log was
    trimmed; or if somebody deletes records of the log that are not stored. If the log has later records, the drain
    finds the hole. An empty partition has no drain that would find it, and its lag is 0. The log was read before the
    sink, so its begin can't have passed the stored offset meanwhile.
    """
    stopped = {pause.partition for pause in state.pauses or () if pause.reason is PauseReason.LOG_GAP}
    for position in positions:
        partition, stored = position.partition, (sample.stored or {}).get(position.partition)
        if stored is None or not stored < position.begin == position.end or partition in stopped:
            continue
        was_stored = position.committed is not None and position.committed >= position.begin
        lost = position.begin - stored
        is_one = lost == 1
        cause = (
            f"{sample.sink} has lost {'it after it was' if is_one else 'them after they were'} trimmed"
            if was_stored
            else f"{'It was' if is_one else 'They were'} deleted from the log, and it does not know that "
            f"{sample.sink} had stored {'it' if is_one else 'all of them'}"
        )
        why = (
            f"partition {partition}: {sample.sink} has stored up to offset {stored:,} only, and the log begins at "
            f"{position.begin:,}: {counted(lost, 'record')} {'is' if is_one else 'are'} in neither. {cause}"
        )
        _logger.error("%s", why, extra={"action": "stored_events_lost", "partition": partition})
        store.pause(PauseReason.LOG_GAP, actor=actor, why=why, partition=partition)
