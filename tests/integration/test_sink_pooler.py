"""Behind a real pgbouncer: a pool of sessions works, one that lends backends for a transaction is refused by name."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checks.testbed.database import ask
from checks.testbed.pooler import pgbouncer_program, pooled
from checks.testbed.processes import ROOT
from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.errors import SinkMisconfiguredError
from pipeline.ports.event_sink import StoreResult
from pipeline.settings import Settings
from pipeline.sink.migrate import _LOCK_KEY, migrate, migrations
from pipeline.sink.postgres import PostgresSink
from stack.config import environ_of, environ_with, free_ports
from stack.servers import Server
from stack.system import SystemFolder
from support.control import eventually
from support.records import batch, new_log_id, nothing, record
from support.sinks import sink_settings

LOG = new_log_id()
LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.fixture
def pool(
    request: pytest.FixtureRequest, missing: Callable[[str], None], tmp_path: Path, database_url: str
) -> Iterator[Settings]:
    program = pgbouncer_program()
    if program is None:
        missing("there is no pgbouncer")
        raise AssertionError
    with pooled(program, tmp_path / "pgbouncer", database_url, request.param) as url:
        yield sink_settings(url)


@pytest.mark.parametrize("pool", ["transaction", "statement"], indirect=True)
def test_a_pool_that_lends_backends_is_refused(pool: Settings, database_url: str) -> None:
    # Given a pooler that gives each transaction or statement another backend, and other users of it
    with contextlib.closing(PostgresSink(pool)) as sink:
        for call in (lambda: migrate(pool), sink.probe, lambda: sink.acquire(LOG, 0), sink.probe):
            # Then a start and every call are refused by name
            with pytest.raises(SinkMisconfiguredError, match="pool_mode=session"):
                call()
    # And nothing stays behind on its backends, so that a start without the pooler works at once
    eventually(lambda: ask(database_url, LOCKS) == [(0,)], seconds_max=30)  # less than a pooler keeps an idle backend
    assert migrate(sink_settings(database_url)) == [one.name for one in migrations()]


@pytest.mark.parametrize("pool", ["session"], indirect=True)
def test_a_pool_of_sessions_works(pool: Settings) -> None:
    # Given two starts and two sinks through the pooler
    assert migrate(pool) == [one.name for one in migrations()]
    assert migrate(pool) == []
    with contextlib.closing(PostgresSink(pool)) as one, contextlib.closing(PostgresSink(pool)) as two:
        # Then a partition has one drainer, both ways of storing work, and the next one gets it
        assert one.acquire(LOG, 0)
        assert not two.acquire(LOG, 0)
        one.store(LOG, 0, 0, batch(0, [record(1)]), before_commit=nothing)
        result = one.store(LOG, 0, 1, batch(1, [record(1), record(2)]), before_commit=nothing)
        assert result == StoreResult(stored=1, repeated=1)
        one.close()
        eventually(lambda: two.acquire(LOG, 0))
        assert two.stored_offsets(LOG) == {0: 3}


def test_a_start_that_waits_for_a_lock_ends_on_sigterm_at_once(database_url: str) -> None:
    # Given a lock of migrations that nobody gives back
    import psycopg2

    with contextlib.closing(psycopg2.connect(database_url)) as holder:
        holder.cursor().execute("SELECT pg_advisory_lock(%s)", (_LOCK_KEY,))
        code = (
            "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
            "from pipeline.settings import Settings; from pipeline.sink.migrate import migrate\n"
            "print('waits', flush=True); migrate(Settings.from_environ())"
        )
        environ = environ_of(sink_settings(database_url))
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environ, stdout=subprocess.PIPE) as start:
            assert start.stdout is not None
            start.stdout.readline()
            eventually(lambda: _asked(database_url))
            # When it is told to end, then it does
            start.terminate()
            assert start.wait(WAIT_SECONDS_MAX) == 7


def test_a_start_of_the_whole_system_that_waits_for_a_lock_ends_on_sigterm_at_once(
    database_url: str, control_redis: Server, log_redis: Server, tmp_path: Path
) -> None:
    # Given the same lock, and a start of a system on servers of the user's
    import psycopg2

    home = tmp_path / "home"
    given = Settings(database_url=database_url, redis_url=control_redis.url, event_log_url=log_redis.url)
    environ = {**environ_with(given), **free_ports(), "SLUICE_HOME": str(home), "PROMETHEUS": "no"}
    with contextlib.closing(psycopg2.connect(database_url)) as holder:
        holder.cursor().execute("SELECT pg_advisory_lock(%s)", (_LOCK_KEY,))
        with subprocess.Popen(
            [sys.executable, "-m", "stack", "--detach"], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
        ) as start:
            try:
                eventually(lambda: _asked(database_url))
                # When it is told to end, then it does, and stops what it had started
                start.terminate()
                said = start.communicate(timeout=WAIT_SECONDS_MAX)[1]
            finally:
                start.kill()
                stopped_afterwards = SystemFolder(home).stop()
    assert said.splitlines()[-1] == "run.sh: interrupted while starting; everything is stopped again"
    assert start.returncode == 1
    assert not stopped_afterwards


def _asked(database_url: str) -> bool:
    """Whether a session of ours has asked for the lock."""
    found = ask(
        database_url, "SELECT count(*) FROM pg_stat_activity WHERE application_name ^@ 'sluice' AND query <> ''"
    )
    return bool(found[0][0])
