"""PostgreSQL as DATABASE_URL can say it: TLS and SCRAM, several hosts, and a user with few rights."""

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from checks.testbed.database import ask
from checks.testbed.postgres_pair import wait_replayed
from checks.testbed.processes import ROOT
from checks.testbed.waiting import BUSY_SECONDS, RUN_SECONDS_MAX, least_seconds, wait_until
from pipeline.errors import SchemaError, SinkMisconfiguredError, SinkUnavailableError
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.rights import RIGHTS, grants
from stack.config import environ_with
from stack.servers import LOOPBACK, Server
from support.certificates import Authority, openssl_problem
from support.postgres_links import OWNER_URL_PASSWORD, Pair, primary_and_standby, tls_postgres, tls_programs
from support.records import new_log_id, nothing, numbered_batch
from support.sinks import sink_settings

LOG = new_log_id()
APP_PASSWORD, APP_URL_PASSWORD = "äpp;' p@/", "%C3%A4pp%3B%27%20p%40%2F"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]) -> Authority:
    problem = openssl_problem()
    if problem is None and tls_programs() is None:
        problem = "there is no PostgreSQL with TLS in /usr/lib/postgresql (Debian: postgresql)"
    if problem is not None:
        missing(problem)
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tls_postgres(tmp_path_factory.mktemp("postgres"), authority) as running:
        yield running


def verified(url: str, authority: Authority) -> str:
    return f"{url}?sslmode=verify-full&sslrootcert={authority.ca}"


def run_migrate(settings: Settings) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "migrate"],
        env=environ_with(settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS_MAX,
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("ca", "other"), "certificate verify failed"),
        ((LOOPBACK, "localhost"), 'server certificate for "127.0.0.1" .*does not match host name "localhost"'),
        ((OWNER_URL_PASSWORD, "hunter2"), 'password authentication failed for user "owner"'),
        (("verify-full", "disable"), "no pg_hba.conf entry .* no encryption"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(
    server: Server, authority: Authority, tmp_path: Path, change: tuple[str, str], what: str
) -> None:
    url = verified(server.url, authority)
    old, new = (str(authority.ca), str(Authority(tmp_path).ca)) if change[0] == "ca" else change
    with (
        contextlib.closing(
            PostgresSink(Settings(database_url=url.replace(old, new), sink_connect_seconds_max=20))
        ) as sink,
        pytest.raises(SinkMisconfiguredError, match=what) as raised,  # an operator must change something
    ):
        sink.probe()
    assert "hunter2" not in str(raised.value)
    assert OWNER_URL_PASSWORD not in str(raised.value)


def test_a_user_without_rights_reads_what_to_run(server: Server, authority: Authority) -> None:
    # Given a user who may connect and do no more
    role = f"r{os.urandom(4).hex()}"
    owner_url = verified(server.url, authority)
    name = f"d{os.urandom(4).hex()}"
    ask(owner_url, f"CREATE DATABASE {name}")
    ask(owner_url, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    url = verified(f"postgresql://{role}:x@{LOOPBACK}:{server.port}/{name}", authority)
    # Then its migration says whose it is
    with pytest.raises(SchemaError, match=r"permission denied .*; run `python -m pipeline migrate` with MIGRATE_DATA"):
        migrate(Settings(database_url=url, sink_connect_seconds_max=10))
    # And a migration that can't make a role, or names none, says so
    asked = Settings(
        database_url=url,
        migrate_database_url=owner_url.replace("/postgres?", f"/{name}?"),
        sink_connect_seconds_max=10,
    )
    assert run_migrate(asked).returncode == 0
    without = run_migrate(replace(asked, database_url=url.replace(f"{role}:x@", "nobody@")))
    assert without.returncode == 1
    assert (
        "there is no role nobody, and DATABASE_URL has no password for it: CREATE ROLE nobody LOGIN" in without.stderr
    )
    other = replace(asked, database_url=url.replace(role, "other"), migrate_database_url=url)
    refused = run_migrate(other)
    assert refused.returncode == 1
    assert "the role other can't get its rights: permission denied to create role" in refused.stderr


def test_the_rights_are_of_all_tables_and_the_page_lists_them(database_url: str) -> None:
    migrate(sink_settings(database_url))
    tables = ask(database_url, "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = "
                 "current_schema()::regnamespace AND NOT relispartition")  # fmt: skip
    assert {name for (name,) in tables} == set(RIGHTS), "a new table: pipeline/sink/rights.py lists who may do what"
    page = (ROOT / "docs" / "links.md").read_text()
    for statement in grants("sluice_app", database="sluice", schema="public"):
        assert f"{statement};".replace('"', "") in page


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with primary_and_standby(tmp_path_factory.mktemp("pair")) as running:
        yield running


def test_of_several_hosts_the_one_that_takes_writes_is_used_and_another_after_it(pair: Pair) -> None:
    # Given two hosts, the first of which is a standby
    settings = sink_settings(pair.url)
    migrate(settings)
    with contextlib.closing(PostgresSink(settings)) as sink:
        sink.store(LOG, 0, 0, numbered_batch(0, 10), before_commit=nothing)
        wait_replayed(pair.primary, pair.standby)
        # When the primary is gone, and the standby has taken its place
        pair.primary.kill()
        with pytest.raises(SinkUnavailableError):
            sink.store(LOG, 0, 10, numbered_batch(10, 10), before_commit=nothing)
        pair.promote()

        def stores() -> bool:
            try:
                sink.store(LOG, 0, 10, numbered_batch(10, 10), before_commit=nothing)
            except SinkUnavailableError:
                return False
            return True

        # Then the same process goes on there
        wait_until(stores, "it stores again")
        assert sink.stored_offsets(LOG) == {0: 20}
    assert ask(pair.standby.url, "SELECT count(*) FROM log_events") == [(20,)]
    # And a first host that is silent costs its time to connect, and no more
    pair.primary.start()
    pair.primary.freeze()
    try:
        host_first = pair.url.replace(str(pair.standby.port), "X").replace(str(pair.primary.port), "Y")
        host_first = host_first.replace("X", str(pair.primary.port)).replace("Y", str(pair.standby.port))

        def seconds_to_ask() -> float:
            started = time.monotonic()
            with contextlib.closing(PostgresSink(Settings(database_url=host_first))) as sink:
                try:
                    assert sink.stored_offsets(LOG) == {0: 20}
                except SinkUnavailableError:  # the other one was too busy for its time
                    return math.inf
            return time.monotonic() - started

        in_time = 2 * Settings().sink_connect_seconds_max + BUSY_SECONDS
        assert least_seconds(seconds_to_ask, below=in_time) < in_time
    finally:
        pair.primary.thaw()
