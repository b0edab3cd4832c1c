"""The decision of one tick: the policy's for a known lag; else the last rate, held or decayed. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipeline.flow.rate import Decay
from pipeline.names import Mode
from pipeline.ports.control import ControlState, paused
from pipeline.ports.rate import BatchStart, PartitionSample, PolicyRecord, RatePolicy, RateSample, Shadow


@dataclass(frozen=True, slots=True)
class Ages:
    """Seconds since the lag was last known, and since a rate was last published."""

    lag: float
    rate: float


@dataclass(frozen=True, slots=True)
class Measured:
    """The known lag of a tick; all by partition."""

    ends: Mapping[int, int]  # offset of the next record to be appended
    lag: Mapping[int, int]  # events; of the partitions that answered
    lag_held: Mapping[int, int] = field(default_factory=dict)  # events; the assumed lag of the others
    batches: Mapping[int, BatchStart] = field(default_factory=dict)  # of each partition's newest stored batch
    log_id: str = ""


@dataclass(frozen=True, slots=True)
class Decided:
    """The rate (events/s) and the mode to publish, with the policy's record."""

    rate: float
    mode: Mode
    record: PolicyRecord


def decide(
    policy: RatePolicy, state: ControlState, measured: Measured | None, ages: Ages | None, decay: Decay
) -> Decided:
    """The rate to publish. `measured` is None if the lag is unknown; `ages` is None if no lag was ever known.

    An unknown lag does not reach the policy: the last rate holds, and then decays. If the lag was never known, the rate
    is the lowest rate.
    """
    description = policy.describe()
    last = state.rate
    record = None if last is None else last.policy
    if record is not None and record.policy != description.policy:
        record = None  # the state of another policy
    if measured is None:
        kept = PolicyRecord(description) if record is None else record
        unknown = PolicyRecord(description, kept.state, kept.ran_dry, kept.generation)
        if last is None or last.lag_known_at is None or ages is None:
            return Decided(policy.floor_rate, Mode.UNKNOWN, unknown)
        decided_after = max(0.0, ages.lag - ages.rate)
        rate = decay.rate(last.base_rate, ages.lag, floor=policy.floor_rate, decided_after_seconds=decided_after)
        return Decided(rate, Mode.UNKNOWN, unknown)
    policy_state = None if record is None else record.state
    decision = policy.decide(_sample(state, measured, None if policy_state is None else record, ages), policy_state)
    published = PolicyRecord(decision.explanation, dict(decision.state), state.bucket_ran_dry, state.generation)
    return Decided(decision.rate, decision.mode, published)


def _sample(state: ControlState, measured: Measured, record: PolicyRecord | None, ages: Ages | None) -> RateSample:
    """The policy's sample; `record` has its state and the counts at its last sample, None: it has no state."""
    pauses = state.pauses
    # Without a record nothing is known to have happened since: the counts are of the control store's whole life.
    before, generation = (
        (state.bucket_ran_dry, state.generation) if record is None else (record.ran_dry, record.generation)
    )
    return RateSample(
        seconds=None if record is None or ages is None else ages.lag,
        partitions={
            partition: PartitionSample(
                measured.ends[partition],
                lag,
                measured.batches.get(partition),
                pauses is None or paused(pauses, partition),
            )
            for partition, lag in measured.lag.items()
        },
        lag_held=sum(measured.lag_held.values()),
        # After a flush the count begins again.
        ran_dry=state.bucket_ran_dry not in (0, before),
        # Each change of the reasons to pause has a generation: one that has already ended is seen as well.
        was_paused=pauses is None or paused(pauses) or state.generation != generation,
        last_rate=None if state.rate is None else state.rate.base_rate,
        log_id=measured.log_id,
    )


def decide_shadow(
    shadow: RatePolicy, state: ControlState, measured: Measured | None, ages: Ages | None, decay: Decay
) -> Shadow:
    """What a second policy would publish. Its state and its last rate are its own, and published beside the first's."""
    rate = state.rate
    if rate is not None:
        last = None if rate.policy is None else rate.policy.shadow
        rate = replace(rate, policy=None) if last is None else replace(rate, base_rate=last.rate, policy=last.record)
    decided = decide(shadow, replace(state, rate=rate), measured, ages, decay)
    return Shadow(decided.rate, decided.mode, decided.record)
