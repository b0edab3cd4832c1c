"""Splunk's HTTP Event Collector with a client of it, unchanged, against an ingest on a real socket."""

import contextlib
import logging
import uuid
from collections.abc import Iterator

import pytest
import requests
from splunk_handler import SplunkHandler

from checks.loadgen.proxy import Proxy
from checks.testbed.waiting import WAIT_SECONDS_MAX, while_it_lasts
from checks.testbed.wire import get, post, request, send
from support.running_ingest import RunningIngest, eventually, metric, restarted, running_ingest, sample

EVENT = "/services/collector/event"


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


@contextlib.contextmanager
def logger_to(port: int, *, flush_interval: float = 30.0) -> Iterator[logging.Logger]:
    """A logger of Python with the handler of Splunk; all is sent at the end."""
    handler = SplunkHandler(
        "127.0.0.1", port, "TOKEN", "main", protocol="http", verify=False, flush_interval=flush_interval,
        retry_count=100, retry_backoff=0.1,
    )  # fmt: skip
    logger = logging.Logger(uuid.uuid4().hex)
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        handler.close()


def messages(edge: RunningIngest) -> list[str]:
    """The messages in the log, each as often as it has an event id of its own."""
    return sorted(message for _, message in {(record.event_id, record.message) for record in edge.records()})


def test_what_clients_ask_first(edge: RunningIngest) -> None:
    for path in ("/services/collector/health", "/services/collector/health/1.0"):
        answer = get(edge.port, path)
        assert (answer.status, answer.json) == (200, {"text": "HEC is healthy", "code": 17})
    answer = send(edge.port, request(method="OPTIONS", path=f"{EVENT}/1.0", content_type=None))
    assert (answer.status, answer.headers["allow"], answer.body) == (200, "POST, OPTIONS", b"")
    answer = post(edge.port, {"acks": [0]}, path="/services/collector/ack?channel=x")
    assert (answer.status, answer.json) == (400, {"text": "ACK is disabled", "code": 14})


def test_events_and_lines_with_every_address(edge: RunningIngest) -> None:
    url = f"http://127.0.0.1:{edge.port}/services/collector"
    headers = {"Authorization": "Splunk TOKEN", "X-Splunk-Request-Channel": str(uuid.uuid4())}
    run = uuid.uuid4().hex
    for number, path in enumerate(("", "/event", "/event/1.0", "/raw?source=s", "/raw/1.0")):
        body = f"{run} {number}" if "raw" in path else f'{{"event": "{run} {number}"}}'
        answer = requests.post(url + path, data=body, headers=headers, timeout=WAIT_SECONDS_MAX)
        assert (answer.status_code, answer.json()) == (200, {"text": "Success", "code": 0}), path
    assert [one for one in messages(edge) if one.startswith(run)] == [f"{run} {number}" for number in range(5)]
    answer = requests.post(url, data="", headers=headers, timeout=WAIT_SECONDS_MAX)
    assert (answer.status_code, answer.json()) == (400, {"text": "No data", "code": 5})


def test_all_is_stored_once_through_a_full_server_and_a_lost_answer() -> None:
    refused = 'sluice_ingest_protocol_requests_total{protocol="splunk",status="503"}'
    found: list[tuple[list[str], int]] = []

    def logs_through(seconds: float) -> None:
        with running_ingest(rate_min=50, rate_max=50) as limited:
            # Given a bucket that is in debt for a time, and a connection that is cut once after the events are stored
            assert post(limited.port, [sample(message="first")] * int(50 + 50 * seconds)).status == 202
            proxy = Proxy(limited.port).start()
            proxy.swallow(b"POST", b"HTTP/1.1 200", times=1)
            try:
                # When a program logs
                with logger_to(proxy.port) as logger:
                    for number in range(100):
                        logger.warning("event %03d", number)
                found.append(([one for one in messages(limited) if one != "first"], proxy.counts.swallowed))
                assert metric(limited.port, refused) >= 1  # a busy machine may have paid the debt before
            finally:
                proxy.stop()

    while_it_lasts(logs_through, 4.0, seconds_max=16.0)
    # Then everything is stored, and nothing twice, each time
    assert found == [([f"event {n:03}" for n in range(100)], 1)] * len(found)


def test_a_restart_of_ingest_loses_and_doubles_nothing() -> None:
    with running_ingest() as edge:
        proxy = Proxy(edge.port).start()
        try:
            with logger_to(proxy.port, flush_interval=0.1) as logger:
                for number in range(50):
                    logger.warning("event %03d", number)
                eventually(lambda: len(messages(edge)) == 50, "the first events are stored")
                # Given events for which there is no ingest
                edge.stop()
                for number in range(50, 100):
                    logger.warning("event %03d", number)
                eventually(lambda: proxy.counts.refused > 0, "the handler has found no server")
                with restarted(edge):
                    eventually(lambda: len(messages(edge)) == 100, "all are stored")
        finally:
            proxy.stop()
        assert messages(edge) == [f"event {number:03}" for number in range(100)]


def test_a_refusal_is_whole_and_says_when_to_come_back() -> None:
    with running_ingest(rate_min=1, rate_max=1) as limited:
        assert send(limited.port, request(b'{"event":"m"}' * 100, path=EVENT)).status == 200
        eventually(lambda: send(limited.port, request(b'{"event":"m"}', path=EVENT)).status == 503, "it is empty")
        answer = send(limited.port, request(b'{"event":"m"}', path=EVENT))
        assert (answer.status, answer.json) == (503, {"text": "Server is busy", "code": 9})
        assert int(answer.headers["retry-after"]) >= 1
