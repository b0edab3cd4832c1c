"""Celery's command line as operators use it, against real workers: two control workers and one for batches."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg2
import pytest
import redis

from checks.testbed.database import ask, fail_no_more, fail_on_insert
from checks.testbed.processes import ROOT, System, control_worker
from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from pipeline import wiring
from pipeline.names import KEY_LOG_STREAM, PauseReason
from pipeline.ports.control import ControlEvent, ControlState
from pipeline.settings import Settings
from pipeline.sink.migrate import PostgresSchema, migrate
from stack.config import environ_with
from stack.servers import Server, free_port
from support.event_logs import patient_log
from support.records import record
from support.servers import own_servers

CELERY = (sys.executable, "-W", "ignore", "-m", "celery", "-A", "tasks.app")


@dataclass
class Rig:
    """A running system with a second control worker, and what it is asked with."""

    system: System
    settings: Settings
    control_redis: Server
    postgres: Server

    def celery(
        self, kind: str, *words: str, seconds_max: float = WAIT_SECONDS_MAX
    ) -> "subprocess.CompletedProcess[str]":
        """`celery control` or `celery inspect`. The first answer to a command of ours ends the wait."""
        return subprocess.run(
            [*CELERY, kind, "--timeout", str(seconds_max), *words],
            cwd=ROOT,
            env={**environ_with(self.settings), "NO_COLOR": "1", "USER": "ann", "LOGNAME": "ann"},
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_SECONDS_MAX,
        )

    def control(self, *words: str) -> str:
        """The one answer to a control command."""
        said = self.celery("control", *words)
        assert said.returncode == 0, said.stderr
        assert (
            "dropped a message" not in said.stderr
        )  # an answer ends the wait for others; that is no malformed message
        assert said.stdout.count(": OK") == 1, said.stdout
        return " ".join(said.stdout.split())

    def state(self) -> ControlState:
        return wiring.make_control_store(self.settings).state()

    def reasons(self) -> set[PauseReason]:
        return {pause.reason for pause in self.state().pauses or ()}

    def events(self, kind: str) -> list[ControlEvent]:
        return [event for event in wiring.make_control_events(self.settings).last(200) if event.kind.value == kind]

    def flush(self) -> None:
        with redis.Redis.from_url(self.settings.redis_url) as client:
            client.flushall()

    def is_restored(self) -> bool:
        return self.state().pauses is not None and self.state().rate is not None


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("remote")
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(own_servers(folder))
        # A user with the rights that the migration grants, and no others, is enough for every command.
        owner, url = servers.settings(), servers.postgres.url.replace("//sluice@", "//sluice_app:x@")
        migrate(owner)
        PostgresSchema(owner).give_rights(url)
        settings = servers.settings(
            database_url=url, ingest_port=free_port(), regulate_seconds=0.5, measure_seconds=1,
            drain_run_seconds_max=2.0, drain_poll_seconds=0.2, poison_run_records_max=20,
        )  # fmt: skip
        (folder / "second").mkdir()
        system, second = System(settings, folder), control_worker(settings, folder / "second")
        for program in (system, second):
            stack.callback(program.stop)
            program.start()
        found = Rig(system, settings, servers.control_redis, servers.postgres)
        wait_until(lambda: " ready." in second.log(), "the second control worker")
        wait_until(found.is_restored, "the loop ticks")
        yield found


@pytest.fixture
def rig(started: Rig) -> Iterator[Rig]:
    """The running rig; the next test finds it running and with nothing set, however this one ended."""
    yield started
    for server in (started.postgres, started.control_redis):
        server.ensure_running()
    for program in started.system.programs:
        program.ensure_running()
    wait_until(started.is_restored, "restored")
    state = started.state()
    if state.pauses:
        started.celery("control", "resume_consumption")
    if state.override is not None:
        started.celery("control", "clear_rate_limit")
    if state.bands is not None:
        started.celery("control", "reset_bands")
    for account in state.accounts or ():
        started.celery("control", "clear_account_limit", account)


def test_a_pause_by_hand_is_one_event_kept_over_a_flush_and_ends_by_hand(rig: Rig) -> None:
    # When somebody pauses consumption, with two control workers that hear it
    said = rig.control("pause_consumption", "maintenance", "until", "noon")
    # Then it is said, done once, and known who did it and why
    assert re.search(r"paused since \d\d:\d\d:\d\d UTC by ann@\S+: maintenance until noon\.", said)
    assert "survives a Redis flush" in said
    [paused] = rig.events("paused")
    assert paused.actor.startswith("ann@")
    assert paused.why == "maintenance until noon"
    # And the breaker's closing does not lift it
    store = wiring.make_control_store(rig.settings)
    store.pause(PauseReason.BREAKER, actor="test", why="test")
    wait_until(lambda: rig.reasons() == {PauseReason.OPERATOR}, "the prober has closed the breaker")
    # who is told by the worker's name, and consumption is not said to go on
    lifted = rig.events("resumed")[-1]
    assert re.fullmatch(r"control\S*@\S+/\d+", lifted.actor), lifted.actor
    assert lifted.data["left"] == "operator"
    # And a flush does not either
    rig.flush()
    wait_until(rig.is_restored, "restored")
    assert rig.reasons() == {PauseReason.OPERATOR}
    assert "paused already" in rig.control("pause_consumption")
    # And inspect tells it
    said = rig.celery("inspect", "sluice").stdout
    assert "DEGRADED" in said
    assert "maintenance until noon" in said
    # And resuming ends it for good
    assert "operator" in rig.control("resume_consumption", "done")
    rig.flush()
    wait_until(rig.is_restored, "restored")
    assert rig.reasons() == set()
    assert "No operator had paused" in rig.control("resume_consumption")


def test_a_rate_by_hand_holds_ends_and_outlives_a_flush(rig: Rig) -> None:
    said = rig.control("set_rate_limit", "300", "600", "an", "import")
    assert re.search(r"At most 300/s are admitted until \d\d:\d\d:\d\d UTC", said)
    override = rig.state().override
    assert override is not None
    assert (override.rate, override.why) == (300.0, "an import")
    assert override.actor.startswith("ann@")
    rate = rig.state().rate
    assert rate is not None
    assert rate.rate == 300.0
    assert len(rig.events("override_set")) == 1  # of two control workers that heard it
    rig.flush()
    wait_until(rig.is_restored, "restored")
    assert rig.state().override == override
    assert "set by an operator" in rig.celery("inspect", "sluice").stdout
    assert "was ended by ann@" in rig.control("clear_rate_limit")
    assert rig.state().override is None
    assert ask(rig.postgres.url, "SELECT count(*) FROM control_overrides") == [(0,)]
    # One of a moment, with no reason given
    rig.control("set_rate_limit", "200", "1")
    assert rig.events("override_set")[-1].why == "no reason given"
    wait_until(lambda: rig.state().override is None, "its time is up")
    wait_until(lambda: rig.events("override_ended")[-1].why == "its time was up", "it is recorded")


def test_bands_by_hand_are_gone_by_and_outlive_a_flush(rig: Rig) -> None:
    assert "800/s below a lag of 5,000" in rig.control("set_bands", "5000", "20000", "800", "50")
    wait_until(lambda: rig.state().rate.rate == 800.0, "the next tick")  # type: ignore[union-attr]
    assert rig.state().floor_rate == 50.0
    assert rig.events("bands_set")[-1].why == "no reason given"
    rig.flush()
    wait_until(rig.is_restored, "restored")
    wait_until(lambda: rig.state().rate.rate == 800.0, "the next tick")  # type: ignore[union-attr]
    assert "hold again" in rig.control("reset_bands")
    wait_until(lambda: rig.state().rate.rate == 1000.0, "the next tick")  # type: ignore[union-attr]


def test_a_limit_of_an_account_holds_and_outlives_a_flush(rig: Rig) -> None:
    said = rig.control("set_account_limit", "192.0.2.1", "100", "--weight", "2", "a", "contract")
    assert re.search(r"Account 192\.0\.2\.1: at most 100/s, weight 2, set by ann@\S+: a contract\.", said)
    assert "survives a Redis flush" in said
    asked = rig.state().accounts
    assert asked is not None
    [before] = asked.values()
    assert (before.account, before.rate, before.weight, before.why) == ("192.0.2.1", 100.0, 2.0, "a contract")
    assert len(rig.events("account_limit_set")) == 1  # of two control workers that heard it
    rig.flush()
    wait_until(lambda: bool(rig.state().accounts), "restored")
    [after] = (rig.state().accounts or {}).values()
    assert after == replace(before, since=after.since)
    assert abs(after.since - before.since) < 1e-5  # PostgreSQL stores microseconds
    [shown] = json.loads(rig.celery("inspect", "account_limits", "--json").stdout).values()
    assert [(one["account"], one["rate"], one["weight"]) for one in shown["document"]] == [("192.0.2.1", 100.0, 2.0)]
    assert "The settings apply again for account 192.0.2.1: no limit" in rig.control("clear_account_limit", "192.0.2.1")
    assert rig.state().accounts == {}
    assert ask(rig.settings.database_url, "SELECT count(*) FROM control_account_limits") == [(0,)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["set_account_limit", "192.0.2.1"], "an account, and a number or none are needed"),
        (["set_account_limit", "me", "5"], "'me' is no account"),
        (["set_rate_limit"], "a rate is missing: celery -A tasks.app control set_rate_limit <events/s>"),
        (["set_rate_limit", "-5"], "the rate is -5; it takes 1 to 10000 events/s"),
        (["set_rate_limit", "fast"], "'fast', which is not a number"),
        (["set_bands", "5", "2"], "is not below the upper one"),
        (["skip_gap", "1", "2"], "a partition and two offsets are needed"),
        (["accept_poison", "1"], "partition 1: no batch is saved"),
        (["accept_late_begin", "a", "new", "server"], "there is nothing to accept"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_said_in_words(rig: Rig, words: list[str], says: str) -> None:
    said = rig.celery("control", *words)
    assert said.returncode != 0
    assert says in said.stderr
    assert "Traceback" not in said.stderr + said.stdout


def test_dead_letters_are_replayed_and_a_dry_run_changes_nothing(rig: Rig) -> None:
    # Given a dead letter whose cause is mended
    letter = record(1, event_id="replay-1")
    ask(
        rig.postgres.url,
        "INSERT INTO dead_letters (log_id, log_partition, log_offset, raw, reason) VALUES ('l', 0, 0, %s, 'r')",
        (letter,),
    )
    assert "Dry run, nothing was changed. The result would be: 1 stored" in rig.control(
        "replay_dead_letters", "--dry-run"
    )
    assert ask(rig.postgres.url, "SELECT count(*) FROM log_events WHERE event_id = 'replay-1'") == [(0,)]
    assert "1 stored" in rig.control("replay_dead_letters")
    assert "There are no dead letters to replay" in rig.control("replay_dead_letters")
    assert ask(rig.postgres.url, "SELECT count(*) FROM log_events WHERE event_id = 'replay-1'") == [(1,)]
    # And only the replay that changed something is in the story
    [replayed] = rig.events("dead_letters_replayed")
    assert replayed.actor.startswith("ann@")
    assert replayed.data == {"stored": "1", "repeated": "0", "conflicting": "0", "refused": "0"}


def test_a_hole_stops_one_partition_and_a_command_leads_on(rig: Rig) -> None:
    # Given a log that loses records of one partition before they are stored
    with contextlib.closing(patient_log(rig.settings)) as log:
        log.identity()
        log.append([(1, record(6999))])
        first = "SELECT count(*) FROM log_events WHERE event_id = 'event-006999'"
        wait_until(lambda: ask(rig.postgres.url, first) == [(1,)], "the first is stored")
        rig.control("pause_consumption")
        # A drain that is at work would store what comes now
        drains = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
        wait_until(lambda: ask(rig.postgres.url, drains) == [(0,)], "all drains have ended")
        log.append([(partition, record(7000 + partition * 100 + n)) for n in range(20) for partition in (1, 2)])
        begin = log.positions()[1].end - 20
    with redis.Redis.from_url(rig.settings.event_log_url) as client:
        stream = f"{rig.settings.key_prefix}{KEY_LOG_STREAM}:1"
        client.execute_command("XTRIM", stream, "MINID", "=", f"0-{begin + 15 + 1}")
    rig.control("resume_consumption")
    # Then the others go on, and it stays alone
    of_partition = "SELECT count(*) FROM log_events WHERE log_partition = %s AND event_id >= 'event-007000'"
    database_url = rig.postgres.url
    wait_until(lambda: ask(database_url, of_partition, (2,)) == [(20,)], "the others go on")
    wait_until(lambda: rig.reasons() == {PauseReason.LOG_GAP}, "it stops")
    assert [(pause.reason, pause.partition) for pause in rig.state().pauses or ()] == [(PauseReason.LOG_GAP, 1)]
    assert "of partition 1 is paused (log gap)" in " ".join(rig.celery("inspect", "sluice").stdout.split())
    # When somebody looks at it and decides
    [found] = json.loads(rig.celery("inspect", "gap", "1", "--json").stdout).values()
    gap = found["document"]["gap"]
    assert gap == {"from": begin, "to": begin + 15}
    figures = ["1", str(begin), str(begin + 15)]
    wrong = rig.celery("control", "skip_gap", "1", str(begin), str(begin + 14))
    assert wrong.returncode != 0
    assert f"the hole of partition 1 is from {begin} to {begin + 15}" in wrong.stderr
    assert "Dry run, nothing was changed" in rig.control("skip_gap", "--dry-run", *figures)
    assert rig.reasons() == {PauseReason.LOG_GAP}
    assert "15 records, each perhaps an acknowledged event" in rig.control("skip_gap", *figures, "no", "backup")
    # Then it goes on too, and the story says who decided, and why
    wait_until(lambda: ask(database_url, of_partition, (1,)) == [(5,)], "it goes on")
    [skipped] = rig.events("gap_skipped")
    assert (skipped.actor.startswith("ann@"), skipped.why) == (True, "no backup")
    wait_until(lambda: rig.reasons() == set(), "nothing is paused")


def test_poison_stops_one_partition_and_a_command_leads_on(rig: Rig) -> None:
    # Given a schema that refuses what comes in one partition
    database_url = rig.postgres.url
    fail_on_insert(database_url, "23514", when="NEW.log_partition = 3")
    try:
        with contextlib.closing(patient_log(rig.settings)) as log:
            log.identity()
            log.append([(partition, record(8000 + partition * 200 + n)) for n in range(150) for partition in (2, 3)])
        stored = "SELECT count(*) FROM log_events WHERE log_partition = 2 AND event_id >= 'event-008000'"
        wait_until(lambda: ask(database_url, stored) == [(150,)], "the others go on")
        wait_until(lambda: rig.reasons() == {PauseReason.POISON}, "it stops")
        # When somebody looks, tries and decides
        said = rig.celery("inspect", "poison", "3").stdout
        assert "(23514)" in said
        assert '"event-0086' in said
        [found] = json.loads(rig.celery("inspect", "poison", "3", "--json").stdout).values()
        records = found["document"]["batch"]["end"] - found["document"]["batch"]["first"]
        assert f"{records} records: {records} dead letters" in rig.control("accept_poison", "3", "--dry-run")
        assert f"{records} records: {records} dead letters" in rig.control("accept_poison", "3", "a", "test")
    finally:
        fail_no_more(database_url)
    letters = "SELECT count(*) FROM dead_letters WHERE log_partition = 3"
    assert ask(database_url, letters) == [(records,)]
    # Then nothing is lost: the rest is stored (it may have stopped once more before), and so are the letters
    rig.control("resume_consumption", "the schema is corrected")
    rig.control("replay_dead_letters")
    stored = "SELECT count(*) FROM log_events WHERE log_partition = 3 AND event_id >= 'event-008600'"
    wait_until(lambda: ask(database_url, stored) == [(150,)], "all is stored")
    assert [event.why for event in rig.events("poison_accepted")] == ["a test"]


def test_inspect_is_for_programs_too(rig: Rig) -> None:
    [found] = json.loads(rig.celery("inspect", "sluice", "--json").stdout).values()
    document: dict[str, Any] = found["document"]
    assert (document["circuitBreaker"], document["eventLog"]) == ("closed", "redis")
    assert document["lagByPartition"] == {"0": 0, "1": 0, "2": 0, "3": 0}
    assert "partition 3: 0 events" in rig.celery("inspect", "lag").stdout


def test_what_is_asked_for_while_postgresql_is_away_is_kept_once_it_is_back(rig: Rig) -> None:
    # Given a pause, a rate and bands that PostgreSQL was not there to keep
    saved = "SELECT (SELECT count(*) FROM control_pauses), (SELECT count(*) FROM control_overrides), count(*) " \
        "FROM control_bands"  # fmt: skip
    rig.postgres.kill()
    try:
        assert "PostgreSQL could not store this" in rig.control("pause_consumption", "an", "outage")
        assert "PostgreSQL could not store this" in rig.control("set_rate_limit", "300", "600")
        assert "PostgreSQL could not store this" in rig.control("set_bands", "5000", "20000")
        assert PauseReason.OPERATOR in rig.reasons()
    finally:
        rig.postgres.start()
    # Then nobody has to say it again
    wait_until(lambda: ask(rig.postgres.url, saved) == [(1, 1, 1)], "all is kept")
    wait_until(lambda: rig.reasons() == {PauseReason.OPERATOR}, "the breaker closes")
    rig.flush()
    wait_until(rig.is_restored, "restored")
    state = rig.state()
    assert [(pause.reason, pause.why) for pause in state.pauses or ()] == [(PauseReason.OPERATOR, "an outage")]
    assert state.override is not None
    assert state.bands is not None
    # And the same with their ends
    rig.postgres.kill()
    try:
        for command in ("resume_consumption", "clear_rate_limit", "reset_bands"):
            assert "PostgreSQL could not store the end" in rig.control(command)
    finally:
        rig.postgres.start()
    wait_until(lambda: ask(rig.postgres.url, saved) == [(0, 0, 0)], "all is forgotten")
    wait_until(lambda: rig.reasons() == set(), "everything resumed")


def test_a_pause_said_again_is_the_first_one(rig: Rig) -> None:
    rig.control("pause_consumption", "an", "outage")
    said = rig.control("pause_consumption", "and", "more")
    assert re.search(r"paused already, since .* by ann@\S+: an outage\..* survives a Redis flush", said)
    rig.control("resume_consumption")
    wait_until(lambda: rig.reasons() == set(), "resumed")


def test_a_command_that_could_not_be_done_says_so_and_the_status_is_not_0(rig: Rig) -> None:
    # Given dead letters that somebody else holds
    with contextlib.closing(psycopg2.connect(rig.postgres.url)) as connection:
        connection.cursor().execute("LOCK TABLE dead_letters IN ACCESS EXCLUSIVE MODE")
        said = rig.celery("control", "replay_dead_letters", "5")
    assert said.returncode != 0
    assert "not done: timed out waiting for a lock" in said.stderr


def test_a_frozen_postgresql_does_not_keep_a_rate_by_hand_back(rig: Rig) -> None:
    rig.postgres.freeze()
    try:
        rig.control("set_rate_limit", "400", "600", "a", "rush")
        override = rig.state().override
        assert override is not None
        assert override.rate == 400.0
    finally:
        rig.postgres.thaw()
    assert "was ended by ann@" in rig.control("clear_rate_limit")


def test_when_nobody_can_act_it_is_said_and_the_status_is_not_0(rig: Rig) -> None:
    # Given a broker on which there is no control worker
    elsewhere = replace(rig.settings, key_prefix="nobody:")
    said = replace(rig, settings=elsewhere).celery("control", "pause_consumption", seconds_max=1.0)
    assert said.returncode != 0
    assert "no control worker answered within 5 s" in said.stderr
    # And that one which does not answer now may do it later: the broker gives it the command when it goes on
    assert "may still carry it out: `celery -A tasks.app inspect sluice` shows what holds" in said.stderr
