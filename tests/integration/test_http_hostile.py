"""Inputs that broke other servers, over real sockets: each gets an honest refusal, and the next request works."""

import contextlib
import gzip
import json
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from checks.testbed.waiting import WAIT_SECONDS_MAX, least_seconds
from checks.testbed.wire import Wire, get, post, request, send
from support.running_ingest import RunningIngest, eventually, metric, running_ingest, sample

SUITE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "jsontestsuite" / "test_parsing"
GOOD = json.dumps(sample()).encode()
TRANSFER = ("Transfer-Encoding", "Content-Length")  # never both


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with running_ingest(request_seconds_max=3) as running:
        yield running


@pytest.fixture(autouse=True)
def _still_works(edge: RunningIngest) -> Iterator[None]:
    yield
    assert post(edge.port, GOOD).status == 202
    assert metric(edge.port, 'sluice_ingest_answers_total{code="internal"}') == 0


def _with(**fields: str) -> bytes:
    """The sample event with raw JSON in place of some values."""
    values = {name: json.dumps(value) for name, value in sample().items()} | fields
    return ("{" + ",".join(f'"{name}":{value}' for name, value in values.items()) + "}").encode()


# --- JSON -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SUITE.is_dir(), reason="JSONTestSuite is not beside the repository")
def test_json_test_suite(edge: RunningIngest) -> None:
    wrong = []
    with Wire(edge.port) as wire:
        for path in sorted(SUITE.iterdir()):
            wire.send(request(path.read_bytes()))
            status = wire.answer().status
            allowed = {"n": {400}, "y": {422, 202}, "i": {400, 422, 202}}[path.name[0]]
            if status not in allowed:
                wrong.append((path.name, status))
    assert wrong == []


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (_with(message='"\\u0000"'), 422, "message"),
        (_with(correlationId='"a\\u0000b"'), 422, "correlationId"),
        (_with(eventId='"\\u0000"'), 422, "eventId"),
        (_with(attributes='{"\\u0000": 1}'), 422, "attributes"),
        (_with(attributes='{"a": "\\u0000"}'), 422, "attributes"),
        (_with(message='"\\\\u0000"'), 202, None),  # a backslash, then u0000: no NUL
        (_with(message='"\\ud800"'), 422, "message"),
        (_with(message='"\\udc00\\ud800"'), 422, "message"),
        (_with(message='"\\ud83d\\ude00"'), 202, None),
        (_with(source='"\\udfff"'), 422, "source"),
        (_with(attributes='{"\\ud800": 1}'), 422, "attributes"),
        (_with(**{"\\ud800": "1"}), 422, "\\ud800"),
        (_with(timestamp="9" * 400), 422, "timestamp"),
        (_with(timestamp="-" + "9" * 5000), 422, "timestamp"),
        (_with(timestamp="1e308"), 422, "timestamp"),
        (_with(timestamp="1e400"), 422, "timestamp"),
        (_with(timestamp="-1"), 422, "timestamp"),
        (_with(timestamp="-0"), 422, "timestamp"),
        (_with(attributes='{"a": ' + "9" * 5000 + "}"), 422, "attributes"),
        (_with(attributes='{"a": 1e400}'), 422, "attributes"),
        (_with(attributes='{"a": 9223372036854775807, "b": -9223372036854775808}'), 202, None),
        (_with(attributes='{"a": 9223372036854775808}'), 422, "attributes"),
        (_with(attributes='{"a": null}'), 422, "attributes"),
        (_with(attributes='{"a": [[]]}'), 422, "attributes"),
        (_with(attributes="null", eventId="null"), 202, None),  # null counts as missing
        (_with(message='"\xff"').decode("utf-8").encode("latin-1"), 400, None),
        (_with(message='"\x01"'), 400, None),
        (_with(timestamp="NaN"), 400, None),
        (_with(timestamp="-Infinity"), 400, None),
        (_with(timestamp="0x10"), 400, None),
        (_with(timestamp="+1"), 400, None),
        (_with(timestamp="01"), 400, None),
        (b"\xef\xbb\xbf" + GOOD, 202, None),  # one byte order mark at the start is skipped
        (b"\xef\xbb\xbf" * 2 + GOOD, 400, None),
        (b"\xef\xbb\xbf", 400, None),
        (_with(message='"\ufeff"').decode().encode(), 202, None),
        (GOOD.decode().encode("utf-16"), 400, None),
        (GOOD + GOOD, 400, None),
        (GOOD[:-1] + b",}", 400, None),
        (_with(attributes="[" * 1000 + "]" * 1000), 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, 400, None),
        (b"\x00", 400, None),
    ],
)
def test_bodies(edge: RunningIngest, body: bytes, status: int, field: str | None) -> None:
    answer = post(edge.port, body)
    assert answer.status == status, answer.body
    if status == 422:
        assert field in [problem["field"] for problem in answer.error["errors"]]


def test_the_last_of_duplicate_keys_wins(edge: RunningIngest) -> None:
    body = (
        _with(eventId='"duplicate-keys"')[:-1]
        + b',"timestamp":"no","message":1,"message":"last","timestamp":1700000000007}'
    )
    assert post(edge.port, body).status == 202
    [record] = [record for record in edge.records() if record.event_id == "duplicate-keys"]
    assert (record.message, record.timestamp) == ("last", 1700000000007)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 349_000 + b"[]]",
        b"[" + b"{}," * 349_000 + b"{}]",
        b"[" + b",".join([_with(severity='"X"')] * 1000) + b"]",
        b'"' + b'\\"' * 500_000,
        b"9" * 1_000_000,
        b"{" + b",".join(b'"%d":1' % n for n in range(80_000)) + b"}",
        b"\n" * 1_000_000,
    ],
)
def test_a_mebibyte_of_nonsense_costs_little(edge: RunningIngest, body: bytes) -> None:
    assert len(body) <= edge.settings.body_bytes_max

    def cpu_seconds() -> float:
        started = time.process_time()  # of this process, which is the server's too
        for content_type in ("application/json", "application/x-ndjson"):
            assert 400 <= post(edge.port, body, content_type=content_type).status < 500
        return time.process_time() - started

    assert least_seconds(cpu_seconds, below=2) < 2


# --- gzip -------------------------------------------------------------------------------------------------------


def _bomb() -> bytes:
    """Gzip of 200 MB of blanks, made without holding them, and not before a test asks for it: that takes a second."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * (1 << 20)
    return b"".join(compressor.compress(block) for _ in range(200)) + compressor.flush()


def _gzip(body: bytes) -> bytes:
    """Without the time: what is in the name of a test must be the same in each process of a run."""
    return gzip.compress(body, mtime=0)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (_gzip(GOOD), 202),
        (_gzip(GOOD[:20]) + _gzip(GOOD[20:]) + b"\0" * 10, 202),
        (_gzip(GOOD)[:-1], 400),
        (_gzip(GOOD)[:30], 400),
        (_gzip(GOOD)[:-5] + b"xxxxx", 400),
        (_gzip(GOOD) + b"tail", 400),
        (GOOD, 400),
        (b"", 400),
        (zlib.compress(GOOD), 400),
        (_gzip(b" " * (1 << 20) + GOOD), 413),
        (_bomb, 413),
        (_gzip(b"") * 50_000, 400),
        (b"".join(_gzip(GOOD[n : n + 1]) for n in range(len(GOOD))), 400),  # more members than are taken
    ],
)
def test_gzip(edge: RunningIngest, body: bytes | Callable[[], bytes], status: int) -> None:
    packed = body() if callable(body) else body

    def cpu_seconds() -> float:
        started = time.process_time()
        answer = post(edge.port, packed, headers={"Content-Encoding": "GZip"})
        assert answer.status == status, answer.body
        return time.process_time() - started

    assert least_seconds(cpu_seconds, below=1) < 1


# --- HTTP -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Content-Length: 5"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 5"],
        ["Content-Length: +5"],
        ["Content-Length: -5"],
        ["Content-Length: 0x5"],
        ["Content-Length: 5_0"],
        ["Content-Length:"],
        ["Content-Length: " + "9" * 5000],
        ["Content-Length : 5"],
        [" Content-Length: 5"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding:\x0bchunked"],
        ["X: a\rb"],
        ["X: a\nContent-Length: 5"],
        ["X: \x00"],
        ["no colon"],
        [": no name"],
        ["Na me: x"],
        ["X: 1", " folded"],
        ["Host: localhost"],
        ["Content-Type: application/json"],
        ["Content-Encoding: identity", "Content-Encoding: gzip"],
    ],
)
def test_heads_with_two_readings_are_refused_and_the_connection_ends(edge: RunningIngest, lines: list[str]) -> None:
    head = ["POST /api/logs HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines]
    with Wire(edge.port) as wire:
        # What follows must not be taken for a request of its own
        wire.send("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + b"0\r\n\r\n" + request(GOOD))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert answer.error["code"] == "bad_request"
        assert wire.is_closed()


@pytest.mark.parametrize(
    "line",
    [
        "Transfer-Encoding: chun\u212aed",  # the Kelvin sign, whose lower case is k
        "Expect: 100-cont\u0130nue",
        "Content-Encoding: g\u017fip",
        "Content-Type: application/json; charset=\u212a",
    ],
)
def test_letters_beyond_ascii_are_no_words_of_headers(edge: RunningIngest, line: str) -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    name = line.partition(":")[0]
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Host": "x"}
    fields = {key: value for key, value in fields.items() if key != name and (name, key) != TRANSFER}
    head = ["POST /api/logs HTTP/1.1", *(f"{key}: {value}" for key, value in fields.items()), line]
    assert send(edge.port, "\r\n".join(head).encode() + b"\r\n\r\n" + body).status in (400, 415, 417)


@pytest.mark.parametrize("host", [b"", b"Host: a b\r\n", b"Host: a/b\r\n", b"Host: a@b\r\n"])
def test_a_request_names_one_host(edge: RunningIngest, host: bytes) -> None:
    for line in (b"GET /healthz HTTP/1.1", b"POST /api/logs HTTP/1.1"):
        answer = send(edge.port, line + b"\r\n" + host + b"Content-Type: application/json\r\n\r\n")
        assert answer.status == 400
        assert "Host" in answer.error["message"]
    assert send(edge.port, b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n").status == 200
    assert send(edge.port, b"GET /healthz HTTP/1.1\r\nHost: [::1]:80\r\n\r\n").status == 200


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "the client sent TLS to a port for plain HTTP"),
        (b"GET /healthz HTTP/1.1\nHost: x\n\n", "ends with LF alone"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\n", "ends with LF alone"),
        (b"\x80\x00\x00", "control character"),
        (b"GET /\x00", "control character"),
    ],
)
def test_what_can_not_become_a_head_is_refused_at_once(edge: RunningIngest, head: bytes, said: str) -> None:
    # Given a client that waits for an answer after bytes that are no head and no end of one
    with Wire(edge.port) as wire:
        wire.send(head)
        # Then it is a 400 that says why, not a 408 when the time is up
        answer = wire.answer()
        assert answer.status == 400
        assert said in answer.error["message"]


def test_the_time_of_a_request_ends_with_its_last_byte() -> None:
    # Given an event stream whose head came in two pieces
    with running_ingest(request_seconds_max=3.0) as edge, Wire(edge.port) as wire:
        head = request(method="GET", path="/events", content_type=None)
        wire.send(head[:20])
        assert get(edge.port, "/healthz").status == 200  # the first piece was read before this was answered
        wire.send(head[20:])
        assert wire.answer(has_body=False).status == 200
        # Then it goes on beyond the time for a request
        deadline = time.monotonic() + 4.0
        while time.monotonic() < deadline:
            assert wire.socket.recv(65536)


def test_all_bodies_together_are_bounded() -> None:
    # Given clients that stall within bodies of half a mebibyte, more of them than the bound allows
    half = b" " * (512 << 10)
    with (
        running_ingest(bodies_bytes_max=1 << 20, request_seconds_max=WAIT_SECONDS_MAX) as edge,
        contextlib.ExitStack() as stack,
    ):
        wires = [stack.enter_context(Wire(edge.port)) for _ in range(8)]
        for wire in wires[:4]:
            wire.send(request(half, length=len(half) + 1))
        eventually(lambda: metric(edge.port, "sluice_ingest_held_bodies_bytes") > 900_000, "bodies fill the bound")
        # Then no more is held than that, and the others are told to come back
        refused = 0
        for wire in wires[4:]:
            wire.send(request(half, length=len(half) + 1))
            answer = wire.answer()
            assert answer.status == 503
            assert answer.headers["retry-after"]
            assert "BODIES_BYTES_MAX" in answer.error["message"]
            refused += 1
        assert refused == 4
        assert metric(edge.port, "sluice_ingest_held_bodies_bytes") <= 1 << 20
        # And bodies that come at once are taken
        assert post(edge.port, GOOD).status == 202
        # And what the stalled ones held is given back with their end
    with running_ingest(bodies_bytes_max=1 << 20) as edge:
        with Wire(edge.port) as wire:
            wire.send(request(half, length=len(half) + 1))
            eventually(lambda: metric(edge.port, "sluice_ingest_held_bodies_bytes") > 500_000, "the body is held")
        eventually(lambda: metric(edge.port, "sluice_ingest_held_bodies_bytes") == 0, "it is given back")


def test_digits_beyond_ascii_are_no_length(edge: RunningIngest) -> None:
    head = b"POST /api/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: \xd9\xa5\r\n\r\n"
    assert send(edge.port, head + b"12345").status == 400


@pytest.mark.parametrize(
    "line",
    [
        b"POST /api/logs",
        b"POST  /api/logs HTTP/1.1",
        b"POST /api/logs HTTP/2.0",
        b"POST /api/logs HTTP/1.10",
        b"POST /api/logs http/1.1",
        b"POST /a b HTTP/1.1",
        b"POST /\xff HTTP/1.1",
        b"PO\x00ST / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST [::1 HTTP/1.1",
        b"POST http://[::1/api HTTP/1.1",
        b"GET /api/logs\x0b HTTP/1.1",
    ],
)
def test_request_lines(edge: RunningIngest, line: bytes) -> None:
    answer = send(edge.port, line + b"\r\nHost: x\r\n\r\n")
    assert answer.status == 400
    assert answer.error["code"] == "bad_request"


@pytest.mark.parametrize(
    "path", ["/%00", "/%ff", "//", "/api/logs/", "/api/logs/../logs", "*", "/" + "a" * 7000, "/?%"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_addresses_and_methods(edge: RunningIngest, method: str, path: str) -> None:
    answer = send(edge.port, request(method=method, path=path))
    if method == "GET" and path in ("//", "*", "/?%"):  # read as the root: the page
        assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        return
    assert 400 <= answer.status < 500
    assert answer.error["code"]


@pytest.mark.parametrize(
    "chunks",
    [
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\t\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"fffffffff\r\nhello\r\n0\r\n\r\n",
        b"5;" + b"x" * 300 + b"\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"0\r\nX: trailer\r\n\r\n",
        b"5\r\nhello\r\n0\r\nGET /healthz HTTP/1.1\r\n\r\n",
    ],
)
def test_chunks(edge: RunningIngest, chunks: bytes) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(chunks + request(GOOD), headers={"Transfer-Encoding": "chunked"}))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert wire.is_closed()


def test_a_chunk_that_claims_much_is_cut_off(edge: RunningIngest) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(headers={"Transfer-Encoding": "chunked"}))
        block = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012  # it ends at some of the blocks
            for _ in range(1000):
                wire.send(block)
            wire.answer()
            raise ConnectionResetError("reset: not cut off")
        assert wire.socket.recv(12) in (b"", b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(1000)) + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 8192 + b"\r\n\r\n",
        b"GET /" + b"y" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"y" * 20_000,
        b"GET /healthz HTTP/1.1\r\nX:" + b" " * 100_000,
    ],
)
def test_heads_that_are_too_large(edge: RunningIngest, head: bytes) -> None:
    with Wire(edge.port) as wire:
        wire.send(head)
        answer = wire.answer()
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
        assert wire.is_closed()


def test_just_below_8_kib_of_headers_is_taken(edge: RunningIngest) -> None:
    fill = 8192 - len(request(GOOD, headers={"X": ""})) + len(GOOD)
    assert post(edge.port, GOOD, headers={"X": "y" * fill}).status == 202
    assert post(edge.port, GOOD, headers={"X": "y" * (fill + 1)}).status == 431


def test_an_unknown_expectation(edge: RunningIngest) -> None:
    answer = post(edge.port, GOOD, headers={"Expect": "a miracle"})
    assert (answer.status, answer.error["code"]) == (417, "expectation_failed")


def test_a_body_that_claims_too_much_is_refused_at_once_and_the_answer_arrives(
    edge: RunningIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.http.request.LINGER_SECONDS", 5.0)  # a busy machine may send slowly
    # Given a client that sends 20 MB before it looks for an answer
    with Wire(edge.port) as wire:
        wire.send(request(length=20_000_000))
        sent = 0
        with_errors = False
        try:
            while sent < 4_000_000:
                wire.send(b" " * 65_536)
                sent += 65_536
        except OSError:
            with_errors = True
        # Then it finds one
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert not with_errors
        assert wire.is_closed()


def test_a_websocket_upgrade_changes_nothing(edge: RunningIngest) -> None:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}
    assert post(edge.port, GOOD, headers=headers).status == 202


def test_a_get_with_a_body_leaves_the_connection_in_step(edge: RunningIngest) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(method="GET", path="/healthz", headers={"Content-Length": "5"}) + b"hello")
        assert wire.answer().status == 200
        wire.send(request(GOOD))
        assert wire.answer().status == 202


CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.mark.parametrize(
    ("headers", "body", "stays_open"),
    [
        ({"Content-Length": "5"}, b"hello", True),
        (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n", True),
        (CHUNKED, b"5\r\nhello!\r\n0\r\n\r\n", False),  # a chunk that is longer than it says
        ({"Content-Length": "20000000"}, b"hello", False),  # too much to be discarded
        ({"Content-Length": "5"}, b"he", False),  # the rest does not come in time
    ],
    ids=["length", "chunks", "a bad chunk", "too large", "too slow"],
)
def test_a_body_that_nobody_reads_is_no_error_of_the_server(
    edge: RunningIngest, caplog: pytest.LogCaptureFixture, *, headers: dict[str, str], body: bytes, stays_open: bool
) -> None:
    # Given requests for a route that reads no body, and one that clients of Elasticsearch ask
    for path in ("/healthz", "/_cluster/health"):
        with Wire(edge.port, seconds_max=60.0) as wire:
            wire.send(request(method="GET", path=path, headers=headers) + body)
            assert wire.answer().status == 200
            if stays_open:
                wire.send(request(GOOD))
                assert wire.answer().status == 202
            else:
                assert wire.is_closed()
    # Then nothing is logged that an operator would look into
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


def test_http_1_0(edge: RunningIngest) -> None:
    with Wire(edge.port) as wire:
        wire.send(request(GOOD).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert wire.is_closed()


def test_clients_that_leave_in_the_middle(edge: RunningIngest) -> None:
    for data in (b"", b"POST", request(GOOD)[:-5], request(GOOD), request(headers={"Transfer-Encoding": "chunked"})):
        for _ in range(5):
            wire = Wire(edge.port)
            wire.send(data)
            # reset, where a plain close would be a polite end
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            wire.socket.close()
    eventually(lambda: metric(edge.port, "sluice_ingest_connections") == 1, "only the one that asks is left")


def test_a_client_that_reads_no_answers_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.http.protocol.WRITE_SECONDS_MAX", 0.3)
    with running_ingest() as edge, Wire(edge.port) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.socket.setblocking(False)
        ask = request(method="GET", path="/metrics") * 100
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                wire.socket.send(ask)
            except BlockingIOError:
                if metric(edge.port, "sluice_ingest_connections") == 1:
                    return
            except ConnectionError:
                return
        raise AssertionError("its task is held for ever")


# --- Anything ---------------------------------------------------------------------------------------------------


def test_bytes_at_random_never_give_a_500(edge: RunningIngest) -> None:
    """Bounded noise with a fixed seed around a good request."""
    import random

    draw = random.Random(7)
    whole = request(GOOD)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(data))
            match draw.randrange(3):
                case 0:
                    data[at] = draw.randrange(256)
                case 1:
                    del data[at : at + draw.randint(1, 10)]
                case _:
                    data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 5)))
        status = _status_of(edge, bytes(data))
        assert status is None or status < 500, bytes(data)


def _status_of(edge: RunningIngest, data: bytes) -> int | None:
    """Status of the answer to bytes after which nothing more is sent; None where there is none."""
    with Wire(edge.port) as wire:
        wire.send(data)
        wire.socket.shutdown(socket.SHUT_WR)
        try:
            head: Any = re.match(rb"HTTP/1\.1 (\d+) ", wire.socket.recv(65536))
        except ConnectionError:
            return None
        return int(head[1]) if head else None


def test_health_was_answered_throughout(edge: RunningIngest) -> None:
    assert get(edge.port, "/healthz").status == 200
