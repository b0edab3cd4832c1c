"""What every event log keeps to when its server is away, full, or has forgotten something."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from checks.testbed.waiting import APPEND_SECONDS_LONGEST, PATIENT_APPEND_SECONDS
from pipeline.errors import (
    LogFullError,
    LogGapError,
    LogIndeterminateError,
    LogPartialError,
    LogRestartedError,
    LogUnavailableError,
    StoreUnavailableError,
)
from pipeline.ports.log import EventLog
from stack.servers import Server
from support.event_logs import (
    CALL_SECONDS_MAX,
    KafkaRig,
    LogRig,
    MemoryRig,
    RedisRig,
    ScriptedLowestOffsets,
    kafka_log_rig,
    must_read,
    read_again,
    read_all,
    recovered,
    redis_log_rig,
    timed,
    timed_append,
)


@dataclass
class FaultyRig:
    """A log on a server of the test's own, and how to put that out of action and back."""

    rig: LogRig
    faults: list[tuple[Callable[[], object], Callable[[], object]]] = field(default_factory=list)


@pytest.fixture(params=["memory", "redis", "kafka", "kafka by confluent-kafka"])
def faulty(request: pytest.FixtureRequest) -> Iterator[FaultyRig]:
    made: FaultyRig
    if request.param == "memory":
        rig = MemoryRig()
        made = FaultyRig(rig, [(rig.server.stop, rig.server.start)])
    else:
        server: Server = request.getfixturevalue("own_log_redis" if request.param == "redis" else "own_kafka")
        client = "confluent" if "confluent" in request.param else "kafka-python"
        made = FaultyRig(
            redis_log_rig(server, append_seconds_max=1.0)
            if request.param == "redis"
            else kafka_log_rig(server, append_seconds_max=0.5, kafka_client=client),
            [(server.freeze, server.thaw), (server.kill, server.start)],
        )
    yield made
    for _, repair in made.faults[:1]:  # where a test has failed while its server was frozen
        repair()
    made.rig.close()


def patient(rig: LogRig) -> EventLog:
    """Another writer of the log, which gives up only after long."""
    if not isinstance(rig, RedisRig | KafkaRig):
        return rig.open()
    hasty, rig.settings = rig.settings, replace(rig.settings, append_seconds_max=PATIENT_APPEND_SECONDS)
    try:
        return rig.open()
    finally:
        rig.settings = hasty


@pytest.mark.usefixtures("shipped_limits")
def test_a_log_that_is_away_is_said_to_be_away_and_comes_back(
    faulty: FaultyRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a log that is in use
    rig = faulty.rig
    writer, reader = rig.open(), rig.open()
    identity = recovered(reader.identity)
    append_surely(writer, [(3, b"the first")])  # a server that has just started may take longer than it is given
    patient(rig).append([(0, b"%d" % i) for i in range(10)])
    recovered(lambda: must_read(reader, 0, 0))
    recovered(reader.positions)
    for number, (fail, repair) in enumerate(faulty.faults):
        # When its server is frozen, and later killed while the wall clock is one hour ahead
        if number == len(faulty.faults) - 1:
            step_wall_clock(monkeypatch, 3600.0)
        fail()
        calls: list[tuple[str, Callable[[], object]]] = [
            ("positions", reader.positions),
            ("identity", reader.identity),
            ("read", lambda: reader.read(0, 10, records_max=10, wait_seconds=0.2)),
            ("new process", rig.open().positions),
        ]
        # Then everything says so in bounded time; nothing is ever 0 or empty
        for name, call in calls:
            result, seconds = timed(call)
            assert isinstance(result, LogUnavailableError), f"{name}: {result!r}"
            assert seconds < CALL_SECONDS_MAX, name
        # And a commit fails quietly
        result, seconds = timed(lambda: reader.commit(identity.log_id, 0, 1))
        assert result is None
        assert seconds < CALL_SECONDS_MAX
        # And an append that may have been on its way is open, while those after it have written nothing
        result, seconds = timed_append(writer, [(1, b"open %d" % number)])
        assert isinstance(result, LogUnavailableError | LogIndeterminateError), repr(result)
        assert seconds < CALL_SECONDS_MAX
        for _ in range(2):
            result, seconds = timed_append(writer, [(1, b"refused")])
            assert isinstance(result, LogUnavailableError), repr(result)
            assert seconds < CALL_SECONDS_MAX
        # When the wall clock is right again, and the server is back
        monkeypatch.undo()
        repair()
        # Then everything recovers by itself, each partition in its time, and what was confirmed is there
        assert recovered(reader.identity).log_id == identity.log_id
        append_surely(writer, [(2, b"after %d" % number)])
        assert read_again(reader, 0) == [b"%d" % i for i in range(10)]
        assert b"after %d" % number in read_again(reader, 2)
        assert recovered(reader.positions)[0].end == 10
    # And what was refused for certain was never written
    assert b"refused" not in read_again(reader, 1)


@dataclass
class ForgetfulRig:
    """A log that can come back without its tail: Redis, and its likeness in memory."""

    rig: LogRig
    remember: Callable[[], object]  # what a later `forget` returns to
    forget: Callable[[], object]  # die, and come back as it was at `remember`
    restart: Callable[[], object]  # die, and come back with everything


def forgetful_redis(server: Server, folder: Path) -> ForgetfulRig:
    # An append is made once: a busy machine that stands still must not make its outcome unknown.
    rig = redis_log_rig(server, append_seconds_max=APPEND_SECONDS_LONGEST)
    data, copy = folder / "redis-log", folder / "copy"

    def remember() -> None:
        shutil.copytree(data, copy)  # each append is on the disk before it is confirmed

    def forget() -> None:
        server.kill()
        shutil.rmtree(data)
        shutil.copytree(copy, data)
        server.start()

    def restart() -> None:
        server.kill()
        server.start()

    return ForgetfulRig(rig, remember, forget, restart)


def forgetful_memory() -> ForgetfulRig:
    rig = MemoryRig()
    kept: dict[int, int] = {}

    def remember() -> None:
        kept.update({number: held.end for number, held in enumerate(rig.server.partitions)})

    return ForgetfulRig(rig, remember, lambda: rig.server.restart(kept), rig.server.restart)


@pytest.fixture(params=["memory", "redis"])
def forgetful(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ForgetfulRig]:
    if request.param == "redis":
        made = forgetful_redis(request.getfixturevalue("own_log_redis"), tmp_path)
    else:
        made = forgetful_memory()
    yield made
    made.rig.close()


def step_wall_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Step the wall clock of this process until `monkeypatch.undo()`."""
    read = time.time  # noqa: TID251 - the clock that the library reads
    monkeypatch.setattr(time, "time", lambda: read() + seconds)


def append_surely(log: EventLog, entries: list[tuple[int, bytes]]) -> None:
    """Append, where a connection that has just broken may be in the way first; perhaps more than once."""

    def append() -> None:
        try:
            log.append(entries)
        except (LogIndeterminateError, LogPartialError) as error:
            raise LogUnavailableError(f"once more: {error}") from error

    recovered(append)


def test_a_restart_is_told_to_the_reader_and_changes_nothing_else(forgetful: ForgetfulRig) -> None:
    # Given a log with ten records, all known to be stored
    lowest_offsets = ScriptedLowestOffsets()
    writer, reader = forgetful.rig.open(lowest_offsets), forgetful.rig.open(lowest_offsets)
    before = reader.identity()
    writer.append([(0, b"%d" % i) for i in range(10)])
    lowest_offsets.lowest_offsets = {0: 10}
    # When it restarts with everything
    forgetful.restart()
    # Then a reader is told, until it asks who the log is
    result, _ = timed(lambda: reader.read(0, 0, records_max=10, wait_seconds=0))
    assert isinstance(result, LogRestartedError), repr(result)
    after = reader.identity()
    assert after.log_id == before.log_id
    assert after.incarnation != before.incarnation
    # And what the next record gets is not known before the lowest offsets are
    assert [p.next_offset for p in reader.positions()] == [None] * 4
    # And offsets go on without a hole
    append_surely(writer, [(0, b"10")])
    batch = must_read(reader, 0, 0)
    assert (batch.offset, batch.gap_from) == (0, None)
    assert batch.values == [b"%d" % i for i in range(11)]
    assert [p.next_offset for p in reader.positions()] == [11, 0, 0, 0]
    # And the lowest offsets were asked for each incarnation, and no more however often it is used
    asked = len(lowest_offsets.calls)
    append_surely(writer, [(0, b"11")])
    reader.identity()
    assert len(lowest_offsets.calls) == asked
    assert list(dict.fromkeys(lowest_offsets.calls)) == [(log.log_id, log.incarnation) for log in (before, after)]


def test_a_lost_tail_never_gives_an_offset_again(forgetful: ForgetfulRig) -> None:
    # Given a log with three records that it remembers, and seven more that are stored but that it forgets
    lowest_offsets = ScriptedLowestOffsets()
    writer, other, reader = (forgetful.rig.open(lowest_offsets) for _ in range(3))
    append_surely(writer, [(0, b"a"), (0, b"b"), (0, b"c")])
    append_surely(other, [(1, b"one")])
    reader.identity()
    forgetful.remember()
    append_surely(writer, [(0, b"lost")] * 7)
    lowest_offsets.lowest_offsets = {0: 10, 1: 1}
    forgetful.forget()
    # When both writers go on
    append_surely(other, [(0, b"x"), (1, b"two")])
    append_surely(writer, [(0, b"y"), (2, b"three")])
    append_surely(other, [(0, b"z")])
    # Then the first new record has the first offset that was never stored
    reader.identity()
    at_stored = must_read(reader, 0, 10)
    assert (at_stored.offset, at_stored.values) == (10, [b"x", b"y", b"z"])
    # And the hole is declared, for whoever stands before it; it cuts the batch
    assert must_read(reader, 0, 0).values == [b"a", b"b", b"c"]
    behind = must_read(reader, 0, 3)
    assert (behind.offset, behind.gap_from, behind.values) == (10, 3, [b"x", b"y", b"z"])
    # And partitions that lost nothing have none
    assert [(b.offset, b.gap_from, b.values) for b in (must_read(reader, 1, 0), must_read(reader, 2, 0))] == [
        (0, None, [b"one", b"two"]),
        (0, None, [b"three"]),
    ]
    assert [p.end for p in reader.positions()] == [13, 2, 1, 0]


def test_a_lowest_offset_holds_for_a_partition_that_is_written_later(forgetful: ForgetfulRig) -> None:
    # Given a log that forgot a partition as a whole
    lowest_offsets = ScriptedLowestOffsets()
    writer = forgetful.rig.open(lowest_offsets)
    append_surely(writer, [(0, b"a")])
    forgetful.remember()
    append_surely(writer, [(3, b"lost")] * 5)
    lowest_offsets.lowest_offsets = {0: 1, 3: 4}
    forgetful.forget()
    # When the first appends go elsewhere
    append_surely(writer, [(0, b"b")])
    assert [p.next_offset for p in recovered(forgetful.rig.open(lowest_offsets).positions)] == [2, 0, 0, 4]
    append_surely(writer, [(0, b"c")])
    append_surely(writer, [(3, b"d")])
    # Then the lowest offset is not forgotten over that, and was known from the first of them on
    batch = must_read(forgetful.rig.open(lowest_offsets), 3, 0)
    assert (batch.offset, batch.gap_from, batch.values) == (4, 0, [b"d"])


def test_a_process_that_starts_after_a_lost_tail_knows_the_lowest_offset_too(forgetful: ForgetfulRig) -> None:
    # Given a log that forgot its tail while no writer was there
    append_surely(forgetful.rig.open(), [(0, b"a")])
    forgetful.remember()
    append_surely(forgetful.rig.open(), [(0, b"lost")] * 2)
    forgetful.forget()
    # When a new writer starts
    append_surely(forgetful.rig.open(ScriptedLowestOffsets({0: 3})), [(0, b"b")])
    # Then it does not use the stored offsets again
    batch = must_read(forgetful.rig.open(), 0, 1)
    assert (batch.offset, batch.gap_from, batch.values) == (3, 1, [b"b"])


def test_without_lowest_offsets_nothing_is_appended_to_a_restarted_log(forgetful: ForgetfulRig) -> None:
    # Given a restarted log, and nobody who knows what was stored
    lowest_offsets = ScriptedLowestOffsets()
    writer = forgetful.rig.open(lowest_offsets)
    append_surely(writer, [(0, b"a")])
    forgetful.restart()
    lowest_offsets.error = StoreUnavailableError()
    # Then appends are refused for certain, while who the log is can still be asked
    for _ in range(2):
        result, _ = timed(lambda: writer.append([(0, b"b")]))
        assert isinstance(result, LogUnavailableError), repr(result)
    reader = forgetful.rig.open(lowest_offsets)
    assert recovered(reader.identity).partitions == 4
    assert read_again(reader, 0) == [b"a"]
    # When the lowest offsets are known again
    lowest_offsets.error = None
    lowest_offsets.lowest_offsets = {0: 1}
    append_surely(writer, [(0, b"c")])
    # Then the log goes on
    assert read_again(reader, 0) == [b"a", b"c"]


def test_redis_that_comes_back_empty_is_another_log(own_log_redis: Server, tmp_path: Path) -> None:
    # Given a log in use
    rig = redis_log_rig(own_log_redis)
    writer, reader = rig.open(), rig.open()
    before = reader.identity()
    writer.append([(0, b"old")] * 3)
    # When its server comes back with nothing
    own_log_redis.kill()
    shutil.rmtree(tmp_path / "redis-log")
    (tmp_path / "redis-log").mkdir()
    own_log_redis.start()
    append_surely(writer, [(0, b"new")])
    # Then it is a log of another id, whose offsets begin at 0 again
    with pytest.raises(LogRestartedError):
        reader.read(0, 3, records_max=10, wait_seconds=0)
    assert reader.identity().log_id != before.log_id
    assert read_all(reader, 0) == [b"new"]
    rig.close()


def test_kafka_behind_the_stored_offset_is_a_gap(kafka: Server) -> None:
    # Given a topic with five records, of which PostgreSQL has stored nine
    rig = kafka_log_rig(kafka)
    log = rig.open()
    log.append([(0, b"x")] * 5)
    # Then a read says so, whether there is something to read or not, and again
    for _ in range(2):
        with pytest.raises(LogGapError, match="ends at 5, before offset 9"):
            log.read(0, 9, records_max=10, wait_seconds=0.1)
    # And a read at the end is none
    assert log.read(0, 5, records_max=10, wait_seconds=0) is None
    assert len(must_read(log, 0, 0).values) == 5
    rig.close()


def fill(log: EventLog, value: bytes, *, groups_max: int) -> int:
    """Append until the log is full; the number of records that it took."""
    taken = 0
    for _ in range(groups_max):
        result, seconds = timed(lambda: log.append([(i % 4, value) for i in range(100)]))
        assert seconds < CALL_SECONDS_MAX
        if result is not None:
            assert isinstance(result, LogFullError), repr(result)
            assert result.retry_after_seconds > 0
            return taken
        taken += 100
    raise AssertionError("the log was never full")


@pytest.fixture(params=["memory", "memory limit of redis", "entries limit of redis"])
def small(request: pytest.FixtureRequest) -> Iterator[LogRig]:
    if request.param == "memory":
        rig = MemoryRig()
        rig.server.limit(2000)
        yield rig
        return
    server: Server = request.getfixturevalue("own_log_redis")
    made: RedisRig = redis_log_rig(server)
    with made.client() as client:
        if request.param == "memory limit of redis":
            client.config_set("maxmemory", "24mb")
        else:
            client.config_set("maxmemory", "0")
            made.settings = replace(made.settings, log_entries_max=2000)
    yield made
    made.close()


def test_a_full_log_refuses_whole_groups_and_takes_more_once_it_is_trimmed(small: LogRig) -> None:
    # Given a log that takes only so much
    writer, reader = small.open(), small.open()
    taken = fill(writer, b"x" * 4000, groups_max=100)
    # Then it refuses at once, again, and has written nothing of what it refused
    assert fill(writer, b"x" * 4000, groups_max=1) == 0
    held = sum(p.end for p in reader.positions())
    assert held == taken > 0
    # And reading, committing and trimming work on
    log_id = reader.identity().log_id
    for partition in range(4):
        assert len(read_all(reader, partition)) == taken // 4
        reader.commit(log_id, partition, taken // 4)
        small.trim(partition, taken // 4)
    assert [p.committed for p in reader.positions()] == [taken // 4] * 4
    # And then there is room again
    append_surely(writer, [(0, b"more")])
    assert must_read(reader, 0, taken // 4).values == [b"more"]


@pytest.mark.usefixtures("shipped_limits")
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_a_frozen_kafka_under_load_refuses_instead_of_hanging(own_kafka: Server, client: str) -> None:
    # Given a producer that is well
    rig: KafkaRig = kafka_log_rig(own_kafka, append_seconds_max=2.0, kafka_client=client)
    log = rig.open()
    values = [b"%d " % number + b"x" * 1000 for number in range(5)]

    def group(number: int) -> list[tuple[int, bytes]]:
        return [(i % 4, values[number]) for i in range(500)]

    append_surely(log, group(0))  # more than once where a server that has just started takes too long
    reader = rig.open()

    def held() -> list[bytes]:
        return [value for partition in range(4) for value in read_again(reader, partition)]

    assert held().count(values[0]) >= 500
    # When Kafka freezes and the load goes on, so soon that the leaders need not be looked at again
    append_surely(log, [(0, b"the last")])
    own_kafka.freeze()
    try:
        log._writer._looked_at = time.monotonic()  # as on a machine that is not busy
        results = [timed_append(log, group(number)) for number in range(1, 5)]
    finally:
        own_kafka.thaw()
    # Then each append ends in time; only the first may have left something behind
    assert all(seconds < CALL_SECONDS_MAX for _, seconds in results)
    assert isinstance(results[0][0], LogIndeterminateError)
    assert all(isinstance(result, LogUnavailableError) for result, _ in results[1:])
    # And afterwards nothing of the others is in the topic
    recovered(lambda: log.append([(0, b"after")]))
    assert not set(values[2:]) & set(held())
    rig.close()
