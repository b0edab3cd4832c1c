"""PostgreSQL that stores a known number of events per second: a trigger sleeps before the commit (`hold.sql`)."""

from pathlib import Path
from typing import Any, Final

import psycopg2

# A batch of the usual size would be held for seconds and look like a frozen server.
_BATCH_RECORDS_MAX: Final = 250
_BATCH_SECONDS_MAX: Final = 0.25


def held_batch_records(rate: float) -> int:
    """DRAIN_BATCH_RECORDS_MAX for a PostgreSQL that stores `rate` events per second."""
    return max(1, min(_BATCH_RECORDS_MAX, int(rate * _BATCH_SECONDS_MAX)))


class HeldDatabase:
    """A PostgreSQL with Sluice's tables and the trigger. It has one connection, which any thread may use."""

    def __init__(self, database_url: str) -> None:
        self._connection = psycopg2.connect(database_url)
        self._connection.autocommit = True
        self.execute((Path(__file__).parent / "hold.sql").read_text())

    def hold(self, rate: float | None) -> None:
        """Let PostgreSQL store at most `rate` events per second from its next batch on. None: no limit."""
        self.execute("UPDATE bench_hold SET events_per_second = %s", rate)

    def execute(self, sql: str, *values: Any) -> None:
        """Execute statements."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values or None)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            return [tuple(row) for row in cursor.fetchall()]

    def close(self) -> None:
        """End the connection."""
        self._connection.close()
