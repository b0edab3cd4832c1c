"""`python -m checks.idle`: what a system takes while nobody sends events, in CPU time by program.

By default it measures the system that runs here: send nothing meanwhile, and close the live page. With `--partitions 4
64` it starts a system of its own with each number of partitions, measures them side by side, and prints how many times
as much as the first one each of the others takes. Side by side, other work on the machine changes all of them alike.
CPU time is counted by the kernel for each process. `--json FILE` starts a system of its own without ingest, and writes
the commands a second of its control Redis: `python -m checks.sizing --idle FILE` takes them.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil
import psycopg2
import redis

from checks.idle.report import Usage, commands_since, ratio, report
from checks.testbed.machine import commit, processor
from pipeline.errors import SluiceError
from pipeline.running import home_of
from pipeline.settings import Settings
from stack.config import StackConfig, environ_of_its_own
from stack.servers import ServerError
from stack.system import System, SystemFolder

_SUPERVISOR: Final = "supervisor"
_INGEST: Final = "ingest-"
_SETTLE_SECONDS: Final = 15.0  # after a start: until each drain has restarted, and rates are published


def main() -> int:
    """Measure, and print the tables; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m checks.idle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure (default: %(default)g)")
    parser.add_argument(
        "--partitions", type=int, nargs="+", metavar="N", help="start a system for each of these numbers of partitions"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="count the commands of a system without ingest")
    asked = parser.parse_args()
    try:
        if asked.json is not None:
            commands, table = _without_ingest(asked.seconds)
            print(table)
            about = {"processor": processor(), "cores": os.cpu_count(), "day": str(datetime.now(UTC).date())}
            asked.json.write_text(json.dumps({**about, "commit": commit(), "control_commands": commands}) + "\n")
            return 0
        if not asked.partitions:
            [(_, table)] = _measure([SystemFolder(home_of(os.environ))], asked.seconds)
            print(table)
            return 0
        with contextlib.ExitStack() as stack:
            systems = [stack.enter_context(_system(count)) for count in asked.partitions]
            time.sleep(_SETTLE_SECONDS)
            _print(asked.partitions, _measure(systems, asked.seconds))
    except (ServerError, SluiceError, OSError, psycopg2.Error, redis.RedisError) as error:
        print(f"checks.idle: {error}", file=sys.stderr)
        return 1
    return 0


def _print(partitions: Sequence[int], found: Sequence[tuple[float, str]]) -> None:
    """Print the tables, and the cost of each further system as a multiple of the first one's."""
    for count, (_, table) in zip(partitions, found, strict=True):
        print(f"--- {count} partitions\n{table}\n", flush=True)
    for count, (share, _) in list(zip(partitions, found, strict=True))[1:]:
        print(f"{count} partitions take {ratio(share, found[0][0])} times what {partitions[0]} take", flush=True)


@contextlib.contextmanager
def _system(partitions: int) -> Iterator[SystemFolder]:
    """A system of its own. Raises ServerError if it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        with environ_of_its_own(SLUICE_HOME=folder, LOG_PARTITIONS=str(partitions)):
            system = System(StackConfig.from_environ("redis"))
            system.start(threading.Event())
        try:
            yield system
        finally:
            system.stop()


def _without_ingest(seconds: float) -> tuple[float, str]:
    """Commands a second of the control Redis of a system whose ingest is stopped, and its table."""
    with _system(Settings().log_partitions) as system:
        for program in system.programs_now():
            if str(program["name"]).startswith(_INGEST):
                system.supervisor().stopProcess(program["name"], True)
        time.sleep(_SETTLE_SECONDS)
        url = system.urls()["REDIS_URL"]
        before, started = _commands(url), time.monotonic()
        [(_, table)] = _measure([system], seconds)
        return commands_since(before, _commands(url)) / (time.monotonic() - started), table


def _measure(systems: Sequence[SystemFolder], seconds: float) -> list[tuple[float, str]]:
    """Measure all systems at the same time. Returns the share of a core of each, in percent, and its table."""
    urls = [system.urls() for system in systems]
    before, started = [_counts(*one) for one in zip(systems, urls, strict=True)], time.monotonic()
    time.sleep(max(1.0, seconds))
    after = [_counts(*one) for one in zip(systems, urls, strict=True)]
    seconds = time.monotonic() - started
    return [
        report(*counts, seconds=seconds, sessions=_sessions(url["DATABASE_URL"]))
        for *counts, url in zip(before, after, urls, strict=True)
    ]


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
    """CPU seconds of a process and of its ended children; 0 if the process has ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _commands(url: str) -> dict[str, int]:
    """Commands that a Redis has executed since its start, with those inside scripts."""
    with redis.Redis.from_url(url, socket_timeout=5, decode_responses=True) as client:
        statistics: dict[str, dict[str, int]] = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in statistics.items()}


def _sessions(url: str) -> int:
    """The number of client sessions in PostgreSQL, without this one."""
    with closing(psycopg2.connect(url, connect_timeout=5)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend'")
        row = cursor.fetchone()
        return 0 if row is None else int(row[0])


if __name__ == "__main__":
    sys.exit(main())
