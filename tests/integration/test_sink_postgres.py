"""What PostgreSQL's sink does beyond the contract: SQLSTATEs, halving, settings of the session, forks."""

import contextlib
import multiprocessing
import random
import re
import string
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from checks.testbed.database import ask, fail_no_more, fail_on_insert, stored_ids
from checks.testbed.waiting import PATIENT_CONNECT_SECONDS, PATIENT_SINK_SECONDS, WAIT_SECONDS_MAX
from pipeline import __version__
from pipeline.errors import PoisonedError, SinkContentionError, SinkUnavailableError
from pipeline.event import SEVERITIES, Event, encode_record, record_head
from pipeline.ports.event_sink import StoreResult
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from support.control import eventually
from support.records import batch, new_log_id, nothing, numbered_batch, record
from support.sinks import sink_settings

LOG = new_log_id()


@pytest.fixture
def sink(database_url: str) -> Iterator[PostgresSink]:
    settings = Settings(
        database_url=database_url,
        poison_run_records_max=10,
        sink_call_seconds_max=PATIENT_SINK_SECONDS,
        sink_connect_seconds_max=PATIENT_CONNECT_SECONDS,
    )
    migrate(settings)
    with contextlib.closing(PostgresSink(settings)) as made:
        yield made


# --- fields --------------------------------------------------------------------------------------------

_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200) | st.sampled_from(
    ["\\N", "\\.", "a\tb\nc\rd\\e", "\\", '"', "\x7f\x01\x1f", "😀\u2028", "%s %(x)s", "", " ", "x" * 5000]
)
_values = (
    _texts
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.sampled_from([0.1, 1e300, -0.0, 5e-324, 2**63 - 1])
)
_events = st.builds(
    Event,
    correlation_id=_texts,
    severity=st.sampled_from(SEVERITIES),
    message=_texts,
    source=_texts,
    timestamp=st.integers(0, 253_402_300_799_999),
    attributes=st.none() | st.dictionaries(_texts, _values, max_size=8),
)


def _as_sent(attributes: dict[str, Any] | None, sent: dict[str, Any] | None) -> dict[str, Any] | None:
    """Attributes as PostgreSQL gives them back, where a float may read as a whole number: 1e16 as 10000000000000000."""
    if attributes is None or sent is None:
        return attributes
    return {key: float(value) if isinstance(sent.get(key), float) else value for key, value in attributes.items()}


def _time(milliseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


@given(events=st.lists(_events, min_size=1, max_size=20), received_at=st.integers(0, 253_402_300_799_999))
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@pytest.mark.parametrize("staged", [False, True])
def test_every_field_comes_back_as_it_was(
    sink: PostgresSink, database_url: str, staged: bool, events: list[Event], received_at: int
) -> None:
    # Given any events that ingest accepts, each with an id of its own; and, for the staging table, a repeat
    log_id = new_log_id()
    for number, event in enumerate(events):
        event.event_id = f"{log_id}-{number}"
    values = [encode_record(event, record_head(received_at, "request-1")) for event in events]
    # When they are stored
    result = sink.store(log_id, 1, 7, batch(7, values + values[:1] * staged), before_commit=nothing)
    # Then they are there, field by field
    assert result == StoreResult(stored=len(events), repeated=int(staged))
    with contextlib.closing(PostgresSink(sink._settings)) as reader:
        rows = reader.session.rows(
            "SELECT event_id, correlation_id, severity, message, source, event_time, received_at, attributes,"
            " log_id, log_partition, log_offset, request_id FROM log_events WHERE log_id = %(log)s ORDER BY log_offset",
            {"log": log_id},
        )
    got = [(*row[:7], _as_sent(row[7], event.attributes), *row[8:]) for row, event in zip(rows, events, strict=True)]
    assert got == [
        (
            event.event_id,
            event.correlation_id,
            event.severity,
            event.message,
            event.source,
            _time(event.timestamp),
            _time(received_at),
            event.attributes,
            log_id,
            1,
            7 + number,
            "request-1",
        )
        for number, event in enumerate(events)
    ]


# --- whose fault ------------------------------------------------------------------------------------------


def test_culprits_alone_become_dead_letters(sink: PostgresSink, database_url: str) -> None:
    # Given a table that refuses some events, and a batch with five of them, repeats and an undecodable record
    ask(database_url, "ALTER TABLE log_events ADD CONSTRAINT polite CHECK (message <> 'rude')")
    culprits = {0, 100, 101, 102, 256}
    values = [record(number, message="rude" if number in culprits else "kind") for number in range(257)]
    values += [record(5, message="kind"), b"broken", record(6, message="another")]
    # When it is stored
    result = sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    # Then exactly those are dead letters, each with its reason
    assert result == StoreResult(stored=252, repeated=1, conflicting=1, dead_lettered=6)
    letters = ask(database_url, "SELECT log_offset, raw, sqlstate, reason FROM dead_letters ORDER BY log_offset")
    assert [offset for offset, *_ in letters] == [*sorted(culprits), 258, 259]
    assert all(bytes(raw) == values[offset] for offset, raw, *_ in letters)
    assert {sqlstate for *_, sqlstate, _ in letters} == {"23514", None, "23505"}
    assert "polite" in letters[0][3]
    assert "not an event" in letters[-2][3]
    # And the sink works on in the straight way
    assert sink.store(LOG, 0, 260, batch(260, [record(900)]), before_commit=nothing) == StoreResult(stored=1)


@pytest.mark.parametrize(
    ("sqlstate", "letters"),
    [("22003", 1), ("22023", 1), ("23502", 1), ("23503", 1), ("54001", 1), ("P0001", 1), ("44000", 1), ("ZZ001", 1)],
)
def test_errors_of_the_data_make_dead_letters(
    sink: PostgresSink, database_url: str, sqlstate: str, letters: int
) -> None:
    fail_on_insert(database_url, sqlstate, when="NEW.event_id = 'event-000003'")
    result = sink.store(LOG, 0, 0, numbered_batch(0, 9), before_commit=nothing)
    assert result == StoreResult(stored=9 - letters, dead_lettered=letters)
    assert ask(database_url, "SELECT sqlstate FROM dead_letters") == [(sqlstate,)] * letters


@pytest.fixture
def guest(sink: PostgresSink, database_url: str) -> Iterator[PostgresSink]:
    """A sink whose user may write all tables and owns none."""
    ask(database_url, "CREATE ROLE guest LOGIN")
    ask(database_url, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO guest")
    settings = replace(sink._settings, database_url=re.sub("//[^@/]*@", "//guest@", database_url))
    with contextlib.closing(PostgresSink(settings)) as made:
        yield made
    ask(database_url, "DROP OWNED BY guest; DROP ROLE guest")


def test_a_row_that_row_security_refuses_is_a_dead_letter(guest: PostgresSink, database_url: str) -> None:
    # Given a table with row security, which COPY refuses as a whole, and INSERT row by row
    ask(database_url, "ALTER TABLE log_events ENABLE ROW LEVEL SECURITY")
    ask(database_url, "CREATE POLICY seen ON log_events FOR SELECT USING (true)")
    ask(database_url, "CREATE POLICY polite ON log_events FOR INSERT WITH CHECK (message <> 'rude')")
    # When a batch has one such row
    values = [record(1), record(2, message="rude"), record(3), record(1)]
    result = guest.store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    # Then it alone is a dead letter
    assert result == StoreResult(stored=2, repeated=1, dead_lettered=1)
    assert ask(database_url, "SELECT log_offset, sqlstate FROM dead_letters") == [(1, "42501")]


def test_a_table_that_may_not_be_written_is_the_servers_fault(guest: PostgresSink, database_url: str) -> None:
    ask(database_url, "REVOKE INSERT ON log_events FROM guest")
    for call in (lambda: guest.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing), guest.probe):
        with pytest.raises(SinkUnavailableError, match="lacks rights: INSERT on log_events"):
            call()
    assert ask(database_url, "SELECT count(*) FROM dead_letters") == [(0,)]


def test_the_probe_leaves_nothing_and_a_trigger_that_refuses_it_does_not_matter(
    sink: PostgresSink, database_url: str
) -> None:
    sink.probe()
    fail_on_insert(database_url, "P0001")
    sink.probe()
    assert stored_ids(database_url) == []
    assert sink.stored_offsets(LOG) == {}
    assert ask(database_url, "SELECT count(*) FROM stored_offsets") == [(0,)]


def test_the_servers_clock_comes_with_the_stored_offsets(sink: PostgresSink) -> None:
    before = time.time()  # noqa: TID251  # the machine's clock is what is compared
    for partition in range(3):
        found = sink.stored_offsets_and_time(LOG)  # with no row, then with some
        assert found.offsets == sink.stored_offsets(LOG) == dict.fromkeys(range(partition), 2)
        assert found.time is not None
        assert before - 0.01 < found.time < time.time() + 0.01  # noqa: TID251
        sink.store(LOG, partition, 0, numbered_batch(0, 2), before_commit=nothing)


def test_where_and_when_the_newest_batch_began_comes_with_the_stored_offsets(
    sink: PostgresSink, database_url: str
) -> None:
    # Given a partition whose offset an older version has stored, so that nothing is known of its batches
    ask(
        database_url,
        f"INSERT INTO stored_offsets (log_id, log_partition, next_offset) VALUES ('{LOG}', 1, 7) RETURNING 1",
    )
    found = sink.stored_offsets_and_time(LOG)
    assert (found.offsets, found.batches) == ({1: 7}, {})
    url, times = database_url, []
    # When batches are stored / Then the newest one began where the one before ended, before its commit
    for partition, first in ((0, 0), (0, 2), (1, 7)):
        before = sink_time(database_url)
        sink.store(LOG, partition, first, numbered_batch(first, 2), before_commit=lambda: times.append(sink_time(url)))
        batch = sink.stored_offsets_and_time(LOG).batches[partition]
        assert batch.offset == first
        assert before <= batch.at <= times[-1]
    # And a version that does not know the columns leaves them, and is not in the way
    ask(database_url, "UPDATE stored_offsets SET next_offset = next_offset + 5 WHERE log_partition = 0 RETURNING 1")
    found = sink.stored_offsets_and_time(LOG)
    assert (found.offsets[0], found.batches[0].offset) == (9, 2)


def test_the_stored_offsets_are_read_from_a_schema_without_the_columns_of_batches(
    sink: PostgresSink, database_url: str
) -> None:
    # Given a process without the right to change the schema, and a partition that an older version stores
    ask(
        database_url,
        "ALTER TABLE stored_offsets DROP COLUMN batch_began_offset, DROP COLUMN batch_began_at; "
        f"INSERT INTO stored_offsets (log_id, log_partition, next_offset) VALUES ('{LOG}', 1, 7) RETURNING 1",
    )
    # Then its lag is known, again and again, and nothing of its batches
    for _ in range(2):
        found = sink.stored_offsets_and_time(LOG)
        assert (found.offsets, found.time, found.batches) == ({1: 7}, None, {})


@pytest.mark.parametrize("is_ahead", [False, True])
def test_what_a_commit_waits_for_begins_when_the_offset_is_moved(sink: PostgresSink, is_ahead: bool) -> None:
    # Given a look from another session at who would make `settled_offsets` wait
    seen: list[tuple[str, int]] = []

    def look(moment: str) -> None:
        with contextlib.closing(PostgresSink(sink._settings)) as other:
            locks = "SELECT count(*) FROM pg_locks WHERE relation = 'stored_offsets'::regclass"
            writing = " AND pid = %(pid)s AND mode = 'RowExclusiveLock'"
            seen.append((moment, other.session.rows(locks + writing, {"pid": pid})[0][0]))

    values, log_id = [record(number) for number in range(900, 903)], new_log_id()
    [[pid]] = sink.session.rows("SELECT pg_backend_pid()")
    sink.store(
        log_id,
        0,
        0,
        batch(0, values),
        before_commit=lambda: look("before commit"),
        encoded=sink.encode(log_id, 0, batch(0, values)) if is_ahead else None,
        on_moved=lambda: look("moved"),
        on_encoded=lambda: look("encoded"),
    )
    # Then the transaction that moved the offset does, at all three moments, in this order
    assert seen == [("moved", 1), ("encoded", 1), ("before commit", 1)]


def test_what_a_commit_waits_for_begins_anew_with_another_transaction(sink: PostgresSink) -> None:
    # Given a batch that is refused once it is sent, so that a second transaction moves the offset
    log_id, moved = new_log_id(), []

    def look() -> None:
        [[transaction]] = sink.session.rows("SELECT pg_current_xact_id()::text")
        moved.append(transaction)

    values = [record(910), record(910)]
    sink.store(log_id, 0, 0, batch(0, values), before_commit=look, on_moved=lambda: moved.append("moved"))
    # Then what begins with the move has begun in the one that is committed too
    assert moved[:2] == ["moved", "moved"]
    assert len(moved) == 3


def sink_time(database_url: str) -> float:
    [(seconds,)] = ask(database_url, "SELECT extract(epoch FROM clock_timestamp())::float8")
    return float(seconds)


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
def test_contention_keeps_connection_and_lock(sink: PostgresSink, database_url: str, sqlstate: str) -> None:
    # Given a partition that is held, and a transaction that is rolled back in favour of another
    assert sink.acquire(LOG, 0)
    fail_on_insert(database_url, sqlstate)
    with pytest.raises(SinkContentionError):
        sink.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing)
    # Then nothing is stored, no letter is written, the partition is still held, and the next try succeeds
    with contextlib.closing(PostgresSink(sink._settings)) as other:
        assert not other.acquire(LOG, 0)
    fail_no_more(database_url)
    assert ask(database_url, "SELECT count(*) FROM dead_letters") == [(0,)]
    assert sink.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing) == StoreResult(stored=3)


@pytest.mark.parametrize("sqlstate", ["53100", "57014", "42P01", "25006", "XX000", "58030"])
def test_errors_of_the_server_never_make_dead_letters(sink: PostgresSink, database_url: str, sqlstate: str) -> None:
    # Given a server in trouble: its disk is full, say
    fail_on_insert(database_url, sqlstate)
    # Then that is what is raised, also on the way through the staging table
    for values in ([record(1)], [record(1), record(1)]):
        with pytest.raises(SinkUnavailableError):
            sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    assert ask(database_url, "SELECT count(*) FROM dead_letters") == [(0,)]
    # And the next try succeeds once the trouble is over
    fail_no_more(database_url)
    assert sink.store(LOG, 0, 0, numbered_batch(0, 3), before_commit=nothing) == StoreResult(stored=3)


def test_a_value_too_long_for_the_index_is_a_dead_letter(sink: PostgresSink, database_url: str) -> None:
    # Given an id that no index can hold (from another producer: ingest allows 64 characters)
    long_id = "".join(random.Random(1).choices(string.printable, k=20_000))
    values = [record(1), record(2, event_id=long_id), record(3)]
    result = sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    # Then it alone is refused
    assert result == StoreResult(stored=2, dead_lettered=1)
    assert ask(database_url, "SELECT sqlstate FROM dead_letters") == [("54000",)]


def test_times_out_of_range_are_dead_letters(sink: PostgresSink, database_url: str) -> None:
    values = [record(1, timestamp=2**61), record(2, timestamp=2**70), record(3, timestamp=-(10**17)), record(4)]
    result = sink.store(LOG, 0, 0, batch(0, values), before_commit=nothing)
    assert result == StoreResult(stored=1, dead_lettered=3)


@pytest.mark.parametrize(
    "attributes",
    [
        '{"price": 0.1234567890123456789}',
        '{"price":12345678901234567.25,"unit":"\\u20ac"}',
        '{"least": 1e-400, "ok": true}',
        '{"count":123456789012345678901234567890}',
        '{"price":1.5}',
    ],
)
@pytest.mark.parametrize("order", ["attributes last", "attributes first"])
def test_numbers_of_other_producers_keep_their_digits(
    sink: PostgresSink, database_url: str, attributes: str, order: str
) -> None:
    # Given a record that did not come through ingest, beside one that did
    rest = record(1).decode()[1:-1]
    text = (
        f'{{"attributes":{attributes}, {rest}}}'
        if order == "attributes first"
        else f'{{{rest}, "attributes": {attributes}}}'
    )
    result = sink.store(
        LOG, 0, 0, batch(0, [text.encode(), record(2, attributes={"price": 0.1})]), before_commit=nothing
    )
    # Then its attributes are stored as they were written
    assert result == StoreResult(stored=2)
    query = "SELECT attributes = %s::jsonb FROM log_events WHERE event_id = 'event-000001'"
    assert ask(database_url, query, [attributes]) == [(True,)]
    # And the same record is a repeat
    assert sink.store(LOG, 0, 2, batch(2, [text.encode()]), before_commit=nothing) == StoreResult(repeated=1)


def test_a_record_of_ingest_ends_with_its_attributes_so_that_they_are_not_decoded_twice() -> None:
    assert record(1, attributes={"price": 0.1, "unit": "€"}).endswith('"attributes":{"price":0.1,"unit":"€"}}'.encode())


def test_a_number_that_is_out_of_every_range_is_a_dead_letter(sink: PostgresSink) -> None:
    rest = record(1).decode()[1:-1]
    text = f'{{{rest}, "attributes": {{"price": 1e400}}}}'
    assert sink.store(LOG, 0, 0, batch(0, [text.encode()]), before_commit=nothing) == StoreResult(dead_lettered=1)


def test_poison_gives_up_before_all_is_halved(sink: PostgresSink, database_url: str) -> None:
    # Given a schema that refuses everything, and counts how often it is asked
    ask(database_url, "CREATE SEQUENCE asked")
    fail_on_insert(database_url, "23514", when="nextval('asked') > 0")
    # When a batch comes
    with pytest.raises(PoisonedError):
        sink.store(LOG, 0, 0, numbered_batch(0, 400), before_commit=nothing)
    # Then nothing is kept of it, and about half of it was tried alone
    assert stored_ids(database_url) == []
    assert ask(database_url, "SELECT count(*) FROM dead_letters") == [(0,)]
    assert ask(database_url, "SELECT last_value < 300 FROM asked") == [(True,)]


# --- session -------------------------------------------------------------------------------------------------


def test_the_session_is_durable_whatever_the_defaults(sink: PostgresSink, database_url: str) -> None:
    # Given a database whose defaults are others
    name = database_url.rpartition("/")[2]
    for default in (
        "synchronous_commit = off",
        "default_transaction_isolation = 'serializable'",
        "timezone = 'Asia/Tokyo'",
        "default_transaction_read_only = on",
    ):
        ask(database_url, f"ALTER DATABASE {name} SET {default}")
    # Then the session has what it needs
    shown = {
        name: sink.session.rows(f"SHOW {name}")[0][0]
        for name in ("synchronous_commit", "default_transaction_isolation", "application_name")
    }
    assert shown == {
        "synchronous_commit": "on",
        "default_transaction_isolation": "read committed",
        "application_name": f"sluice {__version__}",
    }
    assert sink.store(LOG, 0, 0, numbered_batch(0, 1), before_commit=nothing) == StoreResult(stored=1)


def test_one_connection_and_only_when_needed(sink: PostgresSink, database_url: str) -> None:
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name ^@ 'sluice'"
    eventually(lambda: ask(database_url, count) == [(0,)])  # the session of the migration has ended
    for offset in range(3):
        sink.store(LOG, 0, offset, numbered_batch(offset, 1), before_commit=nothing)
    assert ask(database_url, count) == [(1,)]
    sink.close()
    eventually(lambda: ask(database_url, count) == [(0,)])


def test_a_missing_schema_is_the_servers_fault(database_url: str) -> None:
    with contextlib.closing(PostgresSink(sink_settings(database_url))) as unmigrated:
        with pytest.raises(SinkUnavailableError, match="stored_offsets"):
            unmigrated.stored_offsets(LOG)
        with pytest.raises(SinkUnavailableError):
            unmigrated.probe()


def test_no_server_is_unavailable() -> None:
    with contextlib.closing(PostgresSink(sink_settings("postgresql://127.0.0.1:1/none"))) as nowhere:
        for call in (nowhere.probe, lambda: nowhere.acquire(LOG, 0), lambda: nowhere.stored_offsets(LOG)):
            with pytest.raises(SinkUnavailableError, match="no connection to PostgreSQL"):
                call()
        nowhere.release(LOG, 0)


def test_a_host_name_is_resolved(database_url: str) -> None:
    # `localhost` is often two addresses, of which PostgreSQL listens on one here
    settings = Settings(database_url=database_url.replace("127.0.0.1", "localhost"))
    migrate(settings)
    with contextlib.closing(PostgresSink(settings)) as by_name:
        by_name.probe()


def _use_inherited(sink: PostgresSink, answers: Any) -> None:
    was_busy = not sink.acquire(LOG, 0)  # on a connection of the child's own
    sink.store(LOG, 1, 0, numbered_batch(50, 1), before_commit=nothing)
    answers.put(was_busy)


def test_a_fork_gets_a_connection_of_its_own(sink: PostgresSink, database_url: str) -> None:
    # Given a sink that holds a partition, in a process that is forked
    assert sink.acquire(LOG, 0)
    sink.store(LOG, 0, 0, numbered_batch(0, 1), before_commit=nothing)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_use_inherited, args=(sink, answers))
    # When the child uses it, and ends
    child.start()
    was_busy = answers.get(timeout=WAIT_SECONDS_MAX)
    child.join(WAIT_SECONDS_MAX)
    # Then the child had no lock, and the parent has connection and lock as before
    assert was_busy
    assert child.exitcode == 0
    sink.store(LOG, 0, 1, numbered_batch(1, 1), before_commit=nothing)
    with contextlib.closing(PostgresSink(sink._settings)) as other:
        assert not other.acquire(LOG, 0)
    assert stored_ids(database_url) == ["event-000000", "event-000001", "event-000050"]


def test_a_stalled_holder_is_terminated(sink: PostgresSink) -> None:
    # Given a partition that another backend holds, in the midst of a transaction
    with contextlib.closing(PostgresSink(sink._settings)) as stalled:
        assert stalled.acquire(LOG, 2)
        stalled.session.count("BEGIN")
        assert not sink.acquire(LOG, 2)
        # Then it keeps that while it sends something: it may be busy with another partition
        assert not sink.end_stalled_drain(LOG, 2, quiet_seconds=60)
        stalled.session.count("SELECT 1")
        # When it is terminated
        assert sink.end_stalled_drain(LOG, 2, quiet_seconds=0)
        # Then the partition is free
        eventually(lambda: sink.acquire(LOG, 2))
        # And the terminated one finds out
        with pytest.raises(SinkUnavailableError):
            stalled.probe()
        assert not stalled.acquire(LOG, 2)
    # And nobody ends himself, nor where nobody holds
    assert not sink.end_stalled_drain(LOG, 2, quiet_seconds=0)
    assert not sink.end_stalled_drain(LOG, 3, quiet_seconds=0)


@pytest.mark.parametrize(("ahead", "is_ended"), [("1 hour", True), ("-20 seconds", False), ("-1 hour", True)])
def test_a_clock_that_was_set_back_keeps_no_stalled_holder(sink: PostgresSink, ahead: str, is_ended: bool) -> None:
    # Given a holder whose last statement, by PostgreSQL's clock, is to come yet; or a while ago, or long ago
    with contextlib.closing(PostgresSink(sink._settings)) as stalled:
        assert stalled.acquire(LOG, 2)
        sink.session.count(
            "CREATE TEMPORARY VIEW pg_stat_activity AS SELECT pid, "
            f"state_change + interval '{ahead}' AS state_change FROM pg_catalog.pg_stat_activity"
        )
        sink.session.count("SET search_path = pg_temp, public, pg_catalog")
        # Then it counts as quiet unless it has sent something within the time
        assert sink.end_stalled_drain(LOG, 2, quiet_seconds=60) == is_ended


def test_lookups_have_their_indexes(sink: PostgresSink, database_url: str) -> None:
    # Given enough events for an index to pay
    values = [
        record(
            number, correlation_id=f"request-{number}", message="x" * 200, timestamp=1_700_000_000_000 + number * 1000
        )
        for number in range(20_000)
    ]
    for first in range(0, len(values), 2000):
        sink.store(LOG, 0, first, batch(first, values[first : first + 2000]), before_commit=nothing)
    ask(database_url, "VACUUM ANALYZE log_events")
    # Then a correlation id and a time range are looked up in one
    for where, index in (
        ("correlation_id = 'request-77'", "log_events_correlation_id"),
        ("event_time BETWEEN '2023-11-14 23:00+00' AND '2023-11-14 23:01+00'", "log_events_event_time"),
    ):
        plan = "\n".join(line for (line,) in ask(database_url, f"EXPLAIN SELECT * FROM log_events WHERE {where}"))
        assert index in plan, plan
        assert ask(database_url, f"SELECT count(*) > 0 FROM log_events WHERE {where}") == [(True,)]


def test_what_is_kept_of_a_poisoned_batch_names_the_offset_that_was_stored(sink: PostgresSink) -> None:
    # Given a batch behind a hole that the log declares
    behind = replace(batch(8, [b"broken"] * 11), gap_from=5)
    sink.store(LOG, 0, 0, numbered_batch(0, 5), before_commit=nothing)
    with pytest.raises(PoisonedError) as caught:
        sink.store(LOG, 0, 5, behind, before_commit=nothing)
    # Then all that it takes to accept it is kept
    kept = caught.value.evidence or {}
    assert (kept["expected"], kept["first"], kept["end"], kept["condemned"]) == (5, 8, 19, False)
