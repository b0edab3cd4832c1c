"""Retention on a real PostgreSQL: what expires and what never does, rights, interruptions, and drains beside it."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pytest

from checks.testbed.database import ask, stored_ids
from checks.testbed.waiting import (
    PATIENT_CONNECT_SECONDS,
    PATIENT_SINK_SECONDS,
    WAIT_SECONDS_MAX,
    eventually,
    wait_until,
)
from pipeline.control_store.memory import MemoryControlStore, MemoryServer, MemoryTroubles
from pipeline.control_store.memory_counters import MemoryCounters
from pipeline.errors import SchemaError, SinkUnavailableError
from pipeline.names import AlarmCode, PauseReason
from pipeline.ports.event_sink import StoreResult
from pipeline.settings import Settings
from pipeline.sink import retention as sink_retention
from pipeline.sink.dead_letters import PostgresDeadLetters
from pipeline.sink.log_marks import PostgresLogMarks
from pipeline.sink.migrate import PostgresSchema, migrate, migrations
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.retention import PostgresRetention
from support.records import batch, new_log_id, nothing, numbered_batch, record
from support.sinks import sink_settings
from tasks import control as tasks_control
from tasks.app import make_app
from tasks.context import WorkerContext
from tasks.retention import tick

LOG = new_log_id()
DAYS = 30
CALL = "SELECT deleted FROM delete_expired_events(1000, '-infinity')"


@pytest.fixture
def owner(database_url: str) -> Settings:
    settings = Settings(
        database_url=database_url,
        retention_days=DAYS,
        dead_letter_days=7,
        sink_call_seconds_max=PATIENT_SINK_SECONDS,
        sink_connect_seconds_max=PATIENT_CONNECT_SECONDS,
    )
    migrate(settings)
    return settings


@pytest.fixture
def schema(owner: Settings) -> PostgresSchema:
    made = PostgresSchema(owner)
    assert made.set_retention(event_days=DAYS, letter_days=7) == [
        "events are kept for 30 days, dead letters for 7 days",
        "made the index log_events_stored_at",
    ]
    return made


@pytest.fixture
def sink(owner: Settings) -> Iterator[PostgresSink]:
    with contextlib.closing(PostgresSink(owner)) as made:
        yield made


@pytest.fixture
def retention(schema: PostgresSchema, sink: PostgresSink) -> PostgresRetention:
    return PostgresRetention(sink.session)


@pytest.fixture
def user_url(owner: Settings, schema: PostgresSchema) -> Iterator[str]:
    """The URL of a user with the rights that `migrate` grants."""
    role = f"r{os.urandom(6).hex()}"
    url = owner.database_url.replace("//sluice@", f"//{role}:x@")
    schema.give_rights(url)
    yield url
    ask(owner.database_url, f"DROP OWNED BY {role}")
    ask(owner.database_url, f"DROP ROLE {role}")


def _store(sink: PostgresSink, first: int, count: int) -> None:
    sink.store(LOG, 0, first, numbered_batch(first, count), before_commit=nothing)


def _age(database_url: str, days: float, where: str = "true") -> None:
    ask(database_url, f"UPDATE log_events SET stored_at = now() - interval '{days} days' WHERE {where}")


def _ids(*numbers: int) -> list[str]:
    return [f"event-{number:06d}" for number in numbers]


# --- What expires ---------------------------------------------------------------------------------------------------


def test_an_event_expires_by_the_time_at_which_postgresql_stored_it(
    retention: PostgresRetention, sink: PostgresSink, database_url: str
) -> None:
    # Given events of ingest processes whose clocks are decades off, and one that was stored 31 days ago
    far = [datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000 for year in (1990, 2090)]
    values = [record(number, received_at_ms=int(at)) for number, at in enumerate([*far, far[1], far[0]])]
    sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    _age(database_url, DAYS + 0.01, "event_id IN ('event-000002', 'event-000003')")
    _age(database_url, DAYS - 0.01, "event_id = 'event-000001'")
    # Then only their time of storing counts
    assert retention.delete_events(rows_max=100, since=None)[0] == 2
    assert stored_ids(database_url) == _ids(0, 1)
    assert retention.delete_events(rows_max=100, since=None)[0] == 0


def test_steps_delete_the_oldest_first_and_go_on_where_the_last_one_ended(
    retention: PostgresRetention, sink: PostgresSink, database_url: str
) -> None:
    _store(sink, 0, 5)
    for number in (3, 0, 4, 2, 1):  # not in the order in which the table keeps them
        _age(database_url, 50 - number, f"log_offset = {number}")
    deleted, reached = retention.delete_events(rows_max=2, since=None)
    assert (deleted, stored_ids(database_url)) == (2, _ids(2, 3, 4))
    deleted, reached = retention.delete_events(rows_max=2, since=reached)
    assert (deleted, stored_ids(database_url)) == (2, _ids(4))
    # An older one would be passed by, as a deleted one is, until the next tick
    _store(sink, 5, 1)
    _age(database_url, 60, "log_offset = 5")
    assert retention.delete_events(rows_max=2, since=reached)[0] == 1
    assert stored_ids(database_url) == _ids(5)
    assert retention.delete_events(rows_max=2, since=None)[0] == 1


def test_nothing_expires_where_nothing_is_set(owner: Settings, sink: PostgresSink, database_url: str) -> None:
    _store(sink, 0, 3)
    sink.store(LOG, 0, 3, batch(3, [b"broken"]), before_commit=nothing)
    _age(database_url, 9999)
    ask(database_url, "UPDATE dead_letters SET created_at = '1990-01-01'")
    retention = PostgresRetention(sink.session)
    assert retention.delete_events(rows_max=100, since=None) == (0, None)
    assert retention.delete_letters(rows_max=100) == (0, 0)
    assert len(stored_ids(database_url)) == 3


def test_dead_letters_expire_too_also_those_that_were_never_stored(
    retention: PostgresRetention, sink: PostgresSink, database_url: str
) -> None:
    sink.store(LOG, 0, 0, batch(0, [b"broken", b"broken too", b"young"]), before_commit=nothing)
    ask(database_url, "UPDATE dead_letters SET created_at = now() - interval '8 days' WHERE log_offset < 2")
    ask(database_url, "UPDATE dead_letters SET replayed_at = now() WHERE log_offset = 0")
    # A letter that a replay holds is left for later, and nobody waits for it
    with contextlib.closing(psycopg2.connect(database_url)) as replay, replay.cursor() as cursor:
        cursor.execute("SELECT FROM dead_letters WHERE log_offset = 1 FOR UPDATE")
        assert retention.delete_letters(rows_max=100) == (1, 0)
        replay.rollback()
    assert retention.delete_letters(rows_max=100) == (1, 1)
    assert [letter.raw for letter in PostgresDeadLetters(sink.session).listed(limit=9)] == [b"young"]


def test_facts(retention: PostgresRetention, sink: PostgresSink, database_url: str) -> None:
    assert retention.facts().oldest_seconds is None
    _store(sink, 0, 2)
    _age(database_url, 3, "log_offset = 1")
    facts = retention.facts()
    assert (facts.event_days, facts.letter_days) == (DAYS, 7)
    assert (facts.may_delete, facts.has_stored_at, facts.has_index, facts.is_prepared_at_once) == (True,) * 4
    assert facts.oldest_seconds == pytest.approx(3 * 86_400, abs=600)
    ask(database_url, "ALTER TABLE log_events ALTER COLUMN stored_at DROP DEFAULT")
    ask(database_url, "DROP INDEX log_events_stored_at")
    facts = retention.facts()
    assert (facts.has_stored_at, facts.has_index, facts.oldest_seconds) == (False, False, None)


# --- Storing beside it ----------------------------------------------------------------------------------------------


@pytest.fixture
def deletion(owner: Settings, schema: PostgresSchema) -> Iterator[Callable[[], Any]]:
    """Begins a transaction that deletes what expired, and leaves it open; calling the result commits it."""
    with contextlib.closing(psycopg2.connect(owner.database_url)) as connection, connection.cursor() as cursor:

        def begin() -> Any:
            cursor.execute(CALL)
            return connection

        yield begin


def test_a_drain_does_not_wait_for_a_deletion(
    deletion: Callable[[], Any], sink: PostgresSink, database_url: str
) -> None:
    # Given a deletion that is not committed
    _store(sink, 0, 3)
    _age(database_url, DAYS + 1)
    connection = deletion()
    # When new events are stored, straight and through the stage / Then they are stored at once
    _store(sink, 3, 2)
    repeated = batch(5, [record(3), record(5)])
    assert sink.store(LOG, 0, 5, repeated, before_commit=nothing) == StoreResult(stored=1, repeated=1)
    connection.commit()
    assert stored_ids(database_url) == _ids(3, 4, 5)


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_repeat_of_an_event_that_is_being_deleted_is_there_once(
    deletion: Callable[[], Any], sink: PostgresSink, database_url: str, ends: str
) -> None:
    # Given an expired event whose deletion is not committed
    _store(sink, 0, 1)
    _age(database_url, DAYS + 1)
    connection = deletion()
    # When its repeat is stored, the drain waits for the end of that transaction
    results: list[StoreResult] = []
    values = batch(1, [record(0), record(1)])
    drain = threading.Thread(
        target=lambda: results.append(sink.store(LOG, 0, 1, values, before_commit=nothing)), daemon=True
    )
    drain.start()
    waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name ^@ 'sluice' AND wait_event_type = 'Lock'"
    wait_until(lambda: bool(ask(database_url, waiting)), "the drain waits")
    getattr(connection, ends)()
    drain.join(WAIT_SECONDS_MAX)
    # Then the event is there once, whether it was deleted or not
    assert stored_ids(database_url) == _ids(0, 1)
    [result] = results
    assert (result.stored, result.repeated) == ((2, 0) if ends == "commit" else (1, 1))
    [(age,)] = ask(database_url, "SELECT now() - stored_at > '1 day' FROM log_events WHERE log_offset < 2 LIMIT 1")
    assert age is (ends == "rollback")


def _end_session(url: str, pid: int) -> None:
    ask(url, f"SELECT pg_terminate_backend({pid})")
    ended = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"
    wait_until(lambda: ask(url, ended) == [], "the session has ended")


def test_a_deletion_that_is_killed_deletes_nothing_and_the_next_one_all(
    deletion: Callable[[], Any],
    retention: PostgresRetention,
    sink: PostgresSink,
    database_url: str,
) -> None:
    _store(sink, 0, 4)
    _age(database_url, DAYS + 1)
    connection = deletion()
    _end_session(database_url, connection.info.backend_pid)
    assert stored_ids(database_url) == _ids(0, 1, 2, 3)
    assert retention.delete_events(rows_max=10, since=None)[0] == 4


def _probes(sink: PostgresSink) -> bool:
    sink.probe()
    return True


def test_a_lock_on_the_table_ends_a_step_soon(
    owner: Settings, retention: PostgresRetention, sink: PostgresSink, database_url: str
) -> None:
    _store(sink, 0, 1)
    _age(database_url, DAYS + 1)
    with contextlib.closing(psycopg2.connect(database_url)) as locker, locker.cursor() as cursor:
        with contextlib.closing(PostgresSink(dataclasses.replace(owner, sink_call_seconds_max=2.0))) as hasty:
            eventually(lambda: _probes(hasty), "it has connected", passing=(SinkUnavailableError,))
            cursor.execute("LOCK TABLE log_events IN SHARE MODE")
            with pytest.raises(SinkUnavailableError, match="lock"):
                PostgresRetention(hasty.session).delete_events(rows_max=10, since=None)
        locker.rollback()
    assert retention.delete_events(rows_max=10, since=None)[0] == 1


# --- Rights ---------------------------------------------------------------------------------------------------------


def test_sluices_user_deletes_what_expired_and_nothing_else(
    user_url: str, sink: PostgresSink, database_url: str
) -> None:
    # Given an expired event and a young one
    _store(sink, 0, 2)
    _age(database_url, DAYS + 1, "log_offset = 0")
    with contextlib.closing(PostgresSink(sink_settings(user_url))) as used:
        retention = PostgresRetention(used.session)
        assert retention.facts().may_delete
        assert not retention.facts().is_prepared_at_once
        # When the user hides the tables behind temporary ones / Then the functions use the real ones
        used.session.count("CREATE TEMPORARY TABLE retention AS SELECT 1 AS id, 1 AS event_days, 1 AS letter_days")
        used.session.count("CREATE TEMPORARY TABLE log_events AS SELECT 'x' AS event_id, now() AS stored_at")
        assert retention.delete_events(rows_max=10, since=None)[0] == 1
        assert retention.delete_letters(rows_max=10) == (0, 0)
    assert stored_ids(database_url) == _ids(1)
    for statement in ("UPDATE retention SET event_days = 1", "DELETE FROM log_events", "DELETE FROM dead_letters"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            ask(user_url, statement)


def test_the_functions_run_nothing_that_another_user_made(
    user_url: str, sink: PostgresSink, retention: PostgresRetention, database_url: str
) -> None:
    # Given a schema in which each user may create objects (`public` before PostgreSQL 15)
    ask(database_url, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    # When Sluice's user makes a function and an operator that fit better than PostgreSQL's own
    ask(
        user_url,
        """
        CREATE FUNCTION days(integer, interval) RETURNS interval LANGUAGE sql
            AS $$ DELETE FROM public.log_events; DELETE FROM public.dead_letters; SELECT interval '0' $$;
        CREATE OPERATOR * (LEFTARG = integer, RIGHTARG = interval, FUNCTION = days);
        CREATE FUNCTION public.format(text, regclass) RETURNS text LANGUAGE sql
            AS $$ DELETE FROM public.log_events; SELECT 'SELECT 0, now()' $$;
        """,
    )
    # Then they do not run: what is young stays, and what expired is deleted
    _store(sink, 0, 2)
    sink.store(LOG, 0, 2, batch(2, [b"broken"]), before_commit=nothing)
    _age(database_url, DAYS + 1, "log_offset = 0")
    assert retention.delete_events(rows_max=10, since=None)[0] == 1
    assert retention.delete_letters(rows_max=10) == (0, 0)
    assert stored_ids(database_url) == _ids(1)
    assert len(PostgresDeadLetters(sink.session).listed(limit=9)) == 1


@pytest.mark.parametrize("schema_name", ["own", "o\"d 'd"])
def test_the_functions_use_the_schema_of_the_tables(database_url: str, schema_name: str) -> None:
    # Given tables in a schema of another role's search_path
    quoted = '"' + schema_name.replace('"', '""') + '"'
    role = f"r{os.urandom(6).hex()}"
    ask(database_url, f"CREATE SCHEMA {quoted}; CREATE ROLE {role} LOGIN SUPERUSER")
    ask(database_url, f"ALTER ROLE {role} SET search_path = {quoted}")
    try:
        settings = Settings(database_url=database_url.replace("//sluice@", f"//{role}:x@"))
        migrate(settings)
        PostgresSchema(settings).set_retention(event_days=DAYS, letter_days=7)
        with contextlib.closing(PostgresSink(settings)) as sink:
            _store(sink, 0, 2)
            _age(settings.database_url, DAYS + 1, "log_offset = 0")
        # When somebody else calls the functions, with another search_path / Then they find the tables
        assert ask(database_url, f"SELECT deleted FROM {quoted}.delete_expired_events(9, '-infinity')") == [(1,)]
        assert ask(database_url, f"SELECT deleted FROM {quoted}.delete_expired_dead_letters(9)") == [(0,)]
    finally:
        ask(database_url, f"DROP OWNED BY {role} CASCADE")
        ask(database_url, f"DROP ROLE {role}")


def test_nobody_else_may_call_the_functions(user_url: str, owner: Settings) -> None:
    role = user_url.partition("//")[2].partition(":")[0]
    ask(owner.database_url, f"REVOKE EXECUTE ON FUNCTION delete_expired_events(integer, timestamptz) FROM {role}")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        ask(user_url, CALL)
    with contextlib.closing(PostgresSink(sink_settings(user_url))) as used:
        assert not PostgresRetention(used.session).facts().may_delete


def test_only_the_owner_sets_retention(user_url: str) -> None:
    with pytest.raises(SchemaError, match="MIGRATE_DATABASE_URL of the role that owns the tables"):
        PostgresSchema(sink_settings(user_url)).set_retention(event_days=1, letter_days=None)
    # But anybody may find that nothing is left to do
    assert PostgresSchema(sink_settings(user_url)).set_retention(event_days=DAYS, letter_days=7) == []


# --- The migration, and the index -----------------------------------------------------------------------------------


def test_an_existing_table_is_not_rewritten_and_its_events_count_as_stored_now(database_url: str) -> None:
    # Given a table of an older version, with an event of last year
    settings = sink_settings(database_url)
    migrate(settings, [migration for migration in migrations() if migration.version < 12])
    ask(
        database_url,
        "INSERT INTO log_events (event_id, correlation_id, severity, message, source, event_time, received_at, log_id,"
        " log_partition, log_offset) VALUES ('old', 'c', 'INFO', 'm', 's', '2025-01-01', '2025-01-01', 'l', 0, 0)",
    )
    files = "SELECT pg_relation_filenode('log_events'), pg_relation_size('log_events')"
    before = ask(database_url, files)
    # When it is migrated / Then no page was written anew, and the event is young
    migrate(settings)
    assert ask(database_url, files) == before
    assert ask(database_url, "SELECT now() - stored_at < '1 minute' FROM log_events") == [(True,)]
    PostgresSchema(settings).set_retention(event_days=1, letter_days=None)
    assert ask(database_url, CALL) == [(0,)]


def test_a_users_own_column_of_that_name_is_kept(database_url: str) -> None:
    settings = sink_settings(database_url)
    migrate(settings, [migration for migration in migrations() if migration.version < 12])
    ask(database_url, "ALTER TABLE log_events ADD COLUMN stored_at timestamptz DEFAULT clock_timestamp()")
    migrate(settings)
    with contextlib.closing(PostgresSink(settings)) as sink:
        _store(sink, 0, 1)
        assert PostgresRetention(sink.session).facts().has_stored_at


def test_setting_it_again_does_nothing_and_for_ever_ends_it(schema: PostgresSchema, database_url: str) -> None:
    assert schema.set_retention(event_days=DAYS, letter_days=7) == []
    assert schema.set_retention(event_days=None, letter_days=None) == [
        "events are kept for ever, dead letters for ever"
    ]
    assert ask(database_url, CALL) == [(0,)]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table counts as a large one."""
    monkeypatch.setattr(sink_retention, "_SMALL_BYTES", 0)


def _wait_for_index(database_url: str) -> int:
    """The backend that makes the index, once it waits for open transactions."""
    found = "SELECT pid FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for%'"
    wait_until(lambda: bool(ask(database_url, found)), "the index is being made")
    return int(ask(database_url, found)[0][0])


@pytest.mark.usefixtures("large")
def test_a_killed_index_is_made_again_and_events_are_stored_meanwhile(
    owner: Settings, sink: PostgresSink, database_url: str
) -> None:
    schema, errors = PostgresSchema(owner), list[Exception]()

    def make() -> None:
        try:
            schema.set_retention(event_days=DAYS, letter_days=None)
        except SinkUnavailableError as error:
            errors.append(error)

    # Given an index that waits for a long transaction
    _store(sink, 0, 3)
    with contextlib.closing(psycopg2.connect(database_url)) as long, long.cursor() as cursor:
        cursor.execute("LOCK TABLE log_events IN ROW EXCLUSIVE MODE")
        maker = threading.Thread(target=make, daemon=True)
        maker.start()
        pid = _wait_for_index(database_url)
        # Then events are stored, a second call is refused, and nothing counts as prepared
        _store(sink, 3, 2)
        with pytest.raises(SinkUnavailableError, match="another process makes the index"):
            schema.set_retention(event_days=DAYS, letter_days=None)
        assert not PostgresRetention(sink.session).facts().has_index
        # When the process is killed
        _end_session(database_url, pid)
        maker.join(WAIT_SECONDS_MAX)
        assert len(errors) == 1
    # Then an invalid index is left, which does not count, and the next call makes a complete one
    assert ask(database_url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'log_events_stored_at'::regclass") == [
        (False,)
    ]
    assert not PostgresRetention(sink.session).facts().has_index
    assert schema.set_retention(event_days=DAYS, letter_days=None) == ["made the index log_events_stored_at"]
    assert PostgresRetention(sink.session).facts().has_index
    _age(database_url, DAYS + 1, "log_offset < 4")
    assert ask(database_url, CALL) == [(4,)]


def test_a_table_that_its_user_partitioned(owner: Settings, sink: PostgresSink, database_url: str) -> None:
    # Given partitions by the hash of the id, without the index
    ask(
        database_url,
        """
        ALTER TABLE log_events RENAME TO former;
        CREATE TABLE log_events (LIKE former INCLUDING DEFAULTS, PRIMARY KEY (event_id)) PARTITION BY HASH (event_id);
        CREATE TABLE log_events_0 PARTITION OF log_events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE log_events_1 PARTITION OF log_events FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        """,
    )
    with pytest.raises(SchemaError, match="is partitioned, and lacks the index"):
        PostgresSchema(owner).set_retention(event_days=DAYS, letter_days=None)
    retention = PostgresRetention(sink.session)
    assert not retention.facts().has_index
    # When its user makes it / Then expired events of all partitions are deleted
    ask(database_url, "CREATE INDEX log_events_stored_at ON log_events (stored_at)")
    PostgresSchema(owner).set_retention(event_days=DAYS, letter_days=None)
    assert retention.facts().has_index
    _store(sink, 0, 40)
    _age(database_url, DAYS + 1, "log_offset < 30")
    deleted, since = 0, None
    for _ in range(5):
        some, since = retention.delete_events(rows_max=8, since=since)
        assert some <= 8
        deleted += some
    assert deleted == 30
    assert stored_ids(database_url) == _ids(*range(30, 40))


def test_functions_for_days_do_nothing_with_a_table_that_its_user_partitioned_otherwise(
    owner: Settings, sink: PostgresSink, database_url: str
) -> None:
    # Given partitions by ranges of the id
    ask(
        database_url,
        """
        ALTER TABLE log_events RENAME TO former;
        CREATE TABLE log_events (LIKE former INCLUDING DEFAULTS, PRIMARY KEY (event_id)) PARTITION BY RANGE (event_id);
        CREATE TABLE log_events_low PARTITION OF log_events FOR VALUES FROM (MINVALUE) TO ('m');
        CREATE TABLE log_events_high PARTITION OF log_events FOR VALUES FROM ('m') TO (MAXVALUE);
        CREATE INDEX log_events_stored_at ON log_events (stored_at);
        INSERT INTO event_ids VALUES ('old', '2000-01-01');
        """,
    )
    PostgresSchema(owner).set_retention(event_days=DAYS, letter_days=None)
    _store(sink, 0, 3)
    # When a person calls them / Then they do nothing, and the one for ids says why and what to do
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT deleted FROM delete_expired_ids(10, '-infinity')")
        assert cursor.fetchall() == [(0,)]
        [notice] = connection.notices
    assert "log_events is not partitioned by day" in notice
    assert "EVENTS_BY_DAY=yes python -m pipeline migrate" in notice
    assert ask(database_url, "SELECT count(*) FROM event_ids") == [(1,)]
    assert ask(database_url, "SELECT * FROM day_bounds()") == []
    assert ask(database_url, "SELECT made, dropped, by_day FROM make_days(), drop_expired_day(), day_facts()") == [
        (0, None, False)
    ]
    assert ask(database_url, "SELECT oldest_stored(true), deleted FROM delete_expired_events(10, '-infinity')") == [
        (None, 0)
    ]
    assert stored_ids(database_url) == _ids(0, 1, 2)


# --- The task -------------------------------------------------------------------------------------------------------


def _context(settings: Settings, server: MemoryServer) -> WorkerContext:
    """The parts of a control worker; the control store is in memory."""
    context = WorkerContext(settings)
    vars(context)["control_store"] = MemoryControlStore(settings, server)
    vars(context)["troubles"] = MemoryTroubles(settings, server)
    vars(context)["counters"] = MemoryCounters(server)
    return context


@pytest.fixture
def context(owner: Settings) -> Iterator[WorkerContext]:
    with contextlib.closing(_context(owner, MemoryServer())) as made:
        made.control_store.restore([], actor="tests")
        yield made


def test_a_tick_prepares_a_small_table_and_deletes(
    context: WorkerContext, sink: PostgresSink, database_url: str
) -> None:
    # Given a system of one role, and a database that keeps all
    _store(sink, 0, 3)
    _age(database_url, DAYS + 1, "log_offset < 2")
    # When a tick runs / Then it sets retention, and what expired is gone, counted, and no problem
    tick(context)
    assert stored_ids(database_url) == _ids(2)
    assert context.counters.read().totals["expired:log_events"] == 2
    assert context.troubles.reported() == {}


def test_a_tick_says_why_it_deletes_nothing(
    context: WorkerContext, sink: PostgresSink, user_url: str, database_url: str
) -> None:
    # Given a user who is not the owner, and another number of days than the owner set
    _store(sink, 0, 1)
    _age(database_url, 9999)
    server = MemoryServer()
    wrong = dataclasses.replace(context.settings, database_url=user_url, retention_days=5)
    with contextlib.closing(_context(wrong, server)) as other:
        other.control_store.restore([], actor="tests")
        tick(other)
        [[trouble]] = other.troubles.reported().values()
    assert trouble.code == AlarmCode.RETENTION
    assert "RETENTION_DAYS is 5, and the database keeps 30 days" in trouble.what
    assert stored_ids(database_url) == _ids(0)


def test_a_tick_deletes_nothing_while_consumption_is_paused(
    context: WorkerContext, sink: PostgresSink, database_url: str
) -> None:
    _store(sink, 0, 1)
    _age(database_url, DAYS + 1)
    context.control_store.pause(PauseReason.OPERATOR, actor="ada", why="maintenance")
    tick(context)
    assert stored_ids(database_url) == _ids(0)
    context.control_store.resume(PauseReason.OPERATOR, generation=None, actor="ada", why="done")
    tick(context)
    assert stored_ids(database_url) == []


def test_an_age_that_can_not_be_read_hides_no_other_fact(
    context: WorkerContext, sink: PostgresSink, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a retention that can't be read, as before the migration, or with an index full of deleted rows
    sink.store(LOG, 0, 0, batch(0, [b"broken"]), before_commit=nothing)
    ask(database_url, "ALTER TABLE retention RENAME TO hidden")
    monkeypatch.setattr(tasks_control, "context_of", lambda _settings: context)
    # When the periodic facts are read / Then the dead letter is counted all the same
    make_app(context.settings).tasks["sluice.measure"].run()
    facts = context.counters.read().facts
    assert (facts["dead_letters"], facts.get("retention_overdue")) == (1, None)


# --- Marks of the event log -----------------------------------------------------------------------------------------

_HOUR = 3600.0


def _below(sink: PostgresSink) -> dict[int, int]:
    """What the log may delete of each partition, with LOG_KEEP_HOURS=72; a mark is made as by a tick."""
    marks = PostgresLogMarks(sink.session)
    marks.mark(LOG, spacing_seconds=3 * _HOUR, keep_seconds=72 * _HOUR)
    expired, _ = marks.expired(LOG, keep_seconds=72 * _HOUR)
    return {one.partition: one.below for one in expired}


def _hours_pass(settings: Settings, hours: int) -> None:
    ask(settings.database_url, f"UPDATE log_marks SET marked_at = marked_at - interval '{hours} hours'")


def test_what_is_stored_after_a_set_back_stays_in_the_log(owner: Settings, user_url: str, sink: PostgresSink) -> None:
    # Given old marks of two partitions, one of which lost its tail
    sink.store(LOG, 0, 0, numbered_batch(0, 12), before_commit=nothing)
    sink.store(LOG, 1, 0, batch(0, [record(100 + number) for number in range(5)]), before_commit=nothing)
    assert _below(sink) == {}
    _hours_pass(owner, 40)
    sink.store(LOG, 0, 12, numbered_batch(12, 8), before_commit=nothing)
    assert _below(sink) == {}
    _hours_pass(owner, 40)
    assert _below(sink) == {0: 12, 1: 4}
    # When it is set back, and new events are stored there
    with contextlib.closing(PostgresSink(sink_settings(user_url))) as operators:
        operators.store(LOG, 0, 20, batch(8, []), before_commit=nothing)
    assert _below(sink) == {1: 4}
    sink.store(LOG, 0, 8, batch(8, [record(200 + number) for number in range(20)]), before_commit=nothing)
    # Then they stay for as long as any; what was stored before them, and of the other partition, goes in its time
    assert _below(sink) == {0: 8, 1: 4}
    _hours_pass(owner, 4)
    assert _below(sink) == {0: 8, 1: 4}
    _hours_pass(owner, 73)
    assert _below(sink) == {0: 27, 1: 4}


def test_a_mark_that_is_lower_than_an_expired_one_counts(owner: Settings, sink: PostgresSink) -> None:
    # Given a partition that was set back where marks were not lowered, and one that is newer than the expired mark
    sink.store(LOG, 0, 0, numbered_batch(0, 20), before_commit=nothing)
    for hours, offsets in ((200, '{"0": 11}'), (100, '{"0": 12}'), (50, '{"0": 19}'), (10, '{"0": 8, "1": 3}')):
        made = f"now() - interval '{hours} hours'"
        ask(owner.database_url, f"INSERT INTO log_marks VALUES ('{LOG}', {made}, '{offsets}')")
    # And a mark that a wrong clock has dated into the future
    ask(owner.database_url, f"INSERT INTO log_marks VALUES ('{LOG}', now() + interval '1 year', '{{\"0\": 2}}')")
    # Then the lower one counts; without it, the expired one
    assert _below(sink) == {0: 8}
    ask(owner.database_url, "DELETE FROM log_marks WHERE offsets ->> '0' = '8'")
    assert _below(sink) == {0: 12}
