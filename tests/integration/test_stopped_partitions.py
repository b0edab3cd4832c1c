"""A hole in each real log, and a batch that PostgreSQL refuses: looked at, decided, and gone on behind."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from checks.testbed.database import ask, fail_no_more, fail_on_insert, stored_ids
from checks.testbed.postgres_pair import wait_replayed
from checks.testbed.waiting import eventually
from pipeline.breaker import SinkBreaker
from pipeline.clock import SystemClock
from pipeline.drain import drain
from pipeline.drain.report import DrainOutcome, DrainReport
from pipeline.errors import LogPartialError, LogUnavailableError, RecoverableError
from pipeline.names import AlarmCode, ControlEventKind, PauseReason
from pipeline.policies import make_policy
from pipeline.ports.control import Alarm
from pipeline.ports.log import EventLog
from pipeline.regulate import regulate
from pipeline.regulate.context import ControlAdapters, SinkQueries
from pipeline.regulate.report import RegulateReport
from pipeline.settings import Settings
from pipeline.sink.migrate import PostgresSchema, migrate
from pipeline.stopped import DoesNotFitError, Hole
from pipeline.urls import place_of
from support.event_logs import KafkaRig, LogRig, RedisRig, patient_log, recovered
from support.postgres_links import Pair, primary_and_standby
from support.records import record
from tasks import commands, late_begins, stopped
from tasks.context import WorkerContext
from tasks.drain import _tell
from tasks.pausing import pause_until_resumed


class Rig:
    """A worker's context on real servers, and its drain of one partition."""

    def __init__(self, settings: Settings, log: LogRig) -> None:
        self.settings, self.log = settings, log
        self.context = WorkerContext(settings)
        self.context.control_store.restore([], actor="test")

    def takes_appends(self) -> bool:
        """Whether a new log is ready; what this appends is of a partition that nobody drains."""
        try:
            self.context.log.identity()
            self.context.log.append([(1, record())])
        except RecoverableError:
            return False
        return True

    def append(self, first: int, end: int) -> None:
        self.context.log.identity()
        self.context.log.append([(0, record(number)) for number in range(first, end)])

    def drain(self, *, looks: int = 8) -> DrainReport:
        """As a worker does, pausing where it must."""
        looked = iter(range(1_000_000))
        context = self.context
        report = drain(
            0, log=context.log, sink=context.sink, fence=context.fence,
            breaker=SinkBreaker(self.settings, context.control_store, SystemClock(), "test"),
            paused=lambda: next(looked) > looks, settings=self.settings, clock=SystemClock(),
        )  # fmt: skip
        _tell(report, context)
        return report

    def tick(self) -> RegulateReport:
        """As the controller does."""
        context = self.context
        return regulate(
            settings=self.settings, policy_of=partial(make_policy, self.settings), log=context.log,
            sink=SinkQueries(
                stored_offsets=context.offsets.stored_offsets_and_time,
                settled_offsets=context.offsets.settled_offsets,
                load_operator_state=context.operators.load,
                terminate_drainer=partial(context.offsets.end_stalled_drain, quiet_seconds=0),
                why_standing=lambda *_: "",
            ),
            control=ControlAdapters(
                context.control_store, context.events, context.leases, context.progress, context.fence
            ),
            actor="test",
        )  # fmt: skip

    def alarms(self) -> tuple[Alarm, ...]:
        """What the next tick publishes."""
        reports: list[RegulateReport] = []

        def ticked() -> bool:
            reports.append(self.tick())
            return reports[-1].ran

        eventually(ticked, "the next period")
        published = reports[-1].published
        assert published is not None
        return published.alarms

    def pauses(self) -> list[tuple[PauseReason, int | None]]:
        return [(pause.reason, pause.partition) for pause in self.context.control_store.state().pauses or ()]


@pytest.fixture(params=["redis", "kafka"])
def rig(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Rig]:
    with running_rig(request, settings) as made:
        yield made


@contextlib.contextmanager
def running_rig(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Rig]:
    """On the log that is the fixture's parameter."""
    changed = replace(
        settings, regulate_seconds=0.1, drain_run_seconds_max=20.0, drain_poll_seconds=0.1, drain_batch_records_max=50,
        poison_run_records_max=5, poison_condemned_records_max=2,
    )  # fmt: skip
    log: LogRig
    if request.param == "kafka":
        changed = replace(changed, event_log_url=request.getfixturevalue("kafka").url)
        log = KafkaRig(changed)
    else:
        log = RedisRig(changed)
    migrate(changed)
    made = Rig(changed, log)
    with contextlib.closing(made.context):
        eventually(made.takes_appends, "the log takes appends")
        yield made


@pytest.fixture(params=["redis", "kafka"])
def rig_with_standby(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Iterator[tuple[Rig, Pair]]:
    """The same on a PostgreSQL that has a hot standby; with the log on Kafka, its table is by day."""
    with (
        primary_and_standby(tmp_path) as pair,
        running_rig(request, replace(settings, database_url=pair.url)) as made,
    ):
        if request.param == "kafka":
            PostgresSchema(made.settings).partition_by_day()
        yield made, pair


def test_a_hole_stops_its_partition_and_is_skipped_by_its_exact_figures(rig: Rig) -> None:
    # Given a log that has lost records which nobody stored
    rig.append(0, 10)
    recovered(rig.context.log.positions)
    rig.drain()
    rig.append(10, 30)
    rig.log.trim(0, 15)
    rig.context.log.close()
    assert rig.drain().outcome is DrainOutcome.LOG_GAP
    assert rig.pauses() == [(PauseReason.LOG_GAP, 0)]
    # When somebody looks at it, and resumes without deciding
    words, document = stopped.show_gap(rig.context, 0)
    assert document["gap"] == {"from": 10, "to": 15}
    assert "10 to 14 are missing: 5 records that are in neither the event log nor PostgreSQL. Whether" in words
    assert '"event-000015"' in words
    said = commands.resume(rig.context, "ann@desk", "try again")
    assert "Partition 0 will stop again at once" in said
    assert "`control skip_gap 0 10 15`" in said
    assert rig.drain().outcome is DrainOutcome.LOG_GAP
    # Then only the exact figures are skipped, and a dry run changes nothing
    with pytest.raises(DoesNotFitError):
        stopped.skip(rig.context, "ann@desk", 0, Hole(10, 14), "no backup", dry_run=False)
    dry = stopped.skip(rig.context, "ann@desk", 0, Hole(10, 15), "no backup", dry_run=True)
    assert dry.startswith("Dry run, nothing was changed. Partition 0 would go on at offset 15; offsets 10 to 14")
    assert rig.pauses() == [(PauseReason.LOG_GAP, 0)]
    assert "goes on at offset 15, by ann@desk: no backup" in stopped.skip(
        rig.context, "ann@desk", 0, Hole(10, 15), "no backup", dry_run=False
    )
    assert (rig.pauses(), list(rig.context.operators.load().pauses)) == ([], [])
    rig.drain()
    assert stored_ids(rig.settings.database_url) == [f"event-{n:06d}" for n in (*range(10), *range(15, 30))]
    skipped, resumed = rig.context.events.last(2)
    assert (skipped.kind.value, skipped.actor, skipped.why) == ("gap_skipped", "ann@desk", "no backup")
    assert skipped.data == {"partition": "0", "first": "10", "end": "15"}
    assert (resumed.kind.value, resumed.data["partition"]) == ("resumed", "0")


def test_a_standby_without_the_newest_commits_gets_again_what_the_log_still_has(
    rig_with_standby: tuple[Rig, Pair],
) -> None:
    # Given ten events that are stored, a standby that has them, and twenty more that it does not get
    rig, pair = rig_with_standby
    rig.append(0, 10)
    rig.drain()
    wait_replayed(pair.primary, pair.standby)
    ask(pair.standby.url, "ALTER SYSTEM SET primary_conninfo = ''")
    ask(pair.standby.url, "SELECT pg_reload_conf()")
    eventually(lambda: not ask(pair.standby.url, "SELECT 1 FROM pg_stat_wal_receiver"), "the standby is cut off")
    rig.append(10, 30)
    rig.drain()
    assert len(stored_ids(pair.primary.url)) == 30
    recovered(rig.context.log.positions)
    # When it takes the primary's place
    pair.primary.kill()
    pair.promote()
    url = pair.standby.url
    eventually(lambda: rig.drain().outcome is DrainOutcome.PAUSED, "drains use the standby")
    if rig.settings.log_scheme == "redis":
        # Then what was trimmed is named by its exact figures, by the controller, since nothing waits to be drained
        assert stored_ids(url) == [f"event-{n:06d}" for n in range(10)]
        assert rig.pauses() == []
        rig.tick()
        assert rig.pauses() == [(PauseReason.LOG_GAP, 0)]
        words, document = stopped.show_gap(rig.context, 0)
        assert document["gap"] == {"from": 10, "to": 30}
        assert "offsets 10 to 29 are missing: 20 records that are in neither" in words
        assert "Drains had stored all of them, or were about to: if they did, PostgreSQL has lost them since" in words
        # And one command leads on
        stopped.skip(rig.context, "ann@desk", 0, Hole(10, 30), "a standby was promoted", dry_run=False)
        assert rig.pauses() == []
        rig.append(30, 31)
        rig.drain()
        assert stored_ids(url) == [f"event-{n:06d}" for n in (*range(10), 30)]
    else:
        # Then a log that keeps what was stored has it stored again
        eventually(lambda: rig.drain() and len(stored_ids(url)) == 30, "all is stored again")
        assert ask(url, "SELECT count(*) FROM event_ids JOIN log_events USING (event_id, stored_at)") == [(30,)]
        assert rig.pauses() == []


def test_unread_records_that_were_deleted_stop_their_partition_though_nothing_more_comes(rig: Rig) -> None:
    # Given ten events that are stored, and twenty more that somebody deletes before a drain reads them
    rig.append(0, 10)
    recovered(rig.context.log.positions)
    rig.drain()
    rig.append(10, 30)
    if isinstance(rig.log, RedisRig):
        with rig.log.client() as client:
            client.delete(rig.log.stream(0))
    else:
        rig.log.trim(0, 30)
    rig.context.log.close()
    # When the controller looks, and no event arrives that a drain would find behind the hole
    rig.tick()
    # Then the partition is stopped, and the log is named as the one that lost them
    [pause] = rig.context.control_store.state().pauses or ()
    assert (pause.reason, pause.partition) == (PauseReason.LOG_GAP, 0)
    assert "stored up to offset 10 only, and the log begins at 30: 20 records are in neither" in pause.why
    assert "deleted from the log" in pause.why
    _, document = stopped.show_gap(rig.context, 0)
    assert document["gap"] == {"from": 10, "to": 30}
    # And one command leads on
    stopped.skip(rig.context, "ann@desk", 0, Hole(10, 30), "no backup", dry_run=False)
    rig.append(30, 31)
    rig.drain()
    rig.tick()
    assert rig.pauses() == []
    assert stored_ids(rig.settings.database_url) == [f"event-{n:06d}" for n in (*range(10), 30)]


def test_a_partition_of_which_nothing_was_stored_says_that_its_log_begins_late(rig: Rig) -> None:
    # Given a log whose beginning is gone before anything of it was stored
    rig.append(0, 10)
    rig.log.trim(0, 4)
    rig.context.log.close()
    # When it is drained, then all that it holds is stored, and the story of the control loop names what is not
    assert rig.drain().stored == 6
    assert rig.pauses() == []
    [told] = [event for event in rig.context.events.last(9) if event.kind is ControlEventKind.BEGAN_LATE]
    log_id, place = rig.context.log.identity().log_id, place_of(rig.settings.database_url)
    assert told.data == {
        "partition": "0", "first": "0", "end": "4", "committed": "0", "log_id": log_id, "place": place,
    }  # fmt: skip
    assert f"Neither the event log nor PostgreSQL ({place}) has the first 4 records" in told.why
    rig.append(10, 12)
    rig.drain()
    assert [event.kind for event in rig.context.events.last(9)].count(ControlEventKind.BEGAN_LATE) == 1
    # And it is a reason of health, until an operator accepts it
    assert [alarm.code for alarm in rig.alarms()] == [AlarmCode.BEGAN_LATE]
    said = late_begins.accept(rig.context, "ann@desk", "they were of a test")
    assert said.startswith("Accepted by ann@desk: they were of a test. Neither the event log nor PostgreSQL")
    assert rig.alarms() == ()
    with pytest.raises(commands.CommandError, match="there is nothing to accept"):
        late_begins.accept(rig.context, "ann@desk", "once more")
    [accepted] = [e for e in rig.context.events.last(9) if e.kind is ControlEventKind.LATE_BEGIN_ACCEPTED]
    assert (accepted.actor, accepted.why, accepted.data["ends"]) == ("ann@desk", "they were of a test", "0:4")


def test_an_empty_database_beside_a_log_that_keeps_what_was_stored_stays_a_reason(rig: Rig) -> None:
    # Given a log that keeps what was stored, as a topic of Kafka does
    rig.settings = replace(rig.settings, log_trim=False)
    rig.context = WorkerContext(rig.settings)  # the fixture closes the first one
    with contextlib.closing(rig.context):
        rig.append(0, 10)
        assert rig.drain().stored == 10
        eventually(lambda: rig.context.log.positions()[0].committed == 10, "the commit", passing=(LogUnavailableError,))
        # When the database has nothing of it any more
        ask(rig.settings.database_url, "TRUNCATE stored_offsets, log_events")
        rig.context.storage.close()
        # Then the reason stays while all is stored again, and afterwards
        [alarm] = rig.alarms()
        assert (alarm.code, "did not have the 10 records" in alarm.what) == (AlarmCode.BEGAN_LATE, True)
        assert rig.alarms() == (alarm,)
        assert rig.drain().stored == 10
        assert rig.alarms() == (alarm,)
        # And ends as soon as an operator accepts it
        late_begins.accept(rig.context, "ann@desk", "a new server")
        assert rig.alarms() == ()


def test_a_poisoned_batch_is_shown_and_accepted(rig: Rig) -> None:
    # Given a column that refuses most of what comes
    url = rig.settings.database_url
    rig.append(0, 10)
    fail_on_insert(url, "23514", when="NEW.event_id < 'event-000008'")
    assert rig.drain().outcome is DrainOutcome.POISONED
    assert rig.pauses() == [(PauseReason.POISON, 0)]
    # When somebody looks at it
    words, document = stopped.show_poison(rig.context, 0)
    sample: list[dict[str, Any]] = document["batch"]["sample"]
    assert (document["batch"]["first"], document["batch"]["end"]) == (0, 10)
    assert [one["offset"] for one in sample] == list(range(6))  # as far as was tried
    assert {one["sqlstate"] for one in sample} == {"23514"}
    assert '"event-000003"' in words
    assert "`control accept_poison 0 --dry-run`" in words
    # And tries what accepting it would do
    dry = stopped.accept(rig.context, "ann@desk", 0, "they are of a test", dry_run=True)
    assert "offsets 0 to 9, 10 records: 8 dead letters" in dry
    assert "2 stored" in dry
    assert ask(url, "SELECT (SELECT count(*) FROM dead_letters) + (SELECT count(*) FROM log_events)") == [(0,)]
    # Then it is stored as a drain would, with dead letters for what is refused
    done = stopped.accept(rig.context, "ann@desk", 0, "they are of a test", dry_run=False)
    assert "8 dead letters" in done
    assert stored_ids(url) == ["event-000008", "event-000009"]
    assert rig.pauses() == []
    accepted = rig.context.events.last(2)[0]
    assert (accepted.kind.value, accepted.why, accepted.data["dead_lettered"]) == (
        "poison_accepted", "they are of a test", "8",
    )  # fmt: skip
    # And once more is once too often
    with pytest.raises(DoesNotFitError, match="no batch is saved"):
        stopped.accept(rig.context, "ann@desk", 0, "again", dry_run=False)
    fail_no_more(url)
    rig.append(10, 15)
    assert rig.drain().stored == 5


def test_a_batch_too_large_to_be_stored_carefully_by_a_drain_is_accepted_as_a_whole(rig: Rig) -> None:
    # Given a batch that stopped its partition, of more records than a drain stores carefully
    rig.append(0, 30)
    fail_on_insert(rig.settings.database_url, "23514", when="NEW.event_id < 'event-000020'")
    context = rig.context
    log_id = context.log.identity().log_id
    evidence = {"logId": log_id, "first": 0, "end": 30, "refused": 6, "sample": []}
    pause_until_resumed(context, PauseReason.POISON, actor="test", why="x", partition=0, evidence=evidence)
    context.settings = replace(rig.settings, drain_careful_records_max=10)
    assert "20 dead letters" in stopped.accept(context, "ann@desk", 0, "a test", dry_run=False)
    assert len(stored_ids(rig.settings.database_url)) == 10


def test_a_trigger_whose_table_is_gone_stops_its_partition_though_other_events_are_stored(rig: Rig) -> None:
    # Given a trigger that writes some events into a table that was dropped
    url = rig.settings.database_url
    fail_on_insert(url, "42P01", when="NEW.event_id IN ('event-000003', 'event-000006', 'event-000009')")
    rig.settings = replace(rig.settings, breaker_failures_max=3)  # each of them fails so often
    rig.append(0, 12)
    # When they are drained, then two of them become dead letters, and the third stops the partition
    for _ in range(5):
        report = rig.drain(looks=100)
        if report.outcome is not DrainOutcome.PAUSED:
            break
    assert report.outcome is DrainOutcome.POISONED
    assert rig.pauses() == [(PauseReason.POISON, 0)]
    assert ask(url, "SELECT log_offset, sqlstate FROM dead_letters ORDER BY 1") == [(3, "42P01"), (6, "42P01")]
    words, _ = stopped.show_poison(rig.context, 0)
    assert "(42P01)" in words
    # And it is accepted, or stored once the table is back
    assert "1 record: 1 dead letter (" in stopped.accept(rig.context, "ann@desk", 0, "known", dry_run=True)
    fail_no_more(url)
    commands.resume(rig.context, "ann@desk", "the table is back")
    assert rig.drain().dead_lettered == 0
    assert len(stored_ids(url)) == 10


def test_a_log_that_ends_before_the_stored_offset_goes_on_where_it_ends(rig: Rig) -> None:
    # Given a log whose last records are gone, all of which are stored
    rig.append(0, 5)
    rig.drain()
    ask(rig.settings.database_url, "UPDATE stored_offsets SET next_offset = 9")
    identity = rig.context.log.identity()
    rig.context.fence.raise_lowest_offset(identity.log_id, identity.incarnation, 0, 9)
    # And on Kafka, which can't be raised, an ingest that takes nothing for it
    ingest = patient_log(rig.settings)
    if rig.log.name == "kafka":
        for _ in range(2):
            with pytest.raises(LogPartialError, match="lost its tail: it ends at 5, before the stored offset 9"):
                ingest.append([(0, record(5)), (1, record(5))])
    words, document = stopped.show_gap(rig.context, 0)
    assert document["gap"] == {"from": 9, "to": 5}
    assert "ends at 5, before offset 9" in words
    assert f"`control skip_gap 0 9 {document['logBegin']}`" in words  # nothing that the log holds is passed over
    # When somebody decides
    dry = stopped.skip(rig.context, "ann@desk", 0, Hole(9, 5), "as told", dry_run=True)
    assert "would go on at offset 5" in dry
    stopped.skip(rig.context, "ann@desk", 0, Hole(9, 5), "as told", dry_run=False)
    # Then what comes next is taken by that ingest, gets the offsets behind the end, and is stored
    eventually(lambda: _takes(ingest, [(0, record(n)) for n in range(5, 8)]), "the partition takes events")
    ingest.close()
    assert rig.drain().stored == 3
    assert ask(rig.settings.database_url, "SELECT next_offset FROM stored_offsets") == [(8,)]


def _takes(log: EventLog, entries: list[tuple[int, bytes]]) -> bool:
    try:
        log.append(entries)
    except RecoverableError:
        return False
    return True


def test_what_is_not_printable_reaches_no_terminal() -> None:
    assert stopped._plain("a\x1b[2J\n\u2028é") == "a\\x1b[2J\\n\\u2028é"
    context = cast(WorkerContext, SimpleNamespace())
    assert stopped.stops_again(context, []) == ""
