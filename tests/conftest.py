"""Real servers for the tests: shared ones, and private ones for tests that kill or freeze theirs."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import redis

from checks.testbed.clocks import SteppableClock, fake_time_library
from checks.testbed.database import create_database, drop_database
from checks.testbed.waiting import (
    PATIENT_APPEND_SECONDS,
    PATIENT_CONNECT_SECONDS,
    PATIENT_SINK_SECONDS,
    wait_until,
)
from pipeline.settings import Settings
from pipeline.sink.migrate import PostgresSchema, migrate
from stack.servers import (
    Server,
    ServerError,
    free_port,
    kafka_is_possible,
    kafka_server,
    keep_to_own_ports,
    postgres_server,
    redis_server,
)
from support.certificates import openssl_problem
from support.groups import (
    SHARED_KAFKA,
    SharedServer,
    put_longest_first,
    pytest_runtest_teardown,
    pytest_xdist_make_scheduler,
)
from support.kafka_secured import SecuredKafka, secured
from support.lean import LEAN
from support.patience import be_patient, shipped_limits

__all__ = ["pytest_runtest_teardown", "pytest_xdist_make_scheduler", "shipped_limits"]

# A machine under load is no reason to fail; in CI the same examples each time, elsewhere ever new ones.
hypothesis.settings.register_profile("sluice", deadline=None, derandomize=os.environ.get("CI") == "true")
hypothesis.settings.load_profile("sluice")

# Every Kafka of the tests is short-lived: to compile its code twice would cost more than it brings.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")


def pytest_configure(config: pytest.Config) -> None:
    # Hundreds of Celery's programs and Sluice's are short-lived too: a sixth of their start is for what they never use.
    # The process that only starts those that run the tests must not give them this: they import all of it.
    runs_tests = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if runs_tests:
        be_patient()
        given = getattr(config, "workerinput", {"workerid": "gw0", "workercount": 1})
        keep_to_own_ports(int(given["workerid"].removeprefix("gw")), given["workercount"])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(LEAN)]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--outage-seconds", default="0", help="how long servers stay away in tests/e2e (default: until it was noticed)"
    )
    parser.addoption(
        "--many-partitions-on",
        default="redis",
        choices=("redis", "kafka-python", "confluent"),
        help="log of test_many_partitions.py: on Kafka, with one of its clients, it sends 25 times as many events",
    )
    parser.addoption("--page-images", default="", help="folder for pictures of the live page; tests/e2e/test_page.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    put_longest_first(items)


def _must_run_everything() -> bool:
    return os.environ.get("CI") == "true"


def _skip(reason: str) -> None:
    """Skip for want of a server on a laptop; fail in CI, where nothing may be wanting."""
    if _must_run_everything():
        pytest.fail(f"with CI=true everything must run: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def missing() -> Callable[[str], None]:
    """Skips a test for want of a program, and fails it in CI; to be told what is missing."""
    return _skip


@contextlib.contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def control_redis(server_home: Path) -> Iterator[Server]:
    with _running(redis_server(server_home, free_port(), is_log=False, maxmemory="256mb", durable=False)) as server:
        yield server


@pytest.fixture(scope="session")
def log_redis(server_home: Path) -> Iterator[Server]:
    with _running(redis_server(server_home, free_port(), is_log=True, maxmemory="1gb", durable=False)) as server:
        # Before the first append Sluice has a started Redis rewrite its file, and waits for a moment only.
        with redis.Redis.from_url(server.url) as client:
            client.bgrewriteaof()
            wait_until(lambda: client.info("persistence")["aof_last_rewrite_time_sec"] >= 0, "the file is written anew")
        yield server


@pytest.fixture(scope="session")
def postgres(server_home: Path) -> Iterator[Server]:
    with _running(postgres_server(server_home, free_port(), durable=False)) as server:
        yield server


def _make_kafka(folder: Path) -> Server:
    reason = kafka_is_possible()
    if reason is not None:
        _skip(reason)
    try:
        return kafka_server(folder, free_port(), free_port())
    except ServerError as error:
        _skip(str(error))
        raise


@pytest.fixture(scope="session")
def shared_kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    folder = tmp_path_factory.mktemp("kafka")

    def make() -> Server:
        plain = _make_kafka(folder)
        return plain if openssl_problem() else secured(plain, folder)

    shared = SharedServer(make)
    request.config.stash[SHARED_KAFKA] = shared
    try:
        yield shared
    finally:
        shared.stop()


@pytest.fixture
def kafka(shared_kafka: SharedServer) -> Server:
    """A Kafka that the tests of its group share; it keeps its topics from one test to the next."""
    return shared_kafka.running()


@pytest.fixture
def secured_kafka(kafka: Server) -> SecuredKafka:
    """The same with its listeners for TLS and SASL."""
    if not isinstance(kafka, SecuredKafka):
        _skip(openssl_problem() or "Kafka has no certificates")
        raise TypeError
    return kafka


@pytest.fixture
def own_control_redis(tmp_path: Path) -> Iterator[Server]:
    with _running(redis_server(tmp_path, free_port(), is_log=False, maxmemory="64mb", durable=False)) as server:
        yield server


@pytest.fixture
def own_log_redis(tmp_path: Path) -> Iterator[Server]:
    with _running(redis_server(tmp_path, free_port(), is_log=True, maxmemory="256mb", durable=False)) as server:
        yield server


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Server]:
    with _running(postgres_server(tmp_path, free_port(), durable=False)) as server:
        yield server


@pytest.fixture(scope="module")
def kafka_of_the_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with _running(_make_kafka(tmp_path_factory.mktemp("own_kafka"))) as server:
        yield server


@pytest.fixture
def own_kafka(kafka_of_the_file: Server) -> Server:
    """For the tests of one file, which may freeze and kill it: a JVM takes long to start. Each finds it running."""
    kafka_of_the_file.ensure_running()
    return kafka_of_the_file


@pytest.fixture
def wall_clock(tmp_path: Path) -> SteppableClock:
    """A clock to run servers and programs under, and to step meanwhile."""
    if fake_time_library() is None:
        _skip("there is no libfaketime on this machine")
    return SteppableClock(tmp_path)


@pytest.fixture
def clocked_redis(tmp_path: Path, wall_clock: SteppableClock) -> Iterator[Server]:
    """A control server under `wall_clock`."""
    server = redis_server(tmp_path, free_port(), is_log=False, maxmemory="64mb", durable=False)
    with _running(wall_clock.under(server)) as server:
        yield server


@pytest.fixture
def database_url(postgres: Server) -> Iterator[str]:
    """A fresh, empty database; dropped at the end."""
    name = f"test_{uuid.uuid4().hex}"
    yield create_database(postgres.url, name)
    drop_database(postgres.url, name)


@pytest.fixture(scope="session")
def day_template(postgres: Server) -> Callable[[], str]:
    """The name of a database whose events are partitioned by day, and which nobody uses; after midnight another one."""

    @cache
    def of_day(_today: date) -> str:
        name = f"test_{uuid.uuid4().hex}"
        made = Settings(
            database_url=create_database(postgres.url, name),
            sink_call_seconds_max=PATIENT_SINK_SECONDS,
            sink_connect_seconds_max=PATIENT_CONNECT_SECONDS,
        )
        migrate(made)
        PostgresSchema(made).partition_by_day()
        return name

    return lambda: of_day(datetime.now(UTC).date())


@pytest.fixture
def day_database_url(postgres: Server, day_template: Callable[[], str]) -> Iterator[str]:
    """A fresh, migrated database whose events are partitioned by day; dropped at the end."""
    name, template = f"test_{uuid.uuid4().hex}", day_template()
    yield create_database(postgres.url, name, template)
    drop_database(postgres.url, name)


@pytest.fixture
def settings(control_redis: Server, log_redis: Server, database_url: str) -> Settings:
    """Settings of a system of the test's own on the shared servers, with its log on Redis Streams."""
    unique = uuid.uuid4().hex
    return Settings(
        database_url=database_url,
        redis_url=control_redis.url,
        event_log_url=log_redis.url,
        key_prefix=f"t{unique}:",
        log_topic=f"t{unique}",
        append_seconds_max=PATIENT_APPEND_SECONDS,
        sink_call_seconds_max=PATIENT_SINK_SECONDS,
        ingest_port=free_port(),  # ingest shares its port: a system that runs on this machine would answer too
    )
