"""Redis with TLS: the same for redis-py and Celery, verified in both; and Redis Cluster, which is refused."""

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX
from pipeline import wiring
from pipeline.errors import LogMisconfiguredError, LogUnavailableError, SettingsError, StoreUnavailableError
from pipeline.settings import Settings
from stack.config import environ_of
from stack.servers import LOOPBACK, Server, free_port, redis_server
from support.certificates import Authority, openssl_problem
from support.redis_tls import URL_PASSWORD, redis_tls_server, tls_program
from tasks.app import make_app


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]) -> Authority:
    problem = openssl_problem()
    if problem is None and tls_program() is None:
        problem = "there is no redis-server with TLS on the PATH (Debian: redis-tools)"
    if problem is not None:
        missing(problem)
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def servers(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Server]]:
    """The control server and, for True, the log's."""
    with contextlib.ExitStack() as stack:
        made = {}
        for is_log in (False, True):
            server = redis_tls_server(tmp_path_factory.mktemp("redis"), authority, is_log=is_log)
            stack.callback(server.stop)
            made[is_log] = server.start()
        yield made


@pytest.fixture
def secured(servers: dict[bool, Server], authority: Authority, database_url: str) -> Settings:
    return Settings(
        database_url=database_url,
        redis_url=servers[False].url,
        event_log_url=servers[True].url,
        redis_ca_file=str(authority.ca),
        append_seconds_max=5.0,
        ingest_port=free_port(),
    )


def reaches_broker(settings: Settings) -> None:
    """Connect as Celery does. Raises OperationalError."""
    with make_app(settings).connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=60)
        channel: Any = connection.default_channel
        channel.client.ping()


@pytest.mark.parametrize(
    ("changes", "host", "what"),
    [
        ({"redis_ca_file": ""}, LOOPBACK, "not signed by the CAs of this machine (.*): REDIS_CA_FILE must name"),
        ({"redis_ca_file": "other"}, LOOPBACK, r"not signed by REDIS_CA_FILE=.*other\.pem"),
        ({}, "localhost", "not valid for 'localhost': connect to a name that is in the certificate"),
    ],
)
def test_a_server_that_is_not_the_right_one_is_refused_by_both(
    secured: Settings, tmp_path: Path, changes: dict[str, Any], host: str, what: str
) -> None:
    if changes.get("redis_ca_file") == "other":
        changes = {"redis_ca_file": str(Authority(tmp_path, "other").ca)}
    urls = {name: getattr(secured, name).replace(LOOPBACK, host) for name in ("redis_url", "event_log_url")}
    wrong = dataclasses.replace(secured, **urls, **changes)
    with pytest.raises(LogUnavailableError, match=what):
        wiring.make_log(wrong).identity()
    with pytest.raises(StoreUnavailableError, match=what):
        wiring.make_control_store(wrong).state()
    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        reaches_broker(wrong)
    # And with the verification switched off by its name, all take it
    accepted = dataclasses.replace(wrong, redis_ca_file="", redis_tls_unverified=True)
    wiring.make_log(accepted).identity()
    wiring.make_control_store(accepted).state()
    reaches_broker(accepted)


def test_a_wrong_password_is_said_without_it(secured: Settings) -> None:
    wrong = dataclasses.replace(
        secured,
        redis_url=secured.redis_url.replace(URL_PASSWORD, "hunter2"),
        event_log_url=secured.event_log_url.replace(URL_PASSWORD, "hunter2"),
    )
    with pytest.raises(LogUnavailableError, match=": the user or the password of EVENT_LOG_URL is not accepted") as log:
        wiring.make_log(wrong).identity()
    with pytest.raises(
        StoreUnavailableError, match="refuses: the user or the password of REDIS_URL is not accepted"
    ) as store:
        wiring.make_control_store(wrong).state()
    assert "hunter2" not in f"{log.value} {store.value}"


@pytest.mark.usefixtures("shipped_limits")  # it is silent
def test_a_server_without_tls_is_named(secured: Settings, control_redis: Server) -> None:
    plain = dataclasses.replace(secured, redis_url=control_redis.url.replace("redis:", "rediss:"))
    with pytest.raises(StoreUnavailableError, match="it does not speak TLS there"):
        wiring.make_control_store(plain).state()


def test_a_clients_certificate_is_shown_by_all(secured: Settings, authority: Authority, tmp_path: Path) -> None:
    # Given a server that wants certificates
    server = redis_tls_server(tmp_path, authority, is_log=True, wants_certificate=True)
    try:
        server.start()
        without = dataclasses.replace(secured, event_log_url=server.url, redis_url=server.url)
        # Then a client without one reads what is missing
        with pytest.raises(
            (StoreUnavailableError, LogUnavailableError), match="see REDIS_CERT_FILE and REDIS_KEY_FILE"
        ):
            wiring.make_control_store(without).state()
        # And one with its own is taken, by Celery too
        client = authority.issue("client")
        files: dict[str, Any] = {"redis_cert_file": str(client.certificate), "redis_key_file": str(client.key)}
        for given in (files, {"redis_cert_file": str(client.both)}):
            settings = dataclasses.replace(without, **given)
            wiring.make_log(settings).identity()
            wiring.make_control_store(settings).state()
            reaches_broker(settings)
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["REDIS_URL", "EVENT_LOG_URL"])
def test_options_of_tls_in_a_url_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} has ssl_ca_certs and ssl_cert_reqs, .* use REDIS_CA_FILE"):
        Settings.from_environ({name: "rediss://:hunter2@h:1/0?ssl_cert_reqs=none&ssl_ca_certs=/x"})


def test_files_without_tls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="REDIS_TLS_UNVERIFIED only works with TLS, and neither REDIS_URL nor"):
        Settings(redis_tls_unverified=True)
    with pytest.raises(SettingsError, match=r"REDIS_CA_FILE='/nowhere\.pem' has no certificate: No such file"):
        Settings(redis_url="rediss://h", redis_ca_file="/nowhere.pem")


def test_a_redis_cluster_is_refused_by_name(settings: Settings, tmp_path: Path) -> None:
    plain = redis_server(tmp_path, free_port(), is_log=True, maxmemory="64mb")
    server = dataclasses.replace(
        plain, command=[*plain.command, "--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    )
    try:
        server.start()
        # A log on it can't be used, and says why
        with pytest.raises(LogMisconfiguredError, match="EVENT_LOG_URL is a Redis Cluster, which Sluice can't use"):
            wiring.make_log(dataclasses.replace(settings, event_log_url=server.url)).identity()
        # With a control store on it no process starts
        clustered = dataclasses.replace(settings, redis_url=server.url)
        worker = ["celery", "-A", "tasks.app", "worker", "-Q", "control", "--concurrency", "1"]
        for words, code in ((["ingest"], 2), (worker, 1)):
            ended = subprocess.run(
                [sys.executable, "-m", *words],
                env={"PATH": "/usr/bin:/bin", **environ_of(clustered)},
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=RUN_SECONDS_MAX,
            )
            assert ended.returncode == code
            assert "REDIS_URL is a Redis Cluster, which Sluice can't use" in ended.stderr
        # And one that became one later is named by each call
        with pytest.raises(StoreUnavailableError, match="REDIS_URL is a Redis Cluster"):
            wiring.make_control_store(clustered).state()
    finally:
        server.stop()
