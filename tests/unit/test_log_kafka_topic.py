"""What is asked of a topic's replicas, and how it is said that there are too few."""

import uuid
from collections.abc import Sequence
from dataclasses import replace

import pytest
from kafka.record.default_records import DefaultRecordBatchBuilder

from pipeline.event import (
    ATTRIBUTES_BYTES_MAX,
    CORRELATION_ID_CHARS_MAX,
    EVENT_ID_CHARS_MAX,
    MESSAGE_BYTES_MAX,
    SOURCE_CHARS_MAX,
    TIMESTAMP_MS_MAX,
    Event,
    encode_record,
    record_head,
)
from pipeline.log.kafka_topic import (
    BATCH_BYTES_NEEDED,
    TOPIC_CONFIGS,
    missing_replicas,
    read_configs,
    replication_configs,
    replication_problem,
    set_up_faults,
)
from pipeline.log.kafka_wire import TopicFacts
from pipeline.settings import Settings

SETTINGS = Settings(event_log_url="kafka://localhost:9092", log_partitions=2)
SAFE = {"min.insync.replicas": "2", "unclean.leader.election.enable": "false"}


class FakeWire:
    """A broker that knows these settings of the topic."""

    def __init__(self, **configs: str) -> None:
        self.configs = (
            TOPIC_CONFIGS
            | {"min.insync.replicas": "1", "max.message.bytes": "1048588"}
            | {key.replace("_", "."): value for key, value in configs.items()}
        )

    def topic_configs(self, _name: str, keys: Sequence[str]) -> dict[str, str]:
        return {key: self.configs[key] for key in keys}


def read(settings: Settings, **configs: str) -> dict[str, str]:
    return read_configs(FakeWire(**configs), settings)  # type: ignore[arg-type]


def facts(replicas: int, in_sync: dict[int, int] | None = None) -> TopicFacts:
    in_sync = {0: replicas, 1: replicas} if in_sync is None else in_sync
    return TopicFacts(uuid.uuid4(), {0: 1, 1: 2}, {0: 0, 1: 0}, {0: replicas, 1: replicas}, in_sync)


def faults(replication: int, replicas: int, **configs: str) -> list[tuple[str, str]]:
    settings = replace(SETTINGS, kafka_replication=replication)
    found = set_up_faults(read(settings, **configs), settings, facts(replicas))
    assert all(fault.loses_events for fault in found)
    return [(fault.what, fault.remedy) for fault in found]


@pytest.mark.parametrize(("replication", "copies"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 4)])
def test_an_accepted_event_is_on_all_brokers_but_one_and_on_two_at_least(replication: int, copies: int) -> None:
    settings = replace(SETTINGS, kafka_replication=replication)
    assert settings.log_copies == copies
    wanted = {"min.insync.replicas": str(copies), "unclean.leader.election.enable": "false"}
    assert replication_configs(settings) == ({} if copies == 1 else wanted)


def test_a_topic_that_does_what_is_asked_has_no_fault() -> None:
    assert faults(3, 3, min_insync_replicas="2", unclean_leader_election_enable="false") == []
    # More than what is asked is no fault either
    assert faults(3, 5, min_insync_replicas="3", unclean_leader_election_enable="false") == []


def test_where_one_copy_is_enough_nothing_is_asked() -> None:
    assert faults(1, 1) == []  # the broker does not know the other keys


def test_too_few_replicas_are_named_with_what_to_do() -> None:
    ((what, remedy),) = faults(3, 1, min_insync_replicas="2", unclean_leader_election_enable="false")
    assert what == "The topic sluice-events has fewer replicas than KAFKA_REPLICATION=3: 1 of partitions 0, 1"
    assert "kafka-reassign-partitions.sh" in remedy
    assert "KAFKA_REPLICATION=1" in remedy


@pytest.mark.parametrize(("key", "value"), [("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")])
def test_a_topic_that_acknowledges_too_early_is_named_with_what_to_do(key: str, value: str) -> None:
    ((what, remedy),) = faults(3, 3, **{name.replace(".", "_"): text for name, text in (SAFE | {key: value}).items()})
    assert f"({key}={value})" in what
    assert "KAFKA_REPLICATION=3 asks for 2" in what
    assert f"`kafka-configs.sh --alter --topic sluice-events --add-config {key}={SAFE[key]}`" in remedy


def test_a_topic_that_refuses_what_ingest_takes_is_named_with_what_to_do() -> None:
    largest = Event(
        correlation_id="\x01" * CORRELATION_ID_CHARS_MAX, severity="FATAL", message="\x01" * MESSAGE_BYTES_MAX,
        source="\x01" * SOURCE_CHARS_MAX, timestamp=TIMESTAMP_MS_MAX, event_id="\x01" * EVENT_ID_CHARS_MAX,
        attributes={"k": "v" * (ATTRIBUTES_BYTES_MAX - len('{"k":""}'))},
    )  # fmt: skip
    record = encode_record(largest, record_head(TIMESTAMP_MS_MAX, "r" * 64))
    # Given a topic whose limit is that of the largest batch with one event
    largest_batch = DefaultRecordBatchBuilder.estimate_size_in_bytes(key=None, value=record, headers=[])
    needed = BATCH_BYTES_NEEDED
    assert largest_batch <= needed < 1.01 * largest_batch
    settings = replace(SETTINGS, kafka_replication=1)
    assert set_up_faults(read(settings, max_message_bytes=str(needed)), settings, facts(1)) == ()
    # When the limit is lower, then it is named: no event is lost, but some are refused
    (fault,) = set_up_faults(read(settings, max_message_bytes=str(needed - 1)), settings, facts(1))
    assert f"(max.message.bytes={needed - 1}, and {needed} are needed)" in fault.what
    assert "--add-config max.message.bytes=1048588" in fault.remedy
    assert not fault.loses_events


def test_missing_replicas_are_named_and_refuse_only_where_too_few_are_left() -> None:
    settings = replace(SETTINGS, kafka_replication=3)
    assert missing_replicas(settings, facts(3), SAFE) is None
    # When one is missing, events are still accepted
    missing = missing_replicas(settings, facts(3, {0: 2, 1: 3}), SAFE)
    assert missing is not None
    assert missing.what == "A replica is missing of partition 0 of the event log: 2 of 3 are in sync"
    assert not missing.refuses_events
    assert replication_problem(settings, facts(3, {0: 2, 1: 3}), 0) is None
    # When two are, they are not
    missing = missing_replicas(settings, facts(3, {0: 1, 1: 2}), SAFE)
    assert missing is not None
    assert "Events for partition 0 of the event log are refused: fewer than 2 brokers are in sync" in missing.what
    assert missing.refuses_events
    problem = replication_problem(settings, facts(3, {0: 1, 1: 2}), 0)
    assert problem is not None
    assert "partition 0 has 1 replica in sync, and KAFKA_REPLICATION=3 asks for 2" in problem
    # And where one copy is enough, nothing is missing
    assert missing_replicas(SETTINGS, facts(1), {}) is None
    assert replication_problem(SETTINGS, facts(3, {0: 0, 1: 0}), 0) is None


@pytest.mark.parametrize(("replication", "asked"), [(3, "3"), (1, "2")])
def test_a_topic_that_asks_for_more_than_is_needed_is_named_while_kafka_refuses_events(
    replication: int, asked: str
) -> None:
    settings = replace(SETTINGS, kafka_replication=replication)
    found = read(settings, min_insync_replicas=asked, unclean_leader_election_enable="false")
    assert missing_replicas(settings, facts(3), found) is None
    in_sync = int(asked) - 1
    missing = missing_replicas(settings, facts(3, {0: in_sync, 1: 3}), found)
    assert missing is not None
    assert missing.refuses_events
    assert f"Kafka refuses events for partition 0 of the event log: {in_sync} in sync, and the topic asks for" in (
        missing.what
    )
    assert f"min.insync.replicas={settings.log_copies}`" in missing.look_at


def test_a_user_who_may_not_read_the_configuration_is_not_asked_to_where_nothing_is_checked() -> None:
    settings = replace(SETTINGS, kafka_retention_accepted=True)
    assert read_configs(None, settings) == {}  # type: ignore[arg-type]
