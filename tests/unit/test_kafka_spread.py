"""Several producers behind one, with scripted ones."""

from collections.abc import Sequence

import pytest

from pipeline.clock import ManualClock
from pipeline.log.kafka_producer import ProducerError, Sent
from pipeline.log.kafka_spread import BUFFER_KBYTES, PARTITIONS_EACH, PRODUCERS_MAX, SpreadProducer


class Taken:
    """What one producer took of a partition."""

    is_done = True
    failure = None
    offsets = (0, 0)

    def __init__(self) -> None:
        self.count = 0

    def wait(self, seconds_max: float) -> None:
        """It is done."""


class One:
    """A producer that takes everything, and as long as it is asked to flush, uses that time."""

    def __init__(self, partitions: int, clock: ManualClock, kbytes: int) -> None:
        self.kbytes = kbytes
        self._partitions = partitions
        self._clock = clock
        self.is_broken = False
        self.refusal: ProducerError | None = None
        self.is_ready = True
        self.is_closed = False
        self.entries: list[tuple[int, bytes]] = []

    def partitions_for(self, topic: str, seconds_max: float) -> set[int]:
        assert topic == "t"
        assert seconds_max > 0
        if not self.is_ready:
            raise ProducerError("it connects")
        return set(range(self._partitions))

    def send(
        self, topic: str, entries: Sequence[tuple[int, bytes]], deadline: float
    ) -> tuple[dict[int, Sent], ProducerError | None]:
        assert topic == "t"
        assert deadline > 0
        if self.refusal is not None:
            return {}, self.refusal
        self.entries += entries
        sent: dict[int, Sent] = {}
        for partition, _ in entries:
            taken = sent.setdefault(partition, Taken())
            assert isinstance(taken, Taken)
            taken.count += 1
        return sent, None

    def flush(self, seconds_max: float) -> None:
        self._clock.advance(seconds_max)

    def close(self, seconds_max: float) -> None:
        self._clock.advance(seconds_max)
        self.is_closed = True


class Rig:
    def __init__(self, partitions: int) -> None:
        self.clock = ManualClock()
        self.everyone: list[One] = []
        self.partitions = partitions
        self.makes_max = 100
        self.producer = SpreadProducer(self._make, self.clock)

    def _make(self, kbytes: int) -> One:
        if len(self.everyone) >= self.makes_max:
            raise ProducerError("no memory")
        self.everyone.append(One(self.partitions, self.clock, kbytes))
        return self.everyone[-1]

    @property
    def made(self) -> list[One]:
        """Those that are not closed."""
        return [one for one in self.everyone if not one.is_closed]

    def ready(self) -> "Rig":
        assert self.producer.partitions_for("t", 1.0) == set(range(self.partitions))
        return self


@pytest.mark.parametrize(
    ("partitions", "producers"),
    [(1, 1), (PARTITIONS_EACH, 1), (PARTITIONS_EACH + 1, 2), (64, PRODUCERS_MAX), (256, PRODUCERS_MAX)],
)
def test_there_are_as_many_as_the_partitions_need(partitions: int, producers: int) -> None:
    rig = Rig(partitions).ready().ready()
    assert len(rig.made) == producers


@pytest.mark.parametrize("partitions", [1, PARTITIONS_EACH, PARTITIONS_EACH + 1, 30, 64, 256])
def test_however_many_there_are_they_buffer_no_more_than_one(partitions: int) -> None:
    rig = Rig(partitions).ready().ready()
    shares = [one.kbytes for one in rig.made]
    assert len(set(shares)) == 1
    assert 0.9 * BUFFER_KBYTES < sum(shares) <= BUFFER_KBYTES


def test_a_partition_stays_with_one_producer_in_order() -> None:
    rig = Rig(20).ready()
    entries = [(number % 20, b"%d" % number) for number in range(100)]
    for first in (0, 50):
        sent, refusal = rig.producer.send("t", entries[first : first + 50], 1.0)
        assert refusal is None
        assert sum(one.count for one in sent.values()) == 50
    assert len(rig.made) == 3
    for partition in range(20):
        whole = [one.entries for one in rig.made if any(partition == entry[0] for entry in one.entries)]
        assert len(whole) == 1
        assert [entry for entry in whole[0] if entry[0] == partition] == [e for e in entries if e[0] == partition]


def test_one_that_takes_nothing_leaves_the_others_alone() -> None:
    rig = Rig(20).ready()
    rig.made[1].refusal = ProducerError("its buffer is full")
    sent, refusal = rig.producer.send("t", [(number, b"x") for number in range(20)], 1.0)
    assert str(refusal) == "its buffer is full"
    assert sorted(sent) == [number for number in range(20) if number % 3 != 1]


def test_one_that_is_not_ready_is_waited_for_and_no_other_is_made_meanwhile() -> None:
    rig = Rig(20).ready()
    rig.made[2].is_ready = False
    with pytest.raises(ProducerError, match="it connects"):
        rig.producer.partitions_for("t", 1.0)
    rig.made[2].is_ready = True
    assert len(rig.ready().made) == 3


def test_a_try_that_can_not_make_all_leaves_none_behind() -> None:
    rig = Rig(20)
    rig.makes_max = 2
    with pytest.raises(ProducerError, match="no memory"):
        rig.ready()
    assert len(rig.made) == 1
    rig.makes_max = 100
    assert len(rig.ready().made) == 3


def test_one_that_has_failed_ends_all() -> None:
    rig = Rig(20).ready()
    found = [rig.producer.is_broken]
    rig.made[2].is_broken = True
    found.append(rig.producer.is_broken)
    assert found == [False, True]
    rig.producer.close(0.5)
    assert rig.made == []


def test_all_together_take_no_longer_than_one_may() -> None:
    rig = Rig(64).ready()
    started = rig.clock.monotonic()
    rig.producer.flush(1.0)
    assert rig.clock.monotonic() - started < 1.05
    rig.producer.close(1.0)
    assert rig.clock.monotonic() - started < 2.1
