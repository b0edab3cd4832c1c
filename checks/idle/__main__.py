"""`python -m checks.idle --seconds 60`: what the system that runs here takes while nobody sends events.

CPU time is counted by the kernel for each process, so other work on the machine hardly changes it. Send nothing
meanwhile, and close the live page.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Final

import psutil
import psycopg2
import redis

from checks.idle.report import Usage, report
from pipeline.running import home_of
from stack.servers import ServerError
from stack.system import SystemFolder

_SUPERVISOR: Final = "supervisor"


def main() -> int:
    """Measure, and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m checks.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure (default: %(default)g)")
    seconds: float = parser.parse_args().seconds
    system = SystemFolder(home_of(os.environ))
    try:
        urls = system.urls()
        before, started = _counts(system, urls), time.monotonic()
        time.sleep(max(1.0, seconds))
        after = _counts(system, urls)
    except (ServerError, OSError, psycopg2.Error, redis.RedisError) as error:
        print(f"checks.idle: {error}", file=sys.stderr)
        return 1
    print(report(before, after, seconds=time.monotonic() - started, sessions=_sessions(urls["DATABASE_URL"])))
    return 0


def _counts(system: SystemFolder, urls: Mapping[str, str]) -> Usage:
    """CPU seconds of each program, and commands of each Redis, so far."""
    pids = {str(info["name"]): int(info["pid"]) for info in system.programs_now() if info["pid"]}
    pids[_SUPERVISOR] = system.supervisor_pid() or 0
    families = {name: _family(pid, is_alone=name == _SUPERVISOR) for name, pid in pids.items()}
    servers = {name: urls[name] for name in ("REDIS_URL", "EVENT_LOG_URL") if urls[name].startswith("redis")}
    return Usage(
        cpu_seconds={name: sum(map(_cpu_seconds, family)) for name, family in families.items()},
        processes={name: len(family) for name, family in families.items()},
        commands={name: _commands(url) for name, url in servers.items()},
    )


def _family(pid: int, *, is_alone: bool) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process] if is_alone else [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_seconds(process: psutil.Process) -> float:
    """Of a process, and of those of its children that have ended; 0 if it has ended itself."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _commands(url: str) -> dict[str, int]:
    """Commands that a Redis has carried out since its start; those inside of scripts count too."""
    with redis.Redis.from_url(url, socket_timeout=5, decode_responses=True) as client:
        statistics: dict[str, dict[str, int]] = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in statistics.items()}


def _sessions(url: str) -> int:
    """Sessions of clients that PostgreSQL has, without this one."""
    with closing(psycopg2.connect(url, connect_timeout=5)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend'")
        row = cursor.fetchone()
        return 0 if row is None else int(row[0])


if __name__ == "__main__":
    sys.exit(main())
