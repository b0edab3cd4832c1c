"""What the edge costs: ingest's CPU-seconds for single events, batches and refusals, against named baselines.

Baselines, run in the same minutes and in turns: a bare Sanic handler that decodes the same body, and the raw append
of the same records to the same log from one process, with the log's standard client and with the project's own adapter
(on Redis that one packs a group into one call, and costs the client a fraction). Server and load run on different
cores where there are two.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil
import redis
from kafka import KafkaProducer

from bench.load import post, run_load
from bench.process import cpu_seconds
from pipeline import wiring
from pipeline.event import Event, encode_record, partition_of, record_head
from pipeline.settings import Settings
from stack.servers import Server, free_port, kafka_server, redis_server

SERVER_CORE = 0
LOAD_CORE = max(os.sched_getaffinity(0))
BATCH_EVENTS = 100
CONNECTIONS = 64
OTHERS_SHARE_MAX = 0.001  # a bucket of one event a second admits one now and then


@dataclass(frozen=True)
class Cost:
    """Units of work (requests or events) done with how much CPU of the measured process, in how much wall time."""

    units: int
    cpu_seconds: float
    wall_seconds: float
    log_cpu_seconds: float = 0.0  # the log server's own

    @property
    def per_cpu_second(self) -> float:
        return self.units / self.cpu_seconds


def _event(number: int) -> Event:
    return Event(
        correlation_id=f"order-{number % 1000}",
        severity="INFO",
        message="PacketResponder 1 for block blk_38865049064139660 terminating, status nominal",
        source="hdfs/dfs.DataNode",
        timestamp=1_700_000_000_000 + number,
    )


def _requests(batch: int) -> list[bytes]:
    encode = msgspec.json.encode
    if batch == 1:
        return [post("/api/logs", encode(_event(n))) for n in range(500)]
    return [post("/api/logs", encode([_event(k * batch + n) for n in range(batch)])) for k in range(20)]


@contextlib.contextmanager
def process(command: list[str], environ: dict[str, str], port: int) -> Iterator[int]:
    """Run a server on the server core until the block ends; yields its pid once the port is open."""
    child = subprocess.Popen(
        command, env={**os.environ, **environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        os.sched_setaffinity(child.pid, {SERVER_CORE})
        deadline = time.monotonic() + 20
        while not any(
            c.laddr.port == port for c in psutil.Process(child.pid).net_connections() if c.status == "LISTEN"
        ):
            if time.monotonic() > deadline or child.poll() is not None:
                raise SystemExit(f"{' '.join(command)} does not listen on {port}")
            time.sleep(0.05)
        yield child.pid
    finally:
        child.terminate()
        child.wait(20)


def measure(pid: int, port: int, batch: int, wanted: int, seconds: float, log_pid: int | None = None) -> Cost:
    """Load for `seconds`; every answer must have the wanted status, else the figure would be of something else."""
    requests = _requests(batch)
    run_load("127.0.0.1", port, requests, seconds=0.3, connections=CONNECTIONS)
    cpu, log_cpu = cpu_seconds(pid), cpu_seconds(log_pid) if log_pid else 0.0
    result = run_load("127.0.0.1", port, requests, seconds=seconds, connections=CONNECTIONS)
    used = cpu_seconds(pid) - cpu
    log_used = (cpu_seconds(log_pid) if log_pid else 0.0) - log_cpu
    others = result.statuses.total() - result.statuses[wanted]
    if others > result.statuses.total() * OTHERS_SHARE_MAX:
        raise SystemExit(f"answers other than {wanted}: {dict(result.statuses)}")
    return Cost(result.statuses[wanted] * (batch if wanted == 202 else 1), used, result.seconds, log_used)


def raw_append(settings: Settings, client: str, seconds: float, log_pid: int) -> Cost:
    """Append prepared records in groups of `append_group_events_max`, in a process of its own.

    `client`: "standard" for what anybody would write (redis-py: a pipeline of XADD; kafka-python-ng: send and wait),
    "own" for the project's adapter.
    """
    script = (
        "import sys; from bench.edge import raw_append_here; from pipeline.settings import Settings; "
        "raw_append_here(Settings.from_environ(), sys.argv[1], float(sys.argv[2]))"
    )
    log_cpu = cpu_seconds(log_pid)
    done = subprocess.run(
        [sys.executable, "-c", script, client, str(seconds)],
        env={**os.environ, **environ_of(settings)},
        capture_output=True,
        text=True,
        check=True,
    )
    units, cpu, wall = done.stdout.split()
    return Cost(int(units), float(cpu), float(wall), cpu_seconds(log_pid) - log_cpu)


def raw_append_here(settings: Settings, client: str, seconds: float) -> None:
    """Print events appended, CPU-seconds, wall seconds."""
    os.sched_setaffinity(0, {SERVER_CORE})
    log = wiring.make_log(settings)
    partitions = log.identity().partitions
    entries = []
    head = record_head(1_700_000_000_000, "0123456789ab-1")
    for number in range(settings.append_group_events_max):
        one = _event(number)
        one.event_id = f"0190b5a0-0000-7000-8000-{number:012d}"
        entries.append((partition_of(one.correlation_id, partitions), encode_record(one, head)))
    append = log.append if client == "own" else _standard_append(settings)
    append(entries)
    started, cpu, groups = time.monotonic(), time.process_time(), 0
    while time.monotonic() - started < seconds:
        append(entries)
        groups += 1
    print(groups * len(entries), time.process_time() - cpu, time.monotonic() - started)
    log.close()


def _standard_append(settings: Settings) -> Callable[[Sequence[tuple[int, bytes]]], None]:
    """Appending with the log's standard client, to streams or a topic of its own."""
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


def environ_of(settings: Settings) -> dict[str, str]:
    """The settings as environment variables."""
    return {name.upper(): str(value) for name, value in vars(settings).items()}


def _median(rounds: list[Cost], value: Callable[[Cost], float]) -> float:
    return statistics.median(value(one) for one in rounds)


def run(log: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure everything on a log (`redis` or `kafka`) and print the table; returns the figures."""
    os.sched_setaffinity(0, {LOAD_CORE})
    figures: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        control = _started(stack, redis_server(home, free_port(), is_log=False, maxmemory="256mb"))
        if log == "kafka":
            log_server = _started(stack, kafka_server(home, free_port(), free_port()))
        else:
            log_server = _started(stack, redis_server(home, free_port(), is_log=True, maxmemory="8gb"))
        common: dict[str, Any] = {"redis_url": control.url, "event_log_url": log_server.url}
        common |= {"rate_hold_periods": 1000}  # nobody publishes a rate here
        admit = Settings(**common, ingest_port=free_port(), rate_max=10_000_000, rate_min=10_000_000, key_prefix="a:")
        refuse = Settings(**common, ingest_port=free_port(), rate_max=1, rate_min=1, key_prefix="r:")
        bare_port = free_port()
        ingest = [sys.executable, "-m", "ingest"]
        bare_pid = stack.enter_context(process([sys.executable, "-m", "bench.bare", str(bare_port)], {}, bare_port))
        admit_pid = stack.enter_context(process(ingest, environ_of(admit), admit.ingest_port))
        refuse_pid = stack.enter_context(process(ingest, environ_of(refuse), refuse.ingest_port))
        _empty_bucket(refuse.ingest_port)
        append_pid = log_server.pid
        measurements: list[tuple[str, Callable[[], Cost]]] = [
            ("bare single", lambda: measure(bare_pid, bare_port, 1, 202, seconds)),
            ("single", lambda: measure(admit_pid, admit.ingest_port, 1, 202, seconds, append_pid)),
            ("batch", lambda: measure(admit_pid, admit.ingest_port, BATCH_EVENTS, 202, seconds, append_pid)),
            ("raw append", lambda: raw_append(admit, "standard", seconds, append_pid)),
            ("own append", lambda: raw_append(admit, "own", seconds, append_pid)),
            ("429 single", lambda: measure(refuse_pid, refuse.ingest_port, 1, 429, seconds)),
            ("429 batch", lambda: measure(refuse_pid, refuse.ingest_port, BATCH_EVENTS, 429, seconds)),
        ]
        for _ in range(rounds):
            for name, cost in measurements:
                figures.setdefault(name, []).append(cost())
    return _report(log, figures)


def _started(stack: contextlib.ExitStack, server: Server) -> Server:
    stack.callback(server.stop)
    return server.start()


def _empty_bucket(port: int) -> None:
    """Send until the first refusal."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if 429 in run_load("127.0.0.1", port, _requests(1), seconds=0.1, connections=2).statuses:
            return
    raise SystemExit("the bucket of one event a second was never empty")


def _report(log: str, figures: dict[str, list[Cost]]) -> dict[str, Any]:
    print(f"\nlog: {log}; medians of {len(next(iter(figures.values())))} rounds, in turns")
    print(f"{'':14}{'per CPU-s':>12}{'per wall-s':>12}{'CPU-s':>8}{'log CPU-s':>11}")
    for name, rounds in figures.items():
        print(
            f"{name:14}{_median(rounds, lambda c: c.per_cpu_second):>12,.0f}"
            f"{_median(rounds, lambda c: c.units / c.wall_seconds):>12,.0f}"
            f"{_median(rounds, lambda c: c.cpu_seconds):>8.2f}{_median(rounds, lambda c: c.log_cpu_seconds):>11.2f}"
        )

    def rate(name: str) -> float:
        return _median(figures[name], lambda c: c.per_cpu_second)

    batch_request_cost = BATCH_EVENTS / rate("batch")
    ratios = {
        "single / bare": (rate("single") / rate("bare single"), ">= 0.55"),
        "batch of 100 / raw append": (rate("batch") / rate("raw append"), ">= 0.5"),
        "batch of 100 / the adapter's own append": (rate("batch") / rate("own append"), "reported"),
        "CPU of 429 to a batch / 202 to it": (1 / rate("429 batch") / batch_request_cost, "<= 0.25"),
        "CPU of 429 to a single / 202 to a batch": (1 / rate("429 single") / batch_request_cost, "<= 0.25"),
        "CPU of 429 to a single / 202 to it": (rate("single") / rate("429 single"), "reported"),
    }
    print()
    for name, (ratio, goal) in ratios.items():
        print(f"{name:44}{ratio:>8.3f}   {goal}")
    return {"log": log, "ratios": {name: ratio for name, (ratio, _) in ratios.items()}}
