"""Celery's queues on the control server: lists of messages."""

from pipeline.control_store.connection import ControlConnection
from pipeline.names import Queue
from pipeline.settings import Settings


class RedisQueues:
    """The messages that wait. It uses its own connection: Celery's may be the one that was just lost."""

    def __init__(self, settings: Settings) -> None:
        self._connection = ControlConnection(settings)

    def waiting(self, queue: Queue) -> int:
        """Messages that no worker has taken yet. Raises StoreUnavailableError."""
        count: int = self._connection.call("LLEN", self._connection.key(queue.value))
        return count

    def messages(self, queue: Queue, most: int) -> list[str]:
        """The same messages as Celery wrote them, the newest first, at most so many. Raises StoreUnavailableError."""
        found: list[str] = self._connection.call("LRANGE", self._connection.key(queue.value), 0, most - 1)
        return found
