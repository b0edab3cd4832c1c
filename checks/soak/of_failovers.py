"""Faults of runs in which servers have copies: the first one dies and its copy takes its place, or the copy is away."""

import contextlib
import random
import shutil

import psutil
import redis

from checks.soak.fault import Effect, Fault
from checks.soak.of_processes import status_of
from checks.soak.of_servers import PARTS, ServerFrozen, ServerKilled, lost_records
from checks.soak.rig import LOG_MEMORY, Rig
from checks.testbed.redis_pair import RedisPair, data_folder
from stack.servers import Server, free_port, redis_server

FOLLOWS_SECONDS_MAX = 15.0  # until a replica that was away follows again: none is promoted before


def _pair(rig: Rig) -> RedisPair:
    assert rig.log_pair is not None
    return rig.log_pair


def _replica(rig: Rig) -> Server:
    return _pair(rig).replica


def _no_pair(rig: Rig) -> str | None:
    return "the log of this run has no replica" if rig.log_pair is None else None


class LogReplicaKilled(ServerKilled):
    """SIGKILL to the log's only replica: nothing can have the copies that an acknowledgement promises."""

    accepts_nothing = True

    def __init__(self, pick: random.Random) -> None:
        super().__init__(pick, "log-replica", _replica)
        self.dead = frozenset()  # the log itself answers
        self.seconds = (1.5, 3.5)

    def impossible(self, rig: Rig) -> str | None:
        return _no_pair(rig)


class LogReplicaFrozen(ServerFrozen):
    """SIGSTOP to the log's only replica: its master counts it as connected, and it confirms nothing."""

    accepts_nothing = True

    def __init__(self, pick: random.Random) -> None:
        super().__init__(pick, "log-replica", _replica)

    def impossible(self, rig: Rig) -> str | None:
        return _no_pair(rig)


class LogFailover(Fault):
    """The log's master is killed, and its replica takes its place; the repair starts the old master as its replica.

    Programs find the new master at the address of the old one, as with a virtual address. What only the master had is
    gone. Which records those are is read from its files; none of them may have been acknowledged.
    """

    name = "log.failover"
    touches = PARTS["log"]
    seconds = (1.5, 3.5)
    accepts_nothing = True  # the new master has no replica until the old one is back

    def impossible(self, rig: Rig) -> str | None:
        return _no_pair(rig)

    def inject(self, rig: Rig) -> None:
        pair = _pair(rig)
        pair.wait_following(seconds_max=FOLLOWS_SECONDS_MAX)
        killed = pair.master
        pids = [member.pid for member in killed.family()]
        killed.kill()
        self._gone = bool(pids) and all(status_of(pid) in ("gone", psutil.STATUS_ZOMBIE) for pid in pids)
        rig.proxies["log"].cut()  # until it is known what is lost, nobody adds to it
        try:
            rig.promote_log()
            self._count_lost(rig, killed)
        finally:
            rig.proxies["log"].restore()

    def _count_lost(self, rig: Rig, killed: Server) -> None:
        """Note the records that the promoted replica lacks. That they are `lost` excuses none that was acknowledged."""
        folder = rig.folder / "log-as-it-was"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(data_folder(killed), folder / "redis-log")
        whole = redis_server(folder, free_port(), is_log=True, maxmemory=LOG_MEMORY)
        try:
            whole.start()
            with rig.redis(rig.log) as now, rig.redis(whole) as then:
                _, self.lost = lost_records(rig, now, then)
        finally:
            whole.kill()
            shutil.rmtree(folder, ignore_errors=True)

    def repair(self, rig: Rig) -> None:
        pair = _pair(rig)
        self._role = "gone"
        with contextlib.suppress(redis.RedisError), rig.redis(pair.master) as client:
            self._role = str(client.info("replication")["role"])
        pair.rejoin()

    def effect(self, rig: Rig) -> Effect:
        words = f"the master was {'killed' if self._gone else 'not killed'}, its replica became a {self._role}"
        return Effect(self._gone and self._role == "master", f"{words} without {len(self.lost)} records")
