"""The tables of the database as Markdown: `python -m monitoring.schema_table > docs/tables.md`.

The layout is read from the catalog of a PostgreSQL on which all migrations ran; monitoring.schema_text says what each
thing is for. A thing without a text is an error, and so is a text without its thing.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import psycopg2

from monitoring.schema_text import FUNCTIONS, TABLES, TableText
from pipeline import wiring
from pipeline.settings import Settings
from stack.servers import free_port, postgres_server

_MIGRATE_SECONDS_MAX: Final = 60.0
_HEAD: Final = """\
# The tables

The layout of Sluice's tables, as all migrations leave it, with `RETENTION_DAYS` and `DEAD_LETTER_DAYS` set.
`log_events` and `dead_letters` are for your queries. The others are Sluice's own: read them, and change them by the
commands of [operating.md](operating.md) only. [database.md](database.md) says what you may change in the layout,
[links.md](links.md#the-user-and-who-owns-the-tables) which rights Sluice's user has, and [http.md](http.md) what a
client may send. `python -m monitoring.schema_table` writes this page.
"""
_NOTES: Final = {
    "dead_letters": "What to do with them: [database.md](database.md#dead-letters) and the "
    "[runbook](runbooks/dead-letters.md).",
}
_FUNCTIONS_HEAD: Final = """\
## Functions

All that write, delete or read partitions themselves run with the rights of the owner of the tables, so that Sluice's
user can delete nothing but what is expired, and write no id ([retention.md](retention.md)). Those of `event_ids` and of
partitions are used with `EVENTS_BY_DAY` only.

| function | what it does |
|---|---|
"""


class SchemaTextError(Exception):
    """The texts and the catalog differ."""


def prepare(settings: Settings) -> None:
    """Apply all migrations to the empty database of `DATABASE_URL`, and set retention."""
    schema = wiring.make_schema(settings)
    schema.migrate(wait_seconds=_MIGRATE_SECONDS_MAX)
    schema.set_retention(event_days=1, letter_days=1)


def page(cursor: Any) -> str:
    """The whole page, from the current schema of a database. Raises SchemaTextError."""
    cursor.execute(_statement("schema_table"))
    found = {name: _Table(*row) for name, *row in cursor.fetchall()}
    _compare("table", found, TABLES)
    cursor.execute(_statement("schema_functions"))
    functions = dict(cursor.fetchall())
    _compare("function", functions, FUNCTIONS)
    parts = [_HEAD, *(_section(name, text, found[name]) for name, text in TABLES.items())]
    rows = "".join(f"| `{name}({functions[name]})` | {text} |\n" for name, text in FUNCTIONS.items())
    return "\n".join([*parts, f"{_FUNCTIONS_HEAD}{rows}"])


class _Table:
    """What the catalog says of a table."""

    def __init__(self, options: Any, columns: Any, indexes: Any, checks: Any) -> None:
        self.options: list[str] = options or []
        self.columns: list[tuple[str, str, bool, str | None]] = columns or []
        self.indexes: list[tuple[str, str, str]] = indexes or []
        self.checks: list[str] = checks or []


def _section(name: str, text: TableText, table: _Table) -> str:
    _compare(f"column of {name}", [column for column, *_ in table.columns], text.columns)
    _compare(f"index of {name}", [index for index, kind, _ in table.indexes if not kind], text.indexes)
    lines = [f"## {name}", "", text.about]
    if name in _NOTES:
        lines += ["", _NOTES[name]]
    lines += ["", "| column | type | NULL | default | what it is |", "|---|---|---|---|---|"]
    for column, kind, is_needed, default in table.columns:
        given = f"`{default}`" if default else ""
        lines.append(f"| `{column}` | {kind} | {'no' if is_needed else 'yes'} | {given} | {text.columns[column]} |")
    lines += ["", "| index | on | what for |", "|---|---|---|"]
    for index, kind, definition in table.indexes:
        lines.append(f"| `{index}` | `{definition}` | {kind or text.indexes[index]} |")
    for title, values in (("Checks", table.checks), ("Storage parameters", sorted(table.options))):
        if values:
            lines += ["", f"{title}: {', '.join(f'`{value}`' for value in values)}."]
    return "\n".join([*lines, ""])


def _compare(what: str, there: Iterable[str], described: Mapping[str, Any]) -> None:
    names = set(there)
    unknown, gone = sorted(names - set(described)), sorted(set(described) - names)
    if unknown:
        raise SchemaTextError(f"{what} without a text in monitoring/schema_text.py: {', '.join(unknown)}")
    if gone:
        raise SchemaTextError(f"{what} in monitoring/schema_text.py that the database does not have: {', '.join(gone)}")


def _statement(name: str) -> str:
    return resources.files("monitoring").joinpath(f"{name}.sql").read_text(encoding="utf-8")


@contextlib.contextmanager
def _own_database() -> Iterator[str]:
    """The URL of an empty database on a server that ends with the body."""
    with tempfile.TemporaryDirectory() as folder:
        server = postgres_server(Path(folder), free_port(), durable=False)
        try:
            yield server.start().url
        finally:
            server.stop()


def main() -> None:
    """Write the page to standard output."""
    with _own_database() as url:
        prepare(Settings(database_url=url))
        with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            sys.stdout.write(page(cursor))


if __name__ == "__main__":
    main()
