"""An existing table that is partitioned by day, while events are stored: kills, locks, what is kept and refused."""

import contextlib
import threading
import uuid
from collections.abc import Iterator
from typing import Any, Final

import psycopg2
import pytest

from checks.testbed.database import ask, create_database, drop_database, stored_ids
from checks.testbed.waiting import PATIENT_CONNECT_SECONDS, PATIENT_SINK_SECONDS, WAIT_SECONDS_MAX, wait_until
from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import SchemaError, SinkUnavailableError
from pipeline.ports.event_sink import StoreResult
from pipeline.settings import Settings
from pipeline.sink import by_day
from pipeline.sink.by_day import partition_by_day
from pipeline.sink.migrate import PostgresSchema, migrate
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.queries import query
from pipeline.sink.retention import PostgresRetention
from pipeline.sink.session import connect
from stack.servers import Server
from support.records import batch, new_log_id, nothing, numbered_batch, record
from support.sinks import sink_settings

LOG: Final = new_log_id()
STORED: Final = 12
BY_DAY: Final = "log_events is partitioned by day; the events that it had are in log_events_before"


@pytest.fixture
def owner(database_url: str) -> Settings:
    settings = Settings(
        database_url=database_url,
        events_by_day=True,
        sink_call_seconds_max=PATIENT_SINK_SECONDS,
        sink_connect_seconds_max=PATIENT_CONNECT_SECONDS,
    )
    migrate(settings)
    return settings


@pytest.fixture
def sink(owner: Settings) -> Iterator[PostgresSink]:
    with contextlib.closing(PostgresSink(owner)) as made:
        made.store(LOG, 0, 0, numbered_batch(0, STORED), before_commit=nothing)
        yield made


def _is_sound(url: str, *, events: int) -> None:
    """Each event is there once, has a day, and its id is noted with its time."""
    found = ask(
        url,
        "SELECT count(*), count(DISTINCT event_id), "
        "(SELECT count(*) FROM event_ids JOIN log_events USING (event_id, stored_at)), "
        "(SELECT count(*) FROM log_events_default), to_regclass('event_ids_progress') FROM log_events",
    )
    assert found == [(events, events, events, 0, None)]


def test_sessions_of_older_workers_are_named_before_the_table_changes(
    owner: Settings, sink: PostgresSink, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a session of this version, one of an operator, and one of a version that had none in its name
    with (
        contextlib.closing(psycopg2.connect(database_url, application_name="psql")),
        contextlib.closing(psycopg2.connect(database_url, application_name="sluice")) as older,
    ):
        assert PostgresSchema(owner).partition_by_day() == [BY_DAY]
        pid = older.info.backend_pid
    # Then that one is named, with what to do
    [said] = [record.getMessage() for record in caplog.records if "older version" in record.getMessage()]
    assert said.startswith(f"1 session may be of an older version (pid {pid} of ")
    assert "End such workers now" in said
    # And nobody is when the table is by day already
    caplog.clear()
    with contextlib.closing(psycopg2.connect(database_url, application_name="sluice")):
        assert PostgresSchema(owner).partition_by_day() == []
    assert "older version" not in caplog.text


def test_a_table_with_events_becomes_the_first_partition(
    sink: PostgresSink, owner: Settings, database_url: str
) -> None:
    # Given a session that has stored, also through its stage, and an event of an older worker, without a time
    sink.store(LOG, 0, STORED, batch(STORED, [record(0)]), before_commit=nothing)
    ask(database_url, "UPDATE log_events SET stored_at = NULL WHERE event_id = 'event-000003'")
    # When the table changes over
    assert PostgresSchema(owner).partition_by_day() == [BY_DAY]
    assert PostgresSchema(owner).partition_by_day() == []
    # Then the session stores as before, on the same connection
    generation = sink.session.generation
    values = [record(0), record(1, message="another"), record(99)]
    result = sink.store(LOG, 0, STORED + 1, batch(STORED + 1, values), before_commit=nothing)
    assert result == StoreResult(stored=1, repeated=1, conflicting=1)
    assert sink.session.generation == generation
    _is_sound(database_url, events=STORED + 1)
    assert ask(database_url, "SELECT count(*) FROM log_events_before") == [(STORED + 1,)]
    # And no index was built: the old ones became parts of the new ones
    built = "SELECT count(*) FROM pg_index WHERE indrelid = 'log_events_before'::regclass"
    assert ask(database_url, built) == [(3,)]


def test_an_empty_table_leaves_no_partition(owner: Settings, database_url: str) -> None:
    assert PostgresSchema(owner).partition_by_day() == ["log_events is partitioned by day"]
    assert ask(database_url, "SELECT to_regclass('log_events_before')") == [(None,)]


# Statements that change nothing: a session that ends before one leaves the same as one that ends after it.
_READS: Final = {query(name) for name in ("try_lock", "changeover_facts", "has_events", "unnoted_event", "progress")}


class _Dying:
    """A cursor whose session ends after some statements that change something."""

    def __init__(self, cursor: Any, statements: int) -> None:
        self._cursor = cursor
        self.left = statements

    def execute(self, *statement: Any) -> None:
        if statement[0] not in _READS:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        self._cursor.execute(*statement)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class _Watched(_Dying):
    """A cursor that looks, after each statement, which locks its session holds that a drain would wait for."""

    def __init__(self, cursor: Any, url: str) -> None:
        super().__init__(cursor, -1)
        self._url = url
        self.held: list[Any] = []

    def execute(self, *statement: Any) -> None:
        super().execute(*statement)
        self.held += ask(
            self._url,
            "SELECT relation::regclass::text, mode FROM pg_locks WHERE pid = %s AND granted AND locktype = 'relation' "
            "AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')",
            [self._cursor.connection.info.backend_pid],
        )


def test_no_drain_waits_for_a_change_whose_process_is_frozen(
    owner: Settings, sink: PostgresSink, database_url: str
) -> None:
    with contextlib.closing(connect(owner)) as connection, connection.cursor() as cursor:
        watched = _Watched(cursor, database_url)
        assert by_day.partition_by_day(watched, SystemClock()) == [BY_DAY]
    assert watched.held == []
    _is_sound(database_url, events=STORED)


def test_a_change_that_is_killed_anywhere_goes_on(
    owner: Settings, sink: PostgresSink, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a change of several steps
    monkeypatch.setattr(by_day, "_ROWS_AT_ONCE", 6)
    ask(owner.database_url, "UPDATE log_events SET stored_at = NULL WHERE log_offset % 5 = 3")
    sink.close()
    template = owner.database_url.rpartition("/")[2]
    statements, is_done = 0, False
    while not is_done:
        name = f"test_{uuid.uuid4().hex}"
        settings = sink_settings(create_database(postgres.url, name, template))
        # When it is killed after each of its changes
        with contextlib.closing(connect(settings)) as connection, connection.cursor() as cursor:
            dying = _Dying(cursor, statements)
            with contextlib.suppress(KeyboardInterrupt):
                by_day.partition_by_day(dying, SystemClock())
                is_done = True
        # Then the table stores new events and refuses old ones, and the next call ends the change
        with contextlib.closing(PostgresSink(settings)) as used:
            values = batch(STORED, [record(STORED), record(1), record(STORED + 1)])
            result = used.store(LOG, 0, STORED, values, before_commit=nothing)
            assert result == StoreResult(stored=2, repeated=1), statements
            PostgresSchema(settings).partition_by_day()
            again = used.store(
                LOG, 0, STORED + 3, batch(STORED + 3, [record(7), record(STORED)]), before_commit=nothing
            )
            assert again == StoreResult(repeated=2), statements
        _is_sound(settings.database_url, events=STORED + 2)
        drop_database(postgres.url, name)
        statements += 1
    assert statements > 12


def test_a_drain_goes_on_while_the_table_changes_over(owner: Settings, sink: PostgresSink, database_url: str) -> None:
    # Given a drain that stores new events and repeats all the time
    ends, offset = threading.Event(), STORED

    def store() -> None:
        nonlocal offset
        while not ends.is_set():
            values = [*(record(number) for number in range(offset, offset + 9)), record(offset % STORED)]
            assert sink.store(LOG, 0, offset, batch(offset, values), before_commit=nothing).repeated == 1
            offset += 10

    drain = threading.Thread(target=store, daemon=True)
    drain.start()
    try:
        # When the table changes over
        said = PostgresSchema(owner).partition_by_day()
        after = offset
        wait_until(lambda: offset > after + 100, "the drain goes on")
    finally:
        ends.set()
        drain.join(WAIT_SECONDS_MAX)
    # Then it stored each event once
    assert said == [BY_DAY]
    _is_sound(database_url, events=len(stored_ids(database_url)))
    assert len(stored_ids(database_url)) >= STORED + (offset - STORED) // 10 * 9 - 9


def test_a_session_that_holds_the_table_is_waited_for_without_holding_up_others(
    owner: Settings, sink: PostgresSink, database_url: str
) -> None:
    # Given a reader in a long transaction
    with contextlib.closing(psycopg2.connect(database_url)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM log_events")
        said: list[list[str]] = []
        change = threading.Thread(target=lambda: said.append(PostgresSchema(owner).partition_by_day()), daemon=True)
        change.start()
        # When the change waits for it / Then events are stored, and it goes on when the reader ends
        wait_until(lambda: bool(ask(database_url, _WAITS_FOR_TABLE)), "the change waits")
        for offset in range(STORED, STORED + 5):
            sink.store(LOG, 0, offset, numbered_batch(offset, 1), before_commit=nothing)
        reader.rollback()
    change.join(WAIT_SECONDS_MAX)
    assert said == [[BY_DAY]]
    _is_sound(database_url, events=STORED + 5)


_WAITS_FOR_TABLE: Final = (
    "SELECT 1 FROM pg_locks WHERE relation = 'log_events'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted"
)


def test_what_the_owner_added_is_kept(owner: Settings, sink: PostgresSink, database_url: str) -> None:
    role = f"r{uuid.uuid4().hex[:12]}"
    for statement in (
        f"CREATE ROLE {role}",
        f"GRANT SELECT ON log_events TO {role} WITH GRANT OPTION",
        "GRANT INSERT ON log_events TO PUBLIC",
        "ALTER TABLE log_events ADD COLUMN number bigserial NOT NULL, ADD COLUMN tenant text NOT NULL DEFAULT 'x'",
        "ALTER TABLE log_events ADD COLUMN length integer GENERATED ALWAYS AS (length(message)) STORED",
        "ALTER TABLE log_events ADD CONSTRAINT short CHECK (length(message) < 100)",
        "CREATE INDEX log_events_tenant ON log_events (tenant) WHERE tenant <> 'x'",
        "ALTER TABLE log_events SET (fillfactor = 90)",
        "COMMENT ON TABLE log_events IS 'mine'",
    ):
        ask(database_url, statement)
    try:
        PostgresSchema(owner).partition_by_day()
        sink.store(LOG, 0, STORED, numbered_batch(STORED, 2), before_commit=nothing)
        found = ask(database_url, "SELECT number, tenant, length FROM log_events WHERE log_offset = 13")
        assert found == [(14, "x", len("message 13"))]
        # Also when the old table is gone
        PostgresSchema(owner).set_retention(event_days=1, letter_days=None)
        ask(database_url, "ALTER TABLE log_events DETACH PARTITION log_events_before")
        ask(database_url, "DROP TABLE log_events_before")
        assert PostgresRetention(sink.session).make_days() > 0
        sink.store(LOG, 0, STORED + 2, numbered_batch(STORED + 2, 1), before_commit=nothing)
        assert ask(database_url, "SELECT number, tenant FROM log_events") == [(15, "x")]
        granted = (
            "SELECT coalesce(rolname, 'PUBLIC'), privilege_type, is_grantable "
            "FROM pg_class, aclexplode(relacl) LEFT JOIN pg_roles ON pg_roles.oid = grantee "
            "WHERE pg_class.oid = 'log_events'::regclass AND grantee <> relowner ORDER BY 1"
        )
        assert ask(database_url, granted) == [("PUBLIC", "INSERT", False), (role, "SELECT", True)]
        [(today,)] = ask(database_url, "SELECT leaf::text FROM day_bounds() WHERE begins <= now() AND ends > now()")
        facts = "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", [today]
        assert ask(database_url, *facts) == [(4,)]
        assert ask(database_url, "SELECT obj_description('log_events'::regclass)") == [("mine",)]
        with pytest.raises(psycopg2.errors.CheckViolation):
            ask(database_url, "UPDATE log_events SET message = repeat('x', 200)")
    finally:
        ask(database_url, f"DROP OWNED BY {role}")
        ask(database_url, f"DROP ROLE {role}")


_NOT_KEPT: Final = (
    ("CREATE TABLE mine (id text REFERENCES log_events)", "the constraint mine_id_fkey", "DROP TABLE mine"),
    (
        "CREATE TRIGGER mine BEFORE UPDATE ON log_events FOR EACH ROW EXECUTE FUNCTION fill_stored_at()",
        "the trigger mine",
        "DROP TRIGGER mine ON log_events",
    ),
    (
        "CREATE VIEW mine AS SELECT event_id FROM log_events",
        "the view or rule rule _RETURN on view mine",
        "DROP VIEW mine",
    ),
    ("CREATE UNIQUE INDEX mine ON log_events (message)", "the unique index mine", "DROP INDEX mine"),
    ("CREATE POLICY mine ON log_events", "row security", "DROP POLICY mine ON log_events"),
    ("CREATE PUBLICATION mine FOR TABLE log_events", "the publication mine", "DROP PUBLICATION mine"),
    ("CREATE PUBLICATION mine FOR ALL TABLES", "the publication mine", "DROP PUBLICATION mine"),
    (
        "GRANT SELECT (message) ON log_events TO PUBLIC",
        "a right on its column message",
        "REVOKE SELECT (message) ON log_events FROM PUBLIC",
    ),
    (
        "ALTER TABLE log_events ADD COLUMN mine integer GENERATED ALWAYS AS IDENTITY",
        "the identity column mine",
        "ALTER TABLE log_events DROP COLUMN mine",
    ),
    (
        "ALTER TABLE log_events ADD CONSTRAINT mine CHECK (severity <> 'x') NOT VALID",
        "the constraint mine",
        "ALTER TABLE log_events DROP CONSTRAINT mine",
    ),
    (
        "CREATE FUNCTION mine() RETURNS SETOF log_events LANGUAGE sql AS 'SELECT NULL::log_events'",
        "the object function mine()",
        "DROP FUNCTION mine",
    ),
    (
        "ALTER TABLE log_events DROP COLUMN stored_at",
        "its column stored_at is missing, or is no timestamptz with the default now()",
        "ALTER TABLE log_events ADD COLUMN stored_at timestamptz DEFAULT now()",
    ),
)


def test_what_can_not_be_kept_is_named_and_nothing_is_done(owner: Settings, database_url: str) -> None:
    # Given something of the owner's that can't be kept / When the table is to change over, then that alone is named
    for change, named, back in _NOT_KEPT:
        ask(database_url, change)
        with pytest.raises(SchemaError, match="can't be partitioned by day while it has: ") as raised:
            PostgresSchema(owner).partition_by_day()
        assert f"while it has: {named}. Remove" in str(raised.value)
        ask(database_url, back)
    assert ask(database_url, "SELECT 1 FROM pg_trigger WHERE tgname = 'log_events_ids'") == []
    # And once all is removed, it changes over
    assert PostgresSchema(owner).partition_by_day() == ["log_events is partitioned by day"]


def test_a_change_that_is_not_finished_refuses_no_event_later(
    owner: Settings, sink: PostgresSink, database_url: str
) -> None:
    # Given a change that was killed before its end, days ago
    check = "ALTER TABLE log_events ADD CONSTRAINT log_events_before_end CHECK (stored_at < timestamptz {!r})"
    ask(database_url, check.format("2099-01-01"))
    retention = PostgresRetention(sink.session)
    # When a tick of retention comes in time / Then the check stays for as long as it refuses nothing
    kept = "SELECT count(*) FROM pg_constraint WHERE conname = 'log_events_before_end'"
    assert retention.make_days() == 0
    assert ask(database_url, kept) == [(1,)]
    ask(database_url, "ALTER TABLE log_events DROP CONSTRAINT log_events_before_end")
    [(soon,)] = ask(database_url, "SELECT (now() + interval '23 hours')::text")
    ask(database_url, check.format(soon))
    assert retention.make_days() == 0
    assert ask(database_url, kept) == [(0,)]
    assert PostgresSchema(owner).partition_by_day() == [BY_DAY]


def test_one_process_changes_at_a_time(owner: Settings) -> None:
    with contextlib.closing(connect(owner)) as other, contextlib.closing(connect(owner)) as mine:
        other.cursor().execute("SELECT pg_advisory_lock(%s)", [by_day._LOCK_KEY])
        clock = ManualClock()
        with pytest.raises(SinkUnavailableError, match="another process partitions log_events by day"):
            partition_by_day(mine.cursor(), clock)
        # But PostgreSQL frees the lock of a process that has just ended a moment later
        assert partition_by_day(mine.cursor(), _FreeingClock(other)) == ["log_events is partitioned by day"]


class _FreeingClock(ManualClock):
    """A clock that frees the locks of another session while somebody sleeps."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self._session.cursor().execute("SELECT pg_advisory_unlock_all()")


def test_the_old_table_expires_row_by_row_and_then_as_a_whole(
    owner: Settings, sink: PostgresSink, database_url: str
) -> None:
    PostgresSchema(owner).partition_by_day()
    said = PostgresSchema(owner).set_retention(event_days=30, letter_days=None)
    assert said[1:] == ["made the index log_events_before_stored_at"]
    ask(database_url, "UPDATE log_events SET stored_at = now() - interval '31 days' WHERE log_offset < 5")
    retention = PostgresRetention(sink.session)
    assert retention.delete_events(rows_max=3, since=None)[0] == 3
    assert retention.delete_events(rows_max=3, since=None)[0] == 2
    assert retention.drop_day() is None
    assert len(stored_ids(database_url)) == STORED - 5
    # Its repeat is not stored again
    again = batch(STORED, [record(1), record(STORED)])
    assert sink.store(LOG, 0, STORED, again, before_commit=nothing) == StoreResult(stored=1, repeated=1)
