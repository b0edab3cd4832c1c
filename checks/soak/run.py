"""A run: traffic, one fault of the schedule after the other, and the verdict."""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

import psutil
import psycopg2
import redis

from checks.soak.admissions import Outage
from checks.soak.answers import AnswerRules
from checks.soak.arguments import HITS_SHARE_MIN
from checks.soak.catalog import Planned, needs_of
from checks.soak.checker import Disturbed, Rules, check, lost_by_the_machine
from checks.soak.client import SIZES
from checks.soak.control import PolicyRules
from checks.soak.fault import Effect, Fault
from checks.soak.found import AdmissionRules, Found, Recovery, Stored
from checks.soak.history import History, Outcome, read_histories
from checks.soak.reading import read_found
from checks.soak.rig import Ended, Options, Rig
from checks.soak.watcher import Watcher
from checks.soak.windows import ClockSpan, Part, Refusal, Window, Windows
from pipeline.errors import SluiceError
from pipeline.settings import Settings
from stack.servers import ServerError

LOOK_SECONDS = 0.02
PATIENCE_SECONDS = 4.0  # for a fault that has not hit anything yet
# At full pace, clients send the rest of the events within this many times the expected time.
EVENTS_SECONDS_FACTOR = 3.0
# Errors of a fault whose target is unavailable at that time. The run continues without the fault.
_NOT_MADE = (psutil.Error, psycopg2.Error, redis.RedisError, SluiceError, OSError, AssertionError)
# A program that ended by itself is started again. Its effects are excused for this time after its end.
UNPLANNED_SECONDS = 10.0
RETRY_SECONDS_MAX = 5  # of a Retry-After, unless a bucket owes a body: a log is tried again sooner
# An append may still fail for this time after a repair of the log: a Kafka producer keeps one until its time-out.
LOG_AFTER_SECONDS = {"redis": 5.0, "kafka": 15.0}
LATE_SECONDS = 1.0  # until a lower rate reaches every process, by a control event or the next lease


class Verdict(StrEnum):
    """The result of a run."""

    KEPT = "kept"
    BROKEN = "broken"
    NOT_PROVEN = "not proven"  # no promise was seen broken, but less was tried than requested


@dataclass(slots=True)
class Done:
    """The result of one planned fault. Times are seconds since the run's start, but `outage` has epoch seconds."""

    planned: Planned
    at: float
    effect: Effect
    seconds: float = 0.0
    recovered_seconds: float | None = None  # None: not waited for, or never
    skipped: str | None = None
    impossible: bool = False  # skipped, because this machine lacks what it needs: no effect is expected
    note: str = ""


@dataclass(slots=True)
class Result:
    """A whole run."""

    options: Options
    plan: list[Planned]
    events_min: int = 0
    done: list[Done] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    lost: list[Stored] = field(default_factory=list)
    lost_unread: set[str] = field(default_factory=set)
    windows: list[Window] = field(default_factory=list)
    clocks: list[ClockSpan] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    recovery: Recovery = field(default_factory=lambda: Recovery(None, 60.0, "it was not waited for"))
    violations: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # of faults, which see more than the state at the end shows
    outcomes: dict[str, int] = field(default_factory=dict)  # events
    statuses: dict[str, int] = field(default_factory=dict)  # requests
    found: dict[str, int] = field(default_factory=dict)
    unplanned: list[str] = field(default_factory=list)
    lost_acked: int = 0
    seconds: float = 0.0
    server_error: str = ""  # the harness could not restart one of its servers, which is not the system's fault

    def note(self, fault: Fault, window: Window) -> None:
        """Keep the judge's data on a fault after its repair."""
        self.windows.append(window)
        self.lost += fault.lost
        self.lost_unread |= fault.lost_unread
        self.clocks += fault.clocks
        self.refusals += fault.refusals
        self.complaints += [f"after {fault.name}: {words}" for words in fault.complaints]

    @property
    def hits(self) -> int:
        return sum(one.skipped is None and one.effect.hit for one in self.done)

    @property
    def expected(self) -> int:
        """How many faults should have taken effect: the planned ones without those that this machine can't make."""
        return len(self.plan) - sum(one.impossible for one in self.done)

    @property
    def not_proven(self) -> list[str]:
        """The reasons why the run proves nothing, as text; empty if it is a proof."""
        reasons = [self.server_error] if self.server_error else []
        if self.expected == 0:
            reasons.append("no fault was planned that can be made on this machine")
        elif self.hits < HITS_SHARE_MIN * self.expected:
            reasons.append(
                f"{self.hits} of {self.expected} faults took effect, which is less than {HITS_SHARE_MIN:.0%} of them"
            )
        sent = self.found.get("events sent", 0)
        if sent < self.events_min:
            reasons.append(f"{sent:,} events were sent, and {self.events_min:,} were asked for")
        return reasons

    @property
    def verdict(self) -> Verdict:
        """The run's result."""
        if self.violations:
            return Verdict.BROKEN
        return Verdict.NOT_PROVEN if self.not_proven else Verdict.KEPT


Tell = Callable[[str], None]


def run(
    options: Options,
    plan: list[Planned],
    *,
    events_min: int = 0,
    recovery_seconds_max: float = 60.0,
    tell: Tell = lambda _: None,
) -> Result:
    """Carry out a schedule under traffic and judge it. Raises ServerError, AssertionError if the start failed."""
    result = Result(options, plan, events_min)
    rig = Rig(replace(options, needs=options.needs | needs_of(planned.name for planned in plan)))
    started = time.monotonic()
    broke_off = None
    try:
        rig.start()
        watcher = Watcher(rig).start()
        try:
            rig.wait(lambda: rig.counts()["acked"] > 0, "the first acknowledged events", seconds_max=120)
            try:
                _Run(rig, result, recovery_seconds_max, tell).run()
            except ServerError as error:
                result.server_error = f"the run broke off after {len(result.done)} faults: {error}"
                tell(result.server_error)
            except Exception as error:  # a long run is still judged, by its results up to then
                broke_off = f"the run broke off after {len(result.done)} faults: {error!r}"
                tell(broke_off)
        finally:
            rig.stop_clients()
            watcher.stop()
        for program in rig.programs:
            rig.down.add(program)
            rig.stop_program(program)
        tell("reading rows, dead letters, offsets and the log")
        found = read_found(rig)
        history = read_histories(rig.history_folder.glob("*.jsonl"))
    finally:
        rig.stop()
    _judge(result, rig, watcher, history, found)
    if broke_off is not None:
        result.violations.append(broke_off)
    result.seconds = time.monotonic() - started
    return result


class _Run:
    """The part of a run in which faults happen."""

    def __init__(self, rig: Rig, result: Result, recovery_seconds_max: float, tell: Tell) -> None:
        self._rig = rig
        self._result = result
        self._recovery_seconds_max = recovery_seconds_max
        self._tell = tell
        self._started = time.monotonic()
        self._repaired_at = time.monotonic()
        self._unwatched: Done | None = None  # the last fault, if the run did not wait for its recovery

    def run(self) -> None:
        try:
            for number, planned in enumerate(self._result.plan, 1):
                done = self._carry_out(planned)
                self._result.done.append(done)
                counts = self._rig.counts()
                self._tell(
                    f"{number}/{len(self._result.plan)} {planned.name}: {done.skipped or done.effect.words}; "
                    f"{_recovered_words(done)}; {counts['sent']} events sent, {counts['acked']} acknowledged"
                )
            self._wait_last_recovered()
            self._send_the_rest()
        except KeyboardInterrupt:  # less was tried than requested, and the judge sees this
            self._tell(f"stopped after {len(self._result.done)} faults; a second Ctrl-C ends it without a verdict")
        self._rig.stop_clients()
        self._result.recovery = self._wait_drained()

    def _carry_out(self, planned: Planned) -> Done:
        time.sleep(planned.gap_seconds)
        fault = planned.make()
        at = time.monotonic() - self._started
        impossible = fault.impossible(self._rig)
        if impossible is not None:
            return Done(planned, at, Effect(False, ""), skipped=f"skipped: {impossible}", impossible=True)
        low, high = fault.seconds
        seconds = low + planned.share * (high - low)
        began, began_at = time.monotonic(), time.time()
        note = ""
        try:
            fault.prepare(self._rig)
            began, began_at = time.monotonic(), time.time()
            fault.inject(self._rig)
        except _NOT_MADE as error:
            self._result.windows.append(Window(fault.name, began_at, time.time(), fault.touches))
            self._rig.down.clear()  # the keeper restarts stopped programs
            self._repaired_at = time.monotonic()  # of the half-made fault
            self._unwatched = Done(planned, at, Effect(False, ""), skipped=f"skipped: it could not be made: {error!r}")
            return self._unwatched
        made_at = time.time()
        try:
            while (left := began + seconds - time.monotonic()) > 0 or (
                left > -PATIENCE_SECONDS and not fault.has_hit(self._rig)
            ):
                note = _looked(fault, self._rig) or note
                time.sleep(LOOK_SECONDS)
        finally:
            repair_at = time.time()
            fault.repair(self._rig)
            self._repaired_at = time.monotonic()
            window = Window(
                fault.name,
                began_at,
                time.time(),
                fault.touches,
                fault.dead,
                made_at=made_at,
                repair_at=repair_at,
                accepts_nothing=fault.accepts_nothing,
            )
            self._result.note(fault, window)
        done = Done(planned, at, Effect(False, ""), seconds=self._repaired_at - began, note=note)
        self._unwatched = done if planned.hasty else None
        if not planned.hasty:
            done.recovered_seconds, done.note = self._wait_recovered(done.note)
        if fault.control_outage:
            self._result.outages.append(Outage(began_at, time.time()))
        try:
            done.effect = fault.effect(self._rig)
        except (psycopg2.Error, OSError) as error:
            done.note = done.note or f"its effect is not known: {error}"  # "not well after" is judged
        return done

    def _wait_recovered(self, note: str) -> tuple[float | None, str]:
        """Seconds from the repair until the system is well and all events then in the log are stored."""
        ends: dict[tuple[str, int], int] | None = None
        problem = None
        while time.monotonic() - self._repaired_at < self._recovery_seconds_max:
            try:
                ends = ends or self._rig.log_ends()
                problem = self._rig.problem() or self._rig.behind(ends)
            except SluiceError as error:
                problem = str(error)
            if problem is None:
                return time.monotonic() - self._repaired_at, note
            time.sleep(0.05)
        return None, f"not well after {self._recovery_seconds_max:.0f} s: {problem}"

    def _wait_last_recovered(self) -> None:
        """Wait for the recovery from the last fault while clients go on, if the schedule did not wait for it."""
        done = self._unwatched
        if done is None:
            return
        done.recovered_seconds, done.note = self._wait_recovered(done.note)
        well = done.note if done.recovered_seconds is None else f"well after {done.recovered_seconds:.1f} s"
        self._tell(f"the last fault, {done.planned.name}: {well}")

    def _send_the_rest(self) -> None:
        """Let clients send the rest of the required events, faster than before. A shortfall is judged at the end."""
        events_min = self._result.events_min
        left = events_min - self._rig.counts()["sent"]
        if left <= 0:
            return
        self._tell(f"{left} events are left to be sent")
        for client in self._rig.clients:
            client.signal(signal.SIGUSR1)
        deadline = time.monotonic() + 30 + EVENTS_SECONDS_FACTOR * left / self._rig.options.rate
        while self._rig.counts()["sent"] < events_min and time.monotonic() < deadline:
            time.sleep(0.5)
        if (left := events_min - self._rig.counts()["sent"]) > 0:
            self._tell(f"{left} events were not sent in time")

    def _wait_drained(self) -> Recovery:
        """Wait until everything is stored and the breaker is closed. The time counts from the last event, just now.

        An earlier check covers the recovery in time after the last repair.
        """
        since = time.monotonic()
        problem: str | None = "it was not looked at"
        while time.monotonic() - since < self._recovery_seconds_max:
            try:
                problem = self._rig.problem() or self._rig.behind(self._rig.log_ends())
            except SluiceError as error:
                problem = str(error)
            if problem is None:
                return Recovery(time.monotonic() - since, self._recovery_seconds_max)
            time.sleep(0.1)
        return Recovery(None, self._recovery_seconds_max, str(problem))


def _looked(fault: Fault, rig: Rig) -> str:
    """Call the fault's `look`. Returns the error as text if a server that it needs is unavailable, else ""."""
    try:
        fault.look(rig)
    except (psycopg2.Error, OSError) as error:
        return f"could not be looked after: {error}"
    return ""


def _recovered_words(done: Done) -> str:
    if done.skipped or done.planned.hasty:
        return "the next one at once"
    return f"well after {done.recovered_seconds:.1f} s" if done.recovered_seconds is not None else done.note


def _judge(result: Result, rig: Rig, watcher: Watcher, history: History, found: Found) -> None:
    found.offset_samples, found.lost = watcher.offsets, result.lost
    found.lost_unread = frozenset(result.lost_unread)
    counts = {len(sample.partitions) for sample in watcher.seen.lags}
    found.partition_counts = frozenset(range(min(counts), max(counts) + 1)) if counts else frozenset()
    disturbed = Disturbed(
        Windows([*result.windows, *(_window_of(ended) for ended in rig.unplanned)]),
        clocks=result.clocks,
        refusals=result.refusals,
        outages=result.outages,
    )
    result.violations = check(
        history,
        found,
        recovery=result.recovery,
        rates=watcher.all_rates(),
        rules=_rules(rig),
        seen=watcher.seen,
        disturbed=disturbed,
    )
    result.violations += result.complaints
    result.violations += watcher.failures
    slow = [one for one in result.done if one.note.startswith("not well after")]
    result.violations += [f"after {one.planned.name}: {one.note}" for one in slow]
    result.unplanned = [str(ended) for ended in rig.unplanned]
    result.lost_acked = lost_by_the_machine(history, found)
    outcomes = dict.fromkeys(Outcome, 0)
    for sent in history.events.values():
        outcomes[sent.outcome] += 1
    result.outcomes = {outcome.value: count for outcome, count in outcomes.items()}
    for request in history.requests:
        result.statuses[request.status] = result.statuses.get(request.status, 0) + 1
    result.found = {
        "events sent": len(history.events),
        "rows": len(found.rows),
        "dead letters": len(found.letters),
        "records in the log": len(found.log),
        "records lost with a log's tail": len(found.lost),
        "offset samples that moved": len(found.offset_samples),
        "rate samples": len(watcher.rates),
        "lag samples": len(watcher.seen.lags),
        "health samples": len(watcher.seen.health),
    }


def _seconds_of_a_debt(settings: Settings) -> int:
    """The longest Retry-After of a bucket that owes a body, for a process that has not yet reached the bucket."""
    debt_seconds = max(SIZES) * settings.ingest_processes_max / settings.rate_min
    return math.ceil(debt_seconds + max(1.0, debt_seconds))


def _rules(rig: Rig) -> Rules:
    """The limits of the run."""
    settings, options = rig.settings, rig.options
    return Rules(
        AdmissionRules(
            burst_seconds=settings.burst_seconds,
            lease_events=2 * settings.rate_max * settings.lease_seconds * options.ingests,
            body_events=max(SIZES),
            ingests=options.ingests,
            rate_min=settings.rate_min,
            late_seconds=LATE_SECONDS,
        ),
        AnswerRules(
            append_seconds_max=settings.append_seconds_max,
            retry_seconds_max=max(RETRY_SECONDS_MAX, _seconds_of_a_debt(settings)),
            log_after_seconds=LOG_AFTER_SECONDS[options.log],
            dead_log_takes_nothing=options.log == "redis",
        ),
        PolicyRules(
            rate_max=settings.rate_max,
            rate_min=settings.rate_min,
            lag_degraded=settings.lag_degraded,
            lag_critical=settings.lag_critical,
            lag_tolerance=settings.drain_batch_records_max * settings.log_partitions // 2,
        ),
    )


_PARTS_OF_PROGRAMS = {"batches": Part.WORKERS, "control": Part.LOOP, "beat": Part.LOOP}


def _window_of(ended: Ended) -> Window:
    """The window that a program's unplanned end disturbed. The report lists the end itself."""
    part = _PARTS_OF_PROGRAMS.get(ended.name, Part.INGEST)
    return Window(f"{ended.name} ended", ended.at - 1.0, ended.at + UNPLANNED_SECONDS, frozenset({part}))
