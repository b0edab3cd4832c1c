"""`python -m checks.bench.tick`: the cost of one tick of the control loop, with 4 and 64 partitions and both policies.

The task `sluice.regulate` runs in this process, on real servers. It prints the CPU time of this process for a tick,
also as a ratio to the tick of `bands` with 4 partitions, and the round trips to each server. A proxy before the server
counts them, so the count does not depend on the clients' libraries.
"""

import contextlib
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import redis

from checks.bench.machine import started
from checks.loadgen.proxy import Proxy
from checks.testbed.database import ask
from checks.testbed.waiting import wait_until
from pipeline import wiring
from pipeline.errors import LogIndeterminateError, LogUnavailableError
from pipeline.names import KEY_LEASE, LEASE_REGULATE, LEASE_TICK
from pipeline.settings import Settings
from stack.servers import free_port, postgres_server, redis_server
from tasks import control
from tasks.app import make_app

POLICIES: Final = ("bands", "drain_time")
PARTITIONS: Final = (4, 64)
TICKS: Final = 30
_WARM: Final = 3  # the first one migrates, and restores the settings of operators
_TRIES: Final = 5  # for a tick, at most
_WAITING: Final = 50  # records in each partition, never stored
_PLACES: Final = {"redis_url": "control store", "event_log_url": "event log", "database_url": "PostgreSQL"}


@dataclass(frozen=True, slots=True)
class TickCost:
    """CPU milliseconds of each tick, and round trips of one, by server."""

    cpu_ms: Sequence[float]
    round_trips: Mapping[str, int]  # the minimum: some ticks need more, and a busy machine reconnects


def measure(urls: Settings, policy: str, partitions: int, *, ticks: int = TICKS) -> TickCost:
    """Run ticks on the servers of `urls`, with a log and keys of their own. Raises RuntimeError if one did not run.

    Runs in a separate process, because a process keeps the connections of its first tick.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        return executor.submit(_measure, urls, policy, partitions, ticks).result()


def _measure(urls: Settings, policy: str, partitions: int, ticks: int) -> TickCost:
    name = f"tick_{uuid.uuid4().hex}"
    ask(urls.database_url, f"CREATE DATABASE {name}")  # it knows no other log
    direct = replace(
        urls,
        rate_policy=policy,
        log_partitions=partitions,
        key_prefix=f"{name}:",
        log_topic=name,
        database_url=f"{urls.database_url.rpartition('/')[0]}/{name}",
        append_seconds_max=30.0,
        no_progress_seconds_max=3600.0,  # nothing is stored here, and a tick would check why
        drain_stalled_seconds_max=3600.0,
        drains_max=min(PARTITIONS),  # each drain that is lacking gets a hint, which is a round trip
    )
    settings = direct
    with contextlib.ExitStack() as stack:
        proxies = {}
        for field, place in _PLACES.items():
            url = getattr(settings, field)
            port = _port_of(url)
            proxies[place] = proxy = Proxy(port).start()
            stack.callback(proxy.stop)
            settings = replace(settings, **{field: url.replace(f":{port}", f":{proxy.port}")})
        app = make_app(settings)
        tick = app.tasks[control.regulate_rate.name]
        lease = stack.enter_context(redis.Redis.from_url(urls.redis_url))
        cpu_ms: list[float] = []
        trips: dict[str, list[int]] = {place: [] for place in proxies}
        for number in range(_TRIES * (_WARM + ticks)):
            if number == 1:  # the log's first identity is known
                _fill(direct)
            # Simulate that the period is over, and that no failed tick is still running.
            lease.delete(*(f"{settings.key_prefix}{KEY_LEASE}:{one}" for one in (LEASE_REGULATE, LEASE_TICK)))
            before = {place: proxy.counts.requests for place, proxy in proxies.items()}
            began = time.process_time()
            said = tick()
            used = time.process_time() - began
            has_run = said is not None and said.startswith("rate ")  # on a busy machine, a server may answer too late
            if number >= _WARM and has_run:
                cpu_ms.append(1000 * used)
                for place, proxy in proxies.items():
                    trips[place].append(proxy.counts.requests - before[place])
            if len(cpu_ms) == ticks:
                return TickCost(cpu_ms, {place: min(counts) for place, counts in trips.items()})
    raise RuntimeError(f"only {len(cpu_ms)} of {ticks} ticks have run, the last one: {said}")


def _port_of(url: str) -> int:
    return int(url.rpartition("/")[0].rpartition(":")[2])


def _fill(settings: Settings) -> None:
    records = [(partition, b"{}") for partition in range(settings.log_partitions) for _ in range(_WAITING)]
    with contextlib.closing(wiring.make_log(settings)) as log:

        def append() -> bool:
            try:
                log.append(records)
            except (LogUnavailableError, LogIndeterminateError):  # Redis rewrites its file after its start, or is busy
                return False
            return True

        wait_until(append, "the event log accepts records")


def table(found: Mapping[tuple[str, int], TickCost]) -> list[str]:
    """Markdown: a line for each policy and number of partitions."""
    medians = {case: statistics.median(cost.cpu_ms) for case, cost in found.items()}
    base = next(iter(medians.values()))
    lines = ["| policy | partitions | CPU ms | ratio | " + " | ".join(_PLACES.values()) + " |", "|---|" + "---:|" * 6]
    for case, cost in found.items():
        trips = " | ".join(f"{cost.round_trips[place]}" for place in _PLACES.values())
        lines.append(f"| {case[0]} | {case[1]} | {medians[case]:.1f} | {medians[case] / base:.2f} | {trips} |")
    return lines


def main() -> int:
    """Measure, and print the table; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        servers: list[Any] = [
            started(stack, postgres_server(home, free_port())),
            started(stack, redis_server(home, free_port(), is_log=False, maxmemory="64mb")),
            started(stack, redis_server(home, free_port(), is_log=True, maxmemory="256mb")),
        ]
        urls = Settings(database_url=servers[0].url, redis_url=servers[1].url, event_log_url=servers[2].url)
        found = {(policy, count): measure(urls, policy, count) for count in PARTITIONS for policy in POLICIES}
    print("\n".join(table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
