"""Loops that must not end."""

import logging
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from checks.testbed.waiting import eventually
from pipeline.clock import ManualClock, SystemClock
from pipeline.control_store.memory import MemoryControlEvents, MemoryControlStore, MemoryServer, MemoryTroubles
from pipeline.errors import StoreUnavailableError
from pipeline.loops import TURN_SECONDS_MAX, Loop, Loops
from pipeline.metrics import LoopsCollector
from pipeline.names import ControlEventKind, DropReason, LoopName, PauseReason
from pipeline.ports.control import ControlState
from pipeline.settings import Settings
from tasks.dropped import Drops
from tasks.known_pauses import KnownPauses
from tasks.pause import PauseStep


def until(condition: Callable[[], bool]) -> None:
    eventually(condition, look_seconds=0.001)


def test_a_turn_that_fails_is_counted_told_once_and_over_with_the_next(caplog: pytest.LogCaptureFixture) -> None:
    clock, loops = ManualClock(), Loops(ManualClock())
    loop = loops.add(LoopName.HISTORY)
    for _ in range(3):
        with loop.turn():
            raise ValueError("no such word")
    assert loop.is_failing
    assert loops.problems(clock.monotonic()) == ["the history writer of this process fails: ValueError: no such word"]
    assert caplog.text.count("history writer of this process failed because of a defect") == 1
    [family] = LoopsCollector(loops.failures).collect()
    assert [(sample.labels, sample.value) for sample in family.samples] == [({"loop": "history writer"}, 3.0)]
    with loop.turn():
        pass
    assert (loop.is_failing, loops.problems(clock.monotonic())) == (False, [])
    # A loop that is made anew goes on counting
    assert (loops.add(LoopName.HISTORY).failures, loops.failures()) == (3, {LoopName.HISTORY: 3})


def test_a_loop_that_comes_round_no_more_is_a_problem_and_one_that_is_not_asked_is_none() -> None:
    clock = ManualClock()
    periodic, on_demand = Loop(LoopName.FOLLOWER, clock), Loop(LoopName.LEASES, clock, on_demand=True)
    for loop in (periodic, on_demand):
        with loop.turn():
            pass
    clock.advance(TURN_SECONDS_MAX + 1)
    assert periodic.problem(clock.monotonic()) == "the control follower of this process makes no progress since 16 s"
    assert on_demand.problem(clock.monotonic()) is None
    with on_demand.turn():
        clock.advance(TURN_SECONDS_MAX + 1)
        assert on_demand.problem(clock.monotonic()) is not None


def test_a_defect_does_not_end_the_count_of_dropped_messages(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given counters that fail twice, in ways that are known and not known
    monkeypatch.setattr("tasks.dropped._ADD_SECONDS", 0.0)
    errors: list[Exception] = [ZeroDivisionError(), StoreUnavailableError()]
    added: list[dict[str, float]] = []

    class Counters:
        def add(self, counts: dict[str, float], **_: object) -> None:
            if errors:
                raise errors.pop(0)
            added.append(counts)

    monkeypatch.setattr("tasks.dropped.wiring.make_counters", lambda _: Counters())
    loops = Loops(SystemClock())
    drops = Drops(Settings(), loops)
    # Then messages are counted all the same, those before and those after
    drops.note(DropReason.MALFORMED, "x")
    until(lambda: added == [{"dropped:malformed": 1.0}])
    assert loops.failures() == {LoopName.DROPS: 1}
    assert "the count of dropped messages of this process failed because of a defect" in caplog.text
    drops.note(DropReason.EXPIRED, "y")
    until(lambda: added[1:] == [{"dropped:expired": 1.0}])
    # And an idle count is no problem
    assert loops.problems(time.monotonic() + 2 * TURN_SECONDS_MAX) == []


class _Store(MemoryControlStore):
    """A store that raises what is set, whatever that is."""

    error: BaseException | None = None
    reads = 0

    def state(self) -> ControlState:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return super().state()


class _Worker:
    """A worker's consumer, as far as the step touches it."""

    def __init__(self) -> None:
        settings = Settings()
        self.server = MemoryServer()
        self.store = _Store(settings, self.server)
        self.events = MemoryControlEvents(settings, self.server)
        self.troubles = MemoryTroubles(settings, self.server)
        self.hostname = "batches@host"
        self.loops = Loops(SystemClock())
        self.consumes = False
        self.connection_errors: tuple[type[Exception], ...] = (OSError, KeyError)  # as kombu lists them
        self.woken: list[tuple[Any, ...]] = []
        self.hub = SimpleNamespace(call_soon=lambda *call: self.woken.append(call))
        self.timer = SimpleNamespace(call_repeatedly=lambda *_: SimpleNamespace(cancel=lambda: None))
        queues = SimpleNamespace(consume_from={"batches": object()})
        self.app = SimpleNamespace(
            sluice_settings=settings,
            sluice_loops=self.loops,
            sluice_known_pauses=KnownPauses(),
            amqp=SimpleNamespace(queues=queues),
        )
        self.task_consumer: Any = SimpleNamespace(consuming_from=lambda _queue: self.consumes)

    def cancel_task_queue(self, _queue: str) -> None:
        self.consumes = False

    def add_task_queue(self, _queue: str) -> None:
        self.consumes = True


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> _Worker:
    worker = _Worker()
    monkeypatch.setattr("tasks.pause.wiring.make_control_store", lambda _settings: worker.store)
    monkeypatch.setattr("tasks.pause.wiring.make_control_events", lambda _settings: worker.events)
    monkeypatch.setattr("tasks.pause.wiring.make_troubles", lambda _settings: worker.troubles)
    return worker


def test_a_worker_follows_the_pauses_again_after_whatever_error(worker: _Worker) -> None:
    # Given a worker that consumes
    step = PauseStep(worker)
    step.start(worker)
    worker.store.restore([], actor="controller")
    until(lambda: _ticked(step, worker).consumes)
    # When its follower meets what nobody expects, and consumption is paused meanwhile
    worker.store.error = ValueError("'quota' is not a valid PauseReason")
    worker.store.pause(PauseReason.OPERATOR, actor="ann", why="wait")
    until(lambda: bool(worker.loops.problems(time.monotonic())))
    # (which the control loop hears of)
    until(lambda: worker.troubles.reported().keys() == {"batches@host"})
    worker.store.error = None
    # Then it follows again
    until(lambda: not _ticked(step, worker).consumes)
    worker.store.resume(PauseReason.OPERATOR, generation=None, actor="ann", why="go on")
    until(lambda: _ticked(step, worker).consumes)
    assert worker.loops.problems(time.monotonic()) == []
    until(lambda: worker.troubles.reported() == {})
    # And a partition's pause is not the queue's
    worker.store.pause(PauseReason.POISON, actor="drain", why="a batch", partition=1)
    until(lambda: worker.store.state().pauses != ())
    assert _ticked(step, worker).consumes
    step.shutdown(worker)


def test_a_change_of_the_pauses_wakes_the_workers_event_loop(worker: _Worker, caplog: pytest.LogCaptureFixture) -> None:
    # Given a worker whose timer does not tick
    caplog.set_level(logging.INFO, "tasks.pause")
    step = PauseStep(worker)
    step.start(worker)
    # When a pause is lifted or begins, then the loop compares at once; no other state wakes it
    for is_paused in (False, True):
        if is_paused:
            worker.store.pause(PauseReason.OPERATOR, actor="ann", why="wait")
        else:
            worker.store.restore([], actor="controller")
        until(lambda: bool(worker.woken))
        [(compare, *arguments)] = worker.woken
        worker.woken.clear()
        compare(*arguments)
        assert worker.consumes is not is_paused
        # (only the pause is a warning: each normal start begins with the other)
        assert caplog.records[-1].levelname == ("WARNING" if is_paused else "INFO")
    worker.store.pause(PauseReason.POISON, actor="drain", why="a batch", partition=1)
    worker.events.record(ControlEventKind.STATE_RESTORED, actor="controller", why="", data={})
    seen = worker.store.reads
    until(lambda: worker.store.reads > seen + 1)
    assert worker.woken == []
    step.shutdown(worker)


def test_what_a_worker_does_against_the_pauses_is_corrected_without_its_timer(worker: _Worker) -> None:
    # Given a worker that follows the pauses, and whose timer does not tick
    step = PauseStep(worker)
    step.start(worker)
    worker.store.restore([], actor="controller")
    until(lambda: _woken(worker) and worker.consumes)
    for is_paused in (False, True):
        if is_paused:
            worker.store.pause(PauseReason.OPERATOR, actor="ann", why="wait")
            until(lambda: _woken(worker) and not worker.consumes)
        # When somebody adds or cancels the queue meanwhile
        worker.consumes = is_paused
        # Then the follower's next read wakes the event loop, once as long as that has not compared
        until(lambda: bool(worker.woken))
        _read_twice(worker)
        assert len(worker.woken) == 1
        assert _woken(worker)
        assert worker.consumes is not is_paused
    step.shutdown(worker)


def _read_twice(worker: _Worker) -> None:
    """Wait for two more reads of the follower."""
    seen = worker.store.reads
    until(lambda: worker.store.reads > seen + 1)


def _woken(worker: _Worker) -> bool:
    """Let the event loop do what it was woken for; False if it was not."""
    woken, worker.woken = worker.woken, []
    for compare, *arguments in woken:
        compare(*arguments)
    return bool(woken)


def test_a_broker_that_is_lost_while_the_worker_compares_is_no_defect(worker: _Worker) -> None:
    step = PauseStep(worker)
    step.start(worker)
    for error, problems in ((ConnectionResetError("gone"), 0), (KeyError("queue"), 1)):

        def lose(_queue: str, error: Exception = error) -> bool:
            raise error

        worker.task_consumer = SimpleNamespace(consuming_from=lose)
        step._reconcile(worker)
        assert len(worker.loops.problems(time.monotonic())) == problems
    step.shutdown(worker)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_begun_anew(worker: _Worker) -> None:
    # Given a worker whose follower meets what no thread survives
    worker.store.error = SystemExit()
    step = PauseStep(worker)
    others = set(threading.enumerate())
    step.start(worker)
    until(lambda: not any(one.name == "control-follower" for one in set(threading.enumerate()) - others))
    worker.store.error = None
    worker.store.restore([], actor="controller")
    # When the worker's timer looks at it, then it follows again
    until(lambda: _ticked(step, worker).consumes)
    step.shutdown(worker)


def test_an_error_of_the_timer_does_not_reach_the_workers_event_loop(worker: _Worker) -> None:
    step = PauseStep(worker)
    step.start(worker)
    worker.task_consumer = SimpleNamespace()  # its next word raises AttributeError, of which Celery's loop would die
    step._reconcile(worker)
    assert "pause timer" in worker.loops.problems(time.monotonic())[0]
    step.shutdown(worker)


def _ticked(step: PauseStep, worker: _Worker) -> _Worker:
    step._reconcile(worker)
    return worker
