"""M15: the two libraries that append to Kafka (KAFKA_CLIENT), and librdkafka's consumer beside our own fetch.

Each row is a ratio of confluent-kafka to the client of a plain system, measured in turns. CPU is that of the client's
process with all its threads. The broker's CPU is not counted. Appends are groups of 500 events, as in ingest. Each
group is durable before the next one begins.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from checks.bench.drain import records_of
from checks.bench.machine import LOAD_CORE, SERVER_CORE, Options, run_anywhere, run_on, started
from checks.bench.process import Cost
from checks.bench.raw import raw_append
from checks.bench.table import Line, ratios
from pipeline import wiring
from pipeline.settings import Settings
from stack.config import environ_with
from stack.servers import free_port, kafka_server, redis_server

MARK: Final = "M15"
PARTITIONS: Final = (4, 64, 256)
CLIENTS: Final = ("confluent", "kafka-python")
READERS: Final = ("consumer", "own")
BACKLOG_EVENTS: Final = 200_000
READ_RECORDS: Final = 5_000  # at once, as a drain's batch
_READ_SECONDS_MAX: Final = 120.0

Costs = dict[tuple[str, int], list[Cost]]  # by client and partitions; readers have one partition


def run(options: Options, _marks: set[str]) -> list[Line]:
    """Measure and return the lines."""
    costs: Costs = {}
    run_on(LOAD_CORE)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            control = started(stack, redis_server(Path(folder), free_port(), is_log=False, maxmemory="256mb"))
            broker = started(stack, kafka_server(Path(folder), free_port(), free_port()))
            pid = broker.pid
            # More time than usual: a busy machine must not end a measurement.
            plain = Settings(redis_url=control.url, event_log_url=broker.url, append_seconds_max=30.0)
            backlog = _filled(replace(plain, log_topic="backlog", log_partitions=1), options)
            for _ in range(options.rounds):
                for partitions in PARTITIONS:
                    for client in CLIENTS:
                        settings = replace(
                            plain, log_topic=f"appends-{partitions}", log_partitions=partitions, kafka_client=client
                        )
                        cost = raw_append(settings, "own", options.seconds, pid)
                        costs.setdefault((client, partitions), []).append(cost)
                for reader in READERS:
                    costs.setdefault((reader, 1), []).append(_read(backlog, reader))
    finally:
        run_anywhere()
    return list(lines_of(costs))


def lines_of(costs: Costs) -> Iterator[Line]:
    """The ratios of the measured costs."""
    for partitions in PARTITIONS:
        ours, plain = (costs[client, partitions] for client in CLIENTS)
        yield _line(
            f"CPU of an append, {partitions} partitions: confluent-kafka / kafka-python-ng", _cpu(ours), _cpu(plain)
        )
        yield _line("… time of a group", _wall(ours), _wall(plain))
    consumer, own = (costs[reader, 1] for reader in READERS)
    yield _line("CPU of a record that is read: librdkafka's consumer / our own fetch", _cpu(consumer), _cpu(own))


def _line(what: str, above: Sequence[float], below: Sequence[float]) -> Line:
    figures = {"confluent_us": [1e6 * one for one in above], "plain_us": [1e6 * one for one in below]}
    return Line(MARK, what, ratios(above, below), figures=figures)


def _cpu(costs: Sequence[Cost]) -> list[float]:
    """CPU-seconds per event in each round."""
    return [cost.cpu_seconds / cost.units for cost in costs]


def _wall(costs: Sequence[Cost]) -> list[float]:
    """Wall seconds per event in each round. Groups follow each other."""
    return [cost.wall_seconds / cost.units for cost in costs]


def _filled(settings: Settings, options: Options) -> Settings:
    """Fill a topic of one partition; returns its settings."""
    records = records_of(0, 20_000 if options.quick else BACKLOG_EVENTS)
    with contextlib.closing(wiring.make_log(settings)) as log:
        log.identity()
        for first in range(0, len(records), READ_RECORDS):
            log.append([(0, record) for record in records[first : first + READ_RECORDS]])
    return settings


def _read(settings: Settings, reader: str) -> Cost:
    """Read the topic once, in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "checks.bench.kafka_clients", reader],
        env=environ_with(settings),
        capture_output=True,
        text=True,
        check=True,
    )
    units, cpu, wall = done.stdout.split()
    return Cost(int(units), float(cpu), float(wall))


def _read_here(settings: Settings, reader: str) -> None:
    """Print records read, CPU-seconds, wall seconds."""
    run_on(SERVER_CORE)
    with contextlib.closing(wiring.make_log(settings)) as log:
        (position,) = log.positions()
        read = _own_batches(settings) if reader == "own" else _consumed_batches(settings)
        count = len(next(read))  # excludes connections and metadata from the cost of a record
        started_at, cpu, measured = time.monotonic(), time.process_time(), 0
        while count < position.end:
            if time.monotonic() - started_at > _READ_SECONDS_MAX:
                raise RuntimeError(f"{count} of {position.end} records were read")
            some = len(next(read))
            count, measured = count + some, measured + some
        print(measured, time.process_time() - cpu, time.monotonic() - started_at)


def _own_batches(settings: Settings) -> Iterator[list[bytes]]:
    log = wiring.make_log(settings)
    offset = 0
    while True:
        batch = log.read(0, offset, records_max=READ_RECORDS, wait_seconds=1.0)
        if batch is not None:
            offset = batch.next_offset
        yield [] if batch is None else batch.values


def _consumed_batches(settings: Settings) -> Iterator[list[bytes]]:
    from confluent_kafka import Consumer, TopicPartition  # noqa: PLC0415 - an extra of the package

    consumer = Consumer(
        {
            "bootstrap.servers": settings.event_log_url.partition("://")[2],
            "group.id": "bench",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": settings.kafka_fetch_bytes_max,
        }
    )
    consumer.assign([TopicPartition(settings.log_topic, 0, 0)])
    while True:
        values = []
        for message in consumer.consume(READ_RECORDS, timeout=1.0):
            if (error := message.error()) is not None:
                raise RuntimeError(error.str())
            values.append(message.value() or b"")
        yield values


if __name__ == "__main__":
    _read_here(Settings.from_environ(), sys.argv[1])
