"""The event log on Kafka: one topic, offsets as Kafka counts them.

kafka-python carries the records, both ways; everything else goes through `kafka_wire`, whose calls end in bounded time.
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, OffsetOutOfRangeError

from pipeline.clock import Clock, SystemClock
from pipeline.errors import (
    LogFullError,
    LogGapError,
    LogIndeterminateError,
    LogMisconfiguredError,
    LogRestartedError,
    LogUnavailableError,
    SettingsError,
)
from pipeline.log.kafka_wire import BEGIN, END, KafkaWire, TopicFacts
from pipeline.ports.log import LogBatch, LogIdentity, PartitionPosition
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

API_VERSION: Final = (2, 6, 0)  # what kafka-python speaks; asking the broker instead costs seconds where it is away
DEFAULT_PORT: Final = 9092
CALL_SECONDS_MAX: Final = 1.0  # one request; Kafka answers in a millisecond, or after a pause of its JVM
TOPIC_SECONDS_MAX: Final = 10.0  # until a new topic has leaders
TOPIC_POLL_SECONDS: Final = 0.05
NEVER: Final = float("-inf")
TOPIC_CHECK_SECONDS: Final = 1.0  # how often a reader makes sure that the topic is still the same one
DELIVERY_SECONDS_MAX: Final = 2.0  # for records that are there to arrive, beyond the wait that was asked for

# Kafka trims by age after a week unless told otherwise, whether records are stored or not.
TOPIC_CONFIGS: Final = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}


@dataclass(slots=True)
class _PartitionReader:
    """A consumer of one partition, left where it stopped: moving it throws away what it has fetched ahead."""

    consumer: KafkaConsumer
    topic_partition: TopicPartition
    offset: int

    def poll(self, records_max: int, wait_seconds: float) -> list[Any]:
        """Records from `offset` on, and move on behind them. Raises KafkaError, OffsetOutOfRangeError."""
        fetched = self.consumer.poll(timeout_ms=max(0, int(wait_seconds * 1000)), max_records=records_max)
        records: list[Any] = fetched.get(self.topic_partition, [])
        if records:
            self.offset = records[-1].offset + 1
        return records

    def seek(self, offset: int) -> None:
        """Stand at `offset`."""
        if self.offset != offset:
            self.consumer.seek(self.topic_partition, offset)
            self.offset = offset


class KafkaLog:
    """EventLog on Kafka ≥ 2.8 without TLS or SASL.

    Its weakness: kafka-python has no idempotent producer, so an append that it repeats inside (a leader moves, a
    connection breaks) can store a record twice. `event_id` makes that harmless.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._topic = settings.log_topic
        self._clock = clock or SystemClock()
        self._bootstrap = parse_bootstrap(settings.event_log_url)
        self._wire = KafkaWire(self._bootstrap, call_seconds_max=CALL_SECONDS_MAX, clock=self._clock)
        # `append` may run beside the other calls.
        self._append_wire = KafkaWire(
            self._bootstrap, call_seconds_max=min(CALL_SECONDS_MAX, settings.append_seconds_max), clock=self._clock
        )
        self._producer: KafkaProducer | None = None
        self._unconfirmed: list[Any] = []  # futures of an append that ran out of time
        self._is_suspect = True  # nothing is known of Kafka yet, or the latest append failed
        self._readers: dict[int, _PartitionReader] = {}
        self._identity: LogIdentity | None = None
        self._facts: TopicFacts | None = None
        self._checked_at = NEVER

    # --- Who the log is ---------------------------------------------------------------------------------------------

    def identity(self) -> LogIdentity:
        facts = self._ensured_topic(self._wire)
        if not self._settings.kafka_retention_accepted:
            self._refuse_retention()
        identity = LogIdentity(_log_id(self._topic, facts), str(facts.topic_id), len(facts.leaders))
        if self._identity is None:
            self._wake_coordinator()
        elif identity.log_id != self._identity.log_id:
            self._drop_readers()
        self._identity, self._facts, self._checked_at = identity, facts, self._clock.monotonic()
        return identity

    def _ensured_topic(self, wire: KafkaWire) -> TopicFacts:
        """The topic, made where it is missing, once all its partitions have leaders."""
        facts = wire.topic(self._topic)
        if facts is None:
            wire.create_topic(
                self._topic,
                partitions=self._settings.log_partitions,
                replication=self._settings.kafka_replication,
                configs=TOPIC_CONFIGS,
            )
        deadline = self._clock.monotonic() + TOPIC_SECONDS_MAX
        while facts is None or not facts.leaders or min(facts.leaders.values()) < 0:
            if self._clock.monotonic() > deadline:
                raise LogUnavailableError(f"the event log's topic {self._topic} has no leaders")
            self._clock.sleep(TOPIC_POLL_SECONDS)
            facts = wire.topic(self._topic)
        return facts

    def _refuse_retention(self) -> None:
        found = self._wire.topic_configs(self._topic, list(TOPIC_CONFIGS))
        wrong = {key: value for key, value in found.items() if value != TOPIC_CONFIGS.get(key, value)}
        if wrong:
            wanted = ",".join(f"{key}={TOPIC_CONFIGS[key]}" for key in wrong)
            raise LogMisconfiguredError(
                f"the topic {self._topic} deletes events whether they are stored or not ({wrong}): "
                f"`kafka-configs.sh --alter --topic {self._topic} --add-config {wanted}`, "
                "or KAFKA_RETENTION_ACCEPTED=yes"
            )

    def _wake_coordinator(self) -> None:
        """A new cluster makes its topic of commits when it is first asked for them, which takes it a second."""
        try:
            self._wire.committed(self._settings.kafka_group, self._topic, [0])
        except LogUnavailableError as error:
            logger.info("Kafka has no commits yet: %s", error, extra={"action": "log_coordinator_absent"})

    # --- Append -----------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        if not entries:
            return
        deadline = self._clock.monotonic() + self._settings.append_seconds_max
        producer = self._ready_producer(deadline)
        partitions = producer.partitions_for(self._topic)
        if any(partition not in partitions for partition, _ in entries):
            raise LogUnavailableError(f"the event log's topic has only {len(partitions)} partitions")
        sent: list[Any] = []
        try:
            for partition, value in entries:
                sent.append(self._send(producer, partition, value, deadline))
            producer.flush(timeout=max(deadline - self._clock.monotonic(), 0.001))
        except KafkaError as error:
            if not sent:
                raise LogFullError(f"the event log's producer (Kafka) takes nothing: {error}") from error
            self._is_suspect = True
            self._unconfirmed = sent
            raise LogIndeterminateError(f"the event log (Kafka) did not confirm an append: {error}") from error
        failed = next((future for future in sent if not future.succeeded()), None)
        if failed is not None:
            self._is_suspect = True
            self._unconfirmed = sent
            raise LogIndeterminateError(f"the event log (Kafka) failed in an append: {failed.exception}")

    def _send(self, producer: KafkaProducer, partition: int, value: bytes, deadline: float) -> Any:
        """Hand one record to the producer, waiting for room in its buffer. Raises KafkaError when there is none."""
        while True:
            try:
                return producer.send(self._topic, value, partition=partition)
            except KafkaTimeoutError:  # nothing of this record was taken
                if self._clock.monotonic() >= deadline:
                    raise

    def _ready_producer(self, deadline: float) -> KafkaProducer:
        """A producer that knows the topic and holds nothing of an earlier append.

        After a failure Kafka is asked first whether it is there: with Kafka away for longer, appends then fail at once
        and for certain, instead of filling the producer's buffer with what the clients will send again. Raises
        LogUnavailableError.
        """
        if self._is_suspect:
            try:
                self._ensured_topic(self._append_wire)
            except LogMisconfiguredError as error:
                raise LogUnavailableError(str(error)) from error
            self._is_suspect = False
        producer = self._producer
        if producer is None:
            producer = self._producer = self._new_producer()
        for future in self._unconfirmed:
            with contextlib.suppress(KafkaError):  # that it failed was said already
                future.get(timeout=max(deadline - self._clock.monotonic(), 0.001))
            if not future.is_done:
                self._is_suspect = True
                raise LogUnavailableError("the event log (Kafka) still owes the answer to an earlier append")
        self._unconfirmed = []
        while True:
            try:
                producer.partitions_for(self._topic)
            except KafkaError as error:
                if self._clock.monotonic() >= deadline:
                    self._is_suspect = True
                    raise LogUnavailableError(f"the event log (Kafka) does not describe its topic: {error}") from error
            else:
                return producer

    def _new_producer(self) -> KafkaProducer:
        return KafkaProducer(
            bootstrap_servers=self._bootstrap_texts(),
            api_version=API_VERSION,
            acks="all",
            retries=5,
            max_in_flight_requests_per_connection=1,  # a repeated request must not overtake
            linger_ms=5,
            batch_size=262_144,
            max_block_ms=50,
            request_timeout_ms=10_000,
        )

    # --- Read -------------------------------------------------------------------------------------------------------

    def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
        self._check_topic()
        deadline = self._clock.monotonic() + wait_seconds
        try:
            reader = self._reader_at(partition, offset)
            try:
                records = reader.poll(records_max, wait_seconds)
            except OffsetOutOfRangeError:
                reader.seek(self._begin_after(partition, offset))
                records = reader.poll(records_max, deadline - self._clock.monotonic())
            if not records and self._holds_records(partition, offset):
                # They came just now, or the consumer is still finding its way to a broker that was restarted.
                records = self._awaited(reader, records_max)
        except (KafkaError, OSError, AssertionError) as error:
            self._drop_reader(partition)
            raise LogUnavailableError(f"the event log (Kafka) can't be read: {error!r}") from error
        except (LogUnavailableError, LogGapError):
            self._checked_at = NEVER  # perhaps a leader has moved
            raise
        if not records:
            return None
        first = records[0].offset
        if records[-1].offset - first != len(records) - 1:
            # A hole: what is behind it makes a batch of its own.
            records = [record for i, record in enumerate(records) if record.offset == first + i]
            reader.seek(records[-1].offset + 1)
        return LogBatch(first, [record.value or b"" for record in records])

    def _check_topic(self) -> None:
        """Make sure, once a second, that the topic was not made anew: its offsets would mean other records.

        Raises LogUnavailableError, LogRestartedError.
        """
        identity = self._identity or self.identity()
        now = self._clock.monotonic()
        if now - self._checked_at < TOPIC_CHECK_SECONDS:
            return
        facts = self._wire.topic(self._topic)
        if facts is None or _log_id(self._topic, facts) != identity.log_id:
            raise LogRestartedError(f"the event log's topic {self._topic} is not the one that it was")
        self._facts, self._checked_at = facts, now

    def _reader_at(self, partition: int, offset: int) -> _PartitionReader:
        reader = self._readers.get(partition)
        if reader is None:
            topic_partition = TopicPartition(self._topic, partition)
            consumer = KafkaConsumer(
                bootstrap_servers=self._bootstrap_texts(),
                api_version=API_VERSION,
                group_id=None,  # with a group, poll() waits without limit for the group's coordinator
                enable_auto_commit=False,
                auto_offset_reset="none",
                fetch_max_wait_ms=500,
                fetch_max_bytes=self._settings.kafka_fetch_bytes_max,
                max_partition_fetch_bytes=self._settings.kafka_fetch_bytes_max,
                request_timeout_ms=5_000,
            )
            consumer.assign([topic_partition])
            reader = self._readers[partition] = _PartitionReader(consumer, topic_partition, -1)
        reader.seek(offset)
        return reader

    def _begin_after(self, partition: int, offset: int) -> int:
        """Where the log goes on behind an offset that it does not hold. Raises LogGapError beyond its end."""
        begin, end = (self._offset(partition, which) for which in (BEGIN, END))
        if offset > end:
            raise LogGapError(f"the event log's partition {partition} ends at {end}, before the stored offset {offset}")
        return max(begin, offset)

    def _holds_records(self, partition: int, offset: int) -> bool:
        """Whether there is anything at or behind an offset: silence of a consumer may also mean that Kafka is away."""
        end = self._offset(partition, END)
        if offset > end:
            raise LogGapError(f"the event log's partition {partition} ends at {end}, before the stored offset {offset}")
        return end > max(offset, self._readers[partition].offset)

    def _offset(self, partition: int, which: int) -> int:
        leader = -1 if self._facts is None else self._facts.leaders.get(partition, -1)
        return self._wire.offsets(self._topic, {partition: leader}, which)[partition]

    def _awaited(self, reader: _PartitionReader, records_max: int) -> list[Any]:
        records = reader.poll(records_max, DELIVERY_SECONDS_MAX)
        if not records:
            raise LogUnavailableError("the event log (Kafka) holds records, but does not deliver them")
        return records

    # --- Commit and positions ---------------------------------------------------------------------------------------

    def commit(self, partition: int, offset: int) -> None:
        try:
            self._wire.commit(self._settings.kafka_group, self._topic, {partition: offset})
        except LogUnavailableError as error:
            logger.warning("commit to the event log failed: %s", error, extra={"action": "log_commit_failed"})

    def positions(self) -> list[PartitionPosition]:
        identity = self._identity or self.identity()
        facts = self._wire.topic(self._topic)
        if facts is None or _log_id(self._topic, facts) != identity.log_id:
            raise LogUnavailableError("the event log (Kafka) is another one than when it was last asked who it is")
        begins = self._wire.offsets(self._topic, facts.leaders, BEGIN)
        ends = self._wire.offsets(self._topic, facts.leaders, END)
        committed = self._wire.committed(self._settings.kafka_group, self._topic, facts.leaders)
        try:
            return [
                PartitionPosition(partition, begins[partition], ends[partition], committed[partition])
                for partition in sorted(facts.leaders)
            ]
        except KeyError as error:
            raise LogUnavailableError(f"the event log (Kafka) left out partition {error}") from error

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=self._settings.append_seconds_max)
        self._is_suspect = True
        self._drop_readers()
        self._wire.close()
        self._append_wire.close()

    # --- Inside -----------------------------------------------------------------------------------------------------

    def _drop_reader(self, partition: int) -> None:
        reader = self._readers.pop(partition, None)
        if reader is not None:
            reader.consumer.close(autocommit=False)

    def _drop_readers(self) -> None:
        for partition in list(self._readers):
            self._drop_reader(partition)

    def _bootstrap_texts(self) -> list[str]:
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self._bootstrap]


def parse_bootstrap(url: str) -> list[tuple[str, int]]:
    """Brokers of kafka://host:port,host:port (port 9092 where it is missing). Raises SettingsError."""
    brokers = []
    for text in urlsplit(url).netloc.split(","):
        host, colon, port = text.rpartition(":")
        if not colon or port.endswith("]"):
            host, port = text, str(DEFAULT_PORT)
        if not host or not port.isdecimal():
            raise SettingsError(f"EVENT_LOG_URL={url!r} does not name Kafka's brokers as kafka://host:port,…")
        brokers.append((host.strip("[]"), int(port)))
    return brokers


def _log_id(topic: str, facts: TopicFacts) -> str:
    return f"{topic}:{facts.topic_id}"
