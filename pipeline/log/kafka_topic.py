"""The Kafka topic of an event log: creates it if it is missing, and checks that its configuration keeps events."""

import hashlib
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import LogUnavailableError, SettingsError
from pipeline.event import RECORD_BYTES_MAX
from pipeline.log.kafka_wire import END, KafkaWire, TopicFacts
from pipeline.ports.log import MissingReplicas, SetUpFault
from pipeline.settings import Settings
from pipeline.urls import hosts_of

DEFAULT_PORT: Final = 9092
TOPIC_SECONDS_MAX: Final = 10.0  # limit until a new topic has leaders
TOPIC_POLL_SECONDS: Final = 0.05

# By default Kafka deletes records after a week, whether they are stored or not.
TOPIC_CONFIGS: Final = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}


_IN_SYNC_MIN: Final = "min.insync.replicas"
_BATCH_BYTES: Final = "max.message.bytes"  # Kafka's word for the largest batch that it takes
# Of the producer: a batch is sent once it is this large. A single larger event is a batch of its own.
PRODUCER_BATCH_BYTES: Final = 262_144
_BATCH_BYTES_DEFAULT: Final = 1_048_588
_BATCH_HEAD_BYTES: Final = 128  # of a batch with one record
BATCH_BYTES_NEEDED: Final = max(PRODUCER_BATCH_BYTES, RECORD_BYTES_MAX) + _BATCH_HEAD_BYTES


def replication_configs(settings: Settings) -> dict[str, str]:
    """The configuration with which an accepted event is on `log_copies` brokers, and stays; empty if one is enough.

    The second one is Kafka's default. With an unclean election, a broker without acknowledged records becomes leader.
    """
    if settings.log_copies == 1:
        return {}
    return {_IN_SYNC_MIN: str(settings.log_copies), "unclean.leader.election.enable": "false"}


def parse_bootstrap(url: str) -> list[tuple[str, int]]:
    """Brokers of kafka://host:port,host:port or kafka+ssl://… (default port 9092). Raises SettingsError."""
    brokers = []
    for text in hosts_of(url):
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
            topic,
            partitions=settings.log_partitions,
            replication=settings.kafka_replication,
            configs=TOPIC_CONFIGS | replication_configs(settings),
        )
    deadline = clock.monotonic() + TOPIC_SECONDS_MAX
    while facts is None or not facts.led or (is_new and not _is_led(wire, topic, facts)):
        if clock.monotonic() > deadline or not (is_new or facts is None):
            raise LogUnavailableError(f"the event log (Kafka) accepts no events: its topic {topic} has no leaders")
        clock.sleep(TOPIC_POLL_SECONDS)
        facts = wire.topic(topic)
    return facts, is_new


def _is_led(wire: KafkaWire, topic: str, facts: TopicFacts) -> bool:
    """Whether every partition has a leader that answers as leader. Raises nothing."""
    try:
        return len(wire.offsets(topic, facts.led, END, facts.epochs)) == len(facts.leaders)
    except LogUnavailableError:
        return False


def read_configs(wire: KafkaWire, settings: Settings) -> dict[str, str]:
    """What the topic has of the configuration that is checked. Raises LogUnavailableError.

    Empty if the settings demand nothing of the topic: its user may not have the right to read the configuration.
    """
    keys = [*_retention_configs(settings), *replication_configs(settings)]
    if not keys:
        return {}
    return wire.topic_configs(settings.log_topic, list(dict.fromkeys([*keys, _IN_SYNC_MIN, _BATCH_BYTES])))


def _retention_configs(settings: Settings) -> dict[str, str]:
    return {} if settings.kafka_retention_accepted else TOPIC_CONFIGS


def set_up_faults(found: dict[str, str], settings: Settings, facts: TopicFacts) -> tuple[SetUpFault, ...]:
    """What an operator must change in the topic or in the settings. `found`: of `read_configs`."""
    topic, copies, replication = settings.log_topic, settings.log_copies, replication_configs(settings)
    faults = []
    retention = _retention_configs(settings)
    wrong = {key: found[key] for key, value in retention.items() if found.get(key, value) != value}
    if wrong:
        faults.append(
            SetUpFault(
                f"The topic {topic} deletes events whether they are stored or not ({_listed(wrong)})",
                f"{_altered(topic, retention, wrong)}, or KAFKA_RETENTION_ACCEPTED=yes",
                loses_events=True,
            )
        )
    few = {partition: count for partition, count in facts.replicas.items() if count < settings.kafka_replication}
    if few:
        faults.append(
            SetUpFault(
                f"The topic {topic} has fewer replicas than KAFKA_REPLICATION={settings.kafka_replication}: "
                f"{min(few.values())} of partition{'' if len(few) == 1 else 's'} {_numbers(few)}",
                "`kafka-reassign-partitions.sh` adds replicas (docs/replication.md), or KAFKA_REPLICATION="
                f"{min(few.values())}",
                loses_events=True,
            )
        )
    wrong = {
        key: found[key] for key, value in replication.items() if key in found and not _is_enough(found[key], value)
    }
    if wrong:
        faults.append(
            SetUpFault(
                f"The topic {topic} acknowledges events that fewer than {copies} brokers have, or may lose them "
                f"({_listed(wrong)}), and KAFKA_REPLICATION={settings.kafka_replication} asks for {copies}",
                f"{_altered(topic, replication, wrong)}, or another KAFKA_REPLICATION",
                loses_events=True,
            )
        )
    batch_bytes = found.get(_BATCH_BYTES, "")
    if batch_bytes.isdecimal() and int(batch_bytes) < BATCH_BYTES_NEEDED:
        faults.append(
            SetUpFault(
                f"The topic {topic} refuses some events that ingest takes, and full batches ({_BATCH_BYTES}="
                f"{batch_bytes}, and {BATCH_BYTES_NEEDED} are needed): their clients get 503",
                _altered(topic, {_BATCH_BYTES: str(_BATCH_BYTES_DEFAULT)}, {_BATCH_BYTES: batch_bytes}),
                loses_events=False,
            )
        )
    if len(facts.leaders) < settings.log_partitions:
        faults.append(
            SetUpFault(
                f"The topic {topic} has {len(facts.leaders)} partitions, fewer than LOG_PARTITIONS="
                f"{settings.log_partitions}: it was created or recreated with fewer",
                f"`kafka-topics.sh --alter --topic {topic} --partitions {settings.log_partitions}`, or "
                f"LOG_PARTITIONS={len(facts.leaders)}",
                loses_events=False,
            )
        )
    return tuple(faults)


def missing_replicas(settings: Settings, facts: TopicFacts, found: dict[str, str]) -> MissingReplicas | None:
    """The partitions of which a replica is not in sync, if KAFKA_REPLICATION asks for several; None: there are none.

    Also those that Kafka itself refuses events for, because the topic asks for more. `found`: of `read_configs`.
    """
    copies = settings.log_copies
    asked = int(found.get(_IN_SYNC_MIN, "1"))
    refused = {partition: count for partition, count in facts.in_sync.items() if count < asked}
    if asked > copies and refused:
        return MissingReplicas(
            f"Kafka refuses events for partition{'' if len(refused) == 1 else 's'} {_numbers(refused)} of the event "
            f"log: {min(refused.values())} in sync, and the topic asks for {asked} ({_IN_SYNC_MIN}), more than "
            f"KAFKA_REPLICATION={settings.kafka_replication} needs",
            f"Kafka's brokers; `kafka-configs.sh --alter --topic {settings.log_topic} --add-config "
            f"{_IN_SYNC_MIN}={copies}`",
            refuses_events=True,
        )
    if copies == 1:
        return None
    behind = {p: count for p, count in facts.in_sync.items() if count < settings.kafka_replication}
    if not behind:
        return None
    few = {partition: count for partition, count in behind.items() if count < copies}
    look_at = "Kafka's brokers; `kafka-topics.sh --describe --under-replicated-partitions` names what is missing"
    if few:
        return MissingReplicas(
            f"Events for partition{'' if len(few) == 1 else 's'} {_numbers(few)} of the event log are refused: fewer "
            f"than {copies} brokers are in sync, and KAFKA_REPLICATION={settings.kafka_replication} asks for {copies}",
            look_at,
            refuses_events=True,
        )
    return MissingReplicas(
        f"A replica is missing of partition{'' if len(behind) == 1 else 's'} {_numbers(behind)} of the event log: "
        f"{min(behind.values())} of {settings.kafka_replication} are in sync",
        look_at,
        refuses_events=False,
    )


def replication_problem(settings: Settings, facts: TopicFacts, partition: int) -> str | None:
    """The reason why an event for this partition would not be on as many brokers as asked for; None: it would be."""
    copies = settings.log_copies
    in_sync = facts.in_sync.get(partition, copies)
    if in_sync >= copies or copies == 1:
        return None
    replicas = "replica" if in_sync == 1 else "replicas"
    return (
        f"the event log (Kafka) can't be used: partition {partition} has {in_sync} {replicas} in sync, and "
        f"KAFKA_REPLICATION={settings.kafka_replication} asks for {copies}"
    )


def _is_enough(found: str, wanted: str) -> bool:
    """Whether a configured value is the one that is wanted, or a higher number."""
    return int(found) >= int(wanted) if found.isdecimal() and wanted.isdecimal() else found == wanted


def _altered(topic: str, configs: dict[str, str], wrong: dict[str, str]) -> str:
    """The command that corrects the values in `wrong`."""
    wanted = ",".join(f"{key}={configs[key]}" for key in wrong)
    return f"`kafka-configs.sh --alter --topic {topic} --add-config {wanted}`"


def _numbers(partitions: dict[int, int]) -> str:
    return ", ".join(str(partition) for partition in sorted(partitions))


def _listed(configs: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in configs.items())
