"""Faults in the middle of PostgreSQL's work. Triggers make the moment long enough to hit, and report the hit."""

import random
import time
from typing import Any, Final

import psycopg2

from checks.soak.fault import Effect, Fault
from checks.soak.rig import Rig
from checks.soak.windows import Part, Refusal
from checks.testbed.database import fail_no_more, fail_on_insert

# One row in twenty waits, so that a COPY of any size is still running when the harness looks.
_SLOW_COPY: Final = """
CREATE OR REPLACE FUNCTION faults_wait_in_copy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.log_offset % 20 = 0 THEN PERFORM pg_sleep(0.02); END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER faults_wait_in_copy BEFORE INSERT ON log_events
    FOR EACH ROW EXECUTE FUNCTION faults_wait_in_copy();
"""
_USUAL_COPY: Final = "DROP TRIGGER IF EXISTS faults_wait_in_copy ON log_events"
# A deferred constraint trigger runs within COMMIT, before the commit is written.
_SLOW_COMMIT: Final = """
CREATE OR REPLACE FUNCTION faults_wait_in_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(0.2);
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS faults_wait_in_commit ON stored_offsets;
CREATE CONSTRAINT TRIGGER faults_wait_in_commit AFTER INSERT OR UPDATE ON stored_offsets
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION faults_wait_in_commit();
"""
_USUAL_COMMIT: Final = "DROP TRIGGER IF EXISTS faults_wait_in_commit ON stored_offsets"
_END_IN_COPY: Final = """
SELECT copying.pid, copying.tuples_processed, pg_terminate_backend(copying.pid)
FROM pg_stat_progress_copy AS copying
WHERE copying.relid = 'log_events'::regclass AND copying.tuples_processed > 0
"""
_END_IN_COMMIT: Final = """
SELECT pid, 0, pg_terminate_backend(pid)
FROM pg_stat_activity
WHERE application_name ^@ 'sluice' AND state = 'active' AND query = 'COMMIT' AND wait_event = 'PgSleep'
"""
ENDED_MAX: Final = 6  # backends in one fault: then the drains are left alone again


class BackendsTerminated(Fault):
    """pg_terminate_backend while drains are in the middle of a COPY, or in COMMIT before it is written."""

    seconds = (1.0, 2.0)
    touches = frozenset({Part.DATABASE})

    def __init__(self, pick: random.Random, moment: str) -> None:
        super().__init__(pick)
        self.name, self._in_copy = f"{moment}.terminate", moment == "copy"
        self._ended: list[Any] = []

    def inject(self, rig: Rig) -> None:
        with rig.database() as cursor:
            cursor.execute(_SLOW_COPY if self._in_copy else _SLOW_COMMIT)

    def look(self, rig: Rig) -> None:
        if len(self._ended) >= ENDED_MAX:
            return
        with rig.database() as cursor:
            cursor.execute(_END_IN_COPY if self._in_copy else _END_IN_COMMIT)
            self._ended += [row for row in cursor.fetchall() if row[2]]

    def has_hit(self, rig: Rig) -> bool:
        return bool(self._ended)

    def repair(self, rig: Rig) -> None:
        with rig.database() as cursor:
            cursor.execute(_USUAL_COPY if self._in_copy else _USUAL_COMMIT)

    def effect(self, rig: Rig) -> Effect:
        where = "in the middle of COPY" if self._in_copy else "in COMMIT"
        rows = f", after {', '.join(str(row[1]) for row in self._ended)} rows" if self._in_copy and self._ended else ""
        return Effect(bool(self._ended), f"{len(self._ended)} backends terminated {where}{rows}")


class CommitUnanswered(Fault):
    """PostgreSQL commits, and its connection is cut before the confirmation, so the drain can't know of the commit."""

    name = "commit.unanswered"
    seconds = (1.0, 2.0)
    touches = frozenset({Part.DATABASE})

    def inject(self, rig: Rig) -> None:
        self._before = _swallowed(rig)
        # The query and its completion tag, as in the protocol: each ends with a zero byte.
        for proxy in rig.links("postgres"):
            proxy.swallow(b"COMMIT\0", b"COMMIT\0")

    def has_hit(self, rig: Rig) -> bool:
        return _swallowed(rig) > self._before

    def repair(self, rig: Rig) -> None:
        for proxy in rig.links("postgres"):
            proxy.restore()

    def effect(self, rig: Rig) -> Effect:
        count = _swallowed(rig) - self._before
        return Effect(count > 0, f"{count} commits took effect, and their answers were swallowed")


def _swallowed(rig: Rig) -> int:
    return sum(proxy.counts.swallowed for proxy in rig.links("postgres"))


class RowsRefused(Fault):
    """PostgreSQL refuses one row in forty for its content. Only these rows become dead letters."""

    name = "rows.refused"
    seconds = (1.0, 2.0)
    sqlstate, every, rest = "22023", 40, 7

    def inject(self, rig: Rig) -> None:
        self._before = letters(rig)
        self._since = time.time()
        fail_on_insert(rig.direct.database_url, self.sqlstate, when=f"NEW.log_offset % {self.every} = {self.rest}")

    def has_hit(self, rig: Rig) -> bool:
        return letters(rig) > self._before

    def repair(self, rig: Rig) -> None:
        fail_no_more(rig.direct.database_url)
        self.refusals.append(Refusal(self._since, time.time(), self.sqlstate, self.every, self.rest))

    def effect(self, rig: Rig) -> Effect:
        count = letters(rig) - self._before
        return Effect(count > 0, f"{count} dead letters")


def letters(rig: Rig, *, only_open: bool = False) -> int:
    """The number of dead letters; -1 if PostgreSQL does not answer."""
    try:
        with rig.database() as cursor:
            cursor.execute("SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL OR NOT %s", (only_open,))
            return int(cursor.fetchone()[0])
    except psycopg2.Error:
        return -1
