"""`POST /api/logs?format=lines` on a real socket: real clients, and answers of every kind."""

import contextlib
import gzip
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import logstash_async.constants
import pytest
from logstash_async.handler import AsynchronousLogstashHandler
from logstash_async.transport import HttpTransport
from logtail import LogtailHandler

from checks.loadgen.proxy import Proxy
from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX
from checks.testbed.wire import post
from support.running_ingest import RunningIngest, eventually, metric, restarted, running_ingest

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


def test_the_handler_of_pythons_logging_sends_whole_messages(edge: RunningIngest) -> None:
    # Given the line of docs/protocols.md
    row = next(line for line in (ROOT / "docs" / "protocols.md").read_text().splitlines() if "HTTPHandler(" in line)
    setting = re.search(r"`handler\.(mapLogRecord = [^`]+)`", row)
    assert setting is not None
    program = PROGRAM.replace("logger.warning", f"logger.handlers[0].{setting[1]}\nlogger.warning")
    # When a program logs a message with an argument
    subprocess.run([sys.executable, "-c", program, f"127.0.0.1:{edge.port}"], check=True, timeout=RUN_SECONDS_MAX)
    # Then the event has the whole message
    [record] = edge.records()
    assert record.message == "paid 3"


COUNT = 60
EXPECTED = Counter(f"EV{number}" for number in range(COUNT))


def stored(edge: RunningIngest) -> Counter[str]:
    """The messages of what will be stored: of events with one id, one is."""
    found = {record.event_id: record.message for record in edge.records()}
    return Counter(message for message in found.values() if message.startswith("EV"))


def log_through(handler: logging.Handler, numbers: range = range(COUNT)) -> None:
    logger = logging.Logger("app.orders")
    logger.addHandler(handler)
    for number in numbers:
        logger.warning("EV%d", number)


@contextlib.contextmanager
def logtail(port: int) -> Iterator[logging.Handler]:
    """The handler of Better Stack, as docs/protocols.md sets it."""
    handler = LogtailHandler("TOKEN", host=f"http://127.0.0.1:{port}/api/logs/lines", flush_interval=0.1)
    try:
        yield handler
    finally:
        handler.close()


@contextlib.contextmanager
def logstash(port: int) -> Iterator[logging.Handler]:
    """The handler of python-logstash-async, as docs/protocols.md sets it."""
    transport = HttpTransport("127.0.0.1", port, ssl_enable=False, path="api/logs/lines", timeout=60.0)
    handler = AsynchronousLogstashHandler("127.0.0.1", port, database_path=None, transport=transport)
    try:
        yield handler
    finally:
        handler.close()


HANDLERS: dict[str, Callable[[int], contextlib.AbstractContextManager[logging.Handler]]] = {
    "logtail": logtail,
    "logstash": logstash,
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses of python-logstash-async are seconds."""
    constants = logstash_async.constants.constants
    for name in ("QUEUE_CHECK_INTERVAL", "QUEUED_EVENTS_FLUSH_INTERVAL"):
        monkeypatch.setattr(type(constants), name, 0.1)


def test_a_cut_connection_doubles_nothing(edge: RunningIngest) -> None:
    proxy = Proxy(edge.port).start()
    try:
        # Given an answer that is cut off, after the records are stored
        proxy.swallow(b"EV", b"202 Accepted", times=1)
        with logtail(proxy.port) as handler:
            log_through(handler)
            eventually(lambda: len(edge.records()) > len(stored(edge)) == COUNT, "they were sent again")
        assert proxy.counts.swallowed == 1
    finally:
        proxy.stop()
    assert stored(edge) == EXPECTED


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", list(HANDLERS))
def test_a_restart_of_ingest_loses_and_doubles_nothing(edge: RunningIngest, name: str) -> None:
    proxy = Proxy(edge.port).start()
    try:
        with HANDLERS[name](proxy.port) as handler:
            log_through(handler, range(30))
            eventually(lambda: len(stored(edge)) == 30, "the first records are stored")
            # Given records for which there is no ingest
            edge.stop()
            log_through(handler, range(30, COUNT))
            eventually(lambda: proxy.counts.refused > 0, "the handler has found no server")
            with restarted(edge):
                eventually(lambda: len(stored(edge)) == COUNT, "all are stored")
    finally:
        proxy.stop()
    assert stored(edge) == EXPECTED
    assert {(record.severity, record.source) for record in edge.records()} == {("WARN", "app.orders")}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("name", "is_kept"), [("logtail", False), ("logstash", True)])
def test_a_429_is_a_loss_for_the_clients_that_the_page_names(name: str, is_kept: bool) -> None:
    with running_ingest(rate_max=50.0, rate_min=50.0) as edge:
        # Given a bucket that is in debt
        edge.owe(50)
        refused = 'sluice_ingest_protocol_requests_total{protocol="lines",status="429"}'
        with HANDLERS[name](edge.port) as handler:
            log_through(handler)
            eventually(lambda: metric(edge.port, refused) >= 1, "a body is refused")
            edge.pay()
            if is_kept:
                eventually(lambda: stored(edge) == EXPECTED, "all are stored once")
        assert (stored(edge) == EXPECTED) is is_kept


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
