"""One real ingest process that the tests here attack."""

from collections.abc import Iterator

import pytest

from checks.hostile.victim import Victim, running_victim
from stack.servers import Server


@pytest.fixture(scope="module")
def victim(control_redis: Server, log_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("hostile")
    # Other tests run beside these: a log that answers late is not what they are about.
    changes = {"request_seconds_max": 2.0, "append_seconds_max": 30.0}
    with running_victim(log_redis.url, control_redis.url, folder, **changes) as found:
        yield found
