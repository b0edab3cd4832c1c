"""The metrics of the whole system, made when they are asked for: on the control worker alone, or they would add up.

What is not known is left out rather than shown as it was: a gauge that stands still looks like a healthy one. Each is
declared once, in `_gauges`, `_counters` or `_histograms`; its help says what it tells.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline import __version__, tally
from pipeline.clock import Clock
from pipeline.errors import SluiceError
from pipeline.flow.bucket import burst_of
from pipeline.names import BreakerState, Mode, PauseReason
from pipeline.ports.control import ControlState, ControlStore
from pipeline.ports.tallies import Tallies
from pipeline.settings import Settings

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

FACTS_SECONDS: Final = 60.0  # after which what was asked of PostgreSQL is too old to be shown
STALE_PERIODS: Final = 3  # of the control loop without news, after which its lag is not shown any more
_OUTCOMES: Final = (
    "finished", "busy", "paused", "breaker_open", "sink_away", "log_away", "store_away", "unsettled", "log_gap",
    "poisoned",
)  # fmt: skip
PROGRAMS: Final = ("ingest", "batches", "control", "beat")


@dataclass(frozen=True, slots=True)
class SystemParts:
    """What the metrics are made from. `log_memory` asks the event log's Redis; None on Kafka."""

    settings: Settings
    clock: Clock
    store: ControlStore
    tallies: Tallies
    log_memory: Callable[[], tuple[int, int]] | None


class SystemCollector(Collector):
    """Asks the control store, and the log's server for its memory, once a scrape.

    Each question ends within its time-out, and a server that left one unanswered is not asked another: a scrape takes
    two time-outs at most.
    """

    def __init__(self, parts: SystemParts) -> None:
        self._parts = parts

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are not known to clash, and asking the servers at registration would be worse."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All that is known now."""
        parts, control, log = self._parts, _Asking(), _Asking()
        state = control.ask(parts.store.state)
        if state is not None:
            yield from _control_gauges(state, parts.settings)
            yield from _lag_gauges(state, parts.settings)
            yield from self._bucket_gauges(state, control.ask(parts.tallies.tokens))
        counters = control.ask(parts.tallies.counters)
        if counters is not None:
            yield from _counters(counters)
            yield from _histograms(counters)
        yield from _fact_gauges(control.ask(parts.tallies.facts) or {})
        yield from _memory_gauges(
            {
                "control": control.ask(parts.tallies.memory),
                "log": None if parts.log_memory is None else log.ask(parts.log_memory),
            }
        )
        yield from _disk_gauges(parts.settings.watched_paths)
        build = GaugeMetricFamily("sluice_build_info", "1, with what runs", labels=["version", "event_log"])
        build.add_metric([__version__, "kafka" if parts.settings.log_scheme == "kafka" else "redis"], 1.0)
        yield build

    def _bucket_gauges(self, state: ControlState, held: tuple[float, float, float] | None) -> Iterator[Metric]:
        if held is None or state.rate is None:
            return
        tokens, age_seconds, rate = held
        capacity = burst_of(state.rate.rate, self._parts.settings.burst_seconds)
        level = min(float(capacity), tokens + age_seconds * min(rate, state.rate.rate))
        yield _gauge("rate_limiter_available_permissions", "Events that the bucket would admit at once", level)
        yield _gauge("rate_limiter_capacity_permissions", "Events that the full bucket admits at once", capacity)


class _Asking:
    """Questions of one scrape to one server: after one without an answer no other is asked."""

    def __init__(self) -> None:
        self._is_away = False

    def ask(self, question: Callable[[], _T]) -> _T | None:
        if self._is_away:
            return None
        try:
            return question()
        except SluiceError as error:
            self._is_away = True
            _logger.debug("left out of the metrics: %s", error)
            return None


def _memory_gauges(found: Mapping[str, tuple[int, int] | None]) -> Iterator[Metric]:
    """(used, limit) of each Redis server by its role; None where it is not known."""
    used = GaugeMetricFamily(
        "sluice_redis_memory_bytes", "Memory that a Redis server of the system uses", labels=["role"]
    )
    limit = GaugeMetricFamily(
        "sluice_redis_memory_limit_bytes",
        "maxmemory of a Redis server; a log that reaches it refuses events. Absent where there is no limit",
        labels=["role"],
    )
    for role, memory in found.items():
        if memory is not None:
            used.add_metric([role], memory[0])
            if memory[1]:
                limit.add_metric([role], memory[1])
    yield from (used, limit)


def _gauge(name: str, tells: str, value: float) -> Metric:
    return GaugeMetricFamily(name, tells, value=value)


def _one_of(name: str, tells: str, label: str, words: Iterable[str], held: Iterable[str]) -> Metric:
    """A series for each word, 1 where it holds."""
    family = GaugeMetricFamily(name, tells, labels=[label])
    holding = set(held)
    for word in words:
        family.add_metric([word], 1.0 if word in holding else 0.0)
    return family


def _control_gauges(state: ControlState, settings: Settings) -> Iterator[Metric]:
    """What the control loop has decided, and what holds."""
    rate = state.rate
    if rate is not None:
        yield _gauge("rate_limiter_rate_limit", "Events admitted a second, effective: override and breaker included",
                     rate.rate)  # fmt: skip
        yield _gauge("rate_limiter_base_rate_limit", "Events a second that the rate policy decided on", rate.base_rate)
        yield _gauge("sluice_controller_age_seconds", "Seconds since the controller last published a rate",
                     max(0.0, state.time - rate.published_at))  # fmt: skip
    modes = [Mode.UNKNOWN.value if rate is None else rate.mode.value]
    yield _one_of("sluice_mode", "1 for what the lag means for the rate", "mode", [mode.value for mode in Mode], modes)
    yield _gauge("rate_limiter_floor_rate_limit", "Events a second at high lag and while the breaker is open",
                 state.floor_rate or settings.rate_min)  # fmt: skip
    yield _gauge("rate_limiter_override_active", "1 while a rate that somebody set by hand holds",
                 float(state.override is not None))  # fmt: skip
    yield _one_of("circuit_breaker_state", "1 for the state of the circuit breaker around PostgreSQL", "state",
                  [one.value for one in BreakerState], [state.breaker.value])  # fmt: skip
    if state.pauses is not None:
        yield _one_of("sluice_consumption_paused", "1 for each reason for which consumption is paused", "reason",
                      [one.value for one in PauseReason], [pause.reason.value for pause in state.pauses])  # fmt: skip
    bands = state.bands
    yield _gauge("sluice_lag_degraded_events", "Lag from which the rate falls",
                 settings.lag_degraded if bands is None else bands.lag_degraded)  # fmt: skip
    yield _gauge("sluice_lag_critical_events", "Lag above which the rate is at its floor",
                 settings.lag_critical if bands is None else bands.lag_critical)  # fmt: skip


def _lag_gauges(state: ControlState, settings: Settings) -> Iterator[Metric]:
    """The lag, where the controller knew it lately."""
    rate = state.rate
    if rate is None or rate.lag is None or rate.consumption is None:
        return
    if state.time - rate.published_at > STALE_PERIODS * settings.regulate_seconds:
        return
    name = "kafka_consumer_lag" if settings.log_scheme == "kafka" else "redis_stream_consumer_lag"
    lag = GaugeMetricFamily(name, "Events in the log that are not stored yet, by partition", labels=["partition"])
    for partition, events in sorted(rate.consumption.lag_by_partition.items()):
        lag.add_metric([str(partition)], events)
    yield lag
    yield _gauge("sluice_lag_events", "Events in the log that are not stored yet, whichever log it is", rate.lag)
    drain_rate = rate.consumption.drain_rate
    if drain_rate is not None:
        yield _gauge("sluice_drain_rate", "Events stored a second, between the controller's last two ticks", drain_rate)
        if drain_rate > 0 or rate.lag == 0:
            yield _gauge("sluice_lag_seconds", "Seconds that storing the lag takes at the present pace",
                         rate.lag / drain_rate if rate.lag else 0.0)  # fmt: skip


def _counters(counters: dict[str, float]) -> Iterator[Metric]:
    """What drains did, and how often programs were started; from 0 after a flush of the control server."""
    events = CounterMetricFamily(
        "sluice_drained_events", "Events taken from the log, by what became of them", labels=["result"]
    )
    for result, name in (
        ("stored", "rows"),
        ("repeated", "repeated"),  # the same id with the same content was stored before
        ("conflicting", "conflicting"),  # the same id with other content: discarded
        ("dead_lettered", "dead_lettered"),
    ):
        events.add_metric([result], counters.get(name, 0.0))
    yield events
    runs = CounterMetricFamily("sluice_drain_runs", "Drain tasks that have ended, by how", labels=["outcome"])
    for outcome in _OUTCOMES:
        runs.add_metric([outcome], counters.get(f"runs:{outcome}", 0.0))
    yield runs
    starts = CounterMetricFamily(
        "sluice_process_starts", "Starts of a program; more than one was expected are restarts", labels=["program"]
    )
    for program in PROGRAMS:
        starts.add_metric([program], counters.get(f"starts:{program}", 0.0))
    yield starts


def _histograms(counters: dict[str, float]) -> Iterator[Metric]:
    for name, key, bounds, tells in (
        ("sluice_receipt_to_store_seconds", "stored_seconds", tally.STORED_SECONDS,
         "From the receipt of an event by ingest until its batch was committed to PostgreSQL"),
        ("sluice_batch_events", "batch_events", tally.BATCH_EVENTS, "Events of one batch"),
        ("sluice_batch_store_seconds", "batch_seconds", tally.BATCH_SECONDS, "From BEGIN to COMMIT of one batch"),
    ):  # fmt: skip
        cumulative, total = tally.buckets(counters, key, bounds)
        yield HistogramMetricFamily(name, tells, buckets=cumulative, sum_value=total)


def _fact_gauges(facts: dict[str, Any]) -> Iterator[Metric]:
    """What was asked of PostgreSQL now and then; absent while it does not answer."""
    for key, name, tells in (
        ("dead_letters", "sluice_dead_letters_open", "Events that PostgreSQL refused and no replay has stored"),
        ("database_bytes", "sluice_database_bytes", "Size of the database"),
        ("connections", "sluice_database_connections", "Connections to PostgreSQL that Sluice has open"),
        ("connections_max", "sluice_database_connections_limit", "Connections that PostgreSQL allows, to everybody"),
    ):
        if facts.get(key) is not None:
            yield _gauge(name, tells, float(facts[key]))


def _disk_gauges(watched_paths: str) -> Iterator[Metric]:
    free = GaugeMetricFamily(
        "sluice_disk_free_bytes", "Space left on the disk of a watched path (WATCHED_PATHS)", labels=["path"]
    )
    size = GaugeMetricFamily("sluice_disk_size_bytes", "Size of the disk of a watched path", labels=["path"])
    for path in filter(None, (part.strip() for part in watched_paths.split(","))):
        try:
            found = os.statvfs(path)
        except OSError as error:
            _logger.debug("left out of the metrics: %s: %s", path, error)
            continue
        free.add_metric([path], found.f_bavail * found.f_frsize)
        size.add_metric([path], found.f_blocks * found.f_frsize)
    yield from (free, size)
