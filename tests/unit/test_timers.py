"""How often the timers of a worker wake its event loop."""

import heapq
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.heartbeat import Heart
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Timer

from pipeline.clock import ManualClock
from pipeline.settings import Settings
from tasks.app import make_app
from tasks.consumer import HEARTBEAT_SECONDS, SluiceTransport
from tasks.timers import AlignedTimer, TimersStep


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def turns(timer: Timer, clock: ManualClock, seconds: float) -> int:
    """The turns of an event loop in so many seconds: one for each moment at which something is due."""
    end, count = clock.monotonic() + seconds, 0
    while timer._queue and timer._queue[0].eta <= end:
        clock.advance(max(0.0, timer._queue[0].eta - clock.monotonic()))
        while timer._queue and timer._queue[0].eta <= clock.monotonic():
            entry = heapq.heappop(timer._queue).entry
            if not entry.canceled:
                entry()
        clock.advance(0.003)  # each turn takes time itself
        count += 1
    clock.advance(max(0.0, end - clock.monotonic()))
    return count


def test_calls_of_one_period_and_of_its_multiples_come_in_one_turn(clock: ManualClock) -> None:
    # Given calls that were set one after the other, by the transport, the pool, and Celery's heartbeat
    timer = AlignedTimer(clock=clock)
    called: list[str] = []
    for name, seconds in (("acks", 5.0), ("health", 10), ("pool", 5.0), ("bindings", 30.0), ("pauses", 5)):
        timer.call_repeatedly(seconds, called.append, (name,))
        clock.advance(0.4)
    # When a minute has passed, then the loop had as many turns as the shortest period needs
    assert turns(timer, clock, 60.0) <= 13
    assert [called.count(name) for name in ("acks", "health", "bindings")] == [12, 6, 2]


def test_a_call_that_was_cancelled_or_fails(clock: ManualClock) -> None:
    timer = AlignedTimer(clock=clock)
    called: list[float] = []

    def fail() -> None:
        called.append(clock.monotonic())
        raise ConnectionResetError

    entry = timer.call_repeatedly(5.0, fail)
    # Given one that fails, it is called again
    for _ in range(2):
        due = heapq.heappop(timer._queue)
        clock.advance(due.eta - clock.monotonic())
        with pytest.raises(ConnectionResetError):
            due.entry()
    assert called == [1005.0, 1010.0]
    # And no more once it is cancelled, as Celery does with those of a lost connection
    timer.cancel(entry)
    assert turns(timer, clock, 20.0) == 1
    assert len(called) == 2
    assert not timer._queue


def test_a_worker_uses_it_for_everything() -> None:
    # Given a worker whose hub was made with Celery's timer
    timer = Timer(max_interval=10.0)
    worker: Any = SimpleNamespace(timer=timer, hub=Hub(timer))
    assert TimersStep in make_app(Settings()).steps["worker"]
    TimersStep(worker).create(worker)
    # Then what it starts later is aligned: the heartbeat, and what the pool and the transport set on the hub
    assert isinstance(worker.timer, AlignedTimer)
    assert worker.hub.timer is worker.timer
    assert worker.timer.max_interval == 10.0
    eventer: Any = SimpleNamespace(enabled=True, on_enabled=set(), on_disabled=set(), send=lambda *_, **__: None)
    Heart(worker.timer, eventer, HEARTBEAT_SECONDS).start()
    options = {"health_check_interval": 10, "unacked_restore_interval": 5}
    client: Any = SimpleNamespace(transport_options=options, hostname="redis://nowhere")
    transport: Any = SluiceTransport(client)
    transport.register_with_event_loop(SimpleNamespace(client=client), worker.hub)
    due = [scheduled.eta / HEARTBEAT_SECONDS for scheduled in worker.timer.queue if not scheduled.entry.canceled]
    assert len(due) == 6
    assert due == [pytest.approx(round(one)) for one in due]


def test_a_pool_without_an_event_loop_keeps_its_timer() -> None:
    worker = SimpleNamespace(timer=Timer(), hub=None)
    TimersStep(worker).create(worker)
    assert not isinstance(worker.timer, AlignedTimer)
