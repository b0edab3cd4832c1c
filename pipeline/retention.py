"""One tick of retention: deletes expired events and dead letters in small steps, for a share of its period."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import SluiceError, in_brief
from pipeline.ports.retention import Retention, RetentionFacts
from pipeline.settings import Settings

# A step of deletion and a drain share PostgreSQL. With a lag that is not normal, a tick makes a single step.
_TIME_SHARE: Final = 0.25
# Nothing is deleted while PostgreSQL's clock and this machine's differ by more: one of them is wrong, and a clock that
# is years ahead would make everything expire.
CLOCK_SECONDS_MAX: Final = 3600.0
_DAY_SECONDS: Final = 86_400.0
# An oldest event that is expired for longer means that deletion is slower than storing, or does not run.
OVERDUE_SECONDS_MAX: Final = _DAY_SECONDS


@dataclass(slots=True)
class Expired:
    """The result of one tick: the counts of deleted rows; if it deleted none or can't keep up, the reason."""

    events: int = 0
    letters: int = 0
    letters_never_stored: int = 0  # of letters
    problem: str | None = None


def is_on(settings: Settings) -> bool:
    """Whether anything expires."""
    return bool(settings.retention_days or settings.dead_letter_days)


def may_be_prepared(settings: Settings, facts: RetentionFacts) -> bool:
    """Whether this process can prepare the database by itself, within a moment.

    It changes no number of days that was set: its environment may be older than the last `migrate`.
    """
    wanted = (_days(settings.retention_days), _days(settings.dead_letter_days))
    found = (facts.event_days, facts.letter_days)
    is_indexed = facts.has_index or not settings.retention_days
    is_needed = not is_indexed if found == wanted else found == (None, None)
    return is_needed and facts.is_prepared_at_once


def why_not(settings: Settings, facts: RetentionFacts, now: float) -> str | None:
    """Why nothing may be deleted; None if something may. `now`: this machine's clock."""
    for name, wanted, found in (
        ("RETENTION_DAYS", settings.retention_days, facts.event_days),
        ("DEAD_LETTER_DAYS", settings.dead_letter_days, facts.letter_days),
    ):
        if _days(wanted) != found:
            kept = "keeps all" if found is None else f"keeps {found} days"
            return (
                f"{name} is {wanted}, and the database {kept}: run `python -m pipeline migrate` with this setting, or "
                "restart the control worker with that one"
            )
    if not facts.may_delete:
        return "Sluice's user may not call the functions that delete: run `python -m pipeline migrate`"
    if settings.retention_days:
        if not facts.has_stored_at:
            return "log_events.stored_at is not a timestamptz with a default: no event has a known age"
        if not facts.has_index:
            return "log_events has no index on stored_at: run `python -m pipeline migrate`, which makes it"
    if abs(facts.time - now) > CLOCK_SECONDS_MAX:
        return (
            f"PostgreSQL's clock differs by {abs(facts.time - now):,.0f} s from that of the control worker: one of "
            "them is wrong"
        )
    return None


def overdue_seconds(settings: Settings, facts: RetentionFacts) -> float | None:
    """How long the oldest event is expired; 0 if it is not. None: events do not expire, or its age is unknown."""
    if not settings.retention_days or not facts.has_index:
        return None
    return max(0.0, (facts.oldest_seconds or 0.0) - settings.retention_days * _DAY_SECONDS)


def expire(settings: Settings, retention: Retention, clock: Clock, *, is_behind: bool) -> Expired:
    """Delete for a share of the period; a single step if consumers are behind. A step that fails ends the tick.

    Raises the errors of Retention.facts.
    """
    done = Expired()
    facts = retention.facts()
    ends = clock.monotonic() + _TIME_SHARE * settings.retention_seconds
    rows_max, since = settings.retention_rows_max, None
    try:
        while True:
            # Before each step: a clock may be set while they run.
            done.problem = why_not(settings, facts, clock.now())
            if done.problem is not None:
                return done
            # Letters first: a foreign key that keeps events does not keep them.
            letters, never_stored = retention.delete_letters(rows_max=rows_max) if settings.dead_letter_days else (0, 0)
            done.letters += letters
            done.letters_never_stored += never_stored
            events, since = _delete_events(settings, retention, rows_max, since)
            done.events += events
            is_more = max(events, letters) >= rows_max
            if not is_more or is_behind or clock.monotonic() >= ends:
                break
            facts = retention.facts()
    except SluiceError as error:
        done.problem = f"deletion ended early: {in_brief(error)}"
        return done
    overdue = overdue_seconds(settings, facts)
    if is_more and overdue is not None and overdue > OVERDUE_SECONDS_MAX:
        done.problem = (
            f"the oldest event is {overdue / _DAY_SECONDS:.1f} days over RETENTION_DAYS={settings.retention_days}: "
            "events expire faster than they are deleted, or many expired at once"
        )
    return done


def _delete_events(
    settings: Settings, retention: Retention, rows_max: int, since: datetime | None
) -> tuple[int, datetime | None]:
    return retention.delete_events(rows_max=rows_max, since=since) if settings.retention_days else (0, None)


def _days(setting: int) -> int | None:
    return setting or None
