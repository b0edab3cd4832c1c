"""docs/tables.md is the layout that the migrations leave, and every table, column, index and function has a text."""

import contextlib
import re
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from checks.testbed.database import ask
from checks.testbed.processes import ROOT
from monitoring.schema_table import SchemaTextError, page, prepare
from monitoring.schema_text import TABLES
from pipeline.sink.rights import RIGHTS
from stack.servers import Server
from support.sinks import sink_settings


@pytest.fixture(scope="module")
def connection(postgres: Server) -> Iterator[Any]:
    """A migrated database of this module's own. The changes of a test are rolled back."""
    name = f"test_{uuid.uuid4().hex}"
    ask(postgres.url, f"CREATE DATABASE {name}")
    url = postgres.url.rpartition("/")[0] + f"/{name}"
    prepare(sink_settings(url))
    with contextlib.closing(psycopg2.connect(url)) as opened:
        yield opened
    ask(postgres.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def cursor(connection: Any) -> Iterator[Any]:
    with connection.cursor() as opened:
        yield opened
    connection.rollback()


def test_the_page_is_the_layout(cursor: Any) -> None:
    text = page(cursor)
    assert (ROOT / "docs" / "tables.md").read_text() == text, (
        "the schema or its texts have changed: python -m monitoring.schema_table > docs/tables.md"
    )
    # And it has what users rely on, from the catalog
    assert '| `event_id` | text COLLATE "C" | no |' in text
    assert "| `stored_at` | timestamp with time zone | yes | `now()` |" in text
    assert "`brin (event_time) WITH (pages_per_range='32', autosummarize='on')`" in text
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == [*TABLES, "Functions"]
    assert set(TABLES) == set(RIGHTS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("CREATE TABLE more (id int)", "table without a text .*: more"),
        ("ALTER TABLE log_events ADD COLUMN more int", "column of log_events without a text .*: more"),
        ("ALTER TABLE probes DROP COLUMN probed_at", "column of probes in .* does not have: probed_at"),
        ("CREATE INDEX more ON probes (probed_at)", "index of probes without a text .*: more"),
        ("DROP INDEX dead_letters_open", "index of dead_letters in .* does not have: dead_letters_open"),
        ("DROP TABLE known_logs", "table in .* does not have: known_logs"),
        ("DROP FUNCTION delete_expired_dead_letters", "function in .* does not have: delete_expired_dead_letters"),
    ],
)
def test_a_change_without_a_text_is_refused(cursor: Any, change: str, said: str) -> None:
    cursor.execute(change)
    with pytest.raises(SchemaTextError, match=said):
        page(cursor)


@pytest.mark.parametrize(
    ("change", "now"),
    [
        ("ALTER TABLE probes ALTER COLUMN probed_at DROP NOT NULL", "| `probed_at` | timestamp with time zone | yes |"),
        ("ALTER TABLE probes ALTER COLUMN probed_at SET DEFAULT now()", "| no | `now()` | when it last"),
        ("ALTER TABLE probes RESET (fillfactor)", "Checks: `CHECK ((id = 1))`.\n\n## schema_migrations"),
        ("ALTER TABLE stored_offsets ADD CHECK (log_partition < 9)", "`CHECK ((log_partition < 9))`"),
    ],
)
def test_another_layout_is_another_page(cursor: Any, change: str, now: str) -> None:
    before = page(cursor)
    assert now not in before
    cursor.execute(change)
    assert now in page(cursor)
