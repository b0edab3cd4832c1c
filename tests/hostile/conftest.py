"""One real ingest process that the tests here attack."""

from collections.abc import Iterator

import pytest

from checks.hostile.victim import Victim, running_victim
from stack.servers import Server


@pytest.fixture(scope="module")
def victim(control_redis: Server, log_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("hostile")
    with running_victim(log_redis.url, control_redis.url, folder, request_seconds_max=2.0) as found:
        yield found
