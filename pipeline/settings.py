"""Every setting: name, default, unit, limits and reason. The only module that reads the environment.

The object is frozen and passed in; see `Settings.from_environ`. A setting's name in the environment is its field's
name in capitals.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_type_hints
from urllib.parse import urlsplit

from pipeline.errors import SettingsError
from pipeline.logs import FORMATS, LEVELS
from pipeline.names import SinkName
from pipeline.running import nothing_to_ask, with_running_system
from pipeline.secrets import url_problem

_LIBPQ: Final = re.compile(r"PG[A-Z]+")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


def _setting(
    default: Any,
    why: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    when: str = "",
) -> Any:
    """A field with its explanation, inclusive limits or allowed words, and when to change it."""
    return dataclasses.field(
        default=default, metadata={"why": why, "low": low, "high": high, "choices": choices, "when": when}
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of all processes. The unit is the last part of a name."""

    # --- Where the servers are -----------------------------------------------------------------
    database_url: str = _setting(
        "postgresql://localhost:5432/sluice",
        "PostgreSQL, the sink",
        when="always in production; the user needs to own the schema, or to have been given its tables",
    )
    redis_url: str = _setting(
        "redis://localhost:6379/0",
        "Redis for Celery's queues, the bucket and control state",
        when="always in production; a server of its own, which may lose its memory without losing an event",
    )
    event_log_url: str = _setting(
        "redis://localhost:6380/0",
        "The event log: redis://… (a server of its own: at its memory limit it refuses writes) or kafka://host:port,…",
        when="always in production; Kafka where one Redis server is outgrown, or a log must survive its machine",
    )
    event_sink_url: str = _setting(
        "",
        "Where events are stored; empty: in PostgreSQL (DATABASE_URL); file:///folder: in files of JSON Lines. "
        "PostgreSQL still keeps what operators set (docs/archive.md)",
        when="events only go into an archive, and all processes of Sluice run on one machine",
    )
    key_prefix: str = _setting(
        "sluice:",
        "Before every Redis key, so that two systems can share a server",
        when="two systems on one Redis server",
    )

    # --- Log lines -------------------------------------------------------------------------------
    log_level: str = _setting(
        "INFO",
        "The least that is logged; DEBUG names each request and batch",
        choices=LEVELS,
        when="DEBUG while an event is followed through the system, or a defect is looked for",
    )
    log_format: str = _setting(
        "human",
        "Lines for people, or one JSON object a line",
        choices=FORMATS,
        when="json where a collector reads the lines",
    )

    # --- Ingest: HTTP ------------------------------------------------------------------------------
    ingest_host: str = _setting(
        "127.0.0.1",
        "Address that ingest listens on; there is no authentication in ingest",
        when="0.0.0.0 in a container, or behind a proxy that authenticates",
    )
    ingest_port: int = _setting(
        8080, "Port of ingest, shared by all its processes", low=1, high=65535, when="another program has the port"
    )
    ingest_url: str = _setting(
        "",
        "Where the client finds ingest; empty: http:// with INGEST_HOST and INGEST_PORT",
        when="the client of this package runs on another machine than ingest",
    )
    ingest_metrics_port: int = _setting(
        0,
        "Port of one ingest process' own metrics; 0: none beside /metrics",
        low=0,
        high=65535,
        when="several ingest processes share a port: each needs one of its own to be scraped on",
    )
    body_bytes_max: int = _setting(
        1 << 20,
        "Largest body, after inflating",
        low=1024,
        high=64 << 20,
        when="clients have larger batches; memory for a body is taken up to four times",
    )
    body_events_max: int = _setting(
        1000,
        "Most events in one body",
        low=1,
        high=100_000,
        when="clients have larger batches; one of them passes the bucket as a whole",
    )
    event_time_min_ms: int = _setting(
        100_000_000_000,
        "Earliest `timestamp` of an event, epoch milliseconds: 1973; an earlier one was most likely sent in seconds",
        low=0,
        high=253_402_300_799_999,
        when="0 where events really are from 1970 to 1973",
    )
    bodies_bytes_max: int = _setting(
        64 << 20,
        "Bytes of bodies that one ingest process receives and has not yet appended; beyond it, 503 above 16 KiB",
        low=1 << 20,
        high=64 << 30,
        when="many clients send large bodies on slow lines: events take up to four times as much for a moment",
    )
    hard_bodies_bytes_max: int = _setting(
        16 << 20,
        "Bytes of bodies that wait for the slow path (they break a rule, or hold what is rare); beyond it 503",
        low=1 << 20,
        high=1 << 30,
        when="BODY_BYTES_MAX is raised: several of the largest bodies should have room",
    )
    request_seconds_max: float = _setting(
        10.0,
        "Total time for headers and body to arrive; a trickling client is cut off",
        low=0.1,
        high=600,
        when="clients on slow lines are cut off with 408; lower it against slow floods",
    )
    ingest_connections_max: int = _setting(
        2000,
        "Open connections of one ingest process; further ones get a 503",
        low=1,
        high=1_000_000,
        when="clients get 503 for connections; raise the limit of open files with it",
    )
    page_viewers_max: int = _setting(
        20,
        "Live pages that may look at one ingest process at once; further ones are told so",
        low=0,
        high=1000,
        when="0 to have no stream at all; each open page costs one message a second",
    )
    stop_seconds_max: float = _setting(
        10.0,
        "Time for running requests to end and the appender to be flushed at shutdown",
        low=0.1,
        high=600,
        when="the platform kills sooner than that, or requests take longer",
    )

    # --- Ingest: append ------------------------------------------------------------------------------
    append_group_events_max: int = _setting(
        500,
        "Events gathered into one append; more only lengthens the server's stall",
        low=1,
        high=10_000,
        when="rarely: `./bench.sh --only M1,M2` shows what it does",
    )
    append_group_seconds_max: float = _setting(
        0.002,
        "How long the first event of a group waits for company",
        low=0.0,
        high=1.0,
        when="lower for latency at little load, higher for less CPU at much",
    )
    append_buffer_events_max: int = _setting(
        10_000,
        "Events waiting for the log in one process; beyond it 503",
        low=1,
        high=1_000_000,
        when="503 while the log only hesitates: more memory for fewer refusals",
    )
    append_buffer_bytes_max: int = _setting(
        32 << 20,
        "Bytes waiting for the log in one process; beyond it 503",
        low=1 << 20,
        high=1 << 30,
        when="as above, where events are large",
    )
    append_seconds_max: float = _setting(
        1.0,
        "How long a caller waits for its append; then 503",
        low=0.05,
        high=30,
        when="the log is far away or slow, and clients rather wait than repeat",
    )

    # --- Event log ---------------------------------------------------------------------------------------
    log_partitions: int = _setting(
        4,
        "Partitions of a new log: the most drains that run at once",
        low=1,
        high=64,
        when="before the first start: a PostgreSQL that takes more drains at once; a log keeps its number",
    )
    log_topic: str = _setting("sluice-events", "Kafka topic", when="two systems on one Kafka cluster")
    log_trim: bool = _setting(
        True,
        "Redis Streams: drop entries once they are in PostgreSQL",
        when="no, to look at stored events in the log while a defect is looked for; its memory then only grows",
    )
    log_entries_max: int = _setting(
        2_000_000,
        "Redis Streams: entries of all partitions beyond which an append is refused where maxmemory is 0",
        low=1,
        high=1_000_000_000,
        when="the machine has the memory for a longer outage, and maxmemory is not set",
    )
    kafka_replication: int = _setting(
        1,
        "Replicas of a new topic; 3 in a real cluster",
        low=1,
        high=9,
        when="3 wherever an event must survive the loss of a broker, before the topic is made",
    )
    kafka_group: str = _setting(
        "sluice",
        "Kafka consumer group under which stored offsets show in everybody's tools",
        when="two systems on one topic",
    )
    kafka_fetch_bytes_max: int = _setting(
        4 << 20,
        "Bytes that one read fetches ahead, for each partition that a process drains",
        low=1 << 20,
        high=256 << 20,
        when="batches are far larger or memory is scarce: it is taken once a partition and process",
    )
    kafka_retention_accepted: bool = _setting(
        False,
        "Take an existing topic that deletes records by age or size, whether they are stored or not",
        when="the topic is somebody else's, and its retention is longer than any outage",
    )

    # --- Drain -----------------------------------------------------------------------------------------------
    drain_batch_records_max: int = _setting(
        5000,
        "Records stored in one transaction: what is done again after a crash",
        low=1,
        high=100_000,
        when="lower where PostgreSQL is slow enough for SINK_CALL_SECONDS_MAX, higher for fewer commits",
    )
    drain_batch_bytes_max: int = _setting(
        8 << 20,
        "Bytes of records stored in one transaction; PostgreSQL must take them within its allowed silence",
        low=1 << 16,
        high=256 << 20,
        when="as above, where events are large",
    )
    drain_careful_records_max: int = _setting(
        500,
        "Records stored in one transaction where PostgreSQL refuses some of them: each is tried alone, then committed",
        low=1,
        high=100_000,
        when="rarely: lower where triggers or constraints take milliseconds a row",
    )
    drain_run_seconds_max: float = _setting(
        10.0,
        "Length of one drain task; then it hands over to its own next hint",
        low=0.1,
        high=300,
        when="lower for a worker that stops sooner; each run costs a task",
    )
    drain_poll_seconds: float = _setting(
        1.0,
        "How long one read waits for new records; also how soon a pause is noticed",
        low=0.01,
        high=10,
        when="rarely: reads return as soon as something comes",
    )
    drain_hard_seconds_max: float = _setting(
        40.0,
        "A drain task that runs for longer is killed: it can only be frozen",
        low=1,
        high=3600,
        when="with DRAIN_RUN_SECONDS_MAX, always well above it",
    )
    drain_stalled_seconds_max: float = _setting(
        15.0,
        "regulate ends a backend that holds a partition with lag for so long without progress",
        low=1,
        high=3600,
        when="a healthy but slow PostgreSQL loses drainers: raise it",
    )
    poison_run_records_max: int = _setting(
        200,
        "Dead letters in a run of batches, each with more than the ratio of them, that pause consumption",
        low=1,
        high=100_000,
        when="one producer's bad records should pause everything sooner, or later",
    )
    poison_ratio_max: float = _setting(
        0.5, "Share of dead letters in one batch, see above", low=0.01, high=1.0, when="as above"
    )
    poison_condemned_records_max: int = _setting(
        10,
        "Records kept as dead letters since storing them fails each time with an error of the database's set-up; one "
        "more stops their partition. Good records between them do not reset the count: ten thousand take one off",
        low=1,
        high=100_000,
        when="a trigger or function is known to fail for a few records, and stays as it is",
    )
    sink_connect_seconds_max: int = _setting(
        2, "Time to connect to PostgreSQL", low=1, high=60, when="PostgreSQL is far away"
    )
    sink_call_seconds_max: float = _setting(
        2.0,
        "Silence of PostgreSQL after which its socket is shut down (a frozen server never answers)",
        low=0.1,
        high=60,
        when="a healthy PostgreSQL is slower than that at its worst; the breaker opens later for it",
    )

    # --- Control loop ------------------------------------------------------------------------------------------
    rate_policy: str = _setting(
        "bands",
        "What the admitted rate follows. bands: the lag in events, between LAG_DEGRADED and LAG_CRITICAL. drain_time: "
        "what PostgreSQL stores; it changes the defaults of RATE_MAX to 50000 and of REGULATE_SECONDS to 1",
        choices=("bands", "drain_time"),
        when="drain_time where the capacity of PostgreSQL is not known or changes; set it for every process",
    )
    rate_policy_shadow: str = _setting(
        "",
        "A second rate policy that decides beside the first and admits nothing: metrics and page show its rate",
        choices=("", "bands", "drain_time"),
        when="before RATE_POLICY is changed: to see what the other policy would do with the same load",
    )
    drain_target_seconds: float = _setting(
        2.0,
        "drain_time: time within which the events that wait in the log should be stored",
        low=0.2,
        high=60,
        when="higher where batches take seconds; lower for fresher events at the price of some throughput",
    )
    rate_max: float = _setting(
        1000.0,
        "bands: admitted rate at low lag, events/s. drain_time: the highest rate, only for safety (50000)",
        low=1,
        high=10_000_000,
        when="first of all: what the sink takes for hours, with some reserve",
    )
    rate_min: float = _setting(
        100.0,
        "Admitted rate at high lag and while the breaker is open, events/s",
        low=1,
        high=10_000_000,
        when="what the sink takes at its worst, so that a backlog still shrinks",
    )
    lag_degraded: int = _setting(
        10_000,
        "Lag from which the rate falls, events",
        low=1,
        high=1_000_000_000,
        when="with RATE_MAX: ten seconds of it is the default's measure",
    )
    lag_critical: int = _setting(
        50_000,
        "Lag above which the rate is at its lowest, events",
        low=1,
        high=1_000_000_000,
        when="with LAG_DEGRADED: how much lag is still acceptable",
    )
    regulate_seconds: float = _setting(
        5.0,
        "Period of the control loop; 1 with RATE_POLICY=drain_time",
        low=0.1,
        high=300,
        when="the lag swings: lower; it also is the age at which health doubts the controller (three periods)",
    )
    rate_hold_seconds: float = _setting(
        30.0,
        "Time for which the last rate holds while the lag is unknown or the controller is silent; then it halves",
        low=0.1,
        high=86_400,
        when="how long clients may be served at the old rate while the lag is unknown",
    )
    rate_halving_seconds: float = _setting(
        5.0,
        "Time in which the rate halves after that, again and again, down to RATE_MIN",
        low=0.1,
        high=86_400,
        when="with RATE_HOLD_SECONDS: a slower or a faster fall",
    )
    rate_hold_periods: int = _setting(
        0,
        "RATE_HOLD_SECONDS in periods of the control loop, as earlier versions count; the rate then halves each period",
        low=0,
        high=1000,
        when="never: 0 lets RATE_HOLD_SECONDS and RATE_HALVING_SECONDS decide; the next version ignores this setting",
    )
    no_progress_seconds_max: float = _setting(
        30.0,
        "Health is critical where a partition with events has stored none for so long, unless it is paused",
        low=1,
        high=3600,
        when="a batch may take longer than that; the lag is looked at once in each REGULATE_SECONDS",
    )
    clock_difference_seconds_max: float = _setting(
        1.0,
        "Health is degraded where a process' clock or PostgreSQL's is further from the control store's; only shown",
        low=0.1,
        high=86_400,
        when="hosts whose clocks can't be synchronised better: nothing is decided by it",
    )
    refused_ratio_max: float = _setting(
        0.05,
        "Health is degraded where a larger share of the offered events was refused",
        low=0.0,
        high=1.0,
        when="clients are meant to be refused often: 1 never says so",
    )
    refused_seconds: float = _setting(
        60.0,
        "Time over which that share is counted",
        low=1,
        high=600,
        when="short bursts should be reported, or should not be",
    )
    burst_seconds: float = _setting(
        1.0,
        "What the full bucket holds, in seconds of the rate",
        low=0.01,
        high=60,
        when="clients send in bursts that are refused, and the sink can take them",
    )
    lease_seconds: float = _setting(
        0.03,
        "What an ingest process takes from the bucket at once, in seconds of the rate",
        low=0.001,
        high=1,
        when="many ingest processes at a low rate: the tokens of a lease are for one process only",
    )
    ingest_processes_max: int = _setting(
        8,
        "Most ingest processes of all hosts together. Without Redis, one that has just started admits this part of the "
        "rate, or of RATE_MIN if it knows no rate",
        low=1,
        high=100_000,
        when="more run: without Redis they would admit more than RATE_MIN together. Lower it if fewer run",
    )
    control_events_max: int = _setting(
        1000, "Control events kept", low=10, high=1_000_000, when="more history for a post-mortem; about 300 bytes each"
    )
    breaker_failures_max: int = _setting(
        5,
        "Consecutive failures of PostgreSQL that open the breaker",
        low=1,
        high=1000,
        when="a flapping network opens the breaker too easily",
    )
    probe_seconds: float = _setting(
        2.0,
        "Period of the prober while the breaker is open",
        low=0.1,
        high=300,
        when="lower to resume sooner, higher to spare a PostgreSQL that is coming up",
    )
    probe_wait_seconds_max: float = _setting(
        30.0,
        "The longest wait before a probe, if the breaker opened repeatedly and no event was stored between",
        low=0.1,
        high=3600,
        when="lower to resume sooner after a long time in which small writes passed and batches failed",
    )
    hint_seconds: float = _setting(
        1.0,
        "Period of the net of drain hints",
        low=0.1,
        high=60,
        when="rarely: it only matters where a drain's own hint was lost",
    )
    queue_untaken_seconds_max: float = _setting(
        5.0,
        "A worker connects to its queue anew where messages wait, it is not paused and takes none for so long",
        low=4,  # its event loop may wait 3 s for a remote command
        high=3600,
        when="rarely: after as long again it ends, and its supervisor starts it again",
    )
    pause_reconcile_seconds: float = _setting(
        0.2,
        "How often a worker compares its consumer with the reasons to pause",
        low=0.05,
        high=60,
        when="rarely: it is how long a worker goes on after a pause",
    )

    override_seconds: float = _setting(
        600.0,
        "How long an override holds if the command does not say for how long",
        low=1,
        high=86_400,
        when="rarely: give the time with the command",
    )
    override_seconds_max: float = _setting(
        86_400.0,
        "The longest time for an override",
        low=1,
        high=31_536_000,
        when="a planned limit holds for longer: then RATE_MAX is the better place",
    )
    override_rate_max: float = _setting(
        10_000.0,
        "The highest rate of an override; RATE_MAX if that is higher",
        low=1,
        high=10_000_000,
        when="with RATE_MAX: what the log takes at most",
    )

    # --- Metrics -----------------------------------------------------------------------------------------------
    metrics_host: str = _setting(
        "127.0.0.1",
        "Address on which workers, and ingest processes with a port of their own, serve metrics",
        when="0.0.0.0 in a container: Prometheus runs in another one",
    )
    worker_metrics_port: int = _setting(
        0,
        "Port on which a worker serves metrics; on the control worker those of the whole system too; 0: none",
        low=0,
        high=65535,
        when="always where there is a Prometheus; one for each worker of a machine",
    )
    measure_seconds: float = _setting(
        15.0,
        "Period in which size, connections and open dead letters are read from PostgreSQL",
        low=1,
        high=50,
        when="rarely: it is how old these metrics may be",
    )
    watched_paths: str = _setting(
        "",
        "Folders, with commas between, whose disks' free space the control worker shows",
        when="the servers' disks can be seen from where the control worker runs",
    )

    # --- Celery ----------------------------------------------------------------------------------------------------
    visibility_timeout_seconds: int = _setting(
        60, "Celery's broker visibility time-out", low=5, high=86_400, when="with DRAIN_HARD_SECONDS_MAX, above it"
    )

    def __post_init__(self) -> None:
        problems = [*_limit_problems(self), *_cross_problems(self)]
        if problems:
            raise SettingsError("invalid settings: " + "; ".join(problems))

    @classmethod
    def for_commands(cls) -> "Settings":
        """The settings for a command in a shell: if the shell has no addresses, those of the system that runs here.

        Raises SettingsError, as `from_environ` does.
        """
        return cls.from_environ(with_running_system(os.environ))

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings; a variable that is unset or empty takes its default.

        Raises SettingsError, which names every wrong variable, its value and the allowed values.
        """
        source = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        problems: list[str] = []
        for name, kind in get_type_hints(cls).items():
            text = source.get(name.upper(), "").strip()
            if not text:
                continue
            try:
                values[name] = _parse(text, kind)
            except ValueError:
                problems.append(f"{name.upper()}={text!r} is not {_KIND_WORDS[kind]}")
        for name, value in _DEFAULTS_OF_POLICY.get(values.get("rate_policy", ""), {}).items():
            values.setdefault(name, value)
        if problems:
            raise SettingsError("invalid settings: " + "; ".join(problems))
        return cls(**values)

    def of_shadow(self) -> "Settings":
        """The settings for the policy of RATE_POLICY_SHADOW: a RATE_MAX that was left out is that policy's own."""
        own, other = (_DEFAULTS_OF_POLICY.get(name, {}) for name in (self.rate_policy, self.rate_policy_shadow))
        default = Settings.rate_max
        is_default = self.rate_max == own.get("rate_max", default)
        rate_max = other.get("rate_max", default) if is_default else self.rate_max
        return dataclasses.replace(self, rate_policy=self.rate_policy_shadow, rate_policy_shadow="", rate_max=rate_max)

    @property
    def log_scheme(self) -> str:
        """`redis` or `kafka`: the event log's kind."""
        return urlsplit(self.event_log_url).scheme

    @property
    def sink_name(self) -> SinkName:
        """The name of the sink that is in use, for messages."""
        return SinkName.ARCHIVE if self.event_sink_url else SinkName.POSTGRESQL


# Other defaults for a rate policy: for values that the environment leaves out.
_DEFAULTS_OF_POLICY: Final[dict[str, dict[str, float]]] = {
    "drain_time": {"rate_max": 50_000.0, "regulate_seconds": 1.0}
}

# A folder with an absolute path, on this machine.
_FOLDER_URL: Final = re.compile(r"file://(localhost)?/[^?#]+")
# The allowed schemes of each server's URL. REDIS_URL is Celery's broker too.
_SCHEMES: Final = {
    "database_url": ("postgresql", "postgres"),
    "redis_url": ("redis", "rediss"),
    "event_log_url": ("redis", "rediss", "kafka"),
}
_KIND_WORDS: Final[dict[type, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "yes or no",
    str: "text",
}


def no_system_to_ask() -> str | None:
    """The reason why a command in this shell has no system to read, in one line; None if it has one."""
    return nothing_to_ask(os.environ)


# What libpq may still take from the environment: a password that should not be part of a URL.
_LIBPQ_KEPT: Final = frozenset({"PGPASSWORD", "PGPASSFILE"})


def ignore_variables_of_others() -> str | None:
    """Remove variables with which Celery and libpq would override our settings; returns a line that names them.

    Another application's CELERY_BROKER_URL in the shell would send our tasks to its broker, and the prefix CELERY_ sets
    each option of the command line. PGSERVICE, PGHOSTADDR or PGOPTIONS would select another database than DATABASE_URL,
    or change how it behaves. Sluice takes all that it needs from its settings or the command line.
    """
    found = sorted(
        name
        for name in os.environ
        if name.startswith("CELERY_") or (_LIBPQ.fullmatch(name) and name not in _LIBPQ_KEPT)
    )
    for name in found:
        del os.environ[name]
    if not found:
        return None
    told = f"ignored, since Sluice's settings decide (docs/settings.md): {', '.join(found)}"
    if any(_LIBPQ.fullmatch(name) for name in found):
        told += "; settings of PostgreSQL's client belong into DATABASE_URL, as in ?sslmode=require"
    return told


def _parse(text: str, kind: type) -> Any:
    """A setting's value from its text; raises ValueError if the text is no such value."""
    if kind is bool:
        lowered = text.lower()
        if lowered not in _TRUE | _FALSE:
            raise ValueError(text)
        return lowered in _TRUE
    if kind is int:
        return int(text)
    if kind is float:
        return float(text)
    return text


def _limit_problems(settings: Settings) -> list[str]:
    """Values outside their own limits; NaN is outside any limits."""
    problems = []
    for field in dataclasses.fields(settings):
        low, high, choices = field.metadata["low"], field.metadata["high"], field.metadata["choices"]
        value = getattr(settings, field.name)
        if choices is not None and value not in choices:
            problems.append(f"{field.name.upper()}={value!r} is none of {', '.join(choices)}")
        if low is None:
            continue
        if not low <= value <= high:
            problems.append(f"{field.name.upper()}={value} is not between {low} and {high}")
    return problems


_TOPIC_NAME: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


def _cross_problems(settings: Settings) -> list[str]:
    """Values that contradict each other."""
    problems = []
    if settings.rate_min > settings.rate_max:
        problems.append(f"RATE_MIN={settings.rate_min} is above RATE_MAX={settings.rate_max}")
    if settings.lag_degraded >= settings.lag_critical:
        problems.append(f"LAG_DEGRADED={settings.lag_degraded} is not below LAG_CRITICAL={settings.lag_critical}")
    if settings.drain_hard_seconds_max <= settings.drain_run_seconds_max:
        problems.append(
            f"DRAIN_HARD_SECONDS_MAX={settings.drain_hard_seconds_max} is not above "
            f"DRAIN_RUN_SECONDS_MAX={settings.drain_run_seconds_max}"
        )
    if settings.lease_seconds > settings.burst_seconds:
        problems.append(f"LEASE_SECONDS={settings.lease_seconds} is above BURST_SECONDS={settings.burst_seconds}")
    for name, schemes in _SCHEMES.items():
        problem = url_problem(getattr(settings, name), schemes)
        if problem is not None:
            problems.append(f"{name.upper()} {problem}")  # without the URL: it may hold a password
    if settings.event_sink_url and not _FOLDER_URL.fullmatch(settings.event_sink_url):
        problems.append(f"EVENT_SINK_URL={settings.event_sink_url!r} is neither empty nor file:///, then a folder")
    if settings.log_scheme == "kafka" and not _TOPIC_NAME.fullmatch(settings.log_topic):
        problems.append(
            f"LOG_TOPIC={settings.log_topic!r} is no name of a Kafka topic: 1 to 249 letters, digits, dots, hyphens "
            "and underscores, and not . or .."
        )
    return problems
