"""The Python client within structlog, loguru, ASGI and WSGI, and every example of its README."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import loguru
import pytest
import structlog

from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX
from pipeline.event import RecordedEvent
from sluice_client import Client, bound
from sluice_client.asgi import AsgiMiddleware, Message, Receive, Scope, Send
from sluice_client.loguru_sink import LoguruSink
from sluice_client.structlog_processor import SluiceProcessor
from sluice_client.wsgi import WsgiMiddleware
from support.running_ingest import RunningIngest, running_ingest

README = (ROOT / "clients" / "python" / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def shared_edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


class Sent:
    """A client, and the records of what it sent."""

    def __init__(self, edge: RunningIngest) -> None:
        self.edge = edge
        self.before = len(edge.records())
        self.client = Client(f"http://127.0.0.1:{edge.port}", source="app", linger_seconds=0.01)

    def records(self) -> list[RecordedEvent]:
        assert self.client.flush(60)
        known = self.client.stats.accepted
        found = sorted(self.edge.records(), key=lambda record: record.received_at)[self.before :]
        assert len(found) == known
        return found

    def by_message(self) -> dict[str, RecordedEvent]:
        return {record.message: record for record in self.records()}


@pytest.fixture
def sent(shared_edge: RunningIngest) -> Iterator[Sent]:
    made = Sent(shared_edge)
    yield made
    made.client.close()


def attributes(record: RecordedEvent) -> dict[str, Any]:
    assert record.attributes is not None
    return dict(record.attributes)


def test_structlog_events_are_sent_and_passed_on(sent: Sent) -> None:
    passed: list[Any] = []

    def last(_: Any, __: str, event: Any) -> str:
        passed.append(dict(event))
        return ""

    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[structlog.processors.add_log_level, SluiceProcessor(sent.client), last],
    )
    logger.warning("cart is empty", cart=17, correlation_id="c1", user={"id": 5})
    logger.info("timed", timestamp="2026-01-02T03:04:05+00:00")
    logger.info("timed too", timestamp=1_700_000_000.5)
    logger.info("without a zone", timestamp="2026-01-02T03:04:05")
    try:
        int("x")
    except ValueError:
        logger.exception("failed")
    found = sent.by_message()
    first = found["cart is empty"]
    assert (first.severity, first.correlation_id, attributes(first)) == ("WARN", "c1", {"cart": 17, "user.id": 5})
    assert passed[0] == {
        "event": "cart is empty", "level": "warning", "cart": 17, "correlation_id": "c1", "user": {"id": 5},
    }  # fmt: skip
    assert found["timed"].timestamp == 1_767_323_045_000
    assert found["timed too"].timestamp == 1_700_000_000_500
    assert abs(found["without a zone"].timestamp - found["failed"].timestamp) < 60_000
    assert found["failed"].severity == "ERROR"
    assert attributes(found["failed"])["exception.type"] == "ValueError"


def test_loguru_messages_keep_extra_level_and_exception(sent: Sent) -> None:
    logger = loguru.logger
    logger.remove()
    number = logger.add(LoguruSink(sent.client), level="TRACE", format="never {message}")
    try:
        logger.bind(cart=17, correlation_id="c1", line=3).warning("cart {} is empty", 17)
        for name in ("trace", "debug", "info", "success", "error", "critical"):
            getattr(logger, name)(name)
        logger.log(25, "own level")
        with logger.contextualize(job=4):
            try:
                int("bad")
            except ValueError:
                logger.exception("failed")
    finally:
        logger.remove(number)
    found = sent.by_message()
    first = found["cart 17 is empty"]
    assert (first.severity, first.correlation_id) == ("WARN", "c1")
    assert attributes(first)["cart"] == 17
    assert attributes(first)["line"] != attributes(first)["extra.line"] == 3
    assert attributes(first)["function"] == "test_loguru_messages_keep_extra_level_and_exception"
    assert {name: found[name].severity for name in ("trace", "debug", "info", "success", "error", "critical")} == {
        "trace": "TRACE", "debug": "DEBUG", "info": "INFO", "success": "INFO", "error": "ERROR", "critical": "FATAL",
    }  # fmt: skip
    assert found["own level"].severity == "INFO"
    assert attributes(found["failed"])["exception.type"] == "ValueError"
    assert attributes(found["failed"])["job"] == 4


async def _serve(app: Any, headers: list[tuple[bytes, bytes]], kind: str = "http") -> list[Message]:
    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        said.append(message)

    await app({"type": kind, "headers": headers}, receive, send)
    return said


async def test_asgi_requests_at_the_same_time_keep_their_ids_apart(sent: Sent) -> None:
    both = asyncio.Barrier(2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            sent.client.emit("lifespan", correlation_id="none")
            return
        await both.wait()
        sent.client.emit(dict(scope["headers"])[b"name"].decode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    wrapped = AsgiMiddleware(app)
    traced = [(b"name", b"one"), (b"X-Request-ID", b"r1"), (b"traceparent", f"00-{TRACE}-{'b' * 16}-01".encode())]
    one, two = await asyncio.gather(_serve(wrapped, traced), _serve(wrapped, [(b"name", b"two")]))
    await _serve(wrapped, [], "lifespan")
    found = await asyncio.to_thread(sent.by_message)
    assert (found["one"].correlation_id, attributes(found["one"])) == (TRACE, {"requestId": "r1"})
    own = attributes(found["two"])["requestId"]
    assert found["two"].correlation_id == own
    assert one[0]["headers"] == [(b"a", b"b"), (b"x-request-id", b"r1")]
    assert two[0]["headers"][1] == (b"x-request-id", own.encode())
    assert found["lifespan"].attributes is None


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_wsgi_bodies_have_the_ids_of_their_request_to_their_end(sent: Sent, kind: str) -> None:
    def parts() -> Iterator[bytes]:
        sent.client.emit(f"{kind} body")
        yield b"x"

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        sent.client.emit(f"{kind} head")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return list(parts()) if kind == "list" else parts()

    said: list[Any] = []

    def start(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        said.extend(headers)
        return said.append

    environ: dict[str, Any] = {"HTTP_X_REQUEST_ID": "r7", "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    body = validator(WsgiMiddleware(validator(app)))(environ, start)
    assert list(body) == [b"x"]
    body.close()  # type: ignore[attr-defined]
    with bound(correlation="other"):
        sent.client.emit(f"{kind} after")
    found = sent.by_message()
    for name in (f"{kind} head", f"{kind} body"):
        assert (found[name].correlation_id, attributes(found[name])) == ("r7", {"requestId": "r7"})
    assert found[f"{kind} after"].attributes is None
    assert ("X-Request-ID", "r7") in said


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: str(re.findall("[A-Z][A-Za-z]+", text)[-1]))
def test_examples_of_the_readme_run_and_send(shared_edge: RunningIngest, tmp_path: Path, example: str) -> None:
    before = len(shared_edge.records())
    script = example.replace("http://localhost:8080", f"http://127.0.0.1:{shared_edge.port}")
    script = script.replace("/var/spool/shop", str(tmp_path / "spool"))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False
    )
    assert done.returncode == 0, done.stderr
    sends = re.search(r"\.(emit|warning|info)\(", example) is not None
    assert len(shared_edge.records()) - before == sends


def test_the_readme_names_every_option_with_its_default() -> None:
    from dataclasses import fields

    from sluice_client.options import Options

    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", README, flags=re.MULTILINE))
    options = {field.name: getattr(Options(), field.name) for field in fields(Options)}
    assert options.keys() <= rows.keys()
    for name, value in options.items():
        if name.endswith("bytes_max"):
            assert rows[name] == f"{value >> 20} MiB"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            assert float(rows[name].replace(",", "")) == value
