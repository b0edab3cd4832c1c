"""Retention in PostgreSQL: two functions of the tables' owner delete what is expired (migrations 0012 to 0014)."""

from datetime import datetime
from typing import Any, Final

from pipeline.errors import SchemaError, SinkUnavailableError
from pipeline.ports.retention import RetentionFacts
from pipeline.sink.queries import query
from pipeline.sink.session import Session

# An index on a table of this size is made in less than a tenth of a second, while drains wait.
_SMALL_BYTES: Final = 16 << 20
# Key of the advisory lock for making the index: any number, but the same in all versions.
_LOCK_KEY: Final = 0x5105CE_0002


class PostgresRetention:
    """Retention over a connection that other stores may share."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def facts(self) -> RetentionFacts:
        return RetentionFacts(*self._session.rows(query("retention_facts"), {"small_bytes": _SMALL_BYTES})[0])

    def delete_events(self, *, rows_max: int, since: datetime | None) -> tuple[int, datetime | None]:
        found = self._session.rows(query("delete_expired_events"), {"rows_max": rows_max, "since": since})
        deleted, reached = found[0]
        return int(deleted), reached

    def delete_letters(self, *, rows_max: int) -> tuple[int, int]:
        deleted, never_stored = self._session.rows(query("delete_expired_dead_letters"), {"rows_max": rows_max})[0]
        return int(deleted), int(never_stored)


def set_retention(cursor: Any, *, event_days: int | None, letter_days: int | None) -> list[str]:
    """See Schema.set_retention. The cursor is that of a connection with autocommit, without a limit of its time."""
    done = []
    cursor.execute(query("retention"))
    if cursor.fetchone() != (event_days, letter_days):  # only the owner may write it, and everybody may find it right
        cursor.execute(query("set_retention"), {"event_days": event_days, "letter_days": letter_days})
        done.append(f"events are kept {_words(event_days)}, dead letters {_words(letter_days)}")
    if event_days is None:
        return done
    cursor.execute(query("try_lock"), {"key": _LOCK_KEY})
    if not cursor.fetchone()[0]:
        raise SinkUnavailableError("another process makes the index log_events_stored_at")
    cursor.execute(query("index_of_ages"))
    is_partitioned, table_bytes, is_complete = cursor.fetchone()
    if is_partitioned and is_complete is not True:
        raise SchemaError(
            "log_events is partitioned, and lacks the index log_events_stored_at on stored_at: make it yourself "
            "(docs/retention.md)"
        )
    if is_complete is not True:  # missing, or left by a call that was interrupted
        cursor.execute(query("drop_index_of_ages"))
        is_small = table_bytes < _SMALL_BYTES
        cursor.execute(query("make_index_of_ages_at_once" if is_small else "make_index_of_ages"))
        done.append("made the index log_events_stored_at")
    return done


def _words(days: int | None) -> str:
    return "for ever" if days is None else f"for {days} days"
