"""Former event logs with events that are not stored are named."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from checks.testbed.database import ask
from pipeline import wiring
from pipeline.clock import ManualClock
from pipeline.names import AlarmCode
from pipeline.ports.control import Alarm
from pipeline.ports.log import EventLog
from pipeline.settings import Settings
from pipeline.sink.migrate import migrate
from stack.servers import Server, free_port
from support.event_logs import patient_log, recovered
from tasks.former_logs import ASK_SECONDS, SEEN_SECONDS_MIN, FormerLogs, without_password


@pytest.fixture(params=["redis", "kafka"])
def former(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    migrate(settings)
    if request.param == "kafka":
        server: Server = request.getfixturevalue("kafka")
        return replace(settings, event_log_url=server.url)
    return settings


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[EventLog]:
    with contextlib.closing(patient_log(settings)) as log:
        yield log


def seen_long_ago(settings: Settings) -> None:
    ask(settings.database_url, "UPDATE known_logs SET seen_at = now() - interval '10 minutes'")


def look_again(logs: FormerLogs, clock: ManualClock) -> list[Alarm]:
    """The alarms after so long that a log which nobody looks after counts as former."""
    logs.alarms("present", {0: 0})
    clock.advance(SEEN_SECONDS_MIN)
    return logs.alarms("present", {0: 0})


@pytest.mark.parametrize("step", ["-1 hour", "1 hour"])
def test_steps_of_postgresqls_clock_neither_hide_a_former_log_nor_make_one(settings: Settings, step: str) -> None:
    # Given two logs that were in use just now, by this clock, and PostgreSQL's clock, which is stepped
    migrate(settings)
    clock = ManualClock()
    with contextlib.closing(wiring.make_storage(settings)) as storage:
        others = {
            log_id: FormerLogs(replace(settings, key_prefix=f"{log_id}:"), storage.known_logs, storage.offsets, clock)
            for log_id in ("used.4", "left.4")
        }
        logs = FormerLogs(settings, storage.known_logs, storage.offsets, clock)
        for log_id, system in others.items():
            system.alarms(log_id, {0: 7})
        assert logs.alarms("present", {0: 0}) == []
        ask(settings.database_url, f"UPDATE known_logs SET seen_at = seen_at - interval '{step}'")
        assert logs.alarms("present", {0: 0}) == []
        # When one of them is left, and the others go on
        clock.advance(SEEN_SECONDS_MIN / 2)
        assert logs.alarms("present", {0: 0}) == []
        others["used.4"].alarms("used.4", {0: 7})
        clock.advance(SEEN_SECONDS_MIN / 2)
        others["used.4"].alarms("used.4", {0: 7})
        # Then that one is named, as soon as if nothing had been stepped
        [alarm] = logs.alarms("present", {0: 0})
        assert "'left.4'" in alarm.look_at
        assert "about 30 s ago" in alarm.what


def test_a_log_of_another_machine_with_the_same_address_is_in_use(settings: Settings) -> None:
    # Given two systems with one database, and each with an event log at 127.0.0.1 of its own machine
    migrate(settings)
    clock = ManualClock()
    with contextlib.closing(wiring.make_storage(settings)) as storage:
        first, second = (FormerLogs(settings, storage.known_logs, storage.offsets, clock) for _ in range(2))
        # When both run, with events that are not stored yet
        for _ in range(3):
            for log_id, system in (("first.4", first), ("second.4", second)):
                system.see(log_id, {0: 7})
                # Then neither calls the other's log a former one
                assert system.alarms(log_id, {0: 7}) == []
            clock.advance(SEEN_SECONDS_MIN / 2)


def test_a_former_log_is_named_until_it_is_stored(former: Settings) -> None:
    # Given a log with ten events of which four are stored, and settings that name another one since
    clock = ManualClock()
    present = replace(former, log_topic=f"{former.log_topic}-2", key_prefix=f"{former.key_prefix}2:")
    with contextlib.closing(wiring.make_storage(former)) as storage, opened(former) as log:
        log_id = recovered(log.identity).log_id
        recovered(lambda: log.append([(0, b"x")] * 10))
        ask(former.database_url, "INSERT INTO stored_offsets VALUES (%s, 0, 4)", [log_id])
        assert FormerLogs(former, storage.known_logs, storage.offsets, clock).alarms(log_id, {0: 10, 1: 0}) == []
        logs = FormerLogs(present, storage.known_logs, storage.offsets, clock)
        # Then it is not named while somebody still looks after it, and is afterwards
        assert logs.alarms("present", {0: 0}) == []
        seen_long_ago(former)
        [alarm] = look_again(logs, clock)
        assert alarm.code == AlarmCode.FORMER_LOG
        assert "still holds 6 events" in alarm.what
        assert former.log_topic in alarm.what or former.key_prefix in alarm.what
        # And so it stays until they are stored
        assert logs.alarms("present", {0: 0}) == [alarm]
        ask(former.database_url, "UPDATE stored_offsets SET next_offset = 10")
        clock.advance(ASK_SECONDS)
        assert logs.alarms("present", {0: 0}) == []


def test_a_former_log_that_can_not_be_asked_is_named_by_what_was_last_seen(settings: Settings) -> None:
    # Given logs that are gone: one whose server is away, and one that was emptied in place
    migrate(settings)
    away = replace(settings, event_log_url=f"redis://user:secret@127.0.0.1:{free_port()}")
    clock = ManualClock()
    with contextlib.closing(wiring.make_storage(settings)) as storage:
        FormerLogs(away, storage.known_logs, storage.offsets, clock).alarms("one.4", {0: 10, 1: 5})
        FormerLogs(settings, storage.known_logs, storage.offsets, clock).alarms("two.4", {0: 3})
        FormerLogs(settings, storage.known_logs, storage.offsets, clock).alarms("all stored.4", {0: 2})
        ask(
            settings.database_url,
            "INSERT INTO stored_offsets VALUES ('one.4', 0, 10), ('two.4', 0, 1), ('all stored.4', 0, 2)",
        )
        seen_long_ago(settings)
        # Then each is named by what was last seen of it, without a password, and one that was stored is not
        logs = FormerLogs(settings, storage.known_logs, storage.offsets, clock)
        for _ in range(3):
            alarms = logs.alarms("present.4", {0: 0})
        assert sorted(alarm.what.partition(" events")[0] for alarm in alarms) == ["2", "5"]
        assert "secret" not in str(alarms)
        # And forgotten where somebody gives its events up
        ask(settings.database_url, "DELETE FROM known_logs WHERE log_id = 'one.4'")
        assert len(logs.alarms("present.4", {0: 0})) == 1


def test_what_a_log_got_while_postgresql_was_away_is_named_after_it_was_emptied(settings: Settings) -> None:
    # Given a log of which all was stored when PostgreSQL last answered, and which two processes have seen grow since
    migrate(settings)
    clock = ManualClock()
    with contextlib.closing(wiring.make_storage(settings)) as storage:
        processes = [FormerLogs(settings, storage.known_logs, storage.offsets, clock) for _ in range(2)]
        for process in processes:
            process.see("one.4", {0: 2})
        processes[0].alarms("one.4", {0: 2})
        ask(settings.database_url, "INSERT INTO stored_offsets VALUES ('one.4', 0, 2)")
        processes[0].see("one.4", {0: 7, 1: 1})
        processes[1].see("one.4", {0: 5})
        # When it is emptied, and PostgreSQL answers again
        for process in processes:
            process.see("present.4", {0: 0})
            alarms = process.alarms("present.4", {0: 0})
        # Then what was acknowledged and is stored nowhere is named at once: at its address is another log now
        [alarm] = alarms
        assert alarm.what.startswith("6 events of a former event log")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:s@cret@localhost", "redis://@localhost"),
        ("rediss://user:secret@localhost:6379/0", "rediss://user@localhost:6379/0"),
        ("kafka://a:9092,b:9092", "kafka://a:9092,b:9092"),
    ],
)
def test_a_url_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
