"""An event log whose earlier records the sink has never stored: it is another database, or somebody deleted records."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple, Self

from pipeline.event_text import sentence
from pipeline.names import AlarmCode, ControlEventKind, Severity, SinkName
from pipeline.ports.control import Alarm, ControlEvent, ControlEvents, ControlState
from pipeline.ports.log import LOST_SHOWN_SECONDS, PartitionPosition
from pipeline.settings import Settings
from pipeline.text import counted
from pipeline.urls import place_of

_EVENTS_SEARCHED: Final = 1000  # control events: as many as are kept


class LateBegin(NamedTuple):
    """The beginning of a partition of which the sink has stored nothing; the numbers are offsets of a next record."""

    log_id: str
    begin: int  # in the log
    committed: int  # to the log, by drains that stored the records before it; 0: none did, or the log has forgotten it

    @classmethod
    def of(cls, log_id: str, position: PartitionPosition) -> Self:
        """That of a partition as the log reports it."""
        return cls(log_id, position.begin, position.committed or 0)


def sink_place(settings: Settings) -> str:
    """Which database or folder it is, without user and password."""
    is_archive = settings.sink_name is SinkName.ARCHIVE
    return place_of(settings.event_sink_url if is_archive else settings.database_url)


def late_begin_words(settings: Settings, late: Iterable[LateBegin]) -> str:
    """What is missing, and the likely cause."""
    parts = list(late)
    stored = sum(part.committed for part in parts)
    deleted = sum(max(0, part.begin - part.committed) for part in parts)
    name, what = settings.sink_name, f"{settings.sink_name} ({sink_place(settings)})"
    words = []
    if stored:
        setting, other = ("EVENT_SINK_URL", "folder") if name is SinkName.ARCHIVE else ("DATABASE_URL", "database")
        words.append(
            f"{what} does not have the {counted(stored, 'record')} of this event log that drains stored before: "
            f"{setting} probably names another {other} than then"
        )
    if deleted:
        words.append(
            f"neither the event log nor {what} has the first {counted(deleted, 'record')}: the log lost them before "
            "they were stored (deleted, or expired), or forgot that they were stored elsewhere"
        )
    return sentence("; ".join(words))


def late_begin_data(settings: Settings, partition: int, late: LateBegin) -> dict[str, str]:
    """The data of the control event about it."""
    return {
        "partition": str(partition),
        "first": "0",
        "end": str(late.begin),
        "committed": str(late.committed),
        "log_id": late.log_id,
        "place": sink_place(settings),
    }


def late_begin_advice(settings: Settings, late: Iterable[LateBegin]) -> str:
    """Where to look, and what to do."""
    return _OTHER_SINK[settings.sink_name] if any(one.committed for one in late) else _LOST


def begin_late(log_id: str, positions: Iterable[PartitionPosition], stored: Mapping[int, int]) -> dict[int, LateBegin]:
    """The partitions of which the sink has stored nothing, although records before their begin were stored or are lost.

    `positions` were read before `stored`. If a partition has records, and its lost ones were not stored, its drain
    reports the loss.
    """
    return {one.partition: LateBegin.of(log_id, one) for one in positions if _begins_late(one, stored)}


class LateBegins:
    """Finds late begins in what a tick has read, and in the control events; kept from tick to tick.

    Records that were stored elsewhere are an alarm until the sink has stored something of each such partition. Then the
    drain has recorded the late begin, and it stays an alarm for LOST_SHOWN_SECONDS. So do records that the log lost:
    the tick records them itself, because an empty partition has no drain that would.

    It reads the control events only if there may be such an event: when the sink gets its first offset of a
    partition, and while the last tick had this alarm.
    """

    def __init__(self) -> None:
        self._with_offset: frozenset[int] = frozenset()  # the partitions that the sink had an offset of, last time
        self._recorded: set[tuple[int, LateBegin]] = set()  # by partition

    def look(
        self,
        settings: Settings,
        log_id: str,
        positions: Iterable[PartitionPosition],
        stored: Mapping[int, int],
        *,
        state: ControlState,
        events: ControlEvents,
        actor: str,
    ) -> Alarm | None:
        """The alarm, if there is one. `positions` were read before `stored`. Raises StoreUnavailableError."""
        late = begin_late(log_id, positions, stored)
        elsewhere = {partition: one for partition, one in late.items() if one.committed}
        unrecorded = late.items() - elsewhere.items() - self._recorded
        is_first = not frozenset(stored) <= self._with_offset
        self._with_offset = frozenset(stored)
        last = () if state.rate is None else state.rate.alarms
        shown: dict[int, LateBegin] = {}
        if is_first or unrecorded or any(alarm.code == AlarmCode.BEGAN_LATE for alarm in last):
            found = _recorded(events.last(_EVENTS_SEARCHED), log_id, sink_place(settings))
            for partition, one in sorted(unrecorded - {item for item, _ in found}):
                data, why = late_begin_data(settings, partition, one), late_begin_words(settings, [one])
                events.record(ControlEventKind.BEGAN_LATE, actor=actor, why=why, data=data)
                shown[partition] = one
            self._recorded |= unrecorded
            shown |= dict(item for item, at in found if at >= state.time - LOST_SHOWN_SECONDS)
        shown |= elsewhere
        if not shown:
            return None
        what, look_at = late_begin_words(settings, shown.values()), late_begin_advice(settings, shown.values())
        return Alarm(AlarmCode.BEGAN_LATE, Severity.DEGRADED, what, look_at)


_OTHER_SINK: Final = {
    name: (
        f"{setting}: if it is wrong, set it back before more is stored there; if it is right, do nothing: the reason "
        "ends an hour after the first event of each partition"
    )
    for name, setting in ((SinkName.POSTGRESQL, "DATABASE_URL"), (SinkName.ARCHIVE, "EVENT_SINK_URL"))
}
_LOST: Final = "who deletes from the event log, and on Kafka the retention of the topic; the reason ends after an hour"


def _begins_late(position: PartitionPosition, stored: Mapping[int, int]) -> bool:
    """Whether records before the begin were stored elsewhere, or are gone and no drain will report it.

    A loss that the log itself reports is another alarm.
    """
    if position.partition in stored or position.lost:
        return False
    return bool(position.committed) or 0 < position.begin == position.end


def _recorded(events: Iterable[ControlEvent], log_id: str, place: str) -> list[tuple[tuple[int, LateBegin], float]]:
    """What the control events say of this log and this sink, and when. Those of earlier versions name neither."""
    found = []
    for event in events:
        data = event.data
        if event.kind is ControlEventKind.BEGAN_LATE and (data.get("log_id"), data.get("place")) == (log_id, place):
            with suppress(KeyError, ValueError):
                one = LateBegin(log_id, int(data["end"]), int(data["committed"]))
                found.append(((int(data["partition"]), one), event.at))
    return found
