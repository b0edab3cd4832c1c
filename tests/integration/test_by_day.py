"""Events that are partitioned by day, on a real PostgreSQL: each id is stored once, by whomever; days come and go."""

import contextlib
import dataclasses
import os
import re
import threading
from collections.abc import Iterator
from typing import Final

import psycopg2
import pytest

from checks.testbed.database import ask, fail_on_insert, stored_ids
from checks.testbed.processes import ROOT
from checks.testbed.waiting import PATIENT_CONNECT_SECONDS, PATIENT_SINK_SECONDS, WAIT_SECONDS_MAX, wait_until
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlStore, MemoryServer, MemoryTroubles
from pipeline.control_store.memory_counters import MemoryCounters
from pipeline.errors import FencedError, SinkContentionError, SinkMisconfiguredError
from pipeline.names import AlarmCode
from pipeline.ports.event_sink import StoreResult
from pipeline.settings import Settings
from pipeline.sink.dead_letters import PostgresDeadLetters
from pipeline.sink.migrate import PostgresSchema
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.retention import PostgresRetention
from support.records import batch, new_log_id, nothing, numbered_batch, record
from tasks import control as tasks_control
from tasks.app import make_app
from tasks.context import WorkerContext
from tasks.retention import tick

LOG: Final = new_log_id()
DAYS: Final = 30
_COLUMNS: Final = (
    "event_id, correlation_id, severity, message, source, event_time, received_at, log_id, log_partition, log_offset"
)
_EVENT: Final = "'{}', 'c', 'INFO', 'm', 's', now(), now(), 'other', 0, 0"


@pytest.fixture
def owner(day_database_url: str) -> Settings:
    return Settings(
        database_url=day_database_url,
        events_by_day=True,
        retention_days=DAYS,
        sink_call_seconds_max=PATIENT_SINK_SECONDS,
        sink_connect_seconds_max=PATIENT_CONNECT_SECONDS,
    )


@pytest.fixture
def url(owner: Settings) -> str:
    return owner.database_url


@pytest.fixture
def sink(owner: Settings) -> Iterator[PostgresSink]:
    with contextlib.closing(PostgresSink(owner)) as made:
        yield made


@pytest.fixture
def retention(owner: Settings, sink: PostgresSink) -> PostgresRetention:
    PostgresSchema(owner).set_retention(event_days=DAYS, letter_days=None)
    return PostgresRetention(sink.session)


def _store(sink: PostgresSink, first: int, count: int) -> None:
    sink.store(LOG, 0, first, numbered_batch(first, count), before_commit=nothing)


def _insert(event_id: str) -> str:
    return f"INSERT INTO log_events ({_COLUMNS}) VALUES ({_EVENT.format(event_id)})"


def _leaves(url: str) -> list[str]:
    found = ask(url, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'log_events'::regclass")
    return sorted(name for (name,) in found)


def _make_day(url: str, days_ago: int) -> str:
    """Make the partition of an earlier day, as it was made in its time; returns its name."""
    [(name, begins, ends)] = ask(
        url,
        "SELECT 'log_events_' || to_char(day, 'YYYYMMDD'), day::text, (day + interval '24 hours')::text "
        f"FROM (SELECT date_trunc('day', now(), 'UTC') - interval '{24 * days_ago} hours' AS day) AS days",
    )
    ask(url, f"CREATE TABLE {name} (LIKE log_events INCLUDING ALL)")
    ask(url, f"CREATE UNIQUE INDEX ON {name} (event_id)")
    ask(url, f"ALTER TABLE log_events ATTACH PARTITION {name} FOR VALUES FROM ('{begins}') TO ('{ends}')")
    return str(name)


def _age(url: str, days: float, where: str) -> None:
    ask(url, f"UPDATE log_events SET stored_at = stored_at - interval '{days} days' WHERE {where}")


_WAITS: Final = "SELECT 1 FROM pg_stat_activity WHERE application_name ^@ 'sluice' AND wait_event_type = 'Lock'"


# --- Each id once ---------------------------------------------------------------------------------------------------


def test_every_writer_is_refused_an_id_that_is_stored(sink: PostgresSink, url: str) -> None:
    # Given an event, and the same one again by COPY, by INSERT, and in a session that plays a replica
    _store(sink, 0, 1)
    again = _insert("event-000000")
    for statement in (again, f"SET session_replication_role = replica; {again}"):
        with pytest.raises(psycopg2.errors.UniqueViolation, match="event_id"):
            ask(url, statement)
    # Then it is there once, also if its day is another one by now
    _make_day(url, 3)
    _age(url, 3, "true")
    with pytest.raises(psycopg2.errors.UniqueViolation, match="event_ids_pkey"):
        ask(url, again)
    assert stored_ids(url) == ["event-000000"]
    assert ask(url, "SELECT count(*) FROM event_ids JOIN log_events USING (event_id, stored_at)") == [(1,)]


def test_only_a_batch_with_a_repeat_goes_through_the_staging_table(
    sink: PostgresSink, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="pipeline.sink.postgres"):
        _store(sink, 0, 5)
        _store(sink, 5, 5)
        assert "staging table" not in caplog.text
        values = [record(9), record(10)]
        assert sink.store(LOG, 0, 10, batch(10, values), before_commit=nothing) == StoreResult(stored=1, repeated=1)
        assert caplog.text.count("goes through the staging table") == 1
        _store(sink, 12, 5)
        assert caplog.text.count("goes through the staging table") == 1


def test_an_older_version_stores_nothing_twice(sink: PostgresSink, url: str) -> None:
    # Given the statements with which a worker that does not know days stores a batch, on a connection from before
    _store(sink, 0, 1)
    with contextlib.closing(psycopg2.connect(url)) as old, old.cursor() as cursor:
        # When it stores a new event / Then the id is noted
        cursor.execute(_insert("by-an-older-one"))
        old.commit()
        assert ask(url, "SELECT 1 FROM event_ids WHERE event_id = 'by-an-older-one'") == [(1,)]
        # When it stores a repeat, by COPY and then through its stage / Then it is refused as a server that fails
        with pytest.raises(psycopg2.errors.UniqueViolation):
            cursor.execute(_insert("event-000000"))
        old.rollback()
        cursor.execute("CREATE TEMPORARY TABLE event_stage AS SELECT * FROM log_events WITH NO DATA")
        cursor.execute(f"INSERT INTO event_stage ({_COLUMNS}) VALUES ({_EVENT.format('event-000000')})")
        with pytest.raises(psycopg2.errors.InvalidColumnReference, match="ON CONFLICT"):
            cursor.execute(
                f"INSERT INTO log_events ({_COLUMNS}) SELECT {_COLUMNS} FROM event_stage "
                "ON CONFLICT (event_id) DO NOTHING"
            )
    assert stored_ids(url) == ["by-an-older-one", "event-000000"]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("event-000002", StoreResult(stored=1)),  # COPY waits
        ("event-000007", StoreResult(repeated=1)),  # COPY is refused at once, and the insert from the stage waits
        ("event-!", StoreResult(dead_lettered=1)),  # both are refused at once, and a row that is tried alone waits
    ],
)
def test_two_sessions_that_store_one_id_at_once(
    owner: Settings, sink: PostgresSink, url: str, *, ends: str, first: str, expected: StoreResult
) -> None:
    # Given a session that has stored two events and has not committed
    sink.store(LOG, 1, 0, batch(0, [record(7)]), before_commit=nothing)
    fail_on_insert(url, "22023", when="NEW.event_id = 'event-!'")
    results: list[StoreResult] = []
    values = [record(int(first[6:]) if first[6:].isdigit() else 8, event_id=first), record(0), record(1)]
    with contextlib.closing(PostgresSink(owner)) as other:
        begun = threading.Event()

        def before_commit() -> None:
            begun.set()
            wait_until(lambda: bool(ask(url, _WAITS)), "the drain waits")
            if ends == "rollback":
                raise FencedError

        def store_first() -> None:
            with contextlib.suppress(FencedError):
                other.store(LOG, 2, 0, numbered_batch(0, 2), before_commit=before_commit)

        earlier = threading.Thread(target=store_first, daemon=True)
        earlier.start()
        begun.wait(WAIT_SECONDS_MAX)
        # When a drain stores the same ids, it waits for that session
        results.append(sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing))
        earlier.join(WAIT_SECONDS_MAX)
    # Then it counts them as repeats if they were stored: none is a dead letter, and each is there once
    repeated, stored = (2, 0) if ends == "commit" else (0, 2)
    result = dataclasses.replace(expected, stored=expected.stored + stored, repeated=expected.repeated + repeated)
    assert results == [result]
    assert len(stored_ids(url)) == 3 + expected.stored


def test_an_id_with_other_content_is_found_in_an_earlier_day(sink: PostgresSink, url: str) -> None:
    _store(sink, 0, 2)
    _make_day(url, 2)
    _age(url, 2, "event_id = 'event-000001'")
    other = batch(2, [record(0, message="another"), record(1, message="another"), record(1)])
    assert sink.store(LOG, 0, 2, other, before_commit=nothing) == StoreResult(repeated=1, conflicting=2)
    assert PostgresDeadLetters(sink.session).count().conflicts == 2


def test_a_repeat_locks_its_own_day_only(sink: PostgresSink, url: str) -> None:
    # Given an event of an earlier day, and another day / When it comes again, with other content
    _store(sink, 0, 2)
    own, other = _make_day(url, 2), _make_day(url, 3)
    _age(url, 2, "event_id = 'event-000001'")
    held: set[str] = set()

    def look() -> None:
        locked = "SELECT DISTINCT relation::regclass::text FROM pg_locks WHERE locktype = 'relation' AND pid <> %s"
        with contextlib.closing(psycopg2.connect(url)) as looking, looking.cursor() as cursor:
            cursor.execute(locked, [looking.info.backend_pid])
            held.update(name for (name,) in cursor.fetchall())

    result = sink.store(LOG, 0, 2, batch(2, [record(1, message="another"), record(2)]), before_commit=look)
    # Then the drain has no lock on the other one: with hundreds of days, PostgreSQL runs out of locks
    assert result == StoreResult(stored=1, conflicting=1)
    assert own in held
    assert not any(name.startswith((other, "log_events_default")) for name in held)
    assert sink.session.rows("SHOW jit") == [("off",)]  # it would compile the plan of many partitions for seconds


def test_an_id_outlives_its_event(retention: PostgresRetention, sink: PostgresSink, url: str) -> None:
    # Given an event whose day was dropped
    _store(sink, 0, 1)
    gone = _make_day(url, DAYS + 1)
    _age(url, DAYS + 1, "true")
    assert retention.drop_day() == (gone, 1)
    # When it comes again, also with other content / Then it is a repeat: there is nothing to compare it with
    again = batch(1, [record(0), record(0, message="another"), record(1)])
    assert sink.store(LOG, 0, 1, again, before_commit=nothing) == StoreResult(stored=1, repeated=2)
    assert stored_ids(url) == ["event-000001"]


# --- What must be there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE log_events DISABLE TRIGGER log_events_ids",
        "ALTER TABLE log_events ENABLE TRIGGER log_events_ids",  # not in a session that plays a replica
        "DROP TRIGGER log_events_ids ON log_events",
        "ALTER TABLE event_ids DROP CONSTRAINT event_ids_pkey",
    ],
)
def test_a_table_that_does_not_note_ids_is_refused(owner: Settings, url: str, change: str) -> None:
    ask(url, change)
    with contextlib.closing(PostgresSink(owner)) as sink:
        with pytest.raises(
            SinkMisconfiguredError, match="log_events_ids is missing or not ENABLE ALWAYS, or event_ids"
        ):
            sink.probe()
        if "event_ids_pkey" in change:
            ask(url, "ALTER TABLE event_ids ADD PRIMARY KEY (event_id)")
        else:  # what was stored meanwhile is noted too
            ask(url, _insert("unnoted"))
            said = PostgresSchema(owner).partition_by_day()
            noted = 1 if "ENABLE TRIGGER" not in change else 0
            assert said == [f"log_events is by day: noted {noted} ids that were missing in event_ids"]
        sink.probe()
    assert PostgresSchema(owner).partition_by_day() == []


def test_ids_that_a_crash_would_empty_are_refused(owner: Settings, url: str) -> None:
    ask(url, "ALTER TABLE event_ids SET UNLOGGED")
    with contextlib.closing(PostgresSink(owner)) as sink:
        with pytest.raises(SinkMisconfiguredError, match="or event_ids is UNLOGGED"):
            sink.probe()
        ask(url, "ALTER TABLE event_ids SET LOGGED")
        sink.probe()


def test_ids_that_are_lost_are_reported_and_noted_again(owner: Settings, sink: PostgresSink, url: str) -> None:
    # Given a table of ids that somebody has emptied
    clock = ManualClock()
    retention = PostgresRetention(sink.session, clock)
    _store(sink, 0, 3)
    days = retention.facts().days
    assert days is not None
    assert days.unnoted_id is None
    ask(url, "TRUNCATE event_ids")
    # Then an event of this day is still stored once: its partition has an index of its own
    assert sink.store(LOG, 0, 3, batch(3, [record(1)]), before_commit=nothing) == StoreResult(repeated=1)
    # And it is reported, within minutes, and made good
    clock.advance(601)
    days = retention.facts().days
    assert days is not None
    assert days.unnoted_id == "event-000002"
    assert PostgresSchema(owner).partition_by_day() == [
        "log_events is by day: noted 3 ids that were missing in event_ids"
    ]
    assert ask(url, "SELECT count(*) FROM event_ids") == [(3,)]
    # And then it is not reported any more, at once
    days = retention.facts().days
    assert days is not None
    assert days.unnoted_id is None


# --- Days -----------------------------------------------------------------------------------------------------------


def test_days_are_made_ahead_as_the_table_is(owner: Settings, retention: PostgresRetention, url: str) -> None:
    # Given a table whose owner has added a column and an index, and whose days ahead are gone
    ask(url, "ALTER TABLE log_events ADD COLUMN tenant text NOT NULL DEFAULT 'x'")
    ask(url, "CREATE INDEX log_events_tenant ON log_events (tenant)")
    ask(url, "ALTER TABLE log_events_default SET (fillfactor = 90)")
    days = [name for name in _leaves(url) if name != "log_events_default"]
    assert len(days) == 8
    for name in days[1:]:
        ask(url, f"DROP TABLE {name}")
    facts = retention.facts().days
    assert facts is not None
    assert (facts.has_today, facts.days_ahead) == (True, 0)
    # When they are made again / Then they have all of it
    assert retention.make_days() == 7
    assert retention.make_days() == 0
    assert [name for name in _leaves(url) if name != "log_events_default"] == days
    indexed = "SELECT count(*) FROM pg_index WHERE indrelid = '{}'::regclass AND indisvalid"
    assert ask(url, indexed.format(days[-1])) == ask(url, indexed.format(days[0])) == [(4,)]
    assert ask(url, f"SELECT 1 FROM pg_class WHERE relname = '{days[-1]}' AND 'fillfactor=90' = ANY (reloptions)")


def test_a_clock_that_jumps_to_a_day_without_a_partition_loses_nothing(
    owner: Settings, retention: PostgresRetention, sink: PostgresSink, url: str
) -> None:
    # Given events at times of no day, as if nobody had made partitions for long
    ask(url, "ALTER TABLE log_events ALTER stored_at SET DEFAULT now() + interval '40 days'")
    _store(sink, 0, 3)
    assert sink.store(LOG, 0, 3, batch(3, [record(1), record(3)]), before_commit=nothing) == StoreResult(1, 1)
    # Then they are in the default partition, each once, and it is reported
    assert ask(url, "SELECT count(*) FROM log_events_default") == [(4,)]
    days = retention.facts().days
    assert days is not None
    assert days.has_default_rows
    # And they expire row by row
    _age(url, 40 + DAYS + 1, "true")
    assert retention.delete_events(rows_max=3, since=None)[0] == 3
    assert retention.delete_events(rows_max=3, since=None)[0] == 1


def test_days_are_made_beside_a_large_default_partition_without_reading_it_under_a_lock(
    owner: Settings, retention: PostgresRetention, sink: PostgresSink, url: str
) -> None:
    # Given a table for which nobody made days for weeks
    for name in _leaves(url):
        if name != "log_events_default":
            ask(url, f"DROP TABLE {name}")
    columns = _COLUMNS.replace("event_time", "stored_at, event_time")
    ask(
        url,
        f"INSERT INTO log_events ({columns}) SELECT 'old-' || number, 'c', 'INFO', repeat('m', 1000), 's', "
        "now() - number * interval '1 minute', now(), now(), 'other', 0, 0 FROM generate_series(1, 6000) AS number",
    )
    # When the control worker would make them / Then it leaves that: each new one would hold up drains
    assert retention.make_days() == 0
    # And `migrate` makes those of which there can be no events yet, and leaves no check
    said = PostgresSchema(owner).partition_by_day()
    assert said == ["made the partitions of 5 days ahead; until they begin, events are stored in log_events_default"]
    assert PostgresSchema(owner).partition_by_day() == []
    assert ask(url, "SELECT 1 FROM pg_constraint WHERE conname = 'log_events_default_end'") == []
    _store(sink, 0, 2)
    facts = retention.facts().days
    assert facts is not None
    assert (facts.has_today, facts.days_ahead, facts.unnoted_id) == (False, 5, None)


def test_events_of_the_default_partition_are_moved_as_the_page_says(sink: PostgresSink, url: str) -> None:
    # Given events of a day that has no partition
    _store(sink, 0, 3)
    _age(url, 5, "log_offset < 2")
    assert ask(url, "SELECT count(*) FROM log_events_default") == [(2,)]
    # When the statements of docs/retention.md are run for that day
    page = (ROOT / "docs" / "retention.md").read_text(encoding="utf-8")
    [statements] = re.findall(r"```sql\n(BEGIN;.*?COMMIT;)\n```", page, re.DOTALL)
    [(day, next_day)] = ask(
        url,
        "SELECT (today - 5)::text, (today - 4)::text FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS now",
    )
    name = f"log_events_{day.replace('-', '')}"
    for shown, this in (("2026-01-31", day), ("2026-02-01", next_day), ("log_events_20260131", name)):
        statements = statements.replace(shown, this)
    ask(url, statements)
    # Then they are in its partition, each one once, with its id
    assert ask(url, "SELECT count(*) FROM log_events_default") == [(0,)]
    assert ask(url, f"SELECT count(*) FROM {name}") == [(2,)]
    assert ask(url, "SELECT count(*) FROM event_ids JOIN log_events USING (event_id, stored_at)") == [(3,)]
    assert sink.store(LOG, 0, 3, batch(3, [record(0)]), before_commit=nothing) == StoreResult(repeated=1)


def test_only_days_that_expired_as_a_whole_are_dropped(
    retention: PostgresRetention, sink: PostgresSink, url: str
) -> None:
    young, old, older = (_make_day(url, DAYS + days) for days in (0, 1, 2))
    _store(sink, 0, 3)
    for number, days in enumerate((DAYS, DAYS + 1, DAYS + 2)):
        _age(url, days, f"log_offset = {number}")
    assert retention.delete_events(rows_max=10, since=None)[0] == 0
    facts = retention.facts()
    assert facts.oldest_seconds is not None
    assert facts.oldest_seconds > (DAYS + 1) * 86_400
    assert [retention.drop_day(), retention.drop_day(), retention.drop_day()] == [(older, 1), (old, 1), None]
    assert young in _leaves(url)
    assert stored_ids(url) == ["event-000000"]


def test_a_day_that_is_read_is_not_dropped_and_nobody_waits_for_it(
    retention: PostgresRetention, sink: PostgresSink, url: str
) -> None:
    gone = _make_day(url, DAYS + 1)
    with contextlib.closing(psycopg2.connect(url)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM log_events")
        with pytest.raises(SinkContentionError, match="lock"):
            retention.drop_day()
        _store(sink, 0, 2)  # while the reader goes on
        reader.rollback()
    assert retention.drop_day() == (gone, 0)


def test_ids_expire_after_their_events_only(owner: Settings, sink: PostgresSink, url: str) -> None:
    # Given ids of three ages, the oldest one of an event that is still there
    said = PostgresSchema(owner).set_retention(event_days=DAYS, letter_days=None, id_days=2 * DAYS)
    assert said == [
        "events are kept for 30 days, dead letters for ever, ids for 60 days", "made the index event_ids_stored_at",
    ]  # fmt: skip
    retention = PostgresRetention(sink.session)
    _store(sink, 0, 1)
    kept = _make_day(url, 2 * DAYS + 1)
    _age(url, 2 * DAYS + 1, "true")
    for days in (2 * DAYS - 1, 2 * DAYS + 2, 2 * DAYS + 3):
        ask(url, f"INSERT INTO event_ids VALUES ('{days}', now() - interval '{days} days')")
    # Then that one stays until its event is gone
    deleted, reached = retention.delete_ids(rows_max=1, since=None)
    assert deleted == 1
    assert retention.delete_ids(rows_max=9, since=reached)[0] == 1
    assert ask(url, "SELECT event_id FROM event_ids ORDER BY 1") == [(str(2 * DAYS - 1),), ("event-000000",)]
    assert retention.drop_day() == (kept, 1)
    assert retention.delete_ids(rows_max=9, since=None)[0] == 1


# --- Ticks of the control worker ------------------------------------------------------------------------------------


@pytest.fixture
def context(owner: Settings) -> Iterator[WorkerContext]:
    """The parts of a control worker; the control store is in memory."""
    server = MemoryServer()
    with contextlib.closing(WorkerContext(owner)) as made:
        vars(made)["control_store"] = MemoryControlStore(owner, server)
        vars(made)["troubles"] = MemoryTroubles(owner, server)
        vars(made)["counters"] = MemoryCounters(server)
        made.control_store.restore([], actor="tests")
        yield made


def test_a_tick_drops_days_and_counts_their_events(
    context: WorkerContext, retention: PostgresRetention, sink: PostgresSink, url: str
) -> None:
    gone = [_make_day(url, DAYS + days) for days in (1, 2)]
    _store(sink, 0, 6)
    _age(url, DAYS + 1, "log_offset < 2")
    _age(url, DAYS + 2, "log_offset = 3")
    for _ in range(len(gone) + 1):  # consumers count as behind, since the mode is unknown: one day a tick
        tick(context)
    assert not set(gone) & set(_leaves(url))
    assert context.counters.read().totals["expired:log_events"] == 3
    assert context.troubles.reported() == {}


def test_a_tick_reports_ids_that_are_lost(
    context: WorkerContext, retention: PostgresRetention, sink: PostgresSink, url: str
) -> None:
    _store(sink, 0, 1)
    ask(url, "TRUNCATE event_ids")
    tick(context)
    [[trouble]] = context.troubles.reported().values()
    assert trouble.code == AlarmCode.RETENTION
    assert "event_ids lacks the id event-000000" in trouble.what


def test_days_are_made_whatever_the_settings_of_the_control_worker_are(
    context: WorkerContext, owner: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = _leaves(url)[-2]
    ask(url, f"DROP TABLE {last}")
    vars(context)["settings"] = dataclasses.replace(owner, events_by_day=False, retention_days=0)
    monkeypatch.setattr(tasks_control, "context_of", lambda _settings: context)
    make_app(context.settings).tasks["sluice.measure"].run()
    assert last in _leaves(url)


# --- Rights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def user_url(owner: Settings) -> Iterator[str]:
    """The URL of a user with the rights that `migrate` grants."""
    role = f"r{os.urandom(6).hex()}"
    made = owner.database_url.replace("//sluice@", f"//{role}:x@")
    PostgresSchema(owner).give_rights(made)
    yield made
    ask(owner.database_url, f"DROP OWNED BY {role}")
    ask(owner.database_url, f"DROP ROLE {role}")


def test_sluices_user_stores_and_lets_days_go_and_nothing_else(
    owner: Settings, retention: PostgresRetention, user_url: str, url: str
) -> None:
    gone = _make_day(url, DAYS + 1)
    [today] = [
        name for (name,) in ask(url, "SELECT leaf::text FROM day_bounds() WHERE begins <= now() AND ends > now()")
    ]
    with contextlib.closing(PostgresSink(dataclasses.replace(owner, database_url=user_url))) as used:
        _store(used, 0, 2)
        again = batch(2, [record(0), record(1, message="another"), b"broken"])
        expected = StoreResult(repeated=1, conflicting=1, dead_lettered=1)
        assert used.store(LOG, 0, 2, again, before_commit=nothing) == expected
        assert PostgresDeadLetters(used.session).replay(limit=9).conflicting == 1
        mine = PostgresRetention(used.session)
        assert mine.facts().may_delete
        assert mine.drop_day() == (gone, 0)
        ask(url, f"DROP TABLE {[name for name in _leaves(url) if name != 'log_events_default'][-1]}")
        assert mine.make_days() == 1
        assert mine.delete_ids(rows_max=9, since=None)[0] == 0
    for statement in (
        "INSERT INTO event_ids VALUES ('x')",
        "DELETE FROM event_ids",
        f"INSERT INTO {today} SELECT * FROM {today}",
        f"DROP TABLE {today}",
        "CREATE TRIGGER mine AFTER INSERT ON probes FOR EACH STATEMENT EXECUTE FUNCTION note_event_ids()",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            ask(user_url, statement)


def test_the_trigger_runs_nothing_that_another_user_made(sink: PostgresSink, user_url: str, url: str) -> None:
    # Given a user whose temporary tables hide the table of ids and the new rows / When an event is stored
    with contextlib.closing(psycopg2.connect(user_url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE event_ids (event_id text, stored_at timestamptz)")
        cursor.execute("CREATE TEMPORARY TABLE new_events (event_id text, stored_at timestamptz)")
        cursor.execute(_insert("hidden"))
        connection.commit()
    # Then its id is in the real one
    assert ask(url, "SELECT event_id FROM event_ids") == [("hidden",)]
