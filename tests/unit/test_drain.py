"""A drain's run against the log, the sink and the control store in memory, with every fault between them."""

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from checks.testbed.waiting import WAIT_SECONDS_MAX, wait_until
from pipeline.breaker import SinkBreaker
from pipeline.clock import ManualClock, SystemClock
from pipeline.control_store.memory import MemoryControlStore, MemoryOffsetFence, MemoryServer
from pipeline.drain import drain
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.errors import (
    FencedError,
    LogMisconfiguredError,
    LogUnavailableError,
    SinkContentionError,
    SinkUnavailableError,
    StoreUnavailableError,
)
from pipeline.late_begin import LateBegin
from pipeline.log.memory import MemoryLog, MemoryLogServer
from pipeline.pace import Pace
from pipeline.ports.control import Mirror
from pipeline.ports.event_sink import StoreResult
from pipeline.ports.log import LogBatch
from pipeline.settings import Settings
from pipeline.sink.memory import MemoryDatabase, MemorySink
from support.records import numbered_batch, record

STEP_SECONDS = 0.5  # what each look at the pause reasons takes, on the manual clock


class Rig:
    """One partition's surroundings. Time passes with each look at the pause reasons, so that a run ends."""

    def __init__(self, **changes: Any) -> None:
        quick = {"drain_poll_seconds": 0.01, "drain_batch_records_max": 10, "poison_run_records_max": 5, **changes}
        self.settings = replace(Settings(), **quick)
        self.clock = ManualClock()
        self.server = MemoryServer(self.clock)
        self.fence = MemoryOffsetFence(self.settings, self.server)
        self.log_server = MemoryLogServer(2)
        self.ingest = MemoryLog(lowest_offsets=LowestOffsetsOf(self.fence), server=self.log_server)
        self.log = MemoryLog(lowest_offsets=LowestOffsetsOf(self.fence), server=self.log_server)
        self.store = MemoryDatabase()
        self.sink = MemorySink(self.settings, self.store)
        self.breaker = SinkBreaker(self.settings, MemoryControlStore(self.settings, self.server), self.clock, "test")
        self.stored: list[tuple[int, StoreResult]] = []
        self.at_step: dict[int, Callable[[], object]] = {}  # what happens at the n-th look at the pause reasons
        self.steps = 0
        self.is_paused = False

    @property
    def log_id(self) -> str:
        return self.log_server.log_id

    def append(self, first: int, count: int) -> None:
        self.append_values([record(number) for number in range(first, first + count)])

    def append_values(self, values: list[bytes]) -> None:
        self.ingest.append([(0, value) for value in values])

    def paused(self) -> bool:
        self.clock.advance(STEP_SECONDS)
        self.steps += 1
        self.at_step.pop(self.steps, lambda: None)()
        return self.is_paused

    def drain(self, **changes: Any) -> DrainReport:
        means: dict[str, Any] = {
            "log": self.log,
            "sink": self.sink,
            "fence": self.fence,
            "breaker": self.breaker,
            "paused": self.paused,
            "settings": self.settings,
            "clock": self.clock,
            "on_stored": lambda offset, result: self.stored.append((offset, result)),
            **changes,
        }
        self.steps = 0
        return drain(0, **means)

    def stored_numbers(self) -> list[int]:
        return sorted(int(event_id.removeprefix("event-")) for event_id in self.store.events)

    def committed(self) -> int | None:
        return self.ingest.positions()[0].committed


class LowestOffsetsOf:
    """Where a restarted MemoryLog learns its lowest offsets."""

    def __init__(self, fence: MemoryOffsetFence) -> None:
        self._fence = fence

    def __call__(self, log_id: str, incarnation: str, *, is_new: bool = False) -> dict[int, int]:
        mirror = self._fence.fence(log_id, incarnation)
        self._fence.seed(log_id, mirror.life, {})
        return mirror.lowest_offsets


@pytest.fixture
def rig() -> Rig:
    return Rig()


# --- the way it should go ----------------------------------------------------------------------------------


def test_everything_is_stored_in_order(rig: Rig) -> None:
    # Given a backlog of several batches
    rig.append(0, 35)
    # When it is drained until the time is up
    report = rig.drain()
    # Then all of it is stored, batch by batch, the log knows it, and the partition is free
    assert report == DrainReport(0, DrainOutcome.FINISHED, stored=35, batches=4, next_offset=35)
    assert rig.stored_numbers() == list(range(35))
    assert [offset for offset, _ in rig.stored] == [10, 20, 30, 35]
    assert sum(result.stored for _, result in rig.stored) == 35
    assert rig.committed() == 35
    assert rig.store.locks == {}


def test_it_goes_on_where_the_sink_stands(rig: Rig) -> None:
    # Given a partition of which 12 are stored, and a log that was not told
    rig.append(0, 20)
    rig.sink.store(rig.log_id, 0, 0, numbered_batch(0, 12), before_commit=lambda: None)
    # When a run finds nothing to do since it is paused after looking
    rig.at_step[2] = lambda: setattr(rig, "is_paused", True)
    report = rig.drain()
    # Then it has told the log at least
    assert report == DrainReport(0, DrainOutcome.PAUSED, next_offset=12)
    assert rig.committed() == 12
    # And the next run goes on from there
    rig.is_paused = False
    assert rig.drain().stored == 8
    assert rig.stored_numbers() == list(range(20))


def test_a_log_that_was_never_drained_begins_where_it_begins(rig: Rig) -> None:
    # Given a log whose beginning was trimmed before the sink knew of it
    rig.append(0, 20)
    rig.log_server.trim(0, 5)
    report = rig.drain()
    assert report.stored == 15
    assert rig.stored_numbers() == list(range(5, 20))
    # Then it says so, once
    assert report.began_late == LateBegin(rig.log_id, 5, 0)
    assert rig.drain().began_late is None


def test_a_log_that_begins_at_0_or_declares_that_it_does_not_is_not_said_to_begin_late(rig: Rig) -> None:
    # Given a log that lost its tail before anything of it was stored, and one batch that was about to be stored
    rig.append(0, 5)
    identity = rig.log.identity()
    rig.fence.fence(rig.log_id, identity.incarnation)
    rig.fence.raise_lowest_offset(rig.log_id, identity.incarnation, 0, 8)
    rig.log_server.restart(keep={0: 0})
    rig.append(20, 3)
    report = rig.drain()
    assert (report.stored, report.next_offset, report.began_late) == (3, 11, None)
    other = Rig()
    other.append(0, 3)
    assert other.drain().began_late is None


def test_a_log_that_still_holds_what_another_database_has_stored_says_so(rig: Rig) -> None:
    # Given a log that keeps what was stored, and an empty database
    rig.append(0, 5)
    rig.log.commit(rig.log_id, 0, 5)
    # Then all is stored again, and the drain says that the database is another one
    report = rig.drain()
    assert (report.stored, report.began_late) == (5, LateBegin(rig.log_id, 0, 5))
    assert rig.drain().began_late is None


def test_repeats_conflicts_and_letters_are_counted(rig: Rig) -> None:
    rig.append_values([record(1), record(1), record(1, message="another"), b"broken"])
    report = rig.drain()
    assert (report.stored, report.repeated, report.conflicting, report.dead_lettered) == (1, 1, 1, 1)


def test_a_run_that_ends_with_a_backlog_says_so(rig: Rig) -> None:
    # Given more than a run can store
    rig.append(0, 500)
    report = rig.drain()
    # Then it says that there is more, and was not far longer than its time
    assert report.more
    assert report.outcome is DrainOutcome.FINISHED
    assert report.stored <= 10 * (rig.settings.drain_run_seconds_max / STEP_SECONDS + 1)


def test_an_event_is_stored_soon_after_its_append() -> None:
    # Given a run that waits for events, by the real clock
    rig = Rig(drain_poll_seconds=10.0, drain_run_seconds_max=20.0)
    stored = threading.Event()

    def run() -> DrainReport:
        return rig.drain(
            clock=SystemClock(),
            on_stored=lambda *_: stored.set(),
            paused=stored.is_set,
            settings=rig.settings,
        )

    with ThreadPoolExecutor(1) as executor:
        report = executor.submit(run)
        while (rig.log_id, 0) not in rig.store.locks:
            threading.Event().wait(0.001)
        started = time.monotonic()
        # When one comes
        rig.append(0, 1)
        # Then it is stored at once, not after the poll
        assert stored.wait(WAIT_SECONDS_MAX)
        assert time.monotonic() - started < 8.0
        assert report.result(WAIT_SECONDS_MAX).outcome is DrainOutcome.PAUSED


def test_reading_overlaps_with_storing(rig: Rig) -> None:
    # Given a sink that stores its first batch only when the second has been read
    second_read = threading.Event()

    class Watched(MemoryLog):
        inside = 0
        overlaps = 0

        def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
            Watched.inside += 1
            Watched.overlaps += Watched.inside > 1
            found = super().read(partition, offset, records_max=records_max, wait_seconds=wait_seconds)
            if found is not None and offset == 10:
                second_read.set()
            Watched.inside -= 1
            return found

        def commit(self, log_id: str, partition: int, offset: int) -> None:
            Watched.inside += 1
            Watched.overlaps += Watched.inside > 1
            super().commit(log_id, partition, offset)
            Watched.inside -= 1

    class Waiting(MemorySink):
        def _commit(self, *arguments: Any) -> None:
            assert second_read.wait(WAIT_SECONDS_MAX), "the next batch was not read while this one is stored"
            super()._commit(*arguments)

    rig.log = Watched(server=rig.log_server)
    rig.append(0, 25)
    assert rig.drain(sink=Waiting(rig.settings, rig.store)).stored == 25
    # And the log was never asked by two at once
    assert Watched.overlaps == 0


def test_a_read_ahead_does_not_wait(rig: Rig) -> None:
    # Given a log that notes how long each read waits at its end
    waits: list[tuple[int, float]] = []

    class Noting(MemoryLog):
        def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
            waits.append((offset, wait_seconds))
            return super().read(partition, offset, records_max=records_max, wait_seconds=0)

    rig.log = Noting(server=rig.log_server)
    rig.append(0, 25)
    assert rig.drain().stored == 25
    # Then the reads beside a store take what is there, and only the run itself waits: Redis ends a wait of some
    # milliseconds when its timer comes, a quarter of a second later
    assert dict(waits[1:4]) == {10: 0.0, 20: 0.0, 25: 0.0}
    assert waits[4][1] > 0


def test_the_lowest_offset_is_raised_while_the_batch_is_stored(rig: Rig) -> None:
    # Given a sink that is ready to commit only when the lowest offset was raised
    raised = threading.Event()

    class Noting(MemoryOffsetFence):
        def raise_lowest_offset(self, log_id: str, incarnation: str, partition: int, offset: int) -> None:
            super().raise_lowest_offset(log_id, incarnation, partition, offset)
            raised.set()

    class Waiting(MemorySink):
        def store(self, *place: Any, before_commit: Callable[[], None], **named: Any) -> StoreResult:
            def late() -> None:
                assert raised.wait(WAIT_SECONDS_MAX), "nobody raised it before the end"
                raised.clear()
                before_commit()

            return super().store(*place, before_commit=late, **named)

    rig.append(0, 25)
    report = rig.drain(sink=Waiting(rig.settings, rig.store), fence=Noting(rig.settings, rig.server))
    # Then each batch is stored, and its offset was raised once
    assert (report.stored, report.batches) == (25, 3)
    assert not raised.is_set()


def test_a_lowest_offset_that_was_raised_for_another_transaction_does_not_count(rig: Rig) -> None:
    # Given a sink that writes a batch in a second transaction, and a control store that is flushed between the two
    raised, flushed = threading.Event(), list[bool]()

    class Noting(MemoryOffsetFence):
        def raise_lowest_offset(self, log_id: str, incarnation: str, partition: int, offset: int) -> None:
            super().raise_lowest_offset(log_id, incarnation, partition, offset)
            raised.set()

    class Twice(MemorySink):
        def store(self, *place: Any, on_moved: Callable[[], None] | None = None, **named: Any) -> StoreResult:
            assert on_moved is not None
            on_moved()
            assert raised.wait(WAIT_SECONDS_MAX), "nobody raised it"
            if not flushed:
                rig.server.flush()
                flushed.append(True)
            return super().store(*place, on_moved=on_moved, **named)

    rig.append(0, 5)
    fence = Noting(rig.settings, rig.server)
    assert rig.drain(sink=Twice(rig.settings, rig.store), fence=fence).stored == 5
    # Then no offset that is stored may be used again
    assert fence.mirror(rig.log_id).lowest_offsets == {0: 5}


def test_the_log_is_told_seldom_in_a_backlog_and_at_once_behind_it(rig: Rig) -> None:
    # Given a backlog of 50 batches, of which each takes 10 ms
    told: list[int] = []

    class Told(MemoryLog):
        def commit(self, log_id: str, partition: int, offset: int) -> None:
            told.append(offset)
            super().commit(log_id, partition, offset)

    def paused() -> bool:
        rig.clock.advance(0.01 if rig.committed() != 500 else STEP_SECONDS)
        return False

    rig.append(0, 500)
    assert rig.drain(log=Told(server=rig.log_server), paused=paused).stored == 500
    # Then the log was told of some of them, in order, and of the last one before the wait for more
    assert 4 <= len(told) <= 8
    assert told == sorted(set(told))
    assert told[-1] == 500


# --- who may drain ------------------------------------------------------------------------------------------


def test_a_busy_partition_is_left_at_once(rig: Rig) -> None:
    rig.append(0, 5)
    other = MemorySink(rig.settings, rig.store)
    assert other.acquire(rig.log_id, 0)
    assert rig.drain() == DrainReport(0, DrainOutcome.BUSY)
    assert rig.steps == 1
    assert rig.store.events == {}


def test_a_paused_drain_touches_nothing(rig: Rig) -> None:
    rig.append(0, 5)
    rig.is_paused = True
    rig.store.is_down = True
    rig.log_server.stop()
    assert rig.drain() == DrainReport(0, DrainOutcome.PAUSED)


def test_a_pause_is_noticed_before_each_batch(rig: Rig) -> None:
    rig.append(0, 100)
    rig.at_step[5] = lambda: setattr(rig, "is_paused", True)
    report = rig.drain()
    assert (report.outcome, report.stored) == (DrainOutcome.PAUSED, 20)
    assert rig.committed() == 20
    assert report.more


def test_what_a_waiting_read_brings_after_a_pause_is_not_stored(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a drain that waits for events while a pause comes, and then an event
    read = rig.log.read

    def paused_meanwhile(partition: int, offset: int, **limits: Any) -> LogBatch | None:
        rig.is_paused = True
        rig.append(0, 1)
        return read(partition, offset, **limits)

    monkeypatch.setattr(rig.log, "read", paused_meanwhile)
    report = rig.drain()
    # Then it asks again before it stores
    assert (report.outcome, report.stored) == (DrainOutcome.PAUSED, 0)


def test_a_partition_that_does_not_exist_is_the_set_ups_fault(rig: Rig) -> None:
    with pytest.raises(LogMisconfiguredError):
        drain(
            7,
            log=rig.log,
            sink=rig.sink,
            fence=rig.fence,
            breaker=rig.breaker,
            paused=rig.paused,
            settings=rig.settings,
            clock=rig.clock,
        )


def test_the_partition_is_given_up_whatever_happens(rig: Rig) -> None:
    # Given something that nobody expects, a time limit's exception say
    class Limit(BaseException):
        pass

    def limit(*_: object) -> None:
        raise Limit

    rig.append(0, 5)
    with pytest.raises(Limit):
        rig.drain(on_stored=limit)
    assert rig.store.locks == {}


# --- holes ----------------------------------------------------------------------------------------------------


def test_an_undeclared_hole_ends_the_run(rig: Rig) -> None:
    # Given a log from which unread entries were trimmed by hand
    rig.append(0, 3)
    assert rig.drain().stored == 3
    rig.append(3, 10)
    rig.log_server.trim(0, 7)
    # Then nothing behind the hole is stored
    report = rig.drain()
    assert report.outcome is DrainOutcome.LOG_GAP
    assert report.error is not None
    assert "no longer has the next 4 records to store, at offsets 3 to 6" in report.error
    assert rig.stored_numbers() == [0, 1, 2]
    assert report.next_offset == 3


def test_what_lies_before_a_hole_is_stored(rig: Rig) -> None:
    # Given a log with a hole between two batches
    class Holed(MemoryLog):
        def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
            return numbered_batch(offset if offset == 0 else offset + 1, 4)

    rig.log = Holed(server=rig.log_server)
    report = rig.drain()
    assert (report.outcome, report.next_offset) == (DrainOutcome.LOG_GAP, 4)
    assert rig.stored_numbers() == [0, 1, 2, 3]


def test_a_hole_that_another_drain_has_made_is_none(rig: Rig) -> None:
    # Given a run that has looked up its offset, when another process stores a batch, and the log is trimmed behind it
    rig.append(0, 20)
    other = MemorySink(rig.settings, rig.store)

    def store_and_trim() -> None:
        other.store(rig.log_id, 0, 0, numbered_batch(0, 12), before_commit=lambda: None)
        rig.log_server.trim(0, 12)

    rig.at_step[2] = store_and_trim
    # Then the run looks again where the sink stands, and goes on from there
    report = rig.drain()
    assert (report.outcome, report.stored, report.next_offset) == (DrainOutcome.FINISHED, 8, 20)
    assert rig.stored_numbers() == list(range(20))


def test_a_run_that_has_lost_its_lock_stores_nothing_before_it_has_it_again(rig: Rig) -> None:
    # Given a run whose session ended while the control store did not answer
    rig.append(0, 20)
    other = MemorySink(rig.settings, rig.store)

    class Frozen(MemorySink):
        tries = 0

        def store(self, *place: Any, **means: Any) -> StoreResult:
            self.tries += 1
            if self.tries == 1:
                rig.store.locks.clear()
                raise StoreUnavailableError
            return super().store(*place, **means)

    sink = Frozen(rig.settings, rig.store)
    # When another process has the partition
    rig.at_step[4] = lambda: other.acquire(rig.log_id, 0)
    report = rig.drain(sink=sink)
    # Then the first one stores nothing
    assert (report.outcome, report.stored, sink.tries) == (DrainOutcome.BUSY, 0, 1)
    # And it stores if no other has it
    other.release(rig.log_id, 0)
    sink.tries = 0
    report = rig.drain(sink=sink)
    assert (report.outcome, report.stored) == (DrainOutcome.FINISHED, 20)


@pytest.mark.parametrize(("gap_from", "is_accepted"), [(0, True), (3, True), (4, False), (None, False)])
def test_a_declared_hole_is_accepted_only_where_it_covers(rig: Rig, gap_from: int | None, is_accepted: bool) -> None:
    # Given three stored records, and a log that goes on with 8
    class Holed(MemoryLog):
        def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
            if offset == 0:
                return numbered_batch(0, 3)
            return LogBatch(8, [record(8)], gap_from) if offset == 3 else None

    rig.log = Holed(server=rig.log_server)
    report = rig.drain()
    assert report.outcome is (DrainOutcome.FINISHED if is_accepted else DrainOutcome.LOG_GAP)
    lost = "partition 0: the event log no longer has the next 5 records to store, at offsets 3 to 7"
    assert report.error == (None if is_accepted else lost)
    assert rig.store.offsets == {(rig.log_id, 0): 9 if is_accepted else 3}


def test_a_record_before_the_one_asked_for_is_a_hole_too(rig: Rig) -> None:
    class Backwards(MemoryLog):
        def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
            return LogBatch(offset - 1, [record(1)]) if offset else numbered_batch(0, 3)

    rig.log = Backwards(server=rig.log_server)
    assert rig.drain().outcome is DrainOutcome.LOG_GAP


def test_a_log_without_its_tail_goes_on_behind_what_is_stored(rig: Rig) -> None:
    # Given a log of which 20 are stored, and that comes back with 12 of them
    rig.append(0, 20)
    assert rig.drain().stored == 20
    rig.log_server.restart(keep={0: 12})
    # When more comes
    rig.append(20, 5)
    report = rig.drain()
    # Then it has offsets that were never used, and is stored
    assert (report.outcome, report.stored, report.next_offset) == (DrainOutcome.FINISHED, 5, 25)
    assert rig.stored_numbers() == list(range(25))


def test_a_log_that_lost_its_tail_and_grew_past_what_is_stored_is_noticed(rig: Rig) -> None:
    # Given a log of which 20 are stored, that comes back with 12 of them and goes on at 12, for nobody raised it
    rig.append(0, 20)
    assert rig.drain().stored == 20
    rig.log_server.restart(keep={0: 12})
    rig.ingest = MemoryLog(server=rig.log_server)
    rig.append(20, 30)
    # Then no drain goes on behind the eight new records that lie below the stored offset
    report = rig.drain()
    assert (report.outcome, report.stored, report.next_offset) == (DrainOutcome.LOG_GAP, 0, None)
    assert "another record at offset 19" in str(report.error)
    assert rig.store.offsets == {(rig.log_id, 0): 20}
    # When somebody has it read again from where it was cut off
    rig.store.offsets[rig.log_id, 0] = 12
    del rig.store.digests[rig.log_id, 0]
    # Then all of it is stored
    assert rig.drain().stored == 30
    assert rig.stored_numbers() == list(range(50))


def test_the_last_record_is_not_missed_where_the_log_has_trimmed_it(rig: Rig) -> None:
    rig.append(0, 20)
    assert rig.drain().stored == 20
    rig.append(20, 5)
    rig.log_server.trim(0, 20)
    assert rig.drain().stored == 5
    rig.log_server.trim(0, 25)
    assert rig.drain().outcome is DrainOutcome.FINISHED


def test_a_partition_without_a_leader_ends_the_run_of_no_other(rig: Rig) -> None:
    # Given a log whose other partition has no leader
    rig.append(0, 5)
    rig.log_server.lose_leader(1)
    # Then this one is drained from its beginning
    assert rig.drain().stored == 5
    # And the other one's run ends as one whose log is away
    rig.log_server.lose_leader(0)
    rig.store.offsets.clear()
    assert rig.drain().outcome is DrainOutcome.LOG_UNAVAILABLE


# --- the sink fails ---------------------------------------------------------------------------------------------


def test_a_short_failure_is_sat_out(rig: Rig) -> None:
    # Given a sink that is away for a few tries in the midst of a backlog
    rig.append(0, 40)
    rig.at_step[3] = lambda: setattr(rig.store, "is_down", True)
    rig.at_step[6] = lambda: setattr(rig.store, "is_down", False)
    # Then all is stored once, in this run
    report = rig.drain()
    assert (report.outcome, report.stored) == (DrainOutcome.FINISHED, 40)
    assert rig.stored_numbers() == list(range(40))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_commit_without_an_answer(rig: Rig, moment: str) -> None:
    # Given a connection that is lost in a COMMIT, which took effect or not
    rig.append(0, 30)
    rig.at_step[3] = lambda: setattr(rig.store, "dies_at_commit", moment)
    report = rig.drain()
    # Then nothing is lost or repeated
    assert report.outcome is DrainOutcome.FINISHED
    assert rig.stored_numbers() == list(range(30))
    assert (report.repeated, report.next_offset, rig.committed()) == (0, 30, 30)
    assert report.stored == (30 if moment == "before" else 20)  # the answer with the counts was lost


def test_contention_is_tried_again_and_not_counted(rig: Rig) -> None:
    rig.append(0, 5)
    rig.store.contentions = 8
    assert rig.drain().stored == 5
    assert not rig.breaker.is_open


def test_a_locked_table_opens_the_breaker_however_often_a_run_begins(rig: Rig) -> None:
    # Given a table that somebody has locked, and runs that end after one try each
    rig.append(0, 5)
    rig.store.is_locked = True
    outcomes = []
    for _ in range(5):
        rig.is_paused = False
        rig.at_step = {4: lambda: setattr(rig, "is_paused", True)}
        outcomes.append(rig.drain().outcome)
    # Then the fifth failure opens the breaker, though each run's look-up succeeded
    assert outcomes == [*[DrainOutcome.PAUSED] * 2, *[DrainOutcome.PAUSED] * 2, DrainOutcome.BREAKER_OPEN]
    # And no record is taken for the culprit
    assert rig.store.letters == {}


def test_a_record_that_makes_storing_fail_becomes_a_dead_letter() -> None:
    rig = Rig(drain_run_seconds_max=100.0, drain_hard_seconds_max=200.0)
    # Given two records for which a trigger raises what looks like the server's fault, among a backlog
    rig.append(0, 60)
    culprits = {"event-000023", "event-000024"}
    rig.store.fails_for = lambda event: "no such function" if event.event_id in culprits else None
    report = rig.drain()
    # Then they alone are dead letters, PostgreSQL was asked in between, and the breaker has stayed closed
    assert (report.outcome, report.stored, report.dead_lettered) == (DrainOutcome.FINISHED, 58, 2)
    assert [offset for _, _, offset in rig.store.letters] == [23, 24]
    assert {letter.reason for letter in rig.store.letters.values()} == {
        "storing it failed each time, while PostgreSQL took other writes: no such function"
    }
    assert rig.store.probes >= 2
    assert not rig.breaker.is_open


@pytest.mark.parametrize("sqlstate", ["40001", None])
def test_a_record_whose_transaction_is_always_rolled_back_becomes_a_dead_letter(sqlstate: str | None) -> None:
    # Given a record for which a trigger raises that the transaction be repeated, each time
    class RolledBack(MemorySink):
        def store(self, *arguments: Any, **named: Any) -> StoreResult:
            if any(b"event-000023" in value for value in arguments[3].values):
                raise SinkContentionError("repeat it", sqlstate=sqlstate)
            return super().store(*arguments, **named)

    rig = Rig(drain_run_seconds_max=100.0, drain_hard_seconds_max=200.0)
    rig.append(0, 60)
    report = rig.drain(sink=RolledBack(rig.settings, rig.store))
    if sqlstate is None:  # it is not PostgreSQL that says so, but a lock on files
        assert (report.outcome, report.dead_lettered, report.next_offset) == (DrainOutcome.SINK_UNAVAILABLE, 0, 20)
        return
    # Then it does not stop the others for ever
    assert (report.outcome, report.stored, report.dead_lettered) == (DrainOutcome.FINISHED, 59, 1)
    assert [offset for _, _, offset in rig.store.letters] == [23]
    assert not rig.breaker.is_open


def test_a_partition_that_stopped_for_such_records_tries_them_again_once_it_is_resumed() -> None:
    rig = Rig(drain_run_seconds_max=100.0, drain_hard_seconds_max=200.0, poison_condemned_records_max=1)
    # Given two records for which a trigger fails, and a process that remembers what failed
    rig.append(0, 30)
    rig.store.fails_for = lambda event: "no such table" if event.event_id in {"event-000003", "event-000017"} else None
    pace = Pace(rig.settings)
    report = rig.drain(pace=pace)
    assert (report.outcome, report.dead_lettered, report.next_offset) == (DrainOutcome.POISONED, 1, 17)
    # When the table is back, and the partition is resumed
    rig.store.fails_for = None
    report = rig.drain(pace=pace)
    assert (report.stored, report.dead_lettered) == (13, 0)


def test_a_record_is_no_culprit_where_no_row_can_be_the_cause(rig: Rig) -> None:
    # Given a part of the table that is locked: one partition's stores fail while other writes pass
    class PartlyLocked(MemorySink):
        def store(self, *arguments: Any, **named: Any) -> StoreResult:
            raise SinkUnavailableError("timed out waiting for a lock", is_a_row_possible=False)

    rig.append(0, 5)
    report = rig.drain(sink=PartlyLocked(rig.settings, rig.store))
    # Then it is tried to the end, nothing is given up, and the others are not stopped for it
    assert report.outcome is DrainOutcome.SINK_UNAVAILABLE
    assert rig.store.letters == {}
    assert not rig.breaker.is_open


def test_what_a_run_has_learnt_of_a_culprit_is_kept_for_the_next(rig: Rig) -> None:
    # Given runs that end after each try
    rig.append(0, 10)
    rig.store.fails_for = lambda event: "no such function" if event.event_id == "event-000003" else None
    pace = Pace(rig.settings)
    for _ in range(30):
        rig.is_paused = False
        rig.at_step = {5: lambda: setattr(rig, "is_paused", True)}
        rig.drain(pace=pace)
    # Then the culprit is found all the same
    assert rig.stored_numbers() == [0, 1, 2, *range(4, 10)]
    assert [offset for _, _, offset in rig.store.letters] == [3]


def test_a_refused_batch_goes_on_in_pieces() -> None:
    # Given batches that are too large to look for culprits in one transaction, and a table that refuses every fifth
    rig = Rig(drain_batch_records_max=100, drain_careful_records_max=10, poison_run_records_max=5)
    rig.append(0, 200)
    rig.store.refuses = lambda event: (
        "rude" if int(event.event_id[-6:]) % 5 == 0 and event.event_id < "event-000100" else None
    )
    sink = SizedSink(rig)
    report = rig.drain(sink=sink)
    # Then each piece is committed for itself
    assert (report.stored, report.dead_lettered, report.outcome) == (180, 20, DrainOutcome.FINISHED)
    assert [offset for offset, _ in rig.stored[:10]] == [*range(10, 101, 10)]
    # And the batches grow again once nothing is refused any more
    sizes = [count for count, _ in sink.sizes]
    assert sizes == [100, *[10] * 10, 10, 20, 40, 30]


class Frozen(MemorySink):
    """Each call takes two seconds, then fails."""

    clock: ManualClock
    only_store = False

    def _ask(self) -> None:
        if not self.only_store:
            self._freeze()

    def store(self, *arguments: Any, **named: Any) -> StoreResult:
        self._freeze()
        raise AssertionError

    def probe(self) -> None:
        self._freeze()

    def _freeze(self) -> None:
        self.clock.advance(2.0)
        self._disconnect()
        raise SinkUnavailableError


@pytest.mark.parametrize("only_store", [False, True])
@pytest.mark.parametrize("run_seconds", [10.0, 1.0])
def test_a_frozen_sink_opens_the_breaker_in_time(rig: Rig, only_store: bool, run_seconds: float) -> None:
    # Given a sink whose calls fail after 2 s, all of them or only what stores, be the run's time as short as it may
    rig.settings = replace(rig.settings, drain_run_seconds_max=run_seconds)
    rig.append(0, 5)
    sink = Frozen(rig.settings, rig.store)
    sink.clock, sink.only_store = rig.clock, only_store
    started = rig.clock.monotonic()
    # When it is drained, without the time that looking at the pause reasons takes here
    report = rig.drain(sink=sink, paused=lambda: False)
    # Then the fifth failure opens the breaker, within 12 s
    assert report.outcome is DrainOutcome.BREAKER_OPEN
    assert rig.breaker.is_open
    assert 10.0 <= rig.clock.monotonic() - started < 12.0
    # And the next run does not even ask
    asked_at = rig.clock.monotonic()
    assert rig.drain(sink=sink, paused=lambda: False).outcome is DrainOutcome.BREAKER_OPEN
    assert rig.clock.monotonic() == asked_at


def test_a_sink_that_fails_to_the_end_is_reported(rig: Rig) -> None:
    # Given a breaker that takes more failures than a run has
    rig = Rig(breaker_failures_max=1000)
    rig.append(0, 5)
    rig.store.is_down = True
    started = rig.clock.monotonic()
    report = rig.drain()
    # Then the run ends before it would be killed
    assert report.outcome is DrainOutcome.SINK_UNAVAILABLE
    assert report.error == "the memory sink is down"
    assert rig.clock.monotonic() - started < rig.settings.drain_hard_seconds_max


def test_a_lock_that_is_not_free_yet_is_waited_for(rig: Rig) -> None:
    # Given a lost connection whose backend holds the lock for two tries more
    rig.append(0, 40)
    other = MemorySink(rig.settings, rig.store)

    def lose() -> None:
        rig.sink.close()
        rig.store.is_down = True

    def return_busy() -> None:
        rig.store.is_down = False
        assert other.acquire(rig.log_id, 0)

    rig.at_step[3] = lose
    rig.at_step[4] = return_busy
    rig.at_step[6] = other.close
    assert rig.drain().stored == 40
    # And one that somebody else has taken over is left to him
    rig.append(40, 40)
    rig.at_step[3] = lose
    rig.at_step[4] = return_busy
    assert rig.drain().outcome is DrainOutcome.BUSY


def test_poison_ends_the_run(rig: Rig) -> None:
    rig.append(0, 3)
    rig.append_values([b"broken"] * 10)
    report = rig.drain()
    assert report.outcome is DrainOutcome.POISONED
    assert report.error is not None
    assert rig.store.letters == {}


# --- log and offsets move ------------------------------------------------------------------------------------------


def test_an_offset_that_somebody_moved_is_looked_up_again(rig: Rig) -> None:
    # Given a drain whose lock was lost without its knowledge, and another that has stored 10 more meanwhile
    rig.append(0, 40)
    other = MemorySink(rig.settings, rig.store)
    rig.at_step[4] = lambda: other.store(rig.log_id, 0, 10, numbered_batch(10, 10), before_commit=lambda: None)
    report = rig.drain()
    # Then it goes on behind them
    assert (report.outcome, report.stored, report.repeated) == (DrainOutcome.FINISHED, 30, 0)
    assert rig.stored_numbers() == list(range(40))


def test_a_log_that_restarts_is_asked_again(rig: Rig) -> None:
    # Given a log that restarts in the midst of a run, complete
    rig.append(0, 40)
    rig.at_step[3] = rig.log_server.restart
    report = rig.drain()
    assert (report.outcome, report.stored) == (DrainOutcome.FINISHED, 40)


def test_a_batch_of_an_older_incarnation_is_not_stored(rig: Rig) -> None:
    # Given a log that loses its tail while that is in hand, and takes a new event at an offset of the tail
    rig.append(0, 15)

    def lose_the_tail() -> None:
        rig.log_server.restart(keep={0: 12})
        rig.append(100, 1)

    class Slow(MemorySink):
        def store(
            self, log_id: str, partition: int, expected_offset: int, batch: LogBatch, **named: Any
        ) -> StoreResult:
            if batch.offset == 10 and len(batch.values) == 5:
                lose_the_tail()
            return super().store(log_id, partition, expected_offset, batch, **named)

    report = rig.drain(sink=Slow(rig.settings, rig.store))
    # Then what is stored is what the log holds now: an offset never means two events
    assert report.outcome is DrainOutcome.FINISHED
    assert rig.stored_numbers() == [*range(12), 100]
    assert report.next_offset == 13


def test_another_log_is_drained_from_its_beginning(rig: Rig) -> None:
    # Given a log that is replaced by an empty one in the midst of a run
    rig.append(0, 15)
    first = rig.log_id

    def replace_it() -> None:
        rig.log_server.flush()
        rig.append(50, 5)

    rig.at_step[5] = replace_it
    report = rig.drain()
    # Then its offsets are its own, and both locks are free
    assert report.stored == 20
    assert rig.store.offsets == {(first, 0): 15, (rig.log_id, 0): 5}
    assert rig.store.locks == {}


@pytest.mark.parametrize("is_busy", [False, True])
def test_another_log_is_not_told_how_far_the_first_is_stored(rig: Rig, is_busy: bool) -> None:
    # Given a log in whose place another one comes in the midst of a run, before the first is told of what is stored;
    # the second is the longer one, and somebody else may drain it
    rig.append(0, 10)
    first, told = rig.log_id, list[tuple[str, int]]()

    class Told(MemoryLog):
        def commit(self, log_id: str, partition: int, offset: int) -> None:
            told.append((log_id, offset))
            super().commit(log_id, partition, offset)

    def replace_it() -> None:
        rig.log_server.flush()
        rig.append(50, 25)
        if is_busy:
            MemorySink(rig.settings, rig.store).acquire(rig.log_id, 0)

    class Slow(MemorySink):
        def store(self, *arguments: Any, **named: Any) -> StoreResult:
            result = super().store(*arguments, **named)
            if rig.log_id == first:
                replace_it()
            return result

    report = rig.drain(sink=Slow(rig.settings, rig.store), log=Told(server=rig.log_server))
    # Then it is told of its own offsets only, also where the run ends without one
    assert report.outcome is (DrainOutcome.BUSY if is_busy else DrainOutcome.FINISHED)
    assert [offset for log_id, offset in told if log_id == first] == [10]
    assert rig.committed() == (None if is_busy else 25)


def test_a_log_that_is_away_is_sat_out(rig: Rig) -> None:
    rig.append(0, 40)
    rig.at_step[3] = rig.log_server.stop
    rig.at_step[6] = rig.log_server.start
    report = rig.drain()
    assert (report.outcome, report.stored) == (DrainOutcome.FINISHED, 40)


def test_a_log_that_stays_away_is_reported(rig: Rig) -> None:
    rig.log_server.stop()
    report = rig.drain()
    assert report.outcome is DrainOutcome.LOG_UNAVAILABLE
    assert report.error is not None


# --- the control store is away ------------------------------------------------------------------------------------


class CountingSink(MemorySink):
    stores = 0

    def store(self, *arguments: Any, **named: Any) -> StoreResult:
        self.stores += 1
        return super().store(*arguments, **named)


@pytest.mark.parametrize("what", ["flushed", "restarted", "from an older file"])
def test_a_control_store_that_forgets_fences_nobody_off_for_ever(rig: Rig, what: str) -> None:
    # Given a log that was restarted, and a control store that forgets that in the midst of a run
    rig.append(0, 10)
    assert rig.drain().stored == 10
    file = rig.server.remember()
    rig.log_server.restart()
    rig.append(10, 40)

    def forget() -> None:
        if what == "flushed":
            rig.server.flush()
        else:
            rig.server.restart(file if what == "from an older file" else None)

    rig.at_step[4] = forget
    # Then the drain makes the log's incarnation the current one again, and goes on
    report = rig.drain()
    assert (report.outcome, report.stored) == (DrainOutcome.FINISHED, 40)
    # And a batch of the incarnation before would still be refused
    with pytest.raises(FencedError):
        rig.fence.raise_lowest_offset(rig.log_id, "the one before", 0, 99)


def test_a_fence_that_comes_too_late_is_noticed(rig: Rig) -> None:
    # Given a log that restarts once more while a drain makes its incarnation the current one
    rig.append(0, 10)
    rig.server.flush()

    class Late(MemoryOffsetFence):
        def fence(self, log_id: str, incarnation: str) -> Mirror:
            if not fenced:
                rig.log_server.restart()
            fenced.append(incarnation)
            return super().fence(log_id, incarnation)

    fenced: list[str] = []
    # Then it fences the newer one in its place
    report = rig.drain(fence=Late(rig.settings, rig.server))
    assert (report.outcome, report.stored) == (DrainOutcome.FINISHED, 10)
    assert fenced[0] != fenced[-1] == rig.log_server.incarnation


def test_nothing_is_committed_without_a_lowest_offset(rig: Rig) -> None:
    # Given a control store that is away
    rig.append(0, 40)
    rig.server.is_unavailable = True
    sink = CountingSink(rig.settings, rig.store)
    report = rig.drain(sink=sink)
    # Then nothing is stored, the batch was written in vain once only, and that was no failure of the sink's
    assert report.outcome is DrainOutcome.CONTROL_STORE_UNAVAILABLE
    assert rig.store.events == {}
    assert sink.stores == 1
    assert not rig.breaker.is_open
    # And when it is back, all is stored
    rig.server.is_unavailable = False
    assert rig.drain().stored == 40


def test_a_short_absence_of_the_control_store_is_sat_out(rig: Rig) -> None:
    rig.append(0, 40)
    rig.at_step[3] = lambda: setattr(rig.server, "is_unavailable", True)
    rig.at_step[7] = lambda: setattr(rig.server, "is_unavailable", False)
    report = rig.drain()
    assert (report.outcome, report.stored) == (DrainOutcome.FINISHED, 40)


def test_the_lowest_offset_is_never_below_the_sink(rig: Rig) -> None:
    # Given a look at both at each commit
    seen: list[tuple[int, int]] = []

    class Looking(MemorySink):
        def _commit(self, *arguments: Any) -> None:
            super()._commit(*arguments)
            mirrored = rig.fence.mirror(rig.log_id).lowest_offsets
            seen.append((mirrored[0], rig.store.offsets[rig.log_id, 0]))

    rig.append(0, 35)
    rig.drain(sink=Looking(rig.settings, rig.store))
    assert len(seen) == 4
    assert all(lowest >= offset for lowest, offset in seen)


# --- sizes --------------------------------------------------------------------------------------------------------


class SizedSink(MemorySink):
    """Notes the records and bytes of each transaction."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig.settings, rig.store)
        self.sizes: list[tuple[int, int]] = []

    def store(self, log_id: str, partition: int, expected_offset: int, batch: LogBatch, **named: Any) -> StoreResult:
        self.sizes.append((len(batch.values), sum(map(len, batch.values))))
        return super().store(log_id, partition, expected_offset, batch, **named)


class AskedLog(MemoryLog):
    """Notes what it was asked for and gave."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(server=rig.log_server)
        self.asked: list[int] = []
        self.gave: list[int] = []

    def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
        found = super().read(partition, offset, records_max=records_max, wait_seconds=wait_seconds)
        self.asked.append(records_max)
        self.gave.append(0 if found is None else len(found.values))
        return found


def test_large_records_are_stored_in_small_transactions() -> None:
    # Given records of 20 KB, and transactions of at most 64 KiB
    rig = Rig(drain_batch_bytes_max=1 << 16, drain_batch_records_max=100)
    rig.append_values([record(number, message="x" * 20_000) for number in range(20)])
    sink, log = SizedSink(rig), AskedLog(rig)
    assert rig.drain(sink=sink, log=log).stored == 20
    # Then so few are asked for, from the first on
    assert max(size for _, size in sink.sizes) <= 1 << 16
    assert set(log.asked) == {1, 2, 3}


def test_records_that_suddenly_grow_are_cut_up() -> None:
    # Given many small records, so that many are asked for, then large ones, one of them larger than a transaction
    rig = Rig(drain_batch_bytes_max=1 << 16, drain_batch_records_max=50)
    small = [record(number) for number in range(120)]
    large = [record(200 + number, message="x" * (100_000 if number == 7 else 20_000)) for number in range(20)]
    rig.append_values(small + large)
    sink, log = SizedSink(rig), AskedLog(rig)
    report = rig.drain(sink=sink, log=log)
    # Then all are stored in pieces, the largest alone
    assert (report.stored, report.next_offset, report.outcome) == (140, 140, DrainOutcome.FINISHED)
    assert [count for count, size in sink.sizes if size > 1 << 16] == [1]
    # And nothing was read twice: each piece follows from the one before
    assert sum(log.gave) == 140


def test_a_first_read_of_few_records_is_no_transaction_of_its_own() -> None:
    # Given a backlog, and records of an unknown size, so that the first read is a small one
    rig = Rig(drain_batch_records_max=1000)
    rig.append(0, 1500)
    log = AskedLog(rig)
    assert rig.drain(log=log).stored == 1500
    # Then the first transaction is as large as the others, and nothing was read twice
    assert [offset for offset, _ in rig.stored] == [1000, 1500]
    assert log.asked[:2] == [128, 872]
    assert sum(log.gave) == 1500


def test_a_declared_hole_before_a_first_read_of_few_records_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    # Given a log that came back without its first records, and goes on with more than the first read asks for
    rig = Rig(drain_batch_records_max=1000)
    rig.append(0, 300)

    class Holed(AskedLog):
        def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
            found = super().read(partition, max(offset, 10), records_max=records_max, wait_seconds=wait_seconds)
            return replace(found, gap_from=0) if found is not None and offset < 10 else found

    assert rig.drain(log=Holed(rig)).stored == 290
    assert caplog.text.count("the event log came back without its tail: offsets 0 to 9") == 1


@pytest.mark.parametrize("first", ["fails", "hole"])
def test_a_first_read_is_stored_though_the_rest_of_its_batch_can_not_be_read(first: str) -> None:
    # Given a log that fails once after the first records, or that has lost the next ones
    rig = Rig(drain_batch_records_max=1000)
    rig.append(0, 300)

    class Odd(AskedLog):
        def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
            if first == "fails" and len(self.asked) == 1:
                self.asked.append(records_max)
                raise LogUnavailableError("no answer")
            found = super().read(partition, offset, records_max=records_max, wait_seconds=wait_seconds)
            if first == "hole" and offset == 128 and found is not None:
                return LogBatch(found.offset + 10, found.values[10:])
            return found

    report = rig.drain(log=Odd(rig))
    # Then they are stored, and a later read finds out about the rest
    assert rig.stored[0][0] == 128
    if first == "fails":
        assert (report.stored, report.outcome) == (300, DrainOutcome.FINISHED)
    else:
        assert (report.stored, report.outcome) == (128, DrainOutcome.LOG_GAP)


@pytest.fixture(autouse=True)
def _no_threads_stay_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before, "the threads of the run end")


def test_the_store_error_is_not_the_sinks(rig: Rig) -> None:
    # Given lowest offsets that fail while the sink works
    class Away(MemoryOffsetFence):
        def raise_lowest_offset(self, log_id: str, incarnation: str, partition: int, offset: int) -> None:
            raise StoreUnavailableError

    rig.append(0, 5)
    rig.drain(fence=Away(rig.settings, rig.server))
    assert not rig.breaker.is_open


def test_what_is_read_ahead_is_encoded_meanwhile(rig: Rig) -> None:
    # Given a sink that notes what it encoded, on which thread, and what it stored
    encoding: list[tuple[int, str]] = []
    stored: list[tuple[int, tuple[str, int, int] | None]] = []

    class Encoding:
        """A sink with an encoded form of its own: where the batch begins."""

        def __init__(self, sink: MemorySink) -> None:
            self._sink = sink

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sink, name)

        def encode(self, log_id: str, partition: int, batch: LogBatch) -> tuple[str, int, int]:
            encoding.append((batch.offset, threading.current_thread().name))
            return log_id, partition, batch.offset

        def store(
            self,
            log_id: str,
            partition: int,
            expected_offset: int,
            batch: LogBatch,
            *,
            encoded: tuple[str, int, int] | None = None,
            **named: Any,
        ) -> StoreResult:
            stored.append((batch.offset, encoded))
            return self._sink.store(log_id, partition, expected_offset, batch, **named)

    rig.append(0, 40)
    rig.drain(sink=Encoding(MemorySink(rig.settings, rig.store)))
    # Then all but the first batch were, for this log, by the helper, and were stored like that
    assert [encoded for _, encoded in stored] == [None] + [(rig.log_id, 0, offset) for offset, _ in stored[1:]]
    assert len(stored) == 4
    assert all(name.startswith("drain-ahead") for _, name in encoding)


def test_the_interpreter_is_left_as_it_was(rig: Rig) -> None:
    # Given what a run sees of the interpreter's settings
    seen: list[tuple[float, int]] = []
    rig.at_step[1] = lambda: seen.append((sys.getswitchinterval(), gc.get_threshold()[0]))
    before = (sys.getswitchinterval(), gc.get_threshold())
    rig.append(0, 10)
    rig.drain()
    # Then they are changed while it runs only
    assert seen
    assert seen[0][0] < before[0]
    assert seen[0][1] > before[1][0]
    assert (sys.getswitchinterval(), gc.get_threshold()) == before
