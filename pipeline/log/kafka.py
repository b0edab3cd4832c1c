"""The event log on Kafka: one topic, with Kafka's offsets.

A library appends, the one of KAFKA_CLIENT. All other requests go through `kafka_wire`, whose calls end in bounded time.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pipeline.clock import Clock, SystemClock
from pipeline.errors import LogGapError, LogRestartedError, LogUnavailableError, RecoverableError
from pipeline.log.kafka_producer import Producer
from pipeline.log.kafka_python import PythonProducer
from pipeline.log.kafka_records import Run, runs
from pipeline.log.kafka_security import KafkaSecurity
from pipeline.log.kafka_spread import SpreadProducer
from pipeline.log.kafka_topic import (
    ensured_topic,
    incarnation_of,
    log_id_of,
    missing_replicas,
    parse_bootstrap,
    read_configs,
    set_up_faults,
)
from pipeline.log.kafka_wire import ANY_EPOCH, BEGIN, END, KafkaWire, OffsetGoneError, TopicFacts
from pipeline.log.kafka_writer import KafkaWriter
from pipeline.ports.log import LogBatch, LogIdentity, LowestOffsetsSource, PartitionPosition
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

CALL_SECONDS_MAX: Final = 1.0  # one request; Kafka responds in a millisecond, or after a pause of its JVM
NEVER: Final = float("-inf")
READY_SECONDS_MAX: Final = 0.1  # of one wait for one of several brokers
TOPIC_CHECK_SECONDS: Final = 1.0  # how often a reader checks that the topic is still the same one


class _PartitionReader:
    """Fetched records of one partition that were not read yet. `offset` is the next one to read."""

    def __init__(self, bytes_max: int, epoch: int = ANY_EPOCH) -> None:
        self.epoch = epoch  # of the leader that it reads from: another leader may have lost the fetched records
        self._full_bytes = bytes_max // 2  # a response ends with a whole batch, so it rarely reaches its limit
        self.was_full = False  # whether more records probably follow the fetched ones
        self.offset = -1
        self._runs: Iterator[Run] = iter(())
        self._next: Run | None = None  # taken from the runs, and only partly read

    def seek(self, offset: int) -> None:
        """Move to `offset`; a move to another offset discards the fetched records."""
        if self.offset != offset:
            self.fill(offset, b"")

    def fill(self, offset: int, data: bytes) -> None:
        """Use the data fetched at `offset`; it may begin with records before the offset, which were not requested."""
        self.offset, self._runs, self._next = offset, runs(data), None
        self.was_full = len(data) >= self._full_bytes

    def take(self, records_max: int) -> LogBatch | None:
        """Up to `records_max` records without a hole, from `offset` on or after it; None if none are left.

        Raises LogUnavailableError if the fetched data can't be decoded.
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
                break  # a hole: the records after it form their own batch
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
    """EventLog on Kafka ≥ 2.8."""

    def __init__(
        self,
        settings: Settings,
        lowest_offsets: LowestOffsetsSource,
        clock: Clock | None = None,
        security: KafkaSecurity | None = None,
    ) -> None:
        """`security`: that of the settings, if another client with its access token exists. Raises SettingsError."""
        self._settings = settings
        self._topic = settings.log_topic
        self._clock = clock or SystemClock()
        self._bootstrap = parse_bootstrap(settings.event_log_url)
        self._security = security or KafkaSecurity.of(settings, self._clock)
        self._wire = self._new_wire(CALL_SECONDS_MAX)
        append_wire = self._new_wire(min(CALL_SECONDS_MAX, settings.append_seconds_max))  # may run beside other calls
        self._writer = KafkaWriter(settings, append_wire, self._new_producer, lowest_offsets, self._clock)
        self._lowest_offsets = lowest_offsets
        self._readers: dict[int, _PartitionReader] = {}
        self._epochs_read: dict[int, int] = {}  # of each partition's first leader since the last identity()
        self._identity: LogIdentity | None = None
        self._facts: TopicFacts | None = None
        self._checked_at = NEVER

    def _new_wire(self, call_seconds_max: float) -> KafkaWire:
        return KafkaWire(self._bootstrap, call_seconds_max=call_seconds_max, clock=self._clock, security=self._security)

    # --- Who the log is ---------------------------------------------------------------------------------------------

    def identity(self) -> LogIdentity:
        facts, is_new = ensured_topic(self._wire, self._settings, self._clock)
        configs = read_configs(self._wire, self._settings)
        faults = set_up_faults(configs, self._settings, facts)
        identity = LogIdentity(
            log_id_of(self._topic, facts),
            incarnation_of(facts),
            len(facts.leaders),
            faults,
            missing_replicas(self._settings, facts, configs),
        )
        if is_new:
            self._fence_new(identity)
        if self._identity is None:
            self._committed([0])  # a new cluster creates its commits topic at the first request, which takes a second
        elif identity.log_id != self._identity.log_id:
            self._readers.clear()
        self._epochs_read.clear()
        self._identity, self._facts, self._checked_at = identity, facts, self._clock.monotonic()
        return identity

    def _fence_new(self, identity: LogIdentity) -> None:
        """Publish that no record of a newly created log is stored: the process that appends first may not know this."""
        try:
            self._lowest_offsets(identity.log_id, identity.incarnation, is_new=True)
        except RecoverableError as error:
            logger.warning(
                "a new event log's lowest offsets are not known: %s", error, extra={"action": "log_fence_failed"}
            )

    # --- Append -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self._writer.prepare()

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        if entries:
            self._writer.append(entries)

    def _new_producer(self) -> Producer:
        if self._settings.kafka_client == "confluent":
            from pipeline.log.kafka_confluent import ConfluentProducer  # noqa: PLC0415 - an extra of the package

            bootstrap, security, clock = self._bootstrap_texts(), self._security, self._clock
            return SpreadProducer(
                lambda kbytes: ConfluentProducer(bootstrap, security, clock, buffer_kbytes=kbytes), clock
            )
        return PythonProducer.connect(self._bootstrap_texts(), self._security, self._clock)

    # --- Read -------------------------------------------------------------------------------------------------------

    def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
        self._check_topic()
        reader = self._reader_of(partition)
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

    def ready(self, offsets: Mapping[int, int], *, wait_seconds: float) -> set[int]:
        self._check_topic()
        facts = self._facts
        assert facts is not None  # noqa: S101 - the check has read them
        by_leader: dict[int, dict[int, int]] = {}
        found = {partition for partition in offsets if facts.leaders.get(partition, -1) < 0}
        for partition in offsets.keys() - found:
            by_leader.setdefault(facts.leaders[partition], {})[partition] = offsets[partition]
        deadline, wait = self._clock.monotonic() + wait_seconds, 0.0
        while by_leader:
            for leader, its_offsets in by_leader.items():
                found |= self._ready_of(leader, its_offsets, 0 if found else wait, facts)
            left = deadline - self._clock.monotonic()
            if found or left <= 0:
                break
            # Several brokers are asked in turn: what one of them has is noticed after the waits for the others.
            wait = left if len(by_leader) == 1 else min(left, READY_SECONDS_MAX)
        return found

    def _ready_of(self, leader: int, offsets: Mapping[int, int], wait_seconds: float, facts: TopicFacts) -> set[int]:
        try:
            return self._wire.ready(self._topic, leader, offsets, wait_seconds=wait_seconds, epochs=facts.epochs)
        except LogUnavailableError:
            return set(offsets)  # a read says why

    def _reader_of(self, partition: int) -> _PartitionReader:
        """The reader of a partition, for its current leader. Raises LogUnavailableError, LogRestartedError."""
        facts = self._facts
        if facts is None or facts.leaders.get(partition, -1) < 0:
            self._checked_at = NEVER
            raise LogUnavailableError(f"the event log's partition {partition} (Kafka) has no leader now")
        epoch = facts.epochs.get(partition, ANY_EPOCH)
        if self._epochs_read.setdefault(partition, epoch) != epoch:
            self._epochs_read[partition] = epoch
            self._readers.pop(partition, None)
            raise LogRestartedError(
                f"the event log's partition {partition} (Kafka) has another leader: it may have lost its tail"
            )
        reader = self._readers.get(partition)
        if reader is None or reader.epoch != epoch:
            reader = self._readers[partition] = _PartitionReader(self._settings.kafka_fetch_bytes_max, epoch)
        return reader

    def _completed(self, batch: LogBatch, partition: int, reader: _PartitionReader, records_max: int) -> LogBatch:
        """The rest of a fetch, together with the next records: each batch costs a commit, however small it is."""
        reader.fill(*self._fetch(partition, batch.next_offset, 0))
        more = reader.take(records_max - len(batch.values))
        if more is None:
            return batch
        if more.offset != batch.next_offset:
            reader.seek(batch.next_offset)  # a hole: the records after it form their own batch
            return batch
        return LogBatch(batch.offset, batch.values + more.values)

    def _fetch(self, partition: int, offset: int, wait_seconds: float) -> tuple[int, bytes]:
        """The offset used, and the leader's records from it on: from `offset`, or from the log's begin after it.

        Raises LogUnavailableError, LogGapError.
        """
        try:
            return offset, self._fetched(partition, offset, wait_seconds)
        except OffsetGoneError:
            begin = self._begin_after(partition, offset)
        try:
            return begin, self._fetched(partition, begin, 0)
        except OffsetGoneError as error:
            raise LogUnavailableError(f"the event log (Kafka) is being trimmed: {error}") from error

    def _fetched(self, partition: int, offset: int, wait_seconds: float) -> bytes:
        assert self._facts is not None  # noqa: S101 - the facts are set before a reader exists
        return self._wire.fetch(
            self._topic,
            partition,
            self._facts.leaders.get(partition, -1),
            offset,
            bytes_max=self._settings.kafka_fetch_bytes_max,
            wait_seconds=wait_seconds,
            epoch=self._facts.epochs.get(partition, ANY_EPOCH),
        )

    def _check_topic(self) -> None:
        """Check once a second that the topic was not recreated: then its offsets would belong to other records.

        Raises LogUnavailableError, LogRestartedError.
        """
        identity = self._identity or self.identity()
        now = self._clock.monotonic()
        if now - self._checked_at < TOPIC_CHECK_SECONDS:
            return
        facts = self._wire.topic(self._topic)
        if facts is None or log_id_of(self._topic, facts) != identity.log_id:
            raise LogRestartedError(f"the event log's topic {self._topic} is not the one that it was")
        self._facts, self._checked_at = facts, now

    def _begin_after(self, partition: int, offset: int) -> int:
        """The offset at which the log continues after one that it does not hold. Raises LogGapError beyond its end."""
        begin, end = (self._offset(partition, which) for which in (BEGIN, END))
        if offset > end:
            raise LogGapError(f"the event log's partition {partition} ends at {end}, before offset {offset}")
        return max(begin, offset)

    def _offset(self, partition: int, which: int) -> int:
        assert self._facts is not None  # noqa: S101 - the facts are set before a reader exists
        leader = self._facts.leaders.get(partition, -1)
        return self._wire.offsets(self._topic, {partition: leader}, which, self._facts.epochs)[partition]

    # --- Commit and positions ---------------------------------------------------------------------------------------

    def commit(self, log_id: str, partition: int, offset: int) -> None:
        try:
            facts = self._wire.topic(self._topic)  # a commit only has the topic's name, which may be a new topic's
            if facts is None or log_id_of(self._topic, facts) != log_id:
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
        if facts is None or log_id_of(self._topic, facts) != log_id:
            raise LogUnavailableError("the event log (Kafka) is not the same log as at the last check")
        begins = self._wire.offsets(self._topic, facts.led, BEGIN)
        ends = self._wire.offsets(self._topic, {partition: facts.leaders[partition] for partition in begins}, END)
        committed = self._committed(sorted(ends))
        return [
            PartitionPosition(partition, begins[partition], ends[partition], committed.get(partition), ends[partition])
            for partition in sorted(ends)
        ]

    def _committed(self, partitions: Sequence[int]) -> dict[int, int | None]:
        """The group's commits; empty if no coordinator answers. PostgreSQL's offsets decide, not these."""
        try:
            return self._wire.committed(self._settings.kafka_group, self._topic, partitions)
        except LogUnavailableError as error:
            logger.info(
                "Kafka does not report its committed offsets: %s", error, extra={"action": "log_coordinator_absent"}
            )
            return {}

    def close(self) -> None:
        self._writer.close()
        self._readers.clear()
        self._wire.close()

    # --- Inside -----------------------------------------------------------------------------------------------------

    def _bootstrap_texts(self) -> list[str]:
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self._bootstrap]
