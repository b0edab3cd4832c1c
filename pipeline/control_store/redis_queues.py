"""Celery's queues on the control server: lists whose length can be read."""

from pipeline.control_store.connection import ControlConnection
from pipeline.names import Queue
from pipeline.settings import Settings


class RedisQueues:
    """The number of waiting messages. It uses its own connection: Celery's may be the one that was just lost."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)

    def waiting(self, queue: Queue) -> int:
        """Messages that no worker has taken yet. Raises StoreUnavailableError."""
        count: int = self._connection.call("LLEN", self._connection.key(queue.value))
        return count
