"""A complete Sluice on its own servers, as the target of attacks. All accepted events must be stored."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
from prometheus_client.parser import text_string_to_metric_families

from checks.testbed.processes import System
from checks.testbed.waiting import wait_until
from checks.testbed.wire import get
from pipeline.names import LETTER_CONFLICT
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from stack.servers import Server, free_port, postgres_server, redis_server

START_SECONDS_MAX = 60.0  # for the workers' children
STORE_SECONDS_MAX = 120.0  # to store all accepted events after the attack


class Attacked:
    """A running system, and the checks of it at the end."""

    def __init__(self, system: System, servers: list[Server]) -> None:
        self.system = system
        self.port = system.settings.ingest_port
        self.url = system.url
        self.servers = {server.name: server.pid for server in servers}
        self.programs = {program.name: program.pid for program in system.programs}
        # The children of Celery's workers do the work.
        for program in system.programs:
            for number, child in enumerate(program.children()):
                self.programs[f"{program.name} child {number}"] = child.pid

    def statuses(self) -> dict[int, int]:
        """Answers to POST /api/logs by status, as ingest has counted them."""
        text = get(self.port, "/metrics").body.decode()
        return {
            int(sample.labels["status"]): int(sample.value)
            for family in text_string_to_metric_families(text)
            if family.name == "http_requests"
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    def rows(self, table: str, reason: str | None = None) -> int:
        """The number of rows of a table, or only of those with `reason`."""
        url = self.system.settings.database_url
        with contextlib.closing(psycopg2.connect(url, connect_timeout=5)) as connection, connection.cursor() as cursor:
            where = "" if reason is None else " WHERE reason = %s"
            cursor.execute(f"SELECT count(*) FROM {table}{where}", (reason,) if reason else ())
            (found,) = cursor.fetchone() or (0,)
            return int(found)

    def ended(self) -> list[str]:
        """The processes that have ended since the start."""
        everything = {**self.servers, **self.programs}
        return sorted(name for name, pid in everything.items() if not _runs(pid))

    def problems(self) -> list[str]:
        """The problems after an attack. Waits until all accepted events are stored."""
        found = [f"{name} has ended" for name in self.ended()]
        wrong = {status: count for status, count in self.statuses().items() if status >= 500 and status != 503}
        if wrong:
            found.append(f"ingest answered {wrong}")
        try:
            wait_until(
                lambda: self.system.health()["consumerLag"] == 0,
                "all that was taken is stored",
                seconds_max=STORE_SECONDS_MAX,
            )
        except AssertionError as error:
            found.append(f"{error}: {self.system.health()}")
        health = self.system.health()
        if health["status"] != "healthy":
            found.append(f"it is {health['status']}: {health['reasons']}")
        # Inputs repeat ids with other content, and other protocols accept their clients' ids: both cause conflicts.
        if (letters := self.rows("dead_letters") - self.rows("dead_letters", LETTER_CONFLICT)) > 0:
            found.append(f"{letters} events were taken that PostgreSQL does not take")
        for program in self.system.programs:
            log = program.log()
            for word in ("Traceback", "defect"):
                if word in log:
                    at = log.index(word)
                    found.append(f"{program.name} says {word}: …{log[max(0, at - 500) : at + 1500]}")
                    break
        return found


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def attacked(folder: Path) -> Iterator[Attacked]:
    """A complete system in a folder, with a rate that limits no request. Raises ServerError, AssertionError."""
    with contextlib.ExitStack() as stack:
        servers = [
            redis_server(folder, free_port(), is_log=True, maxmemory="1gb", durable=False),
            redis_server(folder, free_port(), is_log=False, maxmemory="256mb", durable=False),
            postgres_server(folder, free_port(), durable=False),
        ]
        for server in servers:
            stack.callback(server.stop)
            server.start()
        log, control, database = servers
        settings = Settings(
            database_url=database.url,
            redis_url=control.url,
            event_log_url=log.url,
            ingest_port=free_port(),
            rate_max=1e5,
            rate_min=1e5,
            refused_ratio_max=1.0,  # to refuse an attack is correct
            event_time_min_ms=0,  # the oracle judges bodies; it does not know the rule against times in seconds
        )
        migrate(settings)
        system = System(settings, folder)
        stack.callback(system.stop)
        system.start()
        for worker, children in ((system.batches, settings.log_partitions + 2), (system.control, 2)):
            wait_until(
                lambda worker=worker, children=children: len(worker.children()) >= children,
                f"{worker.name} has all of its children",
                seconds_max=START_SECONDS_MAX,
            )
        yield Attacked(system, servers)
