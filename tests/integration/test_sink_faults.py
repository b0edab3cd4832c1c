"""PostgreSQL killed and frozen at every point of a call: it fails in time, and nothing is stored twice or in part."""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import psutil
import psycopg2
import pytest

from checks.testbed.database import ask, stored_ids
from checks.testbed.waiting import BUSY_SECONDS, least_seconds
from pipeline.errors import SinkUnavailableError
from pipeline.ports.event_sink import StoreResult
from pipeline.ports.log import LogBatch
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from stack.servers import Server
from support.control import eventually
from support.records import batch, new_log_id, nothing, numbered_batch, record
from support.sinks import sink_settings

LOG = new_log_id()
SILENCE_SECONDS = 0.5  # instead of 2, to be quick; where PostgreSQL answers, a busy machine may need another try
HASTY_SECONDS = 2.0
T = TypeVar("T")


class Interrupted(list[bytes]):
    """Records of which one takes something that happens to PostgreSQL with it, in the midst of the COPY."""

    def __init__(self, values: list[bytes], at: int, happens: Callable[[], None]) -> None:
        super().__init__(values)
        self._at = at
        self._happens = happens

    def __iter__(self) -> Iterator[bytes]:
        for index, value in enumerate(super().__iter__()):
            if index == self._at:
                self._happens()
            yield value


@pytest.fixture
def sink(database_url: str) -> Iterator[PostgresSink]:
    settings = sink_settings(database_url)
    migrate(settings)
    ours = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name ^@ 'sluice'"
    eventually(lambda: ask(database_url, ours) == [])  # the session of the migration has ended
    with contextlib.closing(PostgresSink(settings)) as made:
        yield made


def _terminate_others(database_url: str) -> None:
    ended = ask(
        database_url,
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name ^@ 'sluice'",
    )
    assert ended == [(True,)]


def test_a_backend_killed_in_the_copy(sink: PostgresSink, database_url: str) -> None:
    # Given a COPY of several chunks whose backend ends after some of them
    values = [record(number, message="x" * 1000) for number in range(1000)]
    interrupted = LogBatch(0, Interrupted(values, 700, lambda: _terminate_others(database_url)))
    with pytest.raises(SinkUnavailableError):
        sink.store(LOG, 0, 0, interrupted, before_commit=nothing)
    # Then nothing is stored, and the next try makes another connection
    assert stored_ids(database_url) == []
    assert sink.stored_offsets(LOG) == {}
    assert sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing) == StoreResult(stored=1000)


def test_a_backend_killed_before_the_commit(sink: PostgresSink, database_url: str) -> None:
    # Given a backend that ends once everything is written
    with pytest.raises(SinkUnavailableError):
        sink.store(LOG, 0, 0, numbered_batch(0, 5), before_commit=lambda: _terminate_others(database_url))
    # Then nothing is stored
    assert stored_ids(database_url) == []
    assert sink.stored_offsets(LOG) == {}


def test_a_backend_killed_between_calls_takes_the_lock_with_it(sink: PostgresSink, database_url: str) -> None:
    # Given a partition that is held
    assert sink.acquire(LOG, 0)
    _terminate_others(database_url)
    # When the connection is found dead
    with pytest.raises(SinkUnavailableError):
        sink.stored_offsets(LOG)
    # Then the sink does not believe that it still holds the partition
    with contextlib.closing(PostgresSink(sink._settings)) as other:
        assert other.acquire(LOG, 0)
        assert not sink.acquire(LOG, 0)


@contextlib.contextmanager
def _limited(database_url: str, setting: str, limit: str) -> Iterator[PostgresSink]:
    """A sink whose user has a time-out of the server's. It holds a partition, as a drain does."""
    role = f"r{uuid.uuid4().hex}"
    migrate(sink_settings(database_url))
    ask(database_url, f"CREATE ROLE {role} LOGIN")
    try:
        ask(database_url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        ask(database_url, f"ALTER ROLE {role} SET {setting} = '{limit}'")
        settings = sink_settings(database_url.replace("//sluice@", f"//{role}@"))
        with contextlib.closing(PostgresSink(settings)) as made:
            yield made
    finally:
        ask(database_url, f"DROP OWNED BY {role}")
        ask(database_url, f"DROP ROLE {role}")


def _await_end(pid: int) -> None:
    # Its process, not its row of pg_stat_activity: that is gone before the socket is closed
    eventually(lambda: not psutil.pid_exists(pid))


def test_a_session_that_idled_in_its_transaction_for_too_long_is_no_rows_fault(database_url: str) -> None:
    # Given a DBA's limit for transactions that wait, and a control store that is slower than that
    with _limited(database_url, "idle_in_transaction_session_timeout", "1s") as sink:
        pid = sink.session.rows("SELECT pg_backend_pid()")[0][0]
        # When one record is stored, then its session is lost, and nobody looks for a culprit
        with pytest.raises(SinkUnavailableError, match=r"ended the session: .*idle-in-transaction timeout") as caught:
            sink.store(LOG, 0, 0, numbered_batch(0, 1), before_commit=lambda: _await_end(pid))
        assert not caught.value.is_a_row_possible
    assert stored_ids(database_url) == []


def test_a_session_that_idled_for_too_long_is_no_rows_fault(database_url: str) -> None:
    # Given a DBA's limit for sessions without work, shorter than the time between two batches
    # (and long enough for the statements of a connection, on a busy machine)
    with _limited(database_url, "idle_session_timeout", "1s") as sink:

        def store_late() -> None:
            _await_end(sink.session.rows("SELECT pg_backend_pid()")[0][0])
            sink.store(LOG, 0, 0, numbered_batch(0, 1), before_commit=nothing)

        with pytest.raises(SinkUnavailableError, match=r"ended the session: .*idle-session timeout") as caught:
            store_late()
        assert not caught.value.is_a_row_possible


# --- locked and slow -------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(database_url: str) -> Iterator[PostgresSink]:
    """A sink with little patience."""
    settings = sink_settings(database_url)
    migrate(settings)
    with contextlib.closing(PostgresSink(replace(settings, sink_call_seconds_max=HASTY_SECONDS))) as made:
        yield made


def _answered(call: Callable[[], T]) -> T:
    """What `call` returns of a server that answers: on a busy machine, a sink with little patience asks again."""
    found: list[T] = []

    def is_answered() -> bool:
        with contextlib.suppress(SinkUnavailableError):
            found.append(call())
        return bool(found)

    eventually(is_answered)
    return found[0]


def _held_locks(database_url: str) -> list[tuple[object, ...]]:
    return ask(
        database_url,
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )


@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "SHARE"])
def test_a_locked_table_is_named_with_who_holds_it(hasty: PostgresSink, database_url: str, mode: str) -> None:
    # Given somebody who has locked the table, as maintenance or CREATE INDEX does
    with contextlib.closing(psycopg2.connect(database_url, application_name="ann's psql")) as other:
        other.cursor().execute(f"LOCK TABLE log_events IN {mode} MODE")
        pid = other.info.backend_pid
        for call in (lambda: hasty.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing), hasty.probe):
            assert _answered(lambda: hasty.acquire(LOG, 0))
            # When something is to be stored
            started = time.monotonic()
            with pytest.raises(SinkUnavailableError) as caught:
                call()
            # Then it fails in time, and says what it waited for: no row can be the cause
            assert time.monotonic() - started < 2 * HASTY_SECONDS + 2 * BUSY_SECONDS
            said = str(caught.value)
            assert f"pid {pid} (ann's psql) has {mode.title().replace(' ', '')}Lock on log_events since" in said
            assert "idle in its transaction: LOCK TABLE log_events" in said
            assert not caught.value.is_a_row_possible
            # And nobody is left who waits for it and keeps the partition
            eventually(lambda: _held_locks(database_url) == [])
        other.rollback()  # the end of a session takes PostgreSQL a moment
    stored = _answered(lambda: hasty.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing))
    assert stored == StoreResult(stored=3)


def test_a_backend_that_is_given_up_while_it_works_ends_and_frees_the_partition(
    hasty: PostgresSink, database_url: str
) -> None:
    # Given a partition that is held, and a statement that takes for ever
    assert _answered(lambda: hasty.acquire(LOG, 0))
    with pytest.raises(SinkUnavailableError, match="silent"):
        hasty.session.rows("SELECT pg_sleep(60)")
    # Then the server ends it soon, though nothing was told to it
    eventually(lambda: _held_locks(database_url) == [])


def test_why_a_partition_stands_still(hasty: PostgresSink, database_url: str) -> None:
    # Given a partition that nobody holds: PostgreSQL knows no reason
    assert _answered(lambda: hasty.why_not_stored(LOG, 0)) is None
    with contextlib.closing(PostgresSink(sink_settings(database_url))) as drainer:
        assert drainer.acquire(LOG, 0)
        pid = drainer.session.rows("SELECT pg_backend_pid()")[0][0]
        # When its drain is at work, then that is said
        said = _answered(lambda: hasty.why_not_stored(LOG, 0))
        assert said == f"its drain (pid {pid} in PostgreSQL, from 127.0.0.1) is at work and stores nothing: " + (
            "its worker's log says why"
        )
        # And when it waits for a lock, who has that
        with contextlib.closing(psycopg2.connect(database_url, application_name="ann's psql")) as other:
            other.cursor().execute("LOCK TABLE log_events IN SHARE MODE")
            said = _answered(lambda: hasty.why_not_stored(LOG, 0))
            assert said is not None
            assert f"waits for a lock: pid {other.info.backend_pid} (ann's psql) has ShareLock on log_events" in said
    # And when its worker is frozen, since when
    locks = "SELECT count(*) FROM pg_locks WHERE relation = 'log_events'::regclass AND mode = 'ShareLock'"
    eventually(lambda: ask(database_url, locks) == [(0,)])  # the session that held it ends on its own
    monkey = hasty.session.rows
    hasty.session.rows = lambda sql, parameters=None: (  # type: ignore[method-assign]
        [(7, "10.0.0.1", "idle in transaction", "Client", 31.0)] if "state_change" in sql else monkey(sql, parameters)
    )
    assert _answered(lambda: hasty.why_not_stored(LOG, 0)) == (
        "its drain (pid 7 in PostgreSQL, from 10.0.0.1) has asked nothing for 31 s: its worker is frozen or cut off"
    )


# --- frozen ---------------------------------------------------------------------------------------------------


class Frozen:
    """A private PostgreSQL, and a sink on it with little patience."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.patient = sink_settings(server.url)
        self.settings = replace(self.patient, sink_call_seconds_max=SILENCE_SECONDS, sink_connect_seconds_max=1)
        migrate(self.patient)
        self.sink = PostgresSink(self.settings)

    def fails(self, call: Callable[[], object]) -> float:
        """`call` raises SinkUnavailableError in time; returns how long that took."""
        started = time.monotonic()
        with pytest.raises(SinkUnavailableError):
            call()
        seconds = time.monotonic() - started
        assert seconds < SILENCE_SECONDS + 2 * BUSY_SECONDS
        return seconds

    def answers(self, call: Callable[[], object]) -> object:
        """What `call` returns, of a server that answers."""
        return _answered(call)

    def thaw(self) -> None:
        """Thaw, and wait until the backends have noticed that nobody waits for them any more."""
        self.server.thaw()
        eventually(
            lambda: (
                ask(self.settings.database_url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
            )
        )


@pytest.fixture
def frozen(own_postgres: Server) -> Iterator[Frozen]:
    made = Frozen(own_postgres)
    yield made
    own_postgres.thaw()
    made.sink.close()


def test_every_call_to_a_frozen_server_fails_in_time(frozen: Frozen) -> None:
    # Given a sink with a connection, and one without
    sink, server = frozen.sink, frozen.server
    unconnected = PostgresSink(frozen.settings)
    calls: list[Callable[[], object]] = [
        lambda: sink.stored_offsets(LOG),
        lambda: sink.acquire(LOG, 1),
        sink.probe,
        lambda: sink.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing),
        lambda: sink.end_stalled_drain(LOG, 0, quiet_seconds=0),
    ]
    for call in calls:
        assert frozen.answers(lambda: sink.acquire(LOG, 0))
        # When the server is frozen
        server.freeze()
        # Then the call fails in time, so does the next, which has to connect, and giving up the lock raises nothing
        frozen.fails(call)
        frozen.fails(unconnected.probe)
        sink.release(LOG, 0)
        # And all is well once it is thawed
        frozen.thaw()
    stored = frozen.answers(lambda: sink.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing))
    assert stored == StoreResult(stored=3)
    unconnected.close()


def test_release_on_a_frozen_server_ends_in_time(frozen: Frozen) -> None:
    assert frozen.answers(lambda: frozen.sink.acquire(LOG, 0))
    frozen.server.freeze()
    started = time.monotonic()
    frozen.sink.release(LOG, 0)
    assert time.monotonic() - started < SILENCE_SECONDS + 2 * BUSY_SECONDS


def test_a_server_frozen_in_the_copy(frozen: Frozen) -> None:
    # Given a COPY that is larger than what sockets hold, and a server that freezes in the midst of it
    values = [record(number, message="x" * 60_000) for number in range(400)]
    interrupted = LogBatch(0, Interrupted(values, 50, frozen.server.freeze))
    frozen.fails(lambda: frozen.sink.store(LOG, 0, 0, interrupted, before_commit=nothing))
    # Then nothing is stored
    frozen.thaw()
    assert stored_ids(frozen.settings.database_url) == []


def test_a_server_frozen_at_the_commit(frozen: Frozen) -> None:
    # Given a server that freezes once everything is written
    sink = frozen.sink
    frozen.fails(lambda: sink.store(LOG, 0, 0, numbered_batch(0, 5), before_commit=frozen.server.freeze))
    frozen.thaw()
    # Then all of it is stored (COMMIT was waiting in the socket) or nothing, and the offset says which
    offsets = frozen.answers(lambda: sink.stored_offsets(LOG))
    stored = stored_ids(frozen.settings.database_url)
    assert (len(stored), offsets) in [(0, {}), (5, {0: 5})]


def test_a_copy_that_makes_progress_is_not_silence(frozen: Frozen) -> None:
    # Given a COPY that lasts longer than the silence allowed, with signs of life in between
    values = [record(number, message="x" * 60_000) for number in range(12)]

    class Slow(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            for value in super().__iter__():
                threading.Event().wait(HASTY_SECONDS / 10)
                yield value

    # Then it is stored
    with contextlib.closing(PostgresSink(replace(frozen.patient, sink_call_seconds_max=HASTY_SECONDS))) as sink:
        result = sink.store(LOG, 0, 0, LogBatch(0, Slow(values)), before_commit=nothing)
    assert result == StoreResult(stored=12)


def test_a_killed_server_and_its_return(frozen: Frozen) -> None:
    # Given a server that is killed while a partition is held
    sink = frozen.sink
    assert frozen.answers(lambda: sink.acquire(LOG, 0))
    with contextlib.closing(PostgresSink(frozen.patient)) as first:
        first.store(LOG, 0, 0, numbered_batch(0, 2), before_commit=nothing)
    frozen.server.kill()
    frozen.fails(lambda: sink.store(LOG, 0, 2, numbered_batch(2, 2), before_commit=nothing))
    frozen.fails(sink.probe)
    # When it is back, then the sink is too
    frozen.server.start()
    assert frozen.answers(lambda: sink.acquire(LOG, 0))
    assert frozen.answers(lambda: sink.stored_offsets(LOG)) == {0: 2}
    stored = frozen.answers(lambda: sink.store(LOG, 0, 2, numbered_batch(2, 2), before_commit=nothing))
    assert stored == StoreResult(stored=2)


def test_the_default_patience_is_two_seconds(frozen: Frozen) -> None:
    # Given the default settings
    defaults = Settings()
    patient = PostgresSink(
        replace(
            frozen.settings,
            sink_call_seconds_max=defaults.sink_call_seconds_max,
            sink_connect_seconds_max=defaults.sink_connect_seconds_max,
        )
    )
    with contextlib.closing(patient):

        def is_well() -> bool:
            with contextlib.suppress(SinkUnavailableError):
                patient.probe()
                return True
            return False

        def slower_of_two() -> float:
            frozen.server.thaw()
            eventually(is_well)
            frozen.server.freeze()
            return max(frozen.fails(patient.probe), frozen.fails(patient.probe))

        # Then a call, and connecting anew, each fail within 2.5 s: five of them open the breaker within 12 s
        assert least_seconds(slower_of_two, below=2.5) < 2.5
