"""The bulk API with the clients of Elasticsearch and OpenSearch, unchanged, against an ingest on a real socket."""

import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import elasticsearch
import elasticsearch.helpers
import opensearchpy
import opensearchpy.helpers
import pytest

from checks.loadgen.proxy import Proxy
from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX
from checks.testbed.wire import get, request, send
from ingest.protocols.elasticsearch import VERSIONS
from support.running_ingest import RunningIngest, eventually, metric, restarted, running_ingest

PATIENT: dict[str, Any] = {"chunk_size": 20, "max_retries": 50, "initial_backoff": 0.1, "max_backoff": 1}
BEGAN = datetime(2026, 11, 26, tzinfo=UTC)


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


@contextlib.contextmanager
def elastic(port: int) -> Iterator[elasticsearch.Elasticsearch]:
    with elasticsearch.Elasticsearch(
        f"http://127.0.0.1:{port}", basic_auth=("user", "pass"), request_timeout=WAIT_SECONDS_MAX
    ) as client:
        yield client


@contextlib.contextmanager
def opensearch(port: int) -> Iterator[opensearchpy.OpenSearch]:
    client = opensearchpy.OpenSearch(
        [{"host": "127.0.0.1", "port": port}], http_compress=True, http_auth=("user", "pass"), timeout=WAIT_SECONDS_MAX
    )
    try:
        yield client
    finally:
        client.close()


def documents(run: str, count: int, op: str = "index") -> list[dict[str, Any]]:
    """Documents of a log, as a client's helper takes them."""
    return [
        {
            "_op_type": op,
            "_index": "logs-app",
            "@timestamp": (BEGAN + timedelta(milliseconds=number)).isoformat(),
            "message": f"{run} {number}",
            "log": {"level": "warn"},
        }
        for number in range(count)
    ]


def sent_by(run: str, edge: RunningIngest) -> list[str]:
    """The messages of a run that are in the log, each as often as it has an event id of its own."""
    found = {(record.event_id, record.message) for record in edge.records() if record.message.startswith(f"{run} ")}
    return sorted((message for _, message in found), key=lambda message: int(message.split()[1]))


def sent(run: str, count: int) -> list[str]:
    return [f"{run} {number}" for number in range(count)]


@contextlib.contextmanager
def cut_once(edge: RunningIngest) -> Iterator[Proxy]:
    """A proxy that loses the answer to the first request that is stored."""
    proxy = Proxy(edge.port).start()
    proxy.swallow(b"_bulk", b"HTTP/1.1 200", times=1)
    try:
        yield proxy
    finally:
        proxy.stop()


def test_the_clients_see_a_server_that_they_can_use(edge: RunningIngest) -> None:
    with elastic(edge.port) as client:
        assert client.ping()
        assert client.info()["version"]["number"] == VERSIONS["9"]
        assert client.cluster.health()["status"] in ("green", "yellow", "red")
        answer = client.bulk(operations=[{"index": {"_index": "a"}}, {"message": "one"}])
        assert (answer["errors"], answer["items"][0]["index"]["status"]) == (False, 201)
    with opensearch(edge.port) as client_of_opensearch:
        assert client_of_opensearch.ping()
        assert client_of_opensearch.info()["version"]["distribution"] == "opensearch"


def test_a_browser_gets_the_page_and_a_shipper_the_version(edge: RunningIngest) -> None:
    for headers in ({"Accept": "text/html,*/*;q=0.8", "User-Agent": "Mozilla/5.0"}, {}):
        answer = send(edge.port, request(method="GET", path="/", content_type=None, headers=headers))
        assert answer.headers["content-type"].startswith("text/html")
        assert "x-elastic-product" not in answer.headers
    for method in ("GET", "HEAD"):
        shipper = request(method=method, path="/", content_type=None, headers={"User-Agent": "Logstash/8.19.0"})
        answer = send(edge.port, shipper, has_body=method == "GET")
        assert (answer.status, answer.headers["x-elastic-product"]) == (200, "Elasticsearch")
    assert get(edge.port, "/_license").json["license"]["status"] == "active"
    assert get(edge.port, "/_cluster/health").status == 200


def test_an_item_error_names_the_document(edge: RunningIngest) -> None:
    before = metric(edge.port, 'sluice_ingest_protocol_events_total{outcome="rejected",protocol="elasticsearch"}')
    actions = [*documents("mixed", 2), {"_op_type": "delete", "_index": "logs-app", "_id": "1"}]
    with elastic(edge.port) as client:
        stored, errors = elasticsearch.helpers.bulk(client, actions, raise_on_error=False)
    assert isinstance(errors, list)
    assert (stored, [list(error) for error in errors]) == (2, [["delete"]])
    assert sent_by("mixed", edge) == sent("mixed", 2)
    after = metric(edge.port, 'sluice_ingest_protocol_events_total{outcome="rejected",protocol="elasticsearch"}')
    assert after == before + 1


def test_a_path_with_an_index_a_query_and_another_method(edge: RunningIngest) -> None:
    body = b'{"index":{}}\n{"message":"path 0","@timestamp":"2026-11-26T00:00:00Z"}\n'
    for method in ("POST", "PUT"):
        path = "/logs-app/_bulk?filter_path=errors,items.*.status"
        headers = {"Content-Length": str(len(body))} if method == "PUT" else {}
        answer = send(edge.port, request(body, method=method, path=path, headers=headers))
        assert answer.body == b'{"errors":false,"items":[{"index":{"status":201}}]}'
    assert sent_by("path", edge) == ["path 0"], "a repeat has the same id"


@pytest.mark.parametrize("name", ["elasticsearch", "opensearch"])
def test_all_is_stored_once_through_a_rate_limit_and_a_lost_answer(name: str) -> None:
    refused = 'sluice_ingest_protocol_requests_total{protocol="elasticsearch",status="429"}'

    def send(port: int) -> object:
        if name == "elasticsearch":
            with elastic(port) as client:
                return elasticsearch.helpers.bulk(client, documents("es", 60), **PATIENT)
        with opensearch(port) as other:
            return opensearchpy.helpers.bulk(other, documents("es", 60, "create"), **PATIENT)

    # Given a bucket in a debt that it pays once a request was refused, and a connection that is cut after the first
    # documents are stored
    with running_ingest(rate_min=20, rate_max=20) as limited, cut_once(limited) as proxy:
        limited.owe(180)
        # When a client sends
        with ThreadPoolExecutor(1) as executor:
            sending = executor.submit(send, proxy.port)
            eventually(lambda: metric(limited.port, refused) > 0 or sending.done(), "a request is refused")
            limited.pay()
            result = sending.result(RUN_SECONDS_MAX)
        # Then everything is stored, and nothing twice
        assert result == (60, [])
        assert proxy.counts.swallowed == 1
        assert sent_by("es", limited) == sent("es", 60)
        assert metric(limited.port, refused) > 0


@pytest.mark.parametrize("name", ["elasticsearch", "opensearch"])
def test_a_call_that_a_restart_of_ingest_breaks_is_repeated_and_stored_once(name: str) -> None:
    # Given a program that repeats its call, as docs/protocols/elasticsearch.md recommends, with ids of its own
    wanted = [document | {"_id": f"{uuid.uuid4()}"} for document in documents("again", 100)]
    with running_ingest() as edge, contextlib.ExitStack() as stack:

        def paced() -> Iterator[dict[str, Any]]:
            yield from wanted[:50]
            edge.stop()
            yield from wanted[50:]

        def send(wanted: Iterable[dict[str, Any]]) -> object:
            if name == "elasticsearch":
                return elasticsearch.helpers.bulk(elastic_client, wanted, **PATIENT)
            return opensearchpy.helpers.bulk(opensearch_client, wanted, **PATIENT)

        elastic_client = stack.enter_context(elastic(edge.port))
        opensearch_client = stack.enter_context(opensearch(edge.port))
        with pytest.raises((elasticsearch.ConnectionError, opensearchpy.ConnectionError)):
            send(paced())
        assert 0 < len(sent_by("again", edge)) < 100
        # When ingest runs again
        stack.enter_context(restarted(edge))
        assert send(wanted) == (100, [])
        # Then the log has some documents twice with one id, and the drain stores one of them
        assert len(edge.records()) > 100
        assert sent_by("again", edge) == sent("again", 100)


def test_a_refusal_is_whole_and_says_when_to_come_back() -> None:
    with running_ingest(rate_min=1, rate_max=1) as limited:
        line = b'{"index":{}}\n{"message":"m"}\n'
        assert send(limited.port, request(line * 100, path="/_bulk")).status == 200
        eventually(lambda: send(limited.port, request(line, path="/_bulk")).status == 429, "the bucket is empty")
        headers = {"Accept": "application/vnd.elasticsearch+json; compatible-with=9"}
        answer = send(limited.port, request(line, path="/_bulk", headers=headers))
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["content-type"] == "application/vnd.elasticsearch+json;compatible-with=9"
        document = json.loads(answer.body)
        assert document["status"] == 429
        assert document["error"]["type"] == "es_rejected_execution_exception"
