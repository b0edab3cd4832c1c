"""M14: records a CPU-second of ingest, beside an OpenTelemetry Collector that gets the same requests in the same run.

The Collector is compiled from Go modules (`checks.testbed.kits`), so M14 runs only if it is named. Its protocol is
OTLP over HTTP. Before ingest answers, the events are durable in the event log. A Collector's durability is that of its
exporter, so it is measured in several ways:

- `nop`: it decodes the records and drops them. Nothing is durable. This is the least that a Collector can do.
- `queue`: it writes the request to its queue on disk (`file_storage`), and answers. By default, the operating system
  decides when to sync. Its destination refuses connections, so nothing is sent on: no drain reads Sluice's log either.
- `synced queue`: the same with fsync, as Sluice's Redis syncs. The Collector writes the file itself, so here and with
  `queue`, the CPU of Redis is added to that of ingest.
- `Kafka` (with `--log kafka`): it sends the request to the broker to which ingest appends, and answers once all
  replicas have it. The broker's CPU is not counted. The Collector's Kafka record is the whole request, Sluice's is one
  event.
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from kafka.admin import KafkaAdminClient, NewTopic

from checks.bench.edge import measure_requests, process
from checks.bench.machine import LOAD_CORE, Options, run_anywhere, run_on
from checks.bench.process import Cost
from checks.bench.protocol_bodies import FORMS as ALL_FORMS
from checks.bench.protocol_bodies import Form
from checks.bench.protocols import BATCH_RECORDS, Ingest, ingest_that_admits_all, requests_of
from checks.bench.table import Line, ratios
from checks.testbed.kits import COLLECTOR, KitError, cache_folder
from stack.servers import LOOPBACK, Server, free_port

MARK: Final = "M14"
FORMS: Final = tuple(form for form in ALL_FORMS if form.path == "/v1/logs")
_INGEST: Final = "ingest"
_TOPIC: Final = "collector"
_PARTITIONS: Final = 4  # as many as Sluice's topic
_QUEUE_REQUESTS_MAX: Final = 100_000_000  # no measurement fills it
_LATER: Final = "1h"  # until the queue tries to send again: after all measurements
_ACCEPTED: Final = re.compile(r"^otelcol_receiver_accepted_log_records(?:_total)?\{[^}]*\} (\S+)", re.M)

_Config = dict[str, Any]
_Costs = dict[tuple[str, str], list[Cost]]  # by the name of the server and of the form


@dataclass(frozen=True, slots=True)
class Way:
    """A way to set the Collector."""

    name: str
    words: str
    logs: tuple[str, ...]  # it is measured beside Sluice with these event logs
    is_durable: bool = False  # before it answers, like ingest
    is_own_server: bool = False  # it writes to disk itself, so the CPU of ingest's Redis is counted too


WAYS: Final = (
    Way("nop", "that only decodes", ("redis", "kafka")),
    Way("queue", "with a queue on disk", ("redis",), is_own_server=True),
    Way("synced queue", "with a queue on disk and fsync", ("redis",), is_durable=True, is_own_server=True),
    Way("Kafka", "that sends to Kafka", ("kafka",), is_durable=True),
)


@dataclass(frozen=True, slots=True)
class Collector:
    """A running Collector."""

    way: Way
    pid: int
    port: int
    metrics_port: int

    def accepted(self) -> int:
        """The number of records that it has accepted since its start, from its own metric."""
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.metrics_port}/metrics", timeout=10) as answer:
            return accepted_in(answer.read().decode())

    def measured(self, form: Form, seconds: float) -> Cost:
        """Load for `seconds`. The unit is a record. Raises RuntimeError if it accepted fewer than it said."""
        before = self.accepted()
        requests = requests_of(form, BATCH_RECORDS)
        cost = measure_requests(self.pid, self.port, requests, BATCH_RECORDS, form.status, seconds)
        if (accepted := self.accepted() - before) < cost.units:
            raise RuntimeError(f"the Collector {self.way.words} answered for {cost.units} records, accepted {accepted}")
        return cost


def run(options: Options, _marks: set[str]) -> list[Line]:
    """Measure and return the lines. Raises KitError if the Collector can't be compiled."""
    if missing := COLLECTOR.missing():
        raise KitError(f"the Collector is compiled from source, and there is no {missing}")
    folder = COLLECTOR.installed(cache_folder())
    version = COLLECTOR.versions(folder)["go.opentelemetry.io/collector/otelcol"]
    ways = [way for way in WAYS if options.log in way.logs]
    run_on(LOAD_CORE)
    try:
        with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
            ingest = ingest_that_admits_all(options.log, Path(home), stack, "m14:")
            if options.log == "kafka":
                _create_topic(ingest.log_server)
            collectors = [_collector(folder / "collector", way, Path(home), ingest.log_server, stack) for way in ways]
            _report_versions(folder / "collector", version)
            return lines_of(_measured(options, ingest, collectors), ways, version)
    finally:
        run_anywhere()


def _measured(options: Options, ingest: Ingest, collectors: Sequence[Collector]) -> _Costs:
    costs: _Costs = {}
    for _ in range(options.rounds):
        for form in FORMS:
            found = ingest.measured(form, BATCH_RECORDS, options.seconds)
            costs.setdefault((_INGEST, form.name), []).append(found)
            for collector in collectors:
                found = collector.measured(form, options.seconds)
                costs.setdefault((collector.way.name, form.name), []).append(found)
    return costs


def _collector(program: Path, way: Way, home: Path, log_server: Server, stack: contextlib.ExitStack) -> Collector:
    port, metrics_port = free_port(), free_port()
    folder = home / f"collector-{way.name.replace(' ', '-')}"
    folder.mkdir()
    config = folder / "config.json"  # JSON is YAML
    config.write_text(json.dumps(config_of(way, port, metrics_port, folder, log_server.bootstrap)))
    said = subprocess.run(
        [program, "validate", f"--config={config}"], capture_output=True, text=True, check=False, timeout=60
    )
    if said.returncode != 0:
        raise RuntimeError(f"the Collector {way.words} refuses its configuration: {said.stderr.strip()[-500:]}")
    pid = stack.enter_context(process([str(program), f"--config={config}"], None, port))
    return Collector(way, pid, port, metrics_port)


def config_of(way: Way, port: int, metrics_port: int, folder: Path, bootstrap: str) -> _Config:
    """The configuration of a Collector; `folder` is for its queue, and `bootstrap` names the Kafka broker."""
    exporters: _Config
    extensions: _Config = {}
    if way.name == "nop":
        exporters = {"nop": {}}
    elif way.name == "Kafka":
        exporters = {
            "kafka": {
                "brokers": [bootstrap],
                "logs": {"topic": _TOPIC},
                "producer": {"required_acks": -1},
                "sending_queue": {"enabled": False},  # otherwise it answers before it sends
            }
        }
    else:
        extensions = {"file_storage": {"directory": str(folder), "fsync": way.is_durable}}
        exporters = {
            "otlphttp": {
                "endpoint": f"http://{LOOPBACK}:{free_port()}",  # nothing listens there
                "sending_queue": {
                    "storage": "file_storage", "queue_size": _QUEUE_REQUESTS_MAX, "num_consumers": 1,
                },
                "retry_on_failure": {"initial_interval": _LATER, "max_interval": _LATER, "max_elapsed_time": 0},
            }
        }  # fmt: skip
    prometheus = {"host": LOOPBACK, "port": metrics_port}  # ingest has metrics too
    return {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"{LOOPBACK}:{port}"}}}},
        "exporters": exporters,
        "extensions": extensions,
        "service": {
            "extensions": list(extensions),
            "pipelines": {"logs": {"receivers": ["otlp"], "exporters": list(exporters)}},
            "telemetry": {"metrics": {"readers": [{"pull": {"exporter": {"prometheus": prometheus}}}]}},
        },
    }


def _create_topic(broker: Server) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap, api_version=(2, 6, 0))
    try:
        admin.create_topics([NewTopic(_TOPIC, num_partitions=_PARTITIONS, replication_factor=1)])
    finally:
        admin.close()


def accepted_in(metrics: str) -> int:
    """The records that were accepted, in the text of a Collector's metrics."""
    return sum(int(float(count)) for count in _ACCEPTED.findall(metrics))


def _report_versions(program: Path, version: str) -> None:
    said = subprocess.run(["go", "version", program], capture_output=True, text=True, check=False, timeout=60).stdout
    compiler = said.rpartition(": ")[2].strip() or "unknown"
    print(f"{MARK}: Collector {version}, compiled with {compiler}; Python {sys.version.split()[0]}", file=sys.stderr)


def lines_of(costs: _Costs, ways: Sequence[Way], version: str) -> list[Line]:
    """The ratios of records a CPU-second: above 1, ingest takes more of them than the Collector."""
    lines = []
    for form in FORMS:
        ours = costs[_INGEST, form.name]
        for way in ways:
            theirs = costs[way.name, form.name]
            us = "ingest with Redis" if way.is_own_server else "ingest"
            them = f"Collector {version} {way.words}"
            rates = [_rate(one, with_server=way.is_own_server) for one in ours]
            values = ratios(rates, [one.per_cpu_second for one in theirs])
            figures = {
                f"{us}, {form.name}": _figures(rates),
                f"{them}, {form.name}": _figures([one.per_cpu_second for one in theirs]),
            }
            what = f"records a CPU-second, {form.name}: {us} / {them}"
            lines.append(Line(MARK, what, values, figures=figures))
    return lines


def _rate(cost: Cost, *, with_server: bool) -> float:
    return cost.units / (cost.cpu_seconds + (cost.log_cpu_seconds if with_server else 0.0))


def _figures(rates: Sequence[float]) -> dict[str, float]:
    return {"records_per_CPU_second": median(rates), "microseconds_of_CPU_a_record": median(1e6 / one for one in rates)}
