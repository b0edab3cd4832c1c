"""Faults of the servers and of the way to them: killed, stopped, cut off, flushed, full, or back without a tail."""

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import psutil
import redis

from faults.fault import Effect, Fault
from faults.found import Place, Stored
from faults.of_processes import status_of
from faults.reading import stored_of
from faults.rig import LOG_MEMORY, SMALL_DISK_BYTES_MAX, Rig
from pipeline.names import KEY_LOG_ID, KEY_LOG_STREAM
from stack.servers import Server, free_port, redis_server

Which = Callable[[Rig], Server]


class ServerKilled(Fault):
    """SIGKILL to all of a server's processes; the repair starts it on the same data."""

    def __init__(self, pick: random.Random, name: str, which: Which) -> None:
        super().__init__(pick)
        self.name, self._which = f"{name}.kill", which
        self.control_outage = name == "control-redis"
        if name == "postgres":
            self.seconds = (2.0, 4.0)  # long enough for the breaker to open

    def inject(self, rig: Rig) -> None:
        server = self._which(rig)
        self._pids = [member.pid for member in server.family()]
        server.kill()

    def repair(self, rig: Rig) -> None:
        self._gone = sum(status_of(pid) in ("gone", psutil.STATUS_ZOMBIE) for pid in self._pids)
        self._which(rig).start()

    def effect(self, rig: Rig) -> Effect:
        return Effect(0 < len(self._pids) == self._gone, f"{self._gone} of {len(self._pids)} processes gone")


class ServerFrozen(Fault):
    """SIGSTOP to all of a server's processes: its sockets stay open, and nobody answers."""

    def __init__(self, pick: random.Random, name: str, which: Which) -> None:
        super().__init__(pick)
        self.name, self._which = f"{name}.freeze", which
        self.control_outage = name == "control-redis"
        self.seconds = (3.0, 5.0) if name == "postgres" else (1.5, 3.5)
        self._stopped = self._members = 0

    def inject(self, rig: Rig) -> None:
        self._which(rig).freeze()

    def look(self, rig: Rig) -> None:
        family = self._which(rig).family()
        self._members = len(family)
        self._stopped = sum(status_of(member.pid) == psutil.STATUS_STOPPED for member in family)

    def repair(self, rig: Rig) -> None:
        self._which(rig).thaw()

    def effect(self, rig: Rig) -> Effect:
        return Effect(self._stopped > 0, f"{self._stopped} of {self._members} processes stopped")


_SIGNS = {"cut": "cut", "blackhole": "withheld", "delay": "delayed"}  # what the proxy counts


class LinkFault(Fault):
    """Connections between all programs and one server are cut, go into a black hole, or slow down."""

    def __init__(self, pick: random.Random, link: str, how: str) -> None:
        super().__init__(pick)
        self.name, self._link, self._how = f"link-{link}.{how}", link, how
        self.control_outage = link == "control"
        self.seconds = (2.0, 4.0) if how == "blackhole" else (1.0, 2.5)

    def inject(self, rig: Rig) -> None:
        proxy = rig.proxies[self._link]
        self._before = vars(proxy.counts).copy()
        match self._how:
            case "cut":
                proxy.cut()
            case "blackhole":
                proxy.blackhole()
            case "delay":
                proxy.delay(self.pick.uniform(0.05, 0.25))

    def has_hit(self, rig: Rig) -> bool:
        return self._done(rig)[_SIGNS[self._how]] > 0

    def _done(self, rig: Rig) -> dict[str, int]:
        return {name: count - self._before[name] for name, count in vars(rig.proxies[self._link].counts).items()}

    def repair(self, rig: Rig) -> None:
        rig.proxies[self._link].restore()

    def effect(self, rig: Rig) -> Effect:
        done = self._done(rig)
        words = {
            "cut": f"{done['cut']} connections cut, {done['refused']} refused",
            "blackhole": f"{done['withheld']} messages withheld",
            "delay": f"{done['delayed']} messages delayed",
        }
        return Effect(done[_SIGNS[self._how]] > 0, words[self._how])


class ControlFlushed(Fault):
    """FLUSHALL of the control server: queues, rate, bucket, reasons to pause, floors and leases are gone."""

    name = "control-redis.flushall"
    seconds = (0.5, 1.0)
    control_outage = True

    def inject(self, rig: Rig) -> None:
        with rig.redis(rig.control_redis) as client:
            before, _, self._after = client.pipeline().dbsize().flushall().dbsize().execute()
        self._before = int(before)

    def repair(self, rig: Rig) -> None:
        pass

    def effect(self, rig: Rig) -> Effect:
        return Effect(self._before > 0 and self._after == 0, f"{self._before} keys flushed")


class MemoryFull(Fault):
    """A Redis server at its memory limit: it refuses what would need more."""

    seconds = (2.0, 3.5)

    def __init__(self, pick: random.Random, name: str, which: Which) -> None:
        super().__init__(pick)
        self.name, self._which = f"{name}.full", which
        self.control_outage = name == "control-redis"

    def impossible(self, rig: Rig) -> str | None:
        return "the log is not Redis" if not _is_redis(self._which(rig)) else None

    def inject(self, rig: Rig) -> None:
        with rig.redis(self._which(rig)) as client:
            self._limit = client.config_get("maxmemory")["maxmemory"]
            self._refusals = _refusals(client)
            client.config_set("maxmemory", max(1_000_000, int(client.info("memory")["used_memory"]) // 2))

    def repair(self, rig: Rig) -> None:
        with rig.redis(self._which(rig)) as client:
            client.config_set("maxmemory", self._limit)
            self._refusals = _refusals(client) - self._refusals

    def effect(self, rig: Rig) -> Effect:
        return Effect(self._refusals > 0, f"{self._refusals} commands refused for want of memory")


def _is_redis(server: Server) -> bool:
    return server.url.startswith("redis:")


def _refusals(client: "redis.Redis") -> int:
    """Commands refused at the memory limit since the server's start."""
    found = client.info("errorstats").get("errorstat_OOM")
    return int(found["count"]) if found else 0


class TailLost(Fault):
    """The log's Redis is killed, and comes back without the end of its append-only file.

    What was acknowledged and stood only there is lost by the machine. Which events those are is not guessed: the file
    is copied before it is cut, and a second server reads the copy, while nobody but us reaches the first one.
    """

    name = "log.tail-lost"
    seconds = (0.5, 1.5)

    def __init__(self, pick: random.Random) -> None:
        super().__init__(pick)
        self._cut_bytes = pick.choice((300, 3_000, 30_000, 120_000))
        self.lost: list[Stored] = []

    def impossible(self, rig: Rig) -> str | None:
        return None if _is_redis(rig.log) else "the log is not Redis"

    def inject(self, rig: Rig) -> None:
        rig.proxies["log"].cut()
        rig.log.kill()
        self._whole = rig.folder / "log-as-it-was"
        shutil.rmtree(self._whole, ignore_errors=True)
        shutil.copytree(rig.folder / "redis-log", self._whole / "redis-log")
        files = sorted((rig.folder / "redis-log" / "appendonlydir").glob("*.incr.aof"), key=_number)
        size = files[-1].stat().st_size
        self._cut_bytes = min(self._cut_bytes, size // 2)
        with files[-1].open("r+b") as file:
            file.truncate(size - self._cut_bytes)

    def repair(self, rig: Rig) -> None:
        rig.log.start()
        whole = redis_server(self._whole, free_port(), is_log=True, maxmemory=LOG_MEMORY)
        whole.start()
        try:
            with rig.redis(rig.log) as now, rig.redis(whole) as then:
                self.lost = _lost(rig, now, then)
        finally:
            whole.kill()
            shutil.rmtree(self._whole, ignore_errors=True)
        rig.proxies["log"].restore()

    def effect(self, rig: Rig) -> Effect:
        return Effect(bool(self.lost), f"{self._cut_bytes} bytes cut from the file, {len(self.lost)} records lost")


def _number(path: Path) -> int:
    """Of a file `appendonly.aof.<number>.incr.aof`."""
    return int(path.name.split(".")[2])


def _lost(rig: Rig, now: "redis.Redis", then: "redis.Redis") -> list[Stored]:
    """The records that one server holds and the other one does not."""
    prefix = rig.settings.key_prefix
    partitions = int(_bytes(then.get(prefix + KEY_LOG_ID)).rpartition(b".")[2])
    lost: list[Stored] = []
    for partition in range(partitions):
        stream = f"{prefix}{KEY_LOG_STREAM}:{partition}"
        last = now.xinfo_stream(stream)["last-generated-id"] if now.exists(stream) else b"0-0"
        entries: list[tuple[bytes, dict[bytes, bytes]]] = cast("Any", then.xrange(stream, min=b"(" + last))
        for entry_id, fields in entries:
            offset = int(entry_id.partition(b"-")[2]) - 1
            lost.append(stored_of(fields[b"v"], Place(partition, offset)))
    return lost


def _bytes(answer: Any) -> bytes:
    assert isinstance(answer, bytes)
    return answer


DISK_TRIES_MAX = 50
DISK_SPARE_BYTES = 16 * 1024  # filled within moments


class DiskFull(Fault):
    """The disk of the events' table has no room left."""

    name = "postgres.disk-full"
    seconds = (2.0, 3.5)

    def impossible(self, rig: Rig) -> str | None:
        return rig.small_disk_missing if rig.small_disk is None else None

    def inject(self, rig: Rig) -> None:
        self._complaints = _complaints(rig)
        # What is written between the look and the change makes the disk too small for what is on it: then again.
        for _ in range(DISK_TRIES_MAX):
            if _resize(rig, shutil.disk_usage(str(rig.small_disk)).used + DISK_SPARE_BYTES):
                return
        raise AssertionError(f"the disk could not be made small in {DISK_TRIES_MAX} tries")

    def has_hit(self, rig: Rig) -> bool:
        return _complaints(rig) > self._complaints

    def repair(self, rig: Rig) -> None:
        assert _resize(rig, SMALL_DISK_BYTES_MAX)

    def effect(self, rig: Rig) -> Effect:
        count = _complaints(rig) - self._complaints
        return Effect(count > 0, f"PostgreSQL found no space left {count} times")


def _resize(rig: Rig, size_bytes: int) -> bool:
    command = ["mount", "-o", f"remount,size={size_bytes}", str(rig.small_disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _complaints(rig: Rig) -> int:
    return rig.postgres.log_path.read_text(errors="replace").count("No space left on device")
