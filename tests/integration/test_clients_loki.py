"""Loki's push API on a real socket, with a real client: what it sends is stored, and nothing twice."""

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from queue import Queue
from typing import Any

import cramjam
import logging_loki
import pytest
import requests
from logging_loki.emitter import LokiEmitter
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from checks.loadgen.proxy import Proxy
from checks.testbed.waiting import WAIT_SECONDS_MAX
from checks.testbed.wire import Wire, request, send
from support.loki import entry, push, stream
from support.running_ingest import RunningIngest, eventually, metric, restarted, running_ingest

PATH = "/loki/api/v1/push"
NS = 1_795_677_435_213_000_000
COUNT = 30


class PatientSession(requests.Session):
    """A session that repeats its request after 429, 503, and a connection that breaks: docs/protocols/loki.md."""

    def __init__(self) -> None:
        super().__init__()
        retry = Retry(total=60, status_forcelist=(429, 503), allowed_methods=None, backoff_factor=0.1)
        self.mount("http://", HTTPAdapter(max_retries=retry))


@pytest.fixture
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LokiEmitter, "session_class", PatientSession)


class Failures(logging_loki.LokiHandler):  # type: ignore[misc]  # it has no types
    """A handler that counts the records that it gave up."""

    failed = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # of logging
        self.emitter.close()
        self.failed += 1


def log_through(handler: logging.Handler, end: int = COUNT, begin: int = 0) -> None:
    """Log messages, each with its number."""
    logger = logging.Logger("app.orders")
    logger.addHandler(handler)
    for number in range(begin, end):
        logger.warning("EV%d", number, extra={"tags": {"tenant": "a"}})


def options(port: int, **changes: Any) -> dict[str, Any]:
    return {"url": f"http://127.0.0.1:{port}{PATH}", "tags": {"app": "shop"}, "version": "1"} | changes


def messages(edge: RunningIngest) -> Counter[str]:
    return Counter(record.message for record in edge.records())


EXPECTED = Counter(f"EV{number}" for number in range(COUNT))


@pytest.mark.parametrize("changes", [{}, {"version": "0", "url": "/api/prom/push"}, {"version": "0"}])
def test_what_the_handler_sends_is_stored(edge: RunningIngest, changes: dict[str, Any]) -> None:
    if "url" in changes:
        changes = {**changes, "url": f"http://127.0.0.1:{edge.port}{changes['url']}"}
    handler = Failures(**options(edge.port, **changes))
    log_through(handler)
    # The older form expects 204 too
    assert handler.failed == 0
    assert messages(edge) == EXPECTED
    record = edge.records()[0]
    assert (record.severity, record.source) == ("WARN", "shop")
    assert record.correlation_id == '{app="shop", logger="app.orders", severity="warning", tenant="a"}'
    assert record.attributes is not None
    assert record.attributes["tenant"] == "a"
    # One stream keeps its order
    assert [record.message for record in edge.records()] == list(EXPECTED)


def test_the_handler_with_a_queue(edge: RunningIngest) -> None:
    handler = logging_loki.LokiQueueHandler(Queue(-1), **options(edge.port))
    log_through(handler)
    handler.listener.stop()
    assert messages(edge) == EXPECTED


@pytest.mark.usefixtures("patient")
def test_a_rate_limit_and_a_cut_connection_lose_and_double_nothing() -> None:
    with running_ingest(rate_min=1) as edge:
        proxy = Proxy(edge.port).start()
        # Given an answer that is cut off, after the event is stored
        proxy.swallow(b"EV3", b"204 No Content")
        handler = Failures(**options(proxy.port))
        logging_thread = threading.Thread(target=log_through, args=(handler,))
        logging_thread.start()
        try:
            eventually(lambda: proxy.counts.swallowed > 0, "an answer is cut off")
            edge.publish(1)
            eventually(lambda: metric(edge.port, "sluice_ingest_rate") == 1, "the rate is known")
            proxy.restore()
            # And a rate that refuses bodies for a time
            refused = 'sluice_ingest_protocol_requests_total{protocol="loki",status="429"}'
            eventually(lambda: metric(edge.port, refused) >= 1, "a body is refused")
            edge.publish(1e6)
            logging_thread.join(WAIT_SECONDS_MAX)
            assert not logging_thread.is_alive()
        finally:
            proxy.stop()
        assert handler.failed == 0
        assert len(edge.records()) > COUNT
        # Then the log has the repeated event twice with one id, and the drain stores one of them
        found = {record.event_id: record.message for record in edge.records()}
        assert Counter(found.values()) == EXPECTED


@pytest.mark.usefixtures("patient")
def test_a_restart_of_ingest_loses_and_doubles_nothing(edge: RunningIngest) -> None:
    proxy = Proxy(edge.port).start()
    try:
        handler = Failures(**options(proxy.port))
        log_through(handler)
        # Given events for which there is no ingest
        edge.stop()
        logging_thread = threading.Thread(target=log_through, args=(handler, 2 * COUNT, COUNT))
        logging_thread.start()
        eventually(lambda: proxy.counts.refused > 0, "the handler has found no server")
        with restarted(edge):
            logging_thread.join(WAIT_SECONDS_MAX)
            assert not logging_thread.is_alive()
    finally:
        proxy.stop()
    assert handler.failed == 0
    assert messages(edge) == Counter(f"EV{number}" for number in range(2 * COUNT))


def test_without_such_a_session_a_429_is_a_loss_that_the_handler_reports() -> None:
    with running_ingest(rate_min=1, rate_max=1) as edge:
        handler = Failures(**options(edge.port))
        log_through(handler)
        assert handler.failed >= 1
        assert sum(messages(edge).values()) == COUNT - handler.failed


def test_protobuf_in_snappy_is_answered_with_204_and_no_length(edge: RunningIngest) -> None:
    body = push(stream('{app="shop"}', *[entry(NS + n, f"EV{n}") for n in range(COUNT)]))
    packed = bytes(cramjam.snappy.compress_raw(body))
    with Wire(edge.port) as wire:
        for _ in range(2):  # the connection stays usable after a response without a body
            wire.send(request(packed, path=PATH, content_type="application/x-protobuf"))
            answer = wire.answer()
            assert answer.status == 204
            assert answer.headers.keys() == {"connection", "x-request-id"}
    records = {record.event_id: record for record in edge.records()}
    assert Counter(record.message for record in records.values()) == EXPECTED
    assert len({record.correlation_id for record in records.values()}) == 1
    eventually(
        lambda: (
            metric(edge.port, 'sluice_ingest_protocol_events_total{outcome="accepted",protocol="loki"}') == 2 * COUNT
        ),
        "the events are counted",
    )


def test_an_error_is_a_line_of_text(edge: RunningIngest) -> None:
    answer = send(edge.port, request(b"{}", path=PATH))
    assert (answer.status, answer.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert answer.body.startswith(b"the body is not an object with streams")
    assert answer.body.endswith(b"\n")


def test_an_address_with_a_query_is_the_same_address(edge: RunningIngest) -> None:
    body = json.dumps({"streams": [{"stream": {}, "values": [[str(NS), "a"]]}]}).encode()
    answer = send(edge.port, request(body, path=f"{PATH}?tenant=a"))
    assert (answer.status, answer.body) == (204, b"")
