"""One tick of retention: deletes expired events and dead letters in small steps, for a share of its period.

And records of the event log that were stored long ago, in one step.
"""

import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import SinkContentionError, SluiceError, in_brief
from pipeline.ports.log_marks import LogMarks
from pipeline.ports.log_trimmer import LogTrimmer
from pipeline.ports.retention import DayFacts, Retention, RetentionFacts
from pipeline.ports.schema import Schema
from pipeline.settings import Settings

# A step of deletion and a drain share PostgreSQL. With a lag that is not normal, a tick makes a single step.
_TIME_SHARE: Final = 0.25
# Nothing is deleted while PostgreSQL's clock and this machine's differ by more: one of them is wrong, and a clock that
# is years ahead would make everything expire.
CLOCK_SECONDS_MAX: Final = 3600.0
_DAY_SECONDS: Final = 86_400.0
_HOUR_SECONDS: Final = 3600.0
DAYS_AHEAD: Final = 7  # partitions that the database makes ahead: migration 0016
_MARKS: Final = 24  # within LOG_KEEP_HOURS: records are kept for up to a 24th of it longer
_NAMED_MAX: Final = 5  # partitions that a problem names
# Tries in one tick to drop a day, while batches are stored. Each lets more of them end at about the same time. Between
# two tries a batch of a second begins, and does not end; at random, because a fixed time may be wrong each time.
_DROP_TRIES: Final = 4
_DROP_REST_SECONDS: Final = (0.2, 1.0)
# An oldest event that is expired for longer means that deletion is slower than storing, or does not run.
OVERDUE_SECONDS_MAX: Final = _DAY_SECONDS


@dataclass(slots=True)
class Expired:
    """The result of one tick: the counts of deleted rows; if it deleted none or can't keep up, the reason."""

    events: int = 0
    letters: int = 0
    letters_never_stored: int = 0  # of letters
    ids: int = 0
    days: list[str] = field(default_factory=list)  # partitions that were dropped
    days_uncounted: int = 0  # of these, whose events are not in `events`
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
    """Whether events or dead letters expire, or partitions of events are made ahead."""
    return bool(settings.retention_days or settings.dead_letter_days or settings.events_by_day)


def may_be_prepared(settings: Settings, facts: RetentionFacts) -> bool:
    """Whether this process can prepare the database by itself, within a moment.

    It changes no number of days that was set: its environment may be older than the last `migrate`.
    """
    wanted = (_days(settings.retention_days), _days(settings.dead_letter_days), _days(settings.dedup_days))
    found = (facts.event_days, facts.letter_days, facts.id_days)
    is_indexed = facts.has_index or not settings.retention_days
    is_needed = not is_indexed if found == wanted else found == (None, None, None)
    is_needed = is_needed or (settings.events_by_day and facts.days is None)
    return is_needed and facts.is_prepared_at_once


def prepare(settings: Settings, schema: Schema) -> list[str]:
    """Let the database be as the settings want it; returns what was done in words. Raises the errors of Schema."""
    done = schema.partition_by_day() if settings.events_by_day else []
    return done + schema.set_retention(
        event_days=_days(settings.retention_days),
        letter_days=_days(settings.dead_letter_days),
        id_days=_days(settings.dedup_days),
    )


def why_not(settings: Settings, facts: RetentionFacts, now: float) -> str | None:
    """Why nothing may be deleted; None if something may. `now`: this machine's clock."""
    if settings.events_by_day and facts.days is None:
        return "EVENTS_BY_DAY is set, and log_events is not partitioned by day: run `python -m pipeline migrate`"
    for name, wanted, found in (
        ("RETENTION_DAYS", settings.retention_days, facts.event_days),
        ("DEAD_LETTER_DAYS", settings.dead_letter_days, facts.letter_days),
        ("DEDUP_DAYS", settings.dedup_days, facts.id_days),
    ):
        if _days(wanted) != found:
            kept = "keeps all" if found is None else f"keeps {found} days"
            return (
                f"{name} is {wanted}, and the database {kept}: run `python -m pipeline migrate` with this setting, or "
                "restart the control worker with that one"
            )
    return _unprepared(settings, facts) or _clock_problem(facts.time, now)


def _unprepared(settings: Settings, facts: RetentionFacts) -> str | None:
    """What the database lacks to delete what expired."""
    if not facts.may_delete:
        return "Sluice's user may not call the functions that delete: run `python -m pipeline migrate`"
    if settings.retention_days:
        if not facts.has_stored_at:
            return "log_events.stored_at is not a timestamptz with a default: no event has a known age"
        if not facts.has_index:
            return "log_events has no index on stored_at: run `python -m pipeline migrate`, which makes it"
    if settings.dedup_days and facts.days is not None and not facts.days.has_id_index:
        return "event_ids has no index on stored_at: run `python -m pipeline migrate`, which makes it"
    return None


def days_problem(days: DayFacts) -> str | None:
    """What is wrong with a table by day, though it stores; None if nothing is."""
    if days.unnoted_id is not None:
        return (
            f"event_ids lacks the id {days.unnoted_id} of a stored event: a repeat of it could be stored again. "
            "Run `EVENTS_BY_DAY=yes python -m pipeline migrate`, which notes all ids that are missing"
        )
    if not days.has_today or not days.days_ahead:
        lacking = "today" if not days.has_today else "the days to come"
        return f"log_events has no partition for {lacking}: events are stored in log_events_default (docs/retention.md)"
    if days.has_default_rows:
        return "log_events_default holds events of days without a partition (docs/retention.md)"
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
    if facts.days is not None and (facts.days.days_ahead < DAYS_AHEAD or not facts.days.has_today):
        # A lock that is in its way passes, or the facts of a later tick say that no day is ahead.
        with contextlib.suppress(SluiceError):
            retention.make_days()
            facts = retention.facts()
    ends = clock.monotonic() + _TIME_SHARE * settings.retention_seconds
    rows_max, since, ids_since = settings.retention_rows_max, None, None
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
            is_day = (
                facts.days is not None and bool(settings.retention_days) and _drop_day(retention, done, clock, ends)
            )
            ids = 0
            if facts.days is not None and settings.dedup_days:
                ids, ids_since = retention.delete_ids(rows_max=rows_max, since=ids_since)
                done.ids += ids
            is_more = is_day or max(events, letters, ids) >= rows_max
            if not is_more or is_behind or clock.monotonic() >= ends:
                break
            facts = retention.facts()
    except SluiceError as error:
        done.problem = f"deletion ended early: {in_brief(error)}"
        return done
    done.problem = None if facts.days is None else days_problem(facts.days)
    overdue = overdue_seconds(settings, facts)
    if is_more and overdue is not None and overdue > OVERDUE_SECONDS_MAX:
        done.problem = (
            f"the oldest event is {overdue / _DAY_SECONDS:.1f} days over RETENTION_DAYS={settings.retention_days}: "
            "events expire faster than they are deleted, or many expired at once"
        )
    return done


def _drop_day(retention: Retention, done: Expired, clock: Clock, ends: float) -> bool:
    """Drop one day that expired as a whole; False if there is none. Raises the errors of Retention.drop_day."""
    for left in reversed(range(_DROP_TRIES)):
        try:
            dropped = retention.drop_day()
            break
        except SinkContentionError:
            if not left or clock.monotonic() >= ends:
                raise
            clock.sleep(random.uniform(*_DROP_REST_SECONDS))  # noqa: S311 - no secret
    if dropped is None:
        return False
    name, rows = dropped
    done.days.append(name)
    done.events += rows or 0
    done.days_uncounted += rows is None
    return True


def _delete_events(
    settings: Settings, retention: Retention, rows_max: int, since: datetime | None
) -> tuple[int, datetime | None]:
    return retention.delete_events(rows_max=rows_max, since=since) if settings.retention_days else (0, None)


def _days(setting: int) -> int | None:
    return setting or None
