"""What `migrate` says of an error of PostgreSQL: on one line, and without libpq's question."""

from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest

from pipeline.errors import SinkUnavailableError
from pipeline.settings import Settings
from pipeline.sink import migrate
from pipeline.sink.migrate import PostgresSchema, missing_migrations

SAID = """connection to server at "10.0.0.1", port 5432 failed: Connection timed out
\tIs the server running on that host and accepting TCP/IP connections?
"""


class BrokenCursor:
    """The cursor of a connection that has ended."""

    def __enter__(self) -> "BrokenCursor":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, *_: object) -> None:
        raise psycopg2.OperationalError(SAID)


@pytest.mark.parametrize(
    "call",
    [
        lambda: PostgresSchema(Settings()).check_same_database("postgresql://other/x"),
        lambda: PostgresSchema(Settings()).give_rights("postgresql://other/x"),
        lambda: PostgresSchema(Settings()).set_retention(event_days=1, letter_days=1),
        lambda: missing_migrations(Settings()),
    ],
    ids=["same database", "rights", "retention", "missing"],
)
def test_an_error_is_on_one_line_without_a_question(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "connect", lambda _: SimpleNamespace(cursor=BrokenCursor, close=lambda: None))
    monkeypatch.setattr(migrate, "_watched", lambda *_: BrokenCursor())
    with pytest.raises(SinkUnavailableError) as error:
        call()
    assert str(error.value).endswith('connection to server at "10.0.0.1", port 5432 failed: Connection timed out')
