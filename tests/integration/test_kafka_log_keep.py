"""LOG_KEEP_HOURS on a real Kafka and PostgreSQL: what was stored goes in time, and nothing else."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from checks.testbed.database import ask
from checks.testbed.waiting import eventually
from pipeline.clock import ManualClock, SystemClock
from pipeline.control_store.memory import MemoryControlStore, MemoryServer, MemoryTroubles
from pipeline.control_store.memory_counters import MemoryCounters
from pipeline.errors import LogUnavailableError
from pipeline.log.kafka import KafkaLog
from pipeline.log.kafka_trim import KafkaTrimmer
from pipeline.names import AlarmCode, PauseReason
from pipeline.ports.control import Trouble
from pipeline.retention import LogRetention
from pipeline.settings import Settings
from pipeline.sink.log_marks import PostgresLogMarks
from pipeline.sink.migrate import migrate
from pipeline.sink.postgres import PostgresSink
from stack.servers import Server
from support.event_logs import KafkaRig, ScriptedLowestOffsets, kafka_log_rig, must_read, recovered
from support.records import batch, nothing, record
from tasks.context import WorkerContext
from tasks.retention import tick

HOURS = 2


class Kept:
    """A topic whose events are stored in PostgreSQL, and its retention."""

    def __init__(self, rig: KafkaRig, sink: PostgresSink, settings: Settings) -> None:
        self.rig, self.sink, self.settings = rig, sink, settings
        self.log: KafkaLog = rig.open()
        self.log_id: str = recovered(self.log.identity).log_id
        self.retention = self.restarted()

    def restarted(self) -> LogRetention:
        """A control worker that has just started."""
        marks = PostgresLogMarks(self.sink.session)
        return LogRetention(self.settings, marks, KafkaTrimmer(self.settings, ScriptedLowestOffsets()), SystemClock())

    def append(self, partition: int, first: int, count: int) -> None:
        values = [(partition, record(1000 * partition + first + number)) for number in range(count)]
        recovered(lambda: self.log.append(values))

    def store(self, partition: int, offset: int, count: int) -> None:
        """Store the log's own records, as a drain does."""
        found = must_read(self.log, partition, offset, records_max=count)
        assert found.next_offset == offset + count
        self.sink.store(self.log_id, partition, offset, batch(offset, found.values), before_commit=nothing)

    def tick(self, *paused: int) -> int:
        """Records that a tick deleted."""
        done = recovered(lambda: self.retention.tick(self.log_id, lambda partition: partition in paused))
        assert done.problem is None
        return int(done.records)

    def hours_pass(self, hours: float) -> None:
        """For the marks: as if they had been made earlier."""
        ask(self.settings.database_url, f"UPDATE log_marks SET marked_at = marked_at - interval '{hours} hours'")

    def held(self) -> dict[int, tuple[int, int]]:
        """Begin and end of each partition that has had records."""
        found = recovered(lambda: self.log.positions(self.log_id))
        return {one.partition: (one.begin, one.end) for one in found if one.end}


@pytest.fixture
def kept(kafka: Server, database_url: str) -> Iterator[Kept]:
    rig = kafka_log_rig(kafka, log_keep_hours=HOURS, database_url=database_url, append_seconds_max=20.0)
    migrate(rig.settings)
    with contextlib.closing(PostgresSink(rig.settings)) as sink:
        yield Kept(rig, sink, rig.settings)
    rig.close()


def test_what_was_stored_long_ago_is_deleted_and_the_rest_stays(kept: Kept) -> None:
    # Given a partition of which 6 of 10 are stored, one that is stored as a whole, and one that is not stored at all
    kept.append(0, 0, 10)
    kept.append(1, 0, 5)
    kept.append(2, 0, 3)
    kept.store(0, 0, 6)
    kept.store(1, 0, 5)
    # When a mark is made, and two more are stored after it / Then nothing is deleted before its time
    assert kept.tick() == 0
    kept.store(0, 6, 2)
    assert kept.tick() == 0
    assert kept.held() == {0: (0, 10), 1: (0, 5), 2: (0, 3)}
    # When that time is over / Then what was stored by then is deleted, but for the last stored record
    kept.hours_pass(HOURS + 1)
    assert kept.tick() == 6 + 4
    assert kept.held() == {0: (6, 10), 1: (4, 5), 2: (0, 3)}
    assert must_read(kept.log, 0, 6, records_max=9).offset == 6
    # And a control worker that starts anew finds the marks, and nothing to do
    kept.retention = kept.restarted()
    assert kept.tick() == 0
    # And two more are deleted when their own mark, which the tick before made, is old enough; old marks are forgotten
    kept.hours_pass(HOURS + 1)
    assert kept.tick() == 1  # offset 6; 7 is the last stored one
    assert kept.held() == {0: (7, 10), 1: (4, 5), 2: (0, 3)}
    assert ask(kept.settings.database_url, "SELECT count(*) FROM log_marks") == [(2,)]


@pytest.mark.parametrize("age", ["1000 years", "-1000 years"])
def test_no_clock_deletes_what_is_not_stored(kept: Kept, age: str) -> None:
    # Given marks that claim more than is stored, as of a PostgreSQL that has lost commits, with dates of wrong clocks
    kept.append(0, 0, 10)
    kept.store(0, 0, 4)
    ask(
        kept.settings.database_url,
        f"INSERT INTO log_marks VALUES ('{kept.log_id}', now() - interval '{age}', "
        """'{"0": 9, "1": 7, "77": 1000000}')""",
    )
    # Then at most the stored ones without the last are deleted, and none for a mark of the future
    assert kept.tick() == (3 if age == "1000 years" else 0)
    assert kept.held() == {0: ((3, 10) if age == "1000 years" else (0, 10))}
    # And a mark of the future does not keep another one from being made
    young = "SELECT count(*) FROM log_marks WHERE marked_at > now() - interval '1 h'"
    assert ask(kept.settings.database_url, young) == [(1 if age == "1000 years" else 2,)]


def test_a_log_that_holds_another_record_is_not_trimmed(kept: Kept) -> None:
    # Given a partition that lost its tail and went on: another record is where the last stored one was
    kept.append(0, 0, 10)
    kept.append(1, 0, 4)
    kept.sink.store(kept.log_id, 0, 0, batch(0, [record(500 + n) for n in range(6)]), before_commit=nothing)
    kept.store(1, 0, 4)
    # And one that ends before the stored offset
    kept.append(2, 0, 1)
    kept.sink.store(kept.log_id, 2, 0, batch(0, [record(700 + n) for n in range(3)]), before_commit=nothing)
    assert kept.tick() == 0
    kept.hours_pass(HOURS + 1)
    # Then what expired of the third is deleted and nothing of them, and each tick says so
    for deleted in (3, 0):
        done = recovered(lambda: kept.retention.tick(kept.log_id, lambda _: False))
        assert done.records == deleted
        assert done.problem == (
            "the event log is not trimmed in 2 partitions: 0 (it does not hold the last stored record at offset 5), "
            "2 (it does not hold the last stored record at offset 2)"
        )
        assert kept.held() == {0: (0, 10), 1: (3, 4), 2: (0, 1)}


def test_a_topic_that_was_made_anew_is_not_trimmed(kept: Kept) -> None:
    kept.append(0, 0, 5)
    kept.store(0, 0, 5)
    kept.tick()
    kept.hours_pass(HOURS + 1)
    kept.rig.replace()
    with pytest.raises(LogUnavailableError, match="another one"):
        kept.retention.tick(kept.log_id, lambda _: False)


def test_a_paused_partition_is_left_alone(kept: Kept) -> None:
    for partition in (0, 1):
        kept.append(partition, 0, 5)
        kept.store(partition, 0, 5)
    kept.tick()
    kept.hours_pass(HOURS + 1)
    assert kept.tick(0) == 4
    assert kept.held() == {0: (0, 5), 1: (4, 5)}
    assert kept.tick() == 4  # it is resumed


def test_a_clock_that_is_far_off_deletes_nothing(kept: Kept) -> None:
    kept.append(0, 0, 5)
    kept.store(0, 0, 5)
    kept.tick()
    kept.hours_pass(HOURS + 1)
    clock = ManualClock()  # of another year
    marks = PostgresLogMarks(kept.sink.session)
    done = LogRetention(kept.settings, marks, KafkaTrimmer(kept.settings, ScriptedLowestOffsets()), clock).tick(
        kept.log_id, lambda _: False
    )
    assert "clock differs" in str(done.problem)
    assert kept.held() == {0: (0, 5)}


def test_the_task(kept: Kept, control_redis: Server) -> None:
    # Given a control worker with nothing else to delete
    kept.append(0, 0, 5)
    kept.store(0, 0, 5)
    settings, server = replace(kept.settings, redis_url=control_redis.url), MemoryServer()
    context = WorkerContext(settings)
    control, troubles = MemoryControlStore(settings, server), MemoryTroubles(settings, server)
    vars(context).update(control_store=control, troubles=troubles, counters=MemoryCounters(server))
    control.restore([], actor="tests")

    def ticked_until(is_done: Callable[[], bool]) -> None:
        def ticked() -> bool:
            tick(context)  # it reports that Kafka is too slow, and the next one tries again
            return is_done()

        eventually(ticked, "a tick did it")

    with contextlib.closing(context):
        ticked_until(lambda: ask(settings.database_url, "SELECT count(*) FROM log_marks") == [(1,)])
        kept.hours_pass(HOURS + 1)
        # When consumption is paused / Then nothing is deleted
        control.pause(PauseReason.OPERATOR, actor="a", why="w")
        tick(context)
        assert kept.held() == {0: (0, 5)}
        # When it is resumed / Then what expired is
        assert control.resume(PauseReason.OPERATOR, generation=None, actor="a", why="w")
        ticked_until(lambda: kept.held() == {0: (4, 5)})
        assert context.counters.read().totals["expired:event_log"] == 4
        # And health says so where the log can't be trimmed
        ticked_until(lambda: not troubles.reported().get("retention"))
        vars(context)["log_retention"] = _Broken()
        tick(context)
        assert troubles.reported()["retention"] == [Trouble(AlarmCode.RETENTION, "the event log is not trimmed: why")]


class _Broken:
    def tick(self, *_: Any) -> None:
        raise LogUnavailableError("why")
