"""M5, M6, M9, M10: overload on the real system with all its processes, for each way to limit the rate.

- M5: goodput at 2, 5 and 10 times the rate that PostgreSQL stores. Goodput is the rate of events stored within 10 s of
  their receipt, divided by the sink's maximum. The maximum is measured in the same run without a rate limit.
- M6: a step from half of that to twice that.
- M9: PostgreSQL stores 1,500, then 600, then 3,000 events/s.
- M10: PostgreSQL is frozen (SIGSTOP) under load, and continues.

Arrivals are open-loop, in bodies of 20. Each arm has a system with its policy: no limit; a static limit at the sink's
nominal rate, which is unknown in practice; the default bands; `drain_time`, which starts each run as on a new system;
and, only on request, bands with a maximum of four times the sink's rate. There the bands alone must find the rate.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

from checks.bench.held import SINK_RATE, Change, Held, Run, held_system
from checks.bench.machine import Options
from checks.bench.step import between, could_of, quantile, step_of
from checks.bench.table import Goal, Line, at_least, at_most, joined
from checks.bench.table import number as digits
from pipeline.policies import bands, drain_time

OFF_RATE: Final = 1_000_000.0
FACTORS: Final = (2, 5, 10)
GOALS: Final = {2: at_least(0.97), 5: at_least(0.95), 10: at_least(0.90)}  # of the default settings
SETTLED_GOAL: Final = at_least(0.97)  # of drain_time
COLD_GOAL: Final = at_least(0.95)
SETTLE_SECONDS_MAX: Final = 10.0
SETTLE_SHARE_MIN: Final = 0.9  # of the runs

CHANGED_RATES: Final = (float(SINK_RATE), 600.0, 3000.0)  # events/s that PostgreSQL stores, one after the other
CHANGED_OFFERED: Final = 5000.0
CHANGED_GOAL: Final = at_least(0.95)
CHANGED_AGE_SECONDS_MAX: Final = 12.0
REPAIRED_GOAL: Final = at_least(0.9)
REPAIRED_SECONDS_MAX: Final = 10.0


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to limit the rate, and how long it takes until its state is stable."""

    word: str  # on the command line
    name: str
    policy: str
    limit: float | None = None  # events/s; a constant rate instead of the policy's
    rate_max: float | None = None  # events/s, of the bands
    warm_seconds: float = 10
    step_seconds: float = 30
    factors: tuple[int, ...] = FACTORS
    is_default: bool = True

    def warm_for(self, factor: int) -> float:
        """Seconds of load before a measurement. Without a limit: until stored events are older than 10 s."""
        return 10 * factor / (factor - 1) + 2 if self.limit == OFF_RATE else self.warm_seconds

    @property
    def follows(self) -> bool:
        """Whether the rate can follow a changing sink."""
        return self.limit is None


# No limit comes first: its stored rate is the maximum with which the others are compared.
ARMS: Final = (
    Arm("off", "limiter off", bands.NAME, limit=OFF_RATE),
    Arm("static", "static limit at the sink's rate", bands.NAME, limit=float(SINK_RATE)),
    Arm("bands", "default bands", bands.NAME),
    Arm("bands-high", "default bands, RATE_MAX four times the sink", bands.NAME, rate_max=4.0 * SINK_RATE,
        warm_seconds=45, step_seconds=60, factors=(5,), is_default=False),
    Arm("drain-time", "drain_time", drain_time.NAME, step_seconds=20),
)  # fmt: skip
DEFAULT_ARMS: Final = tuple(arm.word for arm in ARMS if arm.is_default)
_QUICK_ARMS: Final = ("off", "bands", "drain-time")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Seconds of each part of a run, and how many runs there are."""

    capacity: float = 12
    warm_up: float = 2  # of a capacity run: not counted
    measured: float = 10
    settled_after: float = 20  # of drain_time: between the end of the first measurement and the start of the second
    before_step: float = 6
    changes: tuple[float, float, float] = (25, 35, 40)  # at each of CHANGED_RATES
    changes_skipped: float = 10  # cold
    before_freeze: float = 15
    frozen: float = 30
    after_freeze: float = 30
    warm_max: float = inf
    step_max: float = inf
    factors_max: int = len(FACTORS)
    step_runs_max: int = 100


QUICK: Final = Lengths(
    capacity=3, warm_up=1, measured=3, settled_after=1, before_step=3, changes=(4, 4, 4), changes_skipped=2,
    before_freeze=3, frozen=4, after_freeze=14, warm_max=2, step_max=6, factors_max=1, step_runs_max=1,
)  # fmt: skip


def run(options: Options, marks: set[str]) -> list[Line]:
    """Measure each arm in turn, in `overload_rounds` rounds. Each round starts new systems."""
    words = options.arms or (_QUICK_ARMS if options.quick else DEFAULT_ARMS)
    arms = [arm for arm in ARMS if arm.word in words]
    lines: list[Line] = []
    for number in range(options.overload_rounds):
        for policy in dict.fromkeys(arm.policy for arm in arms):
            try:
                with held_system(options.log, policy) as held:
                    for line in SystemMeasurements(held, options, number).measure(
                        [arm for arm in arms if arm.policy == policy], marks
                    ):
                        lines.append(line)  # one by one: lines before an error are useful
                        print(f"{line.mark} {line.what}: {', '.join(map(digits, line.values))}", file=sys.stderr)
            except Exception as error:
                what = f"a system with the rate policy {policy}, round {number + 1}: it could not be measured further"
                lines += [Line(mark, what, problem=repr(error)) for mark in sorted(marks)]
    return sorted(joined(lines), key=lambda line: line.goal is None)


class SystemMeasurements:
    """The measurements of one round on one system."""

    def __init__(self, held: Held, options: Options, number: int) -> None:
        self._held = held
        self._lengths = QUICK if options.quick else Lengths()
        total = min(options.step_runs, self._lengths.step_runs_max)
        # `step_runs` is the number of runs in all rounds together.
        self._step_runs = total // options.overload_rounds + (number < total % options.overload_rounds)
        self._sinks: dict[float, float] = {}  # events/s: nominal, measured

    def measure(self, arms: Sequence[Arm], marks: set[str]) -> Iterator[Line]:
        """All lines of these arms, each as soon as it is known."""
        rates = {float(SINK_RATE)} | (
            set(CHANGED_RATES) if "M9" in marks and any(arm.follows for arm in arms) else set()
        )
        self._held.limit(OFF_RATE)
        self._sinks = {rate: self._maximum(rate) for rate in sorted(rates)}
        self._held.limit(None)
        for arm in arms:
            self._held.limit(arm.limit)
            self._held.raise_maximum(arm.rate_max)
            if "M5" in marks:
                for factor in arm.factors[: self._lengths.factors_max]:
                    yield from _tried("M5", arm, partial(self._goodput, arm, factor))
            if "M6" in marks and arm.limit != OFF_RATE:
                for _ in range(self._step_runs if arm.policy == drain_time.NAME else 1):
                    yield from _tried("M6", arm, partial(self._step, arm))
            if "M9" in marks and arm.follows:
                yield from _tried("M9", arm, partial(self._changing, arm))
            if "M10" in marks and arm.follows:
                yield from _tried("M10", arm, partial(self._frozen, arm))
            self._held.raise_maximum(None)
            self._held.limit(None)

    @property
    def _sink(self) -> float:
        return self._sinks[float(SINK_RATE)]

    def _maximum(self, rate: float) -> float:
        """The most events/s that the sink stores, measured while more events wait than it can store."""
        lengths = self._lengths
        run = self._held.run([(lengths.capacity, 2 * rate)], sink=rate)
        rates = run.stored_rates(run.end - lengths.capacity + lengths.warm_up, run.end)
        return sum(rates) / len(rates)

    def _run(self, arm: Arm, phases: Sequence[tuple[float, float]], changes: Sequence[Change] = ()) -> Run:
        if arm.policy == drain_time.NAME:
            self._held.forget()
        return self._held.run(phases, changes)

    def _goodput(self, arm: Arm, factor: int) -> list[Line]:
        """One run. `drain_time` is measured twice in it, since it starts as on a new system."""
        measured = self._lengths.measured
        warm = min(arm.warm_for(factor), self._lengths.warm_max)
        is_ours = arm.policy == drain_time.NAME
        later = measured + self._lengths.settled_after if is_ours else 0.0
        run = self._run(arm, [(warm + measured + later, factor * SINK_RATE)])
        what = f"goodput at {factor} x what the sink takes"
        if not is_ours:
            goal = GOALS[factor] if arm.word == "bands" else None
            return [self._goodput_line(run, f"{what}: {arm.name}", run.end - measured, goal)]
        return [
            self._goodput_line(run, f"{what}: {arm.name}, settled", run.end - measured, SETTLED_GOAL),
            self._goodput_line(run, f"{what}: {arm.name}, cold", run.begin + warm, COLD_GOAL),
        ]

    def _goodput_line(self, run: Run, what: str, begin: float, goal: Goal | None) -> Line:
        end = begin + self._lengths.measured
        figures = {
            "sink_events_per_second": self._sink,
            "stored_events_per_second": _mean(run.stored_rates(begin, end)),
            "admitted_events_per_second": _mean(run.admitted(begin, end)),
            "oldest_seconds": run.oldest_seconds(begin, end),
        }
        good = _mean(run.stored_rates(begin, end, in_time=True))
        return Line("M5", what, [good / self._sink], goal, figures=figures)

    def _step(self, arm: Arm) -> list[Line]:
        before = self._lengths.before_step
        after = min(arm.step_seconds, self._lengths.step_max)
        run = self._run(arm, [(before, SINK_RATE / 2), (after, 2 * SINK_RATE)])
        first, begin = run.begin, run.begin + before
        end = begin + after
        admitted, stored = run.admitted(begin, end), run.stored_rates(begin, end)
        lag_before = sum(run.admitted(first, begin)) - sum(run.stored_rates(first, begin))
        step = step_of(admitted, stored, capacity=self._sink, lag_before=max(0.0, lag_before))
        slow = [
            seconds
            for due, seconds, status in zip(run.responses.due, run.responses.seconds, run.responses.status, strict=True)
            if status == 202 and due >= begin
        ]
        figures = {"sink_events_per_second": self._sink, "admitted": admitted, "stored": stored}
        is_judged = arm.word in ("bands", "drain-time")
        settled = at_most(SETTLE_SECONDS_MAX, share=SETTLE_SHARE_MIN if arm.policy == drain_time.NAME else None)

        def line(what: str, value: float, goal: Goal, unit: str = "") -> Line:
            return Line("M6", f"{what}: {arm.name}", [value], goal if is_judged else None, unit=unit, figures=figures)

        return [
            line("step to 2 x: until admitted stays within 10 % of the sink", step.settle_seconds, settled, "s"),
            line("… highest lag / the lag that it came to", step.overshoot, at_most(1.25)),
            line("… times that it left those 10 % again", step.swings, at_most(0)),
            Line("M6", f"… p99 of admitted: {arm.name}", [quantile(slow, 0.99) * 1000], unit="ms")
            if slow
            else Line("M6", f"… p99 of admitted: {arm.name}", problem="nothing was admitted"),
        ]

    def _changing(self, arm: Arm) -> list[Line]:
        """A sink that becomes slower, and then faster than at first."""
        lengths, (_, second, third) = self._lengths, CHANGED_RATES
        seconds = lengths.changes
        changes: list[Change] = [
            (seconds[0], lambda: self._held.hold(second)),
            (seconds[0] + seconds[1], lambda: self._held.hold(third)),
        ]
        run = self._run(arm, [(sum(seconds), CHANGED_OFFERED)], changes)
        begin, end = run.begin + lengths.changes_skipped, run.end
        since = [run.begin, *run.changes]
        sinks = [self._sinks[rate] for rate in CHANGED_RATES]
        could = could_of(list(zip(since, sinks, strict=True)), begin=begin, end=end)
        at, good = [batch.at for batch in run.stored], [batch.in_time for batch in run.stored]
        figures: dict[str, object] = {
            "could_store_events": could,
            "stored_events": between(at, [batch.events for batch in run.stored], begin=begin, end=end),
            **{f"sink_of_{rate:.0f}_stores_events_per_second": self._sinks[rate] for rate in CHANGED_RATES},
            "admitted": run.admitted(run.begin, end),
            "stored": run.stored_rates(run.begin, end),
        }
        for rate, one, until in zip(CHANGED_RATES[1:], since[1:], [*since[2:], end], strict=True):
            step = step_of(
                run.admitted(one, until), run.stored_rates(one, until), capacity=self._sinks[rate], lag_before=0
            )
            figures[f"settled_after_{rate:.0f}_seconds"] = step.settle_seconds
        rates = ", ".join(f"{rate:,.0f}" for rate in CHANGED_RATES)
        oldest = run.oldest_seconds(run.begin, end)
        return [
            Line("M9", f"a sink of {rates} events/s in turn: goodput / what it could have stored: {arm.name}",
                 [between(at, good, begin=begin, end=end) / could], CHANGED_GOAL, figures=figures),
            Line("M9", f"… age of the oldest event when it was stored: {arm.name}", [oldest],
                 at_most(CHANGED_AGE_SECONDS_MAX), unit="s"),
        ]  # fmt: skip

    def _frozen(self, arm: Arm) -> list[Line]:
        """PostgreSQL does not answer for a time, and then continues."""
        lengths = self._lengths
        seconds = lengths.before_freeze, lengths.frozen, lengths.after_freeze
        changes: list[Change] = [(seconds[0], self._held.freeze), (seconds[0] + seconds[1], self._held.thaw)]
        run = self._run(arm, [(sum(seconds), 2 * SINK_RATE)], changes)
        repaired, end = run.changes[1], run.end
        admitted, stored = run.admitted(repaired, end), run.stored_rates(repaired, end)
        settled = step_of(admitted, stored, capacity=self._sink, lag_before=0).settle_seconds
        recovered = _mean(stored[int(REPAIRED_SECONDS_MAX) :])
        figures = {"sink_events_per_second": self._sink, "admitted": admitted, "stored": stored}
        figures["oldest_seconds"] = run.oldest_seconds(run.begin, end)
        frozen = f"PostgreSQL frozen for {lengths.frozen:g} s"
        return [
            Line("M10", f"{frozen}: from the repair until admitted stays within 10 % of the sink: {arm.name}",
                 [settled], at_most(REPAIRED_SECONDS_MAX), unit="s", figures=figures),
            Line("M10", f"… stored / the sink's maximum, from {REPAIRED_SECONDS_MAX:g} s after the repair: {arm.name}",
                 [recovered / self._sink], REPAIRED_GOAL),
        ]  # fmt: skip


def _tried(mark: str, arm: Arm, measure: Callable[[], list[Line]]) -> list[Line]:
    """The lines of a run. If it fails, one line gives the reason, so the other runs still count."""
    try:
        return measure()
    except Exception as error:
        return [Line(mark, f"a run could not be measured: {arm.name}", problem=repr(error))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
