"""The pool of a worker's children. It survives a lost broker connection.

Celery's event loop is blocked while it reconnects. It sees children that end, and results that arrive, only afterwards.
"""

import select
from typing import Any, Final

from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool as PreforkTaskPool

GRACE_SECONDS: Final = 1.0  # for the event loop to read the results that came while it stood still


class ChildrenPool(AsynPool):
    """Celery's pool for its event loop."""

    hub: Any = None
    _cache: dict[int, Any]  # of the base, whose types leave these out: tasks that run, by number
    _fileno_to_outq: dict[int, Any]  # children, by the end from which their results are read
    _tref_for_id: dict[int, Any]  # timers of time limits, by task

    def register_with_event_loop(self, hub: Any) -> None:
        """Celery calls this at each connection to the broker."""
        self.hub = hub
        super().register_with_event_loop(hub)

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        """Watch a child for its end.

        Celery 5.7 fails on one whose end it has seen already, and that is not replaced yet: `file descriptor is None`
        ends the whole worker.
        """
        if getattr(proc, "_sentinel_poll", "none yet") is None:
            hub.call_soon(self.maintain_pool)
        else:
            super()._track_child_process(proc, hub)  # type: ignore[misc]  # celery-types leaves it out

    def _on_hard_timeout(self, job: int) -> None:
        """A task's time is over: kill its child, unless the task has ended and its result only waits to be read."""
        result = self._cache.get(job)
        if result is None or getattr(result, "had_grace", False) or not self._answers(result):
            super()._on_hard_timeout(job)  # type: ignore[misc]
            return
        result.had_grace = True
        self._tref_for_id[job] = self.hub.call_later(GRACE_SECONDS, self._on_hard_timeout, job)

    def _answers(self, result: Any) -> bool:
        """Whether something of this task's child waits to be read."""
        pid = result._worker_pid
        ends = [end for end, child in self._fileno_to_outq.items() if pid is not None and child.pid == pid]
        return bool(select.select(ends, [], [], 0)[0])


class TaskPool(PreforkTaskPool):
    """Celery's prefork pool, with the children's pool above."""

    Pool = ChildrenPool
