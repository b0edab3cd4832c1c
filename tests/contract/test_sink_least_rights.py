"""What every event sink must do, by a user of PostgreSQL who has the rights that `migrate` grants, and no others."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import psycopg2
import pytest
from contract.test_sink import (  # collected here too, on the bench below
    PostgresBench,
    test_a_batch_is_stored_with_its_offset,
    test_a_dead_letter_at_the_place_of_an_earlier_one_loses_neither,
    test_a_repeat_is_stored_once,
    test_conflicts_are_no_poison,
    test_one_drainer_for_each_partition,
    test_probe_writes,
    test_the_last_record_is_kept_beside_the_offset,
    test_too_many_dead_letters_in_a_batch_roll_it_back,
)

from checks.testbed.database import ask
from pipeline.errors import SchemaError, SinkMisconfiguredError
from pipeline.keys import ApiKey
from pipeline.names import PauseReason
from pipeline.ports.control import Bands, OperatorLimit, OperatorPause, Override
from pipeline.settings import Settings
from pipeline.sink.dead_letters import PostgresDeadLetters
from pipeline.sink.known_logs import PostgresKnownLogs
from pipeline.sink.log_marks import PostgresLogMarks
from pipeline.sink.migrate import PostgresSchema, migrate
from pipeline.sink.operator_store import PostgresOperatorStore
from pipeline.sink.postgres import PostgresSink
from pipeline.sink.session import Session
from support.records import batch, new_log_id, nothing, numbered_batch, record
from support.sinks import sink_settings

__all__ = [
    "test_a_batch_is_stored_with_its_offset",
    "test_a_dead_letter_at_the_place_of_an_earlier_one_loses_neither",
    "test_a_repeat_is_stored_once",
    "test_conflicts_are_no_poison",
    "test_one_drainer_for_each_partition",
    "test_probe_writes",
    "test_the_last_record_is_kept_beside_the_offset",
    "test_too_many_dead_letters_in_a_batch_roll_it_back",
]
LOG = new_log_id()


@pytest.fixture
def user_url(database_url: str) -> Iterator[str]:
    """The URL of a user of a migrated database, which is not his."""
    # Given a database on which nobody has a right that was not granted
    role = f"r{os.urandom(6).hex()}"
    name = database_url.rpartition("/")[2]
    ask(database_url, f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
    ask(database_url, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    owner, user = sink_settings(database_url), database_url.replace("//sluice@", f"//{role}:x@")
    migrate(owner)
    assert PostgresSchema(owner).give_rights(user) == f"made the role {role}"
    yield user
    ask(database_url, f"DROP OWNED BY {role}")
    ask(database_url, f"DROP ROLE {role}")


@pytest.fixture
def bench(user_url: str) -> Iterator[PostgresBench]:
    with contextlib.ExitStack() as stack:
        yield PostgresBench(user_url, stack)


@pytest.fixture
def ids_bench(bench: PostgresBench) -> PostgresBench:
    return bench


def test_what_operators_set_is_kept_and_deleted(user_url: str) -> None:
    with contextlib.closing(PostgresOperatorStore(Session(sink_settings(user_url)))) as store:
        for partition in (None, 3):
            store.save_pause(OperatorPause(PauseReason.POISON, "ada", "why", 1.0, partition), {"next": 1})
            store.save_pause(OperatorPause(PauseReason.POISON, "ada", "why", 1.0, partition), {"next": 2})
        store.set_override(Override(5.0, 4e9, "ada", "why", 1.0))
        store.set_override(Override(6.0, 4e9, "ada", "why", 1.0))
        store.set_bands(Bands(10.0, 1.0, 5, 50, "ada", "why", 1.0))
        store.set_bands(Bands(11.0, 1.0, 5, 50, "ada", "why", 1.0))
        kept = store.load()
        assert len(kept.pauses) == 2
        assert kept.override is not None
        assert kept.bands is not None
        assert (kept.override.rate, kept.bands.rate_max) == (6.0, 11.0)
        assert store.pause_evidence(PauseReason.POISON, 3) == {"next": 1}
        assert store.delete_pause(PauseReason.POISON)
        assert store.delete_pause(PauseReason.POISON, 3)
        store.set_override(None)
        store.set_bands(None)
        assert store.load().pauses == []
        facts = store.database_facts()
        assert facts.size_bytes > 0
        assert facts.connections == 1


def test_keys_and_limits_of_accounts_are_kept_and_deleted(user_url: str) -> None:
    with contextlib.closing(PostgresOperatorStore(Session(sink_settings(user_url)))) as store:
        key = ApiKey("0123abcd", "shop", "0" * 64, (), None, "ada", "why", 1.0)
        store.save_key(key)
        store.save_key(key)
        assert store.load_keys().keys == (key,)
        assert store.delete_keys([key.id]) == 1
        for rate in (5.0, 6.0):
            store.save_account_limit(OperatorLimit("key:shop", rate, None, "ada", "why", 1.0))
        assert [one.rate for one in store.load().accounts] == [6.0]
        store.delete_account_limit("key:shop")
        assert store.load().accounts == []


def test_the_duties_of_the_controller_and_replays_work(user_url: str) -> None:
    settings = sink_settings(user_url)
    with contextlib.closing(PostgresSink(settings)) as sink, contextlib.closing(PostgresSink(settings)) as stuck:
        # Dead letters are counted, listed and replayed
        sink.store(LOG, 0, 0, batch(0, [record(0), b"broken"]), before_commit=nothing)
        letters = PostgresDeadLetters(sink.session)
        assert letters.count().open == 1
        assert [letter.offset for letter in letters.listed(limit=10)] == [1]
        assert letters.between(LOG, 0, 0, 9).keys() == {1}
        assert letters.replay(limit=10).refused == 1
        # Offsets are settled, though a drain is at work; former logs are known
        assert sink.settled_offsets(LOG) == {0: 2}
        known = PostgresKnownLogs(sink.session)
        for _ in range(2):
            known.note(LOG, url="redis://h", name="n", ends={0: 2})
        assert [log.log_id for log in known.others("other", logs_max=9)] == [LOG]
        # How far the log is stored is noted, found and replaced
        marks = PostgresLogMarks(sink.session)
        for _ in range(2):
            marks.mark(LOG, spacing_seconds=0.0, keep_seconds=0.0)
            [expired], _ = marks.expired(LOG, keep_seconds=0.0)
            assert (expired.partition, expired.below, expired.next_offset) == (0, 1, 2)
        # And a drain that is stuck is named and ended
        assert stuck.acquire(LOG, 0)
        assert sink.why_not_stored(LOG, 0) is not None
        assert sink.end_stalled_drain(LOG, 0, quiet_seconds=0)


def test_nothing_else_is_allowed(user_url: str) -> None:
    # Neither the schema, nor events that are stored
    for statement in (
        "CREATE TABLE more (x integer)",
        "DELETE FROM log_events",
        "UPDATE log_events SET message = ''",
        "TRUNCATE log_events",
        "DELETE FROM stored_offsets",
        "DELETE FROM dead_letters",
        "INSERT INTO schema_migrations VALUES (99, 'x', 'x')",
        "DROP TABLE log_events",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            ask(user_url, statement)


def test_a_right_that_is_missing_is_named(user_url: str, database_url: str) -> None:
    role = user_url.partition("//")[2].partition(":")[0]
    ask(database_url, f"REVOKE UPDATE ON known_logs FROM {role}")
    with contextlib.closing(PostgresSink(sink_settings(user_url))) as sink:
        with pytest.raises(SinkMisconfiguredError, match="lacks rights: UPDATE on known_logs"):
            sink.probe()
        # A table that came with a newer migration gets its rights by the next `migrate`
        assert PostgresSchema(sink_settings(database_url)).give_rights(user_url) == f"granted rights to {role}"
        sink.store(LOG, 0, 0, numbered_batch(0, 1), before_commit=nothing)


def test_the_table_of_marks_is_needed_only_with_log_keep_hours(user_url: str, database_url: str) -> None:
    # Given a user who has own grants, from before there was this table
    role = user_url.partition("//")[2].partition(":")[0]
    ask(database_url, f"REVOKE ALL ON log_marks FROM {role}")
    with contextlib.closing(PostgresSink(sink_settings(user_url))) as sink:
        sink.store(LOG, 0, 0, numbered_batch(0, 2), before_commit=nothing)
        sink.store(LOG, 0, 2, batch(1, []), before_commit=nothing)  # it is set back
        assert sink.stored_offsets(LOG) == {0: 1}
    # When a process is to make marks / Then it says what is missing
    keeps = Settings(database_url=user_url, event_log_url="kafka://k:9092", log_keep_hours=72)
    with contextlib.closing(PostgresSink(keeps)) as sink:
        with pytest.raises(SinkMisconfiguredError, match="lacks rights: SELECT on log_marks, INSERT on log_marks, DEL"):
            sink.probe()
        # And `migrate` grants it
        PostgresSchema(sink_settings(database_url)).give_rights(user_url)
        sink.probe()


@pytest.fixture
def owner(database_url: str) -> Iterator[Settings]:
    """The owner's settings of a migrated database; roles that have rights in it afterwards are dropped."""
    before = set(ask(database_url, "SELECT rolname FROM pg_roles"))
    settings = sink_settings(database_url)
    migrate(settings)
    yield settings
    for (role,) in set(ask(database_url, "SELECT rolname FROM pg_roles")) - before:
        quoted = '"' + role.replace('"', '""') + '"'
        ask(database_url, f"DROP OWNED BY {quoted}")
        ask(database_url, f"DROP ROLE {quoted}")


@pytest.mark.parametrize("name", ['x"; DROP TABLE log_events; --', "50%s %(role)s", "ü ' \\", "n" * 70, "Group"])
def test_any_name_of_a_user_is_a_name(owner: Settings, name: str) -> None:
    user_url = owner.database_url.replace("//sluice@", f"//{quote(name, safe='')}:x@")
    schema = PostgresSchema(owner)
    assert schema.give_rights(user_url) == f"made the role {name}"
    assert schema.give_rights(user_url) == f"granted rights to {name}"
    with contextlib.closing(PostgresSink(sink_settings(user_url))) as sink:
        sink.store(LOG, 0, 0, numbered_batch(0, 1), before_commit=nothing)


def test_several_that_grant_at_once_do_no_harm(owner: Settings) -> None:
    role = f"r{os.urandom(6).hex()}"
    user_url = owner.database_url.replace("//sluice@", f"//{role}:x@")
    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(lambda _: PostgresSchema(owner).give_rights(user_url), range(8)))
    assert sorted(map(str, said)) == [*[f"granted rights to {role}"] * 7, f"made the role {role}"]


def test_rights_that_are_not_ones_own_to_grant_are_named(owner: Settings) -> None:
    # Given a role that may use the tables, and does not own them: to its grants PostgreSQL only says a warning
    role, other = (f"r{os.urandom(6).hex()}" for _ in range(2))
    user_url = owner.database_url.replace("//sluice@", f"//{role}:x@")
    PostgresSchema(owner).give_rights(user_url)
    ask(owner.database_url, f"CREATE ROLE {other} LOGIN")
    with pytest.raises(SchemaError, match=f"{other} can't get its rights: .* may not grant SELECT on log_events, .*"):
        PostgresSchema(sink_settings(user_url)).give_rights(user_url.replace(role, other))
