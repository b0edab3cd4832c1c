"""What a partition of Kafka takes is decided for it alone; brokers, producer and clock are scripted."""

import uuid
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from kafka.errors import KafkaError, KafkaTimeoutError, NotLeaderForPartitionError, TopicAuthorizationFailedError

from pipeline.clock import ManualClock
from pipeline.errors import (
    LogIndeterminateError,
    LogPartialError,
    LogUnavailableError,
    SluiceError,
    StoreUnavailableError,
)
from pipeline.log.kafka_python import PythonProducer
from pipeline.log.kafka_topic import incarnation_of
from pipeline.log.kafka_wire import TopicFacts
from pipeline.log.kafka_writer import KafkaWriter
from pipeline.settings import Settings
from support.event_logs import ScriptedLowestOffsets

Value = namedtuple("Value", "offset")


class FakeWire:
    """A topic as the brokers say it is."""

    def __init__(self) -> None:
        self.facts = TopicFacts(uuid.uuid4(), {0: 1, 1: 2, 2: 1}, {0: 5, 1: 5, 2: 5})
        self.ends = {0: 0, 1: 0, 2: 0}
        self.unconfirmed: set[int] = set()  # their leaders do not know what their replicas have
        self.looks = 0
        self.silence_seconds = 0.0
        self.clock: ManualClock | None = None

    def topic(self, _name: str) -> TopicFacts:
        self.looks += 1
        return self.facts

    def offsets_or_unconfirmed(
        self, _name: str, leaders: Mapping[int, int], _which: int, epochs: Mapping[int, int]
    ) -> tuple[dict[int, int], dict[int, int]]:
        if self.clock is not None and not leaders.keys() <= self.ends.keys():
            self.clock.advance(self.silence_seconds)
        found = {p: self.ends[p] for p in leaders if epochs[p] == self.facts.epochs[p] and p in self.ends}
        if not found:
            raise LogUnavailableError("no broker answers")
        unconfirmed = {partition: found.pop(partition) for partition in self.unconfirmed & found.keys()}
        return found, unconfirmed

    def lead(self, partition: int, leader: int, end: int | None) -> None:
        """Give a partition another leader (-1: none), who has its records up to `end`."""
        leaders, epochs = {**self.facts.leaders, partition: leader}, dict(self.facts.epochs)
        epochs[partition] = epochs.get(partition, 0) + 1
        self.facts = TopicFacts(self.facts.topic_id, leaders, epochs)
        if end is not None:
            self.ends[partition] = end

    def close(self) -> None:
        pass


class Future:
    """What a producer gives for a record; `get` waits by the manual clock, and the producer sends meanwhile."""

    def __init__(self, clock: ManualClock, send: Callable[[], None]) -> None:
        self._clock = clock
        self._send = send
        self.is_done = False
        self.exception: Exception | None = None
        self.value: Value | None = None

    def succeeded(self) -> bool:
        return self.is_done and self.exception is None

    def get(self, timeout: float) -> None:
        self._send()
        if not self.is_done:
            self._clock.advance(timeout)
            raise KafkaTimeoutError


class FakeProducer:
    """Appends at once to each partition that is not silent."""

    def __init__(self, wire: FakeWire, clock: ManualClock, known: set[int] | None) -> None:
        self._wire, self._clock = wire, clock
        self.known = set(wire.facts.leaders) if known is None else known
        self.refusal: KafkaError | None = None
        self.questions = 0
        self.silent: set[int] = set()
        self.failing: set[int] = set()
        self.sent: list[tuple[int, bytes]] = []
        self.pending: list[tuple[int, Future]] = []

    def partitions_for(self, _topic: str) -> set[int]:
        self.questions += 1
        if self.questions > 10_000:
            raise AssertionError("asked without a pause")
        if self.refusal is not None:
            raise self.refusal
        return self.known

    def send(self, _topic: str, value: bytes, partition: int) -> Future:
        future = Future(self._clock, self.answer)
        self.sent.append((partition, value))
        self.pending.append((partition, future))
        return future

    def flush(self, timeout: float) -> None:
        self.answer()
        if self.pending:
            self._clock.advance(timeout)
            raise KafkaTimeoutError

    def answer(self) -> None:
        for partition, future in self.pending:
            if partition in self.silent:
                continue
            future.is_done = True
            if partition in self.failing:
                future.exception = NotLeaderForPartitionError()
            else:
                future.value = Value(self._wire.ends[partition])
                self._wire.ends[partition] += 1
        self.pending = [(partition, future) for partition, future in self.pending if not future.is_done]

    def close(self, timeout: float) -> None:
        pass


class Rig:
    def __init__(self, **changes: Any) -> None:
        self.clock = ManualClock()
        self.wire = FakeWire()
        self.wire.clock = self.clock
        self.lowest_offsets = ScriptedLowestOffsets()
        self.producers: list[FakeProducer] = []
        self.knows: set[int] | None = None  # what a new producer is told of; None: all
        self.writer = KafkaWriter(
            replace(Settings(), append_seconds_max=1.0, **changes),
            self.wire,  # type: ignore[arg-type]
            lambda: PythonProducer(self._new_producer(), self.clock),
            self.lowest_offsets,
            self.clock,
        )

    def _new_producer(self) -> Any:
        assert len(self.producers) < 100, "made without a pause"
        self.producers.append(FakeProducer(self.wire, self.clock, self.knows))
        return self.producers[-1]

    @property
    def producer(self) -> FakeProducer:
        return self.producers[-1]

    def append(self, *partitions: int) -> dict[int, SluiceError | None]:
        """What an append of one record to each of these partitions comes to, for each."""
        started = self.clock.monotonic()
        failure: LogPartialError | None = None
        try:
            self.writer.append([(partition, b"x") for partition in partitions])
        except LogPartialError as error:
            failure = error
        self.seconds = self.clock.monotonic() - started
        return {partition: failure and failure.of([partition]) for partition in partitions}


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    assert made.append(0, 1, 2) == {0: None, 1: None, 2: None}
    return made


def refused(error: SluiceError | None, why: str) -> bool:
    """Whether nothing was written, for this reason."""
    return type(error) is LogUnavailableError and why in str(error)


def test_a_partition_without_a_leader_is_refused_at_once_and_alone(rig: Rig) -> None:
    rig.wire.lead(1, -1, None)
    rig.clock.advance(1.1)
    told = rig.append(0, 1, 2)
    assert refused(told[1], "no leader")
    assert (told[0], told[2], rig.seconds) == (None, None, 0)
    # When it has one again, that is seen soon, and it is compared with what is stored before it is used
    rig.wire.lead(1, 1, 1)
    rig.clock.advance(0.11)
    asked = len(rig.lowest_offsets.calls)
    assert rig.append(1) == {1: None}
    assert rig.lowest_offsets.calls[asked:] == [
        (f"sluice-events:{rig.wire.facts.topic_id}", incarnation_of(rig.wire.facts))
    ]


def test_a_partition_with_too_few_replicas_in_sync_is_refused_for_certain_and_alone() -> None:
    # Given a topic of which accepted events are on two brokers
    rig = Rig(event_log_url="kafka://localhost:9092", kafka_replication=3)
    rig.wire.facts = replace(rig.wire.facts, in_sync={0: 3, 1: 3, 2: 2})
    assert rig.append(0, 1, 2) == {0: None, 1: None, 2: None}
    # When two of the replicas of one partition are missing
    rig.wire.facts = replace(rig.wire.facts, in_sync={0: 2, 1: 1, 2: 2})
    rig.clock.advance(1.1)
    told = rig.append(0, 1, 2)
    # Then nothing of it is handed to the producer
    assert refused(told[1], "partition 1 has 1 replica in sync, and KAFKA_REPLICATION=3 asks for 2")
    assert (told[0], told[2], rig.seconds) == (None, None, 0)
    assert [partition for partition, _ in rig.producer.sent].count(1) == 1
    # When that is so for all partitions, the log is unavailable
    rig.wire.facts = replace(rig.wire.facts, in_sync={0: 1, 1: 1, 2: 1})
    rig.clock.advance(0.11)
    with pytest.raises(LogUnavailableError, match="can't be used: partition 0 has 1 replica in sync"):
        rig.append(0)
    with pytest.raises(LogUnavailableError, match="can't be used"):
        rig.writer.prepare()
    # When they are back, that is seen soon
    rig.wire.facts = replace(rig.wire.facts, in_sync={0: 2, 1: 2, 2: 2})
    rig.clock.advance(0.11)
    assert rig.append(0, 1, 2) == {0: None, 1: None, 2: None}


def test_a_broker_that_has_answered_for_one_partition_gets_all_the_time_for_its_others(rig: Rig) -> None:
    # Given one broker that leads partitions 0 and 2, and is slow to confirm 2
    rig.producer.silent = {2}
    told = rig.append(0, 2)
    assert told[0] is None
    assert isinstance(told[2], LogIndeterminateError)
    assert 0.9 < rig.seconds < 1.1


def test_a_silent_broker_holds_up_the_others_for_a_share_of_the_time_and_once(rig: Rig) -> None:
    rig.producer.silent = {1}
    # Given a broker that does not answer and whose partition is still said to be led by it
    told = rig.append(0, 1, 2)
    assert (told[0], told[2]) == (None, None)
    assert isinstance(told[1], LogIndeterminateError)
    assert 0.4 < rig.seconds < 0.6
    # Then nothing more is handed over for it, and nobody waits for it again
    told = rig.append(0, 1, 2)
    assert refused(told[1], "owes the answer")
    assert (told[0], told[2]) == (None, None)
    assert rig.seconds < 0.1
    assert [partition for partition, _ in rig.producer.sent].count(1) == 2
    # When it answers, it goes on
    rig.producer.silent = set()
    rig.producer.answer()
    assert rig.append(1) == {1: None}


def test_a_partition_whose_append_failed_is_open_and_alone(rig: Rig) -> None:
    rig.producer.failing = {2}
    told = rig.append(0, 1, 2)
    assert (told[0], told[1]) == (None, None)
    assert isinstance(told[2], LogIndeterminateError)


def test_nothing_is_appended_below_what_is_stored(rig: Rig) -> None:
    # Given a partition of which 80 are stored, and whose new leader has 50
    rig.lowest_offsets.lowest_offsets = {0: 1, 1: 80, 2: 1}
    rig.wire.lead(1, 1, 50)
    rig.clock.advance(1.1)
    # Then it takes nothing, again and again, while the others do
    for _ in range(3):
        told = rig.append(0, 1, 2)
        assert refused(told[1], "has lost its tail: it ends at 50, before the stored offset 80")
        assert (told[0], told[2]) == (None, None)
        rig.clock.advance(1.1)
    assert rig.wire.ends[1] == 50
    # When somebody has what is stored put right
    rig.lowest_offsets.lowest_offsets[1] = 50
    assert rig.append(1) == {1: None}
    assert rig.wire.ends[1] == 51


def test_a_new_leader_that_does_not_know_its_replicas_yet_takes_events(rig: Rig) -> None:
    # Given a new leader that has all that is stored, and does not say its end to clients before it has an append
    rig.lowest_offsets.lowest_offsets[1] = 5
    rig.wire.lead(1, 1, 7)
    rig.wire.unconfirmed = {1}
    rig.clock.advance(1.1)
    # Then it gets one
    assert rig.append(0, 1, 2) == {0: None, 1: None, 2: None}
    # And if the next leader lacks what was not confirmed, nothing was lost
    rig.wire.lead(1, 2, 6)
    rig.wire.unconfirmed = set()
    rig.clock.advance(1.1)
    assert rig.append(1) == {1: None}
    # But one that lacks what is stored is refused, confirmed or not
    rig.lowest_offsets.lowest_offsets[1] = 9
    rig.wire.lead(1, 1, 8)
    rig.wire.unconfirmed = {1}
    rig.clock.advance(1.1)
    assert refused(rig.append(1)[1], "has lost its tail: it ends at 8, before the stored offset 9")


def test_a_new_leader_that_is_silent_takes_little_of_the_others_time(rig: Rig) -> None:
    # Given a partition whose new leader takes as long to ask as a request may take, and says nothing
    rig.wire.lead(1, 3, None)
    del rig.wire.ends[1]
    rig.wire.silence_seconds = 1.0
    rig.clock.advance(1.1)
    waited = 0.0
    started = rig.clock.monotonic()
    while rig.clock.monotonic() - started < 30:
        told = rig.append(0, 1, 2)
        assert refused(told[1], "before it is compared with what is stored")
        assert (told[0], told[2]) == (None, None) or rig.seconds > 0
        waited += rig.seconds
        rig.clock.advance(0.05)
    assert waited <= 6


def test_without_the_lowest_offsets_only_partitions_with_a_new_leader_are_refused(rig: Rig) -> None:
    rig.lowest_offsets.error = StoreUnavailableError("Redis is away")
    rig.wire.lead(1, 1, 1)
    rig.clock.advance(1.1)
    told = rig.append(0, 1, 2)
    assert refused(told[1], "Redis is away")
    assert (told[0], told[2]) == (None, None)
    # And where that is all of them, the log is
    for partition in (0, 2):
        rig.wire.lead(partition, 1, 5)
    rig.clock.advance(1.1)
    with pytest.raises(LogUnavailableError, match="Redis is away"):
        rig.append(0)


def test_an_offset_that_was_given_before_is_never_acknowledged(rig: Rig) -> None:
    # Given a partition that lost its tail unnoticed, between two looks at its leader
    rig.wire.ends[1] = 0
    told = rig.append(0, 1)
    assert told[0] is None
    assert isinstance(told[1], LogIndeterminateError)
    assert "gave offset 0 again" in str(told[1])


def test_the_topic_is_looked_at_once_a_second_while_all_is_well(rig: Rig) -> None:
    rig.append(0)
    looks = rig.wire.looks
    for _ in range(9):
        rig.clock.advance(0.1)
        rig.append(0)
    assert rig.wire.looks == looks
    rig.clock.advance(0.2)
    rig.append(0)
    assert rig.wire.looks == looks + 1
    assert len(rig.lowest_offsets.calls) == 1


def test_partitions_that_were_added_are_used_with_a_producer_that_knows_them(rig: Rig) -> None:
    add_partition(rig)
    assert rig.append(0, 3) == {0: None, 3: None}
    assert len(rig.producers) == 2


def add_partition(rig: Rig) -> None:
    """Number 3, seen at the next look at the topic."""
    facts = rig.wire.facts
    rig.wire.facts = TopicFacts(facts.topic_id, {**facts.leaders, 3: 2}, {**facts.epochs, 3: 0})
    rig.wire.ends[3] = 0
    rig.clock.advance(1.1)


def test_while_an_answer_is_owed_only_the_partitions_that_were_added_have_to_wait(rig: Rig) -> None:
    # Given a silent broker, whose answer the producer has to be kept for
    rig.producer.silent = {1}
    rig.append(0, 1, 2)
    # When a partition is added
    add_partition(rig)
    # Then it is refused by name, alone, and nobody waits for it
    for partitions in ((0, 2, 3), (3,)):
        told = rig.append(*partitions)
        assert refused(told[3], "partition 3 of the event log (Kafka) was added")
        assert all(told[partition] is None for partition in partitions if partition != 3)
        assert rig.seconds == 0
    assert len(rig.producers) == 1
    # When the answer is there, it is used
    rig.producer.silent = set()
    rig.producer.answer()
    assert rig.append(0, 1, 3) == {0: None, 1: None, 3: None}


def test_a_broker_that_does_not_say_which_partitions_were_added_is_asked_again_once_a_second(rig: Rig) -> None:
    # Given partitions that the broker which a producer asks does not know of yet
    rig.knows = {0, 1, 2}
    add_partition(rig)
    for _ in range(10):
        told = rig.append(0, 3)
        assert (told[0], refused(told[3], "was added"), rig.seconds) == (None, True, 0)
    assert len(rig.producers) == 2
    # When it does
    rig.knows = None
    rig.clock.advance(1.1)
    assert rig.append(0, 3) == {0: None, 3: None}


def test_a_producer_that_is_refused_at_once_is_not_asked_without_a_pause(rig: Rig) -> None:
    rig.producer.refusal = TopicAuthorizationFailedError()
    with pytest.raises(LogUnavailableError, match=r"does not describe its topic: .*TopicAuthorizationFailed"):
        rig.append(0)
    assert rig.producer.questions < 200


def test_a_topic_made_anew_is_another_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    # Given a topic in whose place there is one with fewer partitions and no records
    former = f"sluice-events:{rig.wire.facts.topic_id}"
    rig.wire.facts = TopicFacts(uuid.uuid4(), {0: 1, 1: 1}, {0: 0, 1: 0})
    rig.wire.ends = {0: 0, 1: 0}
    rig.clock.advance(1.1)
    with pytest.raises(LogUnavailableError, match="only 2 partitions"):
        rig.append(2)
    # Then it is said that the first is gone, and what was known of it holds no more
    assert f"{former} was deleted" in caplog.text
    assert rig.append(0, 1) == {0: None, 1: None}
    assert {log_id for log_id, _ in rig.lowest_offsets.calls[1:]} == {f"sluice-events:{rig.wire.facts.topic_id}"}
