"""The baseline of M2: prepared records appended to the same log, with nothing before it.

Two clients. `standard` is the usual code (redis-py: a pipeline of XADD; kafka-python-ng: send and wait). `own` is the
project's adapter, which packs a group into one call if the log is Redis.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import redis
from kafka import KafkaProducer

from checks.bench.machine import SERVER_CORE, run_on
from checks.bench.process import Cost, cpu_seconds
from checks.loadgen.closed_load import an_event
from pipeline import wiring
from pipeline.event import encode_record, partition_of, record_head
from pipeline.settings import Settings
from stack.config import environ_with

Append = Callable[[Sequence[tuple[int, bytes]]], None]


def raw_append(settings: Settings, client: str, seconds: float, log_pid: int) -> Cost:
    """Append groups of `append_group_events_max` records for `seconds`, in a separate process."""
    log_cpu = cpu_seconds(log_pid)
    done = subprocess.run(
        [sys.executable, "-m", "checks.bench.raw", client, str(seconds)],
        env=environ_with(settings),
        capture_output=True,
        text=True,
        check=True,
    )
    units, cpu, wall = done.stdout.split()
    return Cost(int(units), float(cpu), float(wall), cpu_seconds(log_pid) - log_cpu)


def _append_here(settings: Settings, client: str, seconds: float) -> None:
    """Print events appended, CPU-seconds, wall seconds."""
    run_on(SERVER_CORE)
    log = wiring.make_log(settings)
    partitions = log.identity().partitions
    entries = []
    head = record_head(1_700_000_000_000, "0123456789ab-1")
    for number in range(settings.append_group_events_max):
        one = an_event(number)
        one.event_id = f"0190b5a0-0000-7000-8000-{number:012d}"
        entries.append((partition_of(one.correlation_id, partitions), encode_record(one, head)))
    append = log.append if client == "own" else _standard(settings)
    append(entries)
    started, cpu, groups = time.monotonic(), time.process_time(), 0
    while time.monotonic() - started < seconds:
        append(entries)
        groups += 1
    print(groups * len(entries), time.process_time() - cpu, time.monotonic() - started)
    log.close()


def _standard(settings: Settings) -> Append:
    """Appending with the log's standard client, to streams of its own or the same topic."""
    if settings.log_scheme == "kafka":
        producer = KafkaProducer(
            bootstrap_servers=urlsplit(settings.event_log_url).netloc,
            acks="all",
            linger_ms=5,
            batch_size=262144,
            max_in_flight_requests_per_connection=1,
            api_version=(2, 6, 0),
        )

        def to_kafka(entries: Sequence[tuple[int, bytes]]) -> None:
            sent = [producer.send(settings.log_topic, value, partition=partition) for partition, value in entries]
            producer.flush()
            for one in sent:
                one.get(10)

        return to_kafka
    client = redis.Redis.from_url(settings.event_log_url)

    def to_redis(entries: Sequence[tuple[int, bytes]]) -> None:
        pipe = client.pipeline(transaction=False)
        for partition, value in entries:
            pipe.xadd(f"raw:{partition}", {"v": value})
        pipe.execute()

    return to_redis


if __name__ == "__main__":
    _append_here(Settings.from_environ(), sys.argv[1], float(sys.argv[2]))
