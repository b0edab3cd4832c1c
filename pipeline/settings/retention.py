"""Retention: how long rows stay in PostgreSQL."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.settings.field import setting


@dataclass(frozen=True, kw_only=True)
class RetentionSettings:
    """When events and dead letters are deleted."""

    retention_days: int = setting(
        0,
        "Events are deleted this many days after PostgreSQL stored them; 0: they are kept for ever. A repeat of a "
        "deleted event is stored again, unless EVENTS_BY_DAY",
        unit="days",
        low=0,
        high=36_500,
        when="the table must not grow for ever. Keep it above the longest time after which a client still repeats an "
        "event; see docs/retention.md",
    )
    events_by_day: bool = setting(
        False,
        "Partition log_events by day: RETENTION_DAYS then drops whole days, and ids stay when their events go. Set it, "
        "and run `python -m pipeline migrate`. There is no way back",
        when="so many events expire that their deletion is too slow, or the disk must get their room back; see "
        "docs/retention.md",
    )
    dedup_days: int = setting(
        0,
        "With EVENTS_BY_DAY: an eventId is kept this many days, so that a repeat is not stored again; 0: for ever. Not "
        "below RETENTION_DAYS",
        unit="days",
        low=0,
        high=36_500,
        when="the table event_ids must not grow for ever",
    )
    dead_letter_days: int = setting(
        0,
        "Dead letters are deleted this many days after they were written, also those that were never stored; 0: they "
        "are kept for ever",
        unit="days",
        low=0,
        high=36_500,
        when="nobody will look at older ones, or their content must not be kept for longer",
    )
    retention_seconds: float = setting(
        10.0,
        "Period in which expired rows are deleted, in small steps for up to a quarter of it",
        low=0.1,
        high=20,  # a tick reports its problem, which is shown for 30 s; and a task that runs for 30 s is killed
        when="rarely",
    )
    retention_rows_max: int = setting(
        2000,
        "Most rows that one step deletes; one transaction",
        unit="rows",
        low=1,
        high=100_000,
        when="lower if a step takes PostgreSQL longer than half a second",
    )


def retention_problems(settings: RetentionSettings) -> Iterator[str]:
    """DEDUP_DAYS where it would do nothing, or where an event would be stored twice."""
    days = settings.dedup_days
    if not days:
        return
    if not settings.events_by_day:
        yield f"DEDUP_DAYS={days} needs EVENTS_BY_DAY=yes: in one table an id is kept as long as its event"
    elif not settings.retention_days:
        yield f"DEDUP_DAYS={days} needs RETENTION_DAYS: an event that is kept for ever needs its id for ever"
    elif days < settings.retention_days:
        yield (
            f"DEDUP_DAYS={days} is below RETENTION_DAYS={settings.retention_days}: an id is kept as long as its event"
        )
