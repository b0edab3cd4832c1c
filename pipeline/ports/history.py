"""The last minutes of the whole system, one entry a second, for display only; no decision depends on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pipeline.names import OTHER_PROTOCOLS, Level, RecordOutcome

HISTORY_SECONDS: Final = 900.0  # how far back a reader can look
HISTORY_ENTRIES_MAX: Final = 900  # number of entries kept: one a second
FORGET_SECONDS: Final = 1800.0  # after the last entry, all entries expire

COUNTS: Final = (
    "admitted",  # events acknowledged with 202
    "refused",  # events refused with 429 or 503; a body that was refused unread counts as one
    "accepted",  # responses with 202
    "limited",  # responses with 429
    "unavailable",  # responses with 503
    "invalid",  # responses with 4xx except 429
    "failed",  # all other responses
)


# Events by level, where ADMISSION_LEVELS is on. They are not part of COUNTS, since readers of an earlier version expect
# exactly the counts above.
LEVEL_COUNTS: Final = (
    *(f"{level.label} accepted" for level in Level),
    *(f"{level.label} refused" for level in Level),
)

# Records by protocol, which are not part of COUNTS for the same reason. Sluice's own has the rest of the counts above.
PROTOCOL_COUNTS: Final = tuple(f"{name.value} {outcome.value}" for name in OTHER_PROTOCOLS for outcome in RecordOutcome)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One second of the system. `counts` are totals over all ingest processes, in the order of COUNTS: they only grow,
    and start at 0 after a flush. `sample` is a JSON object: the view of the process that wrote the entry. `levels` are
    totals too, in the order of LEVEL_COUNTS; empty if levels are off in that process. `protocols` are totals in the
    order of PROTOCOL_COUNTS; empty if no process has used another protocol."""

    id: str  # position; opaque, ordered
    at: float  # seconds since the epoch, by the store's clock: it goes back if that clock is set back
    counts: tuple[int, ...]
    sample: dict[str, Any]
    levels: tuple[int, ...] = ()
    protocols: tuple[int, ...] = ()


class History(Protocol):
    """A bounded history that a flush may lose. Every method raises StoreUnavailableError."""

    def add(self, counts: Mapping[str, int], sample: Mapping[str, Any] | None) -> None:
        """Add the counts of one process since its last call. With a sample, also add an entry with the new totals.

        `counts` has names of COUNTS, all names of LEVEL_COUNTS or none, and all names of PROTOCOL_COUNTS or none.

        Also raises StoreUnavailableError if the server is at its memory limit: history writes are refused first.
        """

    def since(self, position: str, *, entries_max: int) -> Sequence[HistoryEntry]:
        """The newest entries after `position` ("" for all), oldest first, at most HISTORY_SECONDS before the newest."""

    def add_and_read(
        self,
        counts: Mapping[str, int],
        sample: Mapping[str, Any] | None,
        *,
        after: str,
        entries_max: int,
        age_seconds_min: float = 0.0,
    ) -> tuple[bool, Sequence[HistoryEntry]]:
        """`add`, and then `since` the position `after`, in one round trip.

        The entry is not added if the newest one is younger than `age_seconds_min`: another process has written it.
        Returns whether an entry was added.
        """
