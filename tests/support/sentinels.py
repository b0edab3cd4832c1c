"""A Redis with a replica, and three sentinels that watch them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from checks.testbed.waiting import eventually, wait_until
from stack.servers import LOOPBACK, Server, free_port, redis_binary, redis_server

MASTER = "sluice-log.1"
CALM_SECONDS = 120  # without an answer: a busy machine causes no failover by itself
WAIT_SECONDS_MAX = 120.0


def client_of(port: int) -> "redis.Redis":
    """A client of one server that asks once."""
    return redis.Redis(host=LOOPBACK, port=port, protocol=2, socket_timeout=60, retry=Retry(NoBackoff(), 0))


@dataclass
class Watched:
    """Two servers of which one is the master, and the ports of their sentinels."""

    servers: dict[int, Server]  # by port
    sentinels: list[Server]

    @property
    def hosts(self) -> str:
        return ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.hosts}/{MASTER}/0"

    def master(self) -> Server:
        """The server that the sentinels name."""
        with client_of(self.sentinels[0].port) as client:
            _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return self.servers[int(port)]

    def other(self, server: Server) -> Server:
        return next(one for port, one in self.servers.items() if port != server.port)

    def await_pair(self) -> Server:
        """Wait until all sentinels name one master, which has a replica that follows; returns the master."""
        found: list[Server] = []

        def is_whole() -> bool:
            with contextlib.suppress(redis.RedisError, KeyError):
                master = self.master()
                states = [_state(sentinel.port) for sentinel in self.sentinels]
                found[:] = [master]
                with client_of(master.port) as client:
                    facts = client.info("replication")
                    return (
                        facts["role"] == "master"
                        and facts.get("slave0", {}).get("state") == "online"
                        and all(
                            (state["port"], state["flags"], state["num-slaves"], state["num-other-sentinels"])
                            == (str(master.port), "master", "1", "2")
                            for state in states
                        )
                    )
            return False

        wait_until(is_whole, "a master with a replica, known to three sentinels", seconds_max=WAIT_SECONDS_MAX)
        return found[0]

    def bring_back(self, server: Server) -> None:
        """Start a server that was killed, as a replica of the present master."""
        words = server.command
        if "--replicaof" in words:
            del words[words.index("--replicaof") : words.index("--replicaof") + 3]
        words += ["--replicaof", LOOPBACK, str(self.master().port)]
        server.start()

    def fail_over_killed(self, *, down_seconds: float = 1, before: Server | None = None) -> Server:
        """Kill the master, wait until the sentinels name another, and return that.

        A replica whose link was down for ten times `down_seconds` before is not promoted. `before`: the master, of a
        pair that is not whole.
        """
        before = before or self.await_pair()
        before.kill()
        try:
            self._notice_after(down_seconds)
            self._wait_other_master(before, "the sentinels promote the replica")
        finally:
            self._notice_after(CALM_SECONDS)
        return self.master()

    def _notice_after(self, seconds: float) -> None:
        for sentinel in self.sentinels:
            with client_of(sentinel.port) as client:
                client.execute_command("SENTINEL", "SET", MASTER, "down-after-milliseconds", int(seconds * 1000))

    def fail_over_planned(self) -> Server:
        """The two change their roles, and both run on; returns the new master."""
        before = self.await_pair()

        def accepts() -> bool:
            try:
                with client_of(self.sentinels[0].port) as client:
                    client.execute_command("SENTINEL", "FAILOVER", MASTER)
            except redis.ResponseError:  # it has not heard of the replica lately, or another failover has just ended
                return False
            return True

        wait_until(accepts, "a sentinel begins a failover", seconds_max=WAIT_SECONDS_MAX)
        self._wait_other_master(before, "the two change roles")
        return self.await_pair()

    def _wait_other_master(self, before: Server, what: str) -> None:
        eventually(lambda: self.master() is not before, what, passing=(redis.RedisError,))


def _state(port: int) -> dict[str, str]:
    with client_of(port) as client:
        answer = [part.decode() for part in client.execute_command("SENTINEL", "MASTER", MASTER, NEVER_DECODE=True)]
    return dict(zip(answer[::2], answer[1::2], strict=True))


def sentinel_server(home: Path, master_port: int, *lines: str) -> Server:
    """A sentinel, not started."""
    port = free_port()
    folder = home / f"sentinel-{port}"
    folder.mkdir(parents=True)
    file = folder / "sentinel.conf"
    written = [
        f"port {port}",
        f"bind {LOOPBACK}",
        f"dir {folder}",
        f"sentinel monitor {MASTER} {LOOPBACK} {master_port} 2",
        f"sentinel down-after-milliseconds {MASTER} {CALM_SECONDS * 1000}",
        f"sentinel failover-timeout {MASTER} 10000",
        *lines,
    ]
    file.write_text("\n".join(written) + "\n")

    def is_ready() -> bool:
        try:
            with client_of(port) as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    name = f"sentinel-{port}"
    return Server(name, [redis_binary(), str(file), "--sentinel"], folder / "log", "", port, is_ready)


@contextlib.contextmanager
def watched_redis(home: Path) -> Iterator[Watched]:
    """Start two servers of a log and three sentinels; stop them at the end of the block."""
    with contextlib.ExitStack() as stack:
        servers: dict[int, Server] = {}
        for number in range(2):
            server = redis_server(home / f"redis-{number}", free_port(), is_log=True, maxmemory="256mb")
            server.command += ["--repl-diskless-sync-delay", "0"]  # it would wait 5 s for further replicas
            if servers:
                server.command += ["--replicaof", LOOPBACK, str(next(iter(servers)))]
            stack.callback(server.stop)
            servers[server.port] = server.start()
        master = next(iter(servers))
        with client_of(master) as client:  # the sentinels ask it for its replicas every ten seconds
            wait_until(
                lambda: client.info("replication").get("slave0", {}).get("state") == "online",
                "the replica follows",
                seconds_max=WAIT_SECONDS_MAX,
            )
        sentinels = []
        for _ in range(3):
            sentinel = sentinel_server(home, master)
            stack.callback(sentinel.stop)
            sentinels.append(sentinel.start())
        watched = Watched(servers, sentinels)
        watched.await_pair()
        yield watched
