"""M14: ingest beside an OpenTelemetry Collector; what is compared with what."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from checks.bench import collector, edge
from checks.bench.__main__ import measure
from checks.bench.arguments import MARKS, arguments_of
from checks.bench.collector import FORMS, MARK, WAYS, accepted_in, config_of, lines_of
from checks.bench.machine import SERVER_CORE, Options
from checks.bench.process import Cost
from checks.testbed.kits import COLLECTOR
from stack.servers import free_port

WAYS_BY_NAME = {way.name: way for way in WAYS}
LISTENS = """
import os, socket, sys, time
cores = os.sched_getaffinity(0)
print(sorted(cores), file=open(sys.argv[2], "w"), flush=True)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    time.sleep(600)
"""


def test_it_runs_only_if_it_is_named() -> None:
    assert MARK in set(MARKS) - set(arguments_of([]).only)
    assert arguments_of(["--only", MARK]).only == [MARK]


def test_without_a_go_compiler_the_reason_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "COLLECTOR", replace(COLLECTOR, programs=("no-such-go",)))
    lines = measure(Options(quick=True), [MARK])
    assert [(line.mark, line.value) for line in lines] == [(MARK, None)]
    assert "no-such-go" in lines[0].problem


def test_a_collector_that_writes_its_own_file_is_compared_with_ingest_and_its_redis() -> None:
    # Given ingest that takes 1 s for 1,000 records, with 1 s of its log's server; and Collectors that take half as much
    ours, theirs = Cost(1000, 1.0, 5.0, 1.0), Cost(1000, 0.5, 5.0, 0.0)
    costs = {("ingest", form.name): [ours, ours] for form in FORMS}
    costs |= {(way.name, form.name): [theirs, theirs] for way in WAYS for form in FORMS}
    for log in ("redis", "kafka"):
        ways = [way for way in WAYS if log in way.logs]
        lines = lines_of(costs, ways, "1.2.3")
        assert len(lines) == len(ways) * len(FORMS)
        for line in lines:
            way = next(way for way in ways if way.words in line.what)
            # Then ingest has a half of their records a CPU-second, and a quarter with the server
            assert list(line.values) == ([0.25, 0.25] if way.is_own_server else [0.5, 0.5]), line.what
            assert ("with Redis" in line.what) == way.is_own_server
            assert "Collector 1.2.3" in line.what


def test_each_event_log_has_a_way_that_is_as_durable() -> None:
    assert {log for way in WAYS if way.is_durable for log in way.logs} == {"redis", "kafka"}
    for way in WAYS:
        config = config_of(way, 1, 2, Path("/queue"), "127.0.0.1:3")
        assert json.loads(json.dumps(config)) == config
        exporters = config["exporters"]
        assert list(exporters) == config["service"]["pipelines"]["logs"]["exporters"]
    # Given a queue on disk, it is used, and synced only where that is asked for
    for name, is_synced in (("queue", False), ("synced queue", True)):
        config = config_of(WAYS_BY_NAME[name], 1, 2, Path("/queue"), "")
        assert config["extensions"]["file_storage"]["fsync"] is is_synced
        assert config["exporters"]["otlphttp"]["sending_queue"]["storage"] == "file_storage"
    # Given Kafka, nothing is answered before all replicas have it
    kafka = config_of(WAYS_BY_NAME["Kafka"], 1, 2, Path("/queue"), "127.0.0.1:3")["exporters"]["kafka"]
    assert (kafka["sending_queue"]["enabled"], kafka["producer"]["required_acks"]) == (False, -1)


def test_what_a_collector_says_that_it_accepted() -> None:
    text = (
        "# HELP otelcol_receiver_accepted_log_records_total Number of log records\n"
        'otelcol_receiver_accepted_log_records_total{receiver="otlp",transport="http"} 1.2e+06\n'
        'otelcol_receiver_refused_log_records_total{receiver="otlp",transport="http"} 7\n'
    )
    assert accepted_in(text) == 1_200_000
    assert accepted_in("") == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_a_measured_process_is_on_its_core_from_the_beginning(tmp_path: Path) -> None:
    # A runtime that starts threads at once (Go's) would keep some of them on the other core
    port, said = free_port(), tmp_path / "cores"
    before = os.sched_getaffinity(0)
    with edge.process([sys.executable, "-c", LISTENS, str(port), str(said)], None, port):
        assert said.read_text().strip() == str([SERVER_CORE])
    assert os.sched_getaffinity(0) == before
