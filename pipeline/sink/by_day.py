"""Partitions log_events by day, while events are stored: each step can be interrupted, and the next call goes on.

PostgreSQL then has no unique index on event_id alone. `event_ids` keeps the ids, and a trigger fills it for each writer
(migration 0016, docs/adr/retention.md).
"""

import logging
from collections.abc import Callable
from importlib import resources
from typing import Any, Final, TypeVar

import psycopg2

from pipeline.clock import Clock
from pipeline.errors import SchemaError, SinkUnavailableError, in_full
from pipeline.sink.locks import take_lock
from pipeline.sink.queries import query
from pipeline.text import counted

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_LOCK_KEY: Final = 0x5105CE_0003  # of the advisory lock for the change: any number, but the same in all versions
_ROWS_AT_ONCE: Final = 5_000  # whose ids a step notes: a transaction of some ten milliseconds
_LOCK_TRIES_SECONDS_MAX: Final = 300.0
_LOCK_POLL_SECONDS: Final = 1.0
_LOG_SECONDS: Final = 10.0  # between two lines about progress
_NAMED_MAX: Final = 5  # sessions in one line


def partition_by_day(cursor: Any, clock: Clock) -> list[str]:
    """See Schema.partition_by_day. The cursor is that of a connection with autocommit, without a limit of its time."""
    if not take_lock(cursor, clock, _LOCK_KEY):
        raise SinkUnavailableError("another process partitions log_events by day")
    cursor.execute(query("changeover_facts"))
    is_by_day, obstacles, is_noting, has_end = cursor.fetchone()
    done = _mended(cursor, clock) if is_by_day else _changed(cursor, clock, obstacles, is_noting, has_end)
    return done + _days_made(cursor, clock)


def _days_made(cursor: Any, clock: Clock) -> list[str]:
    """Make the days ahead, also if the default partition is large: PostgreSQL reads it while events are stored."""
    cursor.execute(query("make_days"))
    cursor.execute(query("default_in_the_way"))
    found = cursor.fetchone()
    if found is None:
        return []
    # As begin_changeover does with log_events: an autovacuum of it ends.
    lock = (
        f"SET LOCAL lock_timeout = '30s'; LOCK TABLE ONLY {found[0]} IN SHARE UPDATE EXCLUSIVE MODE; "
        "SET LOCAL lock_timeout = '500ms';"
    )
    _under_lock(cursor, clock, lambda: cursor.execute(lock + query("set_default_end")))
    cursor.execute(f"ALTER TABLE {found[0]} VALIDATE CONSTRAINT log_events_default_end")
    cursor.execute(query("make_days"))
    [made] = cursor.fetchone()
    drop = f"ALTER TABLE {found[0]} DROP CONSTRAINT log_events_default_end; COMMIT"
    _under_lock(cursor, clock, lambda: cursor.execute(lock + drop))
    return [f"made the partitions of {made} days ahead; until they begin, events are stored in {found[0]}"]


def _changed(cursor: Any, clock: Clock, obstacles: list[str], is_noting: bool, has_end: bool) -> list[str]:
    if obstacles:
        raise SchemaError(
            f"log_events can't be partitioned by day while it has: {', '.join(obstacles)}. Remove each, run this "
            "again, and make it once more on the partitioned table, if PostgreSQL can (docs/retention.md)"
        )
    _warn_of_older(cursor)
    if not is_noting:
        _under_lock(cursor, clock, lambda: cursor.execute(query("note_new_ids")))
    has_events = _note_ids(cursor, clock)
    cursor.execute(query("unnoted_event"))
    if cursor.fetchone() is not None:  # somebody removed ids
        cursor.execute(query("restart_progress"))
        has_events = _note_ids(cursor, clock)
    is_swapped = False
    while not is_swapped:
        if has_events and not has_end:
            _under_lock(cursor, clock, lambda: cursor.execute(query("set_end")))
            cursor.execute(query("validate_end"))
        is_swapped = _under_lock(cursor, clock, lambda: _swap(cursor))
        has_events, has_end = True, False  # it was empty, and is not any more
    return [
        "log_events is partitioned by day"
        + ("; the events that it had are in log_events_before" if _has_before(cursor) else "")
    ]


def _warn_of_older(cursor: Any) -> None:
    """Name sessions whose workers may not know a table by day. No reason to refuse: they may be idle, or end soon."""
    cursor.execute(query("sessions_of_older_versions"))
    found = cursor.fetchall()
    if not found:
        return
    named = ", ".join(f"pid {pid} of {user}{f' at {host}' if host else ''}" for pid, user, host in found[:_NAMED_MAX])
    more = f", and {len(found) - _NAMED_MAX} more" if len(found) > _NAMED_MAX else ""
    _logger.warning(
        "%s may be of an older version (%s%s). End such workers now: once log_events is by day, each stops at its "
        "first repeat, and opens the breaker for the newer ones too (docs/upgrade.md)",
        counted(len(found), "session"),
        named,
        more,
        extra={"action": "older_sessions", "sessions": len(found)},
    )


def _swap(cursor: Any) -> bool:
    """Put the partitioned table in the place of log_events. False: its end must be set first, and nothing was done."""
    # Under the lock of begin_changeover: nobody who stores waits for it, and nobody else changes the table.
    cursor.execute(query("changeover_facts"))
    _, obstacles, is_noting, has_end = cursor.fetchone()
    if obstacles or not is_noting:
        raise SchemaError(f"log_events was changed meanwhile ({', '.join(obstacles) or 'a trigger'}): run this again")
    cursor.execute(query("has_events"))
    [has_events] = cursor.fetchone()
    if has_events and not has_end:
        cursor.execute("ROLLBACK")
        return False
    try:
        # In one message: if this process is frozen, it holds no lock that others wait for.
        cursor.execute("\n".join([query("lock_for_swap"), _swap_statement(), query("end_of_swap")]))
    except psycopg2.errors.ObjectNotInPrerequisiteState:
        cursor.execute("ROLLBACK")
        return False
    return True


def _swap_statement() -> str:
    return resources.files("pipeline.sink").joinpath("swap.sql").read_text(encoding="utf-8")


def _has_before(cursor: Any) -> bool:
    cursor.execute("SELECT to_regclass('log_events_before') IS NOT NULL")
    return bool(cursor.fetchone()[0])


def _note_ids(cursor: Any, clock: Clock) -> bool:
    """Note the ids of all events that are stored, step by step; returns whether there are any."""
    cursor.execute(query("progress"))
    [after] = cursor.fetchone()
    noted, told = 0, clock.monotonic()
    while True:
        step = {"after": after, "rows_max": _ROWS_AT_ONCE}
        cursor.execute(query("fill_times"), step)
        cursor.execute(query("note_ids"), step)
        rows, reached = cursor.fetchone()
        if not rows:
            return after is not None
        noted, after = noted + rows, reached
        if clock.monotonic() - told >= _LOG_SECONDS:
            told = clock.monotonic()
            _logger.info("noted the ids of %d events so far", noted, extra={"action": "ids_noted", "events": noted})


def _mended(cursor: Any, clock: Clock) -> list[str]:
    """Make the trigger of a table by day anew if it is missing or disabled, and note ids that are missing."""
    cursor.execute(query("changeover_facts"))
    _, _, is_noting, _ = cursor.fetchone()
    if is_noting and not _lacks_ids(cursor):
        return []
    if not is_noting:
        _under_lock(cursor, clock, lambda: cursor.execute(query("mend_triggers")))
    cursor.execute(query("note_missing_ids"))
    return [f"log_events is by day: noted {cursor.rowcount} ids that were missing in event_ids"]


def _lacks_ids(cursor: Any) -> bool:
    """Whether an id of a stored event is not noted, as far as the first and the last one of each partition show."""
    cursor.execute(query("begun_days"))
    for (place,) in cursor.fetchall():
        cursor.execute(query("unnoted_id"), {"place": place})
        if cursor.fetchone()[0] is not None:
            return True
    return False


def _under_lock(cursor: Any, clock: Clock, change: Callable[[], Result]) -> Result:
    """Run a change that needs a lock on log_events, and commits; try again while another session is in its way."""
    deadline = clock.monotonic() + _LOCK_TRIES_SECONDS_MAX
    while True:
        try:
            cursor.execute(query("begin_changeover"))
            return change()
        except psycopg2.errors.LockNotAvailable as error:
            cursor.execute("ROLLBACK")
            if clock.monotonic() >= deadline:
                raise SinkUnavailableError(f"log_events is in use, and can't be changed: {in_full(error)}") from error
            _logger.warning(
                "the change of log_events waits: another session uses it (%s)",
                in_full(error),
                extra={"action": "by_day_waits"},
            )
            clock.sleep(_LOCK_POLL_SECONDS)
