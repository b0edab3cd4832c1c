"""Retention: how long stored events and dead letters are kept, and the deletion of those that are older."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DayFacts:
    """What the database knows about events that are partitioned by day."""

    has_today: bool  # there is a partition for what is stored now
    days_ahead: int  # of the next seven days, how many have a partition
    has_default_rows: bool  # some events are in no day's partition
    # Of an event that is stored, and whose id is not kept: a repeat would be stored again. As of the last minutes.
    unnoted_id: str | None
    has_id_index: bool  # expired ids are found by an index


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
    id_days: int | None = None  # how long ids are kept; None: for ever
    days: DayFacts | None = None  # None: events are in one table


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

    def make_days(self) -> int:
        """Make the partitions of today and of the next days; returns how many were missing and could be made.

        Nothing if events are in one table, or if this user may not do it.
        """

    def drop_day(self) -> tuple[str, int | None] | None:
        """Drop the oldest partition if all of it expired. Returns its name and the number of its events.

        The number is None if it takes long to count them. It gives up soon if other sessions are in its way: raises
        SinkContentionError if another try may find a better moment, and SinkUnavailableError if it would not.
        """

    def delete_ids(self, *, rows_max: int, since: datetime | None) -> tuple[int, datetime | None]:
        """Delete up to `rows_max` of the oldest expired ids, as `delete_events` does with events.

        The id of an event that is still stored never expires.
        """

    def delete_letters(self, *, rows_max: int) -> tuple[int, int]:
        """Delete the expired ones among the `rows_max` oldest dead letters, in one transaction.

        Returns how many, and how many of them were never stored.
        """
