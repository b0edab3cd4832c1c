"""An event log on Redis with one replica. The caller decides its promotion, not sentinels."""

from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from checks.testbed.waiting import wait_until
from stack.servers import LOOPBACK, Server, free_port, redis_server

_REPLICA_OF = "--replicaof"


def _client(server: Server) -> "redis.Redis":
    """A client without retries."""
    return redis.Redis(
        host=LOOPBACK, port=server.port, socket_timeout=30, socket_connect_timeout=30, retry=Retry(NoBackoff(), 0)
    )


class RedisPair:
    """A master and its replica, which change their roles with each failover. Both sync each write to disk."""

    def __init__(self, folder: Path, *, maxmemory: str) -> None:
        """Two servers that are not started yet."""
        self.master, self.replica = (
            redis_server(folder / name, free_port(), is_log=True, maxmemory=maxmemory)
            for name in ("redis-first", "redis-second")
        )
        for server in (self.master, self.replica):
            server.command += ["--repl-diskless-sync-delay", "0"]  # it would wait 5 s for further replicas

    def start(self) -> "RedisPair":
        """Start both, the replica behind its master. Raises ServerError, AssertionError."""
        self.master.start()
        self.rejoin()
        self.wait_following()
        return self

    def stop(self) -> None:
        self.replica.stop()
        self.master.stop()

    def wait_following(self, *, seconds_max: float = 120.0) -> None:
        """Wait until the replica has all its master's data, and receives new data. Raises AssertionError."""
        wait_until(self._is_following, "the replica follows its master", seconds_max=seconds_max)

    def _is_following(self) -> bool:
        try:
            with _client(self.replica) as client:
                if client.info("replication").get("master_link_status") != "up":
                    return False
            with _client(self.master) as client:
                return bool(client.info("replication").get("slave0", {}).get("state") == "online")
        except redis.RedisError:
            return False

    def promote(self) -> None:
        """Make the replica the master. The caller must lead the old one's clients to it. Raises redis.RedisError."""
        with _client(self.replica) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
        _forget_master(self.replica)
        self.master, self.replica = self.replica, self.master

    def rejoin(self) -> None:
        """Start the other server as the master's replica, whatever its role was. Raises ServerError."""
        _forget_master(self.replica)
        self.replica.command += [_REPLICA_OF, LOOPBACK, str(self.master.port)]
        self.replica.start()


def _forget_master(server: Server) -> None:
    words = server.command
    if _REPLICA_OF in words:
        first = words.index(_REPLICA_OF)
        del words[first : first + 3]


def data_folder(server: Server) -> Path:
    """The folder with the files of a Redis of `redis_server`."""
    return Path(server.command[server.command.index("--dir") + 1])
