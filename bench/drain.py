"""Rows a second that `drain` stores exactly once, against a plain COPY of the same rows and a bare read of the log.

Each round gets an empty database and a prefilled log; the three take turns. The goal is a share of the slower
baseline: a drain can be no faster than either.
"""

import contextlib
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import uuid_utils

from bench.process import cpu_seconds, own_cpu_seconds
from pipeline import wiring
from pipeline.breaker import SinkBreaker
from pipeline.clock import SystemClock
from pipeline.drain import DrainReport, drain
from pipeline.event import Event, encode_record, record_head
from pipeline.ports.log import EventLog, LogBatch
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from pipeline.sink.queries import query
from pipeline.sink.rows import RowEncoder, copy_chunks, place_columns
from stack.servers import Server, free_port, kafka_server, postgres_server, redis_server

PARTITION = 0
APPEND_AT_ONCE = 1000


def _records(count: int) -> list[bytes]:
    return [
        encode_record(
            Event(
                correlation_id=f"order-{number % 1000}",
                severity=("INFO", "WARN", "ERROR")[number % 3],
                message=f"PacketResponder {number} for block blk_38865049064139660 terminating, status nominal",
                source=f"hdfs/dfs.DataNode{number % 20}",
                timestamp=1_700_000_000_000 + number,
                event_id=str(uuid_utils.uuid7()),
                attributes={"attempt": number % 5, "host": "node-7"},
            ),
            record_head(1_700_000_000_000 + number, f"0123456789ab-{number}"),
        )
        for number in range(count)
    ]


@contextlib.contextmanager
def _fresh_database(server: Server, settings: Settings) -> Iterator[Settings]:
    """An empty, migrated database; the checkpoint before keeps one round's writes out of the next one's time."""
    name = f"bench_{uuid.uuid4().hex}"
    with contextlib.closing(psycopg2.connect(server.url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            fresh = replace(settings, database_url=server.url.rpartition("/")[0] + f"/{name}")
            migrate(fresh)
            cursor.execute("CHECKPOINT")
            yield fresh
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


class _File:
    """What copy_expert reads from."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = iter(chunks)

    def read(self, _size: int = -1) -> bytes:
        return next(self._chunks, b"")

    readline = read


def plain_copy(settings: Settings, batches: list[list[bytes]]) -> float:
    """Seconds for a COPY and COMMIT of each batch, its bytes made beforehand, on one connection."""
    encoder = RowEncoder()
    prepared, offset = [], 0
    for values in batches:
        prepared.append(list(copy_chunks(encoder.rows(values, place_columns("bench", PARTITION), offset, []))))
        offset += len(values)
    with contextlib.closing(psycopg2.connect(settings.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")
        connection.commit()
        started = time.monotonic()
        for chunks in prepared:
            cursor.copy_expert(query("copy_events"), _File(chunks))
            connection.commit()
        return time.monotonic() - started


def bare_read(log: EventLog, settings: Settings, count: int) -> float:
    """Seconds to read everything in batches of the drain's size."""
    log.identity()
    started, offset = time.monotonic(), 0
    while offset < count:
        batch: LogBatch | None = log.read(
            PARTITION, offset, records_max=settings.drain_batch_records_max, wait_seconds=1.0
        )
        if batch is None:
            raise SystemExit(f"the log ends at {offset} of {count}")
        offset = batch.next_offset
    return time.monotonic() - started


def run_drain(log: EventLog, settings: Settings, count: int) -> tuple[float, float]:
    """Wall and CPU seconds in which `drain` stores everything; it must store all of it."""
    clock = SystemClock()
    control = wiring.make_control_store(settings)
    sink = wiring.make_sink(settings)
    stored_until = 0

    def on_stored(next_offset: int, _: object) -> None:
        nonlocal stored_until
        stored_until = next_offset

    started, cpu = time.monotonic(), own_cpu_seconds()
    report: DrainReport = drain(
        PARTITION,
        log=log,
        sink=sink,
        floors=wiring.make_floors(settings),
        breaker=SinkBreaker(settings, control, clock, "bench"),
        paused=lambda: stored_until >= count,  # ends the run, as a pause would
        settings=settings,
        clock=clock,
        on_stored=on_stored,
    )
    seconds, used = time.monotonic() - started, own_cpu_seconds() - cpu
    sink.close()
    if report.stored != count:
        raise SystemExit(f"drain stored {report.stored} of {count}: {report}")
    return seconds, used


def run(log_kind: str, rounds: int, count: int) -> dict[str, Any]:
    """Measure and print; returns the figures in rows/s."""
    seconds: dict[str, list[float]] = {"plain COPY": [], "bare read": [], "drain": []}
    drain_cpu: list[float] = []
    postgres_cpu: list[float] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        postgres = postgres_server(home, free_port())
        control = redis_server(home, free_port(), is_log=False, maxmemory="256mb")
        log_server = (
            kafka_server(home, free_port(), free_port())
            if log_kind == "kafka"
            else redis_server(home, free_port(), is_log=True, maxmemory="4gb")
        )
        for server in (postgres, control, log_server):
            stack.callback(server.stop)
            server.start()
        records = _records(count)
        for _ in range(rounds):
            unique = uuid.uuid4().hex
            settings = Settings(
                database_url=postgres.url,
                redis_url=control.url,
                event_log_url=log_server.url,
                key_prefix=f"{unique}:",
                log_topic=unique,
                drain_run_seconds_max=240,
                drain_hard_seconds_max=300,
            )
            migrate(settings)  # a new log asks the database for its floors
            log = wiring.make_log(settings)
            log.identity()
            for first in range(0, count, APPEND_AT_ONCE):
                log.append([(PARTITION, value) for value in records[first : first + APPEND_AT_ONCE]])
            size = settings.drain_batch_records_max
            with _fresh_database(postgres, settings) as fresh:
                seconds["plain COPY"].append(
                    plain_copy(fresh, [records[first : first + size] for first in range(0, count, size)])
                )
            log.close()
            # A reader of its own for each: one left at the end would first wait for the fetch that it has there.
            log = wiring.make_log(settings)
            seconds["bare read"].append(bare_read(log, settings, count))
            log.close()
            log = wiring.make_log(settings)
            with _fresh_database(postgres, settings) as fresh:
                before = cpu_seconds(postgres.pid)
                wall, used = run_drain(log, fresh, count)
                postgres_cpu.append(cpu_seconds(postgres.pid) - before)
                seconds["drain"].append(wall)
                drain_cpu.append(used)
            log.close()
    rates = {name: count / statistics.median(values) for name, values in seconds.items()}
    slower = min(rates["plain COPY"], rates["bare read"])
    ratio = rates["drain"] / slower
    print(f"\nlog: {log_kind}; {count:,} rows, batches of {size:,}; medians of {rounds} rounds, in turns")
    for name, rate in rates.items():
        print(f"{name:12}{rate:>12,.0f} rows/s")
    print(f"drain's own CPU {statistics.median(drain_cpu):.2f} s, PostgreSQL's {statistics.median(postgres_cpu):.2f} s")
    print(f"\n{'drain / the slower of both':44}{ratio:>8.3f}   >= 0.6")
    return {"log": log_kind, "rows_per_second": rates, "ratio": ratio}
