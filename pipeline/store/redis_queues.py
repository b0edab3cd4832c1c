"""Celery's queues on the control server, as lists that can be measured."""

from pipeline.names import Queue
from pipeline.settings import Settings
from pipeline.store.connection import ControlConnection


class RedisQueues:
    """How many messages wait. Over a connection of its own: Celery's may be the one that has just been lost."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)

    def waiting(self, queue: Queue) -> int:
        """Messages that no worker has taken yet. Raises StoreUnavailableError."""
        count: int = self._connection.call("LLEN", self._connection.key(queue.value))
        return count
