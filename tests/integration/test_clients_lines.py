"""`POST /api/logs?format=lines` on a real socket: the standard library's own client, and answers of every kind."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from checks.testbed.waiting import RUN_SECONDS_MAX
from checks.testbed.wire import post
from support.running_ingest import RunningIngest, metric, running_ingest

MIB = 1 << 20


@pytest.fixture
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


@pytest.mark.parametrize("target", ["/api/logs?format=lines", "/api/logs/lines"])
def test_lines_are_stored_at_either_address(edge: RunningIngest, target: str) -> None:
    response = post(edge.port, b'{"msg":"a","level":40}\ntext', path=target, content_type="x/y")
    assert (response.status, response.json) == (202, {"accepted": 2, "rejected": 0})
    assert sorted((one.message, one.severity) for one in edge.records()) == [("a", "WARN"), ("text", "INFO")]
    assert metric(edge.port, 'sluice_ingest_protocol_events_total{outcome="accepted",protocol="lines"}') == 2
    assert metric(edge.port, 'sluice_ingest_protocol_requests_total{protocol="lines",status="202"}') == 1
    assert metric(edge.port, 'http_requests_total{status="202"}') == 1
    assert metric(edge.port, "sluice_ingest_accepted_events_total") == 2


def test_another_format_is_refused_by_name(edge: RunningIngest) -> None:
    response = post(edge.port, b"a", path="/api/logs?format=odd")
    assert response.status == 400
    assert "lines" in response.error["message"]


# The handler leaves its connections to the garbage collector: in a process of its own.
PROGRAM = """
import logging, logging.handlers, sys
logger = logging.Logger("app.orders")
logger.addHandler(logging.handlers.HTTPHandler(sys.argv[1], "/api/logs/lines", method="POST"))
logger.warning("paid %s", 3, extra={"user_id": 42})
"""


def test_the_handler_of_pythons_logging(edge: RunningIngest) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, f"127.0.0.1:{edge.port}"], check=True, timeout=RUN_SECONDS_MAX)
    [record] = edge.records()
    assert (record.message, record.severity, record.source) == ("paid %s", "WARN", "app.orders")
    assert record.attributes is not None
    assert (record.attributes["user_id"], record.attributes["args"]) == ("42", "(3,)")


def test_a_body_of_many_mebibytes_is_one_admission_and_holds_no_other_request_up(edge: RunningIngest) -> None:
    lines = b"".join(b'{"time":1795678050979,"msg":"event %d","user":{"id":%d}}\n' % (n, n) for n in range(20_000))
    response = post(edge.port, gzip.compress(lines), path="/api/logs/lines")
    assert (response.status, response.json) == (202, {"accepted": 20_000, "rejected": 0})
    more = post(edge.port, lines + b"one more", path="/api/logs/lines")
    assert more.status == 413
    assert len({one.event_id for one in edge.records()}) == 20_000


def test_a_bomb_is_refused(edge: RunningIngest) -> None:
    bomb = gzip.compress(b"x" * (64 * MIB))
    response = post(edge.port, bomb, path="/api/logs/lines", headers={"Content-Encoding": "gzip"})
    assert response.status == 413
    assert edge.records() == []


def test_while_the_rate_is_used_up_nothing_is_taken() -> None:
    with running_ingest(rate_max=50.0, rate_min=50.0) as edge:
        statuses = []
        for _ in range(20):
            response = post(edge.port, b"text\n" * 100, path="/api/logs/lines")
            statuses.append(response.status)
            if response.status == 429:
                assert int(response.headers["retry-after"]) >= 1
                assert json.loads(response.body)["error"]["code"] == "rate_limited"
        assert 429 in statuses
        assert len(edge.records()) == 100 * statuses.count(202)
