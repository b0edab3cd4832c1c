"""Partitions that stand still until a person decides, in memory."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.control_store.memory import MemoryOffsetFence, MemoryServer
from pipeline.errors import LogRestartedError, LogUnavailableError, SinkUnavailableError, StoreUnavailableError
from pipeline.log.memory import MemoryLog, MemoryLogServer
from pipeline.ports.control import Mirror
from pipeline.ports.event_sink import StoredPosition, StoreResult
from pipeline.ports.log import LogBatch
from pipeline.settings import Settings
from pipeline.sink.memory import MemoryDatabase, MemorySink
from pipeline.stopped import (
    DoesNotFitError,
    Hole,
    Poisoned,
    StillDrainedError,
    StoppedContext,
    accept_poison,
    look,
    skip_gap,
)
from support.event_logs import ScriptedLowestOffsets
from support.records import record

PARTITION = 1


class Rig:
    """A partition of ten records, the first five of which are stored."""

    def __init__(self) -> None:
        settings = replace(Settings(), poison_ratio_max=1.0)
        self.server = MemoryLogServer(2)
        self.log = MemoryLog(lowest_offsets=ScriptedLowestOffsets(), server=self.server)
        self.database = MemoryDatabase()
        self.other = MemorySink(settings, self.database)
        self.control = MemoryServer()
        self.means = StoppedContext(
            self.log, MemorySink(settings, self.database), MemoryOffsetFence(settings, self.control)
        )
        identity = self.log.identity()
        self.log_id = identity.log_id
        self.log.append([(PARTITION, record(number)) for number in range(10)])
        self.set_stored(5)

    def set_stored(self, offset: int) -> None:
        self.database.offsets[self.log_id, PARTITION] = offset

    @property
    def stored(self) -> int:
        return self.database.offsets[self.log_id, PARTITION]

    def skip(self, first: int, end: int, *, dry_run: bool = False) -> None:
        skip_gap(self.means, PARTITION, Hole(first, end), dry_run=dry_run)

    def accept(self, first: int, end: int) -> StoreResult | None:
        return accept_poison(self.means, PARTITION, Poisoned(self.log_id, first, end), rehearsed=None)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    assert rig.database.locks == {}  # whatever happened, the partition was given up


# --- A hole -----------------------------------------------------------------------------------------------------------


def test_a_hole_is_what_the_log_lost_before_it_was_stored(rig: Rig) -> None:
    assert look(rig.means, PARTITION).hole is None
    rig.server.trim(PARTITION, 8)
    place = look(rig.means, PARTITION)
    assert (place.stored, place.hole, place.next_record) == (5, Hole(5, 8), record(8))
    rig.server.trim(PARTITION, 10)  # and nothing behind it
    assert look(rig.means, PARTITION).hole == Hole(5, 10)
    assert look(rig.means, 0).hole is None  # nothing is stored of it yet


def test_a_hole_that_the_log_declares_is_none_to_skip(rig: Rig) -> None:
    rig.server.restart(keep={PARTITION: 5})
    log = MemoryLog(lowest_offsets=ScriptedLowestOffsets({PARTITION: 8}), server=rig.server)
    log.identity()
    log.append([(PARTITION, record(20))])
    assert look(replace(rig.means, log=log), PARTITION).hole is None


def test_exactly_the_hole_is_skipped_and_only_once(rig: Rig) -> None:
    rig.server.trim(PARTITION, 8)
    for first, end in ((5, 7), (6, 8), (5, 9), (0, 8)):
        with pytest.raises(DoesNotFitError, match=f"is from 5 to 8, not from {first} to {end}"):
            rig.skip(first, end)
    rig.skip(5, 8, dry_run=True)
    assert rig.stored == 5
    rig.skip(5, 8)
    assert rig.stored == 8
    with pytest.raises(DoesNotFitError, match="has no hole"):
        rig.skip(5, 8)


def test_the_lowest_offset_is_raised_before_the_offset_moves_and_without_it_nothing_does(rig: Rig) -> None:
    rig.server.trim(PARTITION, 8)
    rig.control.is_unavailable = True
    with pytest.raises(StoreUnavailableError):
        rig.skip(5, 8)
    assert rig.stored == 5
    rig.control.is_unavailable = False
    rig.skip(5, 8)
    assert rig.means.fence.mirror(rig.log_id).lowest_offsets[PARTITION] == 8


def test_a_log_that_was_restarted_meanwhile_is_asked_again(rig: Rig) -> None:
    rig.server.trim(PARTITION, 8)
    rig.means.fence.fence(rig.log_id, "a newer incarnation")

    class Restarting(MemoryOffsetFence):
        def fence(self, log_id: str, incarnation: str) -> Mirror:
            mirror = super().fence(log_id, incarnation)
            rig.server.restart()
            return mirror

    with pytest.raises(LogRestartedError):
        skip_gap(replace(rig.means, fence=Restarting(Settings(), rig.control)), PARTITION, Hole(5, 8), dry_run=False)
    assert rig.stored == 5


def test_nothing_is_decided_beside_a_drain(rig: Rig) -> None:
    rig.server.trim(PARTITION, 8)
    assert rig.other.acquire(rig.log_id, PARTITION)
    with pytest.raises(StillDrainedError):
        rig.skip(5, 8)
    with pytest.raises(StillDrainedError):
        rig.accept(5, 8)
    rig.other.release(rig.log_id, PARTITION)
    assert rig.stored == 5


def test_what_can_never_fit_is_said_although_a_drain_has_the_partition(rig: Rig) -> None:
    # Given a drain that has the partition, as it has most of the time
    assert rig.other.acquire(rig.log_id, PARTITION)
    # When somebody skips a gap of a partition that has none, then the answer is not to try again
    for dry_run in (True, False):
        with pytest.raises(DoesNotFitError, match="has no hole"):
            rig.skip(5, 8, dry_run=dry_run)
    # Nor with other figures than those of its hole, nor for a batch that is stored by now
    rig.server.trim(PARTITION, 8)
    with pytest.raises(DoesNotFitError, match="is from 5 to 8, not from 5 to 9"):
        rig.skip(5, 9)
    with pytest.raises(DoesNotFitError, match="is stored up to 5 by now"):
        rig.accept(2, 5)
    rig.other.release(rig.log_id, PARTITION)


def test_records_that_a_drain_stores_and_trims_meanwhile_are_no_hole(rig: Rig) -> None:
    class Draining(MemorySink):
        """A drain stores the rest of the partition after the offset is read, and before the log is."""

        def stored_position(self, log_id: str, partition: int) -> StoredPosition | None:
            found = super().stored_position(log_id, partition)
            rig.set_stored(10)
            rig.server.trim(PARTITION, 8)
            return found

    draining = Draining(replace(Settings(), poison_ratio_max=1.0), rig.database)
    place = look(replace(rig.means, sink=draining), PARTITION)
    assert (place.stored, place.hole) == (10, None)


def test_what_drains_passed_before_is_known_by_the_log_or_by_the_lowest_offset(rig: Rig) -> None:
    rig.server.trim(PARTITION, 8)
    assert look(rig.means, PARTITION).passed == 0
    rig.log.commit(rig.log_id, PARTITION, 7)
    assert look(rig.means, PARTITION).passed == 7
    identity = rig.log.identity()
    rig.means.fence.fence(rig.log_id, identity.incarnation)
    rig.means.fence.raise_lowest_offset(rig.log_id, identity.incarnation, PARTITION, 9)
    assert look(rig.means, PARTITION).passed == 9


def test_a_log_that_ends_before_what_is_stored_goes_on_where_it_ends(rig: Rig) -> None:
    rig.set_stored(15)
    assert look(rig.means, PARTITION).hole == Hole(15, 10)
    rig.skip(15, 10)
    assert (rig.stored, look(rig.means, PARTITION).hole) == (10, None)


def test_events_that_came_in_after_a_lost_tail_are_stored_by_going_back_further(rig: Rig) -> None:
    # Given a log of which 15 were stored, put back to 7, with three events since
    rig.set_stored(15)
    rig.server.trim(PARTITION, 4)
    for first, end in ((15, 3), (15, 11), (14, 7), (15, 16)):
        with pytest.raises(DoesNotFitError, match="is from 15 to 10"):
            rig.skip(first, end)
    rig.skip(15, 7)
    assert (rig.stored, look(rig.means, PARTITION).next_record) == (7, record(7))


def test_the_lowest_offset_comes_down_with_the_offset_and_not_before(rig: Rig) -> None:
    # Given a log that lost its tail, all of which is stored, and a lowest offset that says so
    rig.set_stored(15)
    fence = rig.means.fence
    identity = rig.log.identity()
    fence.fence(rig.log_id, identity.incarnation)
    fence.raise_lowest_offset(rig.log_id, identity.incarnation, PARTITION, 18)  # for a batch that was never committed
    assert look(rig.means, PARTITION).hole == Hole(18, 10)
    # When the lowest offset can't be lowered, once the offset is
    lowered: list[int] = []

    class Failing(MemoryOffsetFence):
        def lower_lowest_offset(self, log_id: str, partition: int, offset: int) -> None:
            lowered.append(rig.stored)
            raise StoreUnavailableError

    with pytest.raises(StoreUnavailableError):
        skip_gap(replace(rig.means, fence=Failing(Settings(), rig.control)), PARTITION, Hole(18, 10), dry_run=False)
    assert (lowered, rig.stored, fence.mirror(rig.log_id).lowest_offsets) == ([10], 10, {PARTITION: 18})
    # Then the same command makes up for it
    rig.skip(18, 10)
    assert (rig.stored, fence.mirror(rig.log_id).lowest_offsets) == (10, {PARTITION: 10})
    assert look(rig.means, PARTITION).hole is None


def test_a_lowest_offset_of_a_batch_that_was_never_stored_comes_down_and_what_is_left_is_stored(rig: Rig) -> None:
    # Given five records that wait, and a lowest offset beyond the end of a log that lost its tail
    fence, identity = rig.means.fence, rig.log.identity()
    fence.fence(rig.log_id, identity.incarnation)
    fence.raise_lowest_offset(rig.log_id, identity.incarnation, PARTITION, 15)
    rig.skip(15, 10, dry_run=True)
    assert fence.mirror(rig.log_id).lowest_offsets == {PARTITION: 15}
    rig.skip(15, 10)
    assert (rig.stored, fence.mirror(rig.log_id).lowest_offsets) == (5, {PARTITION: 5})


def test_a_log_that_waits_for_its_first_append_after_a_restart_has_no_hole(rig: Rig) -> None:
    rig.set_stored(15)
    rig.server.restart(keep={PARTITION: 5})
    assert look(rig.means, PARTITION).hole is None


def test_another_partition_that_can_not_be_asked_changes_nothing(rig: Rig) -> None:
    rig.set_stored(15)
    rig.server.without_leader.add(0)
    assert look(rig.means, PARTITION).hole == Hole(15, 10)
    rig.server.without_leader.add(PARTITION)
    with pytest.raises(LogUnavailableError, match="partition 1 does not report"):
        look(rig.means, PARTITION)


def test_a_partition_that_is_not_there_is_refused(rig: Rig) -> None:
    with pytest.raises(DoesNotFitError, match="no partition 2: the event log has 2"):
        look(rig.means, 2)


# --- Poison -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_accepted_whatever_is_refused_of_it_and_no_record_more(rig: Rig) -> None:
    rig.database.refuses = lambda event: "no such column" if event.event_id <= "event-000007" else None
    assert rig.accept(5, 9) == StoreResult(stored=1, dead_lettered=3)
    assert rig.stored == 9
    assert [offset for _, _, offset in rig.database.letters] == [5, 6, 7]
    assert list(rig.database.events) == ["event-000008"]


def test_a_dry_run_tries_all_and_keeps_nothing(rig: Rig) -> None:
    tried: list[int] = []
    batch = Poisoned(rig.log_id, 5, 9)
    result = accept_poison(rig.means, PARTITION, batch, rehearsed=lambda: tried.append(rig.stored))
    assert (result, tried, rig.stored, rig.database.events) == (None, [5], 5, {})


def test_a_batch_behind_a_hole_that_the_log_declares_is_accepted(rig: Rig) -> None:
    # Given a log that came back without its tail, whose next batch begins behind what it gave up
    rig.server.restart(keep={PARTITION: 5})
    log = MemoryLog(lowest_offsets=ScriptedLowestOffsets({PARTITION: 8}), server=rig.server)
    log.identity()
    log.append([(PARTITION, record(20)), (PARTITION, record(21))])
    means = replace(rig.means, log=log)
    # When it is accepted, then the stored offset is the one that it had then, and no other
    with pytest.raises(DoesNotFitError, match="is stored up to 5 by now; its batch began at 6"):
        accept_poison(means, PARTITION, Poisoned(rig.log_id, 8, 10, expected=6), rehearsed=None)
    rig.set_stored(4)
    with pytest.raises(DoesNotFitError):  # offset 4 is no part of what the log declares, and was not stored
        accept_poison(means, PARTITION, Poisoned(rig.log_id, 8, 10, expected=4), rehearsed=None)
    rig.set_stored(5)
    batch = Poisoned(rig.log_id, 8, 10, expected=5)
    assert accept_poison(means, PARTITION, batch, rehearsed=None) == StoreResult(stored=2)
    assert rig.stored == 10


def test_a_record_that_makes_storing_fail_is_kept_as_a_dead_letter_once_somebody_accepts_that(rig: Rig) -> None:
    rig.database.fails_for = lambda event: "no such table" if event.event_id == "event-000005" else None
    with pytest.raises(SinkUnavailableError):
        rig.accept(5, 6)  # PostgreSQL was to refuse it as data: nobody said that it makes storing fail
    batch = Poisoned(rig.log_id, 5, 6, is_condemned=True)
    assert accept_poison(rig.means, PARTITION, batch, rehearsed=lambda: None) is None
    assert (rig.stored, rig.database.letters) == (5, {})
    assert accept_poison(rig.means, PARTITION, batch, rehearsed=None) == StoreResult(dead_lettered=1)
    assert rig.stored == 6
    # And where it can be stored by now, it is
    batch = Poisoned(rig.log_id, 6, 7, is_condemned=True)
    assert accept_poison(rig.means, PARTITION, batch, rehearsed=None) == StoreResult(stored=1)


def test_another_batch_than_the_next_is_refused(rig: Rig) -> None:
    with pytest.raises(DoesNotFitError, match="is stored up to 5 by now; its batch began at 3"):
        rig.accept(3, 8)
    with pytest.raises(DoesNotFitError, match="does not hold offset 10"):
        rig.accept(5, 12)
    rig.server.trim(PARTITION, 6)
    with pytest.raises(DoesNotFitError, match="does not hold offset 5"):
        rig.accept(5, 8)
    with pytest.raises(DoesNotFitError, match="another event log"):
        accept_poison(rig.means, PARTITION, Poisoned("an earlier one", 5, 8), rehearsed=None)
    assert rig.stored == 5


def test_the_position_of_a_partition_is_its_own_where_others_can_not_be_asked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a log that does not say where its first partition begins and ends, and nothing missing in the second
    everything = rig.log.positions()
    monkeypatch.setattr(rig.log, "positions", lambda: [one for one in everything if one.partition != 0])
    assert look(rig.means, PARTITION).log.partition == PARTITION
    assert look(rig.means, PARTITION).hole is None
    # When it is the one that can't be asked, then that is said
    monkeypatch.setattr(rig.log, "positions", lambda: [one for one in everything if one.partition != PARTITION])
    with pytest.raises(LogUnavailableError, match="partition 1 does not report"):
        look(rig.means, PARTITION)


def test_a_log_that_lost_its_tail_and_grew_again_goes_back_to_what_it_holds(rig: Rig) -> None:
    # Given a partition whose last record was stored from here, and a log that holds another one there since
    sink = rig.other
    stored = sink.store(
        rig.log_id, PARTITION, 5, LogBatch(5, [record(number) for number in range(5, 10)]), before_commit=lambda: None
    )
    assert stored.stored == 5
    assert look(rig.means, PARTITION).hole is None
    rig.server.restart(keep={0: 0, PARTITION: 7})
    rig.log.identity()
    rig.log.append([(PARTITION, record(number)) for number in range(20, 30)])
    # Then it is a hole, though what is stored next is in the log, and the way leads back to what it holds
    hole = look(rig.means, PARTITION).hole
    assert hole == Hole(10, 9)
    assert hole.is_refilled
    with pytest.raises(DoesNotFitError):
        rig.skip(10, 10)
    rig.skip(10, 7)
    assert rig.stored == 7
    assert look(rig.means, PARTITION).hole is None
