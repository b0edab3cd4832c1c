"""The follower of the control loop, on the control store in memory."""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from checks.testbed.clocks import SteppedSystemClock
from checks.testbed.waiting import eventually, least_seconds
from pipeline.clock import Clock, ManualClock, SystemClock
from pipeline.control_store.memory import MemoryControlEvents, MemoryControlStore, MemoryServer, MemoryTroubles
from pipeline.flow.clocks import Look
from pipeline.follower import ControlFollower, ControlSnapshot, TroubleReporter, loop_troubles, read_not_before
from pipeline.loops import Loops
from pipeline.names import AlarmCode, ControlEventKind, LoopName, Mode
from pipeline.ports.control import ControlState, Trouble
from pipeline.settings import Settings


@dataclass
class _Rig:
    server: MemoryServer = field(default_factory=MemoryServer)
    seen: list[tuple[float, ControlState]] = field(default_factory=list)
    clock: Clock = field(default_factory=SystemClock)  # of the process that follows

    def __post_init__(self) -> None:
        settings = Settings()
        self.store = MemoryControlStore(settings, self.server)
        self.troubles = MemoryTroubles(settings, self.server)
        self.reporter = TroubleReporter(self.troubles, "batches@host", self.clock, difference_seconds_max=1.0)
        self.events = MemoryControlEvents(settings, self.server)
        self.follower = ControlFollower(self.store, self.clock, self._on_state, reporter=self.reporter)

    def _on_state(self, state: ControlState) -> None:
        self.seen.append((time.monotonic(), state))

    def publish(self, rate: float) -> None:
        now = self.server.clock.now()
        self.store.publish_rate(base_rate=rate, floor_rate=1, mode=Mode.NORMAL, lag=0, lag_known_at=now, actor="test")

    def reported(self) -> dict[str, list[Trouble]]:
        """What the control loop has heard, with an event that ends the follower's wait."""
        self.events.record(ControlEventKind.RATE_CHANGED, actor="test", why="", data={})
        return self.troubles.reported()

    def bring_back(self) -> None:
        self.server.is_unavailable = False

    def newest(self) -> ControlSnapshot | None:
        return self.follower.newest

    def rate(self) -> float | None:
        newest = self.follower.newest
        return newest.state.rate.rate if newest is not None and newest.state.rate is not None else None


@pytest.fixture
def rig() -> Iterator[_Rig]:
    made = _Rig()
    yield made
    made.server.is_unavailable = False
    made.follower.stop(seconds_max=3)


def until(condition: Callable[[], bool]) -> None:
    eventually(condition, look_seconds=0.001)


def test_publications_are_followed_within_100_ms(rig: _Rig) -> None:
    rig.publish(500)
    rig.follower.start()
    until(lambda: rig.rate() == 500)
    rates = itertools.cycle((400.0, 300.0, 200.0))

    def seconds_to_follow() -> float:
        rig.publish(rate := next(rates))
        published = time.monotonic()
        until(lambda: rig.rate() == rate)
        return time.monotonic() - published

    assert least_seconds(seconds_to_follow, below=0.1) < 0.1
    assert [state.rate.rate for _, state in rig.seen if state.rate][-1] == rig.rate()


def test_it_starts_without_a_store_and_survives_outages_and_flushes(rig: _Rig) -> None:
    # Given a store that is away
    rig.server.is_unavailable = True
    rig.follower.start()
    until(lambda: rig.follower.problem is not None)
    assert rig.newest() is None
    # When it comes, and goes
    rig.bring_back()
    rig.publish(500)
    until(lambda: rig.rate() == 500)
    rig.server.is_unavailable = True
    until(lambda: rig.follower.problem is not None)
    # Then the last state stands, and its age grows
    newest = rig.newest()
    assert newest is not None
    assert newest.state_age_seconds(newest.read_at + 5) == 5
    assert rig.rate() == 500
    # When it comes back with nothing in it, the controller's age goes on
    age = newest.controller_age_seconds(time.monotonic())
    assert age is not None
    rig.server.flush()
    rig.bring_back()
    until(lambda: rig.follower.problem is None and rig.rate() is None)
    newest = rig.newest()
    assert newest is not None
    later = newest.controller_age_seconds(time.monotonic())
    assert later is not None
    assert later >= age
    # And what is published then is followed as before
    rig.publish(300)
    until(lambda: rig.rate() == 300)


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_the_controllers_age_grows_whatever_the_stores_clock_does(seconds: float) -> None:
    # Given a follower that has seen a publication
    clock = SteppedSystemClock()
    rig = _Rig(MemoryServer(clock))
    rig.follower.start()
    rig.publish(500)
    until(lambda: rig.rate() == 500)
    seen = rig.newest()
    assert seen is not None
    # When the store's wall clock is stepped, and the follower reads again
    clock.step(seconds)
    until(lambda: (newest := rig.newest()) is not None and newest.read_at > seen.read_at)
    newest = rig.newest()
    assert newest is not None
    # Then the publication is as old as it is
    assert newest.published_at == pytest.approx(seen.published_at, abs=0.01)
    rig.follower.stop(seconds_max=3)


def counting(rig: _Rig, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The calls of a follower whose waits take no time, by the method's name."""
    monkeypatch.setattr("pipeline.follower.WAIT_SECONDS", 0.001)
    calls = {"state": 0, "state_after": 0}
    # In memory, the one calls the other.
    state, state_after = rig.store.state, rig.store.state_after

    def counted_state() -> ControlState:
        calls["state"] += 1
        return state()

    def counted_after(position: str, *, wait_seconds: float) -> tuple[str, ControlState | None]:
        position, found = state_after(position, wait_seconds=wait_seconds)
        calls["state_after"] += 1
        calls["state"] -= found is not None
        return position, found

    rig.store.state, rig.store.state_after = counted_state, counted_after  # type: ignore[method-assign]
    return calls


def test_a_wait_in_vain_brings_the_state_in_the_same_round_trip(rig: _Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a follower
    calls = counting(rig, monkeypatch)
    # When it turns five times without an event
    for _ in range(5):
        rig.follower._follow()
    # Then it has asked for the position once, read the state once by itself, and then only after a wait
    assert calls == {"state": 1, "state_after": 1 + 5}
    assert len(rig.seen) == 1 + 5
    # When there is an event, then it reads the state again, and goes on as before
    rig.publish(500)
    rig.follower._follow()
    assert calls == {"state": 1, "state_after": 1 + 6}
    rig.follower._follow()
    assert calls == {"state": 2, "state_after": 1 + 7}
    assert rig.rate() == 500


def test_what_happens_while_it_reads_its_first_state_ends_its_first_wait(rig: _Rig) -> None:
    # Given a rate that is published just after a new follower has read the state
    state, state_after, waits = rig.store.state, rig.store.state_after, list[bool]()

    def read() -> ControlState:
        found = state()
        rig.publish(500)
        return found

    def wait(position: str, *, wait_seconds: float) -> tuple[str, ControlState | None]:
        newest, found = state_after(position, wait_seconds=0.0)
        waits.append(newest == position)
        return newest, found

    rig.store.state, rig.store.state_after = read, wait  # type: ignore[method-assign]
    # When it waits for the first time, then it has not missed that
    rig.follower._follow()
    assert waits == [False, False]


def test_after_an_outage_it_reads_the_state_before_it_waits(rig: _Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a follower whose store went away
    calls = counting(rig, monkeypatch)
    rig.follower._follow()
    rig.server.is_unavailable = True
    rig.follower._follow()
    assert rig.follower.problem is not None
    before = dict(calls)
    # When the store is back, then the first question is for the state: a wait would take longer
    rig.bring_back()
    rig.store.state_after = lambda *_, **__: pytest.fail("it waits")  # type: ignore[method-assign]
    with pytest.raises(pytest.fail.Exception):
        rig.follower._follow()
    assert calls["state"] == before["state"] + 1
    assert rig.follower.problem is None


@pytest.mark.parametrize(("took", "earliest"), [(1.0, 0.99), (1.2, 0.99), (30.0, 0.99), (0.985, 0.0), (0.001, 0.0)])
def test_a_state_after_a_wait_was_read_at_its_end_unless_it_ended_early(took: float, earliest: float) -> None:
    assert read_not_before(100.0, 100.0 + took, 1.0) == pytest.approx(100.0 + earliest)


def test_a_state_that_lay_in_the_socket_of_a_frozen_process_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a follower that has read a rate
    clock = ManualClock()
    rig = _Rig(server=MemoryServer(clock), clock=clock)
    rig.publish(500)
    monkeypatch.setattr("pipeline.follower.WAIT_SECONDS", 0.001)
    rig.follower._follow()
    state_after = rig.store.state_after

    def frozen_after(position: str, *, wait_seconds: float) -> tuple[str, ControlState | None]:
        position, found = state_after(position, wait_seconds=wait_seconds)
        clock.advance(60)
        return position, found

    # When its process is frozen after the store has answered a wait
    rig.store.state_after = frozen_after  # type: ignore[method-assign]
    known = len(rig.seen)
    rig.follower._follow()
    # Then that state does not count as one of now
    assert len(rig.seen) == known
    newest = rig.newest()
    assert newest is not None
    assert newest.state_age_seconds(clock.monotonic()) >= 60
    # And the next turn reads it
    rig.store.state_after = state_after  # type: ignore[method-assign]
    rig.follower._follow()
    newest = rig.newest()
    assert newest is not None
    assert newest.state_age_seconds(clock.monotonic()) == 0
    assert newest.controller_age_seconds(clock.monotonic()) == pytest.approx(60, abs=1)


def test_a_defect_does_not_end_it(rig: _Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.publish(500)
    calls = []

    def fail_once(_state: ControlState) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    rig.follower._on_state = fail_once
    rig.follower.start()
    until(lambda: len(calls) >= 2)
    assert "control follower of this process failed because of a defect" in caplog.text


def test_a_defect_of_its_reports_does_not_end_it(rig: _Rig, caplog: pytest.LogCaptureFixture) -> None:
    # Given a process whose own problems can't be told
    loops = Loops(rig.clock)
    broken = [True]

    def own_problems() -> list[Trouble]:
        if broken[0]:
            raise KeyError("no such problem")
        return loop_troubles(loops, rig.clock)

    reporter = TroubleReporter(
        rig.troubles, "a", rig.clock, difference_seconds_max=1.0, own_problems=own_problems,
        loop=loops.add(LoopName.REPORTS),
    )  # fmt: skip
    rig.follower = ControlFollower(rig.store, rig.clock, rig._on_state, reporter=reporter)
    rig.follower.start()
    until(lambda: loops.failures()[LoopName.REPORTS] > 0)
    # Then it goes on to follow, and its health tells what fails
    rig.publish(500)
    until(lambda: rig.rate() == 500)
    assert loops.problems(rig.clock.monotonic()) == [
        "the problem reports of this process fails: KeyError: 'no such problem'"
    ]
    assert caplog.text.count("the problem reports of this process failed because of a defect") == 1
    # And it reports again as soon as it can
    broken[0] = False
    until(lambda: rig.reported() == {} and not loops.problems(rig.clock.monotonic()))


def test_a_store_that_is_known_not_to_answer_gets_no_report(rig: _Rig) -> None:
    # Given a process with a problem, and a store that answers after three reads that failed
    asked: list[str | None] = []
    rig.troubles.report = lambda *_: asked.append(rig.follower.problem)  # type: ignore[method-assign]
    rig.reporter = TroubleReporter(
        rig.troubles, "a", rig.clock, difference_seconds_max=1.0,
        own_problems=lambda: [Trouble(AlarmCode.LOOP_FAILS, "it fails")],
    )  # fmt: skip
    turns: list[int] = []

    def on_unavailable() -> None:
        turns.append(1)
        rig.server.is_unavailable = len(turns) < 3

    rig.follower = ControlFollower(
        rig.store, rig.clock, rig._on_state, reporter=rig.reporter, on_unavailable=on_unavailable
    )
    rig.server.is_unavailable = True
    # When it follows, then it waits for no answer to a report before the store answers a read
    rig.follower.start()
    until(lambda: bool(asked))
    assert asked[0] is None
    assert len(turns) == 3


def test_reports_that_wait_for_the_store_are_no_loop_that_hangs(rig: _Rig) -> None:
    clock = ManualClock()
    loops = Loops(clock)
    loop = loops.add(LoopName.REPORTS)
    reporter = TroubleReporter(rig.troubles, "a", clock, difference_seconds_max=1.0, loop=loop)
    reporter.report()
    clock.advance(60.0)
    reporter.report(is_store_available=False)
    assert loops.problems(clock.monotonic()) == []


# --- Clocks that differ -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"), [(30.0, r"(30|2\d)\.\d s ahead of"), (-3600.0, r"3,(60|59)\d\.\d s behind")]
)
def test_a_clock_that_differs_from_the_stores_is_reported_until_it_agrees(seconds: float, words: str) -> None:
    # Given a process that follows, by a clock that is right
    clock = SteppedSystemClock()
    rig = _Rig(clock=clock)
    rig.follower.start()
    rig.publish(500)
    until(lambda: rig.rate() == 500)
    assert rig.reported() == {}
    # When its clock is stepped
    clock.step(seconds)
    # Then the system hears by how much
    until(lambda: bool(rig.reported()))
    [trouble] = rig.troubles.reported()["batches@host"]
    assert trouble.code == AlarmCode.CLOCKS_DIFFER
    assert re.fullmatch(rf"its clock is {words} the control store's \(Redis\)", trouble.what)
    # And hears no more of it once it is right again
    clock.step(-seconds)
    until(lambda: rig.reported() == {})
    rig.follower.stop(seconds_max=0)


def test_what_an_earlier_process_of_its_name_reported_is_taken_back(rig: _Rig) -> None:
    rig.troubles.report("batches@host", [Trouble(AlarmCode.CLOCKS_DIFFER, "its clock is 3.0 s behind")])
    rig.follower.start()
    until(lambda: rig.reported() == {})


@pytest.mark.parametrize("seconds", [3.0, 60.0])
def test_a_process_that_gets_no_cpu_while_it_reads_reports_nothing(seconds: float) -> None:
    # Given a process that stands for long before the store is asked, after it has answered, or both
    for before, after in ((seconds, 0.0), (0.0, seconds), (seconds, seconds)):
        clock = ManualClock()
        server = MemoryServer(clock)
        rig = _Rig(server, clock=clock)
        read = rig.store.state

        def slow_read() -> ControlState:
            clock.advance(before)  # noqa: B023
            state = read()  # noqa: B023
            clock.advance(after)  # noqa: B023
            return state

        rig.store.state = slow_read  # type: ignore[method-assign]
        rig.follower._read()
        rig.reporter.report()
        assert rig.troubles.reported() == {}


@pytest.mark.parametrize("took", [0.0, 0.2, 30.0])
def test_a_difference_is_told_only_beyond_the_limit_and_the_time_of_the_look(took: float) -> None:
    def ahead(actor: float) -> float | None:
        return Look(actor, -took / 2, took / 2).ahead_seconds(beyond=1.0)

    edge = 1.0 + took
    assert (ahead(edge), ahead(-edge), ahead(0.0)) == (None, None, None)
    assert (ahead(edge + 0.1), ahead(-edge - 0.1)) == (edge + 0.1, -edge - 0.1)
