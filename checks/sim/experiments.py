"""Control laws that were tried and are not shipped: their additions to the shipped policy, bucket and admission.

Their figures are in docs/adr/simulator.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Final

from pipeline.names import LEVEL_HIGHEST, Level
from pipeline.policies import drain_time
from pipeline.ports.bucket import Bucket, Grant
from pipeline.ports.rate import Explanation, PartitionSample, PolicyState, RateDecision, RatePolicy, RateSample

_TARGET_SECONDS: Final = 2.0
SPREAD: Final = -1  # instead of a partition: the events of a body have many keys
_SHARE_SECONDS: Final = 30.0  # over which the partitions' shares of the load are averaged
_SHARE_LEAST: Final = 0.02  # of an equal share
_UNPACED: Final = 4.0  # times the capacity: the bucket's rate if credits are the limit
_CAP_BEGINS: Final = 1.5  # targets
_CAP_ENDS: Final = 0.5
_IDLE: Final = 0.5
_LOW: Final = 0.15  # a shorter lag shows nothing about a partition
_CAP_BURST_SECONDS: Final = 0.5
_CAP_SECONDS: Final = 3.0  # over which a partition's drain rate is averaged


@dataclass
class Surroundings:
    """What an experiment may read of the simulated system."""

    partitions: int
    lags: Callable[[], Sequence[int]]  # events that are not stored, by partition
    shares: Callable[[], Sequence[float]]  # of the partitions in the offered load
    not_appended: Callable[[], float]  # tokens that processes hold
    now: Callable[[], float]


class Experiment:
    """The additions of a control law. This one adds nothing."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around

    def policy(self, shipped: RatePolicy) -> RatePolicy:
        """The policy of the controller."""
        return shipped

    def bucket(self, shipped: Bucket) -> Bucket:
        """The bucket as one process sees it."""
        return shipped

    def wait_seconds(self, partition: int, count: int) -> float:
        """Take `count` tokens of a partition's own limit: 0, or how long to wait. SPREAD: a body for all partitions."""
        return 0.0

    def give_back(self, partition: int, count: int) -> None:
        """The body was refused for another reason."""


@dataclass
class _Wrapped:
    """A policy that changes the shipped policy's input or decision."""

    shipped: RatePolicy
    change: Callable[[RatePolicy, RateSample, PolicyState | None], RateDecision]

    @property
    def floor_rate(self) -> float:
        return self.shipped.floor_rate

    def describe(self) -> Explanation:
        return self.shipped.describe()

    def decide(self, sample: RateSample, state: PolicyState | None) -> RateDecision:
        return self.change(self.shipped, sample, state)


# --- The total lag ----------------------------------------------------------------------------------------------------


class TotalLag(Experiment):
    """The shipped policy sees the total lag only, as if it were spread evenly: a slow partition is hidden."""

    def policy(self, shipped: RatePolicy) -> RatePolicy:
        return _Wrapped(shipped, self._decide)

    def _decide(self, shipped: RatePolicy, sample: RateSample, state: PolicyState | None) -> RateDecision:
        even = sum(one.lag for one in sample.partitions.values()) // max(1, len(sample.partitions))
        partitions = {
            number: replace(one, appended=one.appended + even - one.lag, lag=even)
            for number, one in sample.partitions.items()
        }
        return shipped.decide(replace(sample, partitions=partitions), state)


# --- Credits ----------------------------------------------------------------------------------------------------------


class Credits(Experiment):
    """Commits, not time, refill the tokens: the events that are admitted and not stored stay within a window.

        credit = capacity * (TARGET - drain) - held,   drain = max over p of lag[p] / (share[p] * capacity)

    The capacity and the skew are the shipped policy's: the worst partition counts. The rate paces nothing.
    """

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self.capacity = 0.0
        self.shares = _Shares()

    def policy(self, shipped: RatePolicy) -> RatePolicy:
        return _Wrapped(shipped, self._decide)

    def _decide(self, shipped: RatePolicy, sample: RateSample, state: PolicyState | None) -> RateDecision:
        decision = shipped.decide(sample, state)
        self.capacity = decision.explanation.figure(drain_time.CAPACITY) or decision.rate
        self.shares.note(sample)
        rate = min(decision.explanation.rate_max, _UNPACED * self.capacity)
        return replace(decision, rate=max(shipped.floor_rate, rate))

    def bucket(self, shipped: Bucket) -> Bucket:
        return _CreditBucket(shipped, self)

    def credit(self) -> float:
        """Events that may be admitted now."""
        if not self.capacity:
            return 0.0
        lags = self.around.lags()
        drain = max(lag / (self.shares.of(number, len(lags)) * self.capacity) for number, lag in enumerate(lags))
        return self.capacity * (_TARGET_SECONDS - drain) - self.around.not_appended()


@dataclass
class _CreditBucket:
    shipped: Bucket
    credits: Credits

    def take(self, *, needed: int, wanted: int, process: str, returned: int = 0, level: Level = LEVEL_HIGHEST) -> Grant:
        credit = int(self.credits.credit())
        if wanted == 0 or credit >= min(1, needed):
            most = min(wanted, max(needed, credit))
            return self.shipped.take(needed=needed, wanted=most, process=process, returned=returned, level=level)
        grant = self.shipped.take(needed=0, wanted=0, process=process, returned=returned)
        wait_seconds = (1 - credit) / max(1.0, self.credits.capacity)
        # From this level, the process predicts this wait.
        return replace(grant, wait_seconds=wait_seconds, tokens=1 - wait_seconds * grant.rate)


class _Shares:
    """Each partition's averaged share of the appended events."""

    def __init__(self) -> None:
        self._inflow: dict[int, float] = {}
        self._appended: dict[int, int] = {}

    def note(self, sample: RateSample) -> None:
        """A tick has taken a sample."""
        for number, one in sample.partitions.items():
            if number in self._appended and sample.seconds:
                new = (one.appended - self._appended[number]) / sample.seconds
                old = self._inflow.get(number, 0.0)
                weight = 1 - exp(-sample.seconds / _SHARE_SECONDS) if old > 0 else 1.0
                self._inflow[number] = old + weight * (new - old)
            self._appended[number] = one.appended

    def of(self, number: int, count: int) -> float:
        """The share of one of `count` partitions."""
        total = sum(self._inflow.values())
        return max(self._inflow.get(number, 0.0) / total, _SHARE_LEAST / count) if total > 0 else 1 / count


# --- Admission by partition -------------------------------------------------------------------------------------------


@dataclass
class _Cap:
    """A partition's own limit, and the bucket that enforces it."""

    rate: float
    tokens: float
    at: float


@dataclass
class _Drained:
    """The events that a partition stores between ticks while it has a lag."""

    stored: int = 0
    rate: float = 0.0  # events/s, averaged
    was_full: bool = False


class CapByPartition(Experiment):
    """A partition that drains too slowly, while the others are idle, gets a limit of its own.

    The shipped policy sees the other partitions only. A body whose events are spread needs tokens of every limit. So no
    limit is below the partition's part of RATE_MIN: otherwise a partition that stores nothing would stop such bodies.
    """

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self.caps: dict[int, _Cap] = {}
        self._drained = {number: _Drained() for number in range(around.partitions)}

    def policy(self, shipped: RatePolicy) -> RatePolicy:
        return _Wrapped(shipped, self._decide)

    def _decide(self, shipped: RatePolicy, sample: RateSample, state: PolicyState | None) -> RateDecision:
        drains = self._measure(sample)
        for number, drain in drains.items():
            others = [other for at, other in drains.items() if at != number and at not in self.caps]
            if number in self.caps:
                if drain < _CAP_ENDS * _TARGET_SECONDS and self._is_idle(number):
                    del self.caps[number]
            elif drain > _CAP_BEGINS * _TARGET_SECONDS and others and max(others) < _IDLE * _TARGET_SECONDS:
                self.caps[number] = _Cap(self._drained[number].rate, 0.0, self.around.now())
        for number, cap in self.caps.items():
            error = (_TARGET_SECONDS - drains[number]) / _TARGET_SECONDS
            if drains[number] >= _LOW * _TARGET_SECONDS:  # below it is a probe
                error = max(-0.9, min(0.05, error))
            least = shipped.floor_rate / len(sample.partitions)
            cap.rate = max(least, self._drained[number].rate * (1 + error))
        rest = {number: one for number, one in sample.partitions.items() if number not in self.caps}
        decision = shipped.decide(replace(sample, partitions=rest or sample.partitions), state)
        rate = decision.rate + sum(cap.rate for cap in self.caps.values())
        return replace(decision, rate=min(decision.explanation.rate_max, rate))

    def _is_idle(self, number: int) -> bool:
        """Whether the cap limits nothing: its bucket is full."""
        cap = self.caps[number]
        return cap.tokens + (self.around.now() - cap.at) * cap.rate >= cap.rate * _CAP_BURST_SECONDS

    def _measure(self, sample: RateSample) -> dict[int, float]:
        """The seconds that each partition needs for its lag, at its drain rate while it has a lag."""
        drains = {}
        for number, one in sample.partitions.items():
            drained, seconds = self._drained[number], sample.seconds
            is_full = one.lag >= _LOW * _TARGET_SECONDS * drained.rate and one.lag > 0
            if seconds:
                rate = (one.stored - drained.stored) / seconds
                if (drained.was_full and is_full) or rate > drained.rate:  # an idle partition shows nothing
                    weight = 1 - exp(-seconds / _CAP_SECONDS) if drained.rate else 1.0
                    drained.rate += weight * (rate - drained.rate)
            drained.stored, drained.was_full = one.stored, is_full
            drains[number] = _drain_seconds(one, drained.rate)
        return drains

    def wait_seconds(self, partition: int, count: int) -> float:
        caps = self._of(partition)
        now = self.around.now()
        wait_seconds = 0.0
        for _, cap in caps:
            cap.tokens = min(cap.rate * _CAP_BURST_SECONDS, cap.tokens + (now - cap.at) * cap.rate)
            cap.at = now
            if cap.tokens <= 0:
                wait_seconds = max(wait_seconds, (1 - cap.tokens) / cap.rate)
        if wait_seconds == 0:
            self._spend(caps, count)
        return wait_seconds

    def give_back(self, partition: int, count: int) -> None:
        self._spend(self._of(partition), -count)

    def _of(self, partition: int) -> list[tuple[float, _Cap]]:
        """The limits that apply to a body, each with its share of the body."""
        if partition != SPREAD:
            return [(1.0, self.caps[partition])] if partition in self.caps else []
        shares = self.around.shares() if self.caps else ()
        return [(shares[number], cap) for number, cap in self.caps.items()]

    def _spend(self, caps: Sequence[tuple[float, _Cap]], count: int) -> None:
        for share, cap in caps:
            cap.tokens -= share * count


def _drain_seconds(one: PartitionSample, rate: float) -> float:
    return one.lag / max(1.0, rate) if one.lag else 0.0
