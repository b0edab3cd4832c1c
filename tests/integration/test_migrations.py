"""Migrations: once each, in order, from any number of processes, and never over a schema that is not known."""

import contextlib
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from checks.testbed.database import ask
from checks.testbed.waiting import WAIT_SECONDS_MAX, wait_until
from pipeline.errors import SchemaError, SinkUnavailableError
from pipeline.sink.migrate import Migration, migrate, migrations, missing_migrations
from stack.servers import free_port, postgres_server
from support.sinks import sink_settings
from tasks.context import WorkerContext
from tasks.control import _migrate_once

NAMES = [migration.name for migration in migrations()]
SLOW = Migration(1, "0001_slow.sql", "CREATE TABLE slow (id int); SELECT pg_sleep(0.3);")
GOOD = Migration(2, "0002_good.sql", "CREATE TABLE good (id int);")


def test_all_are_applied_once(database_url: str) -> None:
    settings = sink_settings(database_url)
    assert NAMES[0] == "0001_events.sql"
    assert migrate(settings) == NAMES
    assert migrate(settings) == []
    assert ask(database_url, "SELECT name FROM schema_migrations ORDER BY version") == [(name,) for name in NAMES]


def test_the_table_is_the_promised_one(database_url: str) -> None:
    migrate(sink_settings(database_url))
    columns = ask(
        database_url,
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_name = 'log_events' ORDER BY ordinal_position",
    )
    assert columns == [
        ("event_id", "text"),
        ("correlation_id", "text"),
        ("severity", "text"),
        ("message", "text"),
        ("source", "text"),
        ("event_time", "timestamp with time zone"),
        ("received_at", "timestamp with time zone"),
        ("attributes", "jsonb"),
        ("log_id", "text"),
        ("log_partition", "integer"),
        ("log_offset", "bigint"),
        ("request_id", "text"),
        ("stored_at", "timestamp with time zone"),
    ]


def test_a_worker_of_an_older_version_goes_on_beside_each_new_column(database_url: str) -> None:
    # Given a worker of the first version, which makes its staging table LIKE log_events: constraints, and no defaults
    migrate(sink_settings(database_url))
    columns = (
        "event_id, correlation_id, severity, message, source, event_time, received_at, attributes, log_id, "
        "log_partition, log_offset"
    )
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE event_stage (LIKE log_events) ON COMMIT DELETE ROWS")
        # When it stages an event and stores it
        cursor.execute(
            f"INSERT INTO event_stage ({columns}) VALUES ('a', 'c', 'INFO', 'm', 's', now(), now(), NULL, 'l', 0, 0)"
        )
        cursor.execute(f"INSERT INTO log_events ({columns}) SELECT {columns} FROM event_stage")
    # Then it is stored, and its age is known
    assert ask(database_url, "SELECT event_id, stored_at IS NOT NULL FROM log_events") == [("a", True)]


def test_a_column_of_a_user_stays_as_it_is(database_url: str) -> None:
    migrate(sink_settings(database_url), [one for one in migrations() if one.version < 12])
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("ALTER TABLE log_events ADD COLUMN stored_at text NOT NULL DEFAULT 'mine'")
    migrate(sink_settings(database_url))
    assert ask(
        database_url,
        "SELECT data_type, is_nullable FROM information_schema.columns"
        " WHERE table_name = 'log_events' AND column_name = 'stored_at'",
    ) == [("text", "NO")]


def _migrate_at_once(database_url: str, start: Any, answers: Any) -> None:
    start.wait(WAIT_SECONDS_MAX)
    answers.put(migrate(sink_settings(database_url), [SLOW, GOOD]))


def test_four_processes_at_once(database_url: str) -> None:
    # Given four processes that begin together, and a migration that takes its time
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_migrate_at_once, args=(database_url, start, answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    # Then each was applied by one of them, in order, while the others waited
    applied = [answers.get(timeout=WAIT_SECONDS_MAX) for _ in workers]
    for worker in workers:
        worker.join(WAIT_SECONDS_MAX)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert sorted(name for names in applied for name in names) == [SLOW.name, GOOD.name]
    assert ask(database_url, "SELECT name FROM schema_migrations ORDER BY applied_at") == [(SLOW.name,), (GOOD.name,)]


def test_a_new_one_follows_those_applied(database_url: str) -> None:
    settings = sink_settings(database_url)
    assert migrate(settings, [SLOW]) == [SLOW.name]
    assert migrate(settings, [SLOW, GOOD]) == [GOOD.name]


def test_a_changed_one_is_refused(database_url: str) -> None:
    settings = sink_settings(database_url)
    migrate(settings, [SLOW, GOOD])
    changed = Migration(1, SLOW.name, SLOW.sql + " ")
    with pytest.raises(SchemaError, match=r"0001_slow\.sql"):
        migrate(settings, [changed, GOOD])


def test_a_newer_database_is_refused(database_url: str) -> None:
    settings = sink_settings(database_url)
    migrate(settings, [SLOW, GOOD])
    with pytest.raises(SchemaError, match=r"newer.*0002_good\.sql"):
        migrate(settings, [SLOW])


def test_a_failing_one_leaves_nothing_of_itself(database_url: str) -> None:
    # Given a migration whose second statement fails
    settings = sink_settings(database_url)
    bad = Migration(2, "0002_bad.sql", "CREATE TABLE half (id int); CREATE TABLE half (id int);")
    with pytest.raises(SchemaError, match="half"):
        migrate(settings, [SLOW, bad])
    # Then the first one stands, and the next try goes on from there
    assert ask(database_url, "SELECT to_regclass('slow') IS NOT NULL, to_regclass('half') IS NULL") == [(True, True)]
    assert migrate(settings, [SLOW, GOOD]) == [GOOD.name]


def test_a_migration_and_its_record_are_one(database_url: str) -> None:
    # Given a migration that can't be recorded
    settings = sink_settings(database_url)
    bad = Migration(2, "0002_bad.sql", "CREATE TABLE half (id int); DROP TABLE schema_migrations;")
    with pytest.raises(SchemaError, match="schema_migrations"):
        migrate(settings, [SLOW, bad])
    # Then nothing of it is left
    assert ask(database_url, "SELECT to_regclass('half') IS NULL") == [(True,)]
    assert ask(database_url, "SELECT name FROM schema_migrations") == [(SLOW.name,)]


def test_no_server_is_unavailable() -> None:
    with pytest.raises(SinkUnavailableError):
        migrate(sink_settings("postgresql://127.0.0.1:1/none"))


def test_a_migration_that_waits_for_a_table_keeps_nobody_from_it(database_url: str) -> None:
    # Given a table that somebody reads for long, as a dump does, and a migration that changes it
    settings = sink_settings(database_url)
    migrate(settings, [GOOD])
    change = Migration(3, "0003_change.sql", "ALTER TABLE good ADD COLUMN more int;")
    with contextlib.closing(psycopg2.connect(database_url)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM good")
        with ThreadPoolExecutor(max_workers=1) as pool:
            migrating = pool.submit(migrate, settings, [GOOD, change], wait_seconds=60)
            # Then others go on: each of them waits for half a second at most
            for number in range(3):
                ask(database_url, f"SET statement_timeout = '30s'; INSERT INTO good VALUES ({number}) RETURNING id")
            assert not migrating.done()
            # And it is applied once the table is free
            reader.rollback()
            assert migrating.result(WAIT_SECONDS_MAX) == ["0003_change.sql"]
    # Where it is not free in time, that is said
    with contextlib.closing(psycopg2.connect(database_url)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM good")
        again = Migration(4, "0004_again.sql", "ALTER TABLE good ADD COLUMN once_more int;")
        with pytest.raises(SinkUnavailableError, match="lock timeout"):
            migrate(settings, [GOOD, change, again], wait_seconds=0)


def test_the_lock_is_given_up(database_url: str) -> None:
    migrate(sink_settings(database_url))
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM"
            " pg_database WHERE datname = current_database())"
        )
        assert cursor.fetchone() == (0,)


def test_the_control_loop_of_an_older_version_goes_on_beside_a_newer_schema(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a database that a newer version has brought up to date
    parts = WorkerContext(sink_settings(database_url))
    migrate(parts.settings)
    newer = "INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, '9999_newer.sql', 'x')"
    ask(database_url, newer)
    # Then this version says so once, and ticks
    _migrate_once(parts)
    _migrate_once(parts)
    assert [line.message for line in caplog.records].count(
        "the database is newer than this version of Sluice, which does not know: 9999_newer.sql"
    ) == 1


def test_a_look_at_the_schema_ends_where_postgresql_is_silent(database_url: str) -> None:
    # Given a schema that lacks the last migrations, and a PostgreSQL that does not say so
    settings = sink_settings(database_url)
    migrate(settings, migrations()[:-2])
    with contextlib.closing(psycopg2.connect(database_url)) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE schema_migrations")
        with ThreadPoolExecutor(max_workers=1) as pool:
            looking = pool.submit(missing_migrations, replace(settings, sink_call_seconds_max=1))
            try:
                # Then whoever looks is no more silent than a drain would be
                with pytest.raises(SinkUnavailableError):
                    looking.result(WAIT_SECONDS_MAX)
            finally:
                holder.rollback()
    # And learns it once PostgreSQL answers
    assert missing_migrations(settings) == NAMES[-2:]


def test_a_migration_ends_an_autovacuum_in_its_way(tmp_path: Path) -> None:
    # Given an autovacuum that takes minutes
    server = postgres_server(tmp_path, free_port(), durable=False)
    server.start()
    try:
        settings = sink_settings(server.url)
        migrate(settings, [GOOD])
        ask(server.url, "ALTER SYSTEM SET autovacuum_naptime = '1s'")
        ask(
            server.url,
            """
            INSERT INTO good SELECT generate_series(1, 100000);
            UPDATE good SET id = id + 200000;
            ALTER TABLE good SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,
                                  autovacuum_analyze_threshold = 1000000, autovacuum_vacuum_cost_limit = 1,
                                  autovacuum_vacuum_cost_delay = 100);
            SELECT pg_reload_conf();
            """,
        )
        vacuum = "SELECT pid FROM pg_stat_progress_vacuum WHERE relid = 'good'::regclass"
        wait_until(lambda: bool(ask(server.url, vacuum)), "an autovacuum runs")
        ask(server.url, "ALTER SYSTEM RESET autovacuum_naptime")  # a second autovacuum would end the first one too
        ask(server.url, "SELECT pg_reload_conf()")
        # When a migration changes the table / Then PostgreSQL cancels the autovacuum, long before its end
        change = Migration(3, "0003_change.sql", "ALTER TABLE good ADD COLUMN more int;")
        assert migrate(settings, [GOOD, change], wait_seconds=WAIT_SECONDS_MAX) == ["0003_change.sql"]
    finally:
        server.stop()
