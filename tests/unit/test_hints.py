"""The fallback for drains' own hints: which partitions get one."""

import contextlib
import datetime
import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock
from uuid import uuid4

import pytest
from celery.worker.request import Request

from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.breaker import SinkBreaker
from pipeline.clock import ManualClock, SystemClock
from pipeline.control_store.memory import MemoryControlStore, MemoryLeases, MemoryServer
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.errors import BreakerOpenError, LogUnavailableError, SinkUnavailableError, StoreUnavailableError
from pipeline.log.memory import MemoryLog
from pipeline.loops import Loop
from pipeline.names import LoopName, Mode, PauseReason, Queue
from pipeline.ports.control import ControlState, Leases, Pause, PauseState, PublishedRate
from pipeline.ports.keys import mirrored_version
from pipeline.ports.operator_store import OperatorState
from pipeline.settings import Settings
from pipeline.sink.memory import MemoryDatabase, MemorySink
from tasks import control, drain
from tasks.app import SluiceCelery, make_app
from tasks.context import WorkerContext
from tasks.drain import PausedCheck
from tasks.hints import HINT_SECONDS_MAX, HINTS_WAITING_MAX, Drained, give_back_hint, send_hint, send_net_hint
from tasks.known_pauses import KNOWN_SECONDS_MAX, KnownPauses
from tasks.pause import PauseFollower, PausesReader
from tasks.persist_overrides import Compared
from tasks.ticking import TickScheduler

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
        self.store = MemoryDatabase()
        self.sink = Sink(self.settings, self.store)
        self.drainer = MemorySink(self.settings, self.store)
        self.queue: list[str] = []  # the messages that wait for a worker, the newest first
        self.sent: list[tuple[int, str]] = []
        self.context: Any = SimpleNamespace(
            settings=self.settings,
            control_store=self.control,
            known_log=self.log.identity,
            queues=SimpleNamespace(messages=lambda _, most: self.queue[:most]),
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


def message(task: str = "sluice.drain", partition: object = 0) -> str:
    """A message as Celery writes it to Redis: what a task gets is in the body, which may be signed."""
    headers = {"task": task, "argsrepr": f"({partition},)", "kwargsrepr": "{'hint': None}"}
    return json.dumps({"body": "W10=", "content-type": "application/data", "headers": headers, "properties": {}})


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


def test_a_tick_of_the_control_loop_sends_hints_too_whatever_it_finds(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a control loop that works, one whose log does not answer, and one with a defect
    def away(**_: object) -> object:
        raise LogUnavailableError("no answer")

    def broken(**_: object) -> object:
        raise ZeroDivisionError

    def tick() -> str:
        rig.sent.clear()
        task = make_app(rig.settings).tasks["sluice.regulate"]
        return str(type(task).run(SimpleNamespace(app=app)))  # type: ignore[arg-type]

    app = SimpleNamespace(sluice_settings=rig.settings, send_task=rig.send_task)
    context = MagicMock(**vars(rig.context))  # the rest is for the control loop, which is none here
    monkeypatch.setattr(control, "context_of", lambda _: context)
    monkeypatch.setattr(control, "_migrate_once", lambda _: None)
    report = SimpleNamespace(published=None, problems=[], database_answered=False, is_measure_due=False)
    monkeypatch.setattr(control, "regulate", lambda **_: report)
    # Then partitions without a drain get a hint, and the task says so
    assert tick() == "4 of 4 shares have no drain"
    assert [partition for partition, _ in rig.sent] == [0, 1, 2, 3]
    for failing in (away, broken):
        for share, (_, token) in enumerate(rig.sent):
            give_back_hint(rig.leases, share, token)
        monkeypatch.setattr(control, "regulate", failing)
        with pytest.raises(ZeroDivisionError) if failing is broken else contextlib.nullcontext():
            assert tick() == "failed: no answer; 4 of 4 shares have no drain"
        assert [partition for partition, _ in rig.sent] == [0, 1, 2, 3]


def test_a_tick_of_the_control_loop_measures_when_that_is_due(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given ticks of which the second one is to measure what PostgreSQL holds
    rig.drain(0, 1, 2, 3)
    context = MagicMock(**vars(rig.context))
    context.dead_letters.count.return_value = SimpleNamespace(open=3, conflicts=1)
    facts = SimpleNamespace(size_bytes=1, connections=2, connections_max=60)
    context.operators.database_facts.return_value = facts
    monkeypatch.setattr(control, "context_of", lambda _: context)
    monkeypatch.setattr(control, "_migrate_once", lambda _: None)
    run = type(make_app(rig.settings).tasks["sluice.regulate"]).run
    app = SimpleNamespace(sluice_settings=rig.settings, send_task=rig.send_task)
    for is_due in (False, True):
        report = SimpleNamespace(published=None, problems=[], database_answered=False, is_measure_due=is_due)
        monkeypatch.setattr(control, "regulate", lambda report=report, **_: report)
        run(SimpleNamespace(app=app))  # type: ignore[arg-type]
        assert context.counters.note.call_count == int(is_due)
    [noted, _] = context.counters.note.call_args
    assert (noted[0]["dead_letters"], noted[0]["connections_max"]) == (3, 60)
    # And a database that fails then fails no tick
    context.operators.database_facts.side_effect = SinkUnavailableError("no answer")
    assert run(SimpleNamespace(app=app)) == "0 of 4 shares have no drain"  # type: ignore[arg-type]
    assert context.counters.note.call_count == 1
    # But the task that only measures returns the reason, for Flower
    measure = type(make_app(rig.settings).tasks["sluice.measure"]).run
    assert measure(SimpleNamespace(app=app)) == "failed: no answer"  # type: ignore[arg-type]


def test_a_tick_of_the_control_loop_reads_the_pauses_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a tick that has just read the control state, to compare it with what PostgreSQL keeps
    rig.control.pause(PauseReason.OPERATOR, actor="ann", why="w")
    state = rig.control.state()
    compared = Compared(OperatorState(keys_version="v1"), replace(state, keys_version=mirrored_version("v1")))
    asked: list[str] = []

    def counted(name: str) -> ControlState:
        asked.append(name)
        return state

    for name in ("state", "pause_state"):
        monkeypatch.setattr(rig.control, name, partial(counted, name))
    monkeypatch.setattr(control, "context_of", lambda _: MagicMock(**vars(rig.context)))
    monkeypatch.setattr(control, "_migrate_once", lambda _: None)
    monkeypatch.setattr(control, "persist_changes", lambda _: compared)
    report = SimpleNamespace(published=None, problems=[], database_answered=True, is_measure_due=False)
    monkeypatch.setattr(control, "regulate", lambda **_: report)
    app = SimpleNamespace(sluice_settings=rig.settings, send_task=rig.send_task)
    # When it looks whether drains are missing, and whether the API keys differ
    run = type(make_app(rig.settings).tasks["sluice.regulate"]).run
    assert run(SimpleNamespace(app=app)) == "PAUSED (operator): no drain runs"  # type: ignore[arg-type]
    # Then it takes that state
    assert asked == []
    # But it reads the pauses anew after the keys were copied, which may take long
    monkeypatch.setattr(control, "persist_changes", lambda _: replace(compared, saved=OperatorState()))
    monkeypatch.setattr(control, "sync_keys", lambda _: True)
    assert run(SimpleNamespace(app=app)) == "PAUSED (operator): no drain runs"  # type: ignore[arg-type]
    assert asked == ["pause_state"]


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


def test_the_queue_of_hints_is_looked_at_only_if_one_is_to_be_sent(rig: Rig) -> None:
    looked: list[Queue] = []

    def messages(queue: Queue, most: int) -> list[str]:
        looked.append(queue)
        return []

    rig.context.queues.messages = messages
    rig.drain(0, 1, 2, 3)
    assert rig.tick() == []
    assert looked == []
    rig.drainer.close()
    assert rig.tick() == [0, 1, 2, 3]
    assert looked == [Queue.BATCHES]


def test_a_hint_under_way_is_not_sent_again_before_it_counts_as_lost(rig: Rig) -> None:
    for expected in ([0, 1, 2, 3], []):
        rig.sent.clear()
        control.tick_hints(rig, rig.context)  # type: ignore[arg-type]
        assert [partition for partition, _ in rig.sent] == expected
    rig.clock.advance(HINT_SECONDS_MAX + 1)
    assert rig.tick() == [0, 1, 2, 3]


def test_a_hint_that_waits_in_the_queue_is_not_lost_however_long_it_waits(rig: Rig) -> None:
    # Given a worker with few processes: the hints of two partitions wait for one, beside what is no hint
    rig.queue = [message(partition=2), message(partition=0), message("sluice.probe", 1), message(partition="'3'"), "{]"]
    rig.queue += ["[]", '{"headers": [1]}', '{"headers": {"task": "sluice.drain"}}', message(partition=2)]
    rig.queue += [message(partition="9" * 5000), "[" * 100_000]
    # Then the others get hints, whenever it is
    for _ in range(3):
        assert rig.tick() == [1, 3]
        rig.clock.advance(HINT_SECONDS_MAX + 1)
    # And a hint for one partition is one for its share
    rig.context.known_log = MemoryLog(16).identity
    rig.queue = [message(partition=13)]
    assert sorted(partition % rig.settings.drains_max for partition in rig.tick()) == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize(
    ("is_short", "queue", "following"),
    [
        (True, [message(partition=11)], []),  # it is for the same share
        (True, [message(partition=4)], [3]),
        (True, [], [3]),
        (True, None, [3]),  # Redis does not answer
        (False, [message(partition=3)], [3]),  # not asked
    ],
)
def test_a_run_that_ends_leaves_a_waiting_hint_in_its_place(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, is_short: bool, queue: list[str] | None, following: list[int]
) -> None:
    asked: list[Queue] = []

    def messages(queue_asked: Queue, most: int) -> list[str]:
        asked.append(queue_asked)
        if queue is None:
            raise StoreUnavailableError("no answer")
        return queue[:most]

    # Given a worker whose drains wait for a process, or not
    known = KnownPauses()
    known.note([], rig.clock.monotonic())
    known.note_short(is_short=is_short)
    rig.context.queues.messages = messages
    rig.context.has_partition = lambda _: True
    rig.context.share_of = lambda partition: [partition]
    rig.context.breaker = SimpleNamespace(is_open=False)
    rig.context.clock = rig.clock
    rig.context.drain_counters = MagicMock()
    app = SimpleNamespace(sluice_settings=rig.settings, sluice_known_pauses=known, send_task=rig.send_task)
    report = DrainReport(partition=3, outcome=DrainOutcome.FINISHED)
    monkeypatch.setattr(drain, "context_of", lambda _: rig.context)
    monkeypatch.setattr(drain, "_drain", lambda *_: [report])
    # When its run ends
    run = type(make_app(rig.settings).tasks["sluice.drain"]).run
    run(SimpleNamespace(app=app), 3)  # type: ignore[arg-type]
    # Then it sends the next hint, unless one waits
    assert [partition for partition, _ in rig.sent] == following
    assert asked == [Queue.BATCHES] * is_short


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
    rig.queue = [message("another")] * HINTS_WAITING_MAX * PARTITIONS
    assert rig.tick() == []
    rig.queue = []
    rig.control.pause(PauseReason.OPERATOR, actor="test", why="")
    assert rig.tick() == []


@pytest.fixture
def queues() -> Iterator[SluiceCelery]:
    """An application whose messages stay in this process, as they are sent."""
    app = make_app(Settings())
    app.conf.update(broker_url=f"memory://{uuid4().hex}")
    app.loader.import_default_modules()
    yield app
    app.close()


def messages_of(app: SluiceCelery, queue: Queue) -> list[Any]:
    """The messages that wait in a queue."""
    with app.connection_for_read() as connection:
        waiting = connection.SimpleQueue(queue.value)
        return [waiting.get(timeout=WAIT_SECONDS_MAX) for _ in range(waiting.qsize())]


@pytest.mark.parametrize("ahead", [3.0, -3.0, 86_400.0])
def test_a_worker_whose_clock_differs_takes_each_message(
    queues: SluiceCelery, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    # Given the hints of a drain's end and of the net, and a tick of each entry of Beat
    send_hint(queues, 1, hint=None)
    send_net_hint(queues, MemoryLeases(Settings(), MemoryServer()), 2, 2)
    ticker = TickScheduler(queues)
    monkeypatch.setattr(ticker, "_has_room", lambda _: True)
    monkeypatch.setattr(ticker, "_measure_seconds", 0.0)
    for entry in ticker.schedule.values():
        ticker.apply_async(entry, advance=False)
    found = messages_of(queues, Queue.BATCHES) + messages_of(queues, Queue.CONTROL)
    assert len(found) == 2 + len(ticker.schedule)

    # When a worker on a host with another clock reads them
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
            shifted = super().now(tz) + datetime.timedelta(seconds=ahead)
            return cls.combine(shifted.date(), shifted.timetz())

    monkeypatch.setattr("celery.worker.request.datetime", Clock)
    for message in found:
        request: Any = Request(message, app=queues, task=queues.tasks[message.headers["task"]])
        # Then it neither drops one as too old nor waits with one until later
        assert not request.maybe_expire()
        assert (request.expires, request.eta) == (None, None)


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


def test_what_asks_each_second_reads_the_pauses_alone(rig: Rig) -> None:
    # Given a control store that counts its reads
    class Counted(MemoryControlStore):
        whole = alone = 0

        def state(self) -> ControlState:
            self.whole += 1
            return super().state()

        def pause_state(self) -> PauseState:
            self.whole, self.alone = self.whole - 1, self.alone + 1  # in memory, it is made from the state
            return super().pause_state()

    server = MemoryServer(rig.clock)
    store = rig.context.control_store = Counted(rig.settings, server)
    store.restore([], actor="test")
    rig.context.clock, rig.context.breaker = rig.clock, SinkBreaker(rig.settings, store, rig.clock, "drain")
    known = KnownPauses()
    # When a drain, a tick of hints and a worker's follower ask, with a pause and without
    is_paused = PausedCheck(rig.context, known)
    noted = KnownPauses()
    follower = PauseFollower(store, Loop(LoopName.FOLLOWER, rig.clock), known=noted)
    for is_held in (False, True):
        if is_held:
            store.pause(PauseReason.OPERATOR, actor="ann", why="a disk")
        rig.clock.advance(1)
        assert is_paused(0) is is_held
        assert (rig.tick() == []) is is_held
        follower._follower._read()
        assert follower.paused is is_held
        # And the follower's read is noted for children
        assert noted.are(store.state().pauses or (), SystemClock().monotonic())
        store.whole -= 1
    # Then each read was of the pauses
    assert (store.whole, store.alone) == (0, 6)


def test_a_drain_asks_for_no_pauses_that_the_main_process_has_just_read(rig: Rig) -> None:
    # Given a drain, and a main process that reads the pauses
    class Counted(MemoryControlStore):
        asked = 0

        def pause_state(self) -> PauseState:
            self.asked += 1
            return super().pause_state()

    store = rig.context.control_store = Counted(rig.settings, MemoryServer(rig.clock))
    store.restore([], actor="test")
    breaker = SinkBreaker(rig.settings, store, rig.clock, "drain")
    rig.context.clock, rig.context.breaker = rig.clock, breaker
    known = KnownPauses()
    is_paused = PausedCheck(rig.context, known)

    def asks(partition: int = 0) -> tuple[bool, int]:
        """What the drain is told in the next second, and how often it asked for it."""
        rig.clock.advance(0.9)
        before = store.asked
        return is_paused(partition), store.asked - before

    def read() -> None:
        """The main process reads."""
        known.note(MemoryControlStore.pause_state(store).pauses or (), rig.clock.monotonic())

    # Without a note it asks; with a recent one of the same pauses it does not
    assert asks() == (False, 1)
    read()
    assert asks() == (False, 0)
    # With one that is older, it does
    assert asks() == (False, 1)
    # When there is a pause, or one more or less, it asks once, and then knows it too
    for held, partition in ((PauseReason.POISON, 1), (PauseReason.LOG_GAP, 2)):
        store.pause(held, actor="test", why="", partition=partition)
        read()
        assert asks(partition) == (True, 1)
        read()
        assert asks(partition) == (True, 0)
    store.resume(PauseReason.LOG_GAP, generation=None, actor="ann", why="", partition=2)
    read()
    assert asks(2) == (False, 1)
    # And while its own breaker is open, it asks each time: it waits for the end of that reason
    read()
    for _ in range(rig.settings.breaker_failures_max):
        with contextlib.suppress(SinkUnavailableError, BreakerOpenError):
            breaker.call(_fail)
    assert breaker.is_open
    for _ in range(3):
        assert asks() == (True, 1)
        read()


def _fail() -> None:
    raise SinkUnavailableError("no answer")


def test_children_see_what_their_parent_notes() -> None:
    known = KnownPauses()
    pause = Pause(PauseReason.OPERATOR, 7, 0.0, "ann", "a disk")
    children = multiprocessing.get_context("fork")
    begin, results = children.Event(), children.SimpleQueue()

    def child() -> None:
        begin.wait(WAIT_SECONDS_MAX)
        results.put([known.are([pause], 100.0), known.are([], 100.0), known.are([pause], 90.0)])

    process = children.Process(target=child)
    process.start()
    known.note([pause], 100.0)
    begin.set()
    process.join(WAIT_SECONDS_MAX)  # of three booleans, which fit into the pipe
    assert process.exitcode == 0
    assert results.get() == [True, False, False]


def test_a_note_is_as_old_as_the_question_and_not_as_its_answer() -> None:
    clock = ManualClock()

    # Given a control store from which an answer takes three seconds, or a process that stands still in between
    class Slow(MemoryControlStore):
        def pause_state(self) -> PauseState:
            state = super().pause_state()
            clock.advance(3.0)
            return state

    store, known = Slow(Settings(), MemoryServer(clock)), KnownPauses()
    store.restore([], actor="controller")
    PausesReader(store, known, clock).state()
    # Then a drain does not trust it: another process may have paused since
    assert not known.are([], clock.monotonic())


@pytest.mark.parametrize("asks", ["state", "state_after"])
def test_unknown_pauses_are_noted_as_no_pauses_by_nobody(asks: str) -> None:
    # Given a control store that was emptied, after a read of its pauses
    clock, known = ManualClock(), KnownPauses()
    server = MemoryServer(clock)
    store = MemoryControlStore(Settings(), server)
    store.restore([], actor="controller")
    reader = PausesReader(store, known, clock)
    reader.state()
    assert known.are([], clock.monotonic())
    server.flush()
    clock.advance(KNOWN_SECONDS_MAX + 0.1)
    # When a worker's main process reads them
    state = reader.state() if asks == "state" else reader.state_after("0-0", wait_seconds=0.0)[1]
    assert state is not None
    assert state.pauses is None
    # Then no drain takes that for "nothing is paused"
    assert not known.are([], clock.monotonic())
    assert not known.is_recent(clock.monotonic())


@pytest.mark.parametrize(("before", "after", "is_trusted"), [(0.0, 0.0, True), (3.0, 0.0, False), (0.0, 3.0, False)])
def test_a_note_after_a_wait_is_as_old_as_the_end_of_the_wait(before: float, after: float, is_trusted: bool) -> None:
    clock = ManualClock()

    # Given a control store that reads after a wait of two seconds, and a process that may stand still
    class Waits(MemoryControlStore):
        def pause_state_after(self, position: str, *, wait_seconds: float) -> tuple[str, PauseState | None]:
            clock.advance(before + wait_seconds)
            state = self.pause_state()
            clock.advance(after)
            return position, state

    store, known = Waits(Settings(), MemoryServer(clock)), KnownPauses()
    store.restore([], actor="controller")
    PausesReader(store, known, clock).state_after("1", wait_seconds=2.0)
    # Then a drain trusts what was read after the wait, but not if it may be older
    assert known.are([], clock.monotonic()) is is_trusted


def test_a_tick_says_what_it_did_and_why_nothing_runs(rig: Rig) -> None:
    def said() -> str:
        return control.tick_hints(rig, rig.context)  # type: ignore[arg-type]

    rig.drain(0, 2)
    assert said() == "2 of 4 shares have no drain"
    rig.control.pause(PauseReason.POISON, actor="test", why="bad", partition=3)
    assert said() == "1 of 4 shares have no drain, PAUSED (poison of partition 3)"
    rig.control.pause(PauseReason.OPERATOR, actor="test", why="a disk", partition=None)
    assert said() == "PAUSED (poison of partition 3, operator): no drain runs"


def test_a_published_rate_in_words() -> None:
    rate = PublishedRate(1, 1000.0, 1000.0, Mode.DEGRADED, 12_000, 0.0, 0.0)
    assert control.rate_words(rate) == "rate 1,000/s (degraded), lag 12,000"
