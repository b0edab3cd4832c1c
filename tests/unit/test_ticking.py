"""Beat's scheduler on a clock that is moved: it ticks by the monotonic one."""

from typing import Any

import pytest

from beat_schedule import beat_schedule
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryControlStore, MemoryServer
from pipeline.errors import StoreUnavailableError
from pipeline.names import PauseReason
from pipeline.settings import Settings
from tasks.app import make_app
from tasks.ticking import TICKS_WAITING_MAX, TickScheduler


class Ticker(TickScheduler):
    """Notes what it would send; its queues hold `waiting` messages."""

    producer: Any = None

    def __init__(self, clock: ManualClock, settings: Settings) -> None:
        self.sent: list[str] = []
        self.waiting = 0
        super().__init__(make_app(settings), clock=clock)
        self._queues.waiting = lambda queue: self.waiting  # type: ignore[method-assign]
        self.memory = self._store = MemoryControlStore(settings, MemoryServer(clock))

    def send_task(self, name: str, *_: Any, **options: Any) -> None:
        assert "expires" not in options
        self.sent.append(name)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ticker(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Ticker:
    made = Ticker(clock, Settings(regulate_seconds=5.0, hint_seconds=1.0))
    for task in ("sluice.regulate", "sluice.probe", "sluice.measure", "sluice.send_hints"):
        made.app.tasks.pop(task, None)  # so that it goes through `send_task`
    return made


def run(ticker: Ticker, clock: ManualClock, seconds: float) -> list[str]:
    """What is sent in so many seconds."""
    ticker.sent = []
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        clock.advance(min(ticker.tick(), end - clock.monotonic()))
    ticker.tick()
    return ticker.sent


def test_each_entry_comes_once_a_period(ticker: Ticker, clock: ManualClock) -> None:
    sent = run(ticker, clock, 30.0)
    assert (sent.count("sluice.regulate"), sent.count("sluice.send_hints")) == (6, 30)
    assert sent.count("sluice.measure") == 2


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

    monkeypatch.setattr(ticker.memory, "state", fail)
    assert run(ticker, clock, 10.0).count("sluice.probe") == 5


def test_no_tick_has_an_expiry() -> None:
    for entry in beat_schedule(Settings()).values():
        assert set(entry["options"]) == {"queue"}
