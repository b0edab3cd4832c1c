"""A request's id: in its answer, in the log's records, in PostgreSQL's rows, whatever becomes of the request."""

import re
import uuid
from collections.abc import Iterator

import pytest

from checks.testbed.wire import Wire, get, post, request, send
from support.running_ingest import RunningIngest, running_ingest, sample

NAME = re.compile(r"[0-9a-f]{12}-[1-9][0-9]*")


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


def test_a_clients_name_is_answered_and_travels_with_each_event(edge: RunningIngest) -> None:
    # Given a batch with a name of the client's
    run = uuid.uuid4().hex
    answer = post(edge.port, [sample(correlationId=run) for _ in range(3)], headers={"X-Request-ID": f"ann:{run}"})
    # Then the answer and every record has it
    assert (answer.status, answer.headers["x-request-id"]) == (202, f"ann:{run}")
    records = [record for record in edge.records() if record.correlation_id == run]
    assert [record.request_id for record in records] == [f"ann:{run}"] * 3


def test_a_request_without_a_name_gets_one_of_its_own(edge: RunningIngest) -> None:
    run = uuid.uuid4().hex
    names = [post(edge.port, sample(correlationId=run)).headers["x-request-id"] for _ in range(3)]
    assert all(NAME.fullmatch(name) for name in names)
    assert len(set(names)) == 3
    assert [record.request_id for record in edge.records() if record.correlation_id == run] == names


@pytest.mark.parametrize(
    "given",
    ["", '"', 'a"b', "a\\b", "a b", "ä", "-a", "a" * 65, "a\tb", "${jndi}"],
    ids=["empty", "quote", "quoted", "backslash", "space", "letter", "dash", "long", "tab", "dollar"],
)
def test_what_is_no_name_is_replaced(edge: RunningIngest, given: str) -> None:
    # A name goes into JSON, logs and shells as it is: one that means something there is not taken
    run = uuid.uuid4().hex
    body = (
        b'{"correlationId": "%s", "severity": "INFO", "message": "m", "source": "s", "timestamp": 1700000000000}'
        % run.encode()
    )
    head = (
        f"POST /api/logs HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"X-Request-ID: {given}\r\n\r\n"
    )
    answer = send(edge.port, head.encode() + body)
    assert answer.status == 202
    assert NAME.fullmatch(answer.headers["x-request-id"])
    assert [one.request_id for one in edge.records() if one.correlation_id == run] == [answer.headers["x-request-id"]]


def test_every_answer_has_one(edge: RunningIngest) -> None:
    # Given requests that are refused in different places, some before there is a request
    answers = [
        post(edge.port, b"{"),
        post(edge.port, sample(), content_type="text/plain"),
        send(edge.port, b"nonsense\r\n\r\n"),
        send(edge.port, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n"),
        get(edge.port, "/nowhere"),
        get(edge.port, "/api/logs/health"),
        send(edge.port, request(method="HEAD", path="/healthz", content_type=None), has_body=False),
    ]
    assert [answer.status for answer in answers] == [400, 415, 400, 431, 404, 200, 200]
    assert all(NAME.fullmatch(answer.headers["x-request-id"]) for answer in answers)
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


def test_names_on_one_connection_are_not_mixed_up(edge: RunningIngest) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(b"{", headers={"X-Request-ID": "first"}) + request(b"{") + b"nonsense\r\n\r\n")
        first, second, third = wire.answer(), wire.answer(), wire.answer()
    assert first.headers["x-request-id"] == "first"
    assert NAME.fullmatch(second.headers["x-request-id"])
    assert third.status == 400
    assert NAME.fullmatch(third.headers["x-request-id"])


def test_a_refusal_has_one_too() -> None:
    with running_ingest(rate_max=1, rate_min=1) as edge:
        edge.publish(1.0)
        answers = [post(edge.port, [sample() for _ in range(5)], headers={"X-Request-ID": f"r{n}"}) for n in range(4)]
    refused = [(n, answer) for n, answer in enumerate(answers) if answer.status == 429]
    assert refused
    assert all(answer.headers["x-request-id"] == f"r{n}" for n, answer in refused)
