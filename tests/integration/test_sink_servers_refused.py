"""A PostgreSQL that can't keep what Sluice promises is refused by name before anything is stored in it."""

import contextlib
import logging
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest

from checks.testbed.database import ask, drop_database
from checks.testbed.processes import control_worker
from checks.testbed.waiting import eventually
from pipeline import wiring
from pipeline.errors import SinkMisconfiguredError, SinkUnavailableError, StoreUnavailableError
from pipeline.names import AlarmCode, Severity
from pipeline.ports.control import Alarm
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from stack.servers import Server, free_port
from support.records import batch, new_log_id, nothing, record
from support.sinks import sink_settings

LOG = new_log_id()


@contextlib.contextmanager
def _database(server: Server, how: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    ask(server.url, f"CREATE DATABASE {name} {how}")
    try:
        yield server.url.rpartition("/")[0] + f"/{name}"
    finally:
        drop_database(server.url, name)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_an_encoding_that_cannot_hold_every_text(postgres: Server, encoding: str) -> None:
    with _database(postgres, f"ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0") as url:
        settings = sink_settings(url)
        # Given such a database, it is refused at the start, before a table is made in it
        with pytest.raises(SinkMisconfiguredError, match=f"encoding {encoding}.*ENCODING 'UTF8'"):
            migrate(settings)
        assert ask(url, "SELECT to_regclass('schema_migrations') IS NULL") == [(True,)]
        # And each call of a sink is a failure of the server's: nothing becomes a dead letter, the breaker opens
        with contextlib.closing(PostgresSink(settings)) as sink:
            for call in (sink.probe, lambda: sink.stored_offsets(LOG), lambda: sink.acquire(LOG, 0)):
                with pytest.raises(SinkUnavailableError, match=encoding):
                    call()
            with pytest.raises(SinkUnavailableError, match=encoding):
                sink.store(LOG, 0, 0, batch(0, [record(1)]), before_commit=nothing)


def test_a_control_worker_names_such_a_database_from_its_first_tick(
    settings: Settings, postgres: Server, tmp_path: Path
) -> None:
    # Given a system whose DATABASE_URL names such a database, without any event
    with _database(postgres, "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0") as url:
        store = wiring.make_control_store(settings)

        found: list[Alarm] = []

        def is_named() -> bool:
            rate = store.state().rate
            found[:] = [] if rate is None else [one for one in rate.alarms if one.code == AlarmCode.DATABASE_REFUSED]
            return bool(found)

        # When its control worker starts, then health is critical, with the name of the database
        worker = control_worker(replace(settings, database_url=url), tmp_path).start()
        try:
            eventually(is_named, "it is named", passing=(StoreUnavailableError,))
        finally:
            worker.stop()
    [alarm] = found
    assert alarm.severity is Severity.CRITICAL
    assert f"the database {url.rpartition('/')[2]} has the encoding LATIN1" in alarm.what


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DROP CONSTRAINT log_events_pkey", "no unique index on event_id"),
        ("DROP CONSTRAINT log_events_pkey, ADD UNIQUE (event_id) DEFERRABLE", "no unique index on event_id"),
        ("RENAME COLUMN source TO origin", r"source text \(it is missing\)"),
        ("ALTER COLUMN attributes TYPE json", r"attributes jsonb \(it is json\)"),
        ("ADD COLUMN tenant text NOT NULL", "NOT NULL: tenant"),
    ],
    ids=lambda text: text[:30],
)
def test_a_table_that_was_changed_too_far(database_url: str, change: str, words: str) -> None:
    # Given a table that somebody has changed
    settings = sink_settings(database_url)
    migrate(settings)
    ask(database_url, f"ALTER TABLE log_events {change}")
    # Then a sink refuses it before it stores anything, and so does a start
    with contextlib.closing(PostgresSink(settings)) as sink, pytest.raises(SinkMisconfiguredError, match=words):
        sink.store(LOG, 0, 0, batch(0, [record(1)]), before_commit=nothing)
    with pytest.raises(SinkMisconfiguredError, match=words):
        migrate(settings)


@contextlib.contextmanager
def _role(database_url: str, role: str, rights: str = "ALL") -> Iterator[str]:
    """A user that is no superuser, with rights on the tables."""
    ask(database_url, f"CREATE ROLE {role} LOGIN")
    ask(database_url, f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        yield database_url.replace("//sluice@", f"//{role}@")
    finally:
        ask(database_url, f"DROP OWNED BY {role}")
        ask(database_url, f"DROP ROLE {role}")


def _name_of(url: str) -> str:
    return url.partition("//")[2].partition("@")[0]


def test_a_user_with_rights_on_the_tables_alone_is_enough(database_url: str) -> None:
    # Given a schema that somebody else has made, and a user who may write its tables
    migrate(sink_settings(database_url))
    with _role(database_url, f"r{uuid.uuid4().hex}") as url:
        settings = sink_settings(url)
        # Then a start finds nothing to do, and both ways of storing work
        assert migrate(settings) == []
        with contextlib.closing(PostgresSink(settings)) as sink:
            sink.store(LOG, 0, 0, batch(0, [record(1)]), before_commit=nothing)
            assert sink.store(LOG, 0, 1, batch(1, [record(1), record(2)]), before_commit=nothing).repeated == 1


def test_a_user_who_lacks_rights_is_named(database_url: str) -> None:
    migrate(sink_settings(database_url))
    with (
        _role(database_url, f"r{uuid.uuid4().hex}", "SELECT, INSERT") as url,
        pytest.raises(SinkMisconfiguredError, match="lacks rights: UPDATE on stored_offsets"),
    ):
        migrate(sink_settings(url))


def test_a_server_that_refuses_the_session_is_one_that_an_operator_must_change(database_url: str) -> None:
    migrate(sink_settings(database_url))
    missing = database_url.rpartition("/")[0] + f"/no_{uuid.uuid4().hex}"
    with _role(database_url, f"r{uuid.uuid4().hex}") as url:
        ask(database_url, f"ALTER ROLE {_name_of(url)} NOLOGIN")
        # Given a server that answers, and refuses the user or knows no such database
        for refused, words in ((url, "not permitted to log in"), (missing, "does not exist")):
            with contextlib.closing(PostgresSink(sink_settings(refused))) as sink:
                # Then that is no server that is away, and no row is at fault
                with pytest.raises(SinkMisconfiguredError, match=words) as caught:
                    sink.probe()
                assert not caught.value.is_a_row_possible
        # And one that is away is none that refuses
        away = sink_settings(f"postgresql://sluice@127.0.0.1:{free_port()}/sluice")
        with contextlib.closing(PostgresSink(away)) as sink, pytest.raises(SinkUnavailableError) as silent:
            sink.probe()
        assert not isinstance(silent.value, SinkMisconfiguredError)


def test_what_is_changed_while_a_session_is_open_is_found_by_the_probe(database_url: str) -> None:
    # Given a prober with a session, whose user may write
    migrate(sink_settings(database_url))
    with (
        _role(database_url, f"r{uuid.uuid4().hex}") as url,
        contextlib.closing(PostgresSink(sink_settings(url))) as sink,
    ):
        sink.probe()
        for change, back in (
            (f"REVOKE INSERT ON log_events FROM {_name_of(url)}", f"GRANT INSERT ON log_events TO {_name_of(url)}"),
            ("ALTER TABLE log_events RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO log_events"),
        ):
            ask(database_url, change)
            # When it tries its write, then the first answer already says that the database refuses
            with pytest.raises(SinkMisconfiguredError):
                sink.probe()
            ask(database_url, back)
            sink.probe()


def test_a_rule_on_insert_is_refused(database_url: str) -> None:
    migrate(sink_settings(database_url))
    ask(database_url, "CREATE RULE nothing AS ON INSERT TO log_events WHERE NEW.severity = 'X' DO INSTEAD NOTHING")
    with pytest.raises(SinkMisconfiguredError, match="rule ON INSERT"):
        migrate(sink_settings(database_url))


def test_missing_fsync_is_named_in_one_line(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    # The tests' server has none
    with caplog.at_level(logging.WARNING):
        migrate(sink_settings(database_url))
    assert [line.message for line in caplog.records if "fsync=off" in line.message] == [
        "PostgreSQL has fsync=off: a power loss can take stored events (docs/guarantees.md)"
    ]


def test_a_lock_of_another_migration_is_named_and_not_waited_for(database_url: str) -> None:
    # Given a backend that keeps the lock, as one of a pooler does where an older version was
    from pipeline.sink.migrate import _LOCK_KEY

    with contextlib.closing(psycopg2.connect(database_url, application_name="left behind")) as connection:
        connection.cursor().execute("SELECT pg_advisory_lock(%s)", (_LOCK_KEY,))
        with pytest.raises(SinkUnavailableError, match=r"process \d+ \(left behind, idle in transaction since"):
            migrate(sink_settings(database_url), wait_seconds=0)
