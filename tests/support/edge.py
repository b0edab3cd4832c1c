"""A whole ingest on a real socket, with its log and control store in memory, and a client that sends raw bytes."""

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import uvloop

from ingest.app import create_app, create_operator_app
from ingest.dashboard.recorder import SystemReaders
from ingest.server import Place, listen, serve
from ingest.service import IngestContext, IngestService, KeySources
from pipeline.clock import SystemClock
from pipeline.event import RecordedEvent, decode_record
from pipeline.keys import ApiKey
from pipeline.log.memory import MemoryLog, MemoryLogServer
from pipeline.names import Mode
from pipeline.ports.log import EventLog
from pipeline.settings import Settings
from pipeline.store.memory import (
    MemoryBucket,
    MemoryControlEvents,
    MemoryControlStore,
    MemoryKeyMirror,
    MemoryOffers,
    MemoryServer,
    MemoryThrottle,
    MemoryTroubles,
)
from stack.servers import free_port

SAMPLE = {"correlationId": "test-1", "severity": "INFO", "message": "Test", "source": "cli", "timestamp": 1234567890000}


def sample(**changes: Any) -> dict[str, Any]:
    """The contract's sample event, with changes; a change to None leaves the field out."""
    return {name: value for name, value in {**SAMPLE, **changes}.items() if value is not None}


@dataclass(frozen=True)
class Response:
    """One HTTP answer. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The object of an error's one shape, which must be all that there is."""
        document = self.json
        assert list(document) == ["error"]
        assert {"code", "message"} <= document["error"].keys()
        assert self.headers["content-type"] == "application/json"
        found: dict[str, Any] = document["error"]
        return found


class Wire:
    """A connection that sends bytes as they are."""

    def __init__(self, port: int, *, seconds_max: float = 10.0, source: str | None = None) -> None:
        address = None if source is None else (source, 0)
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds_max, source_address=address)
        self._buffer = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_eof(self) -> None:
        """Nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def answer(self, *, has_body: bool = True) -> Response:
        """The next answer; EOFError where the server closed instead."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0")) if has_body else 0
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Response(int(first.split()[1]), headers, body)

    def is_closed(self) -> bool:
        """Whether the server has closed the connection, with nothing more to say; waits for it."""
        try:
            return not self._buffer and self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(self._buffer)
        self._buffer += data


def request(
    body: bytes = b"", *, method: str = "POST", path: str = "/api/logs", content_type: str | None = "application/json",
    headers: dict[str, str] | None = None, length: int | None = None,
) -> bytes:  # fmt: skip
    """The bytes of a request; `length` is what Content-Length says where that is not the truth."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    if method == "POST" and not (headers and "Transfer-Encoding" in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def send(port: int, data: bytes, *, has_body: bool = True) -> Response:
    """The answer to one request on a connection of its own."""
    with Wire(port) as wire:
        wire.send(data)
        return wire.answer(has_body=has_body)


def post(port: int, document: Any, **options: Any) -> Response:
    """POST a document as JSON; bytes are sent as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return send(port, request(body, **options))


def get(port: int, path: str) -> Response:
    return send(port, request(method="GET", path=path, content_type=None))


def metric(port: int, name: str) -> float:
    """The value of one line of GET /metrics, labels included in its name; 0 where there is none."""
    for line in get(port, "/metrics").body.decode().splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


class RunningEdge:
    """Ingest in a thread of this process."""

    def __init__(
        self,
        settings: Settings,
        log: EventLog | None = None,
        control: MemoryServer | None = None,
        make_readers: Callable[[MemoryLogServer], SystemReaders] | None = None,
    ) -> None:
        self.settings = settings
        self.log_server = MemoryLogServer(settings.log_partitions)
        self.memory_log = MemoryLog(server=self.log_server)
        self.log = log or self.memory_log
        self.control = control or MemoryServer()
        self.store = MemoryControlStore(settings, self.control)
        self.keys = MemoryKeyMirror(settings, self.control)
        self.stored_keys: Callable[[], Iterable[ApiKey]] = tuple  # what PostgreSQL would answer
        self.troubles = MemoryTroubles(settings, self.control)
        self.port = settings.ingest_port
        context = IngestContext(
            log=self.log,
            bucket=MemoryBucket(settings, self.control),
            store=self.store,
            events=MemoryControlEvents(settings, self.control),
            clock=SystemClock(),
            troubles=self.troubles,
            offers=MemoryOffers(settings, self.control),
            throttle=MemoryThrottle(settings, self.control),
            keys=KeySources(self.keys, self._load_stored_keys),
            readers=None if make_readers is None else make_readers(self.log_server),
        )
        self.app = create_app(settings, context, name=f"ingest-{uuid.uuid4().hex}")
        self.app.config.TOUCHUP = False  # it rewrites Sanic's classes, once for each process
        self.service: IngestService = self.app.ctx.service
        self._place = Place(self.app, listen(settings.ingest_host, settings.ingest_port))
        self._operators: Place | None = None
        self.operator_port = settings.operator_port or settings.ingest_port
        if settings.operator_port:
            operators = create_operator_app(self.service, name=f"operators-{uuid.uuid4().hex}")
            self._operators = Place(operators, listen(settings.operator_host, settings.operator_port))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _load_stored_keys(self) -> Iterable[ApiKey]:
        return self.stored_keys()

    def begin(self) -> None:
        """Start, without waiting until it is ready."""
        self._thread.start()

    def start(self) -> "RunningEdge":
        self.begin()
        eventually(lambda: get(self.port, "/readyz").status == 200, "ingest is ready")
        return self

    def begin_stop(self) -> None:
        """What SIGTERM does."""
        assert self._loop is not None
        assert self._stopping is not None
        self._loop.call_soon_threadsafe(self._stopping.set)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.begin_stop()
        self.join()

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive(), "ingest does not stop"
        if self._failure is not None:
            raise self._failure

    def publish(self, rate: float, *, mode: Mode = Mode.NORMAL, lag: int | None = 0) -> None:
        """Publish a rate, as the controller does."""
        now = self.control.clock.now()
        self.store.publish_rate(
            base_rate=rate, floor_rate=min(rate, self.settings.rate_min), mode=mode, lag=lag,
            lag_known_at=now, actor="test",
        )  # fmt: skip

    def records(self) -> list[RecordedEvent]:
        """Everything in the memory log, partition by partition."""
        found = []
        for partition in range(self.settings.log_partitions):
            offset = 0
            while (batch := self.memory_log.read(partition, offset, records_max=10_000, wait_seconds=0)) is not None:
                found += [decode_record(value) for value in batch.values]
                offset = batch.next_offset
        return found

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._stopping = asyncio.Event()
            await serve(self._place, self._stopping, operators=self._operators)

        try:
            uvloop.run(main())
        except BaseException as error:  # told by `join`
            self._failure = error
        finally:
            self._place.listener.close()
            if self._operators is not None:
                self._operators.listener.close()


def client_environ(url: str) -> dict[str, str]:
    """The environment of a client of the ingest at this address."""
    return {**os.environ, "INGEST_URL": url}


def edge_settings(**changes: Any) -> Settings:
    """Settings of an ingest of the test's own: a rate that no test notices, where it does not set one."""
    return replace(
        Settings(ingest_port=free_port(), rate_max=1e6, rate_min=1e6, key_prefix=f"t{uuid.uuid4().hex}:"), **changes
    )


@contextlib.contextmanager
def running_edge(log: EventLog | None = None, **changes: Any) -> Iterator[RunningEdge]:
    """An ingest with these settings until the block ends."""
    edge = RunningEdge(edge_settings(**changes), log).start()
    try:
        yield edge
    finally:
        edge.stop()


@contextlib.contextmanager
def restarted(edge: RunningEdge) -> Iterator[RunningEdge]:
    """Another ingest in the place of one that was stopped. `edge.records()` has the events of both."""
    again = RunningEdge(edge.settings, edge.memory_log, edge.control).start()
    try:
        yield again
    finally:
        again.stop()


def eventually(condition: Callable[[], bool], what: str, *, seconds_max: float = 10.0) -> None:
    """Wait until a condition holds; a server that does not listen yet counts as one that does not hold."""
    deadline = time.monotonic() + seconds_max
    while True:
        try:
            if condition():
                return
        except (OSError, EOFError):
            pass
        assert time.monotonic() < deadline, f"not within {seconds_max} s: {what}"
        time.sleep(0.01)
