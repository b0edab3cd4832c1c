"""Pauses that outlive a flush of Redis."""

import contextlib

from pipeline.names import PauseReason
from pipeline.settings import Settings
from pipeline.sink.control_settings import SavedPause, delete_pause, load_pauses, save_pause
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from support.database import ask


def test_pauses_are_kept_until_they_are_deleted(database_url: str) -> None:
    settings = Settings(database_url=database_url)
    migrate(settings)
    with contextlib.closing(PostgresSink(settings)) as sink:
        assert load_pauses(sink) == []
        operator = SavedPause(PauseReason.OPERATOR, "ada@example", "maintenance\0", 1_760_000_000.25)
        poison = SavedPause(PauseReason.POISON, "worker", "a new column", 1_760_000_001.5)
        # When two are saved, one of them twice
        save_pause(sink, poison)
        save_pause(sink, operator)
        save_pause(sink, SavedPause(PauseReason.OPERATOR, "bob@example", "me too", 1_770_000_000.0))
        # Then each is there once, as it was first
        kept = SavedPause(PauseReason.OPERATOR, "ada@example", "maintenance", 1_760_000_000.25)
        assert load_pauses(sink) == [kept, poison]
        # And a reason of a later version is left alone
        ask(database_url, "INSERT INTO control_pauses (reason, paused_by, why) VALUES ('later', 'x', 'y')")
        assert load_pauses(sink) == [kept, poison]
        # And deleted once
        assert delete_pause(sink, PauseReason.OPERATOR)
        assert not delete_pause(sink, PauseReason.OPERATOR)
        assert load_pauses(sink) == [poison]
