"""The pool of a worker's children, while the worker has lost its broker and connects anew."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency import get_implementation
from celery.concurrency.asynpool import AsynPool
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Timer

from pipeline.settings import Settings
from tasks.app import celery_settings
from tasks.pool import GRACE_SECONDS, ChildrenPool, TaskPool


class Pool(ChildrenPool):
    """The pool without processes of its own."""

    def __init__(self) -> None:
        self.maintained = 0
        self.killed: list[Any] = []
        self._cache: dict[int, Any] = {}
        self._fileno_to_outq: dict[int, Any] = {}
        self._tref_for_id: dict[int, Any] = {}
        self._result_handler = SimpleNamespace(register_with_event_loop=lambda hub: None, handle_event=None)
        self.on_hard_timeout = self.killed.append
        self._discard_tref = lambda job: None

    def maintain_pool(self) -> None:
        self.maintained += 1


class Tracked:
    """A child whose sentinel is a pipe, as that of a real one."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self._popen = SimpleNamespace(sentinel=self.read_end)


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub(timer=Timer())
    yield made
    made.close()


def test_the_worker_uses_it() -> None:
    assert get_implementation(celery_settings(Settings())["worker_pool"]) is TaskPool
    assert TaskPool.Pool is ChildrenPool
    assert issubclass(ChildrenPool, AsynPool)


def test_a_child_that_has_just_ended_does_not_end_the_worker_as_it_connects_anew(hub: Hub) -> None:
    # Given a child whose end the event loop has seen, and which nobody has replaced yet
    pool, child = Pool(), Tracked()
    pool._track_child_process(child, hub)
    assert len(hub.readers) == 1
    os.close(child.write_end)
    pool._untrack_child_process(child, hub)  # type: ignore[attr-defined]
    # When the connection to the broker was lost, and all children are registered with the event loop again
    pool._track_child_process(child, hub)
    # Then that one is not watched, and the pool looks for those that ended at the loop's next turn
    assert hub.readers == {}
    assert pool.maintained == 0
    next(hub.create_loop())
    assert pool.maintained == 1
    os.close(child.read_end)


class Clocked:
    """The hub's timers: (seconds, callback, arguments)."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Any, tuple[Any, ...]]] = []

    def call_later(self, seconds: float, callback: Any, *arguments: Any) -> object:
        self.calls.append((seconds, callback, arguments))
        return SimpleNamespace(cancel=lambda: None)


def test_a_task_whose_result_waits_to_be_read_is_not_over_its_limit() -> None:
    # Given a task that ended while the worker connected: its result waits in the pipe, and its timer is due first
    pool, hub = Pool(), Clocked()
    read_end, write_end = os.pipe()
    child = SimpleNamespace(pid=4711)
    pool._fileno_to_outq[read_end] = child
    pool._cache[7] = job = SimpleNamespace(_worker_pid=4711)
    pool.hub = hub
    os.write(write_end, b"result")
    pool._on_hard_timeout(7)
    # Then the loop gets a little time to read it
    assert pool.killed == []
    ((seconds, callback, arguments),) = hub.calls
    assert (seconds, arguments) == (GRACE_SECONDS, (7,))
    # And only once: a child that goes on for longer is killed
    callback(*arguments)
    assert pool.killed == [job]
    os.close(write_end)
    os.close(read_end)


def test_a_task_over_its_limit_that_has_said_nothing_is_killed_at_once() -> None:
    pool, hub = Pool(), Clocked()
    read_end, write_end = os.pipe()
    pool._fileno_to_outq[read_end] = SimpleNamespace(pid=4711)
    pool._cache[7] = job = SimpleNamespace(_worker_pid=4711)
    pool._cache[8] = other = SimpleNamespace(_worker_pid=None)  # no child has accepted it yet
    pool.hub = hub
    pool._on_hard_timeout(7)
    pool._on_hard_timeout(8)
    pool._on_hard_timeout(9)  # has ended
    assert pool.killed == [job, other]
    assert hub.calls == []
    os.close(write_end)
    os.close(read_end)
