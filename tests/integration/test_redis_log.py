"""What is special about the event log on Redis Streams."""

import logging
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from checks.testbed.waiting import APPEND_SECONDS_LONGEST
from pipeline.errors import (
    LogFullError,
    LogGapError,
    LogIndeterminateError,
    LogMisconfiguredError,
    LogUnavailableError,
)
from pipeline.log.redis_reader import EXACT_BELOW_SECONDS
from pipeline.log.redis_streams import RedisStreamsLog
from pipeline.names import KEY_LOG_ENDS, KEY_LOG_ID, KEY_LOG_STREAM, AlarmCode, PauseReason
from pipeline.settings import Settings
from stack.servers import Server
from support.event_logs import (
    CALL_SECONDS_MAX,
    RedisRig,
    ScriptedLowestOffsets,
    log_settings,
    must_read,
    read_all,
    recovered,
    redis_log_rig,
    timed,
)
from support.ticks import tick


@pytest.fixture
def rig(log_redis: Server) -> Iterator[RedisRig]:
    made = redis_log_rig(log_redis, append_seconds_max=APPEND_SECONDS_LONGEST)
    yield made
    made.close()


@pytest.fixture
def own_rig(own_log_redis: Server) -> Iterator[RedisRig]:
    made = redis_log_rig(own_log_redis)
    yield made
    made.close()


def test_a_server_that_evicts_takes_no_event_and_is_drained(own_rig: RedisRig) -> None:
    # Given a writer and a reader on a Redis that somebody lets drop keys at its memory limit, unread events among them
    log = own_rig.open()
    assert log.identity().faults == ()
    recovered(lambda: log.append([(0, b"a")]))
    with own_rig.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        # Then that is named as what loses events: ingest does not start on it
        [fault] = log.identity().faults
        assert "evicts keys" in fault.what
        assert "noeviction" in fault.remedy
        assert fault.loses_events
        # And nothing is appended, by a writer that runs or by a new one
        for writer in (log, own_rig.open()):
            with pytest.raises(LogUnavailableError, match="noeviction"):
                writer.append([(0, b"b")])
            with pytest.raises(LogUnavailableError, match="noeviction"):
                writer.prepare()
        # And what it holds can be read, stored and trimmed, before it is dropped
        reader = own_rig.open()
        log_id = reader.identity().log_id
        assert read_all(reader, 0) == [b"a"]
        reader.commit(log_id, 0, 1)
        assert reader.positions()[0].begin == 1
        # When it is set right, or has no limit at which it would evict, then all is well
        client.config_set("maxmemory", "0")
        assert log.identity().faults == ()
        client.config_set("maxmemory", "256mb", "maxmemory-policy", "noeviction")
        log.append([(0, b"b")])
        assert read_all(log, 0, 1) == [b"b"]


def test_a_server_without_append_only_file_is_warned_of(own_rig: RedisRig, caplog: pytest.LogCaptureFixture) -> None:
    log = own_rig.open()
    with caplog.at_level(logging.WARNING):
        assert log.identity().faults == ()
        assert not caplog.records
        with own_rig.client() as client:
            client.config_set("appendonly", "no")
        # Then it is also in health, for as long as that is so; ingest starts on it
        [fault] = log.identity().faults
        assert "no append-only file" in fault.what
        assert not fault.loses_events
    assert [record.getMessage() for record in caplog.records if "append-only file" in record.getMessage()]


def test_a_key_that_is_not_ours_is_said(rig: RedisRig) -> None:
    with rig.client() as client:
        client.set(f"{rig.settings.key_prefix}log:id", "something else")
    with pytest.raises(LogMisconfiguredError, match="not Sluice's"):
        rig.open().identity()
    # Nor is anything appended; the log is named once
    with pytest.raises(LogUnavailableError, match="not Sluice's") as caught:
        rig.open().append([(0, b"a")])
    assert str(caught.value).count("the event log") == 1


def test_the_positions_of_all_partitions_take_a_command_for_each_and_a_few_for_all(own_log_redis: Server) -> None:
    # Given a log without records
    rig = redis_log_rig(own_log_redis, log_partitions=16)
    log = rig.open()
    with rig.client() as client:

        def calls() -> int:
            found: dict[str, dict[str, int]] = client.info("commandstats")
            return sum(one["calls"] for name, one in found.items() if name not in {"cmdstat_info", "cmdstat_config"})

        assert len(log.positions()) == 16
        before = calls()
        # When its positions are read
        assert {(one.begin, one.end, one.committed) for one in log.positions()} == {(0, 0, None)}
        # Then the hashes and the existence of the streams were read once for all
        assert calls() - before <= 6
        # And if one stream has records, or all have, and some have commits
        for partitions in ([3], range(16)):
            recovered(partial(log.append, [(partition, b"a") for partition in partitions]))
        for partition in range(8):
            log.commit(log.identity().log_id, partition, 1)
        expected = log.positions()
        before = calls()
        assert log.positions() == expected
        assert calls() - before <= 16 + 6
    ends = [1, 1, 1, 2] + [1] * 12
    assert [one.end for one in expected] == ends
    assert [(one.begin, one.end, one.committed) for one in expected if one.partition != 3] == [(1, 1, 1)] * 7 + [
        (0, 1, None)
    ] * 8
    rig.close()


def test_a_look_at_who_the_log_is_takes_one_round_trip(own_rig: RedisRig) -> None:
    log = own_rig.open()
    identity = log.identity()
    with own_rig.client() as client:

        def reads() -> int:
            """Requests that the server has read; more than one at a time are one."""
            return int(client.info("stats")["total_reads_processed"])

        per_look = -(reads() - reads())
        before = reads()
        for _ in range(5):
            assert log.identity() == identity
        assert reads() - before == 5 + per_look
        # And if the user of Redis loses the right to the first question, its answers are not mixed up with others
        client.execute_command("ACL", "SETUSER", "default", "-info")
        for _ in range(2):
            with pytest.raises(LogUnavailableError, match="info"):
                log.identity()
        client.execute_command("ACL", "SETUSER", "default", "+info")
        assert log.identity() == identity
        assert [one.end for one in log.positions()] == [0] * identity.partitions
        # Nor if it is the second one
        client.execute_command("ACL", "SETUSER", "default", "-get")
        with pytest.raises(LogUnavailableError, match="get"):
            log.identity()
        client.execute_command("ACL", "SETUSER", "default", "+get")
        assert log.identity() == identity


def test_ids_are_the_offsets_plus_one(rig: RedisRig) -> None:
    # Given three records in one append
    rig.open().append([(1, b"a"), (1, b"b"), (1, b"c")])
    # Then their ids are those that operators' tools can count with
    with rig.client() as client:
        entries = client.execute_command("XRANGE", rig.stream(1), "-", "+")
    assert [entry[0] for entry in entries] == [b"0-1", b"0-2", b"0-3"]


def test_a_log_of_a_host_that_came_back_from_a_snapshot_while_it_ran_stops(rig: RedisRig) -> None:
    # Given a log that goes on after a snapshot of its host, and PostgreSQL, which stores that
    log = rig.open()
    log.append([(0, b"x")] * 6)
    with rig.client() as client:
        snapshot = {key: client.dump(key) for key in client.scan_iter(match=f"{rig.settings.key_prefix}*", count=1000)}
        log.append([(0, b"y")] * 9)
        identity = log.identity()
        assert tick(log, {0: 15}) == ([], [])
        # When the host comes back as it was then: the same Redis process, so nobody is told of a restart
        for key in client.scan_iter(match=f"{rig.settings.key_prefix}*", count=1000):
            client.delete(key)
        for key, value in snapshot.items():
            client.restore(key, 0, value)
    assert log.identity() == identity
    # Then the next tick stops that partition
    alarms, pauses = tick(log, {0: 15})
    assert [(alarm.code, alarm.partition) for alarm in alarms] == [(AlarmCode.LOG_BEHIND_STORED, 0)]
    assert "has stored up to offset 15, and the log goes on with 6" in alarms[0].what
    assert [(pause.reason, pause.partition) for pause in pauses] == [(PauseReason.LOG_GAP, 0)]


def test_a_commit_trims_what_is_stored_only_where_it_is_wanted(rig: RedisRig) -> None:
    # Given ten records, of which four are stored
    log = rig.open()
    log.append([(0, b"%d" % i) for i in range(10)])
    log.commit(log.identity().log_id, 0, 4)
    # Then those four are dropped
    assert log.positions()[0].begin == 4
    assert must_read(log, 0, 4).values == [b"%d" % i for i in range(4, 10)]
    # When trimming is turned off
    rig.settings = replace(rig.settings, log_trim=False)
    log_id = log.identity().log_id
    rig.open().commit(log_id, 0, 8)
    # Then only the commit is noted
    assert [(p.begin, p.committed) for p in log.positions()[:1]] == [(4, 8)]
    # And one that comes late brings nothing back that was dropped
    log.commit(log_id, 0, 6)
    log.commit(log_id, 0, 2)
    assert [(p.begin, p.committed) for p in log.positions()[:1]] == [(6, 2)]


def test_a_commit_beyond_the_end_is_ignored(rig: RedisRig, caplog: pytest.LogCaptureFixture) -> None:
    # Given a stream that lost its tail, and a drain that knows how far it had stored
    log = rig.open()
    log.append([(0, b"a"), (0, b"b")])
    log.commit(log.identity().log_id, 0, 9)
    # Then nothing is dropped or noted on its word
    assert [(p.begin, p.end, p.committed) for p in log.positions()[:1]] == [(0, 2, None)]
    assert "ends before" in caplog.text


def test_scripts_are_sent_again_after_the_server_forgot_them(rig: RedisRig) -> None:
    log = rig.open()
    log.append([(0, b"a")])
    with rig.client() as client:
        client.script_flush()
    log.append([(0, b"b")])
    log.commit(log.identity().log_id, 0, 1)
    assert log.positions()[0].end == 2


def test_a_deleted_stream_does_not_count_from_0_again(rig: RedisRig) -> None:
    # Given two writers, of which one has written little, and a stream that somebody deleted with unread records in it
    writer, other = rig.open(), rig.open()
    other.append([(0, b"old")])
    writer.append([(0, b"old")] * 6)
    with rig.client() as client:
        client.delete(rig.stream(0))
    # When either appends, first the one that knows the lower end
    other.append([(0, b"new"), (1, b"x")])
    writer.append([(0, b"newer")])
    # Then the offsets go on, and the loss shows as a hole that is not declared
    batch = must_read(writer, 0, 0)
    assert (batch.offset, batch.gap_from, batch.values) == (7, None, [b"new", b"newer"])
    assert [p.next_offset for p in writer.positions()] == [9, 1, 0, 0]


@pytest.mark.parametrize("what", ["all but the log's id is deleted", "another server's content comes in its place"])
def test_content_that_changes_under_a_running_server_is_fenced_anew(rig: RedisRig, what: str) -> None:
    # Given two writers on a server that becomes another's replica for a moment, or is cleaned up
    lowest_offsets = ScriptedLowestOffsets()
    writer, other = rig.open(lowest_offsets), rig.open(lowest_offsets)
    other.append([(0, b"old")])
    writer.append([(0, b"old")] * 6)
    lowest_offsets.lowest_offsets = {0: 5, 1: 3}
    with rig.client() as client:
        if what.startswith("all"):
            client.delete(f"{rig.settings.key_prefix}log:ends", *[rig.stream(partition) for partition in range(4)])
        else:
            client.xtrim(rig.stream(0), maxlen=0)
            client.execute_command("XSETID", rig.stream(0), "0-2")
            client.hset(f"{rig.settings.key_prefix}log:ends", mapping={"incarnation": "another", "e0": 2})
    # When they append
    other.append([(0, b"new")])
    writer.append([(1, b"new")])
    # Then the first of them has asked for the lowest offsets before, and neither gives an offset below them
    assert len(lowest_offsets.calls) == 3
    assert [must_read(writer, partition, 0).offset for partition in (0, 1)] == [5, 3]


def test_a_writer_of_an_older_version_notes_no_end(rig: RedisRig) -> None:
    # Given a writer beside one of a version that knows only the streams
    log = rig.open()
    log.append([(0, b"a")])
    with rig.client() as client:
        for value in (b"b", b"c"):
            client.execute_command("XADD", rig.stream(0), "0-*", "v", value)
    # Then their records follow each other
    log.append([(0, b"d"), (0, b"e")])
    assert read_all(log, 0) == [b"a", b"b", b"c", b"d", b"e"]


def test_an_entry_removed_from_the_middle_shows_as_a_hole(rig: RedisRig) -> None:
    # Given a stream with a hole that somebody made
    log = rig.open()
    log.append([(0, b"%d" % i) for i in range(6)])
    with rig.client() as client:
        client.xdel(rig.stream(0), "0-4")
    # Then the batch ends before it, and the next one begins behind it
    assert must_read(log, 0, 0).values == [b"0", b"1", b"2"]
    behind = must_read(log, 0, 3)
    assert (behind.offset, behind.gap_from, behind.values) == (4, None, [b"4", b"5"])


def test_an_entry_by_somebody_else_stops_reader_and_writer(rig: RedisRig) -> None:
    # Given an entry whose id is a time, as XADD * gives it
    log = rig.open()
    log.append([(0, b"a")])
    with rig.client() as client:
        client.xadd(rig.stream(0), {"k": "v"})
    with pytest.raises(LogGapError, match="did not write"):
        log.read(0, 1, records_max=10, wait_seconds=0)
    with pytest.raises(LogIndeterminateError):
        log.append([(0, b"b")])


def test_a_key_of_another_type_in_a_streams_place_lets_nothing_be_written(rig: RedisRig) -> None:
    log = rig.open()
    log.append([(0, b"a")])
    with rig.client() as client:
        client.set(rig.stream(3), "text")
    with pytest.raises(LogUnavailableError):
        log.append([(0, b"b"), (3, b"c")])
    assert read_all(log, 0) == [b"a"]


def test_an_append_that_outlasts_its_time_is_indeterminate_and_not_repeated(own_rig: RedisRig) -> None:
    # Given a server that is busy for longer than an append may take
    own_rig.open().append([(0, b"a")])
    own_rig.settings = replace(own_rig.settings, append_seconds_max=1.0)
    log = own_rig.open()
    recovered(log.prepare)
    with own_rig.client() as client:
        client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
        result, seconds = timed(lambda: log.append([(0, b"b")]))
        # Then it says that it does not know
        assert isinstance(result, LogIndeterminateError), repr(result)
        assert seconds < CALL_SECONDS_MAX
        client.execute_command("CLIENT", "UNPAUSE")
    # And the record is there once or not at all
    recovered(lambda: log.append([(0, b"c")]))
    assert read_all(log, 0) in ([b"a", b"c"], [b"a", b"b", b"c"])


def test_a_fence_that_came_too_late_is_set_again(own_log_redis: Server) -> None:
    # Given a process whose server is restarted while it learns the lowest offsets: another may have fenced the new
    # server by now
    rig = redis_log_rig(own_log_redis)
    fenced: list[str] = []

    def slow(log_id: str, incarnation: str, *, is_new: bool = False) -> dict[int, int]:
        if not fenced:
            own_log_redis.kill()
            own_log_redis.start()
        fenced.append(incarnation)
        return {}

    log = RedisStreamsLog(rig.settings, slow)
    # When it appends
    recovered(lambda: log.append([(0, b"a")]))
    # Then the incarnation that it fenced last is the one that is running
    assert len(fenced) == 2
    assert fenced[-1] == rig.open().identity().incarnation != fenced[0]
    log.close()
    rig.close()


def test_a_writer_notices_a_flush_by_itself(rig: RedisRig, caplog: pytest.LogCaptureFixture) -> None:
    # Given a writer, and nobody else, whose log is flushed without a restart
    lowest_offsets = ScriptedLowestOffsets({0: 3})
    log = rig.open(lowest_offsets)
    log.append([(0, b"old")] * 3)
    rig.replace()
    lowest_offsets.lowest_offsets = {}
    # When it appends
    log.append([(0, b"new")])
    # Then that is a new log, whose lowest offsets it has asked for, and whose offsets begin at 0
    reader = rig.open()
    assert reader.identity().log_id == lowest_offsets.calls[-1][0] != lowest_offsets.calls[0][0]
    assert read_all(reader, 0) == [b"new"]
    # And it says which log is gone, and how far it had acknowledged its records
    [said] = [record.getMessage() for record in caplog.records if "another log now" in record.getMessage()]
    assert lowest_offsets.calls[0][0] in said
    assert "up to the offsets 0: 6;" in said


def test_above_the_memory_limit_reading_and_trimming_work(own_rig: RedisRig) -> None:
    # Given a Redis that holds more than it may
    log = own_rig.open()
    log.append([(i % 4, b"x" * 10_000) for i in range(800)])
    with own_rig.client() as client:
        client.config_set("maxmemory", "1mb")
        with pytest.raises(LogFullError):
            log.append([(0, b"refused")])
        # Then all that frees memory works, and who the log is can be asked
        assert own_rig.open().identity() == log.identity()
        for partition in range(4):
            assert len(read_all(log, partition)) == 200
            log.commit(log.identity().log_id, partition, 199)
        assert [(p.begin, p.end, p.committed) for p in log.positions()] == [(199, 200, 199)] * 4
        client.config_set("maxmemory", "256mb")
    log.append([(0, b"more")])
    assert len(read_all(log, 0, 199)) == 2


def append_in_process(settings: Settings, number: int) -> int:
    log = RedisStreamsLog(settings, ScriptedLowestOffsets())
    recovered(log.identity)  # three starting processes may keep a connection waiting for longer than it may take
    for start in range(0, 1000, 50):
        recovered(partial(log.append, [(i % 4, b"%d:%d" % (number, i)) for i in range(start, start + 50)]))
    log.close()
    return number


def test_processes_append_at_once(log_redis: Server) -> None:
    # Given three processes on one log
    settings = log_settings(log_redis.url)
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as executor:
        list(executor.map(append_in_process, [settings] * 3, range(3)))
    # Then every record is there once, and in each writer's order
    log = RedisStreamsLog(settings, ScriptedLowestOffsets())
    for partition in range(4):
        found = [tuple(map(int, value.split(b":"))) for value in read_all(log, partition)]
        for number in range(3):
            assert [i for n, i in found if n == number] == list(range(partition, 1000, 4))
    log.close()


def test_a_large_group_of_large_records(rig: RedisRig) -> None:
    # Given a group of the largest messages that ingest takes
    log = rig.open()
    log.append([(i % 4, b"%03d" % i + b"x" * 65536) for i in range(300)])
    batch = must_read(log, 1, 0, records_max=75)
    assert [value[:3] for value in batch.values] == [b"%03d" % i for i in range(1, 300, 4)]
    # And what they took is given back
    for partition in range(4):
        log.commit(log.identity().log_id, partition, 75)
    assert [p.begin for p in log.positions()] == [75] * 4


def test_an_error_that_redis_answers_is_a_refusal_and_no_silence(rig: RedisRig) -> None:
    # Given a log whose keys are of another type
    log = rig.open()
    recovered(partial(log.append, [(0, b"x")]))
    with rig.client() as client:
        for name in (f"{KEY_LOG_STREAM}:0", KEY_LOG_ENDS):
            key = rig.settings.key_prefix + name
            client.delete(key)
            client.rpush(key, "x")
    # Then each call says that it is refused
    for call in (lambda: log.read(0, 0, records_max=1, wait_seconds=0.0), log.positions):
        with pytest.raises(LogUnavailableError, match=r"^the event log \(Redis\) refuses: WRONGTYPE"):
            call()
    # And so does a log whose id has another type
    with rig.client() as client:
        client.delete(rig.settings.key_prefix + KEY_LOG_ID)
        client.rpush(rig.settings.key_prefix + KEY_LOG_ID, "x")
    with pytest.raises(LogUnavailableError, match=r"^the event log \(Redis\) refuses: WRONGTYPE"):
        rig.open().identity()


def test_a_short_wait_ends_in_time_and_a_long_one_asks_for_nothing_more(own_rig: RedisRig) -> None:
    # Given a Redis whose own timer would end waits with its next tick, a second later at most
    log = own_rig.open()
    recovered(partial(log.append, [(1, b"x")]))
    with own_rig.client() as client:
        client.config_set("hz", 1)

        def pings() -> int:
            counted = client.info("commandstats").get("cmdstat_ping", {"calls": 0})
            return int(counted["calls"])

        # When waits that are short end in vain, then each wakes it up once, unless its timer was faster
        before = pings()
        for _ in range(3):
            assert log.ready({0: 0}, wait_seconds=0.05) == set()
            assert log.read(0, 0, records_max=1, wait_seconds=0.05) is None
        woken = pings() - before
        assert 0 < woken <= 6
        # And the answers that come after them are the right ones
        assert log.ready({0: 0, 1: 0}, wait_seconds=0.05) == {1}
        assert must_read(log, 1, 0, records_max=1).values == [b"x"]
        # When there is a record, or no wait, or a long one, then it is not asked
        assert log.ready({0: 0}, wait_seconds=0.0) == set()
        assert log.ready({0: 0}, wait_seconds=EXACT_BELOW_SECONDS) == set()
        assert pings() == before + woken


def test_a_record_that_comes_while_a_short_wait_ends_is_read(rig: RedisRig) -> None:
    # Given a reader whose wait ends when a record comes
    log, writer = rig.open(), rig.open()
    recovered(partial(writer.append, [(0, b"0")]))
    for number in range(1, 20):
        thread = threading.Thread(target=recovered, args=(partial(writer.append, [(0, b"%d" % number)]),))
        thread.start()
        # Then it has the record, or an end without one, and never another answer
        found = log.read(0, number, records_max=10, wait_seconds=0.001)
        assert found is None or found.values == [b"%d" % number]
        thread.join()
        assert must_read(log, 0, number, records_max=10).values == [b"%d" % number]
