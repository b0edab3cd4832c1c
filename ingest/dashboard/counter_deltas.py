"""The growth of this process' counters since the last read, with the names of the history."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ingest.errors import status_of
from pipeline.metrics import IngestMetrics, LevelCounts, answers_by_status
from pipeline.names import Level
from pipeline.ports.history import COUNTS, LEVEL_COUNTS, PROTOCOL_COUNTS

_NAMES: Final = {200: "accepted", 202: "accepted", 204: "accepted", 429: "limited", 503: "unavailable"}


@dataclass(slots=True)
class CounterDeltas:
    """Differences of this process' counters. A body that was rejected unread counts as one rejected event.

    `refused_beyond_first` counts the events of rejected bodies that were read, without the first event of each.
    """

    metrics: IngestMetrics
    refused_beyond_first: Callable[[], int]
    levels: LevelCounts | None = None  # None: ADMISSION_LEVELS is off
    _last: dict[str, int] = field(default_factory=dict)

    def take(self) -> dict[str, int]:
        """The growth since the last call."""
        totals = self._totals()
        news = {name: total - self._last.get(name, 0) for name, total in totals.items()}
        self._last = totals
        return news

    def _totals(self) -> dict[str, int]:
        totals = dict.fromkeys(COUNTS, 0)
        for status, count in answers_by_status(self.metrics, status_of).items():
            totals[_NAMES.get(status) or ("invalid" if 400 <= status < 500 else "failed")] += int(count)
        totals["admitted"] = self.metrics.accepted.value
        totals["refused"] = totals["limited"] + totals["unavailable"] + self.refused_beyond_first()
        if self.levels is not None:
            levels = self.levels
            counts = (*(levels.accepted[level] for level in Level), *(levels.refused[level] for level in Level))
            totals.update(zip(LEVEL_COUNTS, counts, strict=True))
        totals.update(dict.fromkeys(PROTOCOL_COUNTS, 0))
        for (protocol, outcome), count in self.metrics.protocol_events.counts().items():
            totals[f"{protocol} {outcome}"] = count
        return totals
