"""The event log in memory, for unit tests and simulation. It can simulate failures."""

import threading
import uuid
from collections.abc import Mapping, Sequence

from pipeline.errors import (
    LogFullError,
    LogIndeterminateError,
    LogPartialError,
    LogRestartedError,
    LogUnavailableError,
    RecoverableError,
)
from pipeline.ports.log import LogBatch, LogIdentity, LowestOffsetsSource, PartitionPosition


class _Partition:
    """Entries by offset. Holes exist only after a restart without the tail."""

    def __init__(self) -> None:
        self.entries: dict[int, bytes] = {}
        self.gaps: dict[int, int] = {}  # offset of the first entry after a declared hole -> where the hole begins
        self.begin = 0
        self.end = 0
        self.committed: int | None = None
        self.lowest = 0  # no offset below it is used again


class MemoryLogServer:
    """The state that all adapters of one log in memory share, and the methods that make it fail.

    Each of these methods names the real fault that it simulates.
    """

    def __init__(self, partitions: int = 4) -> None:
        self.changed = threading.Condition()
        self.partitions = [_Partition() for _ in range(partitions)]
        self.log_id = uuid.uuid4().hex
        self.incarnation = uuid.uuid4().hex
        self.fenced_incarnation: str | None = None  # the lowest offsets of this incarnation are known
        self.entries_max: int | None = None
        self.is_down = False
        self.loses_answers = False
        self.without_leader: set[int] = set()

    @property
    def identity(self) -> LogIdentity:
        """The current identity of the log."""
        return LogIdentity(self.log_id, self.incarnation, len(self.partitions))

    def stop(self) -> None:
        """Stop answering (killed or frozen) until `start`."""
        with self.changed:
            self.is_down = True
            self.changed.notify_all()

    def start(self) -> None:
        """Answer again, as the same incarnation."""
        with self.changed:
            self.is_down = False

    def lose_leader(self, *partitions: int) -> None:
        """Remove the leader of these partitions, and of no others (Kafka brokers that are down)."""
        with self.changed:
            self.without_leader = set(partitions)
            self.changed.notify_all()

    def lose_answers(self, loses: bool = True) -> None:
        """Store appended entries, but never confirm them (a time-out)."""
        with self.changed:
            self.loses_answers = loses

    def limit(self, entries_max: int | None) -> None:
        """Be full at this number of entries; None removes the limit (Redis at maxmemory)."""
        with self.changed:
            self.entries_max = entries_max

    def restart(self, keep: Mapping[int, int] | None = None) -> None:
        """Come back as another incarnation; partitions in `keep` lose all entries from that offset on."""
        with self.changed:
            self.incarnation = uuid.uuid4().hex
            self.is_down = False
            for number, end in (keep or {}).items():
                held = self.partitions[number]
                held.entries = {at: value for at, value in held.entries.items() if at < end}
                held.gaps = {at: start for at, start in held.gaps.items() if at < end}
                held.end = min(held.end, end)
                held.begin = min(held.begin, held.end)
            self.changed.notify_all()

    def flush(self) -> None:
        """Become another, empty log (FLUSHALL, a recreated topic)."""
        with self.changed:
            self.partitions = [_Partition() for _ in self.partitions]
            self.log_id = uuid.uuid4().hex
            self.changed.notify_all()

    def add_partitions(self, count: int) -> None:
        """Add partitions (a Kafka topic that was altered)."""
        with self.changed:
            self.partitions += [_Partition() for _ in range(count)]

    def trim(self, partition: int, offset: int) -> None:
        """Drop the entries below `offset`, whether they were read or not (manual XTRIM, retention)."""
        with self.changed:
            held = self.partitions[partition]
            held.begin = max(held.begin, min(offset, held.end))
            held.entries = {at: value for at, value in held.entries.items() if at >= held.begin}


class MemoryLog:
    """EventLog in one process. It behaves like Redis Streams: it can come back without its tail.

    Adapters with the same server are views of one log, like those of different processes. `commit` never drops
    anything; see `MemoryLogServer.trim`.
    """

    def __init__(
        self,
        partitions: int = 4,
        lowest_offsets: LowestOffsetsSource | None = None,
        *,
        server: MemoryLogServer | None = None,
    ) -> None:
        self.server = server or MemoryLogServer(partitions)
        self._lowest_offsets = lowest_offsets
        self._known: LogIdentity | None = None
        self._fenced: LogIdentity | None = None

    def identity(self) -> LogIdentity:
        with self.server.changed:
            self._must_be_up()
            self._known = self.server.identity
            return self._known

    def prepare(self) -> None:
        with self.server.changed:
            self._must_be_up()
            self._fence()

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        server = self.server
        with server.changed:
            self._must_be_up()
            self._fence()
            if not all(0 <= number < len(server.partitions) for number, _ in entries):
                raise LogUnavailableError(f"the event log has only {len(server.partitions)} partitions")
            held = sum(len(partition.entries) for partition in server.partitions)
            if server.entries_max is not None and held + len(entries) > server.entries_max:
                raise LogFullError
            for number, value in entries:
                if number in server.without_leader:
                    continue
                partition = server.partitions[number]
                if partition.end < partition.lowest:
                    partition.gaps[partition.lowest] = partition.end
                    if not partition.entries:
                        partition.begin = partition.lowest
                    partition.end = partition.lowest
                partition.entries[partition.end] = value
                partition.end += 1
            server.changed.notify_all()
            if server.loses_answers:
                raise LogIndeterminateError
            refused = {number for number, _ in entries} & server.without_leader
            if refused:
                raise LogPartialError({number: LogUnavailableError(_without_leader(number)) for number in refused})

    def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
        server = self.server

        def is_due() -> bool:
            return server.is_down or self._known != server.identity or server.partitions[partition].end > offset

        with server.changed:
            self._must_be_up()
            if self._known is None:
                self.identity()
            server.changed.wait_for(is_due, wait_seconds)
            self._must_be_up()
            if self._known != server.identity:
                raise LogRestartedError
            if partition in server.without_leader:
                raise LogUnavailableError(_without_leader(partition))
            held = server.partitions[partition]
            first = next((at for at in range(max(offset, held.begin), held.end) if at in held.entries), None)
            if first is None:
                return None
            values = []
            for at in range(first, min(first + records_max, held.end)):
                if at not in held.entries:
                    break
                values.append(held.entries[at])
            return LogBatch(first, values, held.gaps.get(first))

    def ready(self, offsets: Mapping[int, int], *, wait_seconds: float) -> set[int]:
        server = self.server

        def found() -> set[int]:
            return {one for one, offset in offsets.items() if server.partitions[one].end > offset}

        with server.changed:
            self._must_be_up()
            if self._known is None:
                self.identity()
            server.changed.wait_for(
                lambda: server.is_down or self._known != server.identity or found() or server.without_leader,
                wait_seconds,
            )
            self._must_be_up()
            if self._known != server.identity:
                raise LogRestartedError
            return found() | (server.without_leader & offsets.keys())

    def commit(self, log_id: str, partition: int, offset: int) -> None:
        with self.server.changed:
            held = self.server.partitions[partition]
            if not self.server.is_down and log_id == self.server.log_id and offset <= held.end:
                held.committed = offset

    def positions(self, log_id: str | None = None) -> list[PartitionPosition]:
        with self.server.changed:
            self._must_be_up()
            log_id = log_id or (self._known or self.identity()).log_id
            if log_id != self.server.log_id:
                raise LogUnavailableError("the event log is not the same log as at the last check")
            is_fenced = self.server.fenced_incarnation == self.server.incarnation
            return [
                PartitionPosition(
                    number, held.begin, held.end, held.committed, max(held.end, held.lowest) if is_fenced else None
                )
                for number, held in enumerate(self.server.partitions)
                if number not in self.server.without_leader
            ]

    def close(self) -> None:
        pass

    def stop(self) -> None:
        """Make the log unavailable; see `server` for more."""
        self.server.stop()

    def start(self) -> None:
        """Make the log available again."""
        self.server.start()

    def _must_be_up(self) -> None:
        if self.server.is_down:
            raise LogUnavailableError

    def _fence(self) -> None:
        """Read the lowest offsets of an incarnation that was not fenced yet."""
        identity = self.server.identity
        if self._fenced == identity:
            return
        if self._lowest_offsets is not None:
            try:
                lowest_offsets = self._lowest_offsets(identity.log_id, identity.incarnation)
            except RecoverableError as error:
                raise LogUnavailableError(f"nothing can be appended to the event log now: {error}") from error
            for number, lowest in lowest_offsets.items():
                self.server.partitions[number].lowest = max(lowest, self.server.partitions[number].lowest)
        self.server.fenced_incarnation = identity.incarnation
        self._fenced = identity


def _without_leader(partition: int) -> str:
    return f"the event log's partition {partition} has no leader now"
