"""The metrics of the whole system, built at each scrape: only on the control worker, otherwise they would add up.

An unknown value is left out instead of its last value: a gauge that does not change looks healthy. The names and help
texts are in `metrics`.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pipeline import __version__, drain_counters, metrics
from pipeline.clock import Clock
from pipeline.errors import SluiceError, StoreRefusesError
from pipeline.flow.age import Age
from pipeline.flow.bucket import burst_of
from pipeline.health.snapshot import silent_seconds
from pipeline.metrics import Declared
from pipeline.names import AlarmCode, BreakerState, DropReason, Mode, PauseReason
from pipeline.policies import explanation_of
from pipeline.ports.control import ControlState, ControlStore
from pipeline.ports.counters import Counters
from pipeline.ports.rate import MEASURE_LAG, Explanation
from pipeline.settings import Settings

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

FACTS_SECONDS: Final = 60.0  # results of PostgreSQL queries older than this are not shown
_OUTCOMES: Final = (
    "finished", "busy", "paused", "breaker_open", "sink_away", "log_away", "store_away", "unsettled", "log_gap",
    "poisoned",
)  # fmt: skip
_LAG_THRESHOLDS: Final = {Mode.DEGRADED: metrics.LAG_DEGRADED, Mode.CRITICAL: metrics.LAG_CRITICAL}
# Parts of CountersRead, for people.
_PARTS: Final = {
    "totals": "the counters",
    "facts": "facts about PostgreSQL",
    "tokens": "the token bucket",
    "memory": "the memory of the control Redis",
}
PROGRAMS: Final = ("ingest", "batches", "control", "beat")


@dataclass(frozen=True, slots=True)
class MetricsContext:
    """The sources of the metrics. `log_memory` queries the event log's Redis; None on Kafka."""

    settings: Settings
    clock: Clock
    store: ControlStore
    counters: Counters
    log_memory: Callable[[], tuple[int, int]] | None


class SystemCollector(Collector):
    """Queries the control store, and the log's server for its memory, at each scrape.

    Each query ends within its time-out. After a query without a response the server is not queried again: a scrape
    takes at most two time-outs. A query that is refused leaves out its own values only. The first scrape without them
    logs it.
    """

    def __init__(self, context: MetricsContext) -> None:
        self._context = context
        self._publication_age = Age()
        self._refused: set[str] = set()  # what the last scrapes left out because it was refused

    def describe(self) -> Iterable[Metric]:
        """Empty: the names are not known to clash, and querying the servers at registration would be worse."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All values that are known now."""
        context, control, log = self._context, _Asking(self._note), _Asking(self._note)
        state = control.ask("the control state", context.store.state)
        counters = control.ask("all but the control state", context.counters.read)
        if state is not None:
            age = self._controller_age(state)
            yield from _control_gauges(state, context.settings, age)
            yield from _lag_gauges(state, context.settings, age)
            yield from self._bucket_gauges(state, None if counters is None else counters.tokens)
        if counters is not None:
            for name, words in _PARTS.items():
                self._note(words, counters.problems.get(name))
            if "totals" not in counters.problems:
                yield from _counters(counters.totals)
                yield from _histograms(counters.totals)
            yield from _fact_gauges(counters.facts)
        yield from _memory_gauges(
            {
                "control": None if counters is None else counters.memory,
                "log": None
                if context.log_memory is None
                else log.ask("the memory of the log's Redis", context.log_memory),
            }
        )
        yield from _disk_gauges(context.settings.watched_paths)
        build = metrics.BUILD_INFO.gauge()
        build.add_metric([__version__, "kafka" if context.settings.log_scheme == "kafka" else "redis"], 1.0)
        yield build

    def _note(self, what: str, problem: str | None) -> None:
        """Log what is refused, once until it is answered again; None: it was answered."""
        if problem is None:
            self._refused.discard(what)
        elif what not in self._refused:
            self._refused.add(what)
            _logger.warning("left out of the metrics: %s: %s", what, problem, extra={"action": "metrics_refused"})

    def _controller_age(self, state: ControlState) -> float:
        """Seconds since the controller published, independent of steps of the server's wall clock."""
        if state.rate is None:
            return 0.0
        published_at = state.rate.published_at
        return self._publication_age.of(published_at, state.time - published_at, now=self._context.clock.monotonic())

    def _bucket_gauges(self, state: ControlState, held: tuple[float, float, float] | None) -> Iterator[Metric]:
        if held is None or state.rate is None:
            return
        tokens, age_seconds, rate = held
        capacity = burst_of(state.rate.rate, self._context.settings.burst_seconds)
        level = min(float(capacity), tokens + age_seconds * min(rate, state.rate.rate))
        yield metrics.AVAILABLE_PERMISSIONS.gauge(level)
        yield metrics.CAPACITY_PERMISSIONS.gauge(capacity)


class _Asking:
    """The queries of one scrape to one server: after one without a response there are no more."""

    def __init__(self, note: Callable[[str, str | None], None]) -> None:
        self._note = note
        self._is_unavailable = False

    def ask(self, what: str, question: Callable[[], _T]) -> _T | None:
        if self._is_unavailable:
            return None
        try:
            answer = question()
        except StoreRefusesError as error:
            self._note(what, str(error))
            return None
        except SluiceError as error:
            self._is_unavailable = True
            _logger.debug("left out of the metrics: %s", error)
            return None
        except Exception:  # a scrape without these values is better than none
            _logger.exception("left out of the metrics because of a defect", extra={"action": "metrics_failed"})
            return None
        self._note(what, None)
        return answer


def _memory_gauges(found: Mapping[str, tuple[int, int] | None]) -> Iterator[Metric]:
    """(used, limit) of each Redis server by its role; None if unknown."""
    used = metrics.REDIS_MEMORY.gauge()
    limit = metrics.REDIS_MEMORY_LIMIT.gauge()
    for role, memory in found.items():
        if memory is not None:
            used.add_metric([role], memory[0])
            if memory[1]:
                limit.add_metric([role], memory[1])
    yield from (used, limit)


def _one_of(declared: Declared, words: Iterable[str], held: Iterable[str]) -> Metric:
    """A series for each name; 1 for the active ones."""
    family = declared.gauge()
    holding = set(held)
    for word in words:
        family.add_metric([word], 1.0 if word in holding else 0.0)
    return family


def _control_gauges(state: ControlState, settings: Settings, controller_age: float) -> Iterator[Metric]:
    """The decisions of the control loop, and its active state."""
    rate = state.rate
    if rate is not None:
        yield metrics.RATE_LIMIT.gauge(rate.rate)
        yield metrics.BASE_RATE_LIMIT.gauge(rate.base_rate)
        yield metrics.CONTROLLER_AGE.gauge(controller_age)
        if rate.shares is not None and rate.shares.share is not None:
            yield metrics.ACCOUNT_SHARE.gauge(rate.shares.share)
    yield metrics.CONTROLLER_PERIOD.gauge(settings.regulate_seconds)
    yield metrics.NO_PROGRESS_SECONDS_LIMIT.gauge(settings.no_progress_seconds_max)
    modes = [Mode.UNKNOWN.value if rate is None else rate.mode.value]
    yield _one_of(metrics.MODE, [mode.value for mode in Mode], modes)
    yield metrics.FLOOR_RATE_LIMIT.gauge(state.floor_rate or settings.rate_min)
    yield metrics.OVERRIDE_ACTIVE.gauge(float(state.override is not None))
    yield _one_of(metrics.BREAKER_STATE, [one.value for one in BreakerState], [state.breaker.value])
    if state.pauses is not None:
        yield _one_of(
            metrics.CONSUMPTION_PAUSED,
            [one.value for one in PauseReason],
            [pause.reason.value for pause in state.pauses],
        )
    policy = explanation_of(settings, state)
    is_silent = controller_age > silent_seconds(settings.regulate_seconds)
    if rate is not None and not is_silent:
        yield _one_of(metrics.ALARM_ACTIVE, [code.value for code in AlarmCode], [alarm.code for alarm in rate.alarms])
    yield from _policy_gauges(policy.without_figures() if is_silent else policy)
    shadow = None if rate is None or rate.policy is None or is_silent else rate.policy.shadow
    if shadow is not None:
        gauge = metrics.SHADOW_RATE_LIMIT.gauge()
        gauge.add_metric([shadow.record.policy], shadow.rate)
        yield gauge


def _policy_gauges(policy: Explanation) -> Iterator[Metric]:
    """Every threshold and figure of the rate policy; those that have a metric of their own, there too."""
    family = metrics.RATE_POLICY.gauge()
    for threshold in policy.thresholds:
        family.add_metric(
            [policy.policy, f"{threshold.measure}_{threshold.mode.value}", threshold.unit, ""], threshold.value
        )
        if threshold.measure == MEASURE_LAG and threshold.mode in _LAG_THRESHOLDS:
            yield _LAG_THRESHOLDS[threshold.mode].gauge(threshold.value)
    drain = metrics.DRAIN_SECONDS.gauge()
    for figure in policy.figures:
        partition = "" if figure.partition is None else str(figure.partition)
        family.add_metric([policy.policy, figure.name, figure.unit, partition], figure.value)
        if figure.name == "drain_seconds" and partition:
            drain.add_metric([partition], figure.value)
    capacity = policy.figure("capacity_events_per_second")
    if capacity is not None:
        yield metrics.CAPACITY.gauge(capacity)
    yield from (drain, family)


def _lag_gauges(state: ControlState, settings: Settings, controller_age: float) -> Iterator[Metric]:
    """The lag, if the controller knew it recently."""
    rate = state.rate
    if rate is None or rate.lag is None or rate.consumption is None:
        return
    if controller_age > silent_seconds(settings.regulate_seconds):
        return
    lag = (metrics.KAFKA_LAG if settings.log_scheme == "kafka" else metrics.REDIS_LAG).gauge()
    for partition, events in sorted(rate.consumption.lag_by_partition.items()):
        lag.add_metric([str(partition)], events)
    yield lag
    yield metrics.LAG.gauge(rate.lag)
    stood = metrics.NO_PROGRESS_SECONDS.gauge()
    for partition in sorted(rate.consumption.lag_by_partition):
        stood.add_metric([str(partition)], (rate.consumption.no_progress_seconds or {}).get(partition, 0.0))
    yield stood
    drain_rate = rate.consumption.drain_rate
    if drain_rate is not None:
        yield metrics.DRAIN_RATE.gauge(drain_rate)
        if drain_rate > 0 or rate.lag == 0:
            yield metrics.LAG_SECONDS.gauge(rate.lag / drain_rate if rate.lag else 0.0)


def _counters(counters: Mapping[str, float]) -> Iterator[Metric]:
    """The results of drains, and the starts of programs; from 0 after a flush of the control server."""
    events = metrics.DRAINED_EVENTS.counter()
    for result, name in (
        ("stored", "rows"),
        ("repeated", "repeated"),  # the same id with the same content was already stored
        ("conflicting", "conflicting"),  # the same id with other content: also a dead letter
        ("dead_lettered", "dead_lettered"),
    ):
        events.add_metric([result], counters.get(name, 0.0))
    yield events
    runs = metrics.DRAIN_RUNS.counter()
    for outcome in _OUTCOMES:
        runs.add_metric([outcome], counters.get(f"runs:{outcome}", 0.0))
    yield runs
    dropped = metrics.DROPPED_MESSAGES.counter()
    for reason in DropReason:
        dropped.add_metric([reason.value], counters.get(f"dropped:{reason.value}", 0.0))
    yield dropped
    expired = metrics.EXPIRED_ROWS.counter()
    for table in ("log_events", "dead_letters", "event_log", "event_ids"):
        expired.add_metric([table], counters.get(f"expired:{table}", 0.0))
    yield expired
    starts = metrics.PROCESS_STARTS.counter()
    for program in PROGRAMS:
        starts.add_metric([program], counters.get(f"starts:{program}", 0.0))
    yield starts


def _histograms(counters: Mapping[str, float]) -> Iterator[Metric]:
    for declared, key, bounds in (
        (metrics.RECEIPT_TO_STORE, "stored_seconds", drain_counters.STORED_SECONDS),
        (metrics.BATCH_EVENTS, "batch_events", drain_counters.BATCH_EVENTS),
        (metrics.BATCH_STORE_SECONDS, "batch_seconds", drain_counters.BATCH_SECONDS),
    ):
        yield declared.histogram(*drain_counters.buckets(counters, key, bounds))


def _fact_gauges(facts: Mapping[str, Any]) -> Iterator[Metric]:
    """Results of occasional PostgreSQL queries; absent while PostgreSQL does not answer."""
    for key, declared in (
        ("dead_letters", metrics.DEAD_LETTERS),
        ("dead_letter_conflicts", metrics.DEAD_LETTER_CONFLICTS),
        ("database_bytes", metrics.DATABASE_BYTES),
        ("connections", metrics.DATABASE_CONNECTIONS),
        ("connections_max", metrics.DATABASE_CONNECTIONS_LIMIT),
        ("retention_overdue", metrics.RETENTION_OVERDUE),
    ):
        if facts.get(key) is not None:
            yield declared.gauge(float(facts[key]))


def _disk_gauges(watched_paths: str) -> Iterator[Metric]:
    free = metrics.DISK_FREE.gauge()
    size = metrics.DISK_SIZE.gauge()
    for path in filter(None, (part.strip() for part in watched_paths.split(","))):
        try:
            found = os.statvfs(path)
        except OSError as error:
            _logger.debug("left out of the metrics: %s: %s", path, error)
            continue
        free.add_metric([path], found.f_bavail * found.f_frsize)
        size.add_metric([path], found.f_blocks * found.f_frsize)
    yield from (free, size)
