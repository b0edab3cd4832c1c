"""The pairs of servers that the soak kills: what is confirmed is on both, also after two failovers."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from checks.testbed.database import ask
from checks.testbed.postgres_pair import PostgresPair, url_of_both, wait_replayed
from checks.testbed.redis_pair import RedisPair, data_folder
from checks.testbed.waiting import WAIT_SECONDS_MAX, wait_until
from stack.servers import LOOPBACK, Server


def _client(server: Server) -> "redis.Redis":
    return redis.Redis(host=LOOPBACK, port=server.port)


@pytest.fixture
def stopping() -> Iterator[Callable[[Any], Any]]:
    with contextlib.ExitStack() as stack:

        def started(pair: Any) -> Any:
            stack.callback(pair.stop)
            return pair.start()

        yield started


def test_a_redis_pair_changes_its_roles_with_each_failover(tmp_path: Path, stopping: Callable[[Any], Any]) -> None:
    pair: RedisPair = stopping(RedisPair(tmp_path, maxmemory="64mb"))
    first = pair.master
    for number in range(2):
        killed = pair.master
        with _client(killed) as client:
            client.rpush("events", f"before {number}")
            assert client.execute_command("WAITAOF", 1, 1, 30_000) == [1, 1]
        # When the master dies, and the other one takes its place
        killed.kill()
        pair.promote()
        assert pair.replica is killed
        # Then that takes writes, also after it was itself killed and started again
        pair.master.kill()
        pair.master.start()
        with _client(pair.master) as client:
            assert client.info("replication")["role"] == "master"
            client.rpush("events", f"after {number}")
        # And the one that was killed follows it
        pair.rejoin()
        pair.wait_following()
    assert pair.master is first
    with _client(pair.replica) as client:
        assert client.lrange("events", 0, -1) == [b"before 0", b"after 0", b"before 1", b"after 1"]
    assert data_folder(pair.replica) != data_folder(pair.master)


def test_a_postgresql_pair_changes_its_roles_and_commits_wait_for_the_standby(
    tmp_path: Path, stopping: Callable[[Any], Any]
) -> None:
    pair: PostgresPair = stopping(PostgresPair(tmp_path))
    first, url = pair.primary, url_of_both(pair.primary.url, *pair.ports)
    ask(url, "CREATE TABLE told (words text)")
    # Given a standby that does not answer
    pair.standby.freeze()
    try:
        committing = threading.Thread(target=ask, args=(url, "INSERT INTO told VALUES ('waits')"), daemon=True)
        committing.start()
        # Then a commit waits for it
        waiting = "SELECT wait_event FROM pg_stat_activity WHERE query LIKE 'INSERT INTO told%'"
        wait_until(lambda: ("SyncRep",) in ask(url, waiting), "the commit waits for the standby")
        assert committing.is_alive()
    finally:
        pair.standby.thaw()
    committing.join(WAIT_SECONDS_MAX)
    assert not committing.is_alive()
    for number in range(2):
        # When the primary dies, and the standby takes its place
        pair.primary.kill()
        pair.promote()
        ask(url, "INSERT INTO told VALUES (%s)", [f"after {number}"])
        # Then the one that was killed becomes the standby, and has what was committed meanwhile
        pair.rejoin()
        wait_replayed(pair.primary, pair.standby)
        assert ask(pair.standby.url, "SELECT pg_is_in_recovery(), count(*) FROM told") == [(True, number + 2)]
    assert pair.primary is first
