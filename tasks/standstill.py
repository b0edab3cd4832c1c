"""Why no drain runs for a partition that has lag, as far as Celery's workers say."""

import re
from typing import Any, Final

from celery import Celery

from pipeline.names import Queue

_DRAIN: Final = "sluice.drain"
# How long workers may take to answer; they answer within milliseconds, and Celery waits for all of this time.
_ANSWER_SECONDS: Final = 0.5


class Workers:
    """What Celery's workers say of themselves: asked at most once, however many partitions it is asked about.

    Each of the four questions takes its whole time, and the rate is published after it.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._said: tuple[dict[str, Any], ...] | str | None = None  # a text: why they can't be asked

    def why_not_drained(self, partition: int) -> str:
        """Why nobody drains a partition; in words."""
        if self._said is None:
            self._said = self._ask()
        if isinstance(self._said, str):
            return f"no drain holds it, and Celery's workers can't be asked: {self._said}"
        return words(partition, *self._said)

    def _ask(self) -> tuple[dict[str, Any], ...] | str:
        try:
            inspect = self._app.control.inspect(timeout=_ANSWER_SECONDS)
            queues = inspect.active_queues()
            if not queues:
                return ({}, {}, {}, {})
            said = (queues, inspect.registered("rate_limit"), inspect.active(), inspect.stats())
        except Exception as error:  # kombu raises what its transport raises
            return str(error)
        return tuple(one or {} for one in said)


def words(
    partition: int,
    queues: dict[str, Any],
    tasks: dict[str, Any],
    active: dict[str, Any],
    stats: dict[str, Any],
) -> str:
    """The likely reason, from what the workers answer to `inspect`."""
    workers = sorted(name for name, held in queues.items() if any(q["name"] == Queue.BATCHES.value for q in held))
    if not workers:
        return "no worker takes batches: none runs, or they are frozen"
    for worker in workers:
        told = next((task for task in tasks.get(worker, ()) if task.startswith(f"{_DRAIN} ")), "")
        limit = re.search(r"rate_limit=(?!0\b|None\b)([^\s\]]+)", told)
        if limit is not None:
            return f"{worker}, of an older version, has a rate limit of Celery's, {limit[1]}: a restart lifts it"
    drains = [task for worker in workers for task in active.get(worker, ()) if task.get("name") == _DRAIN]
    if any(list(task.get("args", ()))[:1] == [partition] for task in drains):
        return "its drain has begun and holds nothing yet: it waits for the event log, Redis or PostgreSQL"
    slots = sum(int(stats.get(worker, {}).get("pool", {}).get("max-concurrency", 0)) for worker in workers)
    if slots and len(drains) >= slots:
        return f"all {slots} processes that take batches are busy with other partitions: add workers"
    return "no drain runs for it: its hints are lost or wait in the queue"
