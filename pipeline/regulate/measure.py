"""Measures the lag: how far the log goes, and how far it is stored."""

from pipeline.clock import Clock
from pipeline.errors import SluiceError, in_brief
from pipeline.flow.clocks import Look
from pipeline.flow.lag import held_lags, lag_by_partition
from pipeline.names import AlarmCode, BreakerState
from pipeline.ports.control import ControlState
from pipeline.ports.log import EventLog, PartitionPosition
from pipeline.regulate.context import SinkQueries
from pipeline.regulate.lost_tail import name_lost_tail
from pipeline.regulate.refusal import is_refused, name_refused_sink
from pipeline.regulate.sample import Sample
from pipeline.text import NAMED_MAX, some_of


def measure(
    state: ControlState, log: EventLog, sink: SinkQueries, sample: Sample, clock: Clock
) -> list[PartitionPosition]:
    """Measure the lag and the stored offsets. PostgreSQL is not queried if it is known to be unavailable."""
    try:
        identity = log.identity()
        sample.log_id = identity.log_id
        positions = log.positions()
    except SluiceError as error:
        sample.degraded(AlarmCode.LAG_UNKNOWN, f"The lag is unknown: {in_brief(error)}", "the event log's server")
        return []
    for fault in identity.faults:
        raise_alarm = sample.critical if fault.loses_events else sample.degraded
        raise_alarm(AlarmCode.LOG_SET_UP, fault.what, fault.remedy)
    missing = identity.missing_replicas
    if missing is not None:
        raise_alarm = sample.critical if missing.refuses_events else sample.degraded
        raise_alarm(AlarmCode.REPLICAS_MISSING, missing.what, missing.look_at)
    name_lost_tail(identity, positions, sample)
    if state.breaker in (BreakerState.CLOSED, BreakerState.UNKNOWN) and not sample.is_database_unavailable:
        try:
            asked_at = clock.monotonic()
            stored = sink.stored_offsets(sample.log_id)
            sample.stored, sample.batches = stored.offsets, stored.batches
            if stored.time is not None:
                sample.database_clock = Look(stored.time, asked_at, clock.monotonic())
        except SluiceError as error:
            if is_refused(error, state):
                name_refused_sink(sample, str(error))
            else:
                sample.degraded(
                    AlarmCode.OFFSETS_UNKNOWN,
                    f"The stored offsets are unknown; the lag is measured by the log's commits: {in_brief(error)}",
                    f"{sample.sink}; the breaker opens by itself if drains fail too",
                )
    sample.lag = lag_by_partition(positions, sample.stored)
    sample.ends = {position.partition: position.end for position in positions}
    sink.see_log(sample.log_id, sample.ends)
    if sample.lag is not None:
        _measure_missing(state, sample, identity.partitions)
        sample.consumed = sum(position.end for position in positions) - sum(sample.lag.values())
        sample.consumed += sum((sample.stored or {}).get(partition, 0) for partition in sample.held)
    if sample.lag is None:
        sample.degraded(
            AlarmCode.LAG_UNKNOWN,
            f"The lag is unknown: neither the log nor {sample.sink} says how far the log was consumed",
            f"{sample.sink}: it has the stored offsets",
        )
    return positions


def _measure_missing(state: ControlState, sample: Sample, partitions: int) -> None:
    """Use the last known lag for partitions that do not answer, and report these partitions."""
    consumption = state.rate.consumption if state.rate is not None else None
    last = {} if consumption is None else {**consumption.lag_held, **consumption.lag_by_partition}
    sample.held = held_lags(sample.lag or {}, partitions, last)
    look_at = "Kafka's brokers; `kafka-topics.sh --describe --unavailable-partitions` names partitions without a leader"
    if len(sample.held) > NAMED_MAX:
        sample.critical(
            AlarmCode.PARTITION_UNAVAILABLE,
            f"{len(sample.held)} of the {partitions} partitions of the event log can't be asked "
            f"({some_of(sample.held)}): events for them are refused, and none are stored",
            f"{look_at}. Those of a topic that was just made get theirs within seconds",
        )
        return
    for partition in sample.held:
        sample.critical(
            AlarmCode.PARTITION_UNAVAILABLE,
            f"Partition {partition} of the event log can't be asked: events for it are refused, and none are stored",
            look_at,
            partition,
        )
