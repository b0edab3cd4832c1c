"""M5, M6: goodput under overload, and a step in the load, on the real system with every process of it.

PostgreSQL is held at about 1,500 events/s by a trigger that sleeps before the commit (`hold.sql`), so that reading,
storing and their transactions stay real; batches are small, so that a held one is not taken for a frozen server. The
system has one core, the load the other; arrivals are open-loop, in bodies of 20. Goodput is what is stored within
10 s of its receipt, over the sink's maximum, which is what it stores in the same run while the limiter is off.

The arms: the default settings; limiter off; a static limit at the sink's nominal rate, which nobody knows in practice;
and, reported only, the default bands under a maximum of four times the sink, where the bands alone must find the rate.
"""

import contextlib
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg2
import uvloop

from checks.bench.machine import LOAD_CORE, SERVER_CORE, Options, run_anywhere, run_on
from checks.bench.step import quantile, rates_of, step_of
from checks.bench.table import Goal, Line, at_least, at_most
from checks.loadgen.closed_load import an_event, post
from checks.loadgen.open_load import Responses, offer
from stack.config import StackConfig, environ_of_its_own
from stack.servers import LOOPBACK
from stack.system import System

SINK_RATE: Final = 1500
BODY_EVENTS: Final = 20
OFF_RATE: Final = 1_000_000
EMPTY_SECONDS_MAX: Final = 180
GOALS: Final = {2: at_least(0.97), 5: at_least(0.95), 10: at_least(0.90)}


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to limit: settings beyond the defaults, and how long it takes until its state is what it will be."""

    name: str
    environ: dict[str, str]
    warm_seconds: float
    step_seconds: float = 30
    factors: tuple[int, ...] = tuple(GOALS)


ARMS: Final = (
    # Off: until what is stored is older than 10 s: at twice the sink's rate that takes 20 s.
    Arm("limiter off", {"RATE_MAX": str(OFF_RATE), "RATE_MIN": str(OFF_RATE)}, 22),
    Arm("static limit at the sink's rate", {"RATE_MAX": str(SINK_RATE), "RATE_MIN": str(SINK_RATE)}, 10),
    Arm("default bands", {}, 10),
    Arm("default bands, RATE_MAX four times the sink", {"RATE_MAX": str(4 * SINK_RATE)}, 45, 60, (5,)),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one system: what clients were told, and what was stored when (epoch s, events, of them in time)."""

    responses: Responses
    stored: list[tuple[float, int, int]]

    def admitted(self, begin: float, end: float) -> list[float]:
        """Events/s admitted in each second."""
        taken = [
            (due, BODY_EVENTS)
            for due, status in zip(self.responses.due, self.responses.status, strict=True)
            if status == 202
        ]
        return rates_of([at for at, _ in taken], [count for _, count in taken], begin=begin, end=end)

    def stored_rates(self, begin: float, end: float, *, in_time: bool = False) -> list[float]:
        """Events/s stored in each second; `in_time`: of them those within 10 s of their receipt."""
        return rates_of(
            [at for at, _, _ in self.stored],
            [good if in_time else events for _, events, good in self.stored],
            begin=begin,
            end=end,
        )


class Held:
    """A running system whose sink is held."""

    def __init__(self, urls: dict[str, str], port: int) -> None:
        self._port = port
        self._database = psycopg2.connect(urls["DATABASE_URL"])
        self._database.autocommit = True
        self._ask((Path(__file__).parent / "hold.sql").read_text())
        self._hold(SINK_RATE)
        encode = msgspec.json.encode
        self._requests = [
            post("/api/logs", encode([an_event(k * BODY_EVENTS + n) for n in range(BODY_EVENTS)])) for k in range(200)
        ]

    def run(self, phases: list[tuple[float, float]]) -> Run:
        """Offer phases of (seconds, events/s); then let the system store all of it, and come to rest."""
        self._ask("TRUNCATE bench_stored")
        responses = uvloop.run(
            offer(LOOPBACK, self._port, self._requests, [(seconds, rate / BODY_EVENTS) for seconds, rate in phases])
        )
        stored = self._rows("SELECT extract(epoch FROM stored_at)::float8, events, in_time FROM bench_stored")
        self._hold(None)
        self._await_empty(BODY_EVENTS * sum(status == 202 for status in responses.status))
        self._hold(SINK_RATE)
        return Run(responses, stored)

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def _await_empty(self, admitted: int) -> None:
        """Until all that was admitted is stored, and the published rate is what it is without lag."""
        deadline = time.monotonic() + EMPTY_SECONDS_MAX
        while True:
            stored = self._rows("SELECT coalesce(sum(events), 0) FROM bench_stored")[0][0]
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self._port}/api/logs/health", timeout=10) as answer:
                health = msgspec.json.decode(answer.read())
            if stored >= admitted and health["status"] == "healthy":
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{stored} of {admitted} are stored, and the system is {health}")
            time.sleep(0.2)

    def _hold(self, rate: float | None) -> None:
        self._ask("UPDATE bench_hold SET events_per_second = %s", rate)

    def _ask(self, sql: str, *values: Any) -> None:
        with self._database.cursor() as cursor:
            cursor.execute(sql, values or None)

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self._database.cursor() as cursor:
            cursor.execute(sql)
            return [tuple(row) for row in cursor.fetchall()]


@contextlib.contextmanager
def held_system(log: str, environ: dict[str, str]) -> Iterator[Held]:
    """A system of its own on the server core, with these settings; the load's core for the caller."""
    with (
        tempfile.TemporaryDirectory() as folder,
        # Much that is refused is what is measured, and no reason to wait for.
        environ_of_its_own(SLUICE_HOME=folder, DRAIN_BATCH_RECORDS_MAX="250", REFUSED_RATIO_MAX="1", **environ) as ours,
    ):
        run_on(SERVER_CORE)
        try:
            system = System(StackConfig.from_environ(log))
            urls = system.start(threading.Event())
            try:
                run_on(LOAD_CORE)
                with contextlib.closing(Held(urls, int(ours["INGEST_PORT"]))) as held:
                    yield held
            finally:
                system.stop()
        finally:
            run_anywhere()


def run(options: Options, marks: set[str]) -> list[Line]:
    """Measure each arm in turn, once: they take minutes; the lines say so."""
    arms = [arm for arm in ARMS if not options.quick or arm.name in ("limiter off", "default bands")]
    lines: list[Line] = []
    capacity = 0.0
    for arm in arms:
        with held_system(options.log, arm.environ) as held:
            if not capacity:
                capacity = _capacity(held, options)
            if "M5" in marks:
                lines += _goodput(held, arm, capacity, options)
            if "M6" in marks:
                lines += _step(held, arm, capacity, options)
    return sorted(lines, key=lambda line: (line.mark, line.goal is None))


def _capacity(held: Held, options: Options) -> float:
    """Events/s that the held sink stores at most: what it stores while more is there than it takes."""
    seconds = 4 if options.quick else 12
    run = held.run([(seconds, 2 * SINK_RATE)])
    end = run.responses.due[-1]
    rates = run.stored_rates(end - seconds + 2, end)
    return sum(rates) / len(rates)


def _goodput(held: Held, arm: Arm, capacity: float, options: Options) -> list[Line]:
    lines = []
    warm, measured = (2.0, 4) if options.quick else (arm.warm_seconds, 10)
    for factor in arm.factors[:1] if options.quick else arm.factors:
        run = held.run([(warm + measured, factor * SINK_RATE)])
        end = run.responses.due[-1]
        good, all_of_it = (
            run.stored_rates(end - measured, end, in_time=True),
            run.stored_rates(end - measured, end),
        )
        figures = {
            "sink_events_per_second": capacity,
            "stored_events_per_second": sum(all_of_it) / len(all_of_it),
            "admitted_events_per_second": sum(run.admitted(end - measured, end)) / measured,
        }
        goal = GOALS[factor] if arm.name == "default bands" else None
        what = f"goodput at {factor} x what the sink takes: {arm.name}"
        lines.append(Line("M5", what, [sum(good) / len(good) / capacity], goal, figures=figures))
    return lines


def _step(held: Held, arm: Arm, capacity: float, options: Options) -> list[Line]:
    before, after = (3.0, 6.0) if options.quick else (8.0, arm.step_seconds)
    run = held.run([(before, SINK_RATE / 2), (after, 2 * SINK_RATE)])
    begin = run.responses.due[0] + before
    end = begin + after
    first = run.responses.due[0]
    admitted, stored = run.admitted(begin, end), run.stored_rates(begin, end)
    lag_before = sum(run.admitted(first, begin)) - sum(run.stored_rates(first, begin))
    step = step_of(admitted, stored, capacity=capacity, lag_before=max(0.0, lag_before))
    slow = [
        seconds
        for due, seconds, status in zip(run.responses.due, run.responses.seconds, run.responses.status, strict=True)
        if status == 202 and due >= begin
    ]
    figures = {"sink_events_per_second": capacity, "admitted": admitted, "stored": stored}
    judged = arm.name == "default bands"

    def line(what: str, value: float, goal: Goal, unit: str = "") -> Line:
        return Line("M6", f"{what}: {arm.name}", [value], goal if judged else None, unit=unit, figures=figures)

    return [
        line("step to 2 x: until admitted stays within 10 % of the sink", step.settle_seconds, at_most(10), "s"),
        line("… highest lag / the lag that it came to", step.overshoot, at_most(1.25)),
        line("… times that it left those 10 % again", step.swings, at_most(0)),
        Line("M6", f"… p99 of admitted: {arm.name}", [quantile(slow, 0.99) * 1000], unit="ms")
        if slow
        else Line("M6", f"… p99 of admitted: {arm.name}", problem="nothing was admitted"),
    ]
