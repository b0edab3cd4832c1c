"""The event log in memory, for unit tests and simulation, with ways to make it fail."""

import contextlib
import threading
import uuid
from collections.abc import Mapping, Sequence

from pipeline.errors import (
    LogFullError,
    LogIndeterminateError,
    LogRestartedError,
    LogUnavailableError,
    RecoverableError,
)
from pipeline.ports.log import FloorSource, LogBatch, LogIdentity, PartitionPosition


class _Partition:
    """Entries by offset. Holes exist only after a restart without the tail."""

    def __init__(self) -> None:
        self.entries: dict[int, bytes] = {}
        self.gaps: dict[int, int] = {}  # offset of the first entry behind a declared hole -> where the hole begins
        self.begin = 0
        self.end = 0
        self.committed: int | None = None


class MemoryLog:
    """EventLog in one process, thread-safe. It behaves like Redis Streams: it can come back without its tail.

    Nothing is ever dropped by `commit`; see `trim`. The methods from `stop` on are the ways to make it fail; each
    says which real fault it stands for.
    """

    def __init__(self, partitions: int = 4, floors: FloorSource | None = None) -> None:
        self._changed = threading.Condition()
        self._partitions = [_Partition() for _ in range(partitions)]
        self._floors = floors
        self._log_id = uuid.uuid4().hex
        self._incarnation = uuid.uuid4().hex
        self._known: LogIdentity | None = None
        self._fenced: str | None = None
        self._pending_floors: dict[int, int] = {}
        self._is_down = False
        self._loses_answers = False
        self._entries_max: int | None = None

    # --- The port ---------------------------------------------------------------------------------------------------

    def identity(self) -> LogIdentity:
        with self._changed:
            self._must_be_up()
            with contextlib.suppress(LogUnavailableError):  # tried again by the next append
                self._fence()
            self._known = LogIdentity(self._log_id, self._incarnation, len(self._partitions))
            return self._known

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        with self._changed:
            self._must_be_up()
            self._fence()
            if self._entries_max is not None and self._held() + len(entries) > self._entries_max:
                raise LogFullError
            if not all(0 <= number < len(self._partitions) for number, _ in entries):
                raise LogUnavailableError(f"the event log has only {len(self._partitions)} partitions")
            for number, value in entries:
                partition = self._partitions[number]
                floor = self._pending_floors.pop(number, 0)
                if partition.end < floor:
                    partition.gaps[floor] = partition.end
                    if not partition.entries:
                        partition.begin = floor
                    partition.end = floor
                partition.entries[partition.end] = value
                partition.end += 1
            self._changed.notify_all()
            if self._loses_answers:
                raise LogIndeterminateError

    def read(self, partition: int, offset: int, *, records_max: int, wait_seconds: float) -> LogBatch | None:
        with self._changed:
            self._must_be_up()
            self._must_be_known()
            held = self._partitions[partition]
            self._changed.wait_for(lambda: held.end > offset or self._is_down, wait_seconds)
            self._must_be_up()
            self._must_be_known()
            held = self._partitions[partition]
            first = next((at for at in range(max(offset, held.begin), held.end) if at in held.entries), None)
            if first is None:
                return None
            values = []
            for at in range(first, min(first + records_max, held.end)):
                if at not in held.entries:
                    break
                values.append(held.entries[at])
            return LogBatch(first, values, held.gaps.get(first))

    def commit(self, partition: int, offset: int) -> None:
        with self._changed:
            held = self._partitions[partition]
            if not self._is_down and offset <= held.end:
                held.committed = max(offset, held.committed or 0)

    def positions(self) -> list[PartitionPosition]:
        with self._changed:
            self._must_be_up()
            if self._known is None:
                self.identity()
            if self._known is not None and self._known.log_id != self._log_id:
                raise LogUnavailableError("the event log is another one than when it was last asked who it is")
            return [
                PartitionPosition(number, held.begin, held.end, held.committed)
                for number, held in enumerate(self._partitions)
            ]

    def close(self) -> None:
        pass

    # --- Ways to make it fail ---------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Be away (killed or frozen) until `start`."""
        with self._changed:
            self._is_down = True
            self._changed.notify_all()

    def start(self) -> None:
        """Be back, as the same incarnation."""
        with self._changed:
            self._is_down = False

    def lose_answers(self, loses: bool = True) -> None:
        """Store what is appended, but never confirm it (a time-out)."""
        with self._changed:
            self._loses_answers = loses

    def limit(self, entries_max: int | None) -> None:
        """Be full once so many entries are held; None lifts the limit (Redis at maxmemory)."""
        with self._changed:
            self._entries_max = entries_max

    def restart(self, keep: Mapping[int, int] | None = None) -> None:
        """Come back as another incarnation; partitions in `keep` without what lies from that offset on."""
        with self._changed:
            self._incarnation = uuid.uuid4().hex
            self._is_down = False
            for number, end in (keep or {}).items():
                held = self._partitions[number]
                held.entries = {at: value for at, value in held.entries.items() if at < end}
                held.gaps = {at: start for at, start in held.gaps.items() if at < end}
                held.end = min(held.end, end)
                held.begin = min(held.begin, held.end)
            self._changed.notify_all()

    def flush(self) -> None:
        """Become another, empty log (FLUSHALL, a topic made anew)."""
        with self._changed:
            self._partitions = [_Partition() for _ in self._partitions]
            self._log_id = uuid.uuid4().hex
            self._changed.notify_all()

    def trim(self, partition: int, offset: int) -> None:
        """Drop what lies below `offset`, whether it was read or not (XTRIM by hand, retention)."""
        with self._changed:
            held = self._partitions[partition]
            held.begin = max(held.begin, min(offset, held.end))
            held.entries = {at: value for at, value in held.entries.items() if at >= held.begin}

    # --- Inside, under the lock -------------------------------------------------------------------------------------

    def _held(self) -> int:
        return sum(len(held.entries) for held in self._partitions)

    def _must_be_up(self) -> None:
        if self._is_down:
            raise LogUnavailableError

    def _must_be_known(self) -> None:
        if self._known is None:
            self.identity()
        elif (self._known.log_id, self._known.incarnation) != (self._log_id, self._incarnation):
            raise LogRestartedError

    def _fence(self) -> None:
        """Learn the floors of an incarnation that was not fenced yet."""
        fence = f"{self._log_id}/{self._incarnation}"
        if self._fenced == fence:
            return
        if self._floors is not None:
            try:
                self._pending_floors = dict(self._floors(self._log_id, self._incarnation))
            except RecoverableError as error:
                raise LogUnavailableError(f"nothing can be appended to the event log now: {error}") from error
        self._fenced = fence
