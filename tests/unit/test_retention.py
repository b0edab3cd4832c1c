"""One tick of retention: what it deletes, when it stops, and why it deletes nothing."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from beat_schedule import beat_schedule
from pipeline.clock import ManualClock
from pipeline.control_store.common import TROUBLE_SECONDS
from pipeline.errors import LogUnavailableError, SettingsError, SinkUnavailableError
from pipeline.ports.log_marks import ExpiredRecords
from pipeline.ports.log_trimmer import TrimResult
from pipeline.ports.retention import DayFacts, RetentionFacts
from pipeline.retention import Expired, LogRetention, expire, may_be_prepared, overdue_seconds, why_not
from pipeline.settings import Settings
from pipeline.sink.queries import query
from pipeline.sink.retention import PostgresRetention
from pipeline.sink.session import Session
from tasks.forced_shutdown import CONTROL_SECONDS_MAX

DAY = 86_400.0
SETTINGS = Settings(retention_days=30, dead_letter_days=7, retention_seconds=10.0, retention_rows_max=100)
NOW = ManualClock().now()
FACTS = RetentionFacts(
    time=NOW,
    event_days=30,
    letter_days=7,
    may_delete=True,
    has_stored_at=True,
    has_index=True,
    is_prepared_at_once=True,
    oldest_seconds=30.1 * DAY,
)


class Rows:
    """Expired rows; each step takes a second of the clock."""

    def __init__(self, clock: ManualClock, *, events: int, letters: int, **facts: Any) -> None:
        self._clock = clock
        self.left = {"events": events, "letters": letters}
        self.expired_days: list[tuple[str, int | None]] = []
        self.made = 0  # calls of make_days
        self.began_at: list[datetime | None] = []
        self._facts = replace(FACTS, **facts)

    def facts(self) -> RetentionFacts:
        return self._facts

    def delete_events(self, *, rows_max: int, since: datetime | None) -> tuple[int, datetime | None]:
        self._clock.advance(1.0)
        self.began_at.append(since)
        return self._deleted("events", rows_max), datetime(2026, 1, len(self.began_at), tzinfo=UTC)

    def delete_letters(self, *, rows_max: int) -> tuple[int, int]:
        deleted = self._deleted("letters", rows_max)
        return deleted, deleted // 2

    def make_days(self) -> int:
        self.made += 1
        return 7

    def drop_day(self) -> tuple[str, int | None] | None:
        self._clock.advance(1.0)
        return self.expired_days.pop(0) if self.expired_days else None

    def delete_ids(self, *, rows_max: int, since: datetime | None) -> tuple[int, datetime | None]:
        return self._deleted("ids", rows_max), since

    def _deleted(self, kind: str, rows_max: int) -> int:
        deleted = min(rows_max, self.left.get(kind, 0))
        self.left[kind] = self.left.get(kind, 0) - deleted
        return deleted


def test_all_that_expired_is_deleted_in_steps() -> None:
    # Given a little more than a step / When a tick runs
    # Then it makes two steps, the second from where the first ended
    clock = ManualClock()
    rows = Rows(clock, events=101, letters=3)
    done = expire(SETTINGS, rows, clock, is_behind=False)
    assert (done.events, done.letters, done.letters_never_stored, done.problem) == (101, 3, 1, None)
    assert rows.began_at == [None, datetime(2026, 1, 1, tzinfo=UTC)]


def test_a_tick_takes_a_quarter_of_its_period() -> None:
    clock = ManualClock()
    done = expire(SETTINGS, Rows(clock, events=10_000, letters=0), clock, is_behind=False)
    assert done.events == 300  # three steps of a second; the third began before 2.5 s were over


def test_a_tick_makes_one_step_while_consumers_are_behind() -> None:
    clock = ManualClock()
    done = expire(SETTINGS, Rows(clock, events=10_000, letters=10_000), clock, is_behind=True)
    assert (done.events, done.letters) == (100, 100)


def test_what_is_kept_for_ever_is_not_deleted() -> None:
    clock = ManualClock()
    only_events = replace(SETTINGS, dead_letter_days=0)
    assert expire(only_events, Rows(clock, events=1, letters=1, letter_days=None), clock, is_behind=False).letters == 0
    only_letters = replace(SETTINGS, retention_days=0)
    rows = Rows(clock, events=1, letters=1, event_days=None, has_index=False, has_stored_at=False)
    done = expire(only_letters, rows, clock, is_behind=False)
    assert (done.events, done.letters, done.problem) == (0, 1, None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"event_days": None},
            "and the database keeps all: run `python -m pipeline migrate` with this setting, or restart the",
        ),
        ({"event_days": 90}, "RETENTION_DAYS is 30, and the database keeps 90 days"),
        ({"letter_days": 8}, "DEAD_LETTER_DAYS is 7, and the database keeps 8 days"),
        ({"may_delete": False}, "may not call"),
        ({"has_stored_at": False}, "no event has a known age"),
        ({"has_index": False}, "no index on stored_at"),
        ({"time": NOW + 3601}, "PostgreSQL's clock differs by 3,601 s"),
        ({"time": NOW - 3601}, "PostgreSQL's clock differs by 3,601 s"),
    ],
)
def test_nothing_is_deleted_if_something_is_wrong(changed: dict[str, Any], words: str) -> None:
    clock = ManualClock()
    rows = Rows(clock, events=5, letters=5, **changed)
    done = expire(SETTINGS, rows, clock, is_behind=False)
    assert (done.events, done.letters) == (0, 0)
    assert done.problem is not None
    assert words in done.problem
    assert rows.left == {"events": 5, "letters": 5}


def test_a_step_that_fails_hides_nothing_of_the_steps_before_it() -> None:
    # Given a lock that the third step meets
    class Locked(Rows):
        def delete_events(self, *, rows_max: int, since: datetime | None) -> tuple[int, datetime | None]:
            if len(self.began_at) == 2:
                raise SinkUnavailableError("timed out waiting for a lock")
            return super().delete_events(rows_max=rows_max, since=since)

    clock = ManualClock()
    done = expire(SETTINGS, Locked(clock, events=900, letters=250), clock, is_behind=False)
    # Then what was deleted is known, and why it ended; and dead letters do not wait for events
    assert (done.events, done.letters, done.letters_never_stored) == (200, 250, 125)
    assert done.problem == "deletion ended early: timed out waiting for a lock"


def test_a_clock_that_jumps_between_two_steps_ends_the_deletion() -> None:
    # Given PostgreSQL's host, whose clock is set a year ahead during the first step: all events look expired
    class Jumping(Rows):
        def facts(self) -> RetentionFacts:
            return replace(super().facts(), time=NOW + (365 * DAY if self.began_at else 0.0))

    clock = ManualClock()
    rows = Jumping(clock, events=900, letters=0)
    done = expire(SETTINGS, rows, clock, is_behind=False)
    assert done.events == 100
    assert done.problem is not None
    assert "PostgreSQL's clock differs by" in done.problem


def test_a_tick_ends_before_its_process_is_killed_and_its_problem_is_shown_until_the_next() -> None:
    longest = 20.0
    assert Settings(retention_seconds=longest).retention_seconds < TROUBLE_SECONDS
    assert 0.25 * longest < CONTROL_SECONDS_MAX
    with pytest.raises(SettingsError, match="RETENTION_SECONDS"):
        Settings.from_environ({"RETENTION_SECONDS": "20.1"})


def test_a_clock_that_is_a_little_off_changes_nothing() -> None:
    assert why_not(SETTINGS, replace(FACTS, time=NOW + 3599), NOW) is None


def test_an_oldest_event_that_is_overdue_is_reported_while_deletion_goes_on() -> None:
    # Given an event that is a day and a half over its time / When a tick deletes all that expired / Then all is well
    clock = ManualClock()
    done = expire(SETTINGS, Rows(clock, events=5, letters=0, oldest_seconds=31.5 * DAY), clock, is_behind=False)
    assert (done.events, done.problem) == (5, None)
    # When it can't
    done = expire(SETTINGS, Rows(clock, events=900, letters=0, oldest_seconds=31.5 * DAY), clock, is_behind=False)
    assert done.events == 300
    assert done.problem is not None
    assert "1.5 days over RETENTION_DAYS=30" in done.problem


@pytest.mark.parametrize(
    ("settings", "changed", "expected"),
    [
        (SETTINGS, {}, pytest.approx(0.1 * DAY)),
        (SETTINGS, {"oldest_seconds": DAY}, 0.0),
        (SETTINGS, {"oldest_seconds": None}, 0.0),
        (SETTINGS, {"has_index": False, "oldest_seconds": None}, None),
        (replace(SETTINGS, retention_days=0), {}, None),
    ],
)
def test_how_long_the_oldest_event_is_overdue(settings: Settings, changed: dict[str, Any], expected: Any) -> None:
    assert overdue_seconds(settings, replace(FACTS, **changed)) == expected


def test_what_a_process_may_prepare_by_itself() -> None:
    assert not may_be_prepared(SETTINGS, FACTS)  # nothing is left to do
    assert may_be_prepared(SETTINGS, replace(FACTS, has_index=False))
    assert may_be_prepared(SETTINGS, replace(FACTS, event_days=None, letter_days=None))
    # But it changes nothing that was set: its environment may be older than the last `migrate`
    assert not may_be_prepared(SETTINGS, replace(FACTS, event_days=90))
    assert not may_be_prepared(SETTINGS, replace(FACTS, event_days=None))
    assert not may_be_prepared(SETTINGS, replace(FACTS, event_days=90, has_index=False))
    assert not may_be_prepared(SETTINGS, replace(FACTS, has_index=False, is_prepared_at_once=False))
    only_letters = replace(SETTINGS, retention_days=0)
    assert not may_be_prepared(only_letters, replace(FACTS, event_days=None, has_index=False))


def test_without_retention_no_message_is_sent() -> None:
    assert "sluice.expire" not in {entry["task"] for entry in beat_schedule(Settings()).values()}
    on_kafka = Settings(event_log_url="kafka://k:9092", log_keep_hours=1)
    for settings in (Settings(retention_days=1), Settings(dead_letter_days=1), on_kafka):
        assert "sluice.expire" in {entry["task"] for entry in beat_schedule(settings).values()}


# --- The event log ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"EVENT_LOG_URL": "redis://r/0"}, "is for Kafka: on Redis, LOG_TRIM"),
        ({"EVENT_LOG_URL": "kafka://k:9092", "EVENT_SINK_URL": "file:///events"}, "leave EVENT_SINK_URL empty"),
    ],
)
def test_log_keep_hours_is_refused_where_it_could_do_nothing(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=f"LOG_KEEP_HOURS=24 .*{words}"):
        Settings.from_environ({**environ, "LOG_KEEP_HOURS": "24"})


class Log:
    """Marks and a trimmer, with what expired."""

    def __init__(self, **below: int) -> None:
        self.below = {int(name[1:]): offset for name, offset in below.items()}
        self.marked: list[tuple[str, float, float]] = []
        self.asked: list[dict[int, int]] = []
        self.time, self.error = NOW, False
        self.left: dict[int, str] = {}

    def mark(self, log_id: str, *, spacing_seconds: float, keep_seconds: float) -> None:
        self.marked.append((log_id, spacing_seconds, keep_seconds))

    def expired(self, log_id: str, *, keep_seconds: float) -> tuple[list[ExpiredRecords], float]:
        return [ExpiredRecords(one, below, below + 1, b"d") for one, below in self.below.items()], self.time

    def trim(self, log_id: str, expired: Sequence[ExpiredRecords]) -> TrimResult:
        self.asked.append({one.partition: one.below for one in expired})
        if self.error:
            raise LogUnavailableError
        return TrimResult({one.partition: 2 for one in expired if one.partition not in self.left}, self.left)


def log_retention(log: Log) -> LogRetention:
    settings = Settings(event_log_url="kafka://k:9092", log_keep_hours=48)
    return LogRetention(settings, log, log, ManualClock())


def test_a_log_is_asked_only_for_what_newly_expired() -> None:
    log = Log(p0=5, p1=7)
    retention = log_retention(log)
    assert [retention.tick("log", lambda _: False).records for _ in range(2)] == [4, 0]
    log.below[0] = 6
    assert retention.tick("log", lambda _: False).records == 2
    assert log.asked == [{0: 5, 1: 7}, {0: 6}]
    # And another log for all of it
    retention.tick("other", lambda _: False)
    assert log.asked[-1] == {0: 6, 1: 7}
    assert set(log.marked) == {("log", 7200, 172_800), ("other", 7200, 172_800)}  # 24 marks in the time


def test_a_paused_partition_is_trimmed_once_it_is_resumed() -> None:
    log = Log(p0=5, p1=7)
    retention = log_retention(log)
    retention.tick("log", lambda partition: partition == 1)
    retention.tick("log", lambda _: False)
    assert log.asked == [{0: 5}, {1: 7}]


def test_a_log_that_failed_is_asked_again() -> None:
    log = Log(p0=5)
    retention = log_retention(log)
    log.error = True
    with pytest.raises(LogUnavailableError):
        retention.tick("log", lambda _: False)
    log.error = False
    assert retention.tick("log", lambda _: False).records == 2


def test_a_partition_that_was_not_trimmed_is_a_problem_and_is_asked_again() -> None:
    # Given two of three partitions that are not trimmed
    log = Log(p0=5, p1=7, p2=9)
    retention = log_retention(log)
    log.left = {0: "it does not hold the last record", 2: "it is slow"}
    # When ticks run / Then each says so, and asks for these again
    for _ in range(2):
        problem = retention.tick("log", lambda _: False).problem
        assert (
            problem
            == "the event log is not trimmed in 2 partitions: 0 (it does not hold the last record), 2 (it is slow)"
        )
    assert log.asked == [{0: 5, 1: 7, 2: 9}, {0: 5, 2: 9}]
    # When they can be / Then they are, and all is well
    log.left = {}
    done = retention.tick("log", lambda _: False)
    assert (done.records, done.problem) == (4, None)
    assert retention.tick("log", lambda _: False).records == 0
    # And of many, some are named
    log.below, log.left = dict.fromkeys(range(64), 20), dict.fromkeys(range(64), "it is slow")
    problem = str(retention.tick("log", lambda _: False).problem)
    assert problem.startswith("the event log is not trimmed in 64 partitions: 0 (it is slow), 1 (it is slow), 2 (it is")
    assert problem.endswith(", 4 (it is slow) …")


def test_no_record_is_deleted_while_the_clocks_disagree() -> None:
    log = Log(p0=5)
    log.time = NOW - 3601
    done = log_retention(log).tick("log", lambda _: False)
    assert "PostgreSQL's clock differs by 3,601 s" in str(done.problem)
    assert log.asked == []


# --- By day ---------------------------------------------------------------------------------------------------------

BY_DAY = replace(SETTINGS, events_by_day=True, dedup_days=60)
GOOD_DAYS = DayFacts(has_today=True, days_ahead=7, has_default_rows=False, unnoted_id=None, has_id_index=True)


def _days(clock: ManualClock, **facts: Any) -> Rows:
    return Rows(clock, events=0, letters=0, id_days=60, days=replace(GOOD_DAYS, **facts))


def test_days_that_expired_are_dropped_and_counted() -> None:
    clock = ManualClock()
    rows = _days(clock)
    rows.expired_days = [("log_events_20260101", 5), ("log_events_20260102", None)]
    rows.left["ids"] = 3
    done = expire(BY_DAY, rows, clock, is_behind=False)
    assert (done.days, done.events, done.days_uncounted) == (["log_events_20260101", "log_events_20260102"], 5, 1)
    assert (done.ids, done.problem, rows.made) == (3, None, 0)


def test_a_tick_that_is_behind_drops_one_day() -> None:
    clock = ManualClock()
    rows = _days(clock)
    rows.expired_days = [("log_events_20260101", 5), ("log_events_20260102", 5)]
    assert expire(BY_DAY, rows, clock, is_behind=True).days == ["log_events_20260101"]


def test_days_are_made_when_one_is_missing() -> None:
    rows = _days(ManualClock(), days_ahead=6)
    assert expire(BY_DAY, rows, ManualClock(), is_behind=False).problem is None
    assert rows.made == 1


def test_days_are_made_though_another_session_is_in_the_way_of_it() -> None:
    class Locked(Rows):
        def make_days(self) -> int:
            raise SinkUnavailableError("timed out waiting for a lock")

    rows = Locked(ManualClock(), events=0, letters=0, id_days=60, days=replace(GOOD_DAYS, days_ahead=6))
    rows.expired_days = [("log_events_20260101", 5)]
    done = expire(BY_DAY, rows, ManualClock(), is_behind=False)
    assert (done.days, done.problem) == (["log_events_20260101"], None)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"has_today": False}, "no partition for today: events are stored in log_events_default"),
        ({"days_ahead": 0}, "no partition for the days to come"),
        ({"has_default_rows": True}, "log_events_default holds events"),
        ({"unnoted_id": "x7"}, "event_ids lacks the id x7 of a stored event"),
    ],
)
def test_what_is_wrong_with_the_days_is_a_problem(facts: dict[str, Any], words: str) -> None:
    problem = expire(BY_DAY, _days(ManualClock(), **facts), ManualClock(), is_behind=False).problem
    assert words in (problem or "")


@pytest.mark.parametrize(
    ("settings", "facts", "words"),
    [
        (BY_DAY, {"id_days": 60}, "EVENTS_BY_DAY is set, and log_events is not partitioned by day"),
        (BY_DAY, {"days": GOOD_DAYS}, "DEDUP_DAYS is 60, and the database keeps all"),
        (
            BY_DAY,
            {"days": replace(GOOD_DAYS, has_id_index=False), "id_days": 60},
            "event_ids has no index on stored_at",
        ),
    ],
)
def test_a_table_by_day_that_is_not_as_the_settings_say_keeps_all(
    settings: Settings, facts: dict[str, Any], words: str
) -> None:
    assert words in (why_not(settings, replace(FACTS, **facts), NOW) or "")


def test_a_small_table_is_partitioned_without_a_person() -> None:
    days = Settings(events_by_day=True)
    facts = replace(FACTS, event_days=None, letter_days=None)
    assert may_be_prepared(days, facts)
    assert not may_be_prepared(days, replace(facts, is_prepared_at_once=False))
    assert not may_be_prepared(days, replace(facts, days=GOOD_DAYS, is_prepared_at_once=False))


def test_days_are_made_without_retention() -> None:
    assert "sluice.expire" in {entry["task"] for entry in beat_schedule(Settings(events_by_day=True)).values()}
    rows = Rows(
        ManualClock(), events=0, letters=0, event_days=None, letter_days=None, days=replace(GOOD_DAYS, days_ahead=1)
    )
    assert expire(Settings(events_by_day=True), rows, ManualClock(), is_behind=False) == Expired()
    assert rows.made == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dedup_days": 60, "retention_days": 30}, "DEDUP_DAYS=60 needs EVENTS_BY_DAY=yes"),
        ({"dedup_days": 60, "events_by_day": True}, "DEDUP_DAYS=60 needs RETENTION_DAYS"),
        ({"dedup_days": 29, "retention_days": 30, "events_by_day": True}, "DEDUP_DAYS=29 is below RETENTION_DAYS=30"),
    ],
)
def test_ids_that_would_go_before_their_events_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings(**settings)


class PreparedTransaction:
    """A session of PostgreSQL: a day expired, and a prepared transaction, which has no process, locks the table."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def rows(self, sql: str, *_: Any) -> list[tuple[Any, ...]]:
        if sql == query("users_of_the_table"):
            return [("-1/734", None, self.seconds)]
        if sql == query("expired_day"):
            return [("log_events_old", "2026-01-01", "2026-01-02")]
        return [(0 if sql == query("count_day") else None,)]

    def rollback(self) -> None:
        """End the transaction of a count."""


def test_a_prepared_transaction_that_is_in_the_way_of_a_drop_is_named() -> None:
    session = PreparedTransaction()
    retention = PostgresRetention(cast("Session", session))
    assert retention.drop_day() is None  # it may be a batch
    session.seconds = 4.0
    with pytest.raises(SinkUnavailableError, match=r"more than 3 s \(prepared: see pg_prepared_xacts\)"):
        retention.drop_day()
