"""Dead letters on PostgreSQL: looked at, replayed, and kept where they are refused again."""

import contextlib
from collections.abc import Iterator

import pytest

from checks.testbed.database import ask, fail_on_insert, stored_ids
from checks.testbed.waiting import PATIENT_CONNECT_SECONDS, PATIENT_SINK_SECONDS
from pipeline.errors import SinkUnavailableError
from pipeline.ports.dead_letters import DeadLetterCounts, ReplayResult
from pipeline.settings import Settings
from pipeline.sink.dead_letters import PostgresDeadLetters
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from support.records import batch, new_log_id, nothing, record

LOG = new_log_id()
VALUES = [
    record(0, message="kind"),
    record(1, message="rude"),
    b"broken",
    record(3, message="rude"),
    record(4, message="hopeless"),
]


@pytest.fixture
def sink(database_url: str) -> Iterator[PostgresSink]:
    """A sink with four dead letters at offsets 1 to 4 of partition 2; `rude` is allowed again since."""
    settings = Settings(
        database_url=database_url,
        sink_call_seconds_max=PATIENT_SINK_SECONDS,
        sink_connect_seconds_max=PATIENT_CONNECT_SECONDS,
    )
    migrate(settings)
    with contextlib.closing(PostgresSink(settings)) as made:
        ask(database_url, "ALTER TABLE log_events ADD CONSTRAINT polite CHECK (message NOT IN ('rude', 'hopeless'))")
        made.store(LOG, 2, 0, batch(0, VALUES), before_commit=nothing)
        ask(
            database_url,
            "ALTER TABLE log_events DROP CONSTRAINT polite, ADD CONSTRAINT hope CHECK (message <> 'hopeless')",
        )
        yield made


def letters_of(sink: PostgresSink) -> PostgresDeadLetters:
    return PostgresDeadLetters(sink.session)


def test_they_can_be_looked_at(sink: PostgresSink) -> None:
    assert letters_of(sink).count().open == 4
    listed = letters_of(sink).listed(limit=3)
    assert [(letter.log_id, letter.partition, letter.offset, letter.raw) for letter in listed] == [
        (LOG, 2, offset, VALUES[offset]) for offset in (1, 2, 3)
    ]
    rest = letters_of(sink).listed(limit=3, after_id=listed[-1].id)
    assert [letter.offset for letter in rest] == [4]
    letters = {letter.offset: letter for letter in (*listed, *rest)}
    assert letters[1].sqlstate == "23514"
    assert "polite" in letters[1].reason
    assert letters[2].sqlstate is None
    assert letters[2].raw == b"broken"
    assert letters[1].tried_at is None


def test_a_replay_stores_what_is_accepted_now(sink: PostgresSink, database_url: str) -> None:
    # When all are tried again
    assert letters_of(sink).replay(limit=100) == ReplayResult(stored=2, refused=2)
    # Then those are stored with the place that they had in the log
    places = ask(database_url, "SELECT event_id, log_id, log_partition, log_offset FROM log_events ORDER BY log_offset")
    assert places[1:] == [("event-000001", LOG, 2, 1), ("event-000003", LOG, 2, 3)]
    # And the others stay, with their new reason
    kept = {letter.offset: letter for letter in letters_of(sink).listed(limit=100)}
    assert set(kept) == {2, 4}
    assert "hope" in kept[4].reason
    assert "not an event" in kept[2].reason
    assert all(letter.tried_at is not None for letter in kept.values())
    # And a second replay finds only those
    assert letters_of(sink).replay(limit=100) == ReplayResult(refused=2)


def test_a_dry_run_changes_nothing(sink: PostgresSink, database_url: str) -> None:
    assert letters_of(sink).replay(limit=100, dry_run=True) == ReplayResult(stored=2, refused=2)
    assert stored_ids(database_url) == ["event-000000"]
    assert letters_of(sink).count().open == 4
    assert all(letter.tried_at is None for letter in letters_of(sink).listed(limit=100))


def test_repeating_a_small_replay_reaches_all(sink: PostgresSink) -> None:
    results = [letters_of(sink).replay(limit=1) for _ in range(4)]
    assert sum(result.stored for result in results) == 2
    assert sum(result.refused for result in results) == 2


def test_an_event_that_came_meanwhile_is_not_doubled(sink: PostgresSink, database_url: str) -> None:
    # Given a client that has sent one of them again, and another event with the id of the other one
    other = record(3, message="another")
    sink.store(LOG, 2, 5, batch(5, [record(1, message="rude"), other]), before_commit=nothing)
    # When they are replayed
    assert letters_of(sink).replay(limit=100) == ReplayResult(repeated=1, conflicting=1, refused=2)
    # Then each id is stored once, the repeat is done with, and the other content is kept
    assert stored_ids(database_url) == ["event-000000", "event-000001", "event-000003"]
    kept = {letter.offset: letter for letter in letters_of(sink).listed(limit=100)}
    assert set(kept) == {2, 3, 4}
    assert (kept[3].reason, kept[3].sqlstate) == ("conflict", "23505")
    assert letters_of(sink).count() == DeadLetterCounts(open=3, conflicts=1)
    # And where the stored one is deleted, since it was the wrong one, a replay stores the other
    ask(database_url, "DELETE FROM log_events WHERE event_id = 'event-000003'")
    assert letters_of(sink).replay(limit=100) == ReplayResult(stored=1, refused=2)
    assert ask(database_url, "SELECT message FROM log_events WHERE event_id = 'event-000003'") == [("rude",)]
    assert letters_of(sink).count() == DeadLetterCounts(open=2, conflicts=0)


def test_replays_at_once_take_different_ones(sink: PostgresSink) -> None:
    # Given a replay that has taken all of them up and is not done
    with contextlib.closing(PostgresSink(sink._settings)) as other:
        other.session.count("BEGIN")
        other.session.rows("SELECT id FROM dead_letters FOR UPDATE")
        # Then another finds none, and does not wait
        assert letters_of(sink).replay(limit=100) == ReplayResult()


def test_a_server_in_trouble_marks_nothing(sink: PostgresSink, database_url: str) -> None:
    fail_on_insert(database_url, "53100")
    with pytest.raises(SinkUnavailableError):
        letters_of(sink).replay(limit=100)
    assert all(letter.tried_at is None for letter in letters_of(sink).listed(limit=100))
    assert letters_of(sink).count().open == 4


def test_reading_a_position_again_keeps_one_letter(sink: PostgresSink, database_url: str) -> None:
    # Given offsets that were set back by hand
    ask(database_url, "UPDATE stored_offsets SET next_offset = 0")
    # When the same records come again
    sink.store(LOG, 2, 0, batch(0, VALUES), before_commit=nothing)
    # Then there is one letter for each position
    assert letters_of(sink).count().open == 4


def test_one_that_was_set_aside_for_a_later_one_is_counted_and_replayed(sink: PostgresSink, database_url: str) -> None:
    # Given all four replayed as far as possible, and a partition that was set back to where its log lost its tail
    letters_of(sink).replay(limit=100)
    sink.store(LOG, 2, len(VALUES), batch(3, []), before_commit=nothing)
    # When the log brings the first of the lost records again, and another one that is refused in place of the last
    ask(database_url, "TRUNCATE log_events")
    ask(database_url, "ALTER TABLE log_events ADD CONSTRAINT polite CHECK (message <> 'rude')")
    sink.store(LOG, 2, 3, batch(3, [VALUES[3], record(5, message="rude")]), before_commit=nothing)
    # Then it waits again, and the others wait still
    assert letters_of(sink).count().open == 4
    listed = letters_of(sink).listed(limit=100)
    assert {letter.raw for letter in listed} == {b"broken", VALUES[3], VALUES[4], record(5, message="rude")}
    ask(database_url, "ALTER TABLE log_events DROP CONSTRAINT polite, DROP CONSTRAINT hope")
    assert letters_of(sink).replay(limit=100) == ReplayResult(stored=3, refused=1)
    assert stored_ids(database_url) == ["event-000003", "event-000004", "event-000005"]
