"""Events by day with much to do: a day is dropped beside long batches, and a look at many days locks none of them."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import psutil
import psycopg2
import pytest

from checks.testbed.database import ask
from checks.testbed.waiting import PATIENT_CONNECT_SECONDS, PATIENT_SINK_SECONDS, WAIT_SECONDS_MAX, wait_until
from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import SinkContentionError, SinkUnavailableError
from pipeline.retention import Expired, expire
from pipeline.settings import Settings
from pipeline.sink.migrate import PostgresSchema
from pipeline.sink.retention import PostgresRetention
from pipeline.sink.session import Row, Session

DAYS: Final = 30
SESSIONS: Final = 4
BATCH_SECONDS: Final = 1.0
# A drop holds up a batch for 0.9 s; PostgreSQL's timers are late on a busy machine. One that waited for its statement's
# end would take longer than this.
HELD_UP_SECONDS_MAX: Final = 8.0
_INSERT: Final = (
    "INSERT INTO log_events (event_id, correlation_id, severity, message, source, event_time, received_at, log_id, "
    "log_partition, log_offset) VALUES (%s, 'c', 'INFO', 'm', 's', now(), now(), 'other', 0, 0)"
)


@pytest.fixture
def owner(day_database_url: str) -> Settings:
    made = Settings(
        database_url=day_database_url,
        events_by_day=True,
        retention_days=DAYS,
        sink_call_seconds_max=PATIENT_SINK_SECONDS,
        sink_connect_seconds_max=PATIENT_CONNECT_SECONDS,
    )
    PostgresSchema(made).set_retention(event_days=DAYS, letter_days=None)
    return made


@pytest.fixture
def session(owner: Settings) -> Iterator[Session]:
    with contextlib.closing(Session(owner)) as made:
        yield made


def _expired_day(url: str) -> str:
    """Make a partition that expired as a whole; returns its name."""
    [(day,)] = ask(url, f"SELECT (date_trunc('day', now(), 'UTC') - interval '{24 * (DAYS + 1)} hours')::text")
    ask(
        url,
        "CREATE TABLE log_events_old PARTITION OF log_events "
        f"FOR VALUES FROM ('{day}') TO (timestamptz '{day}' + interval '24 hours')",
    )
    return "log_events_old"


def _is_there(url: str, table: str) -> bool:
    return ask(url, f"SELECT to_regclass('{table}') IS NOT NULL") == [(True,)]


class Batches:
    """Sessions that store without a pause, each batch for a second, and not at the same time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(SESSIONS)]
        self.counts = [0] * SESSIONS
        self.problems: list[BaseException] = []

    def __enter__(self) -> "Batches":
        for thread in self._threads:
            thread.start()
        try:
            wait_until(lambda: all(self.counts), "each session has stored a batch")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS_MAX)

    def _run(self, number: int) -> None:
        try:
            with contextlib.closing(psycopg2.connect(self._url)) as connection, connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = %s", (f"{HELD_UP_SECONDS_MAX}s",))
                cursor.execute("SELECT pg_sleep(%s)", (number * BATCH_SECONDS / SESSIONS,))
                connection.commit()
                while not self._ends.is_set():
                    cursor.execute(_INSERT, (f"{number}-{self.counts[number]}",))
                    cursor.execute("SELECT pg_sleep(%s)", (BATCH_SECONDS,))
                    connection.commit()
                    self.counts[number] += 1
        except psycopg2.Error as error:
            self.problems.append(error)


def test_a_day_is_dropped_beside_batches_that_always_run(owner: Settings, session: Session) -> None:
    # Given sessions of which at least one is storing at any moment
    url, retention = owner.database_url, PostgresRetention(session)
    gone = _expired_day(url)
    with Batches(url) as batches:
        # When ticks of retention come, as they do all the time
        deadline = time.monotonic() + 2 * WAIT_SECONDS_MAX
        ticks: list[Expired] = []
        while _is_there(url, gone) and time.monotonic() < deadline:
            ticks.append(expire(owner, retention, SystemClock(), is_behind=True))
        # Then one of them drops the day
        assert [name for tick in ticks for name in tick.days] == [gone], ticks
        stored = list(batches.counts)
        wait_until(lambda: all(now > then for now, then in zip(batches.counts, stored, strict=True)), "all go on")
    # And no batch waited for long
    assert batches.problems == []


def test_nobody_waits_longer_than_a_second_for_a_drop(owner: Settings) -> None:
    # A reader of all days waits until the drop gives up all of its locks, and each lock is waited for by itself
    [(text,)] = ask(owner.database_url, "SELECT pg_get_functiondef('drop_expired_day()'::regprocedure)")
    waits = [int(milliseconds) for milliseconds in re.findall(r"lock_timeout (?:=|TO) '(\d+)ms'", text)]
    assert len(waits) == text.count("lock_timeout") == text.count("LOCK TABLE") == 3
    assert sum(waits) <= 1000


def test_a_drop_does_not_hold_up_batches_for_a_transaction_that_stays(
    owner: Settings, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a reader of other days, whose transaction does not end
    url, retention = owner.database_url, PostgresRetention(session)
    gone = _expired_day(url)
    tried: list[str] = []
    rows = session.rows

    def noting(sql: str, *given: Any) -> list[Row]:
        tried.append(sql)
        return rows(sql, *given)

    monkeypatch.setattr(session, "rows", noting)

    def is_tried() -> bool:
        tried.clear()
        with pytest.raises((SinkContentionError, SinkUnavailableError), match="can't be dropped"):
            retention.drop_day()
        return any("drop_expired_day" in sql for sql in tried)

    with contextlib.closing(psycopg2.connect(url)) as reader, reader.cursor() as cursor:
        cursor.execute("LOCK TABLE ONLY log_events IN ACCESS SHARE MODE")
        # Then it is given up after some seconds, and not even tried
        wait_until(lambda: not is_tried(), "the drop is not tried any more")
        with pytest.raises(SinkUnavailableError, match=rf"more than 3 s \(pid {reader.info.backend_pid}\)"):
            retention.drop_day()
    # And when the reader is gone, the day goes
    wait_until(lambda: not psutil.pid_exists(reader.info.backend_pid), "the reader's session has ended")
    assert retention.drop_day() == (gone, 0)


def test_a_look_locks_no_day(owner: Settings, session: Session) -> None:
    # Given a table with the days to come and two more, and a clock
    _expired_day(owner.database_url)
    clock = ManualClock()
    retention = PostgresRetention(session, clock)

    def locked() -> set[str]:
        """The partitions that a tick of retention locks, without those of what it drops."""
        session.count("BEGIN")
        retention.facts()
        retention.delete_events(rows_max=10, since=None)
        retention.delete_ids(rows_max=10, since=None)
        found = session.rows(
            "SELECT DISTINCT relation::regclass::text FROM pg_locks JOIN pg_inherits ON relation = inhrelid "
            "WHERE inhparent = 'log_events'::regclass AND pid = pg_backend_pid()"
        )
        session.rollback()
        return {name for (name,) in found}

    [(today,)] = ask(owner.database_url, "SELECT 'log_events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')")
    # Then the first look searches the days that have begun for ids that are lost, and the next ones do not
    assert locked() == {"log_events_default", "log_events_old", today}
    assert locked() == {"log_events_default"}
    # And in some minutes they are searched again
    clock.advance(601)
    assert locked() == {"log_events_default", "log_events_old", today}
