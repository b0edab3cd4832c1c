"""An event log whose earlier records the sink has never stored: it is another database, or somebody deleted records."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Self

from pipeline.event_text import sentence
from pipeline.names import AlarmCode, ControlEventKind, Severity, SinkName
from pipeline.ports.control import Alarm, ControlEvent, ControlEvents, ControlState
from pipeline.ports.log import LOST_SHOWN_SECONDS, PartitionPosition
from pipeline.settings import Settings
from pipeline.text import counted
from pipeline.urls import place_of

EVENTS_SEARCHED: Final = 1000  # control events: as many as are kept


# By partition: where the log began, and the offset below which the sink had nothing, of each late begin that somebody
# has accepted. What the log held between the two was to be stored again: if it loses that, another late begin follows.
_Accepted = dict[int, list[tuple[int, int]]]


class LateBegin(NamedTuple):
    """The beginning of a partition of which the sink has stored nothing; the numbers are offsets of a next record."""

    log_id: str
    begin: int  # in the log
    committed: int  # to the log, by drains that stored the records before it; 0: none did, or the log has forgotten it

    @classmethod
    def of(cls, log_id: str, position: PartitionPosition) -> Self:
        """That of a partition as the log reports it. A commit beyond the end is of an earlier topic of that name."""
        committed = position.committed or 0
        return cls(log_id, position.begin, committed if committed <= position.end else 0)

    @property
    def kept(self) -> int:
        """The records that were stored elsewhere and that the log still holds: they are stored again here."""
        return max(0, self.committed - self.begin)

    @property
    def missing_below(self) -> int:
        """The offset below which the sink had nothing."""
        return max(self.begin, self.committed)


def sink_place(settings: Settings) -> str:
    """Which database or folder it is, without user and password."""
    is_archive = settings.sink_name is SinkName.ARCHIVE
    return place_of(settings.event_sink_url if is_archive else settings.database_url)


def late_begin_words(settings: Settings, late: Iterable[LateBegin]) -> str:
    """What is missing, and the likely cause."""
    parts = list(late)
    stored, kept = sum(part.committed for part in parts), sum(part.kept for part in parts)
    deleted = sum(max(0, part.begin - part.committed) for part in parts)
    name, what = settings.sink_name, f"{settings.sink_name} ({sink_place(settings)})"
    words = []
    if stored:
        setting, other = ("EVENT_SINK_URL", "folder") if name is SinkName.ARCHIVE else ("DATABASE_URL", "database")
        words.append(
            f"{what} {'did' if kept else 'does'} not have the {counted(stored, 'record')} of this event log that "
            f"drains stored before: {setting} probably names another {other} than then"
        )
    if kept:
        words.append(f"the log still holds {kept:,} of them, and they are stored again here")
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


def accepted_data(settings: Settings, log_id: str, late: Mapping[int, LateBegin]) -> dict[str, str]:
    """The data of the control event by which an operator accepts late begins, by partition."""
    begins = " ".join(f"{partition}:{one.begin}" for partition, one in sorted(late.items()))
    ends = " ".join(f"{partition}:{one.missing_below}" for partition, one in sorted(late.items()))
    return {"begins": begins, "ends": ends, "log_id": log_id, "place": sink_place(settings)}


def late_begin_advice(settings: Settings, late: Iterable[LateBegin]) -> str:
    """Where to look, and what to do."""
    return _OTHER_SINK[settings.sink_name] if any(one.committed for one in late) else _LOST


def begin_late(log_id: str, positions: Sequence[PartitionPosition], stored: Mapping[int, int]) -> dict[int, LateBegin]:
    """The partitions of which the sink has stored nothing, although records before their begin were stored or are lost.

    `positions` were read before `stored`. If a partition has records, and its lost ones were not stored, its drain
    reports the loss.
    """
    found = ((one.partition, LateBegin.of(log_id, one)) for one in positions if _may_begin_late(one, stored))
    ends = {one.partition: one.end for one in positions}
    return {partition: one for partition, one in found if one.committed or 0 < one.begin == ends[partition]}


def not_accepted(
    settings: Settings, log_id: str, late: Mapping[int, LateBegin], events: Iterable[ControlEvent]
) -> dict[int, LateBegin]:
    """Those of these late begins that no operator has accepted, by the control events."""
    return _without(late, _History.of(events, log_id, sink_place(settings)).accepted)


def shown_late_begins(
    settings: Settings,
    log_id: str,
    positions: Sequence[PartitionPosition],
    stored: Mapping[int, int],
    *,
    events: Iterable[ControlEvent],
    now: float,
) -> dict[int, LateBegin]:
    """What the reason `began_late` is about, by partition: what an operator can accept. `now`: of the control store."""
    history = _History.of(events, log_id, sink_place(settings))
    return _shown(begin_late(log_id, positions, stored), history, stored, now)


class LateBegins:
    """Finds late begins in what a tick has read, and in the control events; kept from tick to tick.

    Records that were stored elsewhere are an alarm until the sink has stored something of each such partition. Then the
    drain has recorded the late begin, and it stays an alarm for LOST_SHOWN_SECONDS. So do records that the log lost:
    the tick records them itself, because an empty partition has no drain that would. The tick also records those that
    the log still holds, because it then corrects the commit that shows them. What an operator has accepted is no alarm.

    It reads the control events only if there may be such an event: when the sink gets its first offset of a
    partition, and while the last tick had this alarm, or finds something that is not known to be accepted.
    """

    def __init__(self) -> None:
        self._with_offset: frozenset[int] = frozenset()  # the partitions that the sink had an offset of, last time
        self._recorded: set[tuple[int, LateBegin]] = set()  # by partition
        self._accepted: _Accepted = {}  # as last read, of `_log_id`
        self._log_id = ""

    def look(
        self,
        settings: Settings,
        log_id: str,
        positions: Sequence[PartitionPosition],
        stored: Mapping[int, int],
        *,
        state: ControlState,
        events: ControlEvents,
        actor: str,
    ) -> Alarm | None:
        """The alarm, if there is one. `positions` were read before `stored`. Raises StoreUnavailableError."""
        if log_id != self._log_id:
            self._log_id, self._accepted = log_id, {}
        late = begin_late(log_id, positions, stored)
        unrecorded = {item for item in late.items() if item[1].kept or not item[1].committed} - self._recorded
        is_first = not frozenset(stored) <= self._with_offset
        self._with_offset = frozenset(stored)
        last = () if state.rate is None else state.rate.alarms
        elsewhere = {partition: one for partition, one in late.items() if one.committed}
        is_shown = any(alarm.code == AlarmCode.BEGAN_LATE for alarm in last)
        if not (is_first or unrecorded or is_shown or _without(elsewhere, self._accepted)):
            return None
        history = _History.of(events.last(EVENTS_SEARCHED), log_id, sink_place(settings))
        self._accepted = history.accepted
        new = dict(sorted(unrecorded - {item for item, _ in history.recorded}))
        shown = _shown(late, history, stored, state.time)
        for partition, one in _without(new, history.accepted).items():
            data, why = late_begin_data(settings, partition, one), late_begin_words(settings, [one])
            events.record(ControlEventKind.BEGAN_LATE, actor=actor, why=why, data=data)
            shown[partition] = one
        self._recorded |= unrecorded
        if not shown:
            return None
        what, look_at = late_begin_words(settings, shown.values()), late_begin_advice(settings, shown.values())
        return Alarm(AlarmCode.BEGAN_LATE, Severity.DEGRADED, what, look_at)


_ACCEPT: Final = "`celery -A tasks.app control accept_late_begin`"
_OTHER_SINK: Final = {
    name: (
        f"{setting}: if it is wrong, set it back before more is stored there; if it is right, {_ACCEPT} ends the "
        "reason. Without that it ends an hour after the first event of each partition"
    )
    for name, setting in ((SinkName.POSTGRESQL, "DATABASE_URL"), (SinkName.ARCHIVE, "EVENT_SINK_URL"))
}
_LOST: Final = (
    "who deletes from the event log, and on Kafka the retention of the topic; the reason ends after an hour, or with "
    f"{_ACCEPT}"
)


def _may_begin_late(position: PartitionPosition, stored: Mapping[int, int]) -> bool:
    """A loss that the log itself reports is another alarm."""
    return position.partition not in stored and not position.lost


class _History(NamedTuple):
    """What the control events say of a log and a sink. Those of earlier versions name neither."""

    recorded: list[tuple[tuple[int, LateBegin], float]]  # by partition, and when; oldest first
    accepted: _Accepted

    @classmethod
    def of(cls, events: Iterable[ControlEvent], log_id: str, place: str) -> Self:
        """That of one event log and one sink."""
        history = cls([], {})
        for event in events:
            data = event.data
            if (data.get("log_id"), data.get("place")) != (log_id, place):
                continue
            with suppress(KeyError, ValueError):
                if event.kind is ControlEventKind.BEGAN_LATE:
                    one = LateBegin(log_id, int(data["end"]), int(data["committed"]))
                    history.recorded.append(((int(data["partition"]), one), event.at))
                elif event.kind is ControlEventKind.LATE_BEGIN_ACCEPTED:
                    ends = _by_partition(data["ends"])
                    begins = _by_partition(data.get("begins", ""))  # earlier versions recorded the ends alone
                    for partition, end in ends.items():
                        history.accepted.setdefault(partition, []).append((begins.get(partition, end), end))
        return history


def _shown(
    late: Mapping[int, LateBegin], history: _History, stored: Mapping[int, int], now: float
) -> dict[int, LateBegin]:
    """Those stored elsewhere, and those that are recorded and not old, without what was accepted."""
    shown = _without({partition: one for partition, one in late.items() if one.committed}, history.accepted)
    for (partition, one), at in history.recorded:
        is_new = at >= now - LOST_SHOWN_SECONDS or (one.committed and partition not in stored)
        if not is_new or _is_accepted(one, history.accepted.get(partition, ())):
            continue
        if partition not in shown or one.missing_below >= shown[partition].missing_below:
            shown[partition] = one
    return shown


def _without(late: Mapping[int, LateBegin], accepted: _Accepted) -> dict[int, LateBegin]:
    return {partition: one for partition, one in late.items() if not _is_accepted(one, accepted.get(partition, ()))}


def _is_accepted(late: LateBegin, accepted: Iterable[tuple[int, int]]) -> bool:
    return any(late.begin <= begin and late.missing_below <= end for begin, end in accepted)


def _by_partition(text: str) -> dict[int, int]:
    pairs = (pair.split(":") for pair in text.split())
    return {int(partition): int(offset) for partition, offset in pairs}
