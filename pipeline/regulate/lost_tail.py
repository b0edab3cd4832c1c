"""Accepted events that the log lost before they were stored: the alarm, and the control event that stays."""

import logging
from collections.abc import Mapping, Sequence

from pipeline.names import AlarmCode, ControlEventKind
from pipeline.ports.control import ControlEvents, ControlState
from pipeline.ports.log import LOST_SHOWN_SECONDS, LogIdentity, PartitionPosition
from pipeline.regulate.context import EVENTS_SEARCHED
from pipeline.regulate.sample import Sample

_logger = logging.getLogger(__name__)


def name_lost_tail(identity: LogIdentity, positions: Sequence[PartitionPosition], sample: Sample) -> None:
    """Report accepted events that the log lost before they were stored."""
    lost = {position.partition: position.lost for position in positions if position.lost}
    if lost:
        sample.lost, sample.incarnation = sum(lost.values()), identity.incarnation
        where = ", ".join(f"partition {partition}: {count:,}" for partition, count in lost.items())
        sample.critical(
            AlarmCode.LOG_TAIL_LOST,
            f"The event log came back without up to {sample.lost:,} accepted events that were not stored ({where}): "
            f"{identity.began_by or 'it was restarted'}",
            "docs/replication.md, A Redis log that lost its tail",
        )


def record_lost_tail(state: ControlState, sample: Sample, events: ControlEvents, actor: str) -> None:
    """Record a loss as a control event, once: the alarm ends, and the event stays.

    Two losses may have the same words, but not the same incarnation of the log too.
    """
    for alarm in sample.alarms:
        if alarm.code == AlarmCode.LOG_TAIL_LOST:
            data = {"events": str(sample.lost), "incarnation": sample.incarnation}
            if _is_recorded(alarm.what, data, events, since=state.time - LOST_SHOWN_SECONDS):
                continue
            _logger.error("%s", alarm.what, extra={"action": "log_tail_lost", "events": sample.lost})
            events.record(ControlEventKind.LOG_TAIL_LOST, actor=actor, why=alarm.what, data=data)


def _is_recorded(what: str, data: Mapping[str, str], events: ControlEvents, *, since: float) -> bool:
    """Whether this loss is among the latest control events. Those of an earlier version have no incarnation."""
    return any(
        event.kind is ControlEventKind.LOG_TAIL_LOST
        and event.why == what
        and (event.data["incarnation"] == data["incarnation"] if "incarnation" in event.data else event.at >= since)
        for event in events.last(EVENTS_SEARCHED)
    )
