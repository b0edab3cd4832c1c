"""The event log on Kafka: one topic, offsets as Kafka counts them.

kafka-python appends; everything else goes through `kafka_wire`, whose calls end in bounded time.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

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
from pipeline.log.kafka_records import Run, runs
from pipeline.log.kafka_wire import BEGIN, END, KafkaWire, OffsetGoneError, TopicFacts
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

# Kafka trims by age after a week unless told otherwise, whether records are stored or not.
TOPIC_CONFIGS: Final = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}


class _Reader:
    """One partition's records that were fetched and not read yet. `offset` is the next one to read."""

    def __init__(self, bytes_max: int) -> None:
        self._full_bytes = bytes_max // 2  # an answer ends with a whole batch: it is rarely filled to its limit
        self.was_full = False  # whether there is probably more behind what was fetched
        self.offset = -1
        self._runs: Iterator[Run] = iter(())
        self._next: Run | None = None  # taken from the runs, and not read as a whole

    def seek(self, offset: int) -> None:
        """Stand at `offset`; moving there throws away what was fetched."""
        if self.offset != offset:
            self.fill(offset, b"")

    def fill(self, offset: int, data: bytes) -> None:
        """Take what was fetched at `offset`; it may begin with records before that, which were not asked for."""
        self.offset, self._runs, self._next = offset, runs(data), None
        self.was_full = len(data) >= self._full_bytes

    def take(self, records_max: int) -> LogBatch | None:
        """Up to `records_max` records without a hole from `offset` on, or behind it; None where none are left.

        Raises LogUnavailableError where what was fetched can't be read.
        """
        first, values = self.offset, list[bytes]()
        while len(values) < records_max:
            run = self._next or next(self._runs, None)
            if run is None:
                break
            self._next = run
            run_first, run_values = run
            skipped = max(0, self.offset - run_first)
            if values and run_first != first + len(values):
                break  # a hole: what is behind it makes a batch of its own
            room = records_max - len(values)
            some = run_values[skipped : skipped + room]
            if some and not values:
                first = run_first + skipped
            values += some
            rest = run_values[skipped + room :]
            self._next = (run_first + skipped + room, rest) if rest else None
        if not values:
            return None
        self.offset = first + len(values)
        return LogBatch(first, values)


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
        self._readers: dict[int, _Reader] = {}
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
            self._readers.clear()
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
        reader = self._readers.setdefault(partition, _Reader(self._settings.kafka_fetch_bytes_max))
        reader.seek(offset)
        try:
            batch = reader.take(records_max)
            if batch is None:
                reader.fill(*self._fetch(partition, offset, wait_seconds))
                batch = reader.take(records_max)
            elif len(batch.values) < records_max and reader.was_full:
                batch = self._completed(batch, partition, reader, records_max)
        except (LogUnavailableError, LogGapError):
            self._checked_at = NEVER  # perhaps a leader has moved
            self._readers.pop(partition, None)
            raise
        return batch

    def _completed(self, batch: LogBatch, partition: int, reader: _Reader, records_max: int) -> LogBatch:
        """The rest of a fetch, and what follows it: each batch costs a commit, however small it is."""
        reader.fill(*self._fetch(partition, batch.next_offset, 0))
        more = reader.take(records_max - len(batch.values))
        if more is None:
            return batch
        if more.offset != batch.next_offset:
            reader.seek(batch.next_offset)  # a hole: what is behind it makes a batch of its own
            return batch
        return LogBatch(batch.offset, batch.values + more.values)

    def _fetch(self, partition: int, offset: int, wait_seconds: float) -> tuple[int, bytes]:
        """What the leader has from `offset` on, or from where the log begins behind it, and which of the two.

        Raises LogUnavailableError, LogGapError.
        """
        leader = -1 if self._facts is None else self._facts.leaders.get(partition, -1)
        bytes_max = self._settings.kafka_fetch_bytes_max
        try:
            return offset, self._wire.fetch(
                self._topic, partition, leader, offset, bytes_max=bytes_max, wait_seconds=wait_seconds
            )
        except OffsetGoneError:
            begin = self._begin_after(partition, offset)
        try:
            return begin, self._wire.fetch(self._topic, partition, leader, begin, bytes_max=bytes_max, wait_seconds=0)
        except OffsetGoneError as error:
            raise LogUnavailableError(f"the event log (Kafka) is being trimmed: {error}") from error

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

    def _begin_after(self, partition: int, offset: int) -> int:
        """Where the log goes on behind an offset that it does not hold. Raises LogGapError beyond its end."""
        begin, end = (self._offset(partition, which) for which in (BEGIN, END))
        if offset > end:
            raise LogGapError(f"the event log's partition {partition} ends at {end}, before the stored offset {offset}")
        return max(begin, offset)

    def _offset(self, partition: int, which: int) -> int:
        leader = -1 if self._facts is None else self._facts.leaders.get(partition, -1)
        return self._wire.offsets(self._topic, {partition: leader}, which)[partition]

    # --- Commit and positions ---------------------------------------------------------------------------------------

    def commit(self, log_id: str, partition: int, offset: int) -> None:
        try:
            facts = self._wire.topic(self._topic)  # a commit names a topic, and may mean the one before it
            if facts is None or _log_id(self._topic, facts) != log_id:
                logger.warning(
                    "commit to the event log was ignored: this is another log",
                    extra={"action": "log_commit_ignored", "partition": partition, "offset": offset},
                )
                return
            self._wire.commit(self._settings.kafka_group, self._topic, {partition: offset})
        except LogUnavailableError as error:
            logger.warning("commit to the event log failed: %s", error, extra={"action": "log_commit_failed"})

    def positions(self, log_id: str | None = None) -> list[PartitionPosition]:
        log_id = log_id or (self._identity or self.identity()).log_id
        facts = self._wire.topic(self._topic)
        if facts is None or _log_id(self._topic, facts) != log_id:
            raise LogUnavailableError("the event log (Kafka) is another one than when it was last asked who it is")
        begins = self._wire.offsets(self._topic, facts.leaders, BEGIN)
        ends = self._wire.offsets(self._topic, facts.leaders, END)
        committed = self._wire.committed(self._settings.kafka_group, self._topic, facts.leaders)
        try:
            return [
                PartitionPosition(partition, begins[partition], ends[partition], committed[partition], ends[partition])
                for partition in sorted(facts.leaders)
            ]
        except KeyError as error:
            raise LogUnavailableError(f"the event log (Kafka) left out partition {error}") from error

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=self._settings.append_seconds_max)
        self._is_suspect = True
        self._readers.clear()
        self._wire.close()
        self._append_wire.close()

    # --- Inside -----------------------------------------------------------------------------------------------------

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
