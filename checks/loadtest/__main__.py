"""What `./load-test.sh` calls: runs the scenario, shows it while it runs, judges it, and writes the report."""

import argparse
import contextlib
import http.client
import json
import os
import sys
import tempfile
import threading
import time
import uuid
import xmlrpc.client
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg2
import uvloop

from checks.loadgen.hold import HeldDatabase, held_batch_records
from checks.loadgen.open_load import Responses, ServerGoneError, offer
from checks.loadtest import report
from checks.loadtest.given import Access, NotThereError, access_of, explain
from checks.loadtest.options import RATE_HIGHEST, limits_of, parse
from checks.loadtest.pictures import Pictures
from checks.loadtest.scenario import BANDS, DRAIN_TIME, TARGET_SECONDS, Action, Limits, Phase, phases
from checks.loadtest.verdict import Asked, Figures, Request, Sample, Stored, compare, figures, judge, judge_stored
from pipeline import wiring
from pipeline.errors import SettingsError, SluiceError, in_brief
from pipeline.names import PauseReason
from pipeline.policies.drain_time import CAPACITY, DRAIN
from pipeline.ports.control import ControlStore
from pipeline.settings import Settings
from stack.config import StackConfig, environ_of_its_own
from stack.servers import ROOT, ServerError
from stack.system import System

EVENTS_A_PAIR: Final = (1, 10)  # events of a request, in turn: one, then ten
STORED_SECONDS_MAX: Final = 60.0  # for the last acknowledged events to be stored
EXIT_NOT_PROVEN: Final = 2


@dataclass(frozen=True)
class PolicySeen:
    """The figures of the rate policies at one moment; None: unknown, or drain_time does not run."""

    drain: float | None = None  # s
    capacity: float | None = None  # events/s
    shadow: float | None = None  # events/s


@dataclass
class Target:
    """The system under load."""

    access: Access
    database_url: str | None
    system: System | None = None  # our own
    settings: Settings | None = None
    limits: Limits | None = None  # of our own system

    def __post_init__(self) -> None:
        self._store: ControlStore | None = None  # of our own system

    def policies(self) -> PolicySeen:
        """The figures of the rate policies of our own system; empty for a given system."""
        if self.settings is None:
            return PolicySeen()
        if self._store is None:
            self._store = wiring.make_control_store(self.settings)
        rate = self._store.state().rate
        record = None if rate is None else rate.policy
        if record is None:
            return PolicySeen()
        shadow = record.shadow
        records = [record] if shadow is None else [record, shadow.record]
        said = next((one.explanation for one in records if one.policy == DRAIN_TIME), None)
        return PolicySeen(
            None if said is None else said.figure(DRAIN),
            None if said is None else said.figure(CAPACITY),
            None if shadow is None else shadow.rate,
        )

    def health(self) -> dict[str, Any]:
        with self.access.look("/api/logs/health") as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def do(self, action: Action) -> None:
        """Carry out the action at the beginning of a phase."""
        if not action or self.system is None or self.settings is None:
            return
        control = wiring.make_control_store(self.settings)
        match action:
            case "pause":
                control.pause(PauseReason.OPERATOR, actor="load test", why="a backlog is wanted")
            case "resume":
                control.resume(PauseReason.OPERATOR, generation=None, actor="load test", why="enough of a backlog")
            case "stop postgres":
                self.system.supervisor().stopProcess("postgres", True)
            case "start postgres":
                self.system.supervisor().startProcess("postgres", False)

    def undo(self, action: Action) -> None:
        """Undo a phase's action, as far as the system still can: then it stores its backlog."""
        undone: dict[Action, Action] = {"pause": "resume", "stop postgres": "start postgres"}
        with contextlib.suppress(SluiceError, OSError, xmlrpc.client.Error):
            self.do(undone.get(action, ""))


@dataclass
class HealthSampler:
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
            with contextlib.suppress(OSError, ValueError, SluiceError):
                self._take(self.target.health(), self.target.policies())

    def _take(self, health: dict[str, Any], seen: PolicySeen) -> None:
        sample = Sample(
            time.time(), health["status"], health["consumerLag"], float(health["rateLimit"]), health["circuitBreaker"],
            health["consumption"], seen.drain, seen.capacity, seen.shadow,
        )  # fmt: skip
        self.samples.append(sample)
        words = line_of(sample, self.phase)
        if sys.stdout.isatty():
            print(f"\r{words}", end="", flush=True)
        elif (key := f"{self.phase}{sample.status}{sample.breaker}{sample.consumption}") != self._last_line:
            self._last_line = key  # without a terminal, a line for each change
            print(words, flush=True)


def line_of(sample: Sample, phase: str) -> str:
    """The line that is shown while the test runs."""
    lag = "?" if sample.lag is None else f"{sample.lag:,}"
    drain = "" if sample.drain is None else f"  drain {sample.drain:5.1f} s"
    shadow = "" if sample.shadow is None else f"  shadow {sample.shadow:7,.0f}/s"
    return (
        f"{phase:18} {sample.status:9} rate {sample.rate:7,.0f}/s{shadow}  lag {lag:>8}{drain}  "
        f"breaker {sample.breaker:9} {sample.consumption}"
    )


def main() -> int:
    """Run the scenario; returns the exit status."""
    options = parse()
    try:
        with _target(options) as target:
            return _run(target, options)
    except (NotThereError, SettingsError) as error:
        print(f"load-test.sh: {error}", file=sys.stderr)
        return EXIT_NOT_PROVEN
    except ServerError as error:
        print(f"load-test.sh: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _target(options: argparse.Namespace) -> Iterator[Target]:
    """The given system, or one of our own, which is stopped afterwards."""
    if options.url is not None:
        access, database_url = access_of(options, os.environ)
        yield Target(access, database_url)
        return
    limits = limits_of(options)
    with (
        tempfile.TemporaryDirectory(prefix="sluice-load-") as folder,
        environ_of_its_own(SLUICE_HOME=folder, PROMETHEUS="no", **settings_of(limits)),
    ):
        print(f"starting a system of its own, event log on {options.log} …", flush=True)
        system = System(StackConfig.from_environ(options.log))
        urls = system.start(threading.Event())
        try:
            settings = Settings.from_environ({**os.environ, **urls})
            if limits.sink is not None:
                with contextlib.closing(HeldDatabase(urls["DATABASE_URL"])) as database:
                    database.hold(limits.sink)
            yield Target(Access(urls["INGEST_URL"]), urls["DATABASE_URL"], system, settings, limits)
        finally:
            system.stop()


def settings_of(limits: Limits) -> dict[str, str]:
    """The settings of a system of our own with these limits."""
    settings = {
        "RATE_POLICY": limits.policy, "RATE_POLICY_SHADOW": limits.shadow, "RATE_MIN": str(limits.rate_min),
        "LAG_DEGRADED": str(limits.lag_degraded), "LAG_CRITICAL": str(limits.lag_critical),
    }  # fmt: skip
    if not limits.follows_drain:  # drain_time gets no rate: it must find the rate at which PostgreSQL stores
        settings["RATE_MAX"] = str(limits.rate_max)
    else:
        settings["DRAIN_TARGET_SECONDS"] = str(TARGET_SECONDS)
    if limits.sink is not None:
        settings["DRAIN_BATCH_RECORDS_MAX"] = str(held_batch_records(limits.sink))
    return settings


def _limits(target: Target) -> Limits:
    """The limits of the system; a given system shows only its rate. Raises NotThereError."""
    if target.limits is not None:
        return target.limits
    access = target.access
    try:
        rate = float(target.health()["rateLimit"])
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError) as error:
        where = f"OPERATOR_URL={access.operators}" if access.operators else f"--url {access.url}"
        raise NotThereError(f"{where}: no Sluice tells its health there: {explain(error)}") from error
    access.check_events()
    return Limits(rate, rate / 10, policy=policy_at(target))


def policy_at(target: Target) -> str:
    """The rate policy of a given system, from the stream of its page; `bands` if the stream does not have it."""
    try:
        with target.access.look("/events") as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    return str(json.loads(line.removeprefix(b"data:"))["status"]["ratePolicy"]["name"])
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError):
        pass  # an earlier version, or too many viewers
    return BANDS


def _run(target: Target, options: argparse.Namespace) -> int:
    limits = _limits(target)
    scenario = phases(limits, own=target.system is not None, seconds=options.duration)
    run = f"load-{uuid.uuid4().hex[:12]}"
    print(f"{len(scenario)} phases, {sum(phase.seconds for phase in scenario):.0f} s, events {run}-…", flush=True)
    folder = options.out or ROOT / ".local" / "load-test" / time.strftime("%Y%m%d-%H%M%S")
    pictures = Pictures(target.access.page, folder, target.access.password) if options.page else None
    sampler = HealthSampler(target)
    sampler.start()
    with contextlib.nullcontext() if pictures is None else pictures.running():
        told = play(target, limits, scenario, run, sampler, pictures)
    sampler.stop()
    if pictures is not None:
        for line in pictures.problems:
            print(line)
    requests = [request for one in told.responses for request in requests_of(one)]
    summed = [
        figures(phase, begin, end, requests, sampler.samples)
        for phase, (begin, end) in zip(scenario, told.marks, strict=False)  # the phases that began
    ]
    for found, one in zip(summed, told.responses, strict=True):
        found.problems = judge(found, limits, late_seconds=one.late_seconds)
    if told.gone:
        summed[-1].problems.insert(0, told.gone)
    stored = _stored(target.database_url, run, told.responses)
    return _tell(
        target, options, folder, limits, summed, requests, sampler.samples, stored, len(scenario) - len(summed)
    )


@dataclass
class Told:
    """The phases that began: their times and the outcome of their requests; `gone`: the error that ended the last."""

    marks: list[tuple[float, float]] = field(default_factory=list)
    responses: list[Responses] = field(default_factory=list)
    gone: str = ""


def play(
    target: Target, limits: Limits, scenario: list[Phase], run: str, sampler: HealthSampler,
    pictures: Pictures | None = None,
) -> Told:  # fmt: skip
    """Play the phases in turn. If the system stops answering, the scenario ends and its actions are undone."""
    told = Told()
    for number, phase in enumerate(scenario, 1):
        sampler.phase = phase.name
        if pictures is not None:
            pictures.plan(number, phase.name, phase.seconds)
        target.do(phase.action)
        begin = time.time()
        try:
            told.responses.append(_offer(target, limits, phase, f"{run}-{len(told.responses)}"))
        except ServerGoneError as error:
            told.responses.append(error.responses)
            told.gone = str(error)
        told.marks.append((begin, time.time()))
        if told.gone:
            target.undo(phase.action)
            break
    return told


def _events_of(number: int) -> int:
    """The number of events in a request, by the request's number."""
    return EVENTS_A_PAIR[number % len(EVENTS_A_PAIR)]


def _ids_of(name: str, number: int) -> list[str]:
    """The ids of a request's events; each begins with the run and has the event's number."""
    return [f"{name}-{number}-{index}" for index in range(_events_of(number))]


def _offer(target: Target, limits: Limits, phase: Phase, name: str) -> Responses:
    access = target.access
    host, port = access.place

    def make(number: int) -> bytes:
        events = [
            {
                "correlationId": f"{name}-{number % 50}", "severity": "INFO", "source": "load-test",
                "timestamp": int(time.time() * 1000), "eventId": event_id, "message": event_id,
            }
            for event_id in _ids_of(name, number)
        ]  # fmt: skip
        body = json.dumps(events if len(events) > 1 else events[0]).encode()
        return access.head(len(body)) + body

    rate = min(RATE_HIGHEST, phase.share * limits.rate_max)
    mean = sum(EVENTS_A_PAIR) / len(EVENTS_A_PAIR)
    return uvloop.run(offer(host, port, make, [(phase.seconds, rate / mean)], tls=access.events_tls))


def requests_of(responses: Responses) -> list[Request]:
    """The answered requests, and one with status 0 for each that was due and was not answered or not sent."""
    found = [
        Request(due, _events_of(number), status, seconds)
        for due, number, status, seconds in zip(
            responses.due, responses.number, responses.status, responses.seconds, strict=True
        )
    ]
    return found + [Request(due, _events_of(number), 0, 0.0) for due, number in responses.unanswered]


def asked_of(run: str, responses: list[Responses]) -> Asked:
    """The ids of a run's events by their outcome."""
    asked = Asked()
    for phase, one in enumerate(responses):
        name = f"{run}-{phase}"
        for number in range(1, one.sent + 1):
            asked.sent.update(_ids_of(name, number))
        for number, status in zip(one.number, one.status, strict=True):
            if status in (202, 429):
                (asked.acknowledged if status == 202 else asked.refused).update(_ids_of(name, number))
    return asked


def _stored(database_url: str | None, run: str, responses: list[Responses]) -> Stored:
    """Compare the answers with the rows in PostgreSQL, once every acknowledged event is there or time is up."""
    if database_url is None:
        return Stored(checked=False)
    asked = asked_of(run, responses)
    deadline = time.monotonic() + STORED_SECONDS_MAX
    while True:
        try:
            found = compare(asked, _rows(database_url, run))
        except psycopg2.Error as error:  # PostgreSQL may be starting
            found = Stored(checked=False, why_not=f"PostgreSQL: {in_brief(error)}")
        if (found.checked and not found.lost) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _rows(database_url: str, run: str) -> list[tuple[str, str]]:
    """All stored rows of a run, with any id: found by the correlation id, which begins with the run too."""
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT event_id, message FROM log_events WHERE correlation_id LIKE %s", (f"{run}-%",))
        return cursor.fetchall()


def notes_of(limits: Limits, *, full: bool) -> list[str]:
    """What decided the rate, in words."""
    name = {BANDS: "bands", DRAIN_TIME: "drain_time"}
    notes = []
    if limits.follows_drain and limits.sink is not None:
        notes.append(
            f"Rate policy drain_time. A trigger lets PostgreSQL store {limits.sink:,.0f} events/s. The policy does not "
            f"know that: it measures the capacity, and keeps the time to drain near {TARGET_SECONDS:g} s."
        )
    elif limits.follows_drain:
        notes.append("Rate policy drain_time: at least the rate at the beginning must be admitted.")
    elif limits.lag_degraded is not None:
        tenth = "." if full else ", a tenth of the defaults, so that minutes are enough (--full)."
        notes.append(f"Rate policy bands. Lag thresholds {limits.lag_degraded:,} and {limits.lag_critical:,}{tenth}")
    if limits.shadow:
        notes.append(
            f"The shadow policy {name[limits.shadow]} admits nothing. It decides by the same measurements, so it sees "
            "the backlog of the other policy's rate."
        )
    if limits.sink is not None and not limits.follows_drain:
        notes.append(f"A trigger lets PostgreSQL store {limits.sink:,.0f} events/s.")
    return notes


def _tell(
    target: Target, options: argparse.Namespace, folder: Path, limits: Limits, summed: list[Figures],
    requests: list[Request], samples: list[Sample], stored: Stored, not_begun: int,
) -> int:  # fmt: skip
    whole = judge_stored(stored)
    failed = [found for found in summed if found.problems]
    if whole or failed:
        verdict, status = f"{len(failed)} of {len(summed)} phases did not hold", 1
        if not_begun:
            verdict += f", {not_begun} more were not begun"
        if whole:
            verdict = f"the stored events differ from the acknowledged ones; {verdict}"
        elif stored.checked:
            verdict += f"; {stored.acknowledged:,} events acknowledged, each stored once"
        else:
            verdict += f"; what is stored was not checked ({stored.why_not})"
    elif not stored.checked:
        verdict = f"every phase held; what is stored was not checked ({stored.why_not}): not proven"
        status = EXIT_NOT_PROVEN
    else:
        verdict = f"everything held: {stored.acknowledged:,} events acknowledged, each stored once, nothing else"
        status = 0
    notes = [
        "Arrivals at a constant rate, whatever the server does; latency counts from when a request was due.",
        "Requests take turns: one event, ten events. Offered, admitted and refused count events.",
        "Pausing consumption makes the backlog; PostgreSQL is stopped and started."
        if target.system is not None
        else "An existing system: no backlog was made, and nothing was stopped.",
    ]
    notes += notes_of(limits, full=options.full)
    svg = report.picture(summed, requests, samples, limits, "svg")
    png = report.picture(summed, requests, samples, limits, "png")
    report.write(folder, report.page(summed, verdict, whole, notes, svg), png)
    for found in summed:
        cells = report.row(found)
        print(f"\n{cells[0]}: {'held' if not found.problems else 'NOT HELD: ' + '; '.join(found.problems)}")
        print(f"  offered {cells[1]}, admitted {cells[2]}, refused {cells[3]} events/s; {report.backlog(found)}")
        print(f"  p50, p99 of admitted: {cells[5] or 'none'}; of refused: {cells[6] or 'none'}")
        print(f"  health {cells[8]}; breaker {cells[9]}")
    print()
    for problem in whole:
        print(problem)
    print(f"{verdict}\n{folder / 'load-report.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
