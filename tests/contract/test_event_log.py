"""What every event log keeps to, on servers that are well."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from checks.testbed.waiting import APPEND_SECONDS_LONGEST, BUSY_SECONDS, WAIT_SECONDS_MAX, eventually
from pipeline.errors import LogRestartedError, LogUnavailableError, StoreUnavailableError
from pipeline.event import MESSAGE_BYTES_MAX
from pipeline.flow.lag import lag_by_partition, total_lag
from pipeline.names import AlarmCode, PauseReason, Severity
from pipeline.ports.log import EventLog
from support.event_logs import (
    KafkaRig,
    LogRig,
    MemoryRig,
    RedisRig,
    ScriptedLowestOffsets,
    kafka_log_rig,
    must_read,
    read_all,
    recovered,
    redis_log_rig,
)
from support.ticks import tick


@pytest.fixture(params=["memory", "redis", "kafka", "kafka by confluent-kafka"])
def rig(request: pytest.FixtureRequest) -> Iterator[LogRig]:
    made: LogRig
    match request.param:
        case "redis":
            made = redis_log_rig(request.getfixturevalue("log_redis"), append_seconds_max=APPEND_SECONDS_LONGEST)
        case "kafka":
            made = kafka_log_rig(request.getfixturevalue("kafka"), append_seconds_max=APPEND_SECONDS_LONGEST)
        case "kafka by confluent-kafka":
            server = request.getfixturevalue("kafka")
            made = kafka_log_rig(server, append_seconds_max=APPEND_SECONDS_LONGEST, kafka_client="confluent")
        case _:
            made = MemoryRig()
    yield made
    made.close()


@pytest.fixture
def log(rig: LogRig) -> EventLog:
    return rig.open()


def positions_of(log: EventLog) -> list[tuple[int, int, int | None]]:
    return [(p.begin, p.end, p.committed) for p in recovered(log.positions)]


def commit_surely(log: EventLog, partition: int, offset: int) -> None:
    """Commit until that is seen: a new Kafka cluster has no place for commits in its first second."""

    def is_committed() -> bool:
        log.commit(log.identity().log_id, partition, offset)
        return log.positions()[partition].committed == offset

    eventually(is_committed, f"{offset} is committed")


def notices(reader: EventLog, offset: int) -> bool:
    """Whether a reader is told of another log; what it is given until then must not be of that one."""
    try:
        batch = reader.read(0, offset, records_max=10, wait_seconds=0.05)
    except LogRestartedError:
        return True
    assert batch is None
    return False


def test_everybody_sees_the_same_log(rig: LogRig) -> None:
    # Given two processes, the second of which starts when there is something in the log
    first = rig.open()
    identity = first.identity()
    first.append([(0, b"a")])
    # Then both get the same answer, again and again
    assert identity.partitions == 4
    assert rig.open().identity() == identity
    assert first.identity() == identity


def test_a_log_keeps_its_number_of_partitions(rig: LogRig) -> None:
    # Given a log with the default number
    rig.open().identity()
    # When a process with another setting opens it
    if isinstance(rig, RedisRig | KafkaRig):
        rig.settings = replace(rig.settings, log_partitions=9)
    # Then the log's own number counts
    assert rig.open().identity().partitions == 4
    assert len(positions_of(rig.open())) == 4


def test_records_come_back_whole_and_in_order(log: EventLog) -> None:
    # Given values of every kind, spread over the partitions in several appends
    values = [b"", b"{}", bytes(range(256)), "größte".encode(), b"x" * MESSAGE_BYTES_MAX, b"\r\n$-1\r\n"]
    sent: dict[int, list[bytes]] = {0: [], 1: [], 2: [], 3: []}
    for start in range(5):
        group = [((start + i) % 3, value + b"%d" % start if value else value) for i, value in enumerate(values)]
        log.append(group)
        for partition, value in group:
            sent[partition].append(value)
    # Then each partition holds its own, in the order of appending, from offset 0 on
    for partition in range(4):
        assert read_all(log, partition) == sent[partition]


def test_it_is_known_which_partitions_have_something_to_read(rig: LogRig) -> None:
    # Given records in two of four partitions, of which one was read
    log, writer = rig.open(), rig.open()
    log.identity()
    writer.append([(0, b"a"), (0, b"b"), (2, b"c")])
    # Then each is named that has a record from the offset on, at once, however long the wait may be
    eventually(lambda: log.ready({0: 0, 1: 0, 2: 0, 3: 0}, wait_seconds=0) == {0, 2}, "both are seen")
    started = time.monotonic()
    assert 0 in log.ready({0: 1, 1: 0}, wait_seconds=60)
    assert log.ready({0: 2, 1: 0, 2: 1, 3: 0}, wait_seconds=0.05) == set()
    assert log.ready({}, wait_seconds=0) == set()
    # And one that comes while it waits ends the wait
    with ThreadPoolExecutor(1) as executor:
        found = executor.submit(log.ready, {0: 2, 1: 0, 3: 0}, wait_seconds=60)
        writer.append([(3, b"d")])
        assert found.result(60) == {3}
    assert time.monotonic() - started < 55
    # And the reads bring the records
    assert must_read(log, 3, 0, records_max=3).values == [b"d"]
    assert must_read(log, 0, 1, records_max=3).values == [b"b"]


def test_offsets_are_integers_that_grow_by_one(log: EventLog) -> None:
    # Given nine records in one partition
    log.append([(2, b"%d" % i) for i in range(9)])
    # Then reading from any offset gives the record that was appended as that number
    for offset in range(9):
        batch = must_read(log, 2, offset, records_max=3)
        assert (batch.offset, batch.gap_from) == (offset, None)
        assert batch.values == [b"%d" % i for i in range(offset, min(offset + 3, 9))]
        assert batch.next_offset == min(offset + 3, 9)
    # And at the end there is nothing
    assert log.read(2, 9, records_max=3, wait_seconds=0) is None


def test_a_read_takes_what_is_there_without_waiting(rig: LogRig) -> None:
    # Given a record, and a reader that has never read before
    rig.open().append([(1, b"a")])
    # Then a read with no wait finds it
    batch = rig.open().read(1, 0, records_max=10, wait_seconds=0)
    assert batch is not None
    assert batch.values == [b"a"]


def test_a_read_waits_as_long_as_asked(log: EventLog) -> None:
    log.append([(0, b"a")])
    must_read(log, 0, 0)
    started = time.monotonic()
    assert log.read(0, 1, records_max=10, wait_seconds=0.3) is None
    assert 0.29 < time.monotonic() - started < 2.0 + BUSY_SECONDS


def test_a_waiting_read_wakes_for_a_new_record(rig: LogRig) -> None:
    # Given a reader that waits at the end of the log
    reader, writer = rig.open(), rig.open()
    writer.append([(0, b"before"), (1, b"elsewhere")])
    must_read(reader, 0, 0)
    begins = threading.Event()

    def wait() -> tuple[list[bytes] | None, float]:
        begins.set()
        batch = reader.read(0, 1, records_max=10, wait_seconds=30.0)
        return (batch.values if batch else None), time.monotonic()

    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(wait)
        assert begins.wait(WAIT_SECONDS_MAX)
        # When a record comes, in this partition and in another
        writer.append([(1, b"other")])
        writer.append([(0, b"new")])
        appended_at = time.monotonic()
        values, woke_at = waiting.result(WAIT_SECONDS_MAX)
    # Then it has that one, long before its time is up
    assert values == [b"new"]
    assert woke_at - appended_at < BUSY_SECONDS


def test_positions_without_any_commit(log: EventLog) -> None:
    # Given a new log
    assert positions_of(log) == [(0, 0, None)] * 4
    # When two partitions get something
    log.append([(0, b"a"), (0, b"b"), (3, b"c")])
    # Then begin and end say how much, and nothing is taken for committed
    assert positions_of(log) == [(0, 2, None), (0, 0, None), (0, 0, None), (0, 1, None)]
    # And all of it is lag, if PostgreSQL has no offset either
    assert total_lag(log.positions(), {}) == 3
    assert total_lag(log.positions(), {0: 1, 3: 1}) == 1
    assert total_lag(log.positions(), None) is None


def test_positions_follow_the_commits(rig: LogRig) -> None:
    # Given ten records in each of two partitions
    log = rig.open()
    log.append([(i % 2, b"x") for i in range(20)])
    positions_of(log)
    # When some of them are stored
    commit_surely(log, 0, 4)
    commit_surely(log, 1, 10)
    # Then everybody sees that
    seen = recovered(rig.open().positions)
    assert [(p.end, p.committed) for p in seen[:2]] == [(10, 4), (10, 10)]
    assert lag_by_partition(seen, None) == {0: 6, 1: 0, 2: 0, 3: 0}
    assert all(p.begin <= (p.committed or 0) for p in seen)
    # And what is not stored can still be read
    assert len(must_read(log, 0, 4).values) == 6


def test_a_commit_may_come_again(log: EventLog) -> None:
    log.append([(0, b"x")] * 5)
    positions_of(log)
    commit_surely(log, 0, 0)
    commit_surely(log, 0, 3)
    commit_surely(log, 0, 3)
    assert positions_of(log)[0][1:] == (5, 3)
    # And it is taken back where PostgreSQL has come back with less: its offset decides
    commit_surely(log, 0, 1)
    assert positions_of(log)[0][1:] == (5, 1)


def test_a_commit_is_for_the_log_that_it_names(rig: LogRig) -> None:
    # Given a drain of a log in whose place there is another one by now, longer than the first
    log = rig.open()
    log.append([(0, b"old")] * 5)
    before = log.identity()
    rig.replace()
    writer = rig.open()
    writer.identity()
    recovered(lambda: writer.append([(0, b"new")] * 9))
    # When the drain says how far the first log is stored, before and after it has learned of the second
    log.commit(before.log_id, 0, 5)
    log.identity()
    log.commit(before.log_id, 0, 5)
    # Then the second log takes it for nothing, and all its events can be read
    assert positions_of(writer)[0] == (0, 9, None)
    assert read_all(log, 0) == [b"new"] * 9
    # And what is said to the second log counts
    commit_surely(log, 0, 4)
    assert positions_of(writer)[0][1:] == (9, 4)


def test_a_trimmed_offset_reads_what_is_left_and_shows_it(rig: LogRig) -> None:
    # Given a partition of which somebody dropped records that were not read
    log = rig.open()
    log.append([(0, b"%d" % i) for i in range(10)])
    must_read(log, 0, 0, records_max=2)
    rig.trim(0, 6)
    # Then the positions say so
    assert positions_of(log)[0] == (6, 10, None)
    assert total_lag(log.positions(), {0: 2}) == 4
    # And a read gives what is left, under its own offset, as a hole that the log does not declare
    batch = must_read(rig.open(), 0, 2)
    assert (batch.offset, batch.gap_from) == (6, None)
    assert batch.values == [b"6", b"7", b"8", b"9"]


def test_an_emptied_partition_counts_on(rig: LogRig) -> None:
    # Given a partition whose records were all dropped
    log = rig.open()
    log.append([(0, b"%d" % i) for i in range(5)])
    rig.trim(0, 5)
    assert positions_of(log)[0] == (5, 5, None)
    # When more comes
    log.append([(0, b"more")])
    # Then its offset is the next one
    assert positions_of(log)[0] == (5, 6, None)
    batch = must_read(log, 0, 5)
    assert (batch.offset, batch.values) == (5, [b"more"])


def test_another_log_in_its_place_is_noticed(rig: LogRig) -> None:
    # Given a log that a writer, a reader and the control loop have worked with
    writer, reader, control = rig.open(), rig.open(), rig.open()
    before = reader.identity()
    writer.append([(0, b"old")] * 3)
    assert control.identity() == before
    must_read(reader, 0, 0)
    # When another one takes its place, and soon has more records than the first
    rig.replace()
    fresh = rig.open()
    after = recovered(fresh.identity)
    fresh.append([(0, b"new")] * 10)
    assert after.log_id != before.log_id
    # Then the reader is told within a second or two, and is given nothing under the old log's offsets
    assert eventually(lambda: notices(reader, 10), "the reader notices") < 2.0
    assert reader.identity() == after
    assert must_read(reader, 0, 0).values == [b"new"] * 10
    # And positions of the new log are not given for those of the old one
    with pytest.raises(LogUnavailableError):
        control.positions()
    assert control.identity() == after
    assert positions_of(control)[0] == (0, 10, None)
    # And the writer goes on
    recovered(lambda: writer.append([(0, b"too")]))
    assert read_all(reader, 0)[-1] == b"too"


def test_several_processes_append_at_once(rig: LogRig) -> None:
    # Given four writers
    writers = [rig.open() for _ in range(4)]

    def write(number: int) -> None:
        for start in range(0, 300, 15):
            writers[number].append([(i % 4, b"%d:%d" % (number, i)) for i in range(start, start + 15)])

    # When they append at the same time
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(write, range(4)))
    # Then every record is there once, and each writer's are in its order
    reader = rig.open()
    for partition in range(4):
        found = [tuple(map(int, value.split(b":"))) for value in read_all(reader, partition)]
        for number in range(4):
            assert [i for n, i in found if n == number] == [i for i in range(300) if i % 4 == partition]


def test_append_runs_beside_a_waiting_read(log: EventLog) -> None:
    # Given one adapter object that waits at the end of a partition
    log.append([(0, b"a")])
    must_read(log, 0, 0)
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(log.read, 0, 1, records_max=10, wait_seconds=30.0)
        # When another thread appends through the same object
        log.append([(0, b"b")])
        # Then both succeed
        batch = waiting.result(WAIT_SECONDS_MAX)
    assert batch is not None
    assert batch.values == [b"b"]


def test_a_partition_that_does_not_exist_is_refused(log: EventLog) -> None:
    with pytest.raises(LogUnavailableError, match="4 partitions"):
        log.append([(0, b"a"), (4, b"b")])
    assert positions_of(log) == [(0, 0, None)] * 4


def test_the_first_append_to_a_prepared_log_has_nothing_to_ask(rig: LogRig) -> None:
    lowest_offsets = ScriptedLowestOffsets(error=StoreUnavailableError("nobody knows what is stored"))
    log = rig.open(lowest_offsets)
    log.identity()
    # Given that it is not known what is stored, a log can't be prepared, as nothing can be appended
    with pytest.raises(LogUnavailableError, match="nobody knows what is stored"):
        log.prepare()
    lowest_offsets.error = None
    recovered(log.prepare)
    asked = len(lowest_offsets.calls)
    # When the first events come, nothing more is asked; nor by preparing it again
    log.append([(0, b"a")])
    log.prepare()
    assert len(lowest_offsets.calls) == asked
    assert read_all(log, 0) == [b"a"]


def test_an_append_of_nothing_does_nothing(log: EventLog) -> None:
    log.append([])
    assert positions_of(log) == [(0, 0, None)] * 4


def test_close_may_come_again_and_is_not_the_end(log: EventLog) -> None:
    log.append([(0, b"a")])
    log.close()
    log.close()
    log.append([(0, b"b")])
    assert read_all(log, 0) == [b"a", b"b"]


def test_a_log_that_ends_before_what_is_stored_stops_that_partition(rig: LogRig) -> None:
    # Given a log of which PostgreSQL has stored more of one partition than it holds
    log = rig.open()
    log.append([(0, b"x")] * 3 + [(1, b"y")] * 2)
    recovered(log.positions)
    # When the control loop ticks
    alarms, pauses = tick(log, {0: 10, 1: 2})
    # Then it says so, and stops that partition before new events are skipped
    assert [(alarm.code, alarm.severity, alarm.partition) for alarm in alarms] == [
        (AlarmCode.LOG_BEHIND_STORED, Severity.CRITICAL, 0)
    ]
    assert "has stored up to offset 10, and the log goes on with 3" in alarms[0].what
    assert [(pause.reason, pause.partition) for pause in pauses] == [(PauseReason.LOG_GAP, 0)]
