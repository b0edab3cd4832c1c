"""The last minutes of the whole system, one entry a second, for whoever looks at it; nothing is decided by it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

HISTORY_SECONDS: Final = 900.0  # that a reader can look back
HISTORY_ENTRIES_MAX: Final = 900  # kept: one a second
FORGET_SECONDS: Final = 1800.0  # after the last entry, all of it goes

COUNTS: Final = (
    "admitted",  # events acknowledged with 202
    "refused",  # events refused with 429 or 503; a body that was refused unread counts as one
    "accepted",  # answers: 202
    "limited",  # answers: 429
    "unavailable",  # answers: 503
    "invalid",  # answers: 4xx but 429
    "failed",  # answers: any other
)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One second of the system. `counts` are totals over all ingest processes, by COUNTS: they only grow, and begin
    at 0 after a flush. `sample` is what the process that wrote the entry saw of the system: a JSON object."""

    id: str  # position; opaque, ordered
    at: float  # seconds since the epoch, by the store's clock
    counts: tuple[int, ...]
    sample: dict[str, Any]


class History(Protocol):
    """A bounded memory that a flush may lose. Every method raises StoreUnavailableError."""

    def add(self, counts: Mapping[str, int], sample: Mapping[str, Any] | None) -> None:
        """Add what one process has counted since it last did; with a sample, an entry with the new totals too.

        Raises StoreUnavailableError also where the server is at its memory limit: history gives way first.
        """

    def since(self, position: str, *, entries_max: int) -> Sequence[HistoryEntry]:
        """The newest entries after `position` ("" for all), oldest first, of HISTORY_SECONDS up to the newest."""
