"""The event log, on Redis Streams or Kafka."""

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.running import IS_CHECKOUT
from pipeline.settings.field import setting
from pipeline.settings.servers import ServerSettings

_REPLICATED_FROM: Final = 2  # copies
_TOPIC_NAME: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True, kw_only=True)
class EventLogSettings(ServerSettings):
    """Partitions, copies and the content of the event log."""

    log_partitions: int = setting(
        4,
        "Partitions of a new log; at most this number of drains run at once, and at most DRAINS_MAX",
        unit="partitions",
        low=1,
        high=256,
        when="before the first start, if the sink can serve more drains at once. A log keeps its number of partitions",
    )
    log_topic: str = setting(
        "sluice-events",
        "Kafka topic",
        when="two systems use one Kafka cluster",
        is_name=True,
    )
    log_trim: bool = setting(
        True,
        "Redis Streams: delete records after they are stored",
        when="no, to read stored events in the log while you look for a defect. Its memory then only grows",
    )
    log_entries_max: int = setting(
        2_000_000,
        "Redis Streams without maxmemory: most records of all partitions; above it, appends are refused",
        unit="entries",
        low=1,
        high=1_000_000_000,
        when="maxmemory is not set, and the machine has memory for a longer outage",
    )
    log_replicas_min: int = setting(
        0,
        "Redis Streams: replicas that must have an event, also on disk, before it is accepted; with fewer, events "
        "are refused (docs/replication.md)",
        unit="replicas",
        low=0,
        high=9,
        when="the log's Redis has replicas, and accepted events must survive a failover to one of them",
    )
    kafka_replication: int = setting(
        1,
        "Replicas of the topic. From 2 on, an accepted event is on all but one of them, and at least 2. A topic with "
        "fewer replicas, or a lower min.insync.replicas, is refused (docs/replication.md)",
        unit="replicas",
        low=1,
        high=9,
        when="3 in a cluster, before the topic is created: accepted events survive the loss of a broker",
    )
    kafka_client: str = setting(
        "kafka-python",
        "Library that appends to Kafka. confluent: confluent-kafka, an extra of the package; it takes less CPU time, "
        "and its own retries store no event twice (docs/links.md)",
        choices=("kafka-python", "confluent"),
        when="ingest's CPU is the limit. With many partitions on one broker an append may take longer: measure it",
    )
    kafka_group: str = setting(
        "sluice",
        "Kafka consumer group to which stored offsets are committed, so that Kafka's tools show them",
        when="two systems use one topic",
        is_name=True,
    )
    kafka_fetch_bytes_max: int = setting(
        4 << 20,
        "Bytes that one read prefetches, for each partition that a process has drained",
        low=1 << 20,
        high=256 << 20,
        when="batches are far larger, or memory is scarce: each process needs it for each partition",
    )
    log_keep_hours: int = setting(
        0,
        "Kafka: records are deleted from the topic this many hours after they were stored, never others; 0: they are "
        "kept for ever. The topic's own retention stays off (docs/retention.md)",
        unit="hours",
        low=0,
        high=87_600,
        when="the topic must not grow for ever. Keep it above the longest time after which you would restore "
        "PostgreSQL from a backup, and above what other consumers of the topic need",
    )
    kafka_retention_accepted: bool = setting(
        False,
        "Accept an existing topic that deletes records by age or size, even if they are not stored yet",
        when="the topic belongs to another team, and its retention is longer than any outage",
    )

    @property
    def log_copies(self) -> int:
        """On how many servers an accepted event is in the event log; 1: a single copy."""
        if self.log_scheme != "kafka":
            return 1 + self.log_replicas_min
        if self.kafka_replication < _REPLICATED_FROM:
            return 1
        # One broker may be missing while events are accepted. With 2 replicas none may: one copy is not replicated.
        return max(_REPLICATED_FROM, self.kafka_replication - 1)


def log_keep_problems(settings: EventLogSettings) -> Iterator[str]:
    """LOG_KEEP_HOURS where nothing could be deleted, or where it is unknown what is stored."""
    if not settings.log_keep_hours:
        return
    if settings.log_scheme != "kafka":
        yield f"LOG_KEEP_HOURS={settings.log_keep_hours} is for Kafka: on Redis, LOG_TRIM deletes what is stored"
    elif settings.event_sink_url:
        yield f"LOG_KEEP_HOURS={settings.log_keep_hours} needs events in PostgreSQL: leave EVENT_SINK_URL empty"


def kafka_log_problems(settings: EventLogSettings) -> Iterator[str]:
    """Values with which the event log can't be Kafka."""
    if not _TOPIC_NAME.fullmatch(settings.log_topic):
        yield (
            f"LOG_TOPIC={settings.log_topic!r} is no name of a Kafka topic: 1 to 249 letters, digits, dots, hyphens "
            "and underscores, and not . or .."
        )
    if settings.kafka_client == "confluent" and importlib.util.find_spec("confluent_kafka") is None:
        what = "-c constraints.txt -r requirements-confluent.txt" if IS_CHECKOUT else "'sluice[confluent]'"
        yield (
            "KAFKA_CLIENT=confluent needs the package confluent-kafka, which is not installed: "
            f"`pip install {what}`, or leave KAFKA_CLIENT out"
        )
