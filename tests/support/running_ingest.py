"""A whole ingest on a real socket, with its log and control store in memory, and a client that sends raw bytes."""

import asyncio
import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import uvloop

from checks.testbed import waiting
from checks.testbed.waiting import PATIENT_APPEND_SECONDS, RUN_SECONDS_MAX, WAIT_SECONDS_MAX
from checks.testbed.wire import get, post
from ingest.app import create_app, create_operator_app
from ingest.dashboard.recorder import SystemReaders
from ingest.server import Listener, listen, serve
from ingest.service import IngestContext, IngestService, KeySources
from ingest.tls import certificate_of
from pipeline.clock import SystemClock
from pipeline.control_store.memory import (
    MemoryBucket,
    MemoryControlEvents,
    MemoryControlStore,
    MemoryKeyMirror,
    MemoryOffers,
    MemoryServer,
    MemoryThrottle,
    MemoryTroubles,
)
from pipeline.event import RecordedEvent, decode_record
from pipeline.keys import ApiKey
from pipeline.log.memory import MemoryLog, MemoryLogServer
from pipeline.names import Mode
from pipeline.ports.log import EventLog
from pipeline.settings import Settings
from stack.servers import free_port

SAMPLE = {"correlationId": "test-1", "severity": "INFO", "message": "Test", "source": "cli", "timestamp": 1234567890000}


def sample(**changes: Any) -> dict[str, Any]:
    """The contract's sample event, with changes; a change to None leaves the field out."""
    return {name: value for name, value in {**SAMPLE, **changes}.items() if value is not None}


def metric(port: int, name: str) -> float:
    """The value of one line of GET /metrics, labels included in its name; 0 where there is none."""
    for line in get(port, "/metrics").body.decode().splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


class RunningIngest:
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
        self._place = Listener(self.app, listen(settings.ingest_host, settings.ingest_port))
        self._operators: Listener | None = None
        self.operator_port = settings.operator_port or settings.ingest_port
        if settings.operator_port:
            operators = create_operator_app(self.service, name=f"operators-{uuid.uuid4().hex}")
            self._operators = Listener(operators, listen(settings.operator_host, settings.operator_port))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _load_stored_keys(self) -> Iterable[ApiKey]:
        return self.stored_keys()

    def begin(self) -> None:
        """Start, without waiting until it is ready."""
        self._thread.start()

    def start(self) -> "RunningIngest":
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
        self._thread.join(WAIT_SECONDS_MAX)
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

    def owe(self, events: int) -> None:
        """Accept so many events, and be in debt for them until `pay`, however slow a client is."""
        self.publish(self.settings.rate_max)
        self.store.set_override(1.0, until=self.control.clock.now() + RUN_SECONDS_MAX, actor="ann", why="a test")
        assert post(self.port, [sample()] * events).status == 202

    def pay(self) -> None:
        """Let the bucket fill at its rate again."""
        self.store.clear_override(actor="ann", why="a test")

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
            certificate = certificate_of(self.settings)
            await serve(self._place, self._stopping, certificate, operators=self._operators)

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
    """Settings of an ingest of the test's own: a rate that no test notices, and time for each append on a busy machine.

    A test that is about either sets its own.
    """
    return replace(
        Settings(
            ingest_port=free_port(),
            rate_max=1e6,
            rate_min=1e6,
            append_seconds_max=PATIENT_APPEND_SECONDS,
            key_prefix=f"t{uuid.uuid4().hex}:",
        ),
        **changes,
    )


@contextlib.contextmanager
def running_ingest(log: EventLog | None = None, **changes: Any) -> Iterator[RunningIngest]:
    """An ingest with these settings until the block ends."""
    edge = RunningIngest(edge_settings(**changes), log).start()
    try:
        yield edge
    finally:
        edge.stop()


@contextlib.contextmanager
def restarted(edge: RunningIngest) -> Iterator[RunningIngest]:
    """Another ingest in the place of one that was stopped. `edge.records()` has the events of both."""
    again = RunningIngest(edge.settings, edge.memory_log, edge.control).start()
    try:
        yield again
    finally:
        again.stop()


def eventually(condition: Callable[[], bool], what: str, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
    """Wait until a condition holds; a server that does not listen yet counts as one that does not hold."""
    waiting.eventually(condition, what, seconds_max=seconds_max, passing=(OSError, EOFError))
