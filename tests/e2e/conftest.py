"""One running system for each event log, shared by the end-to-end tests; each leaves it healthy.

It ends with the last test of this package: an idle system still uses the processor. (A package has an `__init__.py`.)
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from checks.testbed.processes import System
from pipeline.settings import Settings
from stack.servers import free_port, kafka_is_possible, kafka_server, postgres_server, redis_server
from support.site import Site


@pytest.fixture(scope="package", params=["redis", "kafka"])
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(f"e2e-{request.param}")
    if request.param == "kafka" and (reason := kafka_is_possible()) is not None:
        missing(reason)
    with contextlib.ExitStack() as stack:
        control_redis = redis_server(folder, free_port(), is_log=False, maxmemory="128mb", durable=False)
        postgres = postgres_server(folder, free_port(), durable=False)
        log = (
            kafka_server(folder, free_port(), free_port())
            if request.param == "kafka"
            else redis_server(folder, free_port(), is_log=True, maxmemory="256mb", durable=False)
        )
        for server in (control_redis, postgres, log):
            server.start()
            stack.callback(server.stop)
        settings = Settings(
            database_url=postgres.url,
            redis_url=control_redis.url,
            event_log_url=log.url,
            ingest_port=free_port(),
            lag_degraded=500,
            lag_critical=2_500,
            regulate_seconds=1.0,
            drain_run_seconds_max=3.0,
            drain_hard_seconds_max=12.0,
            drain_stalled_seconds_max=4.0,
            no_progress_seconds_max=8.0,
            refused_seconds=5.0,
            append_seconds_max=4.0,
            log_level="DEBUG",
            log_format="json",
        )
        system = System(settings, folder)
        stack.callback(system.stop)
        system.start()
        yield Site(system, log, postgres, control_redis, folder)


@pytest.fixture(scope="session")
def outage_seconds(request: pytest.FixtureRequest) -> float:
    """How long a server stays away at least; 0: until the effect was seen."""
    return float(request.config.getoption("--outage-seconds"))


@pytest.fixture
def site(started: Site) -> Site:
    """The running system, healthy."""
    started.system.wait(lambda: started.system.health()["status"] == "healthy", "healthy")
    return started
