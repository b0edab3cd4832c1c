"""M11: CPU of ingest for a record in each protocol, as a ratio to the same record in Sluice's own JSON.

All forms take turns in the same minutes, with bodies of a hundred records and of one. GELF has one record a body.
"""

import contextlib
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from checks.bench.edge import await_ready, measure_requests, process
from checks.bench.machine import LOAD_CORE, Options, run_anywhere, run_on, started
from checks.bench.process import Cost
from checks.bench.protocol_bodies import FORMS, OWN_PLAIN, OWN_TRACED, Form, records_of
from checks.bench.table import Goal, Line, at_most, ratios
from pipeline.settings import Settings
from stack.servers import Server, free_port, kafka_server, redis_server

MARK: Final = "M11"
BATCH_RECORDS: Final = 100
APPEND_SECONDS_MAX: Final = 10.0  # only CPU time is measured: a wait for a busy disk or core is no failure
GOALS: Final[dict[str, Goal]] = {
    "OTLP/JSON": at_most(3.5),
    "OTLP/protobuf": at_most(8),
    "bulk": at_most(5),
    "Loki, JSON": at_most(2),
    "Loki, protobuf": at_most(2),
}  # of bodies of a hundred records

_Costs = dict[tuple[str, int], list[Cost]]  # by the name of a form and the records of a body


def run(options: Options, _marks: set[str]) -> list[Line]:
    """Measure and return the lines."""
    run_on(LOAD_CORE)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            return _lines(_measured(options, Path(folder), stack))
    finally:
        run_anywhere()


@dataclass(frozen=True, slots=True)
class Ingest:
    """A running ingest process, and the server of its event log."""

    pid: int
    port: int
    log_server: Server
    log: str  # redis or kafka

    def measured(self, form: Form, count: int, seconds: float) -> Cost:
        """Load with bodies of `count` records for `seconds`. The unit is a record."""
        requests = requests_of(form, count)
        cost = measure_requests(self.pid, self.port, requests, count, form.status, seconds, log_pid=self.log_server.pid)
        if self.log != "kafka":
            _trim(self.log_server)
        return cost


def ingest_that_admits_all(log: str, home: Path, stack: contextlib.ExitStack, key_prefix: str) -> Ingest:
    """Start ingest with its own servers and a rate that no load reaches. All stop with the stack."""
    control = started(stack, redis_server(home, free_port(), is_log=False, maxmemory="256mb"))
    if log == "kafka":
        log_server = started(stack, kafka_server(home, free_port(), free_port()))
    else:
        log_server = started(stack, redis_server(home, free_port(), is_log=True, maxmemory="8gb"))
    settings = Settings(
        redis_url=control.url, event_log_url=log_server.url, rate_hold_periods=1000,  # no rate is published
        ingest_port=free_port(), rate_max=10_000_000, rate_min=10_000_000, key_prefix=key_prefix,
        append_seconds_max=APPEND_SECONDS_MAX,
    )  # fmt: skip
    pid = stack.enter_context(process([sys.executable, "-m", "ingest"], settings, settings.ingest_port))
    await_ready(settings.ingest_port)
    return Ingest(pid, settings.ingest_port, log_server, log)


def _measured(options: Options, home: Path, stack: contextlib.ExitStack) -> _Costs:
    ingest = ingest_that_admits_all(options.log, home, stack, "m11:")
    costs: _Costs = {}
    for _ in range(options.rounds):
        for form, count in _forms():
            costs.setdefault((form.name, count), []).append(ingest.measured(form, count, options.seconds))
    return costs


def _forms() -> list[tuple[Form, int]]:
    """Each form with the number of records in a body."""
    return [
        (form, count)
        for count in (BATCH_RECORDS, 1)
        for form in (OWN_TRACED, OWN_PLAIN, *FORMS)
        if count == 1 or form.has_batches
    ]


def requests_of(form: Form, count: int) -> list[bytes]:
    """Requests to send in turn, with `count` records each."""
    bodies = 20 if count > 1 else 500
    return [form.request(records_of(count, first=number * count)) for number in range(bodies)]


def _trim(server: Server) -> None:
    """Remove the appended records: no drain runs here, and memory is limited."""
    with redis.Redis.from_url(server.url) as client:
        for key in client.scan_iter(_type="stream"):
            client.xtrim(key, maxlen=0, approximate=False)


def _lines(costs: _Costs) -> list[Line]:
    lines = []
    for form, count in _forms():
        if form in (OWN_TRACED, OWN_PLAIN):
            continue
        own = OWN_TRACED if form.is_traced else OWN_PLAIN
        above, below = costs[form.name, count], costs[own.name, count]
        values = ratios([_microseconds(one) for one in above], [_microseconds(one) for one in below])
        words = f"bodies of {count}" if count > 1 else "one record a body"
        figures = {f"{one.name}, {words}": _figures(costs[one.name, count]) for one in (form, own)}
        goal = GOALS.get(form.name) if count > 1 else None
        lines.append(Line(MARK, f"CPU a record, {words}: {form.name} / own JSON", values, goal, figures=figures))
    return lines


def _microseconds(cost: Cost) -> float:
    return 1e6 / cost.per_cpu_second


def _figures(costs: list[Cost]) -> dict[str, Any]:
    return {
        "microseconds_of_CPU_a_record": statistics.median(map(_microseconds, costs)),
        "records_per_CPU_second": statistics.median(one.per_cpu_second for one in costs),
    }
