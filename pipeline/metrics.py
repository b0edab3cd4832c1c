"""Every metric, declared once: its name, its meaning (the HELP of a scrape), its labels, and why to look at it.

docs/metrics.md lists which process shows which metric; it is generated from all of them. A metric of one process is a
live object on that process' own registry. So an import registers nothing, and several applications can live in one
process. A metric of the whole system is built from the control store at each scrape (`system_metrics`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.names import (
    OTHER_PROTOCOLS,
    ConnectionRefusal,
    KeyRefusal,
    Level,
    LoopName,
    OperatorRefusal,
    ProtocolName,
    RecordOutcome,
    TlsRefusal,
)

# The library keeps values in files if PROMETHEUS_MULTIPROC_DIR is set; here, that would be another program's folder.
values.ValueClass = values.MutexValue


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric's name (of a counter without `_total`), HELP and labels."""

    name: str
    tells: str
    labels: tuple[str, ...] = ()

    def gauge(self, value: float | None = None) -> GaugeMetricFamily:
        """A gauge for one scrape: with its value, or for `add_metric` if it has labels."""
        return GaugeMetricFamily(self.name, self.tells, value=value, labels=self.labels or None)

    def counter(self, value: float | None = None) -> CounterMetricFamily:
        """A counter for one scrape, like `gauge`."""
        return CounterMetricFamily(self.name, self.tells, value=value, labels=self.labels or None)

    def histogram(self, cumulative: Sequence[tuple[str, float]], total: float) -> HistogramMetricFamily:
        """A histogram for one scrape: (upper bound, cumulative count) of each bucket, and the sum of all values."""
        return HistogramMetricFamily(self.name, self.tells, buckets=cumulative, sum_value=total)

    def live_counter(self, registry: CollectorRegistry) -> Counter:
        """A counter that this process increments."""
        return Counter(self.name, self.tells, self.labels, registry=registry)

    def loop_counter(self, registry: CollectorRegistry) -> "LoopCounter":
        """A counter that only the event loop increments, for each request."""
        return LoopCounter(self, registry)

    def live_gauge(self, registry: CollectorRegistry) -> Gauge:
        """A gauge that this process sets."""
        return Gauge(self.name, self.tells, self.labels, registry=registry)

    def live_histogram(self, registry: CollectorRegistry, bounds: Sequence[float]) -> Histogram:
        """A histogram that this process observes, with upper bounds."""
        return Histogram(self.name, self.tells, self.labels, buckets=bounds, registry=registry)


class Count:
    """One series of a LoopCounter. The event loop adds to `value`; any thread may read it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class LoopCounter(Collector):
    """A counter without a lock, since one thread increments it: an addition instead of three calls."""

    def __init__(self, declared: Declared, registry: CollectorRegistry) -> None:
        self._declared = declared
        self._counts: dict[tuple[str, ...], Count] = {}
        if not declared.labels:
            self.labels()  # shown from the start, as the library does
        registry.register(self)

    def labels(self, *values: object) -> Count:
        """The series with these values of the labels. Keep it: the addition takes less time than looking it up."""
        key = tuple(map(str, values))
        if len(key) != len(self._declared.labels):
            raise ValueError(f"{self._declared.name} has the labels {self._declared.labels}, not {key}")
        return self._counts.setdefault(key, Count())

    def counts(self) -> dict[tuple[str, ...], int]:
        """The value of each series, by the values of its labels. On any thread."""
        return {labels: count.value for labels, count in list(self._counts.items())}

    def describe(self) -> Iterable[Metric]:
        """The metrics that `collect` returns."""
        return [self._declared.counter()]

    def collect(self) -> Iterator[CounterMetricFamily]:
        """All series."""
        family = CounterMetricFamily(self._declared.name, self._declared.tells, labels=self._declared.labels)
        for labels, value in self.counts().items():
            family.add_metric(labels, value)
        yield family


# --- Of an ingest process -----------------------------------------------------------------------------------------

# The clients' view: responses by error code, or `accepted`.
INGEST_ANSWERS: Final = Declared("sluice_ingest_answers", "Answers to POST /api/logs by error code", ("code",))
# The same for clients that send in other protocols.
PROTOCOL_REQUESTS: Final = Declared(
    "sluice_ingest_protocol_requests",
    "Requests in other protocols by the HTTP status of their response",
    ("protocol", "status"),
)
# Which protocols are in use. `rejected` grows: a client sends records that can't be mapped to an event.
PROTOCOL_EVENTS: Final = Declared(
    "sluice_ingest_protocol_events",
    "Records in other protocols: accepted as events, rejected, or refused (429 or 503; an unread body counts as one)",
    ("protocol", "outcome"),
)
# The same by HTTP status, which every HTTP tool knows.
HTTP_REQUESTS: Final = Declared("http_requests", "Answers to requests with events by HTTP status", ("status",))
# Compare its rate with the admitted rate: it shows how much of that is used.
ACCEPTED_EVENTS: Final = Declared("sluice_ingest_accepted_events", "Events acknowledged: durable in the event log")
# Add the accepted events: the sum is the offered load.
REFUSED_EVENTS: Final = Declared(
    "sluice_ingest_refused_events", "Events refused with 429 or 503; a body that was refused unread counts as one"
)
# Only with ADMISSION_LEVELS. Refused events of a high level: more of these are sent than can be stored. The level is
# `unknown` for a body that was refused unread without a header Priority.
LEVEL_EVENTS: Final = Declared(
    "sluice_ingest_level_events",
    "Events by level, accepted (202) or refused (429, 503); a body that was refused unread counts as one",
    ("level", "result"),
)
# Many `empty`: demand is above the rate. Any `away`: the control server does not answer.
LEASE_CALLS: Final = Declared(
    "sluice_ingest_lease_calls", "Calls to the global bucket: granted, empty or away", ("result",)
)
# The main wait of a 202: the log's own speed.
APPEND_SECONDS: Final = Declared("sluice_ingest_append_seconds", "Duration of one append to the event log")
# Grows under load, because requests are grouped while the previous append runs.
APPEND_GROUP_EVENTS: Final = Declared("sluice_ingest_append_group_events", "Events of one append")
# Near APPEND_BUFFER_EVENTS_MAX, 503s begin.
APPEND_WAITING_EVENTS: Final = Declared("sluice_ingest_append_waiting_events", "Events that wait for the event log")
# Near APPEND_BUFFER_BYTES_MAX, 503s begin too.
APPEND_WAITING_BYTES: Final = Declared("sluice_ingest_append_waiting_bytes", "Bytes that wait for the event log")
# Differs from rate_limiter_rate_limit only while this process can't reach the control server.
INGEST_RATE: Final = Declared("sluice_ingest_rate", "Events a second, of all processes, as this process knows it")
# The tokens for the next requests to this process, before it calls the global bucket again.
INGEST_TOKENS: Final = Declared(
    "sluice_ingest_available_tokens", "Events that this process would admit at once; NaN where that is not known"
)
# Stays 1: the control server is unavailable, and the rate does not follow the lag.
INGEST_IS_LOCAL: Final = Declared(
    "sluice_ingest_admission_local", "1 while this process uses the last rate that it knew: the bucket is unavailable"
)
# 0: every POST gets 503.
INGEST_LOG_ANSWERS: Final = Declared("sluice_ingest_log_answers", "1 while the event log answers this process")
# Near INGEST_CONNECTIONS_MAX, new clients are rejected.
INGEST_CONNECTIONS: Final = Declared(
    "sluice_ingest_connections", "Open connections of clients, from the moment they are accepted"
)
# `process` grows: many clients connect, or somebody holds connections open. `address`: one address has all that it may.
INGEST_CONNECTION_REFUSALS: Final = Declared(
    "sluice_ingest_connection_refusals",
    "Connections refused with 503, or closed, by limit: of the process, of one address, of OPERATOR_PORT",
    ("reason",),
)
# Near BODIES_BYTES_MAX, clients with large bodies get 503: many of them stall, or the limit is too low.
INGEST_HELD_BODIES: Final = Declared(
    "sluice_ingest_held_bodies_bytes", "Bytes of bodies that were received and are not yet appended"
)

# Not 0: these accounts offer more than their share, or have a hard limit.
INGEST_HELD_ACCOUNTS: Final = Declared(
    "sluice_ingest_held_accounts", "Accounts that this process holds back to a limit or to a share"
)

# Only with INGEST_KEYS. `missing`: a client has no key. `unknown`: it has a revoked or wrong one. `not_ready`: this
# process has never reached the control store or PostgreSQL.
INGEST_KEY_REFUSALS: Final = Declared(
    "sluice_ingest_key_refusals", "Requests refused for their API key, by reason (INGEST_KEYS)", ("reason",)
)
# Only with INGEST_TLS_CLIENT. Clients see an alert of TLS, and no response. `revocations`: all clients of an authority
# are refused, until its list of revoked certificates is renewed.
INGEST_TLS_REFUSALS: Final = Declared(
    "sluice_ingest_tls_refusals",
    "Connections refused for their client's certificate, by reason (INGEST_TLS_CLIENT)",
    ("reason",),
)
# Only with OPERATOR_PASSWORD. `missing` is normal: browsers send the password after a first refusal. `wrong` grows: a
# program has an old password, or passwords are being guessed.
INGEST_OPERATOR_REFUSALS: Final = Declared(
    "sluice_ingest_operator_refusals",
    "Requests for what operators see that were refused, by reason (OPERATOR_PASSWORD)",
    ("reason",),
)
# Only with INGEST_KEYS. NaN: this process does not know the keys, and refuses all events with 503.
INGEST_KEYS: Final = Declared("sluice_ingest_keys", "API keys that this process knows; NaN where they are not known")

# Grows: there is a defect; the log of this process has the traceback. The loop goes on. The queue consumer has no
# traceback.
LOOP_FAILURES: Final = Declared(
    "sluice_loop_failures",
    "Turns of a loop of this process (a thread, a timer) that ended with an error; of a worker's queue consumer, how "
    "often it took nothing though messages waited",
    ("loop",),
)

# --- Of a worker --------------------------------------------------------------------------------------------------

# 0 under load: the pool is not running.
WORKER_CHILDREN: Final = Declared("sluice_worker_children", "Processes that run this worker's tasks")
# Growth over hours is a leak; batches need tens of megabytes each.
WORKER_CHILDREN_MEMORY: Final = Declared(
    "sluice_worker_children_resident_memory_bytes", "Memory of a worker's children; what they share is counted in each"
)
# One core each: the CPU limits storing, not PostgreSQL.
WORKER_CHILDREN_CPU: Final = Declared("sluice_worker_children_cpu_seconds", "CPU time of the children that are alive")

# --- Of the whole system: what the control loop decided ----------------------------------------------------------

# The active rate. If it is below the base rate, an operator has set it, or the breaker is open.
RATE_LIMIT: Final = Declared(
    "rate_limiter_rate_limit", "Events admitted a second, effective: override and breaker included"
)
# The rate by the lag alone.
BASE_RATE_LIMIT: Final = Declared("rate_limiter_base_rate_limit", "Events a second that the rate policy decided on")
# The lowest rate that is admitted.
FLOOR_RATE_LIMIT: Final = Declared(
    "rate_limiter_floor_rate_limit", "Events a second at high lag and while the breaker is open"
)
# 1: the rate does not follow the lag until the override ends.
OVERRIDE_ACTIVE: Final = Declared("rate_limiter_override_active", "1 while a rate that an operator set holds")
# 0 while clients get 429: the rate is used up. With ADMISSION_LEVELS, at the reserve of the level that gets 429. Full
# while they do: look for another cause.
AVAILABLE_PERMISSIONS: Final = Declared(
    "rate_limiter_available_permissions", "Events that the bucket would admit at once"
)
# The maximum of the level above.
CAPACITY_PERMISSIONS: Final = Declared(
    "rate_limiter_capacity_permissions", "Events that the full bucket admits at once"
)
# Above a few periods: Beat or the control worker does not run, and the rate does not change.
CONTROLLER_AGE: Final = Declared("sluice_controller_age_seconds", "Seconds since the controller last published a rate")
# Compare the age above with it.
CONTROLLER_PERIOD: Final = Declared(
    "sluice_controller_period_seconds", "Seconds between two ticks of the controller (REGULATE_SECONDS)"
)
# normal, degraded, critical; unknown: no rate was decided yet, or the lag is unknown.
MODE: Final = Declared("sluice_mode", "1 for what the lag means for the rate", ("mode",))
# open: PostgreSQL failed, and consumption is paused.
BREAKER_STATE: Final = Declared(
    "circuit_breaker_state", "1 for the state of the circuit breaker around the sink", ("state",)
)
# The reason why nothing is stored although workers run.
CONSUMPTION_PAUSED: Final = Declared(
    "sluice_consumption_paused", "1 for each reason for which consumption is paused", ("reason",)
)
# What the controller found: for example that the event log has lost events, or lacks replicas. Health has the words.
ALARM_ACTIVE: Final = Declared("sluice_alarm_active", "1 for each alarm that the controller has raised", ("code",))
# The lower threshold for the lag; both thresholds can be changed while the system runs.
LAG_DEGRADED: Final = Declared("sluice_lag_degraded_events", "Lag from which the rate falls")
# The upper threshold for the lag.
LAG_CRITICAL: Final = Declared("sluice_lag_critical_events", "Lag above which the rate is at its lowest")
# Compare it with the base rate: what RATE_POLICY_SHADOW would change. It sees the load that the other policy admits.
SHADOW_RATE_LIMIT: Final = Declared(
    "sluice_shadow_rate_limit", "Events a second that the policy of RATE_POLICY_SHADOW would admit", ("policy",)
)
# Absent while there is no shortage. An account that offers less gets all of it.
ACCOUNT_SHARE: Final = Declared(
    "sluice_share_events_per_second", "Events a second up to which every account gets what it offers (ADMISSION_SHARES)"
)
# What the rate policy takes for the sink's capacity. Only a policy that measures it shows it.
CAPACITY: Final = Declared(
    "sluice_capacity_events_per_second", "Events a second that the sink stores when it is fully used, as measured"
)
# One partition far above the others: its drain is slow, or its key is hot.
DRAIN_SECONDS: Final = Declared(
    "sluice_drain_seconds", "Seconds that the sink needs to store what waits in a partition", ("partition",)
)
# Why the rate is as it is, for any policy. The partition is empty for a value of the whole system.
RATE_POLICY: Final = Declared(
    "sluice_rate_policy_figure",
    "Thresholds, targets and measures of the rate policy (RATE_POLICY), as it explains itself",
    ("policy", "figure", "unit", "partition"),
)

# --- Of the whole system: lag and draining -----------------------------------------------------------------------

# One partition grows alone: its drain is stuck, or its key is hot.
KAFKA_LAG: Final = Declared(
    "kafka_consumer_lag", "Events in the log that are not stored yet, by partition", ("partition",)
)
# The same for the log on Redis Streams.
REDIS_LAG: Final = Declared(
    "redis_stream_consumer_lag", "Events in the log that are not stored yet, by partition", ("partition",)
)
# The rate follows it.
LAG: Final = Declared("sluice_lag_events", "Events in the log that are not stored yet, whichever log it is")
# Compare it with accepted events a second: it shows whether the lag grows.
DRAIN_RATE: Final = Declared("sluice_drain_rate", "Events stored a second, between the controller's last two ticks")
# Above the limit below: nothing is stored, at any size of the lag. Partitions without lag, and paused ones, have none.
NO_PROGRESS_SECONDS: Final = Declared(
    "sluice_no_progress_seconds",
    "Seconds since a partition that has events stored one; 0 for one that has none",
    ("partition",),
)
# Alerts compare the seconds above with it.
NO_PROGRESS_SECONDS_LIMIT: Final = Declared(
    "sluice_no_progress_limit_seconds",
    "Seconds without progress from which health is critical (NO_PROGRESS_SECONDS_MAX)",
)
# The time until the lag is stored, if no more events arrive.
LAG_SECONDS: Final = Declared("sluice_lag_seconds", "Seconds that storing the lag takes at the present pace")
# `conflicting` is a client's mistake: one eventId for two events; the later one becomes a dead letter. `repeated` is a
# client that sent an event again.
DRAINED_EVENTS: Final = Declared("sluice_drained_events", "Events drained from the event log, by result", ("result",))
# `busy` and `paused` are harmless; `sink_away`, `log_away`, `store_away` name the server that failed.
DRAIN_RUNS: Final = Declared("sluice_drain_runs", "Drain runs that have ended, by outcome", ("outcome",))
# Above 0: another program writes into the queues, or versions differ. Tasks are hints: a drop loses no event.
DROPPED_MESSAGES: Final = Declared(
    "sluice_dropped_messages", "Messages of Celery's queues that a worker dropped, by reason", ("reason",)
)
# The end-to-end delay of an event.
RECEIPT_TO_STORE: Final = Declared(
    "sluice_receipt_to_store_seconds",
    "From the receipt of an event by ingest until its batch was stored in the sink",
)
# Small batches under lag: something other than PostgreSQL delays drains.
BATCH_EVENTS: Final = Declared("sluice_batch_events", "Events of one batch")
# Rising at the same batch size: PostgreSQL becomes slower.
BATCH_STORE_SECONDS: Final = Declared("sluice_batch_store_seconds", "From BEGIN to COMMIT of one batch")
# Above 0: look at them, fix the cause, replay.
DEAD_LETTERS: Final = Declared("sluice_dead_letters_open", "Events that the sink refused and no replay has stored")
# Part of the above. Growing: a client uses one eventId for two events, or changes an event before it sends it again.
DEAD_LETTER_CONFLICTS: Final = Declared(
    "sluice_dead_letter_conflicts_open", "Open dead letters whose eventId is stored with other content"
)

# Deleted because of RETENTION_DAYS or DEAD_LETTER_DAYS.
EXPIRED_ROWS: Final = Declared(
    "sluice_expired_rows", "Rows that were deleted because their time was over, by table", ("table",)
)
# Growing: deletion is too slow, or does not run; health says why.
RETENTION_OVERDUE: Final = Declared(
    "sluice_retention_overdue_seconds",
    "How long the oldest event is past RETENTION_DAYS, 0 if it is not. Absent without RETENTION_DAYS, "
    "and if it can't be read",
)

# --- Of the whole system: processes, servers, disks --------------------------------------------------------------

# More starts than expected are restarts.
PROCESS_STARTS: Final = Declared(
    "sluice_process_starts", "Starts of a program; more than one was expected are restarts", ("program",)
)
# Near the limit on the log's server: 503s follow. On the control server: Celery can't send tasks.
REDIS_MEMORY: Final = Declared("sluice_redis_memory_bytes", "Memory that a Redis server of the system uses", ("role",))
# The maximum of the memory above.
REDIS_MEMORY_LIMIT: Final = Declared(
    "sluice_redis_memory_limit_bytes",
    "maxmemory of a Redis server; a log that reaches it refuses events. Absent where there is no limit",
    ("role",),
)
# How fast the table grows.
DATABASE_BYTES: Final = Declared("sluice_database_bytes", "Size of the database")
# Near the limit new workers can't connect.
DATABASE_CONNECTIONS: Final = Declared("sluice_database_connections", "Connections to PostgreSQL that Sluice has open")
# The maximum of the connections above.
DATABASE_CONNECTIONS_LIMIT: Final = Declared(
    "sluice_database_connections_limit", "Connections that PostgreSQL allows, to everybody"
)
# No space left: PostgreSQL or the log stops.
DISK_FREE: Final = Declared(
    "sluice_disk_free_bytes", "Space left on the disk of a watched path (WATCHED_PATHS)", ("path",)
)
# The total of the space above.
DISK_SIZE: Final = Declared("sluice_disk_size_bytes", "Size of the disk of a watched path", ("path",))
# The running version and log: the label distinguishes versions during an update.
BUILD_INFO: Final = Declared("sluice_build_info", "1, with what runs", ("version", "event_log"))

# --- Live objects of an ingest process ---------------------------------------------------------------------------

_APPEND_BOUNDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds
_GROUP_BOUNDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # events

_REFUSALS: Final = (429, 503)


class IngestMetrics:
    """The metrics of one ingest process. It has no gauges of the whole system: every process would add one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.answers = INGEST_ANSWERS.loop_counter(registry)
        self.accepted_answers = self.answers.labels("accepted")  # that of every accepted request, looked up once
        self.accepted = ACCEPTED_EVENTS.loop_counter(registry).labels()
        self.protocol_requests = PROTOCOL_REQUESTS.loop_counter(registry)
        self.protocol_events = PROTOCOL_EVENTS.loop_counter(registry)
        self._answered: dict[tuple[ProtocolName, str, int], Count] = {}  # looking one up by labels takes longer
        # From the start, so that their first growth can be seen.
        self._records: dict[tuple[ProtocolName, RecordOutcome], Count] = {
            (name, outcome): self.protocol_events.labels(name.value, outcome.value)
            for name in OTHER_PROTOCOLS
            for outcome in RecordOutcome
        }
        for name in OTHER_PROTOCOLS:
            self.protocol_requests.labels(name.value, 429)
        self.lease_calls = LEASE_CALLS.live_counter(registry)
        self.append_seconds = APPEND_SECONDS.live_histogram(registry, _APPEND_BOUNDS)
        self.append_group_events = APPEND_GROUP_EVENTS.live_histogram(registry, _GROUP_BOUNDS)
        self.append_waiting_events = APPEND_WAITING_EVENTS.live_gauge(registry)
        self.append_waiting_bytes = APPEND_WAITING_BYTES.live_gauge(registry)
        self.rate = INGEST_RATE.live_gauge(registry)
        self.available_tokens = INGEST_TOKENS.live_gauge(registry)
        self.admission_is_local = INGEST_IS_LOCAL.live_gauge(registry)
        self.log_answers = INGEST_LOG_ANSWERS.live_gauge(registry)
        self.connections = INGEST_CONNECTIONS.live_gauge(registry)
        self.connection_refusals = INGEST_CONNECTION_REFUSALS.live_counter(registry)
        for reason in ConnectionRefusal:  # from the start, so that their first growth can be seen
            self.connection_refusals.labels(reason.value)
        self.held_bodies_bytes = INGEST_HELD_BODIES.live_gauge(registry)
        self.held_accounts = INGEST_HELD_ACCOUNTS.live_gauge(registry)
        self.key_refusals = INGEST_KEY_REFUSALS.loop_counter(registry)
        self.keys = INGEST_KEYS.live_gauge(registry)
        self.operator_refusals = INGEST_OPERATOR_REFUSALS.live_counter(registry)
        self.tls_refusals = INGEST_TLS_REFUSALS.live_counter(registry)

    def show_keys(self) -> None:
        """Show every reason from the start, so that its first growth can be seen."""
        for reason in KeyRefusal:
            self.key_refusals.labels(reason.value)

    def show_tls_refusals(self) -> None:
        """The same for those of clients' certificates."""
        for reason in TlsRefusal:
            self.tls_refusals.labels(reason.value)

    def show_operator_refusals(self) -> None:
        """The same for those of operators' addresses."""
        for reason in OperatorRefusal:
            self.operator_refusals.labels(reason.value)

    def answered(self, protocol: ProtocolName, code: str, status: int) -> Count:
        """What counts the responses of a protocol with a code and a status."""
        found = self._answered.get((protocol, code, status))
        if found is None:
            is_own = protocol is ProtocolName.EVENTS
            found = self.answers.labels(code) if is_own else self.protocol_requests.labels(protocol.value, status)
            self._answered[protocol, code, status] = found
        return found

    def records(self, protocol: ProtocolName, outcome: RecordOutcome) -> Count:
        """What counts the records of another protocol with an outcome."""
        return self._records[protocol, outcome]

    def refused(self, protocol: ProtocolName, code: str, status: int) -> list[Count]:
        """What counts requests of a protocol that are refused with 429 or 503."""
        counters = [self.answered(protocol, code, status)]
        if protocol is not ProtocolName.EVENTS:
            counters.append(self.records(protocol, RecordOutcome.REFUSED))
        return counters


class LevelCounts:
    """Events of one process by level. Written on the event loop; any thread may read it."""

    def __init__(self) -> None:
        self.accepted = dict.fromkeys(Level, 0)
        self.refused: dict[Level | None, int] = {**dict.fromkeys(Level, 0), None: 0}

    def note_accepted(self, level: Level, count: int) -> None:
        """Events of a body that is durable in the event log."""
        self.accepted[level] += count

    def note_refused(self, level: Level | None, count: int) -> None:
        """Events of a body that was refused; of level None if it was refused before its level was known."""
        self.refused[level] += count


class LevelsCollector(Collector):
    """The events of this process by level."""

    def __init__(self, counts: LevelCounts) -> None:
        self._counts = counts

    def describe(self) -> Iterable[Metric]:
        """The metrics that `collect` returns."""
        return [LEVEL_EVENTS.counter()]

    def collect(self) -> Iterator[Metric]:
        """A series for each level and result."""
        family = LEVEL_EVENTS.counter()
        for level, count in self._counts.accepted.items():
            family.add_metric([level.label, "accepted"], count)
        for refused_level, count in self._counts.refused.items():
            family.add_metric(["unknown" if refused_level is None else refused_level.label, "refused"], count)
        yield family


class LoopsCollector(Collector):
    """How often each loop of this process failed."""

    def __init__(self, failures: Callable[[], Mapping[LoopName, int]]) -> None:
        self._failures = failures

    def describe(self) -> Iterable[Metric]:
        """The metrics that `collect` returns."""
        return [LOOP_FAILURES.counter()]

    def collect(self) -> Iterator[Metric]:
        """A series for each loop."""
        family = LOOP_FAILURES.counter()
        for name, count in self._failures().items():
            family.add_metric([name.value], count)
        yield family


def answers_by_status(metrics: IngestMetrics, status_of: Callable[[str], int]) -> dict[int, float]:
    """The number of answers of this process in all protocols, by HTTP status."""
    by_status: dict[int, float] = {}
    for (code,), count in metrics.answers.counts().items():
        by_status[status_of(code)] = by_status.get(status_of(code), 0.0) + count
    for (_, status), count in metrics.protocol_requests.counts().items():
        by_status[int(status)] = by_status.get(int(status), 0.0) + count
    return by_status


class RequestsByStatus(Collector):
    """Responses to requests with events by HTTP status, calculated from those by code: counted once, shown twice.

    `beyond_first` returns how many events of refused bodies were read, without the first event of each body.
    """

    def __init__(
        self, metrics: IngestMetrics, status_of: Callable[[str], int], beyond_first: Callable[[], int]
    ) -> None:
        self._metrics = metrics
        self._status_of = status_of
        self._beyond_first = beyond_first

    def describe(self) -> Iterable[Metric]:
        """The metrics that `collect` returns."""
        return [HTTP_REQUESTS.counter(), REFUSED_EVENTS.counter(0)]

    def collect(self) -> Iterator[Metric]:
        """A series for each response status, and the number of refused events."""
        by_status = answers_by_status(self._metrics, self._status_of)
        requests = HTTP_REQUESTS.counter()
        for status, count in sorted(by_status.items()):
            requests.add_metric([str(status)], count)
        yield requests
        refused = sum(by_status.get(status, 0.0) for status in _REFUSALS) + self._beyond_first()
        yield REFUSED_EVENTS.counter(refused)
