"""The names of an event log's keys in Redis."""

from pipeline.names import KEY_LOG_COMMITTED, KEY_LOG_ENDS, KEY_LOG_ID, KEY_LOG_STREAM


class RedisLogKeys:
    """The keys of one log: its id, its hashes, and the stream of each partition."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.log_id = prefix + KEY_LOG_ID
        self.committed = prefix + KEY_LOG_COMMITTED
        self.ends = prefix + KEY_LOG_ENDS

    def streams(self, partitions: int) -> list[str]:
        """Those of all partitions."""
        return [self.stream(partition) for partition in range(partitions)]

    def stream(self, partition: int) -> str:
        """That of one partition."""
        return f"{self._prefix}{KEY_LOG_STREAM}:{partition}"
