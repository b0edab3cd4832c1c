"""The server with which `checks.client_sdks` compares SDKs finds events in bodies of any protocol."""

import gzip
import http.client

import pytest

from checks.client_sdks.server import Reply, Server
from checks.testbed.waiting import WAIT_SECONDS_MAX
from stack.servers import free_port


def post(port: int, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS_MAX)
    try:
        connection.request("POST", path, body=body)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture
def port() -> int:
    return free_port()


def test_an_event_counts_as_often_as_it_was_stored(port: int) -> None:
    server = Server(lambda _, number: Reply(429, retry_after_seconds=1) if number == 0 else Reply(), port)
    try:
        body = b"\x0a\x0cevt-parent-1-x\x12evt-parent-2-x"
        assert post(port, "/v1/logs", body) == 429
        assert not server.stored
        assert post(port, "/v1/logs", gzip.compress(body)) == 200
        assert post(port, "/batch/", body[:16]) == 200
        assert server.stored == {"evt-parent-1-x": 2, "evt-parent-2-x": 1}
    finally:
        server.stop()


def test_a_repeat_with_its_event_id_is_stored_once_and_a_cut_answer_stores(port: int) -> None:
    server = Server(lambda _, number: Reply(is_cut=number == 0), port)
    try:
        line = b'{"eventId":"i1","message":"evt-parent-1-x"}\n{"eventId":"i2","message":"evt-child-1-x"}'
        with pytest.raises(http.client.RemoteDisconnected):
            post(port, "/api/logs", line)
        assert post(port, "/api/logs", line) == 202
        assert server.stored == {"evt-parent-1-x": 1, "evt-child-1-x": 1}
    finally:
        server.stop()
