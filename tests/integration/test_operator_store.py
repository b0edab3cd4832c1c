"""Pauses that outlive a flush of Redis."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from checks.testbed.database import ask
from pipeline.control_store.memory import MemoryControlStore, MemoryKeyMirror, MemoryServer
from pipeline.keys import ApiKey, StoredKeys
from pipeline.names import PauseReason
from pipeline.ports.control import OperatorLimit, OperatorPause
from pipeline.ports.keys import MirroredKeys, mirrored_version
from pipeline.sink.migrate import migrate
from pipeline.sink.operator_store import PostgresOperatorStore
from pipeline.sink.session import Session
from support.sinks import sink_settings
from tasks.sync_keys import sync_keys


def test_pauses_are_kept_until_they_are_deleted(database_url: str) -> None:
    settings = sink_settings(database_url)
    migrate(settings)
    with contextlib.closing(PostgresOperatorStore(Session(settings))) as store:
        assert store.load().pauses == []
        operator = OperatorPause(PauseReason.OPERATOR, "ada@example", "maintenance\0", 1_760_000_000.25)
        poison = OperatorPause(PauseReason.POISON, "worker", "a new column", 1_760_000_001.5)
        # When two are saved, one of them twice
        store.save_pause(poison)
        store.save_pause(operator)
        store.save_pause(OperatorPause(PauseReason.OPERATOR, "bob@example", "me too", 1_770_000_000.0))
        # Then each is there once, as it was first
        kept = OperatorPause(PauseReason.OPERATOR, "ada@example", "maintenance", 1_760_000_000.25)
        assert store.load().pauses == [kept, poison]
        # And a reason of a later version is one that this version does not know, by its own name
        ask(
            database_url,
            "INSERT INTO control_pauses (reason, paused_by, why, since) VALUES ('later', 'x', 'y', to_timestamp(5))",
        )
        later = OperatorPause(PauseReason.UNKNOWN, "x", "y", 5.0, word="later")
        assert store.load().pauses == [later, kept, poison]
        store.save_pause(later)
        assert store.delete_pause(later.name)
        # And deleted once
        assert store.delete_pause(PauseReason.OPERATOR)
        assert not store.delete_pause(PauseReason.OPERATOR)
        assert store.load().pauses == [poison]


def test_pauses_of_partitions_are_kept_each_with_what_made_it_stop(database_url: str) -> None:
    settings = sink_settings(database_url)
    migrate(settings)
    with contextlib.closing(PostgresOperatorStore(Session(settings))) as store:
        # Given one of the whole system and two of partitions, one of which could not keep its evidence at first
        whole = OperatorPause(PauseReason.POISON, "worker", "all", 1_760_000_000.5)
        first, second = (OperatorPause(PauseReason.POISON, "worker", "a batch", 1_760_000_001.5, p) for p in (3, 7))
        for pause in (whole, first, second):
            store.save_pause(pause)
        evidence = {"next": 12, "sample": [{"content": 'a "\0" byte'}]}
        store.save_pause(first, evidence)
        store.save_pause(first, {"next": 99})
        # Then all are there, and the evidence is the first that came
        assert store.load().pauses == [whole, first, second]
        assert store.pause_evidence(PauseReason.POISON, 3) == {"next": 12, "sample": [{"content": 'a "\ufffd" byte'}]}
        assert store.pause_evidence(PauseReason.POISON, 7) is None
        # And each ends by itself
        assert store.delete_pause(PauseReason.POISON, 3)
        assert not store.delete_pause(PauseReason.POISON, 3)
        assert store.load().pauses == [whole, second]
        assert store.delete_pause(PauseReason.POISON)
        assert store.load().pauses == [second]


def test_limits_of_accounts_are_kept_until_they_are_deleted(database_url: str) -> None:
    settings = sink_settings(database_url)
    migrate(settings)
    with contextlib.closing(PostgresOperatorStore(Session(settings))) as store:
        assert store.load().accounts == []
        first = OperatorLimit("192.0.2.1", 10.5, 2.0, "ada@example", "a contract\0", 1_760_000_000.25)
        store.save_account_limit(first)
        second = OperatorLimit("192.0.2.1", None, None, "bob@example", "trusted", 1_760_000_001.25)
        other = OperatorLimit("2001:db8::/64", 5.0, None, "bob@example", "", 1_760_000_002.5)
        store.save_account_limit(other)
        assert [(one.rate, one.why) for one in store.load().accounts] == [(10.5, "a contract"), (5.0, "")]
        store.save_account_limit(second)
        assert store.load().accounts == [second, other]
        store.delete_account_limit("192.0.2.1")
        store.delete_account_limit("192.0.2.1")
        assert store.load().accounts == [other]


def test_api_keys_are_kept_and_each_change_has_a_version_of_its_own(database_url: str) -> None:
    settings = sink_settings(database_url)
    migrate(settings)
    with contextlib.closing(PostgresOperatorStore(Session(settings))) as store:
        versions = [store.keys_version()]
        assert store.load_keys() == StoredKeys(versions[0], ())
        one = ApiKey("00000001", "shop", "a" * 64, ("loki", "otlp"), 1_800_000_000.5, "ada@example", "why\0", 5.25)
        two = ApiKey("00000002", "shop", "b" * 64, (), None, "ada@example", "", 6.5, "info")
        for key in (two, one):
            store.save_key(key)
            versions.append(store.keys_version())
        store.save_key(replace(one, name="another"))  # it is there already
        assert store.load_keys() == StoredKeys(versions[-1], (replace(one, why="why"), two))
        assert store.delete_keys(["00000001", "00000009"]) == 1
        versions.append(store.keys_version())
        assert store.delete_keys(["00000001"]) == 0
        assert store.load_keys() == StoredKeys(versions[-1], (two,))
        assert len(set(versions)) == 4


def test_a_mirror_that_an_older_control_worker_wrote_without_levels_is_written_again(database_url: str) -> None:
    # Given keys, and a control worker that knows no levels: its copy has PostgreSQL's version, and no level
    settings, server = sink_settings(database_url), MemoryServer()
    migrate(settings)
    mirror = MemoryKeyMirror(settings, server)
    plain = ApiKey("00000001", "shop", "a" * 64, (), None, "ada@example", "", 5.25)
    limited = ApiKey("00000002", "shop", "b" * 64, (), None, "ada@example", "", 6.5, "info")
    with contextlib.closing(PostgresOperatorStore(Session(settings))) as store:
        parts: Any = SimpleNamespace(
            control_store=MemoryControlStore(settings, server), keys=mirror, operators=store,
        )  # fmt: skip

        def copied_by_the_older_one() -> None:
            [(version,)] = ask(database_url, "SELECT version FROM api_keys_version")
            found = mirror.load()
            keys = [replace(key, level=None) for key in store.load_keys().keys]
            assert mirror.replace(keys, version, instead_of=None if found is None else found.version)

        store.save_key(plain)
        copied_by_the_older_one()
        # Then its copy counts, as long as no key has a level: the two do not undo each other's work
        assert not sync_keys(parts)
        store.save_key(limited)
        copied_by_the_older_one()
        # And with one, it is written again, so that ingest reads it
        assert sync_keys(parts)
        assert mirror.load() == MirroredKeys(mirrored_version(store.keys_version()), (plain, limited))
        assert not sync_keys(parts)
