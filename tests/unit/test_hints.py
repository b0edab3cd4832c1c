"""The fallback for drains' own hints: which partitions get one."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.log.memory import MemoryLog
from pipeline.names import PauseReason
from pipeline.ports.control import Leases
from pipeline.settings import Settings
from pipeline.sink.memory import MemorySink, MemoryStore
from pipeline.store.memory import MemoryControlStore, MemoryLeases, MemoryServer
from tasks import control
from tasks.context import WorkerContext
from tasks.hints import HINT_SECONDS_MAX, HINTS_WAITING_MAX, Drained, give_back_hint

PARTITIONS = 4


class Sink(MemorySink):
    """Counts how often it is asked who drains."""

    asked = 0

    def drained(self, log_id: str, partitions: Any) -> set[int]:
        self.asked += 1
        return super().drained(log_id, partitions)


class Rig:
    """The parts that a tick uses, and the hints that it sent."""

    def __init__(self) -> None:
        self.settings = replace(Settings(), log_partitions=PARTITIONS)
        self.clock = ManualClock()
        server = MemoryServer(self.clock)
        self.control = MemoryControlStore(self.settings, server)
        self.control.restore([], actor="test")
        self.leases: Leases = MemoryLeases(self.settings, server)
        self.log = MemoryLog(PARTITIONS)
        self.store = MemoryStore()
        self.sink = Sink(self.settings, self.store)
        self.drainer = MemorySink(self.settings, self.store)
        self.waiting = 0
        self.sent: list[tuple[int, str]] = []
        self.context: Any = SimpleNamespace(
            settings=self.settings,
            control=self.control,
            known_log=self.log.identity,
            queues=SimpleNamespace(waiting=lambda _: self.waiting),
            drained=Drained(self.sink, self.clock),
            leases=self.leases,
        )

    def send_task(self, _name: str, *, args: tuple[int], kwargs: dict[str, str], **_: object) -> None:
        self.sent.append((args[0], kwargs["hint"]))

    def tick(self) -> list[int]:
        """The partitions that one tick sends hints for. Each hint arrives at once."""
        self.sent.clear()
        control.tick_hints(self, self.context)  # type: ignore[arg-type]
        for partition, token in self.sent:
            give_back_hint(self.leases, partition % self.settings.drains_max, token)
        return [partition for partition, _ in self.sent]

    def drain(self, *partitions: int) -> None:
        for partition in partitions:
            assert self.drainer.acquire(self.log.server.log_id, partition)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_each_partition_without_a_drain_gets_a_hint(rig: Rig) -> None:
    assert rig.tick() == [0, 1, 2, 3]
    # When drains hold some of them, or all
    rig.drain(0, 2)
    assert rig.tick() == [1, 3]
    rig.drain(1, 3)
    assert rig.tick() == []
    # And when the process of some ends, with whatever it held
    rig.drainer.close()
    assert rig.tick() == [0, 1, 2, 3]


def test_many_drained_partitions_cost_a_tick_no_more_than_a_few(rig: Rig) -> None:
    # Given 64 partitions that drains hold, and a count of what ticks ask the control store for
    taken: list[str] = []

    class Counted(MemoryLeases):
        def take(self, name: str, *, seconds: float) -> str | None:
            taken.append(name)
            return super().take(name, seconds=seconds)

    rig.context.known_log = MemoryLog(64).identity
    rig.context.leases = Counted(rig.settings, MemoryServer(rig.clock))
    log_id = rig.context.known_log().log_id
    for partition in range(64):
        assert rig.drainer.acquire(log_id, partition)
    # Then ten ticks send nothing, take no lease, and ask the sink once each
    assert [rig.tick() for _ in range(10)] == [[]] * 10
    assert taken == []
    assert rig.sink.asked == 10
    # And where all are lost, there is one hint for each share
    rig.drainer.close()
    assert sorted(partition % rig.settings.drains_max for partition in rig.tick()) == list(range(8))


def test_a_hint_under_way_is_not_sent_again_before_it_counts_as_lost(rig: Rig) -> None:
    for expected in ([0, 1, 2, 3], []):
        rig.sent.clear()
        control.tick_hints(rig, rig.context)  # type: ignore[arg-type]
        assert [partition for partition, _ in rig.sent] == expected
    rig.clock.advance(HINT_SECONDS_MAX + 1)
    assert rig.tick() == [0, 1, 2, 3]


def test_a_sink_that_does_not_say_who_drains_is_left_alone_for_a_while(rig: Rig) -> None:
    # Given drains for all, and a sink that fails
    rig.drain(0, 1, 2, 3)
    rig.store.is_down = True
    # Then all get hints, as they may have lost their drains, and the sink is asked once
    for _ in range(5):
        assert rig.tick() == [0, 1, 2, 3]
        rig.clock.advance(1)
    assert rig.sink.asked == 1
    # And when it answers again, it is believed
    rig.store.is_down = False
    rig.clock.advance(10)
    rig.drain(0, 1, 2, 3)
    assert rig.tick() == []


def test_nothing_is_sent_while_paused_or_into_a_queue_that_nobody_reads(rig: Rig) -> None:
    rig.control.pause(PauseReason.LOG_GAP, actor="test", why="", partition=1)
    assert rig.tick() == [0, 2, 3]
    rig.waiting = HINTS_WAITING_MAX * PARTITIONS
    assert rig.tick() == []
    rig.waiting = 0
    rig.control.pause(PauseReason.OPERATOR, actor="test", why="")
    assert rig.tick() == []


def test_the_log_is_asked_for_its_partitions_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a worker's context, and a log to which partitions are added
    context, clock, log = WorkerContext(Settings()), ManualClock(), MemoryLog(2)
    monkeypatch.setattr(context, "clock", clock)
    monkeypatch.setitem(context.__dict__, "log", log)
    assert context.known_log().partitions == 2
    log.server.add_partitions(1)
    # Then a tick finds them after a while, and a hint for one of them at once
    assert context.known_log().partitions == 2
    assert context.has_partition(2)
    assert context.known_log().partitions == 3
    assert not context.has_partition(3)
    log.server.add_partitions(1)
    clock.advance(11)
    assert context.known_log().partitions == 4
