"""Updates the database's schema: numbered SQL files, each in its own transaction, each once."""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import psycopg2

from pipeline.clock import SystemClock
from pipeline.errors import SchemaError, SchemaNewerError, SinkUnavailableError, in_full
from pipeline.settings import Settings
from pipeline.sink.by_day import partition_by_day
from pipeline.sink.queries import query
from pipeline.sink.retention import set_retention
from pipeline.sink.rights import give_rights
from pipeline.sink.server_check import FSYNC_OFF
from pipeline.sink.session import Session, connect
from pipeline.sink.watchdog import Watchdog

_logger = logging.getLogger(__name__)

_FILE_NAME: Final = re.compile(r"(\d{4})_\w+\.sql")
# Key of the advisory lock for migrations, so that one process at a time migrates: any number, but the same in all
# versions.
_LOCK_KEY: Final = 0x5105CE_0001
# How long to wait for another process' migrations: an index on a large table takes time.
_LOCK_SECONDS_MAX: Final = 300.0
_LOCK_POLL_SECONDS: Final = 0.1
# Between two tries to change a table that another session uses: storing continues in between.
_TABLE_POLL_SECONDS: Final = 1.0
# SQLSTATE classes of a server that is unavailable or busy; any other error is the migration's own fault.
_UNAVAILABLE_CLASSES: Final = frozenset({"08", "40", "53", "55", "57", "58"})
_NO_RIGHT: Final = "42501"
_LOCK_KEY_BITS: Final = 62  # of a lock that one call takes and no other does


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Digest of the text; it detects a file that was changed after it was applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All files in the order of their numbers. Raises SchemaError if two have the same number."""
    found = []
    for file in resources.files("pipeline.sink").joinpath("migrations").iterdir():
        matched = _FILE_NAME.fullmatch(file.name)
        if matched:
            found.append(Migration(int(matched[1]), file.name, file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    if len({migration.version for migration in found}) < len(found):
        raise SchemaError(f"two migrations have one number: {[migration.name for migration in found]}")
    return found


def migrate(
    settings: Settings, known: list[Migration] | None = None, *, wait_seconds: float = _LOCK_SECONDS_MAX
) -> list[str]:
    """Apply the missing ones of `known` (default: the files) and return the names of the applied ones.

    Any number of processes may call this at once: each migration is applied by one of them, while the others wait for
    up to `wait_seconds`. Raises SchemaError if the database has a migration that is unknown here or was changed, or if
    it refuses one. Raises SinkMisconfiguredError if PostgreSQL can't keep Sluice's guarantees. Raises
    SinkUnavailableError if it is unavailable, or if another process migrates for too long.
    """
    wanted = migrations() if known is None else known
    with contextlib.closing(Session(settings)) as session:
        if not session.check().has_fsync:
            _logger.warning(FSYNC_OFF, extra={"action": "fsync_off"})
        applied = _apply_all(settings, wanted, wait_seconds)
        if applied:
            session.check()  # the user must have the rights on the new tables
        return applied


def missing_migrations(settings: Settings) -> list[str]:
    """Names of the files that an older version's schema lacks; empty if there is no schema yet.

    Only reads. Raises SinkUnavailableError, also if PostgreSQL is silent for `sink_call_seconds_max`.
    """
    try:
        with contextlib.closing(connect(settings)) as connection, _watched(connection, settings) as cursor:
            cursor.execute(query("has_schema_migrations"))
            if not cursor.fetchone()[0]:
                return []
            cursor.execute(query("applied_migrations"))
            return [migration.name for migration in migrations()[cursor.rowcount :]]
    except psycopg2.Error as error:
        raise SinkUnavailableError(in_full(error)) from error


class PostgresSchema:
    """The schema of `DATABASE_URL`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def migrate(self, *, wait_seconds: float) -> list[str]:
        return migrate(self._settings, wait_seconds=wait_seconds)

    def missing(self) -> list[str]:
        return missing_migrations(self._settings)

    def partition_by_day(self) -> list[str]:
        with self._changing("log_events can't be partitioned by day") as cursor:
            return partition_by_day(cursor, SystemClock())

    def set_retention(
        self, *, event_days: int | None, letter_days: int | None, id_days: int | None = None
    ) -> list[str]:
        with self._changing("retention can't be set") as cursor:
            clock = SystemClock()
            return set_retention(cursor, clock, event_days=event_days, letter_days=letter_days, id_days=id_days)

    @contextlib.contextmanager
    def _changing(self, failure: str) -> Iterator[Any]:
        """A cursor for the body; psycopg2's errors become Sluice's."""
        with contextlib.closing(connect(self._settings)) as connection, connection.cursor() as cursor:
            try:
                yield cursor
            except psycopg2.Error as error:
                message = f"{failure}: {in_full(error)}"
                if error.pgcode == _NO_RIGHT:
                    message += (
                        "; run `python -m pipeline migrate` with MIGRATE_DATABASE_URL of the role that owns the tables"
                    )
                    raise SchemaError(message) from error
                raise SinkUnavailableError(message) from error

    def check_same_database(self, user_url: str) -> None:
        # Names say little: a server has several, and a pooler has names of its own for databases. But two sessions of
        # one database can't both have a lock.
        key = {"key": secrets.randbits(_LOCK_KEY_BITS)}
        with contextlib.closing(connect(self._settings)) as connection, connection.cursor() as cursor:
            user_settings = dataclasses.replace(self._settings, database_url=user_url)
            with contextlib.closing(connect(user_settings)) as other, other.cursor() as other_cursor:
                try:
                    cursor.execute("BEGIN")
                    cursor.execute(query("try_transaction_lock"), key)
                    other_cursor.execute(query("try_transaction_lock"), key)
                except psycopg2.Error as error:
                    raise SinkUnavailableError(in_full(error)) from error
                [is_other] = other_cursor.fetchone()
        if is_other:
            raise SchemaError(
                "DATABASE_URL and MIGRATE_DATABASE_URL name different databases: Sluice would not use what is migrated"
            )

    def give_rights(self, user_url: str) -> str | None:
        with contextlib.closing(connect(self._settings)) as connection, connection.cursor() as cursor:
            try:
                _begin(cursor, _LOCK_SECONDS_MAX)  # of two that grant at once, one would fail
                done = give_rights(cursor, user_url)
                cursor.execute("COMMIT")
            except psycopg2.Error as error:
                raise SinkUnavailableError(in_full(error)) from error
            return done


@contextlib.contextmanager
def _watched(connection: Any, settings: Settings) -> Iterator[Any]:
    """A cursor; its connection is shut down if the body takes too long."""
    watchdog = Watchdog(settings.sink_call_seconds_max)
    try:
        with (
            socket.socket(fileno=os.dup(connection.fileno())) as watched,
            watchdog.guard(watched),
            connection.cursor() as cursor,
        ):
            yield cursor
    finally:
        watchdog.close()


def _apply_all(settings: Settings, wanted: list[Migration], wait_seconds: float) -> list[str]:
    """Apply the missing migrations, one transaction after the other, each under the lock."""
    names: list[str] = []
    clock = SystemClock()
    deadline = clock.monotonic() + wait_seconds
    with contextlib.closing(connect(settings)) as connection, connection.cursor() as cursor:
        try:
            while True:
                _begin(cursor, wait_seconds)
                cursor.execute(query("has_schema_migrations"))
                if not cursor.fetchone()[0]:
                    cursor.execute(query("make_schema_migrations"))
                cursor.execute(query("applied_migrations"))
                _check(cursor.fetchall(), wanted)
                missing = wanted[cursor.rowcount :]
                if missing and not _is_applied(cursor, missing[0], gives_up=clock.monotonic() >= deadline):
                    clock.sleep(_TABLE_POLL_SECONDS)
                    continue
                cursor.execute("COMMIT")
                if not missing:
                    return names
                names.append(missing[0].name)
                _logger.info("applied %s", missing[0].name, extra={"action": "migrated", "migration": missing[0].name})
        except psycopg2.Error as error:
            message = f"migrating the database failed: {in_full(error)}"
            if connection.closed or error.pgcode is None or error.pgcode[:2] in _UNAVAILABLE_CLASSES:
                raise SinkUnavailableError(message) from error
            if error.pgcode == _NO_RIGHT:
                message += (
                    "; run `python -m pipeline migrate` with MIGRATE_DATABASE_URL of the role that owns the tables"
                )
            raise SchemaError(message) from error


def _begin(cursor: Any, wait_seconds: float) -> None:
    """Begin a transaction that holds the lock.

    It polls for the lock instead of waiting inside PostgreSQL, so that this process can handle a signal in between.
    """
    clock = SystemClock()
    deadline = clock.monotonic() + wait_seconds
    while True:
        cursor.execute(query("begin_migration"), {"key": _LOCK_KEY})
        if cursor.fetchone()[0]:
            return
        cursor.execute(query("migration_lock_holder"), {"key": _LOCK_KEY})
        holders = [f"process {pid} ({name}, {state} since {since})" for pid, name, state, since in cursor.fetchall()]
        cursor.execute("ROLLBACK")
        if clock.monotonic() >= deadline:
            raise SinkUnavailableError(
                f"another process migrates this database: PostgreSQL's {' and '.join(holders) or 'lock was just freed'}"
            )
        clock.sleep(_LOCK_POLL_SECONDS)


def _check(applied: list[tuple[Any, ...]], wanted: list[Migration]) -> None:
    """Raise SchemaError unless the applied migrations are the beginning of the wanted ones."""
    for (version, name, sha256), migration in zip(applied, wanted, strict=False):
        if version != migration.version or sha256 != migration.sha256:
            raise SchemaError(
                f"migration {version} was applied to the database as {name}, and {migration.name} is not the same: "
                "an applied migration is never changed, a new one follows it"
            )
    if len(applied) > len(wanted):
        names = ", ".join(name for _, name, _ in applied[len(wanted) :])
        raise SchemaNewerError(f"the database is newer than this version of Sluice, which does not know: {names}")


def _is_applied(cursor: Any, migration: Migration, *, gives_up: bool) -> bool:
    """Run one migration and record it; False if another session has locked one of its tables, and nothing was done.

    Any other failure ends the connection, which rolls the migration back. With `gives_up`, a locked table is such a
    failure.
    """
    try:
        _apply(cursor, migration)
    except psycopg2.errors.LockNotAvailable as error:
        if gives_up:
            raise
        cursor.execute("ROLLBACK")
        _logger.warning(
            "migration %s waits: another session uses a table that it changes (%s)",
            migration.name,
            in_full(error),
            extra={"action": "migration_waits", "migration": migration.name},
        )
        return False
    return True


def _apply(cursor: Any, migration: Migration) -> None:
    """Run one migration and record it."""
    cursor.execute(migration.sql)
    cursor.execute(
        query("record_migration"),
        {"version": migration.version, "name": migration.name, "sha256": migration.sha256},
    )
