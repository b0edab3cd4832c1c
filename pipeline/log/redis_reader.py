"""Reads the streams of an event log: XREAD, with a look at the log's id."""

from collections.abc import Mapping
from typing import Any, Final

from redis.exceptions import RedisError

from pipeline.errors import LogGapError, LogRestartedError
from pipeline.log.redis_connection import OtherServerError, RedisConnection, Wire
from pipeline.log.redis_keys import RedisLogKeys
from pipeline.ports.log import LogBatch

WAIT_GRACE_SECONDS: Final = 1.0  # how late the response to a blocking read may be
# A shorter wait than this ends in time: a run is due then. A longer one is of an idle drain, and may end with the next
# tick of Redis' timer.
EXACT_BELOW_SECONDS: Final = 1.0


class RedisReader:
    """The reading side of a RedisStreamsLog. It has its own connection, since a blocking read has its own time-out."""

    def __init__(self, keys: RedisLogKeys, connection: RedisConnection) -> None:
        self._keys = keys
        self._connection = connection

    def expect(self, incarnation: str) -> None:
        """Read from this server process only: `read` and `ready` raise LogRestartedError if it is another one."""
        self._connection.expect(incarnation)

    def read(self, log_id: str, partition: int, offset: int, records_max: int, wait_seconds: float) -> LogBatch | None:
        """EventLog.read, of the log `log_id`."""
        reply = self._read(log_id, {partition: offset}, records_max, wait_seconds)
        return _batch(reply[0][1]) if reply else None

    def ready(self, log_id: str, offsets: Mapping[int, int], wait_seconds: float) -> set[int]:
        """EventLog.ready, of the log `log_id`; `offsets` has at least one."""
        by_stream = {self._keys.stream(partition).encode(): partition for partition in offsets}
        return {by_stream[stream] for stream, _ in self._read(log_id, offsets, 1, wait_seconds) or ()}

    def close(self) -> None:
        """Disconnect; idempotent."""
        self._connection.close()

    def _read(self, log_id: str, offsets: Mapping[int, int], records_max: int, wait_seconds: float) -> Any:
        """The response to XREAD: [[stream, entries], …]; None if there is nothing. Raises as `read` does."""
        try:
            with self._connection.connected() as wire:
                try:
                    return self._exchange(wire, log_id, offsets, records_max, wait_seconds)
                except BaseException:
                    self._connection.close()  # a response may still arrive
                    raise
        except OtherServerError as error:
            raise LogRestartedError(f"the event log's {error}") from error
        except (RedisError, OSError) as error:
            raise self._connection.unavailable(error) from error

    def _exchange(
        self, wire: Wire, log_id: str, offsets: Mapping[int, int], records_max: int, wait_seconds: float
    ) -> Any:
        """The response to XREAD. It also reads the log's id, because a flush changes the log without a restart."""
        wait_ms = int(wait_seconds * 1000)
        block = ("BLOCK", wait_ms) if wait_ms > 0 else ()  # BLOCK 0 would wait without limit
        places = [*map(self._keys.stream, offsets), *(f"0-{offset}" for offset in offsets.values())]
        wire.send_all(("GET", self._keys.log_id), ("XREAD", "COUNT", records_max, *block, "STREAMS", *places))
        if wire.receive() != log_id.encode():
            raise LogRestartedError("the event log (Redis) was emptied: this is another log")
        if 0 < wait_ms < EXACT_BELOW_SECONDS * 1000:
            return wire.receive_in_time(wait_seconds, grace_seconds=WAIT_GRACE_SECONDS)
        return wire.receive(seconds_max=wait_seconds + WAIT_GRACE_SECONDS)


def _batch(entries: list[Any]) -> LogBatch:
    """The consecutive entries at the beginning of the response: [[id, [name, value, …]], …]."""
    first, last = _sequence(entries[0][0]), _sequence(entries[-1][0])
    if last - first != len(entries) - 1:
        # A hole: the entries after it form their own batch.
        entries = [entry for i, entry in enumerate(entries) if _sequence(entry[0]) == first + i]
    marks = entries[0][1]  # v, value; if the log declares a hole before it: g, the end before the hole
    gap_from = int(marks[3]) if len(marks) > 2 else None
    return LogBatch(first - 1, [fields[1] for _, fields in entries], gap_from)


def _sequence(entry_id: bytes) -> int:
    """The sequence number of an entry's id. Raises LogGapError if this adapter did not write the entry."""
    milliseconds, _, sequence = entry_id.partition(b"-")
    if milliseconds != b"0":
        raise LogGapError(f"the stream holds an entry {entry_id!r} that Sluice did not write")
    return int(sequence)
