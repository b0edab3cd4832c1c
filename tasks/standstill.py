"""The reason why no drain runs for a partition with lag, according to Celery's workers."""

import re
from typing import Any, Final

from celery import Celery

from pipeline.names import DRAIN_TASK, Queue, SinkName
from pipeline.text import some_of

# Time for workers to answer; they answer within milliseconds, and Celery always waits this whole time.
_ANSWER_SECONDS: Final = 0.5


class Workers:
    """The state that Celery's workers report: queried at most once, for any number of partitions.

    Each of the four queries takes its whole time, and the rate is published after them.
    """

    def __init__(self, app: Celery, sink: SinkName, drains_max: int) -> None:
        self._app = app
        self._sink = sink
        self._drains_max = drains_max
        self._said: tuple[dict[str, Any], ...] | str | None = None  # a string: why the query failed

    def why_not_drained(self, partition: int) -> str:
        """The reason why no worker drains a partition, as text."""
        if self._said is None:
            self._said = self._ask()
        if isinstance(self._said, str):
            return f"no drain holds it, and Celery's workers can't be asked: {self._said}"
        return words(partition, *self._said, sink=self._sink, drains_max=self._drains_max)

    def _ask(self) -> tuple[dict[str, Any], ...] | str:
        try:
            inspect = self._app.control.inspect(timeout=_ANSWER_SECONDS)
            queues = inspect.active_queues()
            if not queues:  # not even the worker that runs this answers
                return f"none of them answered within {_ANSWER_SECONDS:g} s"
            said = (queues, inspect.registered("rate_limit"), inspect.active(), inspect.stats())
        except Exception as error:  # kombu raises the errors of its transport
            return str(error)
        return tuple(one or {} for one in said)


def words(
    partition: int,
    queues: dict[str, Any],
    tasks: dict[str, Any],
    active: dict[str, Any],
    stats: dict[str, Any],
    *,
    sink: SinkName,
    drains_max: int,
) -> str:
    """The likely reason, from the workers' answers to `inspect`."""
    workers = sorted(name for name, held in queues.items() if any(q["name"] == Queue.BATCHES.value for q in held))
    if not workers:
        return "no worker takes batches: none runs, or they are frozen"
    for worker in workers:
        told = next((task for task in tasks.get(worker, ()) if task.startswith(f"{DRAIN_TASK} ")), "")
        limit = re.search(r"rate_limit=(?!0\b|None\b)([^\s\]]+)", told)
        if limit is not None:
            return f"{worker}, of an older version, has a rate limit of Celery's, {limit[1]}: a restart lifts it"
    drains = [task for worker in workers for task in active.get(worker, ()) if task.get("name") == DRAIN_TASK]
    if any(_is_in_share(partition, list(task.get("args", ()))[:1], drains_max) for task in drains):
        return f"its drain has begun and holds nothing yet: it waits for the event log, Redis or {sink}"
    silent = [worker for worker in workers if worker not in active or worker not in stats]
    if silent:
        return (
            f"no drain holds it, and {some_of(silent)} did not say what it does within {_ANSWER_SECONDS:g} s: it is "
            "busy or frozen, or its host has too little CPU time"
        )
    slots = sum(int(stats[worker].get("pool", {}).get("max-concurrency", 0)) for worker in workers)
    if slots and len(drains) >= slots:
        return f"all {slots} processes that take batches are busy with other partitions: add workers"
    return "no drain runs for it: its hints are lost or wait in the queue"


def _is_in_share(partition: int, arguments: list[Any], drains_max: int) -> bool:
    """Whether a drain with these arguments drains the partition too; see tasks.hints.shares."""
    return any(isinstance(one, int) and one % drains_max == partition % drains_max for one in arguments)
