"""Faults of runs with copies of servers: the first server dies and its copy replaces it, or the copy is unavailable."""

import contextlib
import random
import shutil

import psycopg2
import redis

from checks.soak.fault import Effect, Fault
from checks.soak.of_servers import PARTS, ServerFrozen, ServerKilled, are_gone, lost_records
from checks.soak.rig import BROKERS, LOG_MEMORY, Rig
from checks.testbed.kafka_cluster import Cluster
from checks.testbed.redis_pair import RedisPair, data_folder
from stack.servers import Server, ServerError, free_port, redis_server

FOLLOWS_SECONDS_MAX = 15.0  # until a replica follows again after an outage: none is promoted before
IN_SYNC_SECONDS_MAX = 180.0  # the same for a broker, which takes longer to start


def _pair(rig: Rig) -> RedisPair:
    assert rig.log_pair is not None
    return rig.log_pair


def _replica(rig: Rig) -> Server:
    return _pair(rig).replica


def _cluster(rig: Rig) -> Cluster:
    assert rig.kafka_cluster is not None
    return rig.kafka_cluster


# Until a silent broker has lost its session (5 s) and others lead its partitions.
_BEYOND_SESSION = (7.0, 9.0)


class BrokerAway(Fault):
    """One of three brokers is killed or frozen. The others lead its partitions, and accept events.

    It is never the controller. A frozen broker later continues without knowing that it was replaced.
    """

    seconds = _BEYOND_SESSION

    def __init__(self, pick: random.Random, how: type[ServerKilled] | type[ServerFrozen]) -> None:
        super().__init__(pick)
        number = pick.randrange(BROKERS - 1)
        self._fault = how(pick, "broker", lambda rig: _cluster(rig).others[number])
        self.name, self.touches = self._fault.name, self._fault.touches

    def impossible(self, rig: Rig) -> str | None:
        return "the log of this run has no brokers to spare" if rig.kafka_cluster is None else None

    def prepare(self, rig: Rig) -> None:
        rig.wait_in_sync(seconds_max=IN_SYNC_SECONDS_MAX)  # no other broker is unavailable too

    def inject(self, rig: Rig) -> None:
        self._before = rig.counts()["acked"]
        self._fault.inject(rig)

    def look(self, rig: Rig) -> None:
        self._fault.look(rig)

    def repair(self, rig: Rig) -> None:
        self._accepted = rig.counts()["acked"] - self._before
        if self._accepted == 0:
            self.complaints.append(f"no event was accepted while {BROKERS - 1} of {BROKERS} brokers ran")
        self._fault.repair(rig)

    def effect(self, rig: Rig) -> Effect:
        effect = self._fault.effect(rig)
        return Effect(effect.hit, f"{effect.words}, and {self._accepted} events were accepted meanwhile")


def _standby(rig: Rig) -> Server:
    assert rig.postgres_pair is not None
    return rig.postgres_pair.standby


def _no_standby(rig: Rig) -> str | None:
    return "PostgreSQL has no standby in this run" if rig.postgres_pair is None else None


def _no_pair(rig: Rig) -> str | None:
    return "the log of this run has no replica" if rig.log_pair is None else None


class LogReplicaKilled(ServerKilled):
    """SIGKILL to the log's only replica: no event can get the copies that an acknowledgement promises."""

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

    Programs find the new master at the address of the old one, as with a virtual address. Records that only the old
    master had are gone. The harness reads them from its files; none of them may have been acknowledged.
    """

    name = "log.failover"
    touches = PARTS["log"]
    seconds = (1.5, 3.5)
    accepts_nothing = True  # the new master has no replica until the old one is back

    def impossible(self, rig: Rig) -> str | None:
        return _no_pair(rig)

    def prepare(self, rig: Rig) -> None:
        _pair(rig).wait_following(seconds_max=FOLLOWS_SECONDS_MAX)

    def inject(self, rig: Rig) -> None:
        pair = _pair(rig)
        killed = pair.master
        self._pids = [member.pid for member in killed.family()]
        killed.kill()
        rig.proxies["log"].cut()  # no program appends until the lost records are known
        try:
            rig.promote_log()
            self._count_lost(rig, killed)
        except (redis.RedisError, OSError) as error:
            raise ServerError(f"the log's replica could not take the place of its killed master: {error}") from error
        finally:
            rig.proxies["log"].restore()

    def _count_lost(self, rig: Rig, killed: Server) -> None:
        """Note the records that the promoted replica lacks. `lost` does not excuse the acknowledged ones among them."""
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
        self._gone = are_gone(self._pids)
        self._role = "gone"
        with contextlib.suppress(redis.RedisError), rig.redis(pair.master) as client:
            self._role = str(client.info("replication")["role"])
        pair.rejoin()

    def effect(self, rig: Rig) -> Effect:
        words = f"the master was {'killed' if self._gone else 'not killed'}, its replica became a {self._role}"
        return Effect(self._gone and self._role == "master", f"{words} without {len(self.lost)} records")


class StandbyKilled(ServerKilled):
    """SIGKILL to PostgreSQL's standby: commits wait until it is back."""

    def __init__(self, pick: random.Random) -> None:
        super().__init__(pick, "postgres-standby", _standby)
        self.dead = frozenset()  # PostgreSQL answers, and commits nothing
        self.seconds = (2.0, 4.0)

    def impossible(self, rig: Rig) -> str | None:
        return _no_standby(rig)


class StandbyFrozen(ServerFrozen):
    """SIGSTOP to PostgreSQL's standby: commits wait until it continues."""

    def __init__(self, pick: random.Random) -> None:
        super().__init__(pick, "postgres-standby", _standby)
        self.seconds = (2.0, 4.0)

    def impossible(self, rig: Rig) -> str | None:
        return _no_standby(rig)


class PostgresFailover(Fault):
    """PostgreSQL is killed, and its standby takes its place; the repair makes the old primary the standby.

    The standby has each confirmed commit, so no stored offset may fall. Programs try two hosts and use the one that
    takes writes as the new primary.
    """

    name = "postgres.failover"
    touches = PARTS["postgres"]
    seconds = (2.0, 4.0)

    def impossible(self, rig: Rig) -> str | None:
        return _no_standby(rig)

    def prepare(self, rig: Rig) -> None:
        assert rig.postgres_pair is not None
        rig.postgres_pair.wait_in_sync(seconds_max=FOLLOWS_SECONDS_MAX)

    def inject(self, rig: Rig) -> None:
        killed, self._before = rig.postgres, _timeline(rig)
        self._pids = [member.pid for member in killed.family()]
        killed.kill()
        try:
            rig.promote_postgres()
        except (psycopg2.Error, OSError) as error:
            raise ServerError(f"the standby could not take the place of the killed PostgreSQL: {error}") from error

    def repair(self, rig: Rig) -> None:
        assert rig.postgres_pair is not None
        self._gone = are_gone(self._pids)
        rig.postgres_pair.rejoin()

    def effect(self, rig: Rig) -> Effect:
        timeline, was = _timeline(rig), "killed" if self._gone else "not killed"
        words = f"the primary was {was}, and its standby went on with timeline {timeline}"
        return Effect(self._gone and timeline > self._before, words)


def _timeline(rig: Rig) -> int:
    """The timeline begins at 1; each promotion adds one."""
    with rig.database() as cursor:
        cursor.execute("SELECT pg_walfile_name(pg_current_wal_lsn())")
        return int(cursor.fetchone()[0][:8], 16)
