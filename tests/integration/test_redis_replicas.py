"""A Redis log with a replica: what was accepted outlives a failover, or its loss is declared and counted."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import redis

from checks.testbed.waiting import BUSY_SECONDS, eventually
from pipeline.clock import SystemClock
from pipeline.errors import LogFullError, LogIndeterminateError, LogUnavailableError, SluiceError
from pipeline.log import redis_connection
from pipeline.log.redis_keys import RedisLogKeys
from pipeline.log.redis_replicas import CONFIRM_GRACE_SECONDS, CONFIRM_SECONDS_MAX, ReplicaConfirmation
from pipeline.log.redis_streams import RedisStreamsLog
from stack.servers import LOOPBACK, Server, free_port, redis_server
from support.event_logs import (
    RedisRig,
    ScriptedLowestOffsets,
    must_read,
    read_again,
    read_all,
    recovered,
    redis_log_rig,
    timed,
)

APPEND_SECONDS_MAX = 2.0  # a busy disk takes its time
SLACK_SECONDS = BUSY_SECONDS


def client_of(server: Server) -> "redis.Redis":
    return redis.Redis(host=LOOPBACK, port=server.port, protocol=2)


@dataclass
class Pair:
    """A log's Redis and its replica. Clients find the log at the master's port."""

    master: Server
    replica: Server
    rig: RedisRig

    def follow(self, server: Server, master: Server) -> None:
        """Make a server the replica of another, and wait until it has all."""
        with client_of(master) as client:
            client.config_set("repl-diskless-sync-delay", "0")  # it would wait 5 s for further replicas
        with client_of(server) as client:
            client.execute_command("REPLICAOF", LOOPBACK, master.port)
            eventually(lambda: client.info("replication")["master_link_status"] == "up", "the replica follows")
        with client_of(master) as client:
            eventually(lambda: client.info("replication")["connected_slaves"] >= 1, "the master has a replica")
            eventually(lambda: client.info("replication")["slave0"]["state"] == "online", "the replica is online")

    def promote(self) -> None:
        """Make the replica a master of its own; clients still use the old one."""
        with client_of(self.replica) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
        with client_of(self.master) as client:
            eventually(lambda: client.info("replication")["connected_slaves"] == 0, "the master has no replica")

    def fail_over(self) -> None:
        """The old master dies, and its clients find the promoted replica in its place."""
        self.master.kill()
        with client_of(self.replica) as client:
            client.config_set("port", self.master.port)
        self.replica.port = self.master.port


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    master = redis_server(tmp_path, free_port(), is_log=True, maxmemory="256mb")
    replica = redis_server(tmp_path / "replica", free_port(), is_log=True, maxmemory="256mb")
    rig = redis_log_rig(master, append_seconds_max=APPEND_SECONDS_MAX, log_replicas_min=1)
    try:
        master.start()
        replica.start()
        made = Pair(master, replica, rig)
        made.follow(replica, master)
        yield made
    finally:
        rig.close()
        replica.stop()
        master.stop()


def append_many(log: RedisStreamsLog, events: int, name: str) -> list[bytes]:
    """Append events to partition 0 in groups; returns those that were acknowledged."""
    acknowledged: list[bytes] = []
    for first in range(0, events, 50):
        values = [b"%s-%d" % (name.encode(), number) for number in range(first, first + 50)]
        try:
            log.append([(0, value) for value in values])
        except SluiceError:
            continue
        acknowledged += values
    return acknowledged


def warmed_up(log: RedisStreamsLog) -> RedisStreamsLog:
    recovered(log.prepare)
    return log


def test_what_was_accepted_outlives_a_promotion_before_the_master_died(pair: Pair, tmp_path: Path) -> None:
    # Given accepted events, and a replica that is promoted while clients still use the old master
    log = warmed_up(pair.rig.open())
    accepted = append_many(log, 500, "before")
    assert accepted  # a busy disk may delay some of them for too long
    pair.promote()
    # Then nothing is accepted by the old master any more: its events would be lost
    assert append_many(log, 150, "after") == []
    with pytest.raises(LogUnavailableError, match="it has no replica that answers, and LOG_REPLICAS_MIN=1"):
        recovered_or_raised(log)
    # When it dies
    pair.fail_over()
    # Then a process that was there before finds the other server, and names what it lacks
    with pytest.raises(LogUnavailableError, match="it has no replica that answers, and LOG_REPLICAS_MIN=1"):
        recovered_or_raised(log)
    # And the log is named as having no replica, until it has one
    fresh = pair.rig.open()
    missing = recovered(fresh.identity).missing_replicas
    assert missing is not None
    assert missing.refuses_events
    assert (
        missing.what == "Events are refused: the event log's Redis has no replica that answers, and LOG_REPLICAS_MIN=1"
    )
    with pytest.raises(LogUnavailableError, match="no replica"):
        recovered_or_raised(fresh)
    third = redis_server(tmp_path / "third", free_port(), is_log=True, maxmemory="256mb")
    third.start()
    try:
        pair.follow(third, pair.replica)
        recovered(log.prepare)
        accepted.append(append_surely(log, b"next"))
        # And what was accepted is there, and nothing is reported as lost
        assert set(accepted) <= set(read_again(fresh, 0))
        fresh.identity()
        assert [position.lost for position in fresh.positions()] == [0, 0, 0, 0]
        eventually(lambda: fresh.identity().missing_replicas is None, "the new replica counts")
    finally:
        third.stop()


def recovered_or_raised(log: RedisStreamsLog) -> None:
    """Prepare, or raise that replicas are missing; other troubles of a start or of a busy machine pass."""
    refusals: list[LogUnavailableError] = []

    def is_known() -> bool:
        try:
            log.prepare()
        except LogUnavailableError as error:
            refusals[:] = [error] if "can't be used: it has" in str(error) else []
            return bool(refusals)
        return True

    eventually(is_known, "the log is ready, or says why not")
    if refusals:
        raise refusals[0]


def append_surely(log: RedisStreamsLog, value: bytes) -> bytes:
    """Append once the log can, as a client that repeats an event does: perhaps more than once."""

    def append() -> None:
        try:
            log.append([(0, value)])
        except LogIndeterminateError as error:
            raise LogUnavailableError(str(error)) from error

    recovered(append)
    return value


def test_without_the_setting_the_loss_is_declared_and_counted(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    # Given a log with a single copy, and three writers
    pair.rig.settings = replace(pair.rig.settings, log_replicas_min=0, append_seconds_max=15.0)
    lowest_offsets = ScriptedLowestOffsets()
    writer, other, third = (warmed_up(pair.rig.open(lowest_offsets)) for _ in range(3))
    other.append([(0, b"other"), (1, b"other")])
    writer.append([(0, b"kept")] * 9)
    # (a master gets another replication id when its first replica comes, also after it was first asked)
    for log in (writer, other):
        former = log._writer._former
        assert former is not None
        log._writer._former = (former[0], replace(former[1], replication_id="before the replica came"))
        log.identity()
    with client_of(pair.master) as client:
        eventually(lambda: _has_all(client), "the replica has all")
    # When its replica is promoted, and the old master goes on: 900 events, of which 100 are stored
    pair.promote()
    third.append([(0, b"lost")] * 500)
    writer.append([(0, b"lost")] * 400)
    lowest_offsets.lowest_offsets = {0: 110, 1: 1}
    pair.fail_over()
    with caplog.at_level(logging.WARNING):
        # And the writer that knows less comes first
        recovered(lambda: other.append([(0, b"new")] * 5))
        # (whose events are stored before the writer that knows more comes)
        lowest_offsets.lowest_offsets = {0: 115, 1: 1}
        recovered(lambda: writer.append([(1, b"new")]))
        # (and one that knows of a part of the loss comes last)
        recovered(lambda: third.append([(1, b"new")]))
    # Then the failover is named
    assert "a replica has taken the place of its master" in caplog.text
    reader = pair.rig.open(lowest_offsets)
    assert reader.identity().began_by == "a replica took the place of its master"
    # And the loss is counted: what nobody stored
    assert [position.lost for position in reader.positions()] == [800, 0, 0, 0]
    # And no stored offset is used again
    batch = must_read(reader, 0, 10)
    assert (batch.offset, batch.gap_from, batch.values) == (110, 10, [b"new"] * 5)
    # When Redis restarts and loses nothing, nothing is reported
    restart(pair.replica)
    recovered(lambda: writer.append([(0, b"x")]))
    reader.identity()
    assert [position.lost for position in reader.positions()] == [0, 0, 0, 0]


def test_an_idle_process_counts_what_was_lost(pair: Pair) -> None:
    # Given a log with a single copy
    pair.rig.settings = replace(pair.rig.settings, log_replicas_min=0, append_seconds_max=15.0)
    log = warmed_up(pair.rig.open())
    log.append([(0, b"kept")])
    with client_of(pair.master) as client:
        eventually(lambda: _has_all(client), "the replica has all")
    pair.promote()
    log.append([(0, b"lost")] * 3)
    pair.fail_over()
    # When it only looks which log it is, and prepares its next append
    recovered(log.identity)
    recovered(log.prepare)
    # Then the loss is known
    reader = pair.rig.open()
    reader.identity()
    assert [position.lost for position in reader.positions()] == [3, 0, 0, 0]


def restart(server: Server) -> None:
    """Kill a server, and start it at the port that it has now."""
    server.kill()
    server.command[server.command.index("--port") + 1] = str(server.port)
    server.is_ready = lambda: _answers(server)
    server.start()


def _answers(server: Server) -> bool:
    try:
        with client_of(server) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _has_all(client: "redis.Redis") -> bool:
    facts = client.info("replication")
    return bool(facts["slave0"]["offset"] == facts["master_repl_offset"])


def test_a_frozen_replica_leaves_one_append_in_doubt_and_the_next_are_refused(pair: Pair) -> None:
    log = warmed_up(pair.rig.open())
    append_surely(log, b"a")
    pair.replica.freeze()
    # Then the first append is not acknowledged, in time
    result, seconds = timed(lambda: log.append([(0, b"b")]))
    assert isinstance(result, LogIndeterminateError), repr(result)
    assert "no replica confirmed it in time (LOG_REPLICAS_MIN=1)" in str(result)
    assert seconds < APPEND_SECONDS_MAX + CONFIRM_GRACE_SECONDS + SLACK_SECONDS
    # And those after it are refused for certain, and write nothing
    for _ in range(2):
        result, seconds = timed(lambda: log.append([(0, b"c")]))
        assert isinstance(result, LogUnavailableError), repr(result)
        assert seconds < CONFIRM_SECONDS_MAX + CONFIRM_GRACE_SECONDS + SLACK_SECONDS
        log._writer._connection.close()  # a new connection has written nothing that a replica could lack
    with pytest.raises(LogUnavailableError, match=r"it has (1 replica, which does not confirm what|no replica that)"):
        recovered_or_raised(log)
    # When it goes on
    pair.replica.thaw()
    append_surely(log, b"d")
    assert set(read_all(log, 0)) == {b"a", b"b", b"d"}


@pytest.mark.parametrize("replicas_min", [0, 1])
def test_a_master_that_becomes_a_replica_and_runs_on_is_left_for_its_new_master(pair: Pair, replicas_min: int) -> None:
    # Given connections to the master, of which one waits for records only
    pair.rig.settings = replace(pair.rig.settings, log_replicas_min=replicas_min)
    log, reader = warmed_up(pair.rig.open()), pair.rig.open()
    append_surely(log, b"a")
    assert set(read_all(reader, 0)) == {b"a"}
    with client_of(pair.master) as client:
        eventually(lambda: _has_all(client), "the replica has all")
    # When the two change their roles without a restart, as in a planned failover, and clients find the new master
    port = pair.master.port
    with client_of(pair.replica) as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
    pair.follow(pair.master, pair.replica)
    pair.master.port = free_port()
    with redis.Redis(host=LOOPBACK, port=port) as client:
        client.config_set("port", pair.master.port)
    with client_of(pair.replica) as client:
        client.config_set("port", port)
    pair.replica.port = port
    # Then events are accepted again, by the new master, and readers go there too
    append_surely(log, b"b")
    recovered(reader.identity)
    assert list(dict.fromkeys(read_again(reader, 0))) == [b"a", b"b"]
    assert reader.identity().began_by == "a replica took the place of its master"


def test_an_idle_log_without_its_replica_refuses_the_next_append_for_certain(pair: Pair) -> None:
    log = warmed_up(pair.rig.open())
    append_surely(log, b"a")
    pair.replica.kill()
    eventually(lambda: log.identity().missing_replicas is not None, "that is seen")
    result, _ = timed(lambda: log.append([(0, b"b")]))
    assert isinstance(result, LogUnavailableError), repr(result)
    assert set(read_all(log, 0)) == {b"a"}


@pytest.mark.parametrize("version", ["with WAITAOF", "before 7.2"])
def test_a_replica_without_an_append_only_file_counts_only_where_redis_cannot_tell(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    if version == "before 7.2":
        monkeypatch.setattr(redis_connection, "_WAITAOF_SINCE", (99, 0))
    with client_of(pair.replica) as client:
        client.config_set("appendonly", "no")
    result, _ = timed(lambda: recovered_or_raised(pair.rig.open()))
    if version == "before 7.2":
        assert result is None
    else:
        assert "which does not confirm what is written" in str(result)


def test_fewer_replicas_than_asked_for_are_named_by_their_number(pair: Pair) -> None:
    pair.rig.settings = replace(pair.rig.settings, log_replicas_min=2)
    with pytest.raises(LogUnavailableError, match="it has 1 replica, and LOG_REPLICAS_MIN=2"):
        recovered_or_raised(pair.rig.open())


def test_a_master_without_an_append_only_file_needs_its_replicas_only_also_where_it_ended_while_running(
    pair: Pair,
) -> None:
    log = warmed_up(pair.rig.open())
    append_surely(log, b"a")
    with client_of(pair.master) as client:
        client.config_set("appendonly", "no")
    log.identity()
    append_surely(log, b"b")
    assert list(dict.fromkeys(read_all(log, 0))) == [b"a", b"b"]


def test_at_its_memory_limit_the_log_is_full_and_not_without_replicas(pair: Pair) -> None:
    log = warmed_up(pair.rig.open())
    append_surely(log, b"x" * 1000)
    with client_of(pair.master) as client:
        client.config_set("maxmemory", "1mb")
    for writer in (log, pair.rig.open()):  # one that has appended before, and one that comes new
        with pytest.raises(LogFullError):
            recovered(partial(writer.append, [(0, b"more")]))


def test_a_wait_for_replicas_ends_in_time_whatever_redis_timer(pair: Pair) -> None:
    # Given a Redis whose own timer would end waits with its next tick, a second later at most, and no replica
    pair.promote()
    connection = redis_connection.RedisConnection(pair.rig.settings, answer_seconds_max=APPEND_SECONDS_MAX)
    replicas = ReplicaConfirmation(pair.rig.settings, RedisLogKeys(pair.rig.settings.key_prefix), SystemClock())
    with client_of(pair.master) as client, connection.connected() as wire:
        client.config_set("hz", 1)
        # When replicas are waited for in vain
        assert replicas.confirmations(wire, wire.ask_facts(), seconds_max=1.0) == 0
        # Then they were asked many times within that second, as short waits do
        assert client.info("commandstats")["cmdstat_waitaof"]["calls"] >= 4
        # And the connection goes on with the right answers
        assert wire.call("ECHO", "x") == b"x"
