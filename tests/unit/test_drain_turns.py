"""One run for several partitions: turns, fairness, and what a fault of one of them does to the others."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.breaker import SinkBreaker
from pipeline.clock import ManualClock, SystemClock
from pipeline.control_store.memory import MemoryControlStore, MemoryOffsetFence, MemoryServer
from pipeline.drain import drain_in_turn
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.drain.run import TURN_SECONDS
from pipeline.errors import LogMisconfiguredError, LogUnavailableError, SinkContentionError, StoreUnavailableError
from pipeline.log.memory import MemoryLog, MemoryLogServer
from pipeline.names import PauseReason
from pipeline.pace import Pace
from pipeline.ports.event_sink import StoreResult
from pipeline.ports.log import LogBatch
from pipeline.settings import Settings
from pipeline.sink.memory import MemoryDatabase, MemorySink
from support.records import record
from tasks.drain import _drain, next_of
from tasks.known_pauses import KnownPauses

ALL = range(8)


class Sink(MemorySink):
    """Each batch takes `seconds`; notes which partitions' batches were stored, and when."""

    def __init__(self, rig: "Rig") -> None:
        super().__init__(rig.settings, rig.store)
        self.rig = rig
        self.seconds = 0.01
        self.turns: list[tuple[int, float]] = []

    def store(self, log_id: str, partition: int, *arguments: Any, **options: Any) -> StoreResult:
        self.rig.clock.advance(self.seconds)
        result = super().store(log_id, partition, *arguments, **options)
        self.turns.append((partition, self.rig.clock.monotonic()))
        return result

    def order(self) -> list[int]:
        """The partitions, one entry a turn."""
        order = [partition for partition, _ in self.turns]
        return [order[0], *(after for before, after in pairwise(order) if after != before)] if order else []


class Rig:
    """Eight partitions. Time passes with each batch, and with each look at the reasons to pause."""

    def __init__(self, **changes: Any) -> None:
        quick = {"drain_poll_seconds": 0.01, "drain_batch_records_max": 10, "poison_run_records_max": 5, **changes}
        self.settings = replace(Settings(), **quick)
        self.clock = ManualClock()
        self.server = MemoryServer(self.clock)
        self.fence = MemoryOffsetFence(self.settings, self.server)
        self.control = MemoryControlStore(self.settings, self.server)
        self.control.restore([], actor="test")
        self.log_server = MemoryLogServer(len(ALL))
        self.ingest = MemoryLog(lowest_offsets=self._fence, server=self.log_server)
        self.log = MemoryLog(server=self.log_server)
        self.store = MemoryDatabase()
        self.sink = Sink(self)
        self.breaker = SinkBreaker(self.settings, self.control, self.clock, "test")
        self.paused: set[int] = set()
        self.look_seconds = 0.001
        self.at_look: dict[int, Callable[[], object]] = {}  # what happens at the n-th look at the reasons to pause
        self.looks = 0
        self.appended = 0
        self._began = self.clock.monotonic()

    def passed(self) -> float:
        """Seconds since the beginning."""
        return self.clock.monotonic() - self._began

    def _fence(self, log_id: str, incarnation: str, *, is_new: bool = False) -> dict[int, int]:
        mirror = self.fence.fence(log_id, incarnation)
        self.fence.seed(log_id, mirror.life, {})
        return mirror.lowest_offsets

    def append(self, count: int, *partitions: int) -> None:
        """So many events for each of the partitions."""
        for partition in partitions:
            numbers = range(self.appended, self.appended + count)
            self.ingest.append([(partition, record(number)) for number in numbers])
            self.appended += count

    def look(self, partition: int) -> bool:
        self.clock.advance(self.look_seconds)
        self.looks += 1
        self.at_look.pop(self.looks, lambda: None)()
        return partition in self.paused

    def drain(self, *partitions: int, **changes: Any) -> list[DrainReport]:
        means: dict[str, Any] = {
            "log": self.log,
            "sink": self.sink,
            "fence": self.fence,
            "breaker": self.breaker,
            "paused": self.look,
            "settings": self.settings,
            "clock": self.clock,
            **changes,
        }
        self.looks = 0
        return drain_in_turn(partitions or ALL, **means)

    def idle_end(self) -> None:
        """Let a run that waits for events come to its end soon."""
        self.look_seconds = 0.1

    def is_whole(self) -> bool:
        """Whether each event is stored once, and nothing is held."""
        numbers = sorted(int(event_id.removeprefix("event-")) for event_id in self.store.events)
        return numbers == list(range(self.appended)) and not self.store.letters and self.store.locks == {}

    def stored(self) -> Mapping[int, int]:
        return {partition: offset for (_, partition), offset in self.store.offsets.items()}


@pytest.fixture
def rig() -> Rig:
    return Rig()


def outcomes(reports: list[DrainReport]) -> dict[int, DrainOutcome]:
    return {report.partition: report.outcome for report in reports}


def test_everything_of_all_partitions_is_stored_once(rig: Rig) -> None:
    # Given a backlog of several batches in some of them
    rig.append(35, 0, 3, 7)
    rig.idle_end()
    reports = rig.drain()
    # Then all is stored, the log knows it, and all are free
    assert rig.is_whole()
    assert {report.partition: (report.stored, report.next_offset) for report in reports if report.stored} == {
        0: (35, 35),
        3: (35, 35),
        7: (35, 35),
    }
    assert set(outcomes(reports).values()) == {DrainOutcome.FINISHED}
    assert sorted(outcomes(reports)) == list(ALL)
    assert [position.committed for position in rig.ingest.positions()] == [35, None, None, 35, None, None, None, 35]


def test_partitions_with_a_backlog_take_turns(rig: Rig) -> None:
    # Given more in each partition than a run can store
    rig.append(5000, *ALL)
    rig.drain()
    # Then no partition has a second turn before all others have had one
    order = rig.sink.order()
    assert len(order) > 3 * len(ALL)
    assert all(sorted(order[at : at + len(ALL)]) == list(ALL) for at in range(0, len(order) - len(ALL), len(ALL)))
    # And a turn is a fraction of a second, and the time between two batches of a partition so much for each
    assert max(_waits(rig.sink.turns).values()) < len(ALL) * (TURN_SECONDS + 0.05)


def _waits(turns: list[tuple[int, float]]) -> dict[int, float]:
    """The longest time between two batches of each partition."""
    waits: dict[int, float] = {}
    last: dict[int, float] = {}
    for partition, at in turns:
        waits[partition] = max(waits.get(partition, 0.0), at - last.get(partition, at))
        last[partition] = at
    return waits


def test_no_partition_starves_where_a_run_has_time_for_few_turns(rig: Rig) -> None:
    # Given a sink so slow that a run stores three or four batches, and a backlog in all partitions
    rig.sink.seconds = 3.0
    rig.append(100, *ALL)
    # When runs follow each other as hints do
    share: list[int] = list(ALL)
    for _ in range(6):
        first = next_of(rig.drain(*share))
        assert first is not None
        share = [*share[share.index(first) :], *share[: share.index(first)]]
    # Then all have had turns, one after the other
    turns = [partition for partition, _ in rig.sink.turns]
    assert len(turns) >= 2 * len(ALL)
    assert turns == [*ALL, *ALL, *ALL, *ALL][: len(turns)]


def test_an_event_ends_the_wait_for_events_in_each_partition() -> None:
    # Given a run that waits for events, by the real clock, and a log whose waits do not end in time by themselves
    class Patient(MemoryLog):
        def ready(self, offsets: Mapping[int, int], *, wait_seconds: float) -> set[int]:
            with self.server.changed:  # so that the event comes after the wait has begun
                waits.set()
                return super().ready(offsets, wait_seconds=100 * WAIT_SECONDS_MAX if wait_seconds else 0)

    def append(partition: int) -> None:
        assert waits.wait(WAIT_SECONDS_MAX)
        threading.Thread(target=rig.append, args=(1, partition), daemon=True).start()

    rig = Rig(drain_poll_seconds=10.0, drain_run_seconds_max=200.0, drain_hard_seconds_max=300.0)
    waits, stored, ended = threading.Event(), threading.Event(), threading.Event()
    reports: list[DrainReport] = []

    def on_stored(*_: object) -> None:
        waits.clear()  # before the next wait
        stored.set()

    def run() -> None:
        reports.extend(
            rig.drain(
                log=Patient(server=rig.log_server),
                clock=SystemClock(),
                on_stored=on_stored,
                paused=lambda _: ended.is_set(),
                settings=rig.settings,
            )
        )

    thread = threading.Thread(target=run, daemon=True)  # one that does not wake up is left behind
    thread.start()
    for partition in (5, 0, 7, 5):
        # When one comes, it is stored
        append(partition)
        assert stored.wait(WAIT_SECONDS_MAX)
        stored.clear()
    ended.set()
    append(0)
    thread.join(WAIT_SECONDS_MAX)
    assert set(outcomes(reports).values()) == {DrainOutcome.PAUSED}
    assert len(rig.store.events) == 4
    assert rig.store.locks == {}


def test_a_partition_that_can_not_be_read_holds_up_no_other(rig: Rig) -> None:
    # Given two partitions without a leader, and events in all
    rig.append(100, *ALL)
    rig.log_server.lose_leader(0, 4)
    rig.look_seconds = 0.01
    reports = rig.drain()
    # Then all others are stored, and these say why they are not
    assert rig.stored() == {partition: 100 for partition in ALL if partition not in (0, 4)}
    assert {p: one for p, one in outcomes(reports).items() if one is not DrainOutcome.FINISHED} == {
        0: DrainOutcome.LOG_UNAVAILABLE,
        4: DrainOutcome.LOG_UNAVAILABLE,
    }
    assert "partition 4" in next(report.error or "" for report in reports if report.partition == 4)
    # And once they have one, they are stored too
    rig.log_server.lose_leader()
    rig.drain()
    assert rig.is_whole()


def test_a_sink_that_is_away_opens_the_breaker_and_ends_the_run_in_time(rig: Rig) -> None:
    rig.append(100, *ALL)
    rig.store.is_down = True
    reports = rig.drain()
    assert set(outcomes(reports).values()) == {DrainOutcome.BREAKER_OPEN}
    assert rig.breaker.is_open
    assert [pause.reason for pause in rig.control.state().pauses or ()] == [PauseReason.BREAKER]
    assert rig.passed() < rig.settings.drain_run_seconds_max
    assert next_of(reports) is None


def test_a_sink_that_fails_for_a_moment_loses_and_repeats_nothing(rig: Rig) -> None:
    # Given a sink that loses its session in the middle, after a commit or before it, and is away for a moment
    rig.append(300, *ALL)
    rig.look_seconds = 0.01
    for look, way in ((20, "after"), (45, "before"), (70, "after")):
        rig.at_look[look] = lambda way=way: setattr(rig.store, "dies_at_commit", way)  # type: ignore[misc]
    rig.at_look[100] = lambda: setattr(rig.store, "is_down", True)
    rig.at_look[103] = lambda: setattr(rig.store, "is_down", False)
    reports = rig.drain()
    assert set(outcomes(reports).values()) == {DrainOutcome.FINISHED}
    rig.drain()
    assert rig.is_whole()
    assert sum(report.repeated for report in reports) == 0


def test_a_run_whose_sink_fails_to_the_end_ends_well_before_it_would_be_killed(rig: Rig) -> None:
    # Given a breaker that never opens, and calls that take their whole time
    rig = Rig(breaker_failures_max=1000)
    rig.append(10, *ALL)

    class Silent(Sink):
        def acquire(self, log_id: str, partition: int) -> bool:
            rig.clock.advance(rig.settings.sink_call_seconds_max)
            return super().acquire(log_id, partition)

    rig.store.is_down = True
    reports = rig.drain(sink=Silent(rig))
    assert set(outcomes(reports).values()) == {DrainOutcome.SINK_UNAVAILABLE, DrainOutcome.FINISHED}  # some had no turn
    assert rig.passed() < rig.settings.drain_hard_seconds_max - 10
    # And the next run goes on
    assert next_of(reports) is not None


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (StoreUnavailableError(), DrainOutcome.CONTROL_STORE_UNAVAILABLE),
        (SinkContentionError("locked"), DrainOutcome.SINK_UNAVAILABLE),
    ],
)
def test_a_run_that_reads_and_can_not_store_pauses_ever_longer_and_says_why(
    rig: Rig, error: Exception, outcome: DrainOutcome
) -> None:
    # Given events in two partitions, and a control store or a sink that refuses each batch: it is read each time anew
    tries: list[float] = []

    class Refusing(Sink):
        def store(self, log_id: str, partition: int, *_: Any, **__: Any) -> StoreResult:
            if partition == 0:
                tries.append(rig.clock.monotonic())
            raise error

    rig.append(100, 0, 1)
    reports = rig.drain(0, 1, sink=Refusing(rig))
    # Then the run is as long as for one partition, and its end has the reason
    assert set(outcomes(reports).values()) == {outcome}
    assert {report.error for report in reports} == {str(error)}
    hard, usual = rig.settings.drain_hard_seconds_max, rig.settings.drain_run_seconds_max
    assert rig.passed() == pytest.approx(
        usual if outcome is DrainOutcome.CONTROL_STORE_UNAVAILABLE else (usual + hard) / 2, abs=1
    )
    # And the tries are soon half a second apart
    assert all(after - before > 0.4 for before, after in pairwise(tries[4:]))


def test_a_log_that_comes_back_without_its_tail_is_noticed_by_all_partitions(rig: Rig) -> None:
    # Given all stored but the newest events of each partition, which one of them will notice
    rig.append(20, *ALL)

    def restart() -> None:
        rig.log_server.restart(keep=dict.fromkeys(ALL, 15))
        for partition in ALL:
            rig.append(5, partition)

    rig.at_look[40] = restart
    rig.look_seconds = 0.05
    reports = rig.drain()
    # Then nothing of what came after is passed over, in any partition
    assert set(outcomes(reports).values()) == {DrainOutcome.FINISHED}
    later = set(range(20 * len(ALL), rig.appended))
    assert later <= {int(event_id.removeprefix("event-")) for event_id in rig.store.events}
    assert not rig.store.letters


def test_an_idle_run_asks_as_seldom_for_many_partitions_as_for_one(rig: Rig) -> None:
    # Given a run without events, with waits as long as a worker's, and a count of all that it asks
    asked: Counter[str] = Counter()

    class Counted(MemoryLog):
        def identity(self) -> Any:
            asked["identity"] += 1
            return super().identity()

        def positions(self, log_id: str | None = None) -> Any:
            asked["positions"] += 1
            return super().positions(log_id)

        def read(self, partition: int, offset: int, **options: Any) -> LogBatch | None:
            asked["read"] += 1
            return super().read(partition, offset, **options)

        def ready(self, offsets: Mapping[int, int], *, wait_seconds: float) -> set[int]:
            asked["ready"] += 1
            rig.clock.advance(wait_seconds)
            return super().ready(offsets, wait_seconds=0)

    rig = Rig(drain_poll_seconds=1.0)
    rig.drain(log=Counted(server=rig.log_server))
    # Then it looks at each partition once, and after that asks once a second for all of them
    assert (asked["identity"], asked["positions"], asked["read"]) == (1, 1, len(ALL))
    assert asked["ready"] <= rig.settings.drain_run_seconds_max + 2


def test_a_log_that_has_other_records_now_stops_every_partition(rig: Rig) -> None:
    # Given a log that comes back without its tail, and a writer that uses the lost offsets again
    rig.append(20, *ALL)

    def restart() -> None:
        rig.log_server.restart(keep=dict.fromkeys(ALL, 15))
        writer = MemoryLog(server=rig.log_server)
        for partition in ALL:
            writer.append([(partition, record(1000 + number)) for number in range(30)])

    rig.at_look[40] = restart
    rig.look_seconds = 0.05
    reports = rig.drain()
    # Then all partitions compare their last stored record, not only the one that noticed the restart
    assert set(outcomes(reports).values()) == {DrainOutcome.LOG_GAP}
    assert set(rig.stored().values()) == {20}


def test_the_log_is_not_asked_who_it_is_and_where_it_begins_for_each_partition(rig: Rig) -> None:
    asked: list[str] = []

    class Asked(MemoryLog):
        def identity(self) -> Any:
            asked.append("identity")
            return super().identity()

        def positions(self, log_id: str | None = None) -> Any:
            asked.append("positions")
            return super().positions(log_id)

    rig.append(20, *ALL)
    rig.idle_end()
    rig.drain(log=Asked(server=rig.log_server))
    assert rig.is_whole()
    assert asked == ["identity", "positions"]


def test_a_pause_of_one_partition_leaves_the_others(rig: Rig) -> None:
    rig.append(50, *ALL)
    rig.paused = {2}
    rig.idle_end()
    reports = rig.drain()
    assert outcomes(reports)[2] is DrainOutcome.PAUSED
    assert rig.stored() == {partition: 50 for partition in ALL if partition != 2}
    # And a pause of all ends a run that waits, and next_of sends no hint into the paused queue
    rig.paused = set()
    rig.at_look[20] = lambda: rig.paused.update(ALL)
    reports = rig.drain()
    assert set(outcomes(reports).values()) == {DrainOutcome.PAUSED}
    assert next_of(reports) is None


def test_a_partition_of_another_drain_is_taken_when_that_one_ends(rig: Rig) -> None:
    # Given another drain that holds two partitions, and gives one up in the middle
    rig.append(30, *ALL)
    other = MemorySink(rig.settings, rig.store)
    for partition in (1, 6):
        assert other.acquire(rig.log_server.log_id, partition)
    rig.look_seconds = 0.02
    rig.at_look[60] = lambda: other.release(rig.log_server.log_id, 1)
    reports = rig.drain()
    # Then that one is drained too, and the other is left
    assert rig.stored() == {partition: 30 for partition in ALL if partition != 6}
    assert outcomes(reports)[6] is DrainOutcome.BUSY
    assert next_of(reports) is not None


def test_a_share_that_another_run_drains_is_left_at_once(rig: Rig) -> None:
    other = MemorySink(rig.settings, rig.store)
    for partition in ALL:
        assert other.acquire(rig.log_server.log_id, partition)
    reports = rig.drain()
    assert set(outcomes(reports).values()) == {DrainOutcome.BUSY}
    assert rig.passed() < 1
    assert next_of(reports) is None


@pytest.mark.parametrize("busy", [(1, 2, 3, 5, 7), (0, 3, 4, 6)])
def test_a_share_that_two_runs_divide_is_left_to_one(rig: Rig, busy: tuple[int, ...]) -> None:
    # Given another run for the share, which got most of it, or half of it and the lowest
    rig.append(30, *ALL)
    other = MemorySink(rig.settings, rig.store)
    for partition in busy:
        assert other.acquire(rig.log_server.log_id, partition)
    reports = rig.drain()
    # Then this one gives up at once what it got, and its process takes another share
    assert rig.passed() < 2
    assert set(outcomes(reports).values()) == {DrainOutcome.BUSY}
    assert {partition for _, partition in rig.store.locks} == set(busy)
    assert next_of(reports) is None
    # And what it has stored meanwhile is stored once
    assert set(rig.stored()) <= set(ALL) - set(busy)


@pytest.mark.parametrize("busy", [(1, 3, 5), (1, 3, 5, 7)])
def test_a_run_with_the_larger_part_of_its_share_goes_on(rig: Rig, busy: tuple[int, ...]) -> None:
    # Given another run, which got less than half of the share, or half of it without the lowest
    rig.append(30, *ALL)
    other = MemorySink(rig.settings, rig.store)
    for partition in busy:
        assert other.acquire(rig.log_server.log_id, partition)
    rig.look_seconds = 0.02
    # When that one ends
    rig.at_look[60] = other.close
    reports = rig.drain()
    # Then this one has them all
    assert rig.stored() == dict.fromkeys(ALL, 30)
    assert next_of(reports) is not None


@pytest.mark.parametrize(
    ("ends", "following"),
    [
        ({0: "finished"}, 0),
        ({0: "busy"}, None),
        ({3: "finished", 0: "finished"}, 3),
        ({3: "poisoned", 0: "finished"}, 0),
        ({3: "busy", 0: "finished"}, 0),
        ({3: "busy", 0: "busy"}, None),
        ({3: "sink_away", 0: "paused"}, 3),
        ({3: "paused", 0: "breaker_open"}, None),
    ],
)
def test_who_goes_on_with_which_partition(ends: dict[int, str], following: int | None) -> None:
    assert next_of([DrainReport(partition, DrainOutcome(word)) for partition, word in ends.items()]) == following


def test_poison_stops_its_own_partition_only(rig: Rig) -> None:
    rig.append(20, 0, 1)
    rig.ingest.append([(2, b"broken")] * 30)
    rig.idle_end()
    reports = rig.drain()
    assert outcomes(reports)[2] is DrainOutcome.POISONED
    assert rig.stored() == {0: 20, 1: 20}
    assert rig.store.locks == {}


def test_a_partition_that_stops_is_paused_before_another_drain_can_take_it(rig: Rig) -> None:
    # Given poison in one partition of three, and a look at the pauses whenever one is released
    paused_at_release: dict[int, list[int | None]] = {}

    class Watched(Sink):
        def release(self, log_id: str, partition: int) -> None:
            paused_at_release[partition] = [pause.partition for pause in rig.control.state().pauses or ()]
            super().release(log_id, partition)

    rig.append(20, 0, 1)
    rig.ingest.append([(2, b"broken")] * 30)
    rig.at_look[40] = lambda: rig.control.resume(
        PauseReason.POISON, generation=None, actor="ann", why="go on", partition=2
    )
    rig.look_seconds = 0.05
    context: Any = SimpleNamespace(
        log=rig.log,
        sink=Watched(rig),
        fence=rig.fence,
        breaker=rig.breaker,
        settings=rig.settings,
        clock=rig.clock,
        drain_counters=SimpleNamespace(on_stored=None),
        pace=lambda _: Pace(rig.settings),
        control_store=rig.control,
        operators=SimpleNamespace(save_pause=lambda *_: None),
        name="batches@host",
    )
    reports = _drain([0, 1, 2], context, rig.look, KnownPauses())  # type: ignore[arg-type]
    # Then it is paused before it is free
    assert outcomes(reports)[2] is DrainOutcome.POISONED
    assert paused_at_release[2] == [2]
    # And an operator who resumes it while the others run is not overruled when these end
    assert paused_at_release[0] == paused_at_release[1] == []
    assert rig.control.state().pauses == ()
    # And the same goes for a share of one partition, but for the order
    [report] = _drain([2], context, rig.look, KnownPauses())  # type: ignore[arg-type]
    assert report.outcome is DrainOutcome.POISONED
    assert [pause.partition for pause in rig.control.state().pauses or ()] == [2]


def test_a_pause_that_can_not_be_set_keeps_no_partition(rig: Rig) -> None:
    rig.append(20, 0, 1)
    rig.ingest.append([(2, b"broken")] * 30)

    def on_end(_: DrainReport) -> None:
        raise StoreUnavailableError

    with pytest.raises(StoreUnavailableError):
        rig.drain(0, 1, 2, on_end=on_end)
    assert rig.store.locks == {}


def test_a_mistake_in_the_set_up_frees_all_partitions(rig: Rig) -> None:
    rig.append(10, *ALL)
    with pytest.raises(LogMisconfiguredError):
        rig.drain(0, 1, 99)
    assert rig.store.locks == {}
    assert rig.stored() == {0: 10, 1: 10}


class Misconfigured(MemoryLog):
    """Refuses each commit."""

    def commit(self, log_id: str, partition: int, offset: int) -> None:
        raise LogMisconfiguredError(f"no right to commit in partition {partition}")


@pytest.mark.parametrize(
    ("partitions", "paused"),
    [((0, 1, 2, 99), {}), ((0, 1, 2), {0})],
    ids=["a mistake ends the run", "one of them ends before the others"],
)
def test_partitions_that_can_not_be_finished_do_not_keep_the_others(
    rig: Rig, partitions: tuple[int, ...], paused: set[int]
) -> None:
    # Given two partitions that have a commit to the log left, which fails
    rig.sink.seconds = 2 * TURN_SECONDS
    rig.append(100, 0, 1)
    rig.at_look[4] = lambda: rig.paused.update(paused)
    # When the run ends one of them
    with pytest.raises(LogMisconfiguredError, match="no right to commit"):
        rig.drain(*partitions, log=Misconfigured(server=rig.log_server))
    # Then all are free
    assert rig.stored() == {0: 10, 1: 10}
    assert rig.store.locks == {}


def test_a_log_that_can_not_say_what_is_ready_is_read_all_the_same(rig: Rig) -> None:
    # Given a log whose waits fail, and whose reads work
    class Unsure(MemoryLog):
        def ready(self, offsets: Mapping[int, int], *, wait_seconds: float) -> set[int]:
            raise LogUnavailableError("away")

    rig.append(10, 0)
    rig.at_look[30] = lambda: rig.append(10, 7)
    rig.idle_end()
    rig.drain(log=Unsure(server=rig.log_server))
    assert rig.is_whole()


def test_memory_holds_the_records_of_one_partition(rig: Rig) -> None:
    # Given a backlog in all
    done: list[tuple[str, int]] = []

    class Watched(MemoryLog):
        def read(self, partition: int, offset: int, **options: Any) -> LogBatch | None:
            done.append(("read", partition))
            return super().read(partition, offset, **options)

    class Storing(Sink):
        def store(self, log_id: str, partition: int, *arguments: Any, **options: Any) -> StoreResult:
            done.append(("store", partition))
            return super().store(log_id, partition, *arguments, **options)

    rig.append(1000, *ALL)
    rig.drain(log=Watched(server=rig.log_server), sink=Storing(rig))
    # Then each turn begins with a read: nothing was kept from the one before
    begins = [after for before, after in pairwise(done) if after[1] != before[1]]
    assert len(begins) > 2 * len(ALL)
    assert {what for what, _ in begins} == {"read"}
