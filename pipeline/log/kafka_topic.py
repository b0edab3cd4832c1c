"""The Kafka topic of an event log: creates it if it is missing, and checks that its configuration keeps events."""

import hashlib
from typing import Final
from urllib.parse import urlsplit

from pipeline.clock import Clock
from pipeline.errors import LogUnavailableError, SettingsError
from pipeline.log.kafka_wire import END, KafkaWire, TopicFacts
from pipeline.ports.log import SetUpFault
from pipeline.settings import Settings

DEFAULT_PORT: Final = 9092
TOPIC_SECONDS_MAX: Final = 10.0  # limit until a new topic has leaders
TOPIC_POLL_SECONDS: Final = 0.05

# By default Kafka deletes records after a week, whether they are stored or not.
TOPIC_CONFIGS: Final = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}


def parse_bootstrap(url: str) -> list[tuple[str, int]]:
    """Brokers of kafka://host:port,host:port or kafka+ssl://… (default port 9092). Raises SettingsError."""
    brokers = []
    for text in urlsplit(url).netloc.split(","):
        host, colon, port = text.rpartition(":")
        if not colon or port.endswith("]"):
            host, port = text, str(DEFAULT_PORT)
        if not host or not port.isdecimal():
            raise SettingsError(f"EVENT_LOG_URL={url!r} does not name Kafka's brokers as kafka://host:port,…")
        brokers.append((host.strip("[]"), int(port)))
    return brokers


def log_id_of(topic: str, facts: TopicFacts) -> str:
    """The log id of this topic; a topic that was recreated under the same name is another log."""
    return f"{topic}:{facts.topic_id}"


def incarnation_of(facts: TopicFacts) -> str:
    """Changes whenever a partition gets another leader, because that one may have lost the partition's tail."""
    epochs = ",".join(str(facts.epochs[partition]) for partition in sorted(facts.epochs))
    return f"{facts.topic_id}:{hashlib.blake2b(epochs.encode(), digest_size=8).hexdigest()}"


def ensured_topic(wire: KafkaWire, settings: Settings, clock: Clock) -> tuple[TopicFacts, bool]:
    """The topic, and whether this call created it because it was missing.

    For a new topic, waits until all partitions have leaders. An older topic may have partitions without a leader; the
    callers handle these. Raises LogUnavailableError if no partition has a leader, LogMisconfiguredError if Kafka
    refuses such a topic.
    """
    topic = settings.log_topic
    facts = wire.topic(topic)
    is_new = facts is None
    if is_new:
        wire.create_topic(
            topic, partitions=settings.log_partitions, replication=settings.kafka_replication, configs=TOPIC_CONFIGS
        )
    deadline = clock.monotonic() + TOPIC_SECONDS_MAX
    while facts is None or not facts.led or (is_new and not _is_led(wire, topic, facts)):
        if clock.monotonic() > deadline or not (is_new or facts is None):
            raise LogUnavailableError(f"the event log's topic {topic} has no leaders")
        clock.sleep(TOPIC_POLL_SECONDS)
        facts = wire.topic(topic)
    return facts, is_new


def _is_led(wire: KafkaWire, topic: str, facts: TopicFacts) -> bool:
    """Whether every partition has a leader that answers as leader. Raises nothing."""
    try:
        return len(wire.offsets(topic, facts.led, END, facts.epochs)) == len(facts.leaders)
    except LogUnavailableError:
        return False


def set_up_faults(wire: KafkaWire, settings: Settings, facts: TopicFacts) -> tuple[SetUpFault, ...]:
    """What an operator must change in the topic or in the settings. Raises LogUnavailableError."""
    topic = settings.log_topic
    faults = []
    if not settings.kafka_retention_accepted:
        found = wire.topic_configs(topic, list(TOPIC_CONFIGS))
        wrong = {key: value for key, value in found.items() if value != TOPIC_CONFIGS.get(key, value)}
        if wrong:
            wanted = ",".join(f"{key}={TOPIC_CONFIGS[key]}" for key in wrong)
            faults.append(
                SetUpFault(
                    f"The topic {topic} deletes events whether they are stored or not ({_listed(wrong)})",
                    f"`kafka-configs.sh --alter --topic {topic} --add-config {wanted}`, "
                    "or KAFKA_RETENTION_ACCEPTED=yes",
                    loses_events=True,
                )
            )
    if len(facts.leaders) < settings.log_partitions:
        faults.append(
            SetUpFault(
                f"The topic {topic} has {len(facts.leaders)} partitions, fewer than LOG_PARTITIONS="
                f"{settings.log_partitions}: somebody made it, or made it anew, with fewer",
                f"`kafka-topics.sh --alter --topic {topic} --partitions {settings.log_partitions}`, or "
                f"LOG_PARTITIONS={len(facts.leaders)}",
                loses_events=False,
            )
        )
    return tuple(faults)


def _listed(configs: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in configs.items())
