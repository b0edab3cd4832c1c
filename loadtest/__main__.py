"""What `./load-test.sh` calls: runs the story, shows it while it runs, judges it, and writes the report."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg2
import uvloop

from bench.open_load import Answers, offer
from loadtest import report
from loadtest.story import Act, Bands, Phase, phases
from loadtest.verdict import Figures, Request, Sample, Stored, figures, judge, judge_stored
from pipeline import wiring
from pipeline.names import PauseReason
from pipeline.settings import Settings
from stack.config import StackConfig, free_ports
from stack.servers import ROOT, ServerError
from stack.system import System

EVENTS_A_PAIR: Final = (1, 10)  # requests take turns: a single event, a body of ten
RATE_HIGHEST: Final = 20_000.0  # events/s offered, whatever is asked for
SECONDS_MAX: Final = 1200.0
STORED_SECONDS_MAX: Final = 60.0  # for the last acknowledged events to be stored
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
EXIT_NOT_PROVEN: Final = 2
_EXAMPLES: Final = """
examples:
  ./load-test.sh                          the whole story on a system of its own, in under three minutes
  ./load-test.sh --log kafka              the same on Kafka
  ./load-test.sh --full                   with the real thresholds (10,000 and 50,000): about five minutes
  ./load-test.sh --rate 2000 --duration 300
  DATABASE_URL=… ./load-test.sh --url http://127.0.0.1:8080    a system that runs already, which is left as it is

exit status: 0 everything held; 1 something did not; 2 nothing failed, but what is stored could not be checked
"""


@dataclass
class Target:
    """The system under load."""

    url: str
    database_url: str | None
    system: System | None = None  # ours
    settings: Settings | None = None

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/api/logs/health", timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def act(self, act: Act) -> None:
        """Do to the system what a phase begins with."""
        if not act or self.system is None or self.settings is None:
            return
        control = wiring.make_control_store(self.settings)
        match act:
            case "pause":
                control.pause(PauseReason.OPERATOR, by="load test", why="a backlog is wanted")
            case "resume":
                control.resume(PauseReason.OPERATOR, generation=None, by="load test", why="enough of a backlog")
            case "stop postgres":
                self.system.supervisor().stopProcess("postgres", True)
            case "start postgres":
                self.system.supervisor().startProcess("postgres", False)


@dataclass
class Recorder:
    """Looks at the system's health twice a second, and shows it."""

    target: Target
    samples: list[Sample] = field(default_factory=list)
    phase: str = ""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._last_line = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        if sys.stdout.isatty():
            print()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            with contextlib.suppress(OSError, ValueError):
                self._take(self.target.health())

    def _take(self, health: dict[str, Any]) -> None:
        sample = Sample(
            time.time(), health["status"], health["consumerLag"], float(health["rateLimit"]), health["circuitBreaker"],
            health["consumption"],
        )  # fmt: skip
        self.samples.append(sample)
        lag = "?" if sample.lag is None else f"{sample.lag:,}"
        words = (
            f"{self.phase:18} {sample.status:9} rate {sample.rate:7,.0f}/s  lag {lag:>8}  breaker {sample.breaker:9} "
            f"{sample.consumption}"
        )
        if sys.stdout.isatty():
            print(f"\r{words}", end="", flush=True)
        elif (key := f"{self.phase}{sample.status}{sample.breaker}{sample.consumption}") != self._last_line:
            self._last_line = key  # where nobody watches, a line for each change
            print(words, flush=True)


def main() -> int:
    """Run the story; returns the exit status."""
    options = _parse()
    try:
        with _target(options) as target:
            return _run(target, options)
    except ServerError as error:
        print(f"load-test.sh: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./load-test.sh", epilog=_EXAMPLES,
        description="Send a load from normal through a backlog and an outage of PostgreSQL to recovery, show it while\n"
        "it runs, and judge it: each phase by what was expected of it, and the whole by what is stored.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--log", choices=("redis", "kafka"), default="redis", help="the event log of a system of its own"
    )
    parser.add_argument("--rate", type=float, default=1000.0, help="its full rate, events/s (default 1000)")
    parser.add_argument(
        "--duration", type=float, default=150.0, help="about how long, s (default 150; more for --full)"
    )
    parser.add_argument("--url", help="an existing system on this machine: only load, nothing is stopped")
    parser.add_argument("--full", action="store_true", help="lag thresholds of 10,000 and 50,000 instead of a tenth")
    parser.add_argument("--out", type=Path, help="folder of the report (default .local/load-test/<time>)")
    options = parser.parse_args()
    if not 10 <= options.rate <= RATE_HIGHEST / 5:
        parser.error(f"--rate {options.rate:g}: it takes 10 to {RATE_HIGHEST / 5:g}")
    if not 20 <= options.duration <= SECONDS_MAX:
        parser.error(f"--duration {options.duration:g}: it takes 20 to {SECONDS_MAX:g}")
    if options.url is not None and urlsplit(options.url).hostname not in LOOPBACK:
        parser.error(f"--url {options.url}: load is sent to this machine only")
    return options


@contextlib.contextmanager
def _target(options: argparse.Namespace) -> Iterator[Target]:
    """The system that is given, or one of our own, which is stopped afterwards."""
    if options.url is not None:
        yield Target(options.url.rstrip("/"), os.environ.get("DATABASE_URL") or None)
        return
    degraded, critical = (10_000, 50_000) if options.full else (1_000, 5_000)
    with tempfile.TemporaryDirectory(prefix="sluice-load-") as folder:
        os.environ.update(
            free_ports()
            | {
                "SLUICE_HOME": folder, "PROMETHEUS": "no", "RATE_MAX": str(options.rate),
                "RATE_MIN": str(options.rate / 10), "LAG_DEGRADED": str(degraded), "LAG_CRITICAL": str(critical),
            }
        )  # fmt: skip
        for name in ("DATABASE_URL", "REDIS_URL", "EVENT_LOG_URL", "KAFKA_BOOTSTRAP_SERVERS"):
            os.environ.pop(name, None)
        print(f"starting a system of its own, event log on {options.log} …", flush=True)
        system = System(StackConfig.from_environ(options.log))
        urls = system.start(threading.Event())
        try:
            settings = Settings.from_environ({**os.environ, **urls})
            yield Target(urls["INGEST_URL"], urls["DATABASE_URL"], system, settings)
        finally:
            system.stop()


def _bands(target: Target, options: argparse.Namespace) -> Bands:
    if target.settings is None:
        rate = float(target.health()["rateLimit"])
        return Bands(rate, rate / 10, 10_000, 50_000)
    found = target.settings
    return Bands(found.rate_max, found.rate_min, found.lag_degraded, found.lag_critical)


def _run(target: Target, options: argparse.Namespace) -> int:
    bands = _bands(target, options)
    story = phases(bands, scale=options.duration / 150.0, own=target.system is not None)
    run = f"load-{uuid.uuid4().hex[:12]}"
    print(f"{len(story)} phases, {sum(phase.seconds for phase in story):.0f} s, events {run}-…", flush=True)
    recorder = Recorder(target)
    recorder.start()
    marks: list[tuple[float, float]] = []
    answers: list[Answers] = []
    for phase in story:
        recorder.phase = phase.name
        target.act(phase.act)
        begin = time.time()
        answers.append(_offer(target, bands, phase, f"{run}-{len(answers)}"))
        marks.append((begin, time.time()))
    recorder.stop()
    requests = [request for number, one in enumerate(answers) for request in _requests(one, number)]
    summed = [
        figures(phase, begin, end, requests, recorder.samples) for phase, (begin, end) in zip(story, marks, strict=True)
    ]
    for found, one in zip(summed, answers, strict=True):
        found.problems = judge(found, bands, late_seconds=one.late_seconds)
    stored = _stored(target.database_url, run, answers)
    return _tell(target, options, bands, summed, requests, recorder.samples, stored)


def _events_of(number: int) -> int:
    """How many events the request of a number has."""
    return EVENTS_A_PAIR[number % len(EVENTS_A_PAIR)]


def _offer(target: Target, bands: Bands, phase: Phase, name: str) -> Answers:
    place = urlsplit(target.url)
    host, port = place.hostname or LOOPBACK[0], place.port or 80

    def make(number: int) -> bytes:
        events = [
            {
                "correlationId": f"{name}-{number % 50}", "severity": "INFO", "message": "load", "source": "load-test",
                "timestamp": int(time.time() * 1000), "eventId": f"{name}-{number}-{index}",
            }
            for index in range(_events_of(number))
        ]  # fmt: skip
        body = json.dumps(events if len(events) > 1 else events[0]).encode()
        return (
            b"POST /api/logs HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )

    rate = min(RATE_HIGHEST, phase.share * bands.rate_max)
    mean = sum(EVENTS_A_PAIR) / len(EVENTS_A_PAIR)
    return uvloop.run(offer(host, port, make, [(phase.seconds, rate / mean)]))


def _requests(answers: Answers, phase: int) -> list[Request]:
    """Answered requests, and one of status 0 for each that was never answered."""
    found = [
        Request(due, _events_of(number), status, seconds)
        for due, number, status, seconds in zip(
            answers.due, answers.number, answers.status, answers.seconds, strict=True
        )
    ]
    lost = answers.sent - len(found)
    return found + [Request(answers.due[-1] if answers.due else 0.0, 1, 0, 0.0)] * lost


def _stored(database_url: str | None, run: str, answers: list[Answers]) -> Stored:
    """Compare what was answered with what PostgreSQL holds, once everything acknowledged is there or time is up."""
    if database_url is None:
        return Stored(checked=False)
    asked: dict[int, set[str]] = {202: set(), 429: set()}
    for phase, one in enumerate(answers):
        for number, status in zip(one.number, one.status, strict=True):
            if status in asked:
                asked[status].update(f"{run}-{phase}-{number}-{index}" for index in range(_events_of(number)))
    deadline = time.monotonic() + STORED_SECONDS_MAX
    while True:
        held = _ids(database_url, run)
        lost = len(asked[202] - held.keys())
        if not lost or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return Stored(
        checked=True,
        acknowledged=len(asked[202]),
        lost=lost,
        unasked=len(asked[429] & held.keys()),
        twice=sum(count > 1 for count in held.values()),
    )


def _ids(database_url: str, run: str) -> dict[str, int]:
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT event_id, count(*) FROM log_events WHERE event_id LIKE %s GROUP BY 1", (f"{run}-%",))
        return dict(cursor.fetchall())


def _tell(
    target: Target, options: argparse.Namespace, bands: Bands, summed: list[Figures], requests: list[Request],
    samples: list[Sample], stored: Stored,
) -> int:  # fmt: skip
    whole = judge_stored(stored)
    failed = [found for found in summed if found.problems]
    if whole or failed:
        verdict, status = f"{len(failed)} of {len(summed)} phases did not hold", 1
        if whole:
            verdict = f"events were lost or doubled; {verdict}"
    elif not stored.checked:
        verdict, status = "every phase held; what is stored was not checked (give DATABASE_URL): not proven", 2
    else:
        verdict = (
            f"everything held: {stored.acknowledged:,} events acknowledged, each stored once, none that was refused"
        )
        status = 0
    folder = options.out or ROOT / ".local" / "load-test" / time.strftime("%Y%m%d-%H%M%S")
    notes = [
        "Arrivals at a constant rate, whatever the server does; latency counts from when a request was due.",
        "Requests take turns: one event, ten events. Offered, admitted and refused count events.",
        f"Lag thresholds {bands.lag_degraded:,} and {bands.lag_critical:,}"
        + (
            "."
            if options.full or target.system is None
            else ", a tenth of the defaults, so that minutes are enough (--full)."
        ),
        "The backlog is made by pausing consumption by hand; PostgreSQL is stopped and started."
        if target.system is not None
        else "An existing system: no backlog was made, and nothing was stopped.",
    ]
    svg = report.picture(summed, requests, samples, bands, "svg")
    png = report.picture(summed, requests, samples, bands, "png")
    report.write(folder, report.page(summed, verdict, whole, notes, svg), png)
    for found in summed:
        cells = report.row(found)
        print(f"\n{cells[0]}: {'held' if not found.problems else 'NOT HELD: ' + '; '.join(found.problems)}")
        print(f"  offered {cells[1]}, admitted {cells[2]}, refused {cells[3]} events/s; lag up to {cells[7]}")
        print(f"  p50, p99 of admitted: {cells[5] or 'none'}; of refused: {cells[6] or 'none'}")
        print(f"  health {cells[8]}; breaker {cells[9]}")
    print()
    for problem in whole:
        print(problem)
    print(f"{verdict}\n{folder / 'load-report.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
