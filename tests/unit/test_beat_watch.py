"""What Beat's threads know of the pauses and the log, and what that costs while nothing changes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlStore, MemoryServer
from pipeline.errors import LogUnavailableError, StoreUnavailableError
from pipeline.log.memory import MemoryLog
from pipeline.names import BreakerState, PauseReason
from pipeline.ports.control import PauseState
from pipeline.ports.log import LogIdentity, PartitionPosition
from pipeline.settings import Settings
from tasks.beat_watch import POSITIONS_SECONDS, TRUST_SECONDS, WAIT_SECONDS, LogWatch, PausesWatch


class Store(MemoryControlStore):
    """Counts round trips. A wait in vain lasts as long as was asked for, by the clock that is moved."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(Settings(), MemoryServer(clock))
        self.clock = clock
        self.trips = 0
        self.is_away = False
        self.frozen_seconds = 0.0  # of this process, when the answer is in its socket
        self.read_seconds = 0.0  # the same, of a read alone

    def pause_state(self) -> PauseState:
        self.trips += 1
        if self.is_away:
            raise StoreUnavailableError("no answer")
        state = super().pause_state()
        self.clock.advance(self.read_seconds)
        return state

    def pause_state_after(self, position: str, *, wait_seconds: float) -> tuple[str, PauseState | None]:
        self.trips += 1
        if self.is_away:
            raise StoreUnavailableError("no answer")
        newest, state = super().pause_state_after(position, wait_seconds=0.0)
        if state is not None:
            self.clock.advance(wait_seconds + self.frozen_seconds)
        return newest, state


class Log(MemoryLog):
    """Counts round trips, and waits as above."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(4)
        self.clock = clock
        self.trips = 0
        self.is_away = False
        self.frozen_seconds = self.read_seconds = 0.0  # as above

    def identity(self) -> LogIdentity:
        self.trips += 1
        return super().identity()

    def positions(self, log_id: str | None = None) -> list[PartitionPosition]:
        self.trips += 1
        found = super().positions(log_id)
        self.clock.advance(self.read_seconds)
        return found

    def ready(self, offsets: Mapping[int, int], *, wait_seconds: float) -> set[int]:
        self.trips += 1
        if self.is_away:
            raise LogUnavailableError("no answer")
        found = super().ready(offsets, wait_seconds=0.0)
        if not found:
            self.clock.advance(wait_seconds + self.frozen_seconds)
        return found


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_pauses_that_do_not_change_cost_one_round_trip_for_each_wait(clock: ManualClock) -> None:
    store = Store(clock)
    store.restore([], actor="controller")
    watch = PausesWatch(store, clock)
    assert watch.state(clock.monotonic()) is None
    assert watch.look()
    store.trips, began_at = 0, clock.monotonic()
    for _ in range(int(60 / WAIT_SECONDS)):
        assert watch.look()
        # Then what is known never gets old
        state = watch.state(clock.monotonic() + WAIT_SECONDS)
        assert state is not None
        assert state.breaker is BreakerState.CLOSED
    assert (store.trips, clock.monotonic() - began_at) == (60 / WAIT_SECONDS, 60)


def test_a_change_of_the_pauses_ends_the_wait(clock: ManualClock) -> None:
    store = Store(clock)
    store.restore([], actor="controller")
    watch = PausesWatch(store, clock)
    watch.look()
    for change in (
        lambda: store.pause(PauseReason.BREAKER, actor="drain", why="it fails"),
        lambda: store.resume(PauseReason.BREAKER, generation=None, actor="prober", why="it answers"),
    ):
        change()  # type: ignore[no-untyped-call]
        began_at = clock.monotonic()
        watch.look()
        assert (watch.state(clock.monotonic()), clock.monotonic()) == (store.pause_state(), began_at)


def test_pauses_are_unknown_without_a_store_and_after_a_wait_that_does_not_end(clock: ManualClock) -> None:
    store = Store(clock)
    store.restore([], actor="controller")
    watch = PausesWatch(store, clock)
    watch.look()
    assert watch.state(clock.monotonic() + TRUST_SECONDS) is not None
    assert watch.state(clock.monotonic() + TRUST_SECONDS + 0.1) is None
    store.is_away = True
    assert not watch.look()
    assert watch.state(clock.monotonic()) is None
    # And known again once it answers
    store.is_away = False
    assert watch.look()
    assert watch.state(clock.monotonic()) is not None


def test_an_idle_log_costs_one_round_trip_for_each_wait_and_its_positions_from_time_to_time(clock: ManualClock) -> None:
    log = Log(clock)
    watch = LogWatch(log, clock)
    assert not watch.is_quiet(clock.monotonic())
    began_at = clock.monotonic()
    for _ in range(int(60 / WAIT_SECONDS)):
        assert watch.look()
        assert watch.is_quiet(clock.monotonic() + WAIT_SECONDS)
    assert (log.trips, clock.monotonic() - began_at) == (60 / WAIT_SECONDS + 2 * 60 / POSITIONS_SECONDS, 60)
    assert not watch.is_quiet(clock.monotonic() + TRUST_SECONDS + 0.1)


@pytest.mark.parametrize("cause", ["record", "away", "commit", "partition", "unknown"])
def test_a_log_is_not_quiet_once_something_waits_or_it_does_not_answer(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    log = Log(clock)
    log.append([(2, b"one")])
    [position] = [one for one in log.positions() if one.partition == 2]
    log.commit(log.identity().log_id, 2, position.end)
    watch = LogWatch(log, clock)
    assert watch.look()
    clock.advance(POSITIONS_SECONDS if cause in ("commit", "partition", "unknown") else 0.0)
    # When a record comes, the log is lost, PostgreSQL came back with less, a partition does not answer, or nothing says
    # what of it is stored
    if cause == "record":
        log.append([(3, b"two")])
    log.is_away = cause == "away"
    if cause == "commit":
        log.commit(log.identity().log_id, 2, position.end - 1)
    if cause == "partition":
        found = log.positions()[1:]
        monkeypatch.setattr(log, "positions", lambda log_id=None: found)
    if cause == "unknown":
        found = [replace(one, committed=None) for one in log.positions()]
        monkeypatch.setattr(log, "positions", lambda log_id=None: found)
    # Then it is not quiet, and the thread rests: the scheduler reads by itself
    assert not watch.look()
    assert not watch.is_quiet(clock.monotonic())
    # And quiet again once all is stored
    monkeypatch.undo()
    log.is_away = False
    for one in log.positions():
        log.commit(log.identity().log_id, one.partition, one.end)
    assert watch.look()
    assert watch.is_quiet(clock.monotonic())


def test_a_defect_of_a_look_is_no_end_of_the_thread(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a look that fails as nobody has foreseen, one that finds the server away, and two that are well
    watch: Any = LogWatch(Log(clock), clock)
    looks: list[Exception | bool] = [ZeroDivisionError(), False, True, True]
    done: list[str] = []

    def look() -> bool:
        done.append("look")
        found = looks.pop(0)
        if not looks:
            watch.stop()
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(watch, "look", look)
    monkeypatch.setattr(watch._stopping, "wait", lambda seconds: done.append("rest") if seconds > 1 else None)
    watch._run()
    # Then the thread goes on: after a rest where it has found nothing out, and else at once
    assert done == ["look", "rest", "look", "rest", "look", "look"]


def test_pauses_that_lay_in_the_socket_of_a_frozen_process_are_not_known(clock: ManualClock) -> None:
    # Given a process that is frozen while the answer to its wait is in its socket
    store = Store(clock)
    store.restore([], actor="controller")
    watch = PausesWatch(store, clock)
    watch.look()
    assert watch.look()
    assert watch.state(clock.monotonic()) is not None
    store.frozen_seconds = 60.0
    watch.look()
    # Then they may be a minute old: the scheduler reads them itself
    assert watch.state(clock.monotonic()) is None


def test_pauses_are_as_old_as_the_question_for_them(clock: ManualClock) -> None:
    # Given a process that is frozen while the answer to a read without a wait is in its socket
    store = Store(clock)
    store.restore([], actor="controller")
    watch = PausesWatch(store, clock)
    store.read_seconds = 60.0
    watch.look()
    # Then the pauses may be a minute old
    assert watch.state(clock.monotonic()) is None


def test_a_log_is_quiet_from_the_question_for_its_positions_on(clock: ManualClock) -> None:
    # Given positions that arrive a minute after they were read
    log = Log(clock)
    watch = LogWatch(log, clock)
    log.read_seconds = 60.0
    seen: list[bool] = []
    ready = log.ready

    def waits(offsets: Mapping[int, int], *, wait_seconds: float) -> set[int]:
        seen.append(watch.is_quiet(clock.monotonic()))
        return ready(offsets, wait_seconds=wait_seconds)

    log.ready = waits  # type: ignore[method-assign]
    watch.look()
    # Then a record may have come since: the scheduler reads while the thread waits
    assert seen == [False]


def test_a_log_that_was_away_is_read_anew(clock: ManualClock) -> None:
    # Given a log in which nothing waits
    log = Log(clock)
    log.append([(2, b"one")])
    log.commit(log.identity().log_id, 2, 1)
    watch = LogWatch(log, clock)
    assert watch.look()
    # When it is lost for a moment, and then holds something below the end that was known
    log.is_away = True
    assert not watch.look()
    log.is_away = False
    log.commit(log.identity().log_id, 2, 0)
    # Then the ends that were known before count no more
    assert not watch.look()
    assert not watch.is_quiet(clock.monotonic())


def test_a_log_that_was_quiet_before_a_freeze_is_not_known_to_be(clock: ManualClock) -> None:
    log = Log(clock)
    watch = LogWatch(log, clock)
    assert watch.look()
    assert watch.is_quiet(clock.monotonic())
    log.frozen_seconds = 60.0
    watch.look()
    assert not watch.is_quiet(clock.monotonic())
