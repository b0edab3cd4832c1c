"""`POST /v1/logs` on a real socket: OpenTelemetry's own SDK for Python, and answers of every kind."""

import gzip
import json
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from checks.loadgen.proxy import Proxy
from checks.testbed.waiting import WAIT_SECONDS_MAX
from checks.testbed.wire import post, request, send
from support.clients import recorded
from support.running_ingest import RunningIngest, eventually, metric, restarted, running_ingest

PROTOBUF = "application/x-protobuf"


@pytest.fixture
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


class Program:
    """A program that logs through the SDK."""

    def __init__(self, port: int, *, batch: int = 50, **options: Any) -> None:
        exporter = OTLPLogExporter(f"http://127.0.0.1:{port}/v1/logs", **options)
        resource = Resource.create({"service.name": "shop", "service.version": "1.2"})
        self.provider = LoggerProvider(resource, shutdown_on_exit=False)
        processor = BatchLogRecordProcessor(exporter, schedule_delay_millis=100, max_export_batch_size=batch)
        self.provider.add_log_record_processor(processor)
        self.logger = self.provider.get_logger("shop.orders")

    def log(self, count: int, *, first: int = 0) -> None:
        for number in range(first, first + count):
            self.logger.emit(
                timestamp=1_795_677_652_630_376_419 + number,
                severity_number=SeverityNumber.WARN,
                body=f"order {number}",
                attributes={"number": number, "tags": ["a"]},
            )

    def end(self) -> None:
        self.provider.force_flush(int(1000 * WAIT_SECONDS_MAX))
        self.provider.shutdown()


def stored(edge: RunningIngest) -> Counter[str]:
    """The messages of what will be stored: of events with one id, one is."""
    return Counter({record.event_id: record.message for record in edge.records()}.values())


def _ids(edge: RunningIngest) -> set[str]:
    return {record.event_id for record in edge.records()}


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_the_sdk_for_python(edge: RunningIngest, compression: Compression) -> None:
    program = Program(edge.port, compression=compression, timeout=60)
    program.log(120)
    program.end()
    assert stored(edge) == {f"order {number}": 1 for number in range(120)}
    assert len(edge.records()) == 120
    record = next(record for record in edge.records() if record.message == "order 7")
    assert (record.severity, record.source, record.correlation_id) == ("WARN", "shop", "shop")
    assert record.attributes is not None
    assert record.attributes["number"] == 7
    assert record.attributes["tags"] == '["a"]'
    assert (record.attributes["scope.name"], record.attributes["service.version"]) == ("shop.orders", "1.2")
    assert metric(edge.port, 'sluice_ingest_protocol_events_total{outcome="accepted",protocol="otlp"}') == 120
    assert metric(edge.port, 'sluice_ingest_protocol_events_total{outcome="rejected",protocol="otlp"}') == 0
    assert metric(edge.port, 'sluice_ingest_protocol_requests_total{protocol="otlp",status="200"}') >= 3


def test_the_sdk_waits_for_a_429_and_loses_nothing() -> None:
    with running_ingest(rate_max=50.0, rate_min=50.0) as edge:
        # Given a bucket that is in debt
        edge.owe(50)
        owed = _ids(edge)
        program = Program(edge.port, batch=100, timeout=60)
        program.log(300)
        refused = 'sluice_ingest_protocol_requests_total{protocol="otlp",status="429"}'
        eventually(lambda: metric(edge.port, refused) >= 1, "a body is refused")
        # When the debt is paid, Then all is stored once
        edge.pay()
        program.end()
        sent = Counter(record.message for record in edge.records() if record.event_id not in owed)
        assert sent == {f"order {number}": 1 for number in range(300)}


def test_the_sdk_repeats_what_was_stored_without_an_answer_and_it_is_stored_once(edge: RunningIngest) -> None:
    # Given a way to ingest that cuts connections instead of forwarding an answer
    proxy = Proxy(edge.port).start()
    try:
        proxy.swallow(b"shop", b"200 OK")
        program = Program(proxy.port, timeout=60)
        program.log(20)
        eventually(lambda: proxy.counts.swallowed >= 1, "an answer is lost")
        proxy.restore()
        program.end()
    finally:
        proxy.stop()
    # Then the same events came again, with the same ids
    assert len(edge.records()) >= 40
    assert stored(edge) == {f"order {number}": 1 for number in range(20)}


def test_the_sdk_goes_on_after_a_restart_of_ingest_and_loses_nothing(
    edge: RunningIngest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The SDK drops log lines that an earlier test has caused within the same 20 s, and this one waits for such a line.
    monkeypatch.setattr(logging.getLogger(OTLPLogExporter.__module__), "filters", [])
    program = Program(edge.port, timeout=60)
    program.log(60)
    eventually(lambda: len(edge.records()) == 60, "the first records are stored")
    # Given records for which there is no ingest, so that the SDK waits before it repeats
    edge.stop()
    program.log(60, first=60)
    eventually(lambda: "retrying" in caplog.text, "the SDK has found no server")
    with restarted(edge):
        program.log(60, first=120)
        program.end()
    assert stored(edge) == {f"order {number}": 1 for number in range(180)}


@pytest.mark.parametrize("name", ["go-otelcol-proto-0", "go-otelcol-json-0", "js-otlp-json-0", "c-fluentbit-otel-0"])
def test_what_real_clients_sent_is_stored_once(edge: RunningIngest, name: str) -> None:
    sent = recorded(name)
    headers = {key: sent.headers[key] for key in ("content-encoding",) if key in sent.headers}
    for _ in range(2):
        response = post(
            edge.port, sent.body, path="/v1/logs", content_type=sent.headers["content-type"], headers=headers
        )
        assert (response.status, response.headers["content-type"]) == (200, sent.headers["content-type"])
    assert len(edge.records()) == 10
    assert len(_ids(edge)) == 5


def test_an_empty_request_and_a_partial_success(edge: RunningIngest) -> None:
    response = post(edge.port, b"", path="/v1/logs", content_type=PROTOBUF)
    assert (response.status, response.body, response.headers["content-type"]) == (200, b"", PROTOBUF)
    records = [{"body": {"stringValue": "a"}}, {"timeUnixNano": "soon"}]
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}
    response = post(edge.port, body, path="/v1/logs")
    assert response.status == 200
    assert response.json["partialSuccess"]["rejectedLogRecords"] == "1"
    assert [record.message for record in edge.records()] == ["a"]
    assert metric(edge.port, 'sluice_ingest_protocol_events_total{outcome="rejected",protocol="otlp"}') == 1


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        (PROTOBUF, b"{}", 400),
        ("application/json", b"\x0a\x00", 400),
        ("text/plain", b"{}", 415),
        (None, b"{}", 415),
        (PROTOBUF, gzip.compress(b"\0" * (17 << 20)), 413),
    ],
)
def test_errors_are_a_status(edge: RunningIngest, content_type: str | None, body: bytes, status: int) -> None:
    response = send(edge.port, request(body, path="/v1/logs", content_type=content_type))
    assert response.status == status
    if response.headers["content-type"] == PROTOBUF:
        assert Status.FromString(response.body).message
    else:
        assert response.headers["content-type"] == "application/json"
        assert set(response.json) == {"code", "message"}
    assert edge.records() == []


def test_while_the_rate_is_used_up_a_client_waits_five_seconds_at_most() -> None:
    whole = ExportLogsServiceRequest()
    records = whole.resource_logs.add().scope_logs.add().log_records
    for _ in range(100):
        records.add().body.string_value = "a"
    with running_ingest(rate_max=10.0, rate_min=10.0) as edge:
        answers = [post(edge.port, whole.SerializeToString(), path="/v1/logs", content_type=PROTOBUF) for _ in range(8)]
        refused = [answer for answer in answers if answer.status == 429]
        assert refused
        assert {answer.status for answer in answers} == {200, 429}
        for answer in refused:
            assert 1 <= int(answer.headers["retry-after"]) <= 5
            assert Status.FromString(answer.body).code == 8
        assert len(edge.records()) == 100 * (8 - len(refused))


def test_the_command_of_the_contract(edge: RunningIngest) -> None:
    document = send(edge.port, request(method="GET", path="/openapi.json", content_type=None)).json
    [example] = document["paths"]["/v1/logs"]["post"]["requestBody"]["content"]["application/json"]["examples"].values()
    response = post(edge.port, json.dumps(example["value"]).encode(), path="/v1/logs")
    assert (response.status, response.json) == (200, {})
    [record] = edge.records()
    assert (record.message, record.severity, record.source) == ("payment took 2.1 s", "WARN", "shop")
