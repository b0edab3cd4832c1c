"""How an append waits for the replicas of the log's Redis; the connection and the clock are scripted."""

from dataclasses import replace
from typing import Any, cast

import pytest

from pipeline.clock import ManualClock
from pipeline.log.redis_connection import RedisFacts, Wire, parse_facts
from pipeline.log.redis_keys import RedisLogKeys
from pipeline.log.redis_replicas import CONFIRM_GRACE_SECONDS, WAIT_SECONDS_MAX, ReplicaConfirmation
from pipeline.settings import Settings

INFO = (
    b"# Server\r\nredis_version:7.2.4\r\nrun_id:abc\r\nredis_mode:standalone\r\n# Memory\r\nmaxmemory:0\r\n"
    b"maxmemory_policy:noeviction\r\n# Persistence\r\nloading:0\r\naof_enabled:1\r\naof_rewrite_in_progress:0\r\n"
    b"aof_rewrite_scheduled:0\r\naof_last_rewrite_time_sec:0\r\naof_last_bgrewrite_status:ok\r\n"
    b"# Replication\r\nrole:master\r\nconnected_slaves:3\r\n"
    b"slave0:ip=10.0.0.1,port=6379,state=online,offset=10,lag=0\r\n"
    b"slave1:ip=10.0.0.2,port=6379,state=wait_bgsave,offset=0,lag=0\r\n"
    b"slave2:ip=10.0.0.3,port=6379,state=online,offset=10,lag=30\r\n"
    b"master_replid:f00\r\nmaster_replid2:0000000000000000000000000000000000000000\r\n"
)
FACTS: RedisFacts = parse_facts(INFO)


class FakeWire:
    """Answers with what is scripted; each wait takes its time, and `late` besides."""

    def __init__(self, clock: ManualClock, *answers: Any, late: float = 0.0) -> None:
        self.clock, self.answers, self.late = clock, list(answers), late
        self.calls: list[tuple[Any, ...]] = []

    def send(self, *command: Any) -> None:
        self.calls.append(command)

    def receive_in_time(self, wait_seconds: float, *, grace_seconds: float) -> Any:
        assert wait_seconds == self.calls[-1][-1] / 1000
        if self.late > grace_seconds:
            raise TimeoutError
        self.clock.advance(wait_seconds + self.late)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def confirmations(
    facts: RedisFacts, *answers: Any, seconds_max: float = 1.0, late: float = 0.0
) -> tuple[int, FakeWire, float]:
    clock = ManualClock()
    wire = FakeWire(clock, *answers, late=late)
    replicas = ReplicaConfirmation(replace(Settings(), log_replicas_min=2), RedisLogKeys("sluice:"), clock)
    started = clock.monotonic()
    count = replicas.confirmations(cast(Wire, wire), facts, seconds_max)
    return count, wire, clock.monotonic() - started


def test_only_replicas_that_follow_count() -> None:
    assert FACTS.replicas == 1
    assert FACTS.can_wait_for_disks
    assert not parse_facts(INFO.replace(b"7.2.4", b"7.0.15")).can_wait_for_disks
    assert parse_facts(INFO.replace(b"7.2.4", b"10.0.1")).can_wait_for_disks


def test_redis_is_asked_again_since_it_asks_its_replicas_once_for_each_wait() -> None:
    # Given a replica that was asked while it synced its disk
    count, wire, seconds = confirmations(FACTS, [1, 1], [1, 1], [1, 2])
    # Then that costs some milliseconds, not the second until it reports by itself
    assert count == 2
    assert seconds < 0.02
    assert {call[:3] for call in wire.calls} == {("WAITAOF", 1, 2)}


def test_a_server_that_stands_still_for_a_moment_has_the_whole_time() -> None:
    # Given a Redis that waits for its disk, and answers the first short wait late: the append is not in doubt for that
    for late in (0.5, 1.0 + CONFIRM_GRACE_SECONDS / 2):
        assert confirmations(FACTS, [1, 2], late=late)[0] == 2
    # But not for longer
    with pytest.raises(TimeoutError):
        confirmations(FACTS, [1, 2], late=1.0 + 2 * CONFIRM_GRACE_SECONDS)


def test_the_wait_is_bounded_and_no_wait_is_without_limit() -> None:
    count, wire, seconds = confirmations(FACTS, [1, 1])
    assert count == 1
    assert seconds == pytest.approx(1.0, abs=0.01)
    assert max(call[-1] for call in wire.calls) <= WAIT_SECONDS_MAX * 1000
    for seconds_max in (0.0, 0.0005, -1.0):
        count, wire, _ = confirmations(FACTS, [1, 0], seconds_max=seconds_max)
        assert count == 0
        assert [call[-1] for call in wire.calls] == [1]  # 0 would wait for ever


def test_the_servers_own_disk_counts_where_it_has_an_append_only_file() -> None:
    assert confirmations(FACTS, [0, 2])[0] == 0
    without = replace(FACTS, has_aof=False)
    count, wire, _ = confirmations(without, [0, 2])
    assert count == 2
    assert wire.calls[0][:3] == ("WAITAOF", 0, 2)


def test_before_redis_7_2_it_waits_for_the_memory_of_the_replicas() -> None:
    count, wire, _ = confirmations(replace(FACTS, can_wait_for_disks=False), 1, 2)
    assert count == 2
    assert [call[:2] for call in wire.calls] == [("WAIT", 2)] * 2
