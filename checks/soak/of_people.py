"""Actions of people on a running system: operators pause and replay; users change and lock the table."""

import contextlib
import random
import threading
import time
from typing import Any, Final

import psutil
import psycopg2

from checks.soak.fault import Effect, Fault
from checks.soak.of_database import RowsRefused, letters
from checks.soak.rig import Rig
from checks.soak.windows import Part
from pipeline.clock import SystemClock
from pipeline.errors import SinkUnavailableError
from tasks import commands

_BY: Final = "soak"
REWRITE_BYTES_MAX: Final = 100_000_000  # of a table that a change may rewrite: it is locked meanwhile
DDL_SECONDS_MAX: Final = 60


class ConsumptionPaused(Fault):
    """An operator pauses consumption, and resumes it. Nothing is stored meanwhile."""

    name = "operator.pause"
    seconds = (5.0, 6.5)
    touches = frozenset({Part.PAUSE})

    def inject(self, rig: Rig) -> None:
        self._words = commands.pause(rig.context, _BY, "a fault of the harness")

    def repair(self, rig: Rig) -> None:
        self._lifted = commands.resume(rig.context, _BY, "repaired")

    def effect(self, rig: Rig) -> Effect:
        return Effect("is paused since" in self._words and "Lifted" in self._lifted, self._lifted)


class LettersReplayed(RowsRefused):
    """Rows are refused. After the refusals end, an operator replays the dead letters under traffic."""

    name = "operator.replay"

    def repair(self, rig: Rig) -> None:
        super().repair(rig)
        self._open = letters(rig, only_open=True)
        self._words = _replayed(rig)
        left = letters(rig, only_open=True)
        # Batches refused before the drop of the trigger may still add letters. The letters that were open are stored.
        if left >= max(1, self._open):
            self.complaints.append(f"{left} of {self._open} dead letters were left by a replay: {self._words}")

    def effect(self, rig: Rig) -> Effect:
        return Effect(self._open > 0, f"{self._open} dead letters: {self._words}")


def _replayed(rig: Rig) -> str:
    """The output of the command. It runs again if PostgreSQL has failed meanwhile, as an operator would do."""
    try:
        return commands.replay(rig.context, _BY, 100_000, dry_run=False)
    except SinkUnavailableError:  # an earlier fault cut the harness's connection
        return commands.replay(rig.context, _BY, 100_000, dry_run=False)


class TriggerRefuses(RowsRefused):
    """A user's trigger refuses one row in fifty with RAISE EXCEPTION. These become dead letters; others are stored."""

    name = "user.trigger"
    sqlstate, every, rest = "P0001", 50, 11


_COLUMNS: Final = (
    "soak_added text NOT NULL DEFAULT 'added'",
    "soak_added timestamptz NOT NULL DEFAULT now()",
    # These rewrite the table:
    "soak_added bigint GENERATED ALWAYS AS IDENTITY",
    "soak_added integer GENERATED ALWAYS AS (length(message)) STORED",
    "soak_added bigserial NOT NULL",
)
_COLUMNS_OF_LARGE: Final = 2
_PARTITIONS: Final = " FROM pg_partition_tree('log_events') WHERE isleaf AND level > 0"  # none of a plain table


class ColumnAdded(Fault):
    """A user adds a column that PostgreSQL fills by itself, and drops it again."""

    name = "user.column"
    seconds = (2.0, 3.0)
    touches = frozenset({Part.DATABASE})

    def __init__(self, pick: random.Random) -> None:
        super().__init__(pick)
        self._stored = 0  # also if PostgreSQL never answers while the fault lasts

    def inject(self, rig: Rig) -> None:
        with _patient(rig) as cursor:
            cursor.execute("SELECT pg_table_size('log_events') + coalesce(sum(pg_table_size(relid)), 0)" + _PARTITIONS)
            is_large = int(cursor.fetchone()[0]) > REWRITE_BYTES_MAX
            self._column = self.pick.choice(_COLUMNS[:_COLUMNS_OF_LARGE] if is_large else _COLUMNS)
            cursor.execute(f"ALTER TABLE log_events ADD COLUMN {self._column}")
        self._before = sum(rig.stored_offsets().values())

    def has_hit(self, rig: Rig) -> bool:
        with contextlib.suppress(psycopg2.Error):
            self._stored = sum(rig.stored_offsets().values()) - self._before
        return self._stored > 0

    def repair(self, rig: Rig) -> None:
        with _patient(rig) as cursor:
            cursor.execute("ALTER TABLE log_events DROP COLUMN soak_added")

    def effect(self, rig: Rig) -> Effect:
        return Effect(self._stored > 0, f"{self._stored} events stored with `{self._column}`")


_TAKES: Final = {
    "lock": "LOCK TABLE log_events IN ACCESS EXCLUSIVE MODE",
    "index": "CREATE INDEX soak_added ON log_events (source)",  # SHARE: others can read, but not write
}
_WAITING: Final = """
SELECT count(*) FROM pg_locks WHERE relation = 'log_events'::regclass AND NOT granted
"""


class TableHeld(Fault):
    """A user's transaction locks the events' table for seconds, by LOCK TABLE or by the creation of an index."""

    seconds = (3.0, 5.0)
    touches = frozenset({Part.DATABASE})

    def __init__(self, pick: random.Random, how: str) -> None:
        super().__init__(pick)
        self.name, self._statement = f"user.{how}", _TAKES[how]
        self._waited = 0
        self._problem = ""

    def inject(self, rig: Rig) -> None:
        self._connection = psycopg2.connect(rig.direct.database_url, connect_timeout=2, application_name="a user")
        self._taking = threading.Thread(target=self._take, daemon=True)
        self._taking.start()  # it may wait for drains, and others wait behind it

    def _take(self) -> None:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(self._statement)
        except psycopg2.Error as error:
            self._problem = f": {error}"

    def look(self, rig: Rig) -> None:
        with rig.database() as cursor:
            cursor.execute(_WAITING)
            self._waited = max(self._waited, int(cursor.fetchone()[0]))

    def has_hit(self, rig: Rig) -> bool:
        return self._waited > 0

    def repair(self, rig: Rig) -> None:
        self._connection.cancel()
        self._taking.join(DDL_SECONDS_MAX)
        self._connection.close()  # without a commit: the lock, and the index, are gone

    def effect(self, rig: Rig) -> Effect:
        return Effect(self._waited > 0, f"{self._waited} backends waited{self._problem}")


@contextlib.contextmanager
def _patient(rig: Rig) -> Any:
    """A cursor for changes that may have to wait for drains."""
    with rig.database() as cursor:
        cursor.execute(f"SET statement_timeout = '{DDL_SECONDS_MAX}s'")
        yield cursor


PARTITIONS_MAX: Final = 6  # of a topic: no more than the workers that a run has
USED_SECONDS_MAX: Final = 30.0
START_SECONDS_MAX: Final = 10.0  # until a new ingest process has read the log's number of partitions


class PartitionAdded(Fault):
    """An operator adds one partition to the topic under traffic. All ingest processes use it within 30 s."""

    name = "log.partition-added"
    seconds = (1.0, 2.0)

    def impossible(self, rig: Rig) -> str | None:
        if rig.options.log != "kafka":
            return "the log is not Kafka"
        self._count = len(rig.log_ends())
        return None if self._count < PARTITIONS_MAX else "the topic has all partitions that the workers are made for"

    def inject(self, rig: Rig) -> None:
        self._since = time.monotonic()
        # An ingest process that has just started may find the partition at its start, and logs nothing.
        started = SystemClock().now() - START_SECONDS_MAX
        self._old = [one for one in rig.ingests if psutil.Process(one.pid).create_time() < started]
        rig.add_partition(self._count + 1)

    def repair(self, rig: Rig) -> None:
        """Wait until the partition is used: nothing else needs repair."""
        while not (used := self._used(rig) > 0 and not self._unaware()) and (
            time.monotonic() - self._since < USED_SECONDS_MAX
        ):
            time.sleep(0.2)
        self._seconds = time.monotonic() - self._since
        if not used:
            by = f" by {', '.join(self._unaware())}" if self._unaware() else ""
            self.complaints.append(f"partition {self._count} was not used{by} within {USED_SECONDS_MAX:.0f} s")

    def _unaware(self) -> list[str]:
        """The ingest processes that do not use it yet: each logs the new number when it starts to use it."""
        line = f"the event log has {self._count + 1} partitions now"
        return [one.name for one in self._old if line not in one.log()]

    def _used(self, rig: Rig) -> int:
        return sum(end for (_, partition), end in rig.log_ends().items() if partition == self._count)

    def effect(self, rig: Rig) -> Effect:
        return Effect(
            self._used(rig) > 0,
            f"partition {self._count} had {self._used(rig)} events after {self._seconds:.1f} s, and "
            f"{len(self._old)} ingest processes used it",
        )
