"""M1, M2, M4: the cost of ingest in CPU-seconds of its process; the servers' CPU is reported separately.

All measurements take turns in the same minutes. The measured process has one core, load and servers the other. M1 is
compared with a bare Sanic handler that only decodes the same body, and with FastAPI that uses the project's group
commit (see `fastapi_app`; one append for each request is reported). M2 is compared with the log's standard client,
which is the alternative without this project. The ratio to the project's own adapter is reported.
"""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from checks.bench.machine import LOAD_CORE, SERVER_CORE, Options, run_anywhere, run_on, started, starting_on
from checks.bench.process import Cost, cpu_seconds
from checks.bench.raw import raw_append
from checks.bench.table import Line, at_least, at_most, ratios
from checks.loadgen.closed_load import LoadResult, Tls, an_event, post, run_load
from pipeline.settings import Settings
from stack.config import environ_with
from stack.servers import free_port, kafka_server, redis_server

MARKS: Final = ("M1", "M2", "M4")
BATCH_EVENTS: Final = 100
CONNECTIONS: Final = 64
OTHERS_SHARE_MAX: Final = 0.001  # or one a second: a bucket of one event a second sometimes admits one
WARM_SECONDS: Final = 0.3
STOP_SECONDS_MAX: Final = 60.0  # of a server, on a busy machine

Measurement = Callable[[], Cost]
_MARKS_OF: Final = {  # which goals need a measurement
    "bare single": {"M1"},
    "FastAPI, group commit": {"M1"},
    "FastAPI, append a request": {"M1"},
    "single": {"M1", "M4"},
    "batch": {"M2", "M4"},
    "standard client": {"M2"},
    "own adapter": {"M2"},
    "429 single": {"M4"},
    "429 batch": {"M4"},
    "429 through the framework": {"M4"},
}


def _requests(batch: int, query: str = "") -> list[bytes]:
    encode = msgspec.json.encode
    if batch == 1:
        return [post("/api/logs", encode(an_event(n)), query) for n in range(500)]
    return [post("/api/logs", encode([an_event(k * batch + n) for n in range(batch)]), query) for k in range(20)]


@contextlib.contextmanager
def process(command: list[str], settings: Settings | None, port: int) -> Iterator[int]:
    """Run a server on the server core until the block ends; yields its pid once the port is open."""
    with starting_on(SERVER_CORE):
        child = subprocess.Popen(
            command,
            env=None if settings is None else environ_with(settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        deadline = time.monotonic() + 20
        while not any(
            c.laddr.port == port for c in psutil.Process(child.pid).net_connections() if c.status == "LISTEN"
        ):
            if time.monotonic() > deadline or child.poll() is not None:
                raise RuntimeError(f"{' '.join(command[1:])} does not listen on {port}")
            time.sleep(0.05)
        yield child.pid
    finally:
        child.terminate()
        child.wait(STOP_SECONDS_MAX)


def measure(
    pid: int, port: int, batch: int, wanted: int, seconds: float, *, log_pid: int | None = None, query: str = ""
) -> Cost:
    """Load with events of Sluice's protocol for `seconds`; see `measure_requests`."""
    units = batch if wanted == 202 else 1
    return measure_requests(pid, port, _requests(batch, query), units, wanted, seconds, log_pid=log_pid)


def measure_requests(
    pid: int, port: int, requests: list[bytes], units: int, wanted: int, seconds: float, *,
    log_pid: int | None = None, tls: Tls | None = None,
) -> Cost:  # fmt: skip
    """Load for `seconds`. Every answer must have the wanted status, otherwise the figure would be wrong.

    `units` is the number of units in a request.
    """
    run_load("127.0.0.1", port, requests, seconds=WARM_SECONDS, connections=CONNECTIONS, tls=tls)
    begin: dict[str, float] = {}

    def note_begin(so_far: LoadResult) -> None:
        """Measure from here: TLS handshakes cost as much as hundreds of requests."""
        begin.update(cpu=cpu_seconds(pid), log=cpu_seconds(log_pid) if log_pid else 0.0, at=time.monotonic())
        begin["done"] = so_far.statuses[wanted]

    result = run_load(
        "127.0.0.1", port, requests, seconds=seconds, connections=CONNECTIONS, tls=tls, connected=note_begin
    )
    used = cpu_seconds(pid) - begin["cpu"]
    log_used = (cpu_seconds(log_pid) if log_pid else 0.0) - begin["log"]
    others = result.statuses.total() - result.statuses[wanted]
    if others > max(result.statuses.total() * OTHERS_SHARE_MAX, result.seconds + 1):
        raise RuntimeError(f"answers other than {wanted}: {dict(result.statuses)}")
    done = result.statuses[wanted] - int(begin["done"])
    return Cost(done * units, used, time.monotonic() - begin["at"], log_used)


def run(options: Options, marks: set[str]) -> list[Line]:
    """Measure what the wanted marks need, in turns, and return their lines."""
    run_on(LOAD_CORE)
    costs: dict[str, list[Cost]] = {}
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            wanted = {name for name, needed in _MARKS_OF.items() if needed & marks}
            measurements = _measurements(options, Path(folder), stack, wanted)
            for _ in range(options.rounds):
                for name, cost in measurements.items():
                    costs.setdefault(name, []).append(cost())
    finally:
        run_anywhere()
    return [line for line in _lines(costs) if line.mark in marks]


def _measurements(
    options: Options, home: Path, stack: contextlib.ExitStack, wanted: set[str]
) -> dict[str, Measurement]:
    """Start what the wanted measurements need."""
    seconds = options.seconds
    control = started(stack, redis_server(home, free_port(), is_log=False, maxmemory="256mb"))
    if options.log == "kafka":
        log_server = started(stack, kafka_server(home, free_port(), free_port()))
    else:
        log_server = started(stack, redis_server(home, free_port(), is_log=True, maxmemory="8gb"))
    common: dict[str, Any] = {"redis_url": control.url, "event_log_url": log_server.url}
    common |= {"rate_hold_periods": 1000}  # no rate is published here
    common |= {"append_seconds_max": 10.0}  # a 503 on a busy machine would spoil the measurement
    admit = Settings(**common, ingest_port=free_port(), rate_max=10_000_000, rate_min=10_000_000, key_prefix="a:")
    refuse = Settings(**common, ingest_port=free_port(), rate_max=1, rate_min=1, key_prefix="r:")
    log_pid = log_server.pid
    python = sys.executable

    def server(command: list[str], settings: Settings | None, port: int) -> int:
        return stack.enter_context(process(command, settings, port))

    found: dict[str, Measurement] = {}
    if "bare single" in wanted:
        port = free_port()
        pid = server([python, "-m", "checks.bench.bare", str(port)], None, port)
        found["bare single"] = lambda: measure(pid, port, 1, 202, seconds)
    for name, form in (("FastAPI, group commit", "group"), ("FastAPI, append a request", "append")):
        if name in wanted:
            found[name] = _fastapi(stack, admit, form, seconds, log_pid)
    if wanted & {"single", "batch"}:
        ours = server([python, "-m", "ingest"], admit, admit.ingest_port)
        await_ready(admit.ingest_port)
        found["single"] = lambda: measure(ours, admit.ingest_port, 1, 202, seconds, log_pid=log_pid)
        found["batch"] = lambda: measure(ours, admit.ingest_port, BATCH_EVENTS, 202, seconds, log_pid=log_pid)
    if "standard client" in wanted:
        found["standard client"] = lambda: raw_append(admit, "standard", seconds, log_pid)
        found["own adapter"] = lambda: raw_append(admit, "own", seconds, log_pid)
    if "429 single" in wanted:
        refusing = server([python, "-m", "ingest"], refuse, refuse.ingest_port)
        _empty_bucket(refuse.ingest_port)
        port429 = refuse.ingest_port
        found["429 single"] = lambda: measure(refusing, port429, 1, 429, seconds)
        found["429 batch"] = lambda: measure(refusing, port429, BATCH_EVENTS, 429, seconds)
        # With a query, a request reaches the handler: the same refusal, through a request object.
        found["429 through the framework"] = lambda: measure(refusing, port429, 1, 429, seconds, query="?framework")
    return {name: found[name] for name in _MARKS_OF if name in found and name in wanted}


def _fastapi(stack: contextlib.ExitStack, settings: Settings, form: str, seconds: float, log_pid: int) -> Measurement:
    port = free_port()
    command = [sys.executable, "-m", "checks.bench.fastapi_app", str(port), form]
    pid = stack.enter_context(process(command, settings, port))
    return lambda: measure(pid, port, 1, 202, seconds, log_pid=log_pid)


def await_ready(port: int) -> None:
    """Send until the first 202."""
    _until(202, port, "the log was never reached")


def _empty_bucket(port: int) -> None:
    """Send until the first refusal."""
    _until(429, port, "the bucket of one event a second was never empty")


def _until(status: int, port: int, problem: str) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if status in run_load("127.0.0.1", port, _requests(1), seconds=0.1, connections=2).statuses:
            return
    raise RuntimeError(problem)


def _lines(costs: dict[str, list[Cost]]) -> list[Line]:
    """The ratios for which there are measurements."""

    def line(
        mark: str, what: str, above: str, below: str, goal: Any = None, *, scale: float = 1, unit: str = ""
    ) -> list[Line]:
        if above not in costs or below not in costs:
            return []
        rates = [[one.per_cpu_second for one in costs[name]] for name in (above, below)]
        values = [scale * value for value in ratios(*rates)]
        figures = {name: _figures(costs[name]) for name in (above, below)}
        return [Line(mark, what, values, goal, unit=unit, figures=figures)]

    requests = 1 / BATCH_EVENTS  # for events sent in bodies: bodies per event
    return [
        *line("M1", "single-event 202s a CPU-second / bare Sanic", "single", "bare single", at_least(0.7)),
        *line("M1", "… / FastAPI with our group commit", "single", "FastAPI, group commit", at_least(2.5)),
        *line("M1", "… / FastAPI with an append a request", "single", "FastAPI, append a request"),
        *line("M2", "events in bodies of 100 / the log's standard client", "batch", "standard client", at_least(0.7)),
        *line("M2", "… / our own adapter, nothing before it", "batch", "own adapter"),
        *line("M4", "CPU of a 429 / a 202, bodies of 100", "batch", "429 batch", at_most(0.25), scale=requests),
        *line("M4", "CPU of a 429 / a 202, single events", "single", "429 single", at_most(0.25)),
        *line("M4", "CPU of a single's 429 / the same by a handler", "429 through the framework", "429 single"),
    ]


def _figures(costs: list[Cost]) -> dict[str, float]:
    """Medians beside the ratio."""
    return {
        "per_cpu_second": statistics.median(one.per_cpu_second for one in costs),
        "per_wall_second": statistics.median(one.units / one.wall_seconds for one in costs),
        "cpu_seconds": statistics.median(one.cpu_seconds for one in costs),
        "log_server_cpu_seconds": statistics.median(one.log_cpu_seconds for one in costs),
    }
