"""Every setting: name, default, unit, limits and why. The only place that reads the environment.

The object is frozen and passed in; see `Settings.from_environ`. A setting's name in the environment is its field's
name in capitals.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_type_hints
from urllib.parse import urlsplit

from pipeline.errors import SettingsError
from pipeline.logs import FORMATS, LEVELS

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
    """A field with its explanation, inclusive limits or possible words, and when one would change it."""
    return dataclasses.field(
        default=default, metadata={"why": why, "low": low, "high": high, "choices": choices, "when": when}
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of all processes. Units are last in a name."""

    # --- Where the servers are -----------------------------------------------------------------
    database_url: str = _setting("postgresql://localhost:5432/sluice", "PostgreSQL, the sink")
    redis_url: str = _setting("redis://localhost:6379/0", "Redis for Celery's queues, the bucket and control state")
    event_log_url: str = _setting(
        "redis://localhost:6380/0",
        "The event log: redis://… (a server of its own: at its memory limit it refuses writes) or kafka://host:port,…",
    )
    key_prefix: str = _setting("sluice:", "Before every Redis key, so that two systems can share a server")

    # --- What processes say ----------------------------------------------------------------------
    log_level: str = _setting("INFO", "The least that is logged; DEBUG names each request and batch", choices=LEVELS)
    log_format: str = _setting("human", "Lines for people, or one JSON object a line", choices=FORMATS)

    # --- Ingest: HTTP ------------------------------------------------------------------------------
    ingest_host: str = _setting("127.0.0.1", "Address that ingest listens on; there is no authentication in ingest")
    ingest_port: int = _setting(8080, "Port of ingest, shared by all its processes", low=1, high=65535)
    ingest_url: str = _setting("", "Where the client finds ingest; empty: http:// with INGEST_HOST and INGEST_PORT")
    ingest_metrics_port: int = _setting(
        0, "Port of one ingest process' own metrics; 0: none beside /metrics", low=0, high=65535
    )
    body_bytes_max: int = _setting(1 << 20, "Largest body, after inflating", low=1024, high=64 << 20)
    body_events_max: int = _setting(1000, "Most events in one body", low=1, high=100_000)
    request_seconds_max: float = _setting(
        10.0, "Total time for headers and body to arrive; a trickling client is cut off", low=0.1, high=600
    )
    ingest_connections_max: int = _setting(
        2000, "Open connections of one ingest process; further ones get a 503", low=1, high=1_000_000
    )
    stop_seconds_max: float = _setting(
        10.0, "Time for running requests to end and the appender to be flushed at shutdown", low=0.1, high=600
    )

    # --- Ingest: append ------------------------------------------------------------------------------
    append_group_events_max: int = _setting(
        500, "Events gathered into one append; more only lengthens the server's stall", low=1, high=10_000
    )
    append_group_seconds_max: float = _setting(
        0.002, "How long the first event of a group waits for company", low=0.0, high=1.0
    )
    append_buffer_events_max: int = _setting(
        10_000, "Events waiting for the log in one process; beyond it 503", low=1, high=1_000_000
    )
    append_buffer_bytes_max: int = _setting(
        32 << 20, "Bytes waiting for the log in one process; beyond it 503", low=1 << 20, high=1 << 30
    )
    append_seconds_max: float = _setting(1.0, "How long a caller waits for its append; then 503", low=0.05, high=30)

    # --- Event log ---------------------------------------------------------------------------------------
    log_partitions: int = _setting(4, "Partitions of a new log: the most drains that run at once", low=1, high=64)
    log_topic: str = _setting("sluice-events", "Kafka topic")
    log_trim: bool = _setting(True, "Redis Streams: drop entries once they are in PostgreSQL")
    log_entries_max: int = _setting(
        2_000_000,
        "Redis Streams: entries of all partitions beyond which an append is refused where maxmemory is 0",
        low=1,
        high=1_000_000_000,
    )
    kafka_replication: int = _setting(1, "Replicas of a new topic; 3 in a real cluster", low=1, high=9)
    kafka_group: str = _setting("sluice", "Kafka consumer group under which stored offsets show in everybody's tools")
    kafka_fetch_bytes_max: int = _setting(
        4 << 20,
        "Bytes that one read fetches ahead, for each partition that a process drains",
        low=1 << 20,
        high=256 << 20,
    )
    kafka_retention_accepted: bool = _setting(
        False, "Take an existing topic that deletes records by age or size, whether they are stored or not"
    )

    # --- Drain -----------------------------------------------------------------------------------------------
    drain_batch_records_max: int = _setting(
        5000, "Records stored in one transaction: what is done again after a crash", low=1, high=100_000
    )
    drain_batch_bytes_max: int = _setting(
        8 << 20,
        "Bytes of records stored in one transaction; PostgreSQL must take them within its allowed silence",
        low=1 << 16,
        high=256 << 20,
    )
    drain_run_seconds_max: float = _setting(
        10.0, "Length of one drain task; then it hands over to its own next hint", low=0.1, high=300
    )
    drain_poll_seconds: float = _setting(
        1.0, "How long one read waits for new records; also how soon a pause is noticed", low=0.01, high=10
    )
    drain_hard_seconds_max: float = _setting(
        40.0, "A drain task that runs for longer is killed: it can only be frozen", low=1, high=3600
    )
    drain_stalled_seconds_max: float = _setting(
        15.0, "regulate ends a backend that holds a partition with lag for so long without progress", low=1, high=3600
    )
    poison_run_records_max: int = _setting(
        200,
        "Dead letters in a run of batches, each with more than the ratio of them, that pause consumption",
        low=1,
        high=100_000,
    )
    poison_ratio_max: float = _setting(0.5, "Share of dead letters in one batch, see above", low=0.01, high=1.0)
    sink_connect_seconds_max: int = _setting(2, "Time to connect to PostgreSQL", low=1, high=60)
    sink_call_seconds_max: float = _setting(
        2.0,
        "Silence of PostgreSQL after which its socket is shut down (a frozen server never answers)",
        low=0.1,
        high=60,
    )

    # --- Control loop ------------------------------------------------------------------------------------------
    rate_max: float = _setting(1000.0, "Admitted rate at low lag, events/s", low=1, high=10_000_000)
    rate_min: float = _setting(
        100.0, "Admitted rate at high lag and while the breaker is open, events/s", low=1, high=10_000_000
    )
    lag_degraded: int = _setting(10_000, "Lag from which the rate falls, events", low=1, high=1_000_000_000)
    lag_critical: int = _setting(50_000, "Lag above which the rate is at its floor, events", low=1, high=1_000_000_000)
    regulate_seconds: float = _setting(5.0, "Period of the control loop", low=0.1, high=300)
    rate_hold_periods: int = _setting(
        6,
        "Periods for which the last rate holds while lag or controller are away; then it halves each period",
        low=1,
        high=1000,
    )
    burst_seconds: float = _setting(1.0, "What the full bucket holds, in seconds of the rate", low=0.01, high=60)
    lease_seconds: float = _setting(
        0.03, "What an ingest process takes from the bucket at once, in seconds of the rate", low=0.001, high=1
    )
    control_events_max: int = _setting(1000, "Control events kept", low=10, high=1_000_000)
    breaker_failures_max: int = _setting(
        5, "Consecutive failures of PostgreSQL that open the breaker", low=1, high=1000
    )
    probe_seconds: float = _setting(2.0, "Period of the prober while the breaker is open", low=0.1, high=300)
    hint_seconds: float = _setting(1.0, "Period of the net of drain hints", low=0.1, high=60)
    pause_reconcile_seconds: float = _setting(
        0.2, "How often a worker compares its consumer with the reasons to pause", low=0.05, high=60
    )

    # --- Celery ----------------------------------------------------------------------------------------------------
    visibility_timeout_seconds: int = _setting(60, "Celery's broker visibility time-out", low=5, high=86_400)

    def __post_init__(self) -> None:
        problems = [*_limit_problems(self), *_cross_problems(self)]
        if problems:
            raise SettingsError("settings that make no sense: " + "; ".join(problems))

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings; a variable that is unset or empty takes its default.

        Raises SettingsError, which names every variable that is wrong, its value and what it takes.
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
        if problems:
            raise SettingsError("settings that make no sense: " + "; ".join(problems))
        return cls(**values)

    @property
    def log_scheme(self) -> str:
        """`redis` or `kafka`: the event log's kind."""
        return urlsplit(self.event_log_url).scheme


_KIND_WORDS: Final[dict[type, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "yes or no",
    str: "text",
}


def _parse(text: str, kind: type) -> Any:
    """A setting's value from its text; ValueError where it is none."""
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
    """Values outside their own limits; NaN is outside any."""
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
    if settings.log_scheme not in ("redis", "rediss", "kafka"):
        problems.append(f"EVENT_LOG_URL={settings.event_log_url!r} begins with neither redis:// nor kafka://")
    for name in ("database_url", "redis_url"):
        if not urlsplit(getattr(settings, name)).scheme:
            problems.append(f"{name.upper()}={getattr(settings, name)!r} is not a URL")
    return problems
