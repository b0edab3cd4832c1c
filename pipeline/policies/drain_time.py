"""The policy `drain_time`: the sink is fully used, and what waits for it is stored within a target time.

It measures the sink's capacity, and keeps the time that the worst partition needs to be stored near the target:

    rate = capacity * (1 + error),   error = (target - drain) / max(period, target)

While nothing waits and clients want more, the capacity is unknown, and the rate is a probe.

docs/adr/rate-policy.md has the reasons for each rule, and what simulations of it showed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import Any, Final

from pipeline.event_text import rate_text
from pipeline.names import Mode, SinkName
from pipeline.ports.control import Bands
from pipeline.ports.rate import (
    Explanation,
    Figure,
    PolicyState,
    RateDecision,
    RateSample,
    Threshold,
)
from pipeline.settings import Settings

NAME: Final = "drain_time"

HEADROOM: Final = 0.05  # share of the capacity by which the rate may differ from it, to fill or empty the log
LOW: Final = 0.15  # share of the target: with less waiting, a partition proves nothing about the sink
PROBED: Final = 1.5  # of the capacity; only a probe gives a higher rate
NEXT_PROBE: Final = 1.5  # of the error: a probe that every partition has kept up with is followed by a larger one
GENTLE: Final = 1.5  # targets: up to it the rate stays within HEADROOM of the capacity
MEMORY_SECONDS: Final = 1.5  # worth of events over which the capacity is averaged
SHARE_SECONDS: Final = 30.0  # over which the partitions' shares of the appended events are averaged
SHARE_MIN: Final = 0.02  # of an equal share: a partition that gets almost nothing must not divide by zero
START_RATE: Final = 1000.0  # events/s; the first guess of the capacity of a new system
EVENT_RATIO: Final = 0.1  # the rate moves a little at each tick; only larger changes are control events

# Seconds to drain: beyond the first value the mode is entered, below the second one it is left. A target above
# MODES_TARGET_SECONDS raises them in proportion: to be at the target is normal.
MODES_TARGET_SECONDS: Final = 2.0
DEGRADED_SECONDS: Final = (4.0, 3.0)
CRITICAL_SECONDS: Final = (10.0, 6.0)

DRAIN: Final = "drain_seconds"  # the figure that the thresholds are about
CAPACITY: Final = "capacity_events_per_second"


@dataclass(frozen=True, slots=True)
class _Base:
    """The batch from which the next measurement of a partition counts."""

    offset: int
    at: float
    is_full: bool  # enough events waited at every sample since then


@dataclass(frozen=True, slots=True)
class _State:
    """What the policy knows after a sample; `load` and `dump` are its JSON."""

    capacity: float  # events/s of the whole load that the slowest part of the sink stores
    appended: Mapping[int, int]  # offsets at the last sample; empty: there was none
    stored: Mapping[int, int]
    inflow: Mapping[int, float]  # events/s appended, averaged
    base: Mapping[int, _Base]
    mode: Mode = Mode.NORMAL
    log_id: str = ""  # of the log whose offsets these are

    @classmethod
    def load(cls, state: PolicyState) -> "_State":
        partitions = {int(number): row for number, row in state["partitions"].items()}
        return cls(
            capacity=state["capacity"],
            appended={p: row[0] for p, row in partitions.items()},
            stored={p: row[1] for p, row in partitions.items()},
            inflow={p: row[2] for p, row in partitions.items() if row[2] is not None},
            base={p: _Base(*row[3]) for p, row in partitions.items() if row[3] is not None},
            mode=Mode(state["mode"]),
            log_id=state["log_id"],
        )

    def of(self, log_id: str) -> "_State":
        """What is known of this log: of another one, only the capacity, which is the sink's, and the mode."""
        return self if self.log_id == log_id else _State(self.capacity, {}, {}, {}, {}, self.mode, log_id)

    def dump(self) -> dict[str, Any]:
        rows = {
            str(p): [self.appended[p], self.stored[p], self.inflow.get(p), _row(self.base.get(p))]
            for p in self.appended
        }
        return {"capacity": self.capacity, "mode": self.mode.value, "log_id": self.log_id, "partitions": rows}


def _loaded(state: PolicyState | None) -> _State | None:
    """The state; None if there is none, or if another version wrote it in a format that this one can't read."""
    try:
        return _State.load(state) if state else None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def _row(base: _Base | None) -> list[Any] | None:
    return None if base is None else [base.offset, base.at, base.is_full]


@dataclass(frozen=True, slots=True)
class DrainTimePolicy:
    """The rate at which the sink is fully used and the worst partition is stored within the target."""

    rate_max: float  # events/s; a ceiling of safety
    rate_min: float  # events/s, > 0
    target_seconds: float
    period_seconds: float  # of the control loop
    sink: SinkName = SinkName.POSTGRESQL  # for the explanation

    @classmethod
    def make(cls, settings: Settings, bands: Bands | None = None) -> "DrainTimePolicy":
        """The policy of the settings. Bands that an operator set do not apply to it."""
        return cls(
            settings.rate_max,
            settings.rate_min,
            settings.drain_target_seconds,
            settings.regulate_seconds,
            settings.sink_name,
        )

    @property
    def floor_rate(self) -> float:
        """The lowest rate that `decide` gives, events/s."""
        return self.rate_min

    def describe(self) -> Explanation:
        """The target and the thresholds."""
        sentence = f"the rate follows what {self.sink} stores, so that an event is stored within about {self._target()}"
        return self._explained(sentence, "", "", ())

    def decide(self, sample: RateSample, state: PolicyState | None) -> RateDecision:
        """The rate for a sample; see the formula above."""
        last = _loaded(state)
        seconds = sample.seconds if last is not None and sample.seconds is not None and sample.seconds > 0 else None
        first_rate = START_RATE if sample.last_rate is None else sample.last_rate
        known = (last or _State(self._clamped(first_rate), {}, {}, {}, {})).of(sample.log_id)
        shares, inflow = _shares(sample, known, seconds)
        capacity, base = self._measured(sample, known, seconds, shares)
        kept_up = self._kept_up(sample, known, seconds, shares)
        has_kept_up = kept_up > capacity
        capacity = self._clamped(max(capacity, kept_up))
        drains = _drains(sample, shares, capacity)
        drain = max(drains.values(), default=0.0)
        rate = self._clamped(capacity * (1 + self._error(sample, drain, has_kept_up=has_kept_up)))
        mode = _mode(drain / self._modes_scale, known.mode)
        after = _State(
            capacity,
            {p: one.appended for p, one in sample.partitions.items()},
            {p: one.stored for p, one in sample.partitions.items()},
            inflow,
            base,
            mode,
            sample.log_id,
        )
        return RateDecision(rate, mode, self._explanation(sample, capacity, drains, mode), after.dump())

    def _measured(
        self, sample: RateSample, known: _State, seconds: float | None, shares: Mapping[int, float]
    ) -> tuple[float, dict[int, _Base]]:
        """The capacity after a sample, and the base of the next measurement of each partition.

        It is measured from batch to batch, by partitions that had enough to store all the time. An idle sink proves
        nothing: then the capacity may only rise, to what was appended and stored.
        """
        capacity = known.capacity
        speed = events = measured_share = 0.0
        bases = {}
        for p, one in sample.partitions.items():
            is_full = not (sample.was_paused or one.is_paused)
            is_full = is_full and one.lag >= LOW * self.target_seconds * shares[p] * capacity
            base = known.base.get(p)
            began = one.batch
            if began is None:
                continue
            if base is None or began.offset < base.offset or began.at < base.at:  # new, or another log or clock
                bases[p] = _Base(began.offset, began.at, is_full)
                continue
            bases[p] = _Base(base.offset, base.at, base.is_full and is_full)
            if began.at > base.at:
                if bases[p].is_full:
                    speed += (began.offset - base.offset) / (began.at - base.at)
                    events += began.offset - base.offset
                    measured_share += shares[p]
                bases[p] = _Base(began.offset, began.at, is_full)
        if seconds is None or sample.was_paused:
            return capacity, bases
        both = _passed(sample, known).values()
        passed = min(sum(stored for stored, _ in both), sum(appended for _, appended in both)) / seconds
        if measured_share > 0:
            found = max(speed / measured_share, capacity / 2)  # one odd batch must not take more than half
            capacity += (1 - exp(-events / capacity / MEMORY_SECONDS)) * (found - capacity)
        elif passed > capacity:
            capacity += (1 - exp(-seconds / MEMORY_SECONDS)) * (passed - capacity)
        return self._clamped(capacity), bases

    def _kept_up(self, sample: RateSample, known: _State, seconds: float | None, shares: Mapping[int, float]) -> float:
        """The load (events/s) that every partition has kept up with since a probe; 0 if there was none.

        It is less than what the sink stores, at once and not averaged: nearly nothing waits. The total would not do. A
        slow partition that got few events by chance has proved nothing.
        """
        was_probe = sample.last_rate is not None and sample.last_rate > PROBED * known.capacity
        if seconds is None or sample.was_paused or not was_probe:
            return 0.0
        by_partition = (min(stored, appended) / shares[p] for p, (stored, appended) in _passed(sample, known).items())
        load = min(by_partition, default=0.0) / seconds
        if load <= 0:
            return 0.0
        return load if self._is_nearly_idle(max(_drains(sample, shares, load).values())) else 0.0

    def _is_nearly_idle(self, drain: float) -> bool:
        return drain < LOW * self.target_seconds

    def _error(self, sample: RateSample, drain: float, *, has_kept_up: bool = False) -> float:
        """By which share the rate differs from the capacity, to bring the drain time to the target."""
        missing = self.target_seconds - drain
        error = missing / max(self.period_seconds, self.target_seconds)
        is_probe = sample.ran_dry and not sample.was_paused and self._is_nearly_idle(drain)
        if is_probe:  # clients want more, and the sink is nearly idle: its capacity is unknown
            # Within one period, no probe lets more wait than the target, even if the capacity is just what it was.
            return min(NEXT_PROBE * error, missing / self.period_seconds) if has_kept_up else error
        return max(-HEADROOM if drain < GENTLE * self.target_seconds else -1.0, min(HEADROOM, error))

    def _clamped(self, rate: float) -> float:
        return min(self.rate_max, max(self.rate_min, rate))

    def _explanation(self, sample: RateSample, capacity: float, drains: Mapping[int, float], mode: Mode) -> Explanation:
        drain = max(drains.values(), default=0.0)
        worst = max(drains, key=lambda p: drains[p], default=0)
        stores = f"{self.sink} stores {rate_text(capacity)}"
        if mode is not Mode.NORMAL:
            reason = f"the backlog takes {drain:.1f} s"
        elif sample.ran_dry and not self._is_nearly_idle(drain):
            reason = f"at the limit, which is normal: {stores}"
        elif sample.ran_dry:
            reason = f"the limit is looked for: {self.sink} stores at least {rate_text(capacity)}"
        else:
            reason = "the limit is not reached"
        sentence = (
            f"{stores if drain > 0 else f'{self.sink} stores at least {rate_text(capacity)}'}; what waits in partition "
            f"{worst} is stored in {drain:.1f} s, the target is {self._target()}"
        )
        figures = (
            Figure(CAPACITY, "capacity", capacity, "events/s"),
            Figure(DRAIN, "drain time", drain, "s"),
            *(Figure(DRAIN, "drain time", seconds, "s", p) for p, seconds in sorted(drains.items())),
        )
        return self._explained(sentence, reason, f"drain {drain:.1f} s, capacity {rate_text(capacity)}", figures)

    def _explained(self, sentence: str, reason: str, because: str, figures: tuple[Figure, ...]) -> Explanation:
        return Explanation(
            policy=NAME,
            sentence=sentence,
            reason=reason,
            because=because,
            rate_max=self.rate_max,
            look_at=f"nothing, if {self.sink} is meant to be fully used; else why it is slow, or which client sends "
            "more",
            thresholds=(
                Threshold("degraded above", DEGRADED_SECONDS[0] * self._modes_scale, "s", Mode.DEGRADED, measure=DRAIN),
                Threshold("critical above", CRITICAL_SECONDS[0] * self._modes_scale, "s", Mode.CRITICAL, measure=DRAIN),
            ),
            figures=(Figure("drain_target_seconds", "target", self.target_seconds, "s"), *figures),
            parameters={
                "rateMax": self.rate_max, "rateMin": self.rate_min, "drainTargetSeconds": self.target_seconds,
            },
            event_ratio=EVENT_RATIO,
        )  # fmt: skip

    @property
    def _modes_scale(self) -> float:
        return max(1.0, self.target_seconds / MODES_TARGET_SECONDS)

    def _target(self) -> str:
        return f"{self.target_seconds:g} s"


def _shares(sample: RateSample, known: _State, seconds: float | None) -> tuple[dict[int, float], dict[int, float]]:
    """Each partition's share of what is appended, and the averaged inflow (events/s) from which it comes."""
    partitions = sample.partitions
    inflow = {p: known.inflow[p] for p in partitions if p in known.inflow}
    if seconds is not None:
        for p, one in partitions.items():
            if p not in known.appended:
                continue
            now = (one.appended - known.appended[p]) / seconds
            before = inflow.get(p, 0.0)
            weight = 1 - exp(-seconds / SHARE_SECONDS)
            inflow[p] = max(0.0, before + weight * (now - before) if before > 0 else now)
    total = sum(inflow.values())
    count = len(partitions)
    if total <= 0:
        return dict.fromkeys(partitions, 1 / count), inflow
    # A partition without a measured inflow was added, or did not answer the last time: an equal share is assumed.
    return {p: max(inflow[p] / total, SHARE_MIN / count) if p in inflow else 1 / count for p in partitions}, inflow


def _drains(sample: RateSample, shares: Mapping[int, float], capacity: float) -> dict[int, float]:
    """Seconds that each partition needs to be stored."""
    return {p: one.lag / (shares[p] * capacity) for p, one in sample.partitions.items()}


def _passed(sample: RateSample, known: _State) -> dict[int, tuple[int, int]]:
    """The events of each partition that were stored, and that were appended, since the last sample."""
    return {
        p: (one.stored - known.stored[p], one.appended - known.appended[p])
        for p, one in sample.partitions.items()
        if p in known.appended
    }


def _mode(drain: float, last: Mode) -> Mode:
    """The mode for a drain time in seconds, at a target of MODES_TARGET_SECONDS.

    It is left later than it is entered, so that it does not flicker.
    """
    if drain > CRITICAL_SECONDS[0] or (last is Mode.CRITICAL and drain >= CRITICAL_SECONDS[1]):
        return Mode.CRITICAL
    if drain > DEGRADED_SECONDS[0] or (last is not Mode.NORMAL and drain >= DEGRADED_SECONDS[1]):
        return Mode.DEGRADED
    return Mode.NORMAL
