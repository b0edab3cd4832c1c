"""A PostgreSQL that allows fewer sessions than a system uses is named, with what to set, and drains do not start."""

import contextlib
import logging
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from checks.testbed.database import ask
from checks.testbed.processes import batches_worker, control_worker
from checks.testbed.waiting import eventually, wait_until
from pipeline import wiring
from pipeline.errors import SinkMisconfiguredError, StoreUnavailableError
from pipeline.names import AlarmCode, Severity
from pipeline.ports.control import Alarm
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from pipeline.sink.sessions import check_sessions, read_limits, session_problem
from support.sinks import sink_settings

# 6 processes for batches, 2 for control, 3 for moments
FOUR = sink_settings("postgresql://of-each-test", log_partitions=4)


@contextlib.contextmanager
def _user(database_url: str, limit: int) -> Iterator[str]:
    """A user that is no superuser, with a limit; yields its name and its URL."""
    name = f"r{uuid.uuid4().hex}"
    ask(database_url, f"CREATE ROLE {name} LOGIN CONNECTION LIMIT {limit}")
    ask(database_url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")
    try:
        yield database_url.replace("//sluice@", f"//{name}@")
    finally:
        ask(database_url, f"DROP OWNED BY {name}")
        ask(database_url, f"DROP ROLE {name}")


def test_limits_of_user_and_database(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    migrate(sink_settings(database_url))
    with _user(database_url, 7) as url:
        settings, name = replace(FOUR, database_url=url), read_limits(replace(FOUR, database_url=url)).user
        # Given a user that may have fewer sessions than the processes have
        assert f"ALTER ROLE {name} CONNECTION LIMIT 11" in str(session_problem(settings, own_processes=6))
        with pytest.raises(SinkMisconfiguredError, match="at most 7 sessions"):
            check_sessions(settings)
        # When it may have one more, operators may find none: one line
        ask(database_url, f"ALTER ROLE {name} CONNECTION LIMIT 8")
        with caplog.at_level(logging.WARNING):
            check_sessions(settings)
        assert len([line for line in caplog.records if "at most 8 sessions" in line.message]) == 1
        # And with what the line says, nothing is wrong, unless the database has a limit
        ask(database_url, f"ALTER ROLE {name} CONNECTION LIMIT 11")
        caplog.clear()
        check_sessions(settings)
        assert not caplog.records
        database = database_url.rpartition("/")[2]
        ask(database_url, f"ALTER DATABASE {database} CONNECTION LIMIT 4")
        assert f"ALTER DATABASE {database} CONNECTION LIMIT 11" in str(session_problem(settings, own_processes=0))


def test_max_connections_and_what_is_reserved(database_url: str) -> None:
    [(most, reserved)] = ask(
        database_url,
        "SELECT current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int",
    )
    migrate(sink_settings(database_url))
    with _user(database_url, -1) as url:
        free = most - reserved
        fitting = sink_settings(url, log_partitions=256, drains_max=free - 2 - 2 - 3)
        assert session_problem(fitting, own_processes=0) is None
        # With more drains than that, the server's own limit is named
        many = replace(fitting, drains_max=free)
        assert f"at most {free} sessions (max_connections {most} less {reserved} reserved)" in str(
            session_problem(many, own_processes=0)
        )
        # A worker with more processes than its settings need counts with all of them
        assert session_problem(fitting, own_processes=free) is not None
    # A superuser has the reserved ones too
    assert read_limits(sink_settings(database_url)).allowed == most


def test_a_worker_for_batches_does_not_start(settings: Settings, database_url: str, tmp_path: Path) -> None:
    migrate(sink_settings(database_url))
    with _user(database_url, 7) as url:
        few = replace(settings, database_url=url, log_partitions=4)
        worker = batches_worker(few, tmp_path).start()
        try:
            wait_until(lambda: not worker.is_running, "it has ended")
        finally:
            worker.stop(seconds_max=0.1)
    [line] = [line for line in worker.log().splitlines() if "this worker ends" in line]
    assert "it allows at most 7 sessions" in line
    assert "CONNECTION LIMIT 11" in line
    assert " ready." not in worker.log()


def test_the_control_worker_starts_and_names_it(settings: Settings, database_url: str, tmp_path: Path) -> None:
    migrate(sink_settings(database_url))
    store, found = wiring.make_control_store(settings), list[Alarm]()

    def is_named() -> bool:
        rate = store.state().rate
        found[:] = [] if rate is None else [one for one in rate.alarms if one.code == AlarmCode.FEW_SESSIONS]
        return bool(found)

    # Given a user that may have too few sessions for all processes, and enough for control
    with _user(database_url, 7) as url:
        worker = control_worker(replace(settings, database_url=url, log_partitions=4), tmp_path).start()
        try:
            # When the control worker starts, then it publishes a rate, and health has the reason by its name
            eventually(is_named, "it is named", passing=(StoreUnavailableError,))
        finally:
            worker.stop()
    [alarm] = found
    assert alarm.severity is Severity.DEGRADED
    for word in ("Workers for batches do not start", "at most 7 sessions", "CONNECTION LIMIT 11"):
        assert word in alarm.what
    [line] = [line for line in worker.log().splitlines() if "CRITICAL" in line and "at most 7 sessions" in line]
    assert "this worker starts" in line
