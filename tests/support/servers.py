"""The three servers of a system, started by a test for itself."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checks.testbed.waiting import PATIENT_APPEND_SECONDS
from pipeline.settings import Settings
from stack.servers import Server, free_port, postgres_server, redis_server


@dataclass(frozen=True)
class Servers:
    """Running servers."""

    control_redis: Server
    log: Server
    postgres: Server

    def settings(self, **changes: Any) -> Settings:
        """The settings of a system on these servers."""
        given: dict[str, Any] = {
            "database_url": self.postgres.url,
            "redis_url": self.control_redis.url,
            "event_log_url": self.log.url,
            "append_seconds_max": PATIENT_APPEND_SECONDS,
        }
        return Settings(**given | changes)


@contextlib.contextmanager
def own_servers(folder: Path) -> Iterator[Servers]:
    """Start them, and stop them at the end of the block."""
    with contextlib.ExitStack() as stack:
        servers = Servers(
            redis_server(folder, free_port(), is_log=False, maxmemory="128mb", durable=False),
            redis_server(folder, free_port(), is_log=True, maxmemory="256mb", durable=False),
            postgres_server(folder, free_port(), durable=False),
        )
        for server in (servers.control_redis, servers.log, servers.postgres):
            server.start()
            stack.callback(server.stop)
        yield servers
