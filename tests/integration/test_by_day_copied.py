"""A table by day that PostgreSQL copies to another database (logical replication): what docs/retention.md says."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psycopg2
import pytest

from checks.testbed.database import ask, stored_ids
from checks.testbed.processes import ROOT
from checks.testbed.waiting import PATIENT_CONNECT_SECONDS, PATIENT_SINK_SECONDS, wait_until
from pipeline.settings import Settings
from pipeline.sink.migrate import PostgresSchema, migrate
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.retention import PostgresRetention
from stack.servers import Server, free_port, postgres_server
from support.records import new_log_id, nothing, numbered_batch

LOG: Final = new_log_id()
DAYS: Final = 30
OLD: Final = (
    "INSERT INTO log_events (event_id, correlation_id, severity, message, source, event_time, received_at, log_id, "
    "log_partition, log_offset, stored_at) SELECT %s, 'c', 'INFO', 'm', 's', now(), now(), 'other', 0, 0, "
    "date_trunc('day', now(), 'UTC') - %s * interval '24 hours'"
)
UNNOTED: Final = (
    "SELECT count(*) FROM log_events LEFT JOIN event_ids AS noted USING (event_id) WHERE noted.event_id IS NULL"
)


@dataclass
class Databases:
    """Three databases of one server: Sluice stores in the first."""

    source: Settings
    plain: Settings
    by_day: Settings


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[Databases]:
    server = postgres_server(tmp_path, free_port(), durable=False)
    with (tmp_path / "postgres" / "postgresql.conf").open("a") as file:
        file.write("wal_level = logical\nwal_retrieve_retry_interval = 200ms\n")
    try:
        server.start()
        made = [_database(server, name) for name in ("source", "plain", "by_day")]
        for settings in (made[0], made[2]):
            PostgresSchema(settings).partition_by_day()
        PostgresSchema(made[0]).set_retention(event_days=DAYS, letter_days=None)
        yield Databases(*made)
    finally:
        server.stop()


def _database(server: Server, name: str) -> Settings:
    ask(server.url, f"CREATE DATABASE {name}")
    settings = Settings(
        database_url=f"{server.url.rpartition('/')[0]}/{name}",
        sink_call_seconds_max=PATIENT_SINK_SECONDS,
        sink_connect_seconds_max=PATIENT_CONNECT_SECONDS,
    )
    migrate(settings)
    return replace(settings, events_by_day=name != "plain", retention_days=DAYS if name == "source" else 0)


def _copies(source: Settings, *copies: Settings) -> None:
    """Publish as the page says, and let each of these databases follow."""
    page = (ROOT / "docs" / "retention.md").read_text(encoding="utf-8")
    [publication] = re.findall(r"^CREATE PUBLICATION .*;$", page, re.MULTILINE)
    ask(source.database_url, publication)
    for copy in copies:
        name = copy.database_url.rpartition("/")[2]
        # In one server, CREATE SUBSCRIPTION would wait for itself if it also made the slot.
        ask(source.database_url, f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
        ask(
            copy.database_url,
            f"CREATE SUBSCRIPTION events CONNECTION '{source.database_url}' PUBLICATION events "
            f"WITH (create_slot = false, slot_name = '{name}')",
        )


def _wait_for(copy: Settings, ids: list[str]) -> None:
    wait_until(lambda: stored_ids(copy.database_url) == sorted(ids), f"the copy has {len(ids)} events")


def test_a_copy_follows_a_table_by_day_whose_days_come_and_go(databases: Databases) -> None:
    source, plain, by_day = databases.source, databases.plain, databases.by_day
    url = source.database_url
    with contextlib.closing(PostgresSink(source)) as sink:
        # Given events by day, and two databases that copy them
        sink.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing)
        _copies(source, plain, by_day)
        ids = stored_ids(url)
        _wait_for(plain, ids)
        _wait_for(by_day, ids)
        # When more are stored, in a day that was made since, and in the default partition
        sink.store(LOG, 0, 3, numbered_batch(3, 2), before_commit=nothing)
        ask(url, "CREATE TABLE log_events_old (LIKE log_events INCLUDING ALL)")
        begins = f"date_trunc('day', now(), 'UTC') - interval '{24 * (DAYS + 2)} hours'"
        [(begin, end)] = ask(url, f"SELECT ({begins})::text, ({begins} + interval '24 hours')::text")
        bounds = f"FOR VALUES FROM ('{begin}') TO ('{end}')"
        ask(url, f"ALTER TABLE log_events ATTACH PARTITION log_events_old {bounds}")
        ask(url, OLD, ["in-a-day", DAYS + 2])
        ask(url, OLD, ["in-no-day", DAYS + 9])
        # Then the copies have them
        ids = stored_ids(url)
        assert len(ids) == 7
        _wait_for(plain, ids)
        _wait_for(by_day, ids)
        # When the old ones expire / Then the copies keep them, and follow as before
        retention = PostgresRetention(sink.session)
        assert retention.drop_day() == ("log_events_old", 1)
        assert retention.delete_events(rows_max=10, since=None)[0] == 1
        sink.store(LOG, 0, 5, numbered_batch(5, 1), before_commit=nothing)
        [new] = set(stored_ids(url)) - set(ids)
        _wait_for(plain, [*ids, new])
        _wait_for(by_day, [*ids, new])
    # And a copy by day lacks the ids of what PostgreSQL copied to it, until `migrate` notes them
    ask(by_day.database_url, "ALTER SUBSCRIPTION events DISABLE")
    assert ask(by_day.database_url, UNNOTED) == [(len(ids) + 1 - 3,)]
    PostgresSchema(by_day).partition_by_day()
    assert ask(by_day.database_url, UNNOTED) == [(0,)]
    with pytest.raises(psycopg2.errors.UniqueViolation, match="event_ids_pkey"):
        ask(by_day.database_url, OLD, ["in-a-day", 0])
