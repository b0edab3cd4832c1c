"""Beat's scheduler on a clock that is moved: it ticks by the monotonic one."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from beat_schedule import beat_schedule
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlStore, MemoryServer
from pipeline.errors import LogUnavailableError, StoreUnavailableError
from pipeline.log.memory import MemoryLog
from pipeline.names import PauseReason
from pipeline.ports.control import PauseState
from pipeline.ports.log import LogIdentity, PartitionPosition
from pipeline.settings import Settings
from pipeline.system_metrics import FACTS_SECONDS
from tasks.app import make_app
from tasks.backlog import Backlog
from tasks.ticking import HINTS, HINTS_SECONDS_MAX, MEASURE, TICKS_WAITING_MAX, TickScheduler


class CountedLog(MemoryLog):
    """Counts how often it is asked."""

    asked = 0

    def identity(self) -> LogIdentity:
        self.asked += 1
        return super().identity()

    def positions(self, log_id: str | None = None) -> list[PartitionPosition]:
        self.asked += 1
        return super().positions(log_id)


class CountedStore(MemoryControlStore):
    """Counts how often it is asked for the pauses."""

    asked = 0

    def pause_state(self) -> PauseState:
        self.asked += 1
        return super().pause_state()


class Ticker(TickScheduler):
    """Notes what it would send; its queues hold `waiting` messages, and its log has one record that is not stored."""

    producer: Any = None

    def __init__(self, clock: ManualClock, settings: Settings) -> None:
        self.sent: list[str] = []
        self.waiting = 0
        self.broker_fails = False
        super().__init__(make_app(settings), clock=clock)
        self._queues.waiting = lambda queue: self.waiting  # type: ignore[method-assign]
        self.memory = self._store = CountedStore(settings, MemoryServer(clock))
        self.log = CountedLog(4)
        self.log.append([(2, b"one")])
        self._backlog = Backlog(self.log, clock)
        for task in ("sluice.regulate", "sluice.probe", "sluice.measure", "sluice.send_hints"):
            self.app.tasks.pop(task, None)  # so that it goes through `send_task`

    def store(self) -> None:
        """Commit all that the log holds."""
        for position in self.log.positions():
            self.log.commit(self.log.identity().log_id, position.partition, position.end)

    def send_task(self, name: str, *_: Any, **options: Any) -> None:
        assert "expires" not in options
        if self.broker_fails:
            raise ConnectionError("the broker is full")
        self.sent.append(name)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ticker(clock: ManualClock) -> Ticker:
    return Ticker(clock, Settings(regulate_seconds=5.0, hint_seconds=1.0))


def run(ticker: Ticker, clock: ManualClock, seconds: float) -> list[str]:
    """What is sent in so many seconds."""
    ticker.sent = []
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        clock.advance(min(ticker.tick(), max(0.0, end - clock.monotonic())))  # a tick may take time itself
    ticker.tick()
    return ticker.sent


def test_each_entry_comes_once_a_period(ticker: Ticker, clock: ManualClock) -> None:
    sent = run(ticker, clock, 30.0)
    assert (sent.count("sluice.regulate"), sent.count("sluice.send_hints")) == (6, 30)
    assert sent.count(MEASURE) == 0  # the control loop's ticks measure


def test_ticks_that_only_measure_are_rare_unless_those_of_the_control_loop_are(clock: ManualClock) -> None:
    # Given a control loop that is frequent: then they come in case that it fails, before a measurement is too old
    ticker = Ticker(clock, Settings(regulate_seconds=5.0, measure_seconds=15.0))
    assert run(ticker, clock, 300.0).count(MEASURE) == 6
    assert FACTS_SECONDS > 300.0 / 6
    # And one that is rare
    ticker = Ticker(clock, Settings(regulate_seconds=30.0, measure_seconds=15.0))
    assert run(ticker, clock, 300.0).count(MEASURE) == 20
    # And a broker that has not taken one gets it again
    ticker = Ticker(clock, Settings(regulate_seconds=5.0, measure_seconds=15.0))
    run(ticker, clock, 44.0)
    ticker.broker_fails = True
    run(ticker, clock, 2.0)
    ticker.broker_fails = False
    assert run(ticker, clock, 16.0).count(MEASURE) == 1


@pytest.mark.parametrize("measure_seconds", [1.0, 15.0, 20.0, 40.0, 44.0, 50.0])
def test_a_tick_that_measures_comes_before_the_last_measurement_is_too_old(
    clock: ManualClock, measure_seconds: float
) -> None:
    # Given a control loop that has failed, and a Beat that wakes up late in every other of these periods
    ticker = Ticker(clock, Settings(regulate_seconds=1.0, measure_seconds=measure_seconds))
    sent_at = [clock.monotonic()]
    end = clock.monotonic() + 600.0
    while clock.monotonic() < end:
        clock.advance(ticker.tick() + (0.2 if len(sent_at) % 2 else 0.0))
        if MEASURE in ticker.sent:
            sent_at.append(clock.monotonic())
        ticker.sent.clear()
    # Then facts about PostgreSQL are never missing, also if it takes some seconds to read them
    assert max(later - earlier for earlier, later in itertools.pairwise(sent_at)) < FACTS_SECONDS - 5.0


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_a_stepped_wall_clock_changes_nothing(ticker: Ticker, clock: ManualClock, seconds: float) -> None:
    run(ticker, clock, 10.0)
    clock.step(seconds)
    sent = run(ticker, clock, 10.0)
    assert (sent.count("sluice.regulate"), sent.count("sluice.send_hints")) == (2, 10)


def test_what_was_missed_is_not_made_up_for(ticker: Ticker, clock: ManualClock) -> None:
    run(ticker, clock, 5.0)
    clock.advance(100.0)  # the broker was away, or the process stopped
    sent = run(ticker, clock, 1.0)
    assert sent.count("sluice.send_hints") == 2


def test_nothing_is_sent_to_a_queue_that_nobody_empties(ticker: Ticker, clock: ManualClock) -> None:
    ticker.waiting = TICKS_WAITING_MAX
    assert run(ticker, clock, 10.0) == []
    ticker.waiting = 0
    assert run(ticker, clock, 10.0).count("sluice.regulate") == 2


def test_a_probe_is_sent_unless_the_breaker_is_known_to_be_closed(
    ticker: Ticker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Unknown, before the reasons to pause are restored
    assert run(ticker, clock, 10.0).count("sluice.probe") == 5
    # Closed, also while an operator pauses
    ticker.memory.restore([], actor="controller")
    ticker.memory.pause(PauseReason.OPERATOR, actor="ann", why="wait")
    assert "sluice.probe" not in run(ticker, clock, 10.0)
    # Open: the next one comes within the period
    ticker.memory.pause(PauseReason.BREAKER, actor="drain", why="it fails")
    assert run(ticker, clock, 2.0).count("sluice.probe") >= 1
    # And if the state can't be read
    ticker.memory.resume(PauseReason.BREAKER, generation=None, actor="prober", why="it answers")

    def fail() -> None:
        raise StoreUnavailableError("no answer")

    monkeypatch.setattr(ticker.memory, "pause_state", fail)
    assert run(ticker, clock, 10.0).count("sluice.probe") == 5


def hints(ticker: Ticker, clock: ManualClock, seconds: float) -> int:
    return run(ticker, clock, seconds).count(HINTS)


def test_ticks_of_hints_are_rare_while_nothing_waits_in_the_log(ticker: Ticker, clock: ManualClock) -> None:
    # Given a system that knows its pauses, and an event log of which all is stored
    ticker.memory.restore([], actor="controller")
    ticker.store()
    assert hints(ticker, clock, 1.0) == 1  # the first one: no drain runs yet
    ticker.log.asked = ticker.memory.asked = 0
    # Then two in a minute are sent, since each tick of the control loop is one too, and a period costs one look at the
    # pauses and one at the log
    assert hints(ticker, clock, 60.0) == 2
    assert ticker.memory.asked <= 61
    assert ticker.log.asked <= 61 + 6  # the identity every ten seconds
    # And when records wait, each is sent, however few they are, and from the first period on
    ticker.log.append([(3, b"two")])
    assert hints(ticker, clock, 1.0) == 1
    assert hints(ticker, clock, 10.0) == 10
    # And if it is unknown what of them is stored
    ticker.log.server.partitions[3].committed = None
    assert hints(ticker, clock, 10.0) == 10
    ticker.store()
    assert hints(ticker, clock, 10.0) <= 3


def test_an_idle_system_is_asked_for_nothing_while_threads_watch_it(ticker: Ticker, clock: ManualClock) -> None:
    # Given threads that know the pauses, and that the log is quiet
    known: list[PauseState | None] = [None]
    started: list[str] = []
    quiet = [False]
    ticker._pauses_watch = SimpleNamespace(state=lambda _: known[0], start=lambda: started.append("pauses"))  # type: ignore[assignment]
    ticker._log_watch = SimpleNamespace(is_quiet=lambda _: quiet[0], start=lambda: started.append("log"))  # type: ignore[assignment]
    ticker.memory.restore([], actor="controller")
    ticker.store()
    known[0], quiet[0] = ticker.memory.pause_state(), True
    assert hints(ticker, clock, 1.0) == 1
    ticker.log.asked = ticker.memory.asked = 0
    assert hints(ticker, clock, 60.0) == 2
    assert (ticker.memory.asked, ticker.log.asked) == (0, 0)
    assert started == ["pauses", "log"]
    # When a record comes, or the pauses change, then the next tick is sent
    ticker.log.append([(3, b"two")])
    quiet[0] = False
    assert hints(ticker, clock, 3.0) == 3
    quiet[0] = True
    assert hints(ticker, clock, 3.0) == 0
    ticker.memory.pause(PauseReason.OPERATOR, actor="ann", why="a disk")
    known[0] = ticker.memory.pause_state()
    assert (hints(ticker, clock, 1.0), hints(ticker, clock, 3.0)) == (1, 0)
    # And when the threads know nothing, then both are asked as before
    known[0], quiet[0] = None, False
    ticker.log.asked = ticker.memory.asked = 0
    assert hints(ticker, clock, 10.0) == 10
    assert ticker.memory.asked >= 10
    assert ticker.log.asked >= 10


def test_a_pause_that_changes_while_a_tick_of_hints_is_sent_makes_another_one(
    ticker: Ticker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a system in which nothing waits, and which has got its tick of hints
    ticker.memory.restore([], actor="controller")
    ticker.store()
    hints(ticker, clock, 3.0)
    assert hints(ticker, clock, 3.0) == 0
    # When the pauses change, and change again while the next one is on its way to the broker
    ticker.memory.pause(PauseReason.OPERATOR, actor="ann", why="a disk")
    send = ticker.send_task

    def resumed_meanwhile(name: str, *arguments: Any, **options: Any) -> None:
        send(name, *arguments, **options)
        if name == HINTS:
            clock.advance(0.5)
            ticker.memory.resume(PauseReason.OPERATOR, generation=None, actor="ann", why="a disk")

    monkeypatch.setattr(ticker, "send_task", resumed_meanwhile)
    assert hints(ticker, clock, 1.0) == 1
    monkeypatch.setattr(ticker, "send_task", send)
    # Then that change is not taken for the one that was told
    assert hints(ticker, clock, 3.0) == 1


@pytest.mark.parametrize("url", ["redis://log", "kafka://log"])
def test_only_a_log_on_redis_is_watched(url: str) -> None:
    scheduler = TickScheduler(make_app(Settings(event_log_url=url)))
    assert scheduler._pauses_watch is not None
    assert (scheduler._log_watch is not None) == url.startswith("redis")


def test_ticks_of_hints_are_as_frequent_as_ever_beside_a_control_loop_that_is_slower(clock: ManualClock) -> None:
    ticker = Ticker(clock, Settings(regulate_seconds=HINTS_SECONDS_MAX + 1, hint_seconds=1.0))
    ticker.memory.restore([], actor="controller")
    ticker.store()
    assert hints(ticker, clock, 1.0) == 1
    assert hints(ticker, clock, 60.0) == 60 / HINTS_SECONDS_MAX


def test_a_change_of_the_pauses_brings_a_tick_of_hints(ticker: Ticker, clock: ManualClock) -> None:
    ticker.memory.restore([], actor="controller")
    ticker.store()
    hints(ticker, clock, 1.0)
    # A pause ends the drains, and a resumption needs new ones: the next tick is sent, with nothing in the log
    ticker.memory.pause(PauseReason.OPERATOR, actor="ann", why="a disk")
    assert (hints(ticker, clock, 1.0), hints(ticker, clock, 3.0)) == (1, 0)
    ticker.memory.resume(PauseReason.OPERATOR, generation=None, actor="ann", why="done")
    assert (hints(ticker, clock, 1.0), hints(ticker, clock, 3.0)) == (1, 0)
    ticker.memory.pause(PauseReason.POISON, actor="drain", why="bad", partition=1)
    assert hints(ticker, clock, 1.0) == 1


def test_a_tick_of_hints_that_the_broker_did_not_take_is_sent_with_the_next_period(
    ticker: Ticker, clock: ManualClock
) -> None:
    ticker.memory.restore([], actor="controller")
    ticker.store()
    hints(ticker, clock, 1.0)
    # When a resumption needs new drains, and the broker fails just then
    ticker.memory.pause(PauseReason.OPERATOR, actor="ann", why="a disk")
    ticker.broker_fails = True
    assert hints(ticker, clock, 1.0) == 0
    ticker.broker_fails = False
    # Then the change is not taken for told
    assert hints(ticker, clock, 1.0) == 1


def test_each_tick_of_hints_is_sent_while_the_log_or_the_pauses_are_unknown(
    ticker: Ticker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticker.memory.restore([], actor="controller")
    ticker.store()
    assert hints(ticker, clock, 10.0) <= 3

    # When the log does not answer, it is asked once in ten seconds: a silent one would hold up all ticks
    def fail(log_id: str | None = None) -> list[PartitionPosition]:
        ticker.log.asked += 1
        raise LogUnavailableError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(ticker.log, "positions", fail)
        hints(ticker, clock, 5.0)
        ticker.log.asked = 0
        assert hints(ticker, clock, 20.0) == 20
        assert ticker.log.asked <= 3 * 2
    # When not all partitions answer
    hints(ticker, clock, 10.0)
    with monkeypatch.context() as patched:
        found = ticker.log.positions()[1:]
        patched.setattr(ticker.log, "positions", lambda log_id=None: found)
        assert hints(ticker, clock, 5.0) == 5

    # When the control store does not answer
    def away() -> PauseState:
        raise StoreUnavailableError("no answer")

    assert hints(ticker, clock, 10.0) <= 3
    with monkeypatch.context() as patched:
        patched.setattr(ticker.memory, "pause_state", away)
        assert hints(ticker, clock, 5.0) == 5


def test_a_log_of_which_a_part_is_silent_holds_up_no_other_tick(
    ticker: Ticker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a log that answers without the partitions of a silent broker, once it has waited for that one
    ticker.memory.restore([], actor="controller")
    ticker.store()
    found = ticker.log.positions()[1:]

    def wait(log_id: str | None = None) -> list[PartitionPosition]:
        ticker.log.asked += 1
        clock.advance(2.5)
        return found

    monkeypatch.setattr(ticker.log, "positions", wait)
    hints(ticker, clock, 10.0)
    ticker.log.asked = 0
    # Then it is asked as rarely as one that does not answer, and each tick of hints is sent meanwhile
    assert hints(ticker, clock, 30.0) >= 20
    assert ticker.log.asked <= 3 * 2


def test_no_tick_has_an_expiry() -> None:
    for entry in beat_schedule(Settings()).values():
        assert set(entry["options"]) == {"queue"}
