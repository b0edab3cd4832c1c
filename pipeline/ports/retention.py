"""Retention: how long stored events and dead letters are kept, and the deletion of those that are older."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RetentionFacts:
    """What the database knows about retention."""

    time: float  # its clock, seconds since the epoch
    event_days: int | None  # as its owner set it; None: events are kept for ever
    letter_days: int | None  # the same for dead letters
    may_delete: bool  # this user may delete what is expired
    has_stored_at: bool  # each event has its time of storing, filled by the database itself
    has_index: bool  # expired events are found by an index
    is_prepared_at_once: bool  # this user may make that index, and the table is small
    oldest_seconds: float | None  # age of the oldest event; None: there is no event, or no index


class Retention(Protocol):
    """Deletes what is expired, in small steps. Not for use by several threads.

    The owner of the tables set how long rows are kept (`Schema.set_retention`), and no call deletes anything younger.
    Every method raises SinkUnavailableError, SinkContentionError.
    """

    def facts(self) -> RetentionFacts:
        """What the database knows about retention."""

    def delete_events(self, *, rows_max: int, since: datetime | None) -> tuple[int, datetime | None]:
        """Delete up to `rows_max` of the oldest expired events, in one transaction.

        Returns their number, and what the next call may pass as `since`: it then need not look at older ones again.
        """

    def delete_letters(self, *, rows_max: int) -> tuple[int, int]:
        """Delete the expired ones among the `rows_max` oldest dead letters, in one transaction.

        Returns how many, and how many of them were never stored.
        """
