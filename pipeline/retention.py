"""One tick of retention: deletes expired events and dead letters in small steps, for a share of its period.

And records of the event log that were stored long ago, in one step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import SluiceError, in_brief
from pipeline.ports.log_marks import LogMarks
from pipeline.ports.log_trimmer import LogTrimmer
from pipeline.ports.retention import Retention, RetentionFacts
from pipeline.settings import Settings

# A step of deletion and a drain share PostgreSQL. With a lag that is not normal, a tick makes a single step.
_TIME_SHARE: Final = 0.25
# Nothing is deleted while PostgreSQL's clock and this machine's differ by more: one of them is wrong, and a clock that
# is years ahead would make everything expire.
CLOCK_SECONDS_MAX: Final = 3600.0
_DAY_SECONDS: Final = 86_400.0
_HOUR_SECONDS: Final = 3600.0
_MARKS: Final = 24  # within LOG_KEEP_HOURS: records are kept for up to a 24th of it longer
_NAMED_MAX: Final = 5  # partitions that a problem names
# An oldest event that is expired for longer means that deletion is slower than storing, or does not run.
OVERDUE_SECONDS_MAX: Final = _DAY_SECONDS


@dataclass(slots=True)
class Expired:
    """The result of one tick: the counts of deleted rows; if it deleted none or can't keep up, the reason."""

    events: int = 0
    letters: int = 0
    letters_never_stored: int = 0  # of letters
    problem: str | None = None


@dataclass(slots=True)
class Trimmed:
    """What one tick deleted from the event log, and why it did not delete all that expired, in words."""

    records: int = 0
    problem: str | None = None


class LogRetention:
    """Deletes records of the event log LOG_KEEP_HOURS after they were stored.

    It remembers what was deleted: a log in which nothing new expired is not asked.
    """

    def __init__(self, settings: Settings, marks: LogMarks, trimmer: LogTrimmer, clock: Clock) -> None:
        self._keep_seconds = settings.log_keep_hours * _HOUR_SECONDS
        self._marks = marks
        self._trimmer = trimmer
        self._clock = clock
        self._asked: dict[tuple[str, int], int] = {}  # by log and partition

    def tick(self, log_id: str, is_paused: Callable[[int], bool]) -> Trimmed:
        """Make a mark if it is time, and delete what expired, except of paused partitions.

        Raises the errors of LogMarks and LogTrimmer.
        """
        keep = self._keep_seconds
        self._marks.mark(log_id, spacing_seconds=keep / _MARKS, keep_seconds=keep)
        expired, now = self._marks.expired(log_id, keep_seconds=keep)
        if problem := _clock_problem(now, self._clock.now()):
            return Trimmed(problem=problem)
        wanted = [
            one
            for one in expired
            if not is_paused(one.partition) and one.below > self._asked.get((log_id, one.partition), 0)
        ]
        if not wanted:
            return Trimmed()
        done = self._trimmer.trim(log_id, wanted)
        self._asked |= {(log_id, one.partition): one.below for one in wanted if one.partition not in done.left}
        return Trimmed(sum(done.freed.values()), _left_problem(done.left))


def _left_problem(left: Mapping[int, str]) -> str | None:
    if not left:
        return None
    named = [f"{partition} ({why})" for partition, why in sorted(left.items())][:_NAMED_MAX]
    more = " …" if len(left) > len(named) else ""
    noun = "partition" if len(left) == 1 else "partitions"
    return f"the event log is not trimmed in {len(left)} {noun}: {', '.join(named)}{more}"


def _clock_problem(sink_time: float, now: float) -> str | None:
    difference = abs(sink_time - now)
    if difference <= CLOCK_SECONDS_MAX:
        return None
    return f"PostgreSQL's clock differs by {difference:,.0f} s from that of the control worker: one of them is wrong"


def has_rows(settings: Settings) -> bool:
    """Whether events or dead letters expire."""
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
    return _clock_problem(facts.time, now)


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
