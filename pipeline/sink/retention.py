"""Retention in PostgreSQL: functions of the tables' owner delete what is expired (migrations 0012 to 0020)."""

from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from pipeline.clock import Clock, SystemClock
from pipeline.errors import SchemaError, SinkContentionError, SinkUnavailableError
from pipeline.ports.retention import DayFacts, RetentionFacts
from pipeline.sink.locks import take_lock
from pipeline.sink.queries import query
from pipeline.sink.session import LockedError, Session
from pipeline.sink.sqlstate import QUERY_CANCELED

# An index on a table of this size is made in less than a tenth of a second, while drains wait.
_SMALL_BYTES: Final = 16 << 20
# An estimate is no count: if an exact one takes longer, there is none.
_COUNT_MILLISECONDS_MAX: Final = 1000
# Key of the advisory lock for making the index: any number, but the same in all versions.
_LOCK_KEY: Final = 0x5105CE_0002
# Between two searches for ids that are lost. Each opens every day, and ids are lost by a mistake of a person.
_SEARCH_SECONDS: Final = 600.0
# A transaction that has a lock on log_events for so long is no batch. A drop would wait for it in vain, and hold up
# those who store meanwhile.
_BATCH_SECONDS_MAX: Final = 3.0


class PostgresRetention:
    """Retention over a connection that other stores may share."""

    def __init__(self, session: Session, clock: Clock | None = None) -> None:
        self._session = session
        self._clock = clock or SystemClock()
        self._counts: dict[str, int | None] = {}  # of the day that is dropped next, by its partition
        self._searched_at = float("-inf")  # monotonic
        self._lacking: tuple[int, str] | None = None  # a partition, and an id that was missing there at the last look
        self._users: dict[str, float] = {}  # transactions that have a lock on log_events, by PostgreSQL's time

    def facts(self) -> RetentionFacts:
        *found, is_by_day, has_age = self._session.rows(query("retention_facts"), {"small_bytes": _SMALL_BYTES})[0]
        facts = RetentionFacts(*found)
        if has_age:
            facts = replace(facts, oldest_seconds=self._session.rows(query("oldest_age"))[0][0])
        if not is_by_day:
            return facts
        [(oldest, has_today, days_ahead, has_default_rows, has_id_index)] = self._session.rows(query("day_facts"))
        days = DayFacts(has_today, days_ahead, has_default_rows, self._unnoted_id(), has_id_index)
        return replace(facts, oldest_seconds=oldest, days=days)

    def _unnoted_id(self) -> str | None:
        """See DayFacts. What was found is looked up again each time; all partitions are searched now and then.

        One statement for each partition: so no transaction has a lock on many.
        """
        if self._lacking is not None:
            self._lacking = self._lacking_in(self._lacking[0])
        if self._lacking is None and self._clock.monotonic() - self._searched_at >= _SEARCH_SECONDS:
            places = [place for (place,) in self._session.rows(query("begun_days"))]
            self._lacking = next(filter(None, map(self._lacking_in, places)), None)
            if self._lacking is None:
                self._searched_at = self._clock.monotonic()
        return None if self._lacking is None else self._lacking[1]

    def _lacking_in(self, place: int) -> tuple[int, str] | None:
        [(found,)] = self._session.rows(query("unnoted_id"), {"place": place})
        return None if found is None else (place, str(found))

    def make_days(self) -> int:
        if not self._session.rows(query("may_make_days"))[0][0]:
            return 0
        return int(self._session.rows(query("make_days"))[0][0])

    def drop_day(self) -> tuple[str, int | None] | None:
        found = self._session.rows(query("expired_day"))
        if not found:
            return None
        leaf, begins, ends = found[0]
        self._refuse_long_users()
        rows = self._count(leaf, begins, ends)
        try:
            [(dropped,)] = self._session.rows(query("drop_expired_day"))
        except LockedError as error:
            raise SinkContentionError(f"a day that expired can't be dropped: {error}") from error
        return None if dropped is None else (dropped, rows if dropped == leaf.rpartition(".")[2] else None)

    def _refuse_long_users(self) -> None:
        """Raise SinkUnavailableError if a transaction that is no batch has a lock on log_events."""
        found = self._session.rows(query("users_of_the_table"))
        since = {str(name): self._users.get(name, float(now)) for name, _, now in found}
        self._users = since
        long = {pid for name, pid, now in found if now - since[name] > _BATCH_SECONDS_MAX}
        if long:
            # One that was prepared for a commit in two phases has no process.
            names = [f"pid {', '.join(map(str, pids))}"] if (pids := sorted(long - {None})) else []
            names += ["prepared: see pg_prepared_xacts"] if None in long else []
            raise SinkUnavailableError(
                "a day that expired can't be dropped: a transaction has had a lock on log_events for more than "
                f"{_BATCH_SECONDS_MAX:g} s ({'; '.join(names)}): it is tried again when that has ended",
                is_a_row_possible=False,
            )

    def _count(self, leaf: str, begins: str, ends: str) -> int | None:
        """The number of events of an expired day, in which nobody stores any more; None if it takes long to count."""
        if leaf not in self._counts:
            span = {"begins": begins, "ends": ends, "count_ms": _COUNT_MILLISECONDS_MAX}
            try:
                self._counts = {leaf: int(self._session.rows(query("count_day"), span)[0][0])}
            except SinkUnavailableError as error:
                if error.sqlstate != QUERY_CANCELED:
                    raise
                self._counts = {leaf: None}
            finally:
                self._session.rollback()
        return self._counts[leaf]

    def delete_ids(self, *, rows_max: int, since: datetime | None) -> tuple[int, datetime | None]:
        deleted, reached = self._session.rows(query("delete_expired_ids"), {"rows_max": rows_max, "since": since})[0]
        return int(deleted), reached

    def delete_events(self, *, rows_max: int, since: datetime | None) -> tuple[int, datetime | None]:
        found = self._session.rows(query("delete_expired_events"), {"rows_max": rows_max, "since": since})
        deleted, reached = found[0]
        return int(deleted), reached

    def delete_letters(self, *, rows_max: int) -> tuple[int, int]:
        deleted, never_stored = self._session.rows(query("delete_expired_dead_letters"), {"rows_max": rows_max})[0]
        return int(deleted), int(never_stored)


def set_retention(
    cursor: Any, clock: Clock, *, event_days: int | None, letter_days: int | None, id_days: int | None
) -> list[str]:
    """See Schema.set_retention. The cursor is that of a connection with autocommit, without a limit of its time."""
    done = []
    cursor.execute("SELECT is_by_day()")
    [is_by_day] = cursor.fetchone()
    if id_days is not None and not is_by_day:
        raise SchemaError(
            "DEDUP_DAYS is for log_events by day: in one table an id is kept as long as its event. Set "
            "EVENTS_BY_DAY=yes too, or DEDUP_DAYS=0"
        )
    cursor.execute(query("retention"))
    if cursor.fetchone() != (event_days, letter_days, id_days):  # only the owner may write it, who may find it right
        cursor.execute(
            query("set_retention"), {"event_days": event_days, "letter_days": letter_days, "id_days": id_days}
        )
        ids = f", ids {_words(id_days)}" if is_by_day else ""
        done.append(f"events are kept {_words(event_days)}, dead letters {_words(letter_days)}{ids}")
    if event_days is None and id_days is None:
        return done
    if not take_lock(cursor, clock, _LOCK_KEY):
        raise SinkUnavailableError("another process makes the index log_events_stored_at")
    return done + (_day_indexes(cursor, id_days) if is_by_day else _index_of_ages(cursor))


def _index_of_ages(cursor: Any) -> list[str]:
    cursor.execute(query("index_of_ages"))
    is_partitioned, table_bytes, is_complete = cursor.fetchone()
    if is_partitioned and is_complete is not True:
        raise SchemaError(
            "log_events is partitioned, and lacks the index log_events_stored_at on stored_at: make it yourself "
            "(docs/retention.md)"
        )
    if is_complete is True:
        return []
    cursor.execute(query("drop_index_of_ages"))  # one that a call left which was interrupted
    is_small = table_bytes < _SMALL_BYTES
    cursor.execute(query("make_index_of_ages_at_once" if is_small else "make_index_of_ages"))
    return ["made the index log_events_stored_at"]


def _day_indexes(cursor: Any, id_days: int | None) -> list[str]:
    """The indexes that expiry of a table by day needs: of ids, and of the table that was there before the days."""
    done = []
    if id_days is not None:
        cursor.execute(query("index_of_id_ages"))
        if cursor.fetchone() != (True,):
            cursor.execute(query("drop_index_of_id_ages"))
            cursor.execute(query("make_index_of_id_ages"))
            done.append("made the index event_ids_stored_at")
    cursor.execute(query("old_table_needs_index"))
    if cursor.fetchone()[0]:
        cursor.execute(query("drop_index_of_old_ages"))
        cursor.execute(query("make_index_of_old_ages"))
        done.append("made the index log_events_before_stored_at")
    return done


def _words(days: int | None) -> str:
    return "for ever" if days is None else f"for {days} days"
