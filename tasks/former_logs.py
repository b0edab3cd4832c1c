"""Event logs of earlier settings that still have events which are not stored: no worker drains them."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from pipeline import wiring
from pipeline.clock import Clock
from pipeline.errors import SluiceError
from pipeline.flow.age import Age
from pipeline.flow.lag import total_lag
from pipeline.health.judge import duration
from pipeline.names import AlarmCode, Severity
from pipeline.ports.control import Alarm
from pipeline.ports.known_logs import KnownLog, KnownLogs
from pipeline.ports.offset_store import OffsetStore
from pipeline.settings import Settings

ASK_SECONDS: Final = 60.0  # between two reads of one event log: the problem lasts days, and its server may be down
LOGS_MAX: Final = 20  # that are checked: those that were seen last
KNOWN_MAX: Final = 100  # that are read: also those of other systems in the same database, which are in use
NOTE_SECONDS: Final = 10.0  # between two records of a log that does not grow: well below SEEN_SECONDS_MIN
SEEN_SECONDS_MIN: Final = 30.0  # another system saw it this recently: it is in use, since systems may share a database


class FormerLogs:
    """Checks former event logs, one at each tick, and remembers the results."""

    def __init__(self, settings: Settings, known: KnownLogs, offsets: OffsetStore, clock: Clock) -> None:
        self._settings = settings
        self._known = known
        self._offsets = offsets
        self._clock = clock
        self._asked_at: dict[str, float] = {}  # log_id -> monotonic
        self._found: dict[str, Alarm] = {}
        self._ages: dict[str, Age] = {}  # since a log was last seen
        self._seen: dict[str, Mapping[int, int]] = {}  # the latest ends of each log that this process has seen
        self._noted: tuple[float, str, Mapping[int, int]] | None = None  # when, and what this process recorded last
        self._replaced: set[str] = set()  # logs that this process has seen at its address before

    def see(self, log_id: str, ends: Mapping[int, int]) -> None:
        """Remember the ends of the present event log, also while PostgreSQL can't record them; raises nothing."""
        self._seen[log_id] = ends

    def alarms(self, log_id: str, ends: Mapping[int, int]) -> list[Alarm]:
        """Record the end of the present event log. Return an alarm for each other one with events that are not stored.

        Reads at most one of them in a call. Raises SinkUnavailableError.
        """
        settings = self._settings
        now = self._clock.monotonic()
        noted = self._noted
        if noted is None or (log_id, ends) != noted[1:] or now - noted[0] >= NOTE_SECONDS:
            self._known.note(log_id, url=without_password(settings.event_log_url), name=_name(settings), ends=ends)
            self._noted = now, log_id, dict(ends)
        self._note_replaced(log_id)
        known = self._not_in_use(log_id, now)
        due = [log for log in known if now - self._asked_at.get(log.log_id, -ASK_SECONDS) >= ASK_SECONDS]
        if due:
            log = min(due, key=lambda one: self._asked_at.get(one.log_id, -ASK_SECONDS))
            self._asked_at[log.log_id] = now
            alarm = self._look(log)
            self._found.pop(log.log_id, None)
            if alarm is not None:
                self._found[log.log_id] = alarm
        return [self._found[log.log_id] for log in known if log.log_id in self._found]

    def _note_replaced(self, log_id: str) -> None:
        """Record the last ends of a log that another one has replaced, if PostgreSQL does not know them.

        The log may have grown while PostgreSQL was unavailable, or since the latest tick of this process.
        """
        replaced = [one for one in self._seen if one != log_id]
        self._replaced.update(replaced)
        if not replaced:
            return
        settings = self._settings
        recorded = {log.log_id: log.ends for log in self._known.others(log_id, logs_max=KNOWN_MAX)}
        for one in replaced:
            before, seen = recorded.get(one, {}), self._seen[one]
            ends = {p: max(before.get(p, 0), seen.get(p, 0)) for p in before.keys() | seen.keys()}
            if ends != before:
                self._known.note(one, url=without_password(settings.event_log_url), name=_name(settings), ends=ends)
            del self._seen[one]

    def _not_in_use(self, log_id: str, now: float) -> list[KnownLog]:
        """Other logs that were not seen for some time; their ages do not depend on steps of PostgreSQL's clock.

        One that this process has seen at the address of the present log was replaced there, so nothing uses it: it is
        named at once. The address alone proves nothing: systems on two machines may both use 127.0.0.1.
        """
        others = self._known.others(log_id, logs_max=KNOWN_MAX)
        self._ages = {log.log_id: self._ages.get(log.log_id, Age()) for log in others}
        aged = [
            replace(log, age_seconds=self._ages[log.log_id].of(log.seen_at, log.age_seconds, now=now)) for log in others
        ]
        return [log for log in aged if log.age_seconds >= SEEN_SECONDS_MIN or log.log_id in self._replaced][:LOGS_MAX]

    def _look(self, log: KnownLog) -> Alarm | None:
        """Read how many events of an event log are not stored; if it does not respond, use the last known values."""
        where = f"{log.url} {log.name!r}"
        stored = self._offsets.stored_offsets(log.log_id)
        forget = f"DELETE FROM known_logs WHERE log_id = '{log.log_id}'"
        try:
            unread = self._ask(log, stored)
        except SluiceError:
            unread = sum(max(0, end - stored.get(partition, 0)) for partition, end in log.ends.items())
            what = (
                f"{unread:,} events of a former event log ({where}) were not stored when it was last seen, "
                f"{duration(log.age_seconds)} ago; it is gone or can't be read"
            )
            look_at = f"that log; if its events are given up, as the owner of the tables in PostgreSQL: {forget}"
        else:
            what = (
                f"A former event log ({where}) still holds {unread:,} events that are not stored; no worker drains it"
            )
            look_at = "EVENT_LOG_URL, LOG_TOPIC and KEY_PREFIX: set them back until that log is drained"
        return Alarm(AlarmCode.FORMER_LOG, Severity.DEGRADED, what, look_at) if unread else None

    def _ask(self, log: KnownLog, stored: Mapping[int, int]) -> int:
        """Events of that event log which are not stored. Raises SluiceError if they can't be read."""
        settings = replace(self._settings, event_log_url=log.url)
        if log.url == without_password(self._settings.event_log_url):
            settings = self._settings
        is_kafka = settings.log_scheme == "kafka"
        settings = replace(settings, log_topic=log.name) if is_kafka else replace(settings, key_prefix=log.name)
        with contextlib.closing(wiring.make_log(settings)) as other:
            return total_lag(other.positions(log.log_id), stored) or 0


def without_password(url: str) -> str:
    """A URL that may be stored and shown."""
    scheme, mark, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{mark}{user.partition(':')[0]}{at}{place}"


def _name(settings: Settings) -> str:
    return settings.log_topic if settings.log_scheme == "kafka" else settings.key_prefix
