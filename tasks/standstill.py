"""Why no drain runs for a partition that has lag, as far as Celery's workers say."""

import re
from typing import Any, Final

from celery import Celery

from pipeline.names import Queue

_DRAIN: Final = "sluice.drain"
# How long workers may take to answer; they answer within milliseconds, and Celery waits for all of this time.
_ANSWER_SECONDS: Final = 0.5


def why_not_drained(app: Celery, partition: int) -> str:
    """Ask the workers why nobody drains a partition; in words."""
    try:
        inspect = app.control.inspect(timeout=_ANSWER_SECONDS)
        queues, tasks, active = inspect.active_queues(), inspect.registered("rate_limit"), inspect.active()
        children = inspect.stats()
    except Exception as error:  # kombu raises what its transport raises
        return f"no drain holds it, and Celery's workers can't be asked: {error}"
    return words(partition, queues or {}, tasks or {}, active or {}, children or {})


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
            return (
                f"{worker} has a rate limit of Celery's, {limit[1]}: "
                f"`celery -A tasks.app control rate_limit {_DRAIN} 0` lifts it"
            )
    drains = [task for worker in workers for task in active.get(worker, ()) if task.get("name") == _DRAIN]
    if any(list(task.get("args", ()))[:1] == [partition] for task in drains):
        return "its drain has begun and holds nothing yet: it waits for the event log, Redis or PostgreSQL"
    slots = sum(int(stats.get(worker, {}).get("pool", {}).get("max-concurrency", 0)) for worker in workers)
    if slots and len(drains) >= slots:
        return f"all {slots} processes that take batches are busy with other partitions: add workers"
    return "no drain runs for it: its hints are lost or wait in the queue"
