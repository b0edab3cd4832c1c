"""GELF over HTTP on a real socket, with real clients, which do not wait for an answer."""

import http.client
import json
import logging
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

import graypy
import pygelf
import pytest

from checks.loadgen.proxy import Proxy
from checks.testbed.waiting import WAIT_SECONDS_MAX
from checks.testbed.wire import Wire, request, send
from pipeline.clock import SystemClock
from support.running_ingest import RunningIngest, eventually, metric, restarted, running_ingest

# The handlers leave their sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

CLOCK = SystemClock()
COUNT = 40
EXPECTED = Counter(f"EV{number}" for number in range(COUNT))
HANDLERS: dict[str, Callable[[int], logging.Handler]] = {
    "graypy": lambda port: graypy.GELFHTTPHandler("127.0.0.1", port, timeout=60),
    "graypy-plain": lambda port: graypy.GELFHTTPHandler("127.0.0.1", port, compress=False, timeout=60),
    "pygelf": lambda port: pygelf.GelfHttpHandler(
        host="127.0.0.1", port=port, _app="shop", include_extra_fields=True, timeout=60
    ),
}


@pytest.fixture
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


def log_through(handler: logging.Handler) -> None:
    logger = logging.Logger("app.orders")
    logger.addHandler(handler)
    for number in range(COUNT):
        logger.error("EV%d", number, extra={"user": 42})


class ReadingHandler(pygelf.GelfHttpHandler):  # type: ignore[misc]  # it has no types
    """A handler that reads its answers, and repeats: docs/protocols/gelf.md."""

    def emit(self, record: logging.LogRecord) -> None:
        data = self.convert_record_to_gelf(record)
        for _ in range(60):
            connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
            try:
                connection.request("POST", self.path, data, self.headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status not in (429, 503):
                    return
                CLOCK.sleep(float(answer.headers.get("Retry-After", 1)))
            except OSError:
                CLOCK.sleep(1)
            finally:
                connection.close()
        self.handleError(record)


def messages(edge: RunningIngest) -> Counter[str]:
    return Counter(record.message for record in edge.records())


def answered(edge: RunningIngest, status: int) -> float:
    return metric(edge.port, f'sluice_ingest_protocol_requests_total{{protocol="gelf",status="{status}"}}')


@pytest.mark.parametrize("name", list(HANDLERS))
def test_what_the_handler_sends_is_stored(edge: RunningIngest, name: str) -> None:
    log_through(HANDLERS[name](edge.port))
    eventually(lambda: messages(edge) == EXPECTED, "all messages are stored, and none twice")
    record = edge.records()[0]
    assert record.severity == "ERROR"
    assert record.source == ("shop" if name == "pygelf" else "app.orders")
    assert record.attributes is not None
    assert record.attributes["user"] == 42
    # And each counts as accepted, although no client is there any more
    eventually(lambda: answered(edge, 202) == COUNT, "all are counted")


@pytest.mark.parametrize("name", list(HANDLERS))
def test_what_a_rate_limit_refuses_is_lost_and_counted(name: str) -> None:
    with running_ingest(rate_min=1, rate_max=1) as edge:
        log_through(HANDLERS[name](edge.port))
        eventually(lambda: answered(edge, 202) + answered(edge, 429) == COUNT, "each is accepted or refused")
        assert answered(edge, 429) >= 1
        assert sum(messages(edge).values()) == answered(edge, 202)


def test_a_handler_that_reads_its_answers_loses_and_doubles_nothing() -> None:
    with running_ingest(rate_min=1) as edge:
        proxy = Proxy(edge.port).start()
        # Given an answer that is cut off, after the message is stored
        proxy.swallow(b"POST /gelf", b"202 Accepted")
        handler = ReadingHandler(host="127.0.0.1", port=proxy.port, _app="shop", timeout=60)
        logging_thread = threading.Thread(target=log_through, args=(handler,))
        logging_thread.start()
        try:
            eventually(lambda: proxy.counts.swallowed > 0, "an answer is cut off")
            edge.publish(1)
            eventually(lambda: metric(edge.port, "sluice_ingest_rate") == 1, "the rate is known")
            proxy.restore()
            # And a rate that refuses messages for a time
            eventually(lambda: answered(edge, 429) >= 1, "a message is refused")
            edge.publish(1e6)
            logging_thread.join(WAIT_SECONDS_MAX)
            assert not logging_thread.is_alive()
        finally:
            proxy.stop()
        assert len(edge.records()) > COUNT
        # Then the log has the repeated message twice with one id, and the drain stores one of them
        assert Counter({record.event_id: record.message for record in edge.records()}.values()) == EXPECTED


def test_a_handler_that_reads_its_answers_loses_nothing_in_a_restart_of_ingest(edge: RunningIngest) -> None:
    proxy = Proxy(edge.port).start()
    try:
        # Given messages for which there is no ingest
        edge.stop()
        handler = ReadingHandler(host="127.0.0.1", port=proxy.port, _app="shop")
        logging_thread = threading.Thread(target=log_through, args=(handler,))
        logging_thread.start()
        eventually(lambda: proxy.counts.refused > 0, "the handler has found no server")
        with restarted(edge):
            logging_thread.join(WAIT_SECONDS_MAX)
            assert not logging_thread.is_alive()
    finally:
        proxy.stop()
    assert messages(edge) == EXPECTED


def test_a_message_arrives_although_its_client_has_gone() -> None:
    # Given a log that needs time
    with running_ingest() as edge:
        count = 2_000  # decoded in many turns
        text = "\n".join(json.dumps({"short_message": "one of many", "_n": n}) for n in range(count)).encode()
        for body, headers in ((text, {}), (zlib.compress(text), {"Content-Encoding": "gzip,deflate"})):
            with Wire(edge.port) as wire:
                wire.send(request(body, path="/gelf", content_type=None, headers=headers))
        eventually(lambda: messages(edge) == Counter({"one of many": 2 * count}), "all are stored")


def test_a_body_that_did_not_arrive_as_a_whole_is_nothing(edge: RunningIngest) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(b'{"short_message":"half', path="/gelf", length=50))
    with Wire(edge.port) as wire:
        wire.send(request(b'{"short_message":"whole"}', path="/gelf"))
        assert (answer := wire.answer()).status == 202
        assert answer.body == b""
    assert messages(edge) == Counter({"whole": 1})
    eventually(lambda: edge.service.held_bodies.bytes == 0, "its bytes are released")


def test_other_clients_are_collected_only_while_they_are_there(edge: RunningIngest) -> None:
    # The next request on the connection decides by its own protocol
    with Wire(edge.port) as wire:
        wire.send(request(b'{"short_message":"a"}', path="/gelf"))
        assert wire.answer().status == 202
        assert send(edge.port, request(b"{}", path="/gelf?x=1")).status == 202
        wire.send(request(b"{", path="/api/logs"))
        assert wire.answer().status == 400
