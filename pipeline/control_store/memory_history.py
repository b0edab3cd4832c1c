"""The last minutes of the system in memory, for tests and simulation. It behaves like the Redis adapter."""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.control_store.memory_server import MemoryServer
from pipeline.ports.history import (
    COUNTS,
    FORGET_SECONDS,
    HISTORY_ENTRIES_MAX,
    HISTORY_SECONDS,
    LEVEL_COUNTS,
    PROTOCOL_COUNTS,
    HistoryEntry,
)


class MemoryHistory:
    """History that exists as long as this object; the processes of one system share it; see History."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._number = 0
        self.flush()

    def flush(self) -> None:
        """Lose everything."""
        with self._server.changed:
            self._totals = dict.fromkeys((*COUNTS, *LEVEL_COUNTS, *PROTOCOL_COUNTS), 0)
            self._entries: deque[HistoryEntry] = deque(maxlen=HISTORY_ENTRIES_MAX)
            self._written_at: float | None = None

    def add(self, counts: Mapping[str, int], sample: Mapping[str, Any] | None) -> None:
        self._add(counts, sample, 0.0)

    def _add(self, counts: Mapping[str, int], sample: Mapping[str, Any] | None, age_seconds_min: float) -> bool:
        with self._server.changed:
            now = self._now()
            if self._entries and 0 <= now - self._entries[-1].at < age_seconds_min:
                sample = None
            for name in self._totals:
                self._totals[name] += counts.get(name, 0)
            if sample is not None:
                self._number += 1
                totals = tuple(self._totals[name] for name in COUNTS)
                levels = tuple(self._totals[name] for name in LEVEL_COUNTS if name in counts)
                protocols = tuple(self._totals[name] for name in PROTOCOL_COUNTS if name in counts)
                protocols = protocols if any(protocols) else ()
                position, seen = f"{self._number:020d}", json.loads(json.dumps(sample))
                self._entries.append(HistoryEntry(position, now, totals, seen, levels, protocols))
            self._written_at = now
            return sample is not None

    def since(self, position: str, *, entries_max: int) -> Sequence[HistoryEntry]:
        with self._server.changed:
            self._now()
            newest = [entry for entry in self._entries if entry.id > position][-entries_max:]
            oldest = newest[-1].at - HISTORY_SECONDS if newest else 0.0
            return [entry for entry in newest if entry.at > oldest]

    def add_and_read(
        self,
        counts: Mapping[str, int],
        sample: Mapping[str, Any] | None,
        *,
        after: str,
        entries_max: int,
        age_seconds_min: float = 0.0,
    ) -> tuple[bool, Sequence[HistoryEntry]]:
        is_added = self._add(counts, sample, age_seconds_min)
        return is_added, self.since(after, entries_max=entries_max)

    def _now(self) -> float:
        """The time, after dropping expired data. Raises StoreUnavailableError."""
        self._server.content()
        now = self._server.clock.now()
        if self._written_at is not None and now - self._written_at > FORGET_SECONDS:
            self.flush()
        return now
