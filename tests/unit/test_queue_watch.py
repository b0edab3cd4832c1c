"""When a worker takes nothing though it could, and what is done about it."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.bootsteps import RUN  # type: ignore[attr-defined]  # celery-types leaves it out
from celery.worker import state as worker_state

from pipeline.clock import ManualClock
from pipeline.loops import Loops
from pipeline.names import Queue
from pipeline.settings import Settings
from tasks import queue_watch
from tasks.forced_shutdown import CONTROL_SECONDS_MAX, MIGRATION_SECONDS_MAX
from tasks.known_pauses import KnownPauses
from tasks.queue_watch import (
    FULL_LOOK_SECONDS,
    LOOK_SECONDS,
    QUIET_LOOK_SECONDS,
    QueueProgress,
    QueueWatch,
    QueueWatches,
    Remedy,
    _task_seconds_max,
)

LIMIT, TASK = 5.0, 40.0


@pytest.fixture
def progress() -> QueueProgress:
    return QueueProgress(Queue.BATCHES, seconds_max=LIMIT, task_seconds_max=TASK, shown_seconds=15.0)


class Looks:
    """Looks at one worker, one after the other."""

    def __init__(self, progress: QueueProgress) -> None:
        self.now = 1000.0
        self._progress = progress
        progress.look(self.now, waiting=0, taken=0, begun=0, is_able=True)

    def until_remedy(self, *, seconds_max: float = 200.0, **seen: Any) -> tuple[Remedy | None, float]:
        """Look again and again, for so long at most; what is to be done, and after how long."""
        began = self.now
        while self.now - began < seconds_max:
            self.now += LOOK_SECONDS
            remedy = self._progress.look(self.now, **({"waiting": 3, "taken": 0, "begun": 0, "is_able": True} | seen))
            if remedy is not None:
                return remedy, self.now - began
        return None, self.now - began


@pytest.fixture
def looks(progress: QueueProgress) -> Looks:
    return Looks(progress)


def test_it_connects_anew_and_ends_where_that_does_not_help(progress: QueueProgress, looks: Looks) -> None:
    assert progress.problem(looks.now) is None
    assert looks.until_remedy() == (Remedy.CONNECT, LIMIT)
    said = "this worker has taken nothing for 5 s, though 3 messages wait in queue batches: it reconnects to the broker"
    assert str(progress.problem(looks.now + 100.0)).startswith(said)
    assert looks.until_remedy() == (Remedy.END, LIMIT)
    assert progress.failures == 2


def test_it_is_shown_for_a_while_after_it_was_set_right_and_the_next_time_begins_anew(
    progress: QueueProgress, looks: Looks
) -> None:
    looks.until_remedy()
    progress.look(looks.now, waiting=3, taken=1, begun=1, is_able=True)
    assert progress.problem(looks.now + 14.0) is not None
    assert progress.problem(looks.now + 16.0) is None
    assert looks.until_remedy(taken=1, begun=1) == (Remedy.CONNECT, LIMIT)
    # Another worker has taken it all, and this one has still begun nothing
    progress.look(looks.now, waiting=0, taken=1, begun=1, is_able=True)
    assert looks.until_remedy(taken=1, begun=1) == (Remedy.END, LIMIT)


def test_messages_that_it_takes_into_lost_places_are_no_sign_that_connecting_has_helped(
    progress: QueueProgress, looks: Looks
) -> None:
    # Given a pool that begins nothing; a new connection empties its places, and they fill again
    assert looks.until_remedy(is_able=False) == (Remedy.CONNECT, TASK + LIMIT)
    progress.look(looks.now, waiting=3, taken=2, begun=0, is_able=True)
    assert looks.until_remedy(taken=2, is_able=False) == (Remedy.END, TASK + LIMIT)
    # A task that has begun is one
    progress.look(looks.now, waiting=3, taken=3, begun=1, is_able=True)
    assert looks.until_remedy(taken=3, begun=1, is_able=False) == (Remedy.CONNECT, TASK + LIMIT)


def test_a_full_pool_is_excused_for_as_long_as_a_task_may_run(looks: Looks) -> None:
    assert looks.until_remedy(is_able=False, seconds_max=TASK) == (None, TASK)
    # The moment in which a place is free, before its message is taken
    assert looks.until_remedy(seconds_max=LOOK_SECONDS) == (None, LOOK_SECONDS)
    assert looks.until_remedy(taken=1, seconds_max=LOOK_SECONDS)[0] is None
    # Places that no task gives back are lost
    assert looks.until_remedy(taken=1, is_able=False) == (Remedy.CONNECT, TASK + LIMIT)


@pytest.mark.parametrize(
    "innocent",
    [
        lambda progress, now: progress.look(now, waiting=0, taken=0, begun=0, is_able=True),
        lambda progress, now: progress.look(now, waiting=3, taken=progress._taken + 1, begun=0, is_able=True),
        lambda progress, now: progress.skip(now),  # paused, ending, or the broker is away
    ],
    ids=["nothing waits", "something is taken", "nobody may"],
)
def test_nothing_is_done_where_there_is_an_excuse(
    progress: QueueProgress, looks: Looks, innocent: Callable[[QueueProgress, float], Any]
) -> None:
    taken = 0
    for _ in range(10):
        assert looks.until_remedy(taken=taken, seconds_max=LIMIT - LOOK_SECONDS)[0] is None
        innocent(progress, looks.now)
        taken = progress._taken


def test_time_in_which_the_process_was_frozen_does_not_count(looks: Looks) -> None:
    assert looks.until_remedy(seconds_max=LOOK_SECONDS)[0] is None
    looks.now += 3600.0
    remedy, seconds = looks.until_remedy()
    assert remedy is Remedy.CONNECT
    assert seconds == pytest.approx(LIMIT - 2 * LOOK_SECONDS)  # all of that hour counts as one look more


def test_time_before_a_message_was_seen_to_wait_counts_as_one_look_at_most(looks: Looks) -> None:
    # Nothing waited an hour ago, and nobody has looked since: the message may have come just now
    looks.now += 3600.0
    assert looks.until_remedy() == (Remedy.CONNECT, LIMIT)


def test_a_migration_is_no_lost_place_where_nothing_else_can_run_beside_it() -> None:
    settings = Settings()
    assert _task_seconds_max(settings, Queue.CONTROL, places=1) == MIGRATION_SECONDS_MAX
    assert _task_seconds_max(settings, Queue.CONTROL, places=2) == CONTROL_SECONDS_MAX
    assert _task_seconds_max(settings, Queue.BATCHES, places=1) == settings.drain_hard_seconds_max


def test_the_queue_watch_knows_of_pauses_what_the_consumer_was_told() -> None:
    # Given a worker for `batches`, whose follower is the only reader of the control state
    app = SimpleNamespace(
        sluice_settings=Settings(),
        sluice_loops=Loops(ManualClock()),
        sluice_pause_follower=None,
        sluice_known_pauses=KnownPauses(),
    )
    watch = QueueWatch(SimpleNamespace(app=app, pool=SimpleNamespace(num_processes=4)), Queue.BATCHES)
    app.sluice_pause_follower = SimpleNamespace(paused=True)
    assert not watch._may_take()
    app.sluice_pause_follower = SimpleNamespace(paused=False)
    assert watch._may_take()
    # And a worker for `control` has none, and is never paused
    app.sluice_pause_follower = None
    assert watch._may_take()


class _Both:
    """A worker that takes the messages of both queues, and of which everything else works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings, self.clock = Settings(), ManualClock()
        self.loops = Loops(self.clock)
        self.paused = SimpleNamespace(paused=False)
        app = self.app = SimpleNamespace(
            sluice_settings=settings,
            sluice_loops=self.loops,
            sluice_pause_follower=self.paused,
            sluice_known_pauses=KnownPauses(),
        )
        pool = SimpleNamespace(num_processes=4)
        consumer = SimpleNamespace(
            app=app, pool=pool, connection=object(),
            controller=SimpleNamespace(blueprint=SimpleNamespace(state=RUN), pool=pool),
            hub=SimpleNamespace(call_soon=lambda callback, *arguments: callback(*arguments)),
        )  # fmt: skip
        self.taken: Counter[Queue] = Counter()
        self.begun: Counter[str] = Counter()
        self.ended = False
        monkeypatch.setattr(queue_watch, "messages_taken", lambda queue: self.taken[queue])
        monkeypatch.setattr(worker_state, "total_count", self.begun)
        monkeypatch.setattr(queue_watch, "end_now", self._end)
        self.watches = QueueWatches(consumer, list(Queue))
        for watch in self.watches._watches:
            monkeypatch.setattr(watch, "_clock", self.clock)
            monkeypatch.setattr(watch, "_lose", lambda _connection: None)
            watch._queues = SimpleNamespace(waiting=lambda _queue: 3)  # type: ignore[assignment]

    def _end(self, _worker: Any) -> None:
        self.ended = True

    def live(self, seconds: float, *, taking: Queue, task: str) -> None:
        """Take messages of one queue only, and begin its tasks."""
        for _ in range(int(seconds / LOOK_SECONDS)):
            self.clock.advance(LOOK_SECONDS)
            self.taken[taking] += 1
            self.begun[task] += 1
            self.watches.look()


@pytest.mark.parametrize(
    ("taking", "task", "lost"),
    [(Queue.CONTROL, "sluice.regulate", Queue.BATCHES), (Queue.BATCHES, "sluice.drain", Queue.CONTROL)],
)
def test_a_worker_of_both_queues_watches_each(
    monkeypatch: pytest.MonkeyPatch, taking: Queue, task: str, lost: Queue
) -> None:
    worker = _Both(monkeypatch)
    # When it takes messages of one queue only, then it connects anew, and ends if that does not help
    worker.live(LIMIT + 1, taking=taking, task=task)
    assert (worker.watches.failures, worker.ended) == (1, False)
    assert f"messages wait in queue {lost.value}" in worker.loops.problems(worker.clock.monotonic())[0]
    worker.live(LIMIT, taking=taking, task=task)
    assert worker.ended


def test_a_pause_excuses_one_of_two_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = _Both(monkeypatch)
    worker.paused.paused = True
    worker.live(3 * LIMIT, taking=Queue.CONTROL, task="sluice.regulate")
    assert worker.watches.failures == 0
    # The ticks go on in a pause, so their queue is watched
    worker.live(LIMIT + 1, taking=Queue.BATCHES, task="sluice.drain")
    assert worker.watches.failures == 1


def test_a_worker_looks_less_often_while_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = _Both(monkeypatch)
    batches, control = worker.watches._watches
    worker.watches.look()
    assert worker.watches.wait_seconds == LOOK_SECONDS
    # Then neither queue has messages
    batches._queues = control._queues = SimpleNamespace(waiting=lambda _queue: 0)  # type: ignore[assignment]
    worker.watches.look()
    assert worker.watches.wait_seconds == QUIET_LOOK_SECONDS
    # While no process is free, drains without records must learn soon that others need one
    places = batches._consumer.pool.num_processes
    monkeypatch.setattr(worker_state, "reserved_requests", set(range(places)))
    assert worker.watches.wait_seconds == FULL_LOOK_SECONDS
    monkeypatch.setattr(worker_state, "reserved_requests", set[Any]())
    # And the messages of one queue are enough
    control._queues = SimpleNamespace(waiting=lambda _queue: 1)  # type: ignore[assignment]
    worker.watches.look()
    assert worker.watches.wait_seconds == LOOK_SECONDS


@pytest.mark.parametrize(("waiting", "running", "is_short"), [(0, 4, False), (3, 3, False), (3, 4, True)])
def test_the_drains_learn_whether_others_wait_for_a_process(
    monkeypatch: pytest.MonkeyPatch, waiting: int, running: int, is_short: bool
) -> None:
    worker = _Both(monkeypatch)
    known: KnownPauses = worker.app.sluice_known_pauses
    known.note_short(is_short=not is_short)
    monkeypatch.setattr(worker_state, "reserved_requests", set(range(running)))
    for watch in worker.watches._watches:
        watch._queues = SimpleNamespace(waiting=lambda _queue: waiting)  # type: ignore[assignment]
    worker.watches.look()
    assert known.is_short is is_short
    # And not while their queue is not to be taken from
    worker.paused.paused = True
    worker.watches.look()
    assert not known.is_short


def test_a_message_that_comes_to_a_quiet_queue_is_missed_little_later() -> None:
    # Given a queue without messages for a minute, and one that comes just after a check
    progress = QueueProgress(Queue.BATCHES, seconds_max=5.0, task_seconds_max=40.0, shown_seconds=15.0)
    now, checks = 0.0, 0
    while now < 60:
        progress.look(now, waiting=0, taken=0, begun=0, is_able=True)
        now, checks = now + QUIET_LOOK_SECONDS, checks + 1
    came_at = now - QUIET_LOOK_SECONDS
    # When the worker does not take it
    while progress.look(now, waiting=1, taken=0, begun=0, is_able=True) is None:
        now += LOOK_SECONDS
    # Then that is noticed within the wait and the time without need to act; and the quiet minute took few checks
    assert now - came_at <= 5.0 + QUIET_LOOK_SECONDS - LOOK_SECONDS
    assert checks <= 30


def test_an_event_loop_is_woken_for_an_answer_only_while_messages_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a worker whose pool looks full, and an event loop that answers when it is let
    settings, clock, waiting, asked = Settings(), ManualClock(), [0], list[Any]()
    pool = SimpleNamespace(num_processes=4)
    app = SimpleNamespace(
        sluice_settings=settings,
        sluice_loops=Loops(clock),
        sluice_pause_follower=None,
        sluice_known_pauses=KnownPauses(),
    )
    consumer = SimpleNamespace(
        app=app, pool=pool, connection=object(),
        controller=SimpleNamespace(blueprint=SimpleNamespace(state=RUN), pool=pool),
        hub=SimpleNamespace(call_soon=lambda callback, *_: asked.append(callback)),
    )  # fmt: skip
    monkeypatch.setattr(worker_state, "reserved_requests", set(range(4)))
    watch = QueueWatch(consumer, Queue.BATCHES)
    watch._clock, watch._queues = clock, SimpleNamespace(waiting=lambda _queue: waiting[0])  # type: ignore[assignment]

    def look(seconds: float, *, is_answered: bool) -> None:
        for _ in range(int(seconds / LOOK_SECONDS)):
            clock.advance(LOOK_SECONDS)
            watch.look()
            while is_answered and asked:
                asked.pop()()

    # When nothing waits, then it is asked for nothing
    look(60, is_answered=False)
    assert asked == []
    # While messages wait, it is asked at each check, and its full pool is the excuse
    waiting[0] = 3
    look(LIMIT + 2, is_answered=True)
    assert watch.progress.failures == 0
    # When they are gone for a while, and it hangs, then it has no excuse: an answer of that time says nothing
    waiting[0] = 0
    look(10, is_answered=True)
    waiting[0] = 3
    look(LIMIT, is_answered=False)
    assert watch.progress.failures == 1
    # It was asked once by then, and is asked no more before it has answered
    assert [callback.__name__ for callback in asked] == ["_answer", "_lose"]


def test_an_answer_that_was_dropped_with_the_connection_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a worker whose new connection was made in the turn in which its event loop would have answered
    settings, clock, asked = Settings(), ManualClock(), list[Any]()
    pool = SimpleNamespace(num_processes=4)
    app = SimpleNamespace(
        sluice_settings=settings,
        sluice_loops=Loops(clock),
        sluice_pause_follower=None,
        sluice_known_pauses=KnownPauses(),
    )
    consumer = SimpleNamespace(
        app=app, pool=pool, connection=object(),
        controller=SimpleNamespace(blueprint=SimpleNamespace(state=RUN), pool=pool),
        hub=SimpleNamespace(call_soon=lambda callback, *_: asked.append(callback)),
    )  # fmt: skip
    monkeypatch.setattr(queue_watch, "end_now", lambda _: pytest.fail("the worker was ended"))
    watch = QueueWatch(consumer, Queue.BATCHES)
    watch._clock, watch._queues = clock, SimpleNamespace(waiting=lambda _queue: 3)  # type: ignore[assignment]
    while watch.progress.failures == 0:
        clock.advance(LOOK_SECONDS)
        watch.look()
    asked.clear()
    # When all places of its pool have long tasks
    monkeypatch.setattr(worker_state, "reserved_requests", set(range(4)))
    for _ in range(int((LIMIT + 5) / LOOK_SECONDS)):
        clock.advance(LOOK_SECONDS)
        watch.look()
        while asked:
            asked.pop()()
    # Then these are its excuse, as before
    assert watch.progress.failures == 1


def test_places_of_both_queues_are_lost_after_the_longest_task_of_both() -> None:
    settings = Settings()
    app = SimpleNamespace(sluice_settings=settings, sluice_loops=Loops(ManualClock()))
    consumer = SimpleNamespace(app=app, pool=SimpleNamespace(num_processes=4))
    [limit] = {watch.progress._unable_seconds_max for watch in QueueWatches(consumer, list(Queue))._watches}
    assert limit == settings.drain_hard_seconds_max + settings.queue_untaken_seconds_max


def test_a_worker_that_still_connects_gets_the_whole_limit_from_its_connection_on() -> None:
    # Given a worker whose broker is back, and which waits for its next attempt to connect: its event loop stands still
    settings = Settings()
    clock = ManualClock()
    app = SimpleNamespace(
        sluice_settings=settings,
        sluice_loops=Loops(clock),
        sluice_pause_follower=None,
        sluice_known_pauses=KnownPauses(),
    )
    asked: list[Any] = []
    consumer = SimpleNamespace(
        app=app,
        pool=SimpleNamespace(num_processes=4),
        controller=SimpleNamespace(blueprint=SimpleNamespace(state=RUN), pool=SimpleNamespace(num_processes=4)),
        hub=SimpleNamespace(call_soon=lambda callback, *_: asked.append(callback)),
        connection=None,
    )
    watch = QueueWatch(consumer, Queue.BATCHES)
    watch._clock, watch._queues = clock, SimpleNamespace(waiting=lambda queue: 18)  # type: ignore[assignment]

    def seconds_until_remedy(seconds_max: float) -> float:
        began = clock.monotonic()
        while watch.progress.failures == 0 and clock.monotonic() - began < seconds_max:
            clock.advance(LOOK_SECONDS)
            watch.look()
        return clock.monotonic() - began

    limit = settings.queue_untaken_seconds_max
    assert seconds_until_remedy(limit + 1) == limit + 1
    consumer.connection = object()
    assert seconds_until_remedy(2 * limit) == limit
    # But a connection that never comes is a remedy's case too
    watch.progress = QueueProgress(Queue.BATCHES, seconds_max=LIMIT, task_seconds_max=TASK, shown_seconds=15.0)
    consumer.connection = None
    assert seconds_until_remedy(2 * TASK) == TASK + LIMIT + LOOK_SECONDS
