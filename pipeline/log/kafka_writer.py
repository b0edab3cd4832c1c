"""Appends to a Kafka topic, with an outcome for each partition.

A library's producer does it (`kafka_producer`). It keeps the records that it was given and sends them later. It follows
a partition to its new leader, whichever that is. It does not know which offsets PostgreSQL has stored. This module
handles these three problems, for every library in the same way.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import (
    LogFullError,
    LogIndeterminateError,
    LogMisconfiguredError,
    LogPartialError,
    LogUnavailableError,
    RecoverableError,
    SluiceError,
    about_the_log,
)
from pipeline.log.kafka_producer import Producer, ProducerError, Sent
from pipeline.log.kafka_topic import ensured_topic, incarnation_of, log_id_of, replication_problem
from pipeline.log.kafka_wire import ANY_EPOCH, END, KafkaWire, TopicFacts
from pipeline.ports.log import LowestOffsetsSource
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0  # how often the topic is read while there is no problem: leaders, and added partitions
TROUBLED_LOOK_SECONDS: Final = 0.1  # the same while a partition is refused
FENCE_AGAIN_SECONDS: Final = 1.0  # interval between reads of the stored offsets of a partition that lost its tail
SILENT_AGAIN_FACTOR: Final = 5  # a new leader that does not answer costs at most a sixth of the time
FIRST_POLL_SECONDS: Final = 0.01
FIRST_SECONDS_MAX: Final = 0.3  # how long a process waits for the leaders of a topic that has only just got them
# Share of an append's time limit. If some partitions have confirmed by then and others have not, the others are given
# up, so that the clients of the confirmed ones get their response in time.
LAGGARD_SHARE: Final = 0.5
_SHORT_SECONDS: Final = 0.001

Entries = Sequence[tuple[int, bytes]]
Failures = dict[int, SluiceError]


@dataclass(frozen=True, slots=True)
class _Unfit:
    """A partition that must not be appended to."""

    epoch: int  # of the leader that this result belongs to
    again_at: float  # monotonic: time of the next check
    why: LogUnavailableError


class KafkaWriter:
    """The appending side of a KafkaLog. It has its own connections, so it may run beside the reading side.

    Before the first append to a partition, its end is compared with its stored offset. The comparison is repeated
    whenever the partition has another leader, because a new leader may have lost the tail (an unclean election, a
    broker that lost power).

    Its weakness: it reads the leaders once a second, and after each failure. If a partition loses its tail and gets a
    new leader within that second, an append may happen in between. If this process has appended more before, the
    append's offset reveals the loss. Otherwise the drain finds that the last stored record is another one.
    """

    def __init__(
        self,
        settings: Settings,
        wire: KafkaWire,
        new_producer: Callable[[], Producer],
        lowest_offsets: LowestOffsetsSource,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._topic = settings.log_topic
        self._wire = wire
        self._new_producer = new_producer
        self._lowest_offsets = lowest_offsets
        self._clock = clock
        self._producer: Producer | None = None
        self._produced_since = 0.0  # monotonic: when it was created
        self._facts: TopicFacts | None = None
        self._is_new = False  # this process has just created the topic
        self._looked_at = float("-inf")
        self._is_suspect = True  # Kafka's state is not known yet, or the latest append failed
        self._owed: dict[int, list[Sent]] = {}  # appends that ran out of time, by partition
        self._fenced: dict[int, int] = {}  # partition -> epoch of the leader whose end was compared
        self._unfit: dict[int, _Unfit] = {}
        self._short: dict[int, LogUnavailableError] = {}  # partitions with too few replicas in sync, by the facts
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
            failures |= self._produce(producer, taken, facts.leaders, deadline)
        self._refuse_where_none_is_fit(facts)
        if failures:
            raise LogPartialError(failures)

    def close(self) -> None:
        """Close the producer and the connections; idempotent."""
        self._drop_producer(self._settings.append_seconds_max)
        self._is_suspect = True
        self._owed.clear()
        self._wire.close()

    def _refuse_where_none_is_fit(self, facts: TopicFacts) -> None:
        """Raise LogUnavailableError if no partition may be appended to: then the whole log has the problem."""
        if facts.leaders.keys() <= self._unfit.keys() | self._short.keys():
            problems = [*self._short.values(), *(unfit.why for unfit in self._unfit.values())]
            raise LogUnavailableError(about_the_log(problems[0], "the event log (Kafka) accepts no events"))

    # --- Before -----------------------------------------------------------------------------------------------------

    def _current_facts(self) -> TopicFacts:
        """The current facts of the topic, read from time to time, and after a problem.

        After a failure this first checks that Kafka answers. If Kafka is unavailable for longer, appends then fail at
        once and for certain; they do not fill the producer's buffer with records that the clients will send again.
        Raises LogUnavailableError.
        """
        facts = self._facts
        if facts is not None and not self._is_suspect:
            is_troubled = self._owed or self._unfit or self._short or len(facts.led) < len(facts.leaders)
            age_seconds = self._clock.monotonic() - self._looked_at
            if age_seconds < (TROUBLED_LOOK_SECONDS if is_troubled else LOOK_SECONDS):
                return facts
        self._is_suspect = True
        try:
            facts, is_new = ensured_topic(self._wire, self._settings, self._clock)
        except LogMisconfiguredError as error:
            raise LogUnavailableError(str(error)) from error
        if self._facts is None or facts.topic_id != self._facts.topic_id:
            if self._facts is not None:
                self._report_replaced(log_id_of(self._topic, facts), log_id_of(self._topic, self._facts))
            self._drop_producer(_SHORT_SECONDS)  # what it still has is for the other topic
            self._forget()
            self._is_new = is_new
        self._facts, self._looked_at, self._is_suspect = facts, self._clock.monotonic(), False
        self._short = {
            partition: LogUnavailableError(problem)
            for partition in sorted(facts.led)
            if (problem := replication_problem(self._settings, facts, partition)) is not None
        }
        return facts

    def _report_replaced(self, log_id: str, former: str) -> None:
        ends = ", ".join(f"{partition}: {end}" for partition, end in sorted(self._ends.items()))
        logger.warning(
            "the event log (Kafka) is another log now, %s: %s was deleted. This process knew its ends as %s; records "
            "that were not stored are lost",
            log_id,
            former,
            ends or "unknown",
            extra={"action": "log_replaced", "log_id": log_id},
        )

    def _forget(self) -> None:
        """Forget all facts, because this is another topic."""
        for known in (self._owed, self._fenced, self._unfit, self._ends):
            known.clear()

    def _refusals(self, wanted: set[int], facts: TopicFacts, deadline: float) -> Failures:
        """The reasons why some of the partitions can't be appended to now."""
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
            elif partition in self._short:
                refusals[partition] = self._short[partition]
        return refusals

    def _settle_owed(self, wanted: set[int], deadline: float) -> None:
        """Forget responses that have arrived. If each partition of an append has one outstanding, wait for them."""
        must_wait = wanted <= self._owed.keys()
        for partition, its in self._owed.items():
            for sent in its:  # a failure was already reported
                is_awaited = must_wait and partition in wanted
                sent.wait(max(deadline - self._clock.monotonic(), _SHORT_SECONDS) if is_awaited else 0)
        if self._producer is not None and self._producer.is_broken:
            self._drop_producer(_SHORT_SECONDS)  # it gives up what it owes
        self._owed = {partition: its for partition, its in self._owed.items() if not all(sent.is_done for sent in its)}

    def _fence(self, facts: TopicFacts) -> None:
        """Compare the ends of partitions that have a new leader with the stored offsets; see the class."""
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

        The stored offsets are read after the leaders and before the ends. Reading them fences off earlier leaders'
        drains, so no drain can store more of an earlier leader's records afterwards.
        """
        started = self._clock.monotonic()
        answering = self._ends_of(facts, due)
        ends: dict[int, tuple[int, bool]] = {}
        lowest_offsets: Mapping[int, int] = {}
        problem = ""
        # Reading only the leaders costs little, unless one does not answer: then every append waits for it.
        took_seconds = self._clock.monotonic() - started
        again_seconds = max(TROUBLED_LOOK_SECONDS, SILENT_AGAIN_FACTOR * took_seconds)
        if answering:
            again_seconds = FENCE_AGAIN_SECONDS
            is_new, self._is_new = self._is_new, False
            try:
                lowest_offsets = self._lowest_offsets(
                    log_id_of(self._topic, facts), incarnation_of(facts), is_new=is_new
                )
                ends = self._ends_of(facts, {partition: due[partition] for partition in answering})
            except RecoverableError as error:
                problem = f": {error}"
        again_at = self._clock.monotonic() + again_seconds
        for partition in due:
            epoch, lowest = facts.epochs.get(partition, ANY_EPOCH), lowest_offsets.get(partition, 0)
            end, is_confirmed = ends.get(partition, (None, False))
            if end is not None and end >= lowest:
                # One that is not confirmed may go back without a loss.
                self._fenced[partition], self._ends[partition] = epoch, end if is_confirmed else lowest
                self._unfit.pop(partition, None)
                continue
            why = (
                f"nothing can be appended to partition {partition} of the event log (Kafka) before it is compared with "
                f"what is stored{problem}"
                if end is None
                else f"partition {partition} of the event log (Kafka) has lost its tail: it ends at {end}, before the "
                f"stored offset {lowest}"
            )
            self._unfit[partition] = _Unfit(epoch, again_at, LogUnavailableError(why))

    def _ends_of(self, facts: TopicFacts, leaders: dict[int, int]) -> dict[int, tuple[int, bool]]:
        """The ends of partitions whose leaders answer, and whether each is confirmed.

        The first time, new leaders get a moment to start. An end that is not confirmed is enough for the comparison:
        what was stored is before it. Kafka may confirm none until something is appended: a leader that was elected with
        too few replicas in sync does not look again when the topic asks for fewer.
        """
        is_first = not self._fenced and not self._unfit
        deadline = self._clock.monotonic() + (FIRST_SECONDS_MAX if is_first else 0)
        while True:
            try:
                known, unconfirmed = self._wire.offsets_or_unconfirmed(self._topic, leaders, END, facts.epochs)
            except LogUnavailableError:
                known, unconfirmed = {}, {}
            ends = {partition: (end, False) for partition, end in unconfirmed.items()}
            ends |= {partition: (end, True) for partition, end in known.items()}
            if len(ends) == len(leaders) or self._clock.monotonic() >= deadline:
                return ends
            self._clock.sleep(FIRST_POLL_SECONDS)

    def _ready_producer(self, partitions: int, deadline: float) -> tuple[Producer, set[int]]:
        """A producer, and the partitions that it knows. Raises LogUnavailableError.

        A producer finds added partitions only after some minutes. So this replaces it, unless a response is
        outstanding, and at most once a second: the broker that the producer uses may not know the new partitions yet
        either. A broken one is replaced too: it has given up what it still had.
        """
        while True:
            now = self._clock.monotonic()
            producer = self._producer
            if producer is None:
                producer = self._producer = self._made_producer()
                self._produced_since = now
            try:
                known = producer.partitions_for(self._topic, max(deadline - now, _SHORT_SECONDS))
            except ProducerError as error:
                if now >= deadline:
                    self._is_suspect = True
                    if producer.is_broken:
                        self._drop_producer(_SHORT_SECONDS)
                    raise LogUnavailableError(f"the event log (Kafka) does not describe its topic: {error}") from error
                self._clock.sleep(FIRST_POLL_SECONDS)
                continue
            if producer.is_broken and now < deadline:
                self._drop_producer(_SHORT_SECONDS)
                continue
            if len(known) >= partitions or self._owed or now - self._produced_since < LOOK_SECONDS:
                return producer, known
            self._drop_producer(max(deadline - now, _SHORT_SECONDS))

    def _made_producer(self) -> Producer:
        try:
            return self._new_producer()
        except ProducerError as error:
            self._is_suspect = True
            raise LogUnavailableError(
                f"the event log (Kafka) accepts no events: its producer can't be made: {error}"
            ) from error

    def _drop_producer(self, seconds_max: float) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(seconds_max)

    # --- The append -------------------------------------------------------------------------------------------------

    def _produce(self, producer: Producer, entries: Entries, leaders: Mapping[int, int], deadline: float) -> Failures:
        """Append to partitions that may be appended to.

        Raises LogFullError or LogUnavailableError if the producer accepted no record.
        """
        counts: dict[int, int] = {}
        for partition, _ in entries:
            counts[partition] = counts.get(partition, 0) + 1
        sent, refusal = producer.send(self._topic, entries, deadline)
        if refusal is not None and not sent:
            if producer.is_broken:
                self._is_suspect = True
                raise LogUnavailableError(
                    f"the event log (Kafka) accepts no events: its producer has failed: {refusal}"
                ) from refusal
            raise LogFullError(f"the event log's producer (Kafka) accepts no records: {refusal}") from refusal
        self._await(producer, sent, leaders, deadline)
        failures: Failures = {}
        for partition, count in counts.items():
            if partition not in sent:
                failures[partition] = LogFullError(
                    f"the event log's producer (Kafka) accepts no more records: {refusal}"
                )
            else:
                failure = self._outcome(partition, sent[partition], count)
                if failure is not None:
                    self._is_suspect = True
                    failures[partition] = failure
        return failures

    def _await(self, producer: Producer, sent: Mapping[int, Sent], leaders: Mapping[int, int], deadline: float) -> None:
        """Wait until all partitions have answered or time is up; for brokers that delay others, a share of it.

        A broker that has answered for one of its partitions is only slow: its other partitions get all the time.
        """
        share_seconds = self._settings.append_seconds_max * LAGGARD_SHARE
        first_deadline = min(deadline, self._clock.monotonic() + share_seconds)
        if not self._owed:  # flush would wait for these too
            producer.flush(share_seconds)
        for limit in (first_deadline, deadline):
            for its in sent.values():
                its.wait(max(limit - self._clock.monotonic(), _SHORT_SECONDS))
            done = {partition for partition, its in sent.items() if its.is_done}
            answered = {leaders[partition] for partition in done}
            awaited = {leaders[partition] for partition in sent.keys() - done}
            if not awaited or (answered and not answered & awaited):
                return

    def _outcome(self, partition: int, sent: Sent, count: int) -> SluiceError | None:
        """The outcome of the records sent to a partition; None: all are durable and will be read."""
        if not sent.is_done:
            self._owed[partition] = [*self._owed.get(partition, ()), sent]
            return LogIndeterminateError(f"partition {partition} of the event log (Kafka) did not confirm an append")
        if sent.failure is not None:
            return LogIndeterminateError(
                f"partition {partition} of the event log (Kafka) failed in an append: {sent.failure}"
            )
        first, last = sent.offsets
        if first < self._ends.get(partition, 0):
            self._fenced.pop(partition, None)
            return LogIndeterminateError(
                f"partition {partition} of the event log (Kafka) has lost its tail: it gave offset {first} again"
            )
        self._ends[partition] = last + 1
        if sent.count < count:
            return LogIndeterminateError("the event log's producer (Kafka) took a part of an append only")
        return None


def _added(partition: int) -> LogUnavailableError:
    return LogUnavailableError(
        f"partition {partition} of the event log (Kafka) was added, and is not used yet: the producer does not know it"
    )
