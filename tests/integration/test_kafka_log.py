"""What is special about the event log on Kafka."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions, NewTopic
from kafka.errors import KafkaTimeoutError

from checks.testbed.waiting import APPEND_SECONDS_LONGEST, WAIT_SECONDS_MAX, eventually, while_it_lasts
from pipeline.errors import (
    LogFullError,
    LogIndeterminateError,
    LogMisconfiguredError,
    LogPartialError,
    LogUnavailableError,
    SluiceError,
)
from pipeline.event import RECORD_BYTES_MAX
from pipeline.flow.lag import total_lag
from pipeline.log import kafka_spread
from pipeline.log.kafka import KafkaLog
from pipeline.log.kafka_confluent import ConfluentProducer
from pipeline.log.kafka_python import PythonProducer
from pipeline.log.kafka_spread import PARTITIONS_EACH
from pipeline.log.kafka_topic import TOPIC_CONFIGS
from stack.servers import Server
from support.event_logs import (
    CALL_SECONDS_MAX,
    KafkaRig,
    ScriptedLowestOffsets,
    kafka_log_rig,
    must_read,
    read_all,
    recovered,
    timed,
    timed_append,
)


@pytest.fixture
def rig(kafka: Server) -> Iterator[KafkaRig]:
    made = kafka_log_rig(kafka, append_seconds_max=APPEND_SECONDS_LONGEST)
    yield made
    made.close()


def test_a_new_topic_keeps_everything_for_ever(rig: KafkaRig) -> None:
    # Given a topic that the adapter made
    assert rig.open().identity().partitions == 4
    # Then neither age nor size deletes what is in it
    wire = rig.wire()
    assert wire.topic_configs(rig.settings.log_topic, list(TOPIC_CONFIGS)) == TOPIC_CONFIGS
    wire.close()


def make_topic(rig: KafkaRig, configs: dict[str, str], partitions: int = 4) -> None:
    admin = rig.admin()
    admin.create_topics([NewTopic(rig.settings.log_topic, partitions, 1, topic_configs=configs)])
    admin.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [("retention.ms", "604800000"), ("retention.bytes", "1000000"), ("cleanup.policy", "compact")],
)
def test_a_topic_that_deletes_unread_events_is_named_with_what_to_do(rig: KafkaRig, key: str, value: str) -> None:
    # Given a topic that somebody made with one setting that deletes
    make_topic(rig, {**TOPIC_CONFIGS, key: value})
    log = rig.open()
    # Then the log says so, and how to mend it, while what it holds can be read
    (fault,) = recovered(log.identity).faults
    assert fault.loses_events
    assert f"{key}={value}" in fault.what
    assert f"--add-config {key}={TOPIC_CONFIGS[key]}" in fault.remedy
    assert recovered(lambda: log.read(0, 0, records_max=1, wait_seconds=0)) is None
    # When that is mended
    admin = rig.admin()
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, rig.settings.log_topic, configs=TOPIC_CONFIGS)])
    admin.close()
    # Then nothing is wrong any more
    eventually(lambda: recovered(log.identity).faults == (), "the broker says the new configuration")


def test_a_topic_that_refuses_the_largest_events_is_named_with_what_to_do(rig: KafkaRig) -> None:
    # Given a topic whose limit is below the largest event that ingest takes
    make_topic(rig, {**TOPIC_CONFIGS, "max.message.bytes": "200000"})
    log = rig.open()
    # Then the log says so, and how to change it; no event is lost, so ingest starts
    (fault,) = recovered(log.identity).faults
    assert "max.message.bytes=200000" in fault.what
    assert not fault.loses_events
    recovered(lambda: log.append([(0, b"x" * 100_000)]))
    result, _ = timed_append(log, [(0, b"x" * 300_000)])
    assert isinstance(result, SluiceError), repr(result)
    # When that is changed
    admin = rig.admin()
    configs = {**TOPIC_CONFIGS, "max.message.bytes": fault.remedy.partition("max.message.bytes=")[2].strip("`")}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, rig.settings.log_topic, configs=configs)])
    admin.close()
    # Then nothing is wrong any more, and the largest record is taken
    eventually(lambda: recovered(log.identity).faults == (), "the broker says the new limit")
    recovered(lambda: log.append([(0, b"x" * RECORD_BYTES_MAX)]))


def test_a_topic_that_deletes_may_be_accepted(rig: KafkaRig) -> None:
    make_topic(rig, {"retention.ms": "604800000"})
    rig.settings = replace(rig.settings, kafka_retention_accepted=True)
    log = rig.open()
    assert recovered(log.identity).faults == ()


def test_the_topics_own_number_of_partitions_counts(rig: KafkaRig) -> None:
    # Given a topic that somebody made with two partitions
    make_topic(rig, TOPIC_CONFIGS, partitions=2)
    log = rig.open()
    # Then there are two, whatever LOG_PARTITIONS says; that they are fewer is named
    identity = recovered(log.identity)
    assert identity.partitions == 2
    (fault,) = identity.faults
    assert "has 2 partitions, fewer than LOG_PARTITIONS=4" in fault.what
    assert ("--partitions 4" in fault.remedy, fault.loses_events) == (True, False)
    log.append([(0, b"a"), (1, b"b")])
    with pytest.raises(LogUnavailableError, match="only 2 partitions"):
        log.append([(2, b"c")])
    assert len(recovered(log.positions)) == 2


def test_a_topic_that_kafka_will_not_make_is_a_mistake_in_the_settings(rig: KafkaRig) -> None:
    # Given more replicas than there are brokers
    rig.settings = replace(rig.settings, kafka_replication=3)
    with pytest.raises(LogMisconfiguredError, match="replication"):
        rig.open().identity()
    # Then an append fails for certain too
    with pytest.raises(LogUnavailableError, match="replication"):
        rig.open().append([(0, b"a")])


def test_an_append_makes_the_topic_where_it_is_missing(rig: KafkaRig) -> None:
    log = rig.open()
    log.append([(3, b"a")])
    assert read_all(log, 3) == [b"a"]


def _commits(log: KafkaLog, partition: int, offset: int) -> bool:
    log.commit(log.identity().log_id, partition, offset)
    return log.positions()[partition].committed == offset


def test_commits_are_those_that_everybodys_tools_show(rig: KafkaRig) -> None:
    # Given a partition with a commit
    log = rig.open()
    log.append([(0, b"a")] * 5)
    eventually(lambda: _commits(log, 0, 3), "Kafka takes commits")
    assert total_lag(log.positions(), None) == 2
    # Then the group's offset is where Kafka's own tools look for it
    admin = rig.admin()
    offsets = admin.list_consumer_group_offsets(rig.settings.kafka_group)
    admin.close()
    mine = {tp.partition: found.offset for tp, found in offsets.items() if tp.topic == rig.settings.log_topic}
    assert mine == {0: 3}


def test_a_reader_jumps_only_when_it_is_told_to(rig: KafkaRig) -> None:
    # Given a reader that was left in the middle of what it had fetched
    log = rig.open()
    log.append([(0, b"%d" % i) for i in range(1000)])
    assert must_read(log, 0, 0, records_max=10).next_offset == 10
    fetched: list[int] = []
    fetch = log._wire.fetch

    def counted(name: str, partition: int, leader: int, offset: int, **named: Any) -> bytes:
        fetched.append(offset)
        return fetch(name, partition, leader, offset, **named)

    log._wire.fetch = counted  # type: ignore[method-assign]
    # When it goes on, back, and forward
    assert must_read(log, 0, 10, records_max=10).values[0] == b"10"
    assert must_read(log, 0, 5, records_max=10).values[0] == b"5"
    assert must_read(log, 0, 900, records_max=10).values[0] == b"900"
    assert must_read(log, 0, 910, records_max=10).values[0] == b"910"
    # Then it fetched only where it did not stand already
    assert fetched == [5, 900]


def test_a_backlog_is_read_in_full_batches(rig: KafkaRig) -> None:
    # Given more than two fetches hold, and batches that do not divide a fetch
    rig.settings = replace(rig.settings, kafka_fetch_bytes_max=1 << 20)
    log = rig.open()
    values = [b"%06d" % number * 40 for number in range(12_000)]
    for first in range(0, len(values), 500):
        log.append([(0, value) for value in values[first : first + 500]])
    # Then no batch is small but the last
    sizes, offset, read = [], 0, []
    while (found := log.read(0, offset, records_max=3000, wait_seconds=0)) is not None:
        assert found.offset == offset
        sizes.append(len(found.values))
        read += found.values
        offset = found.next_offset
    assert sizes == [3000, 3000, 3000, 3000]
    assert read == values


def test_a_hole_behind_a_fetch_is_no_part_of_its_batch(rig: KafkaRig) -> None:
    # Given a fetch that ends within a batch, and what follows it trimmed meanwhile
    rig.settings = replace(rig.settings, kafka_fetch_bytes_max=1 << 20)
    log = rig.open()
    for first in range(0, 9000, 500):
        log.append([(0, b"%06d" % number * 40) for number in range(first, first + 500)])
    assert must_read(log, 0, 0, records_max=3000).next_offset == 3000
    rig.trim(0, 8000)
    # Then the next batch ends before the hole, and the one after begins behind it
    before = must_read(log, 0, 3000, records_max=3000)
    assert 3000 < before.next_offset < 6000
    assert before.values == [b"%06d" % number * 40 for number in range(3000, before.next_offset)]
    behind = must_read(log, 0, before.next_offset, records_max=3000)
    assert (behind.offset, behind.values[0]) == (8000, b"008000" * 40)


def test_values_near_the_largest_request(rig: KafkaRig) -> None:
    # Given messages of 64 KiB whose JSON is six times as long, more of them than one request or buffer holds
    log = rig.open()
    values = [b"%03d" % i + b"x" * (6 * 65536) for i in range(120)]
    log.append([(0, value) for value in values[:30]])
    for start in range(30, 120, 30):
        log.append([(1, value) for value in values[start : start + 30]])
    assert read_all(log, 0) == values[:30]
    assert read_all(log, 1) == values[30:]


def python_client(log: KafkaLog) -> Any:
    """The library's producer."""
    producer = log._writer._producer
    assert isinstance(producer, PythonProducer)
    return producer.client


def test_an_append_waits_for_room_in_the_producer(rig: KafkaRig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a producer whose buffer is full for a moment
    log = rig.open()
    log.append([(0, b"a")])
    producer: Any = python_client(log)
    send, refusals = producer.send, [KafkaTimeoutError(), KafkaTimeoutError()]

    def sometimes(topic: str, value: bytes, partition: int) -> Any:
        if value == b"c" and refusals:
            raise refusals.pop()
        return send(topic, value, partition=partition)

    monkeypatch.setattr(producer, "send", sometimes)
    # When a group is appended in that moment
    log.append([(0, b"b"), (0, b"c"), (0, b"d")])
    # Then it is stored once and in order
    assert read_all(log, 0) == [b"a", b"b", b"c", b"d"]


def test_librdkafka_s_buffer_has_room_again_when_its_records_are_sent(
    rig: KafkaRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a buffer that is smaller than an append
    monkeypatch.setattr(kafka_spread, "BUFFER_KBYTES", 512)
    send_late, late = ConfluentProducer._send_late, []

    def noted(*given: Any) -> None:
        late.append(given)
        send_late(*given)

    monkeypatch.setattr(ConfluentProducer, "_send_late", noted)
    rig.settings = replace(rig.settings, kafka_client="confluent", append_seconds_max=30.0)
    log = rig.open()
    values = [b"%03d" % number + b"x" * 100_000 for number in range(40)]
    recovered(log.prepare)
    log.append([(number % 2, value) for number, value in enumerate(values)])
    # Then it waits for room, and each is stored once and in order
    assert late
    assert (read_all(log, 0), read_all(log, 1)) == (values[::2], values[1::2])


def test_librdkafka_s_producers_share_a_topic_of_many_partitions(rig: KafkaRig) -> None:
    # Given more partitions than one producer serves
    count = 2 * PARTITIONS_EACH + 1
    rig.settings = replace(rig.settings, kafka_client="confluent", log_partitions=count)
    log = rig.open()
    recovered(log.prepare)
    entries = [(number % count, b"%d" % number) for number in range(3 * count)]
    for first in range(0, len(entries), count):
        log.append(entries[first : first + count])
    # Then each partition has its records once and in order
    for partition in range(count):
        assert read_all(log, partition) == [value for its, value in entries if its == partition]
    # And several producers have sent them
    spread: Any = log._writer._producer
    assert len(spread._producers) == 3


def test_a_producer_that_stays_full_takes_nothing(rig: KafkaRig, monkeypatch: pytest.MonkeyPatch) -> None:
    # (each append that waits for room takes all of its time)
    while_it_lasts(partial(_refuses_what_has_no_room, rig, monkeypatch), 2.0, seconds_max=10.0)


def _refuses_what_has_no_room(rig: KafkaRig, monkeypatch: pytest.MonkeyPatch, append_seconds_max: float) -> None:
    # Given a producer without room
    topic_name = f"{rig.settings.log_topic}-{append_seconds_max:g}"
    rig.settings = replace(rig.settings, append_seconds_max=append_seconds_max, log_topic=topic_name)
    log = rig.open()
    recovered(log.prepare)
    log.append([(0, b"a")])
    producer: Any = python_client(log)
    send = producer.send

    def full(topic: str, value: bytes, partition: int) -> Any:
        if value == b"no room":
            raise KafkaTimeoutError
        return send(topic, value, partition=partition)

    monkeypatch.setattr(producer, "send", full)
    # Then a group of which nothing was taken is refused for certain, in time
    result, seconds = timed(lambda: log.append([(0, b"no room"), (0, b"b")]))
    assert isinstance(result, LogFullError), repr(result)
    assert seconds < CALL_SECONDS_MAX
    assert read_all(log, 0) == [b"a"]
    # And one of which something was taken is open
    result, seconds = timed(lambda: log.append([(0, b"c"), (0, b"no room")]))
    assert isinstance(result, LogPartialError), repr(result)
    assert isinstance(result.of([0]), LogIndeterminateError)
    assert seconds < CALL_SECONDS_MAX
    # And what was taken for one partition is durable where there is no room left for another
    result, _ = timed(lambda: log.append([(1, b"taken"), (2, b"no room")]))
    assert isinstance(result, LogPartialError), repr(result)
    assert (result.of([1]), type(result.of([2])), type(result.of([1, 2]))) == (
        None,
        LogFullError,
        LogPartialError,
    )
    assert (read_all(log, 1), read_all(log, 2)) == ([b"taken"], [])
    # And the log goes on
    log.append([(0, b"d")])
    assert read_all(log, 0) == [b"a", b"c", b"d"]


def test_a_partition_that_owes_an_answer_is_refused_and_no_other(rig: KafkaRig) -> None:
    # Given a producer that still owes an answer of a partition (its broker is away, say)
    class Owed:
        is_done = False

        def wait(self, seconds_max: float) -> None:
            assert seconds_max <= rig.settings.append_seconds_max

    log = rig.open()
    log.append([(0, b"a")])
    owed = Owed()
    log._writer._owed = {0: [owed]}  # type: ignore[list-item]
    # Then an append to it is refused for certain, and what goes elsewhere is taken
    result, seconds = timed(lambda: log.append([(0, b"b"), (1, b"c")]))
    assert isinstance(result, LogPartialError), repr(result)
    assert (type(result.of([0])), result.of([1])) == (LogUnavailableError, None)
    assert "owes the answer" in str(result)
    assert seconds < rig.settings.append_seconds_max / 2
    # When the answer is there
    owed.is_done = True
    log.append([(0, b"d")])
    # Then it goes on
    assert (read_all(log, 0), read_all(log, 1)) == ([b"a", b"d"], [b"c"])


@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_added_partitions_are_appended_to_once_the_producer_knows_them(rig: KafkaRig, client: str) -> None:
    # Given a log in use
    rig.settings = replace(rig.settings, kafka_client=client)
    log = rig.open()
    recovered(lambda: log.append([(0, b"a")]))
    # When its topic gets two more partitions
    admin = rig.admin()
    admin.create_partitions({rig.settings.log_topic: NewPartitions(6)})
    admin.close()

    def takes_all() -> bool:
        result, _ = timed_append(log, [(partition, b"b") for partition in range(6)])
        assert result is None or isinstance(result, LogUnavailableError | LogPartialError), repr(result)
        return result is None

    # Then they take events too, without a restart
    eventually(takes_all, "all partitions take events")
    assert read_all(log, 5) == [b"b"]


def test_a_tombstone_by_somebody_else_is_an_empty_record(rig: KafkaRig) -> None:
    log = rig.open()
    log.append([(0, b"a")])
    python_client(log).send(rig.settings.log_topic, None, key=b"k", partition=0).get(WAIT_SECONDS_MAX)
    assert read_all(log, 0) == [b"a", b""]


def test_a_closed_log_leaves_no_thread_behind(rig: KafkaRig) -> None:
    log = KafkaLog(rig.settings, ScriptedLowestOffsets())
    log.append([(0, b"a")])
    producer = python_client(log)
    log.close()
    producer._sender.join(WAIT_SECONDS_MAX)
    assert not producer._sender.is_alive()
