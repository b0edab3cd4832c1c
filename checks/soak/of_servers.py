"""Faults of the servers and their links: killed, stopped, cut off, flushed, full, or back without a tail."""

import contextlib
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import psutil
import redis

from checks.loadgen.proxy import Proxy
from checks.soak.fault import Effect, Fault
from checks.soak.found import Place, Stored
from checks.soak.of_processes import status_of
from checks.soak.reading import stored_of
from checks.soak.rig import LOG_MEMORY, SMALL_DISK_BYTES_MAX, Rig
from checks.soak.windows import Part
from pipeline.names import KEY_LOG_ID, KEY_LOG_STREAM
from stack.servers import Server, free_port, redis_server

Which = Callable[[Rig], Server]
START_SECONDS_MAX = 240.0  # a JVM on a busy machine; Sluice's recovery time counts from its end
# The parts that a server's fault disturbs, by the name of the server or of its link.
PARTS = {
    "control-redis": frozenset({Part.CONTROL}),
    "control": frozenset({Part.CONTROL}),
    "log": frozenset({Part.LOG}),
    "log-replica": frozenset({Part.LOG}),
    "broker": frozenset({Part.LOG}),
    "postgres": frozenset({Part.DATABASE}),
    "postgres-standby": frozenset({Part.DATABASE}),
    "pooler": frozenset({Part.DATABASE}),
    "ingest": frozenset[Part](),  # between clients and it: nothing inside is disturbed
}


def are_gone(pids: list[int]) -> bool:
    """Whether the list has processes and none of them still runs."""
    return bool(pids) and all(status_of(pid) in ("gone", psutil.STATUS_ZOMBIE) for pid in pids)


class ServerKilled(Fault):
    """SIGKILL to all of a server's processes; the repair starts it on the same data."""

    def __init__(self, pick: random.Random, name: str, which: Which) -> None:
        super().__init__(pick)
        self.name, self._which = f"{name}.kill", which
        self.touches = self.dead = PARTS[name]
        self.control_outage = name == "control-redis"
        if name == "postgres":
            self.seconds = (2.0, 4.0)  # long enough for the breaker to open

    def inject(self, rig: Rig) -> None:
        server = self._which(rig)
        self._pids = [member.pid for member in server.family()]
        server.kill()

    def repair(self, rig: Rig) -> None:
        self._gone = sum(status_of(pid) in ("gone", psutil.STATUS_ZOMBIE) for pid in self._pids)
        self._which(rig).start(seconds_max=START_SECONDS_MAX)

    def effect(self, rig: Rig) -> Effect:
        return Effect(0 < len(self._pids) == self._gone, f"{self._gone} of {len(self._pids)} processes gone")


class ServerFrozen(Fault):
    """SIGSTOP to all of a server's processes: its sockets stay open, but it does not answer."""

    def __init__(self, pick: random.Random, name: str, which: Which) -> None:
        super().__init__(pick)
        self.name, self._which = f"{name}.freeze", which
        self.touches = PARTS[name]
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


class PoolerKilled(ServerKilled):
    """SIGKILL to the pgbouncer before PostgreSQL, which ends all sessions and releases their locks."""

    def __init__(self, pick: random.Random) -> None:
        super().__init__(pick, "pooler", _pooler)

    def impossible(self, rig: Rig) -> str | None:
        return "this run reaches PostgreSQL without a pooler" if rig.pooler is None else None


def _pooler(rig: Rig) -> Server:
    assert rig.pooler is not None
    return rig.pooler


_SIGNS = {"cut": "cut", "blackhole": "withheld", "delay": "delayed"}  # counters of the proxy


class LinkFault(Fault):
    """Connections between all programs and one server are cut, go into a black hole, or slow down."""

    def __init__(self, pick: random.Random, link: str, how: str) -> None:
        super().__init__(pick)
        self.name, self._link, self._how = f"link-{link}.{how}", link, how
        self.touches = PARTS[link]
        self.dead = self.touches if how == "cut" else frozenset()
        self.control_outage = link == "control"
        self.seconds = (2.0, 4.0) if how == "blackhole" else (1.0, 2.5)

    def inject(self, rig: Rig) -> None:
        self._before = self._counts(rig)
        delay_seconds = self.pick.uniform(0.05, 0.25)
        for proxy in self._proxies(rig):
            match self._how:
                case "cut":
                    proxy.cut()
                case "blackhole":
                    proxy.blackhole()
                case "delay":
                    proxy.delay(delay_seconds)

    def has_hit(self, rig: Rig) -> bool:
        return self._done(rig)[_SIGNS[self._how]] > 0

    def _proxies(self, rig: Rig) -> list[Proxy]:
        return rig.ingest_proxies if self._link == "ingest" else rig.links(self._link)

    def _counts(self, rig: Rig) -> Counter[str]:
        counts: Counter[str] = Counter()
        for proxy in self._proxies(rig):
            counts.update(vars(proxy.counts))
        return counts

    def _done(self, rig: Rig) -> dict[str, int]:
        return {name: count - self._before[name] for name, count in self._counts(rig).items()}

    def repair(self, rig: Rig) -> None:
        for proxy in self._proxies(rig):
            proxy.restore()

    def effect(self, rig: Rig) -> Effect:
        done = self._done(rig)
        words = {
            "cut": f"{done['cut']} connections cut, {done['refused']} refused",
            "blackhole": f"{done['withheld']} messages withheld",
            "delay": f"{done['delayed']} messages delayed",
        }
        return Effect(done[_SIGNS[self._how]] > 0, words[self._how])


class ControlFlushed(Fault):
    """FLUSHALL of the control server: queues, rate, bucket, reasons to pause, lowest offsets and leases are gone."""

    name = "control-redis.flushall"
    touches = PARTS["control-redis"]
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
    """A Redis server at its memory limit: it refuses commands that need more memory."""

    seconds = (2.0, 3.5)

    def __init__(self, pick: random.Random, name: str, which: Which) -> None:
        super().__init__(pick)
        self.name, self._which = f"{name}.full", which
        self.touches = PARTS[name]
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


class LogLoses(Fault):
    """The log's Redis is killed, and comes back without the end of its data.

    Acknowledged events that only the removed end held are lost. The harness does not guess which events these are: it
    copies the file first, and a second server reads the copy while clients can't reach the first one.
    """

    touches = PARTS["log"]

    def impossible(self, rig: Rig) -> str | None:
        return None if _is_redis(rig.log) else "the log is not Redis"

    def kill(self, rig: Rig) -> Path:
        """Kill the server and keep a copy of its files. Returns the folder with the files for its next start."""
        rig.proxies["log"].cut()
        rig.log.kill()
        self._whole = rig.folder / "log-as-it-was"
        shutil.rmtree(self._whole, ignore_errors=True)
        shutil.copytree(rig.folder / "redis-log", self._whole / "redis-log")
        return rig.folder / "redis-log" / "appendonlydir"

    offsets_lost = 0

    def bring_back(self, rig: Rig) -> None:
        """Start the server on the rest of its files, and note the lost records."""
        stored = rig.stored_offsets() if rig.postgres.process is not None else {}
        rig.log.start()
        whole = redis_server(self._whole, free_port(), is_log=True, maxmemory=LOG_MEMORY)
        whole.start()
        try:
            with rig.redis(rig.log) as now, rig.redis(whole) as then:
                log_id, self.lost = lost_records(rig, now, then)
                # If the lost records were already stored and trimmed, only the ends show that the log went back.
                self.offsets_lost = sum(_ends(rig, then, log_id)) - sum(_ends(rig, now, log_id))
        finally:
            whole.kill()
            shutil.rmtree(self._whole, ignore_errors=True)
        self.lost_unread = {
            one.key for one in self.lost if one.place.offset >= stored.get((log_id, one.place.partition), 0)
        }
        rig.proxies["log"].restore()


class TailLost(LogLoses):
    """Some bytes are cut off the end of the append-only file."""

    name = "log.tail-lost"
    seconds = (0.5, 1.5)

    def __init__(self, pick: random.Random) -> None:
        super().__init__(pick)
        self._cut_bytes = pick.choice((300, 3_000, 30_000, 120_000))

    def inject(self, rig: Rig) -> None:
        files = sorted(self.kill(rig).glob("*.incr.aof"), key=_number)
        size = files[-1].stat().st_size
        self._cut_bytes = min(self._cut_bytes, size // 2)
        with files[-1].open("r+b") as file:
            file.truncate(size - self._cut_bytes)

    def repair(self, rig: Rig) -> None:
        self.bring_back(rig)

    def effect(self, rig: Rig) -> Effect:
        lost = f"{len(self.lost)} records and {self.offsets_lost} offsets lost"
        return Effect(self.offsets_lost > 0, f"{self._cut_bytes} bytes cut from the file, {lost}")


class WentBack(LogLoses):
    """One or both Redis servers come back with earlier data, as from a snapshot of the host.

    The harness copies the files while the server runs. Some time later it kills the server and starts it on the copy.
    """

    seconds = (1.0, 2.5)

    def __init__(self, pick: random.Random, name: str, *, log: bool, control: bool) -> None:
        super().__init__(pick)
        self.name, self._log, self._control = f"{name}.back", log, control
        self.control_outage = control
        self.touches = (PARTS["log"] if log else frozenset()) | (PARTS["control-redis"] if control else frozenset())

    def impossible(self, rig: Rig) -> str | None:
        return super().impossible(rig) if self._log else None

    def inject(self, rig: Rig) -> None:
        self._names = ["redis-log"] * self._log + ["redis-control"] * self._control
        for name in self._names:
            _copy_running(rig.folder / name / "appendonlydir", self._older(rig, name))
        self._made_at = time.monotonic()

    @staticmethod
    def _older(rig: Rig, name: str) -> Path:
        return rig.folder / f"{name}-older"

    def repair(self, rig: Rig) -> None:
        self._seconds = time.monotonic() - self._made_at
        if self._control:
            rig.control_redis.kill()
        if self._log:
            self.kill(rig)
        for name in self._names:
            folder = rig.folder / name / "appendonlydir"
            shutil.rmtree(folder)
            self._older(rig, name).rename(folder)
        if self._control:
            rig.control_redis.start()
        if self._log:
            self.bring_back(rig)

    def effect(self, rig: Rig) -> Effect:
        lost = f", {len(self.lost)} records lost, {len(self.lost_unread)} of them not stored" if self._log else ""
        return Effect(not self._log or self.offsets_lost > 0, f"back by {self._seconds:.1f} s{lost}")


COPY_TRIES_MAX = 20


def _copy_running(folder: Path, target: Path) -> None:
    """Copy the append-only files of a running server, all from one manifest. Raises AssertionError."""
    for _ in range(COPY_TRIES_MAX):
        shutil.rmtree(target, ignore_errors=True)
        before = _manifest(folder)
        try:
            shutil.copytree(folder, target)
        except (OSError, shutil.Error):  # a rewrite has ended meanwhile
            continue
        if _manifest(folder) == before == _manifest(target):
            return
    raise AssertionError(f"{folder} changes too fast to be copied")


def _manifest(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*.manifest"))


class Together(Fault):
    """Two faults at once."""

    def __init__(self, pick: random.Random, name: str, faults: list[Fault]) -> None:
        super().__init__(pick)
        self.name, self._faults = name, faults
        self.seconds = (2.0, 4.0)
        self.control_outage = any(one.control_outage for one in faults)
        self.touches = frozenset().union(*(one.touches for one in faults))
        self.dead = frozenset().union(*(one.dead for one in faults))

    def inject(self, rig: Rig) -> None:
        for one in self._faults:
            one.inject(rig)

    def look(self, rig: Rig) -> None:
        for one in self._faults:
            one.look(rig)

    def repair(self, rig: Rig) -> None:
        with contextlib.ExitStack() as stack:  # repairs all of them, even if one fails
            for one in reversed(self._faults):
                stack.callback(one.repair, rig)

    def effect(self, rig: Rig) -> Effect:
        effects = [one.effect(rig) for one in self._faults]
        return Effect(all(one.hit for one in effects), "; ".join(one.words for one in effects))


def _number(path: Path) -> int:
    """The number of a file `appendonly.aof.<number>.incr.aof`."""
    return int(path.name.split(".")[2])


def lost_records(rig: Rig, now: "redis.Redis", then: "redis.Redis") -> tuple[str, list[Stored]]:
    """The log's id, and the records that `then` holds and `now` does not."""
    prefix = rig.settings.key_prefix
    log_id = _bytes(then.get(prefix + KEY_LOG_ID)).decode()
    partitions = int(log_id.rpartition(".")[2])
    lost: list[Stored] = []
    for partition in range(partitions):
        stream = f"{prefix}{KEY_LOG_STREAM}:{partition}"
        last = now.xinfo_stream(stream)["last-generated-id"] if now.exists(stream) else b"0-0"
        entries: list[tuple[bytes, dict[bytes, bytes]]] = cast("Any", then.xrange(stream, min=b"(" + last))
        for entry_id, fields in entries:
            offset = int(entry_id.partition(b"-")[2]) - 1
            lost.append(stored_of(fields[b"v"], Place(partition, offset)))
    return log_id, lost


def _ends(rig: Rig, server: "redis.Redis", log_id: str) -> list[int]:
    """The end of each partition on a server."""
    ends = []
    for partition in range(int(log_id.rpartition(".")[2])):
        stream = f"{rig.settings.key_prefix}{KEY_LOG_STREAM}:{partition}"
        last = server.xinfo_stream(stream)["last-generated-id"] if server.exists(stream) else b"0-0"
        ends.append(int(_bytes(last).partition(b"-")[2]))
    return ends


def _bytes(answer: Any) -> bytes:
    assert isinstance(answer, bytes)
    return answer


DISK_TRIES_MAX = 50
DISK_SPARE_BYTES = 16 * 1024  # filled within moments


class DiskFull(Fault):
    """The disk of the events' table is full."""

    name = "postgres.disk-full"
    touches = PARTS["postgres"]
    seconds = (2.0, 3.5)

    def impossible(self, rig: Rig) -> str | None:
        return rig.small_disk_missing if rig.small_disk is None else None

    def inject(self, rig: Rig) -> None:
        self._complaints = _complaints(rig)
        # A write between the look and the change makes the new size too small for the data. Then the loop tries again.
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
