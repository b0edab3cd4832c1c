"""What users may do to `log_events` (docs/database.md): each change, with straight and staged batches."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from checks.testbed.database import ask, stored_ids
from checks.testbed.processes import ROOT
from checks.testbed.waiting import PATIENT_CONNECT_SECONDS, PATIENT_SINK_SECONDS
from pipeline.errors import SinkMisconfiguredError
from pipeline.ports.event_sink import StoreResult
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from support.records import batch, new_log_id, nothing, record

LOG = new_log_id()


@pytest.fixture
def sink(database_url: str) -> Iterator[PostgresSink]:
    settings = Settings(
        database_url=database_url,
        sink_call_seconds_max=PATIENT_SINK_SECONDS,
        sink_connect_seconds_max=PATIENT_CONNECT_SECONDS,
    )
    migrate(settings)
    with contextlib.closing(PostgresSink(settings)) as made:
        yield made


def _store_both_ways(sink: PostgresSink) -> None:
    """Four new events: two of a batch that goes straight into the table, two of one that is staged for its repeat."""
    straight = sink.store(LOG, 0, 0, batch(0, [record(0), record(1)]), before_commit=nothing)
    staged = sink.store(LOG, 0, 2, batch(2, [record(2), record(1), record(3)]), before_commit=nothing)
    assert (straight, staged) == (StoreResult(stored=2), StoreResult(stored=2, repeated=1))


FILL = """
CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN NEW.tenant := 'of ' || NEW.source; RETURN NEW; END $$;
CREATE TRIGGER fill BEFORE INSERT ON log_events FOR EACH ROW EXECUTE FUNCTION fill();
"""
ADDED = {
    "nullable": ("ADD COLUMN extra text", "extra", [None] * 4),
    "default": ("ADD COLUMN extra text DEFAULT 'none'", "extra", ["none"] * 4),
    "default, not null": ("ADD COLUMN extra text NOT NULL DEFAULT 'none'", "extra", ["none"] * 4),
    "a time": ("ADD COLUMN extra timestamptz NOT NULL DEFAULT now()", "extra IS NOT NULL", [True] * 4),
    "serial": ("ADD COLUMN extra bigserial", "extra > 0", [True] * 4),
    "identity": ("ADD COLUMN extra bigint GENERATED ALWAYS AS IDENTITY", "extra > 0", [True] * 4),
    "generated": (
        "ADD COLUMN extra integer NOT NULL GENERATED ALWAYS AS (length(message)) STORED",
        "extra = length(message)",
        [True] * 4,
    ),
    "a domain": ("ADD COLUMN extra tag", "extra", ["of a domain"] * 4),
}


@pytest.mark.parametrize(("change", "shown", "expected"), ADDED.values(), ids=ADDED.keys())
def test_columns_that_postgresql_fills(
    sink: PostgresSink, database_url: str, change: str, shown: str, expected: list[Any]
) -> None:
    # Given a column that a user has added, and that Sluice knows nothing of
    ask(database_url, "CREATE DOMAIN tag AS text DEFAULT 'of a domain' NOT NULL")
    ask(database_url, f"ALTER TABLE log_events {change}")
    # Then every event is stored, whichever way its batch takes, and PostgreSQL fills the column
    _store_both_ways(sink)
    assert [value for (value,) in ask(database_url, f"SELECT {shown} FROM log_events ORDER BY event_id")] == expected


def test_a_column_that_comes_while_a_sink_is_connected(sink: PostgresSink, database_url: str) -> None:
    # Given a connection that has its staging table already
    sink.store(LOG, 0, 0, batch(0, [record(10), record(10)]), before_commit=nothing)
    # When a column is added
    ask(database_url, "ALTER TABLE log_events ADD COLUMN extra text NOT NULL DEFAULT 'none'")
    # Then both ways go on
    result = sink.store(LOG, 0, 2, batch(2, [record(10), record(11)]), before_commit=nothing)
    assert result == StoreResult(stored=1, repeated=1)


def test_a_column_that_a_trigger_fills(sink: PostgresSink, database_url: str) -> None:
    ask(database_url, "ALTER TABLE log_events ADD COLUMN tenant text NOT NULL")
    ask(database_url, FILL)
    _store_both_ways(sink)
    assert ask(database_url, "SELECT DISTINCT tenant FROM log_events") == [("of tests",)]


OTHERS = {
    "an index": "CREATE INDEX CONCURRENTLY mine ON log_events USING gin (attributes)",
    "a unique index that events keep": "CREATE UNIQUE INDEX mine ON log_events (message, event_id)",
    "a check that events keep": "ALTER TABLE log_events ADD CHECK (message <> '')",
    "a trigger that writes elsewhere": """
        CREATE TABLE counted (n integer);
        CREATE FUNCTION count_one() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO counted VALUES (1); RETURN NULL; END $$;
        CREATE TRIGGER count_one AFTER INSERT ON log_events FOR EACH ROW EXECUTE FUNCTION count_one();
    """,
    "varchar": "ALTER TABLE log_events ALTER COLUMN source TYPE varchar(200)",
    "partitions by hash of the id": """
        ALTER TABLE log_events RENAME TO former;
        CREATE TABLE log_events (LIKE former INCLUDING DEFAULTS, PRIMARY KEY (event_id)) PARTITION BY HASH (event_id);
        CREATE TABLE log_events_0 PARTITION OF log_events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE log_events_1 PARTITION OF log_events FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    """,
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_other_changes_that_are_supported(sink: PostgresSink, database_url: str, change: str) -> None:
    ask(database_url, change)
    _store_both_ways(sink)
    assert stored_ids(database_url) == [f"event-{number:06d}" for number in range(4)]
    assert migrate(sink._settings) == []


def test_a_constraint_that_an_event_breaks_makes_a_dead_letter_of_it(sink: PostgresSink, database_url: str) -> None:
    ask(database_url, "CREATE UNIQUE INDEX mine ON log_events (message)")
    values = [record(0, message="same"), record(1, message="same"), record(2)]
    assert sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing) == StoreResult(stored=2, dead_lettered=1)
    [(reason,)] = ask(database_url, "SELECT reason FROM dead_letters")
    assert "mine" in reason


def test_partitions_by_time_are_refused(sink: PostgresSink, database_url: str) -> None:
    # Given the only unique index that PostgreSQL allows there
    ask(
        database_url,
        """
        ALTER TABLE log_events RENAME TO former;
        CREATE TABLE log_events (LIKE former INCLUDING DEFAULTS, PRIMARY KEY (event_id, event_time))
        PARTITION BY RANGE (event_time);
        """,
    )
    # Then a sink that connects says so
    with pytest.raises(SinkMisconfiguredError, match="partitioned by time"):
        sink.probe()


def test_a_deleted_event_that_is_repeated_is_stored_again(sink: PostgresSink, database_url: str) -> None:
    _store_both_ways(sink)
    ask(database_url, "DELETE FROM log_events WHERE event_id = 'event-000000'")
    assert sink.store(LOG, 0, 5, batch(5, [record(0), record(1)]), before_commit=nothing).stored == 1


def test_the_query_of_the_page_shows_both_sides_of_a_conflict(sink: PostgresSink, database_url: str) -> None:
    # Given an event, and another one with its id
    sink.store(LOG, 0, 0, batch(0, [record(1)]), before_commit=nothing)
    sink.store(LOG, 0, 1, batch(1, [record(1, message="changed")]), before_commit=nothing)
    # Then the query in docs/database.md finds both
    page = (ROOT / "docs" / "database.md").read_text()
    [query] = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    [row] = ask(database_url, query)
    assert "message 1" in row
    assert row[-1]["message"] == "changed"
