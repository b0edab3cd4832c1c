"""Appends to a topic of Kafka, with an outcome for each partition.

kafka-python produces. It keeps what it was handed and sends it later, follows a partition to whichever leader it gets,
and knows nothing of what PostgreSQL has stored: what is around it here sees to these three.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from pipeline.clock import Clock
from pipeline.errors import (
    LogFullError,
    LogIndeterminateError,
    LogMisconfiguredError,
    LogPartialError,
    LogUnavailableError,
    RecoverableError,
    SluiceError,
)
from pipeline.log.kafka_topic import ensured_topic, incarnation_of, log_id_of
from pipeline.log.kafka_wire import ANY_EPOCH, END, KafkaWire, TopicFacts
from pipeline.ports.log import FloorSource
from pipeline.settings import Settings

LOOK_SECONDS: Final = 1.0  # how often the topic is looked at while all is well: leaders, and partitions added
TROUBLED_LOOK_SECONDS: Final = 0.1  # the same while a partition is refused
FENCE_AGAIN_SECONDS: Final = 1.0  # until what is stored of a partition that lost its tail is asked for again
SILENT_AGAIN_FACTOR: Final = 5  # a new leader that does not answer costs a sixth of the time at most
FIRST_POLL_SECONDS: Final = 0.01
FIRST_SECONDS_MAX: Final = 0.3  # that a process waits for the leaders of a topic which has them only just
# Of the time of an append: when partitions are confirmed and others are not, those that it has waited for so long are
# given up, so that the clients of the others are answered in time.
LAGGARD_SHARE: Final = 0.5
_SHORT_SECONDS: Final = 0.001

Entries = Sequence[tuple[int, bytes]]
Failures = dict[int, SluiceError]


@dataclass(frozen=True, slots=True)
class _Unfit:
    """A partition that may not be appended to."""

    epoch: int  # of the leader for which that was found
    again_at: float  # monotonic: when it is judged again
    why: LogUnavailableError


class KafkaWriter:
    """The appending side of a KafkaLog, which may run beside the reading side: it has connections of its own.

    Nothing is appended to a partition before its end was compared with what is stored of it. That is done again
    whenever its leader is another one, for a new leader may have lost the tail (an unclean election, a broker that
    lost power).

    Its weakness: the leaders are looked at once a second, and after each failure. Where a partition loses its tail and
    has a new leader within that second, an append may come between; its offset gives that away if this process has
    appended more before, and else the drain finds that the last stored record is another.
    """

    def __init__(
        self,
        settings: Settings,
        wire: KafkaWire,
        new_producer: Callable[[], KafkaProducer],
        floors: FloorSource,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._topic = settings.log_topic
        self._wire = wire
        self._new_producer = new_producer
        self._floors = floors
        self._clock = clock
        self._producer: KafkaProducer | None = None
        self._produced_since = 0.0  # monotonic: when it was made
        self._facts: TopicFacts | None = None
        self._is_new = False  # this process has just made the topic
        self._looked_at = float("-inf")
        self._is_suspect = True  # nothing is known of Kafka yet, or the latest append failed
        self._owed: dict[int, list[Any]] = {}  # futures of appends that ran out of time, by partition
        self._fenced: dict[int, int] = {}  # the epoch of the leader whose end was compared with what is stored
        self._unfit: dict[int, _Unfit] = {}
        self._ends: dict[int, int] = {}  # as far as this process knows; an end never goes back

    def prepare(self) -> None:
        """EventLog.prepare."""
        deadline = self._clock.monotonic() + self._settings.append_seconds_max
        facts = self._current_facts()
        self._fence(facts)
        self._refuse_where_none_is_fit(facts)
        self._ready_producer(len(facts.leaders), deadline)

    def append(self, entries: Entries) -> None:
        """EventLog.append."""
        deadline = self._clock.monotonic() + self._settings.append_seconds_max
        facts = self._current_facts()
        wanted = {partition for partition, _ in entries}
        if not wanted <= facts.leaders.keys():
            self._looked_at = float("-inf")
            raise LogUnavailableError(f"the event log's topic has only {len(facts.leaders)} partitions")
        failures = self._refusals(wanted, facts, deadline)
        if len(failures) < len(wanted):
            producer, known = self._ready_producer(len(facts.leaders), deadline)
            failures |= {partition: _added(partition) for partition in wanted - known - failures.keys()}
            taken = [entry for entry in entries if entry[0] not in failures]
            failures |= self._produce(producer, taken, deadline)
        self._refuse_where_none_is_fit(facts)
        if failures:
            raise LogPartialError(failures)

    def close(self) -> None:
        """Let go of the producer and of the connections; idempotent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=self._settings.append_seconds_max)
        self._is_suspect = True
        self._owed.clear()
        self._wire.close()

    def _refuse_where_none_is_fit(self, facts: TopicFacts) -> None:
        """Raise LogUnavailableError where no partition may be appended to: that is then the trouble of the log."""
        if facts.leaders.keys() <= self._unfit.keys():
            raise LogUnavailableError(str(next(iter(self._unfit.values())).why))

    # --- Before -----------------------------------------------------------------------------------------------------

    def _current_facts(self) -> TopicFacts:
        """The topic as it is now, looked at once in a while, and where something is amiss.

        After a failure Kafka is asked first whether it is there: with Kafka away for longer, appends then fail at once
        and for certain, instead of filling the producer's buffer with what the clients will send again. Raises
        LogUnavailableError.
        """
        facts = self._facts
        if facts is not None and not self._is_suspect:
            is_troubled = self._owed or self._unfit or len(facts.led) < len(facts.leaders)
            age_seconds = self._clock.monotonic() - self._looked_at
            if age_seconds < (TROUBLED_LOOK_SECONDS if is_troubled else LOOK_SECONDS):
                return facts
        self._is_suspect = True
        try:
            facts, is_new = ensured_topic(self._wire, self._settings, self._clock)
        except LogMisconfiguredError as error:
            raise LogUnavailableError(str(error)) from error
        if self._facts is None or facts.topic_id != self._facts.topic_id:
            self._forget()
            self._is_new = is_new
        self._facts, self._looked_at, self._is_suspect = facts, self._clock.monotonic(), False
        return facts

    def _forget(self) -> None:
        """This is another topic: nothing that was known holds for it."""
        for known in (self._owed, self._fenced, self._unfit, self._ends):
            known.clear()

    def _refusals(self, wanted: set[int], facts: TopicFacts, deadline: float) -> Failures:
        """Why nothing can be appended to some of the partitions now."""
        self._settle_owed(wanted, deadline)
        self._fence(facts)
        refusals: Failures = {}
        for partition in wanted:
            if facts.leaders[partition] < 0:
                refusals[partition] = LogUnavailableError(
                    f"the event log's partition {partition} (Kafka) has no leader now"
                )
            elif partition in self._owed:
                refusals[partition] = LogUnavailableError(
                    f"the event log's partition {partition} (Kafka) still owes the answer to an earlier append"
                )
            elif partition in self._unfit:
                refusals[partition] = self._unfit[partition].why
        return refusals

    def _settle_owed(self, wanted: set[int], deadline: float) -> None:
        """Forget answers that have come. Where each partition of an append owes one, there is time to wait for them."""
        if wanted <= self._owed.keys():
            for partition in wanted:
                for future in self._owed[partition]:
                    with contextlib.suppress(KafkaError):  # that it failed was said already
                        future.get(timeout=max(deadline - self._clock.monotonic(), _SHORT_SECONDS))
        self._owed = {
            partition: futures
            for partition, futures in self._owed.items()
            if not all(future.is_done for future in futures)
        }

    def _fence(self, facts: TopicFacts) -> None:
        """Compare the ends of partitions with a leader that is new with what is stored; see the class."""
        now = self._clock.monotonic()
        due = {}
        for partition, leader in facts.led.items():
            epoch = facts.epochs.get(partition, ANY_EPOCH)
            if self._fenced.get(partition) == epoch:
                continue
            unfit = self._unfit.get(partition)
            if unfit is None or unfit.epoch != epoch or now >= unfit.again_at:
                due[partition] = leader
        if due:
            self._judge(facts, due)

    def _judge(self, facts: TopicFacts, due: dict[int, int]) -> None:
        """Find out which partitions may be appended to.

        What is stored is asked for after the leaders are known and before their ends: no drain can store more of an
        earlier leader's records afterwards, since this fences it off.
        """
        started = self._clock.monotonic()
        answering = self._ends_of(facts, due)
        ends: dict[int, int] = {}
        floors: Mapping[int, int] = {}
        problem = ""
        # Asking the leaders alone costs little, but for one that is silent: all that is appended waits for it.
        took_seconds = self._clock.monotonic() - started
        again_seconds = max(TROUBLED_LOOK_SECONDS, SILENT_AGAIN_FACTOR * took_seconds)
        if answering:
            again_seconds = FENCE_AGAIN_SECONDS
            is_new, self._is_new = self._is_new, False
            try:
                floors = self._floors(log_id_of(self._topic, facts), incarnation_of(facts), is_new=is_new)
                ends = self._ends_of(facts, {partition: due[partition] for partition in answering})
            except RecoverableError as error:
                problem = f": {error}"
        again_at = self._clock.monotonic() + again_seconds
        for partition in due:
            epoch, end, floor = facts.epochs.get(partition, ANY_EPOCH), ends.get(partition), floors.get(partition, 0)
            if end is not None and end >= floor:
                self._fenced[partition], self._ends[partition] = epoch, end
                self._unfit.pop(partition, None)
                continue
            why = (
                f"nothing can be appended to partition {partition} of the event log (Kafka) before it is compared with "
                f"what is stored{problem}"
                if end is None
                else f"partition {partition} of the event log (Kafka) has lost its tail: it ends at {end}, before the "
                f"stored offset {floor}"
            )
            self._unfit[partition] = _Unfit(epoch, again_at, LogUnavailableError(why))

    def _ends_of(self, facts: TopicFacts, leaders: dict[int, int]) -> dict[int, int]:
        """The ends of partitions whose leaders say them; at first they get a moment to take office."""
        is_first = not self._fenced and not self._unfit
        deadline = self._clock.monotonic() + (FIRST_SECONDS_MAX if is_first else 0)
        while True:
            try:
                ends = self._wire.offsets(self._topic, leaders, END, facts.epochs)
            except LogUnavailableError:
                ends = {}
            if len(ends) == len(leaders) or self._clock.monotonic() >= deadline:
                return ends
            self._clock.sleep(FIRST_POLL_SECONDS)

    def _ready_producer(self, partitions: int, deadline: float) -> tuple[KafkaProducer, set[int]]:
        """A producer, and the partitions that it knows. Raises LogUnavailableError.

        A producer asks for partitions that were added in some minutes only. So another one takes its place, unless it
        owes an answer, and once a second at most: the broker that it asks may not know of them yet either.
        """
        while True:
            now = self._clock.monotonic()
            producer = self._producer
            if producer is None:
                producer, self._produced_since = self._new_producer(), now
                self._producer = producer
            try:
                known = producer.partitions_for(self._topic)
            except KafkaError as error:
                if now >= deadline:
                    self._is_suspect = True
                    raise LogUnavailableError(f"the event log (Kafka) does not describe its topic: {error}") from error
                self._clock.sleep(FIRST_POLL_SECONDS)
                continue
            if len(known) >= partitions or self._owed or now - self._produced_since < LOOK_SECONDS:
                return producer, known
            self._producer = None
            producer.close(timeout=max(deadline - now, _SHORT_SECONDS))

    # --- The append -------------------------------------------------------------------------------------------------

    def _produce(self, producer: KafkaProducer, entries: Entries, deadline: float) -> Failures:
        """Append to partitions that may be appended to. Raises LogFullError where nothing was taken of any."""
        sent: dict[int, list[Any]] = {}
        counts: dict[int, int] = {}
        for partition, _ in entries:
            counts[partition] = counts.get(partition, 0) + 1
        full: KafkaError | None = None
        try:
            for partition, value in entries:
                sent.setdefault(partition, []).append(self._send(producer, partition, value, deadline))
        except KafkaError as error:
            full = error
        sent = {partition: futures for partition, futures in sent.items() if futures}
        if full is not None and not sent:
            raise LogFullError(f"the event log's producer (Kafka) takes nothing: {full}") from full
        self._await(producer, sent, deadline)
        failures: Failures = {}
        for partition, count in counts.items():
            if partition not in sent:
                failures[partition] = LogFullError(f"the event log's producer (Kafka) takes nothing more: {full}")
            else:
                failure = self._outcome(partition, sent[partition], count)
                if failure is not None:
                    self._is_suspect = True
                    failures[partition] = failure
        return failures

    def _send(self, producer: KafkaProducer, partition: int, value: bytes, deadline: float) -> Any:
        """Hand one record to the producer, waiting for room in its buffer. Raises KafkaError when there is none."""
        while True:
            try:
                return producer.send(self._topic, value, partition=partition)
            except KafkaTimeoutError:  # nothing of this record was taken
                if self._clock.monotonic() >= deadline:
                    raise

    def _await(self, producer: KafkaProducer, sent: dict[int, list[Any]], deadline: float) -> None:
        """Wait until all is answered, or time is up; for partitions that hold up others, for a share of it."""
        share_seconds = self._settings.append_seconds_max * LAGGARD_SHARE
        first_deadline = min(deadline, self._clock.monotonic() + share_seconds)
        if not self._owed:  # it would wait for these too
            with contextlib.suppress(KafkaError):
                producer.flush(timeout=share_seconds)
        for limit in (first_deadline, deadline):
            for futures in sent.values():  # answers to a partition's records come in their order
                with contextlib.suppress(KafkaError):
                    futures[-1].get(timeout=max(limit - self._clock.monotonic(), _SHORT_SECONDS))
            if any(futures[-1].is_done for futures in sent.values()):
                return

    def _outcome(self, partition: int, futures: list[Any], count: int) -> SluiceError | None:
        """What became of the records that a partition was sent; None: all are durable, and will be read."""
        if not all(future.is_done for future in futures):
            self._owed[partition] = [*self._owed.get(partition, ()), *futures]
            return LogIndeterminateError(f"partition {partition} of the event log (Kafka) did not confirm an append")
        failed = next((future for future in futures if not future.succeeded()), None)
        if failed is not None:
            return LogIndeterminateError(
                f"partition {partition} of the event log (Kafka) failed in an append: {failed.exception}"
            )
        first, last = futures[0].value.offset, futures[-1].value.offset
        if first < self._ends.get(partition, 0):
            self._fenced.pop(partition, None)
            return LogIndeterminateError(
                f"partition {partition} of the event log (Kafka) has lost its tail: it gave offset {first} again"
            )
        self._ends[partition] = last + 1
        if len(futures) < count:
            return LogIndeterminateError("the event log's producer (Kafka) took a part of an append only")
        return None


def _added(partition: int) -> LogUnavailableError:
    return LogUnavailableError(
        f"partition {partition} of the event log (Kafka) was added, and is not used yet: the producer does not know it"
    )
