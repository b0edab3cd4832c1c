"""Pauses that outlive a flush of Redis."""

import contextlib

from pipeline.names import PauseReason
from pipeline.ports.control import AskedPause
from pipeline.settings import Settings
from pipeline.sink.control_settings import delete_pause, load_pauses, pause_evidence, save_pause
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from support.database import ask


def test_pauses_are_kept_until_they_are_deleted(database_url: str) -> None:
    settings = Settings(database_url=database_url)
    migrate(settings)
    with contextlib.closing(PostgresSink(settings)) as sink:
        assert load_pauses(sink) == []
        operator = AskedPause(PauseReason.OPERATOR, "ada@example", "maintenance\0", 1_760_000_000.25)
        poison = AskedPause(PauseReason.POISON, "worker", "a new column", 1_760_000_001.5)
        # When two are saved, one of them twice
        save_pause(sink, poison)
        save_pause(sink, operator)
        save_pause(sink, AskedPause(PauseReason.OPERATOR, "bob@example", "me too", 1_770_000_000.0))
        # Then each is there once, as it was first
        kept = AskedPause(PauseReason.OPERATOR, "ada@example", "maintenance", 1_760_000_000.25)
        assert load_pauses(sink) == [kept, poison]
        # And a reason of a later version is one that this version does not know, by its own name
        ask(
            database_url,
            "INSERT INTO control_pauses (reason, paused_by, why, since) VALUES ('later', 'x', 'y', to_timestamp(5))",
        )
        later = AskedPause(PauseReason.UNKNOWN, "x", "y", 5.0, word="later")
        assert load_pauses(sink) == [later, kept, poison]
        save_pause(sink, later)
        assert delete_pause(sink, later.name)
        # And deleted once
        assert delete_pause(sink, PauseReason.OPERATOR)
        assert not delete_pause(sink, PauseReason.OPERATOR)
        assert load_pauses(sink) == [poison]


def test_pauses_of_partitions_are_kept_each_with_what_made_it_stop(database_url: str) -> None:
    settings = Settings(database_url=database_url)
    migrate(settings)
    with contextlib.closing(PostgresSink(settings)) as sink:
        # Given one of the whole system and two of partitions, one of which could not keep its evidence at first
        whole = AskedPause(PauseReason.POISON, "worker", "all", 1_760_000_000.5)
        first, second = (AskedPause(PauseReason.POISON, "worker", "a batch", 1_760_000_001.5, p) for p in (3, 7))
        for pause in (whole, first, second):
            save_pause(sink, pause)
        evidence = {"next": 12, "sample": [{"content": 'a "\0" byte'}]}
        save_pause(sink, first, evidence)
        save_pause(sink, first, {"next": 99})
        # Then all are there, and the evidence is the first that came
        assert load_pauses(sink) == [whole, first, second]
        assert pause_evidence(sink, PauseReason.POISON, 3) == {"next": 12, "sample": [{"content": 'a "\ufffd" byte'}]}
        assert pause_evidence(sink, PauseReason.POISON, 7) is None
        # And each ends by itself
        assert delete_pause(sink, PauseReason.POISON, 3)
        assert not delete_pause(sink, PauseReason.POISON, 3)
        assert load_pauses(sink) == [whole, second]
        assert delete_pause(sink, PauseReason.POISON)
        assert load_pauses(sink) == [second]
