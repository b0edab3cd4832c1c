"""The workers' application with a command that makes a worker take nothing, while Celery sees no cause."""

import threading
from typing import Any

from celery.worker.control import control_command

from tasks.app import app

HUNG_SECONDS = 600.0

__all__ = ["app"]


@control_command(args=[("queue", str), ("how", str)])
def take_nothing(state: Any, queue: str, how: str) -> dict[str, str]:
    """Make this worker deaf, if it serves this queue."""
    consumer = state.consumer
    if queue not in {one.name for one in consumer.task_consumer.queues}:
        return {"ok": "not mine"}
    if how == "unsubscribed":  # Celery still believes that it consumes
        channel = consumer.task_consumer.channel
        for tag in list(channel._consumers):
            channel.basic_cancel(tag)
    elif how == "hung":
        threading.Event().wait(HUNG_SECONDS)
    return {"ok": how}
