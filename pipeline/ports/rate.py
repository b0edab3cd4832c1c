"""The rate policy: computes the admitted rate from what the controller measures, and explains it.

A policy sees samples and its own state, nothing else. Page, terminal, metrics and Celery commands show its explanation
as it is, so none of them knows which policy decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from pipeline.names import Mode

# What a policy keeps from sample to sample: JSON that nobody else reads. It is stored with the published rate.
PolicyState = Mapping[str, Any]

MEASURE_LAG: Final = "lag"  # the events in the log that are not stored yet: a threshold on it needs no figure


@dataclass(frozen=True, slots=True)
class BatchStart:
    """Where and when a drain began the newest stored batch of a partition: all before `offset` was stored by then."""

    offset: int
    at: float  # seconds by PostgreSQL's clock: only differences have a meaning


@dataclass(frozen=True, slots=True)
class PartitionSample:
    """One partition that answered."""

    appended: int  # offset of the next record to be appended
    lag: int  # events that are not stored yet
    batch: BatchStart | None = None  # None: unknown
    is_paused: bool = False  # now

    @property
    def stored(self) -> int:
        """Offset of the next record to be stored."""
        return self.appended - self.lag


@dataclass(frozen=True, slots=True)
class RateSample:
    """What one tick of the control loop measured. A policy gets only samples with a known lag."""

    seconds: float | None  # since the sample of the policy's state; None: the policy has no state yet
    partitions: Mapping[int, PartitionSample]
    lag_held: int = 0  # events; the assumed lag of partitions that did not answer
    ran_dry: bool = False  # since the last sample, clients wanted more tokens than the bucket had
    was_paused: bool = False  # consumption, by the breaker or by an operator, at any time since the last sample
    last_rate: float | None = None  # events/s; the base rate that was published last, by whichever policy
    log_id: str = ""  # of the event log; offsets of two logs have nothing to do with each other

    @property
    def lag(self) -> int:
        """Events of all partitions that are not stored yet."""
        return sum(one.lag for one in self.partitions.values()) + self.lag_held


@dataclass(frozen=True, slots=True)
class Threshold:
    """A value beyond which the mode is another one."""

    label: str  # as people read it, followed by the value: "degraded from"
    value: float
    unit: str
    mode: Mode  # beyond the value
    measure: str = MEASURE_LAG  # what is compared: the lag, or the figure of this name
    is_inclusive: bool = False  # the value itself is beyond the threshold

    def is_beyond(self, value: float) -> bool:
        """Whether a value of the measure is beyond the threshold."""
        return value > self.value or (self.is_inclusive and value == self.value)


@dataclass(frozen=True, slots=True)
class Figure:
    """A target or a measure of the policy."""

    name: str  # for programs: a word of lower-case letters and underscores
    label: str  # for people
    value: float
    unit: str
    partition: int | None = None  # None: of the whole system


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the rate is as it is, in words and figures."""

    policy: str  # its name, as in RATE_POLICY
    sentence: str  # how the policy decides, with its figures
    reason: str  # a few words that follow a rate: "lag is low"
    because: str  # the figures of this decision, in brief: "lag 12000"
    rate_max: float  # events/s; the highest rate that it decides
    look_at: str  # what to check if clients are refused although the mode is normal
    thresholds: tuple[Threshold, ...] = ()  # from the mildest to the worst
    figures: tuple[Figure, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)  # what was set, for programs
    # A rate that differs less from the last recorded one, as a share of it, is no control event; 0: each change is one.
    event_ratio: float = 0.0

    def figure(self, name: str) -> float | None:
        """The value of a figure of the whole system; None if the policy has none of this name, or does not know it."""
        return next((one.value for one in self.figures if one.name == name and one.partition is None), None)

    @property
    def measure(self) -> float | None:
        """The figure that the thresholds are about; None if that is the lag, or unknown."""
        return self.figure(self.thresholds[-1].measure) if self.thresholds else None

    @property
    def is_about_lag(self) -> bool:
        """Whether the mode is by the lag."""
        return all(one.measure == MEASURE_LAG for one in self.thresholds)

    @property
    def drain_over_seconds(self) -> float:
        """How much longer than its target the sink needs for what waits; 0 if the policy has no such target."""
        drain, target = self.figure("drain_seconds"), self.figure("drain_target_seconds")
        return 0.0 if drain is None or target is None else max(0.0, drain - target)

    def without_figures(self) -> "Explanation":
        """The thresholds alone: a measure of a silent controller is not the present one."""
        return replace(self, figures=(), reason="", because="")

    def mode_of_lag(self, lag: int | None) -> Mode:
        """The mode for a lag that no controller has judged: the worst whose threshold it is beyond, else unknown.

        If the controller is silent, a low lag gives no information.
        """
        found = [
            one.mode for one in self.thresholds
            if lag is not None and one.measure == MEASURE_LAG and one.is_beyond(lag)
        ]  # fmt: skip
        return found[-1] if found else Mode.UNKNOWN


@dataclass(frozen=True, slots=True)
class RateDecision:
    """A rate in events/s, the mode, and the explanation; and the state for the next sample."""

    rate: float
    mode: Mode
    explanation: Explanation
    state: PolicyState = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """What a tick publishes of the policy beside the rate."""

    explanation: Explanation
    state: dict[str, Any] | None = None  # None: the policy has seen no sample yet
    ran_dry: int = 0  # ControlState.bucket_ran_dry at the sample of the state
    generation: int = 0  # ControlState.generation at the sample of the state
    shadow: "Shadow | None" = None  # what a second policy would have decided

    @property
    def policy(self) -> str:
        """The policy's name."""
        return self.explanation.policy


@dataclass(frozen=True, slots=True)
class Shadow:
    """The decision of a policy that admits nothing. It sees what happens under the rate of the other policy."""

    rate: float  # events/s
    mode: Mode
    record: PolicyRecord


class RatePolicy(Protocol):
    """A pure function of a known sample and its own state. For an unknown lag see `pipeline.flow.rate.Decay`."""

    @property
    def floor_rate(self) -> float:
        """The lowest rate that the policy decides, events/s."""

    def describe(self) -> Explanation:
        """The explanation without a sample: thresholds and targets."""

    def decide(self, sample: RateSample, state: PolicyState | None) -> RateDecision:
        """The rate for a sample. Without a state, the policy begins with the rate that was published last."""
