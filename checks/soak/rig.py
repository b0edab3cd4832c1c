"""The system under test: real servers of its own, each behind a proxy, Sluice's processes, and clients."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg2
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from checks.loadgen.proxy import Proxy
from checks.soak.pooler import pooler
from checks.testbed.clocks import SteppableClock, fake_time_library
from checks.testbed.kafka_cluster import Cluster, advertise, make_cluster
from checks.testbed.pooler import pgbouncer_program
from checks.testbed.postgres_pair import PostgresPair, url_of_both
from checks.testbed.processes import ROOT, Program, batches_worker, beat, control_worker, http_status, ingest
from checks.testbed.redis_pair import RedisPair
from checks.testbed.waiting import wait_until
from pipeline import wiring
from pipeline.errors import LogUnavailableError, SluiceError
from pipeline.names import KEY_LOG_ID, KEY_LOG_STREAM, BreakerState
from pipeline.settings import Settings
from pipeline.sink.migrate import PostgresSchema, migrate
from stack.servers import (
    LOOPBACK,
    Server,
    free_port,
    kafka_server,
    postgres_server,
    postgres_url,
    redis_server,
    redis_url,
)
from tasks.context import WorkerContext

# Time-outs are as short as possible, so that each fault lasts for seconds instead of minutes. Their proportions are
# those of the defaults.
SCALED: dict[str, Any] = {
    "rate_max": 2_000.0,
    "rate_min": 400.0,
    "lag_degraded": 2_000,
    "lag_critical": 10_000,
    "regulate_seconds": 1.0,
    "probe_seconds": 0.5,
    "hint_seconds": 0.5,
    "drain_batch_records_max": 500,
    "drain_run_seconds_max": 3.0,
    "drain_poll_seconds": 0.3,
    "drain_hard_seconds_max": 9.0,
    "drain_stalled_seconds_max": 4.0,
    "sink_connect_seconds_max": 1,
    "sink_call_seconds_max": 0.8,
    "breaker_failures_max": 3,
    "visibility_timeout_seconds": 5,
}
SMALL_DISK_BYTES_MAX = 4 << 30
# For the log, which is never trimmed in half of the runs.
LOG_MEMORY = "6gb"
CONTROL_MEMORY = "128mb"
BROKERS = 3  # of a replicated log on Kafka: one may be missing


class Need(StrEnum):
    """Features of the rig that only some faults need, because each costs time."""

    CLOCKS = "clocks"  # everything runs under wall clocks that can be stepped
    INGEST_LINKS = "ingest links"  # clients reach ingest through proxies
    POOLER = "pooler"  # programs reach PostgreSQL through pgbouncer


@dataclass(frozen=True)
class Options:
    """The requested settings of a run."""

    log: str  # redis or kafka
    folder: Path
    seed: int
    rate: float  # events/s that clients offer, besides surges and repeats
    clients: int = 1
    ingests: int = 1
    needs: frozenset[Need] = frozenset()  # what its faults need of the rig
    trim: bool | None = None  # LOG_TRIM; None: the seed decides
    by_day: bool = False  # EVENTS_BY_DAY: log_events is partitioned
    replicated: bool = False  # the log and PostgreSQL have copies that replace them when they die
    kafka_client: str = Settings().kafka_client  # KAFKA_CLIENT
    drains: int = Settings().drains_max  # DRAINS_MAX; below the number of partitions, drains take them in turn

    @property
    def trims(self) -> bool:
        """Whether the log is trimmed; by default, only with odd seeds."""
        return self.seed % 2 == 1 if self.trim is None else self.trim


class Ended(NamedTuple):
    """A program that ended by itself, at a time (epoch s)."""

    name: str
    at: float
    status: int | None  # its exit status, or the negative number of the signal that killed it

    def __str__(self) -> str:
        if self.status is not None and self.status < 0:
            how = signal.Signals(-self.status).name
        else:
            how = f"exit status {'unknown' if self.status is None else self.status}"
        return f"{self.name} at {self.at:.1f} ({how})"


class ClientProcess:
    """A client in its own process, and the counts that it reports each second."""

    def __init__(self, rig: "Rig", number: int) -> None:
        self.number = number
        options = rig.options
        command = [
            *(sys.executable, "-m", "checks.soak.client"),
            *("--ports", ",".join(str(port) for port in rig.client_ports)),
            *("--name", f"c{number}", "--history", str(rig.history_folder / f"client-{number:03d}.jsonl")),
            *("--rate", str(options.rate / options.clients), "--seed", str(options.seed)),
        ]
        self.counts: dict[str, int] = {}
        with (options.folder / "clients.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=_client_environ(), stdout=subprocess.PIPE, stderr=log
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self.counts = json.loads(line)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(10)
        self._end()

    def _end(self) -> None:
        """Read its last output."""
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def stop(self) -> None:
        """End in order, so that every sent request gets its outcome."""
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self._end()


def _client_environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


class Rig:
    """Everything that runs. Programs reach servers through proxies; the harness reaches them directly."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = options.folder
        self.history_folder = self.folder / "history"
        self.history_folder.mkdir(parents=True, exist_ok=True)
        self._stack = contextlib.ExitStack()
        self.small_disk: Path | None = None
        self.small_disk_missing = "it was not tried"
        self.clients: list[ClientProcess] = []
        self._gone_clients = Counter[str]()
        self._next_client = 0
        self.down: set[Program] = set()  # on purpose: the keeper leaves them alone
        self.unplanned: list[Ended] = []  # programs that ended by themselves
        self.orphans: list[psutil.Process] = []  # children of killed programs

    # --- start and stop -----------------------------------------------------------------------

    def start(self) -> "Rig":
        """Start servers, proxies and programs, and wait until all is well. Raises ServerError, AssertionError."""
        try:
            self._start_servers()
            self._start_programs()
            self.start_clients()
        except BaseException:
            self.stop()
            raise
        return self

    def _start_servers(self) -> None:
        folder = self.folder
        self._make_servers()
        self.pooler: Server | None = None
        if Need.POOLER in self.options.needs and pgbouncer_program() is not None:
            self.pooler = pooler(folder, free_port(), self.postgres.port)
        self.proxies = {
            "postgres": Proxy((self.pooler or self.postgres).port),
            "control": Proxy(self.control_redis.port),
        }
        if self.postgres_pair is not None:
            self.proxies["postgres-second"] = Proxy(self.postgres_pair.ports[1])
        self.proxies["log"] = Proxy(self.log.port)
        self.log_door = Proxy(self.log.port)  # ours: no fault touches it
        if self.kafka_cluster is not None:
            for broker in self.kafka_cluster.others:
                self.proxies[f"log-{broker.port}"] = Proxy(broker.port)
        if self.options.log == "kafka":
            brokers = [self.log] if self.kafka_cluster is None else self.kafka_cluster.brokers
            for broker, proxy in zip(brokers, self.links("log"), strict=True):
                advertise(broker, proxy.port)
        self.ingest_ports = [free_port() for _ in range(self.options.ingests)]
        self.ingest_proxies = [Proxy(port) for port in self.ingest_ports if Need.INGEST_LINKS in self.options.needs]
        # Proxies first, because Kafka gives the proxy's address to all clients, including the harness.
        for proxy in (*self.proxies.values(), *self.ingest_proxies, self.log_door):
            self._stack.callback(proxy.stop)
            proxy.start()
        self._give_clocks()
        for server in (
            self.control_redis,
            self.postgres_pair or self.postgres,
            self.log_pair or self.kafka_cluster or self.log,
            self.pooler,
        ):
            if server is not None:
                self._stack.callback(server.stop)
                server.start()
        self.direct = Settings(
            **SCALED,
            log_trim=self.options.trims,
            drains_max=self.options.drains,
            database_url=self._database_url(
                *(self.postgres_pair.ports if self.postgres_pair else [self.postgres.port])
            ),
            redis_url=self.control_redis.url,
            event_log_url=self._log_url_for_us(),
            log_replicas_min=0 if self.log_pair is None else 1,
            kafka_replication=1 if self.kafka_cluster is None else BROKERS,
            kafka_client=self.options.kafka_client,
            events_by_day=self.options.by_day,
            ingest_port=self.ingest_ports[0],
        )
        self.settings = replace(
            self.direct,
            database_url=self._database_url(*(proxy.port for proxy in self.links("postgres"))),
            redis_url=self._behind("control", self.control_redis),
            event_log_url=",".join(
                [self._behind("log", self.log), *(f"{LOOPBACK}:{proxy.port}" for proxy in self.links("log")[1:])]
            ),
        )
        migrate(self.direct)
        if self.options.by_day:
            PostgresSchema(self.direct).partition_by_day()
        self._move_to_small_disk()

    def _make_servers(self) -> None:
        """Create the servers that keep data, with their copies, but start none."""
        folder = self.folder
        self.control_redis = redis_server(folder, free_port(), is_log=False, maxmemory=CONTROL_MEMORY)
        self.postgres_pair = PostgresPair(folder) if self.options.replicated else None
        self.postgres = (
            postgres_server(folder, free_port(), durable=False)
            if self.postgres_pair is None
            else self.postgres_pair.primary
        )
        self.log_pair: RedisPair | None = None
        self.kafka_cluster: Cluster | None = None
        if self.options.log == "kafka" and self.options.replicated:
            self.kafka_cluster = make_cluster(folder, BROKERS)
            self.log = self.kafka_cluster.first
        elif self.options.log == "kafka":
            self.log = kafka_server(folder, free_port(), free_port())
        elif self.options.replicated:
            self.log_pair = RedisPair(folder, maxmemory=LOG_MEMORY)
            self.log = self.log_pair.master
        else:
            self.log = redis_server(folder, free_port(), is_log=True, maxmemory=LOG_MEMORY)

    def _give_clocks(self) -> None:
        """Let both Redis servers run under their own wall clocks, if a fault will step them."""
        self.clocks: dict[str, SteppableClock] = {}
        if Need.CLOCKS not in self.options.needs or fake_time_library() is None:
            return
        self.control_redis = self._clock("control-redis").under(self.control_redis)
        if self.options.log == "redis":
            clock = self._clock("log")
            if self.log_pair is None:
                self.log = clock.under(self.log)
            else:
                self.log_pair.master = self.log = clock.under(self.log_pair.master)
                self.log_pair.replica = clock.under(self.log_pair.replica)

    def _clock(self, name: str) -> SteppableClock:
        clock = self.clocks[name] = SteppableClock(self.folder, name)
        clock.environ = _looking_rarely(clock.environ)
        return clock

    @property
    def client_ports(self) -> list[int]:
        """The ports at which clients reach ingest."""
        return [proxy.port for proxy in self.ingest_proxies] or self.ingest_ports

    def links(self, name: str) -> list[Proxy]:
        """The proxies before a server and before its copies."""
        return [proxy for link, proxy in self.proxies.items() if link == name or link.startswith(f"{name}-")]

    @staticmethod
    def _database_url(*ports: int) -> str:
        """The URL of the database on this port, or on the one of two ports that takes writes."""
        return postgres_url(ports[0]) if len(ports) == 1 else url_of_both(postgres_url(ports[0]), *ports)

    def _log_url_for_us(self) -> str:
        """The URL of the log, past the proxies that faults touch."""
        if self.log_pair is not None:
            return redis_url(self.log_door.port)
        others = [] if self.kafka_cluster is None else self.kafka_cluster.others
        return ",".join([self.log.url, *(broker.bootstrap for broker in others)])

    def promote_postgres(self) -> None:
        """Let the standby replace the primary. Raises psycopg2.Error, ServerError."""
        assert self.postgres_pair is not None
        self.postgres_pair.promote()
        self.postgres = self.postgres_pair.primary

    def promote_log(self) -> None:
        """Let the log's replica replace its master, at the same address. Raises redis.RedisError."""
        assert self.log_pair is not None
        self.log_pair.promote()
        self.log = self.log_pair.master
        for proxy in (self.proxies["log"], self.log_door):
            proxy.target_port = self.log.port

    def _behind(self, name: str, server: Server) -> str:
        return server.url.replace(f":{server.port}", f":{self.proxies[name].port}", 1)

    def _move_to_small_disk(self) -> None:
        """Put the events' table on an in-memory disk that can be made too small, if this machine can mount one."""
        if self.postgres_pair is not None:
            self.small_disk_missing = "a standby on this machine can't have the same disk"
            return
        mount = self.folder / "small-disk"
        mount.mkdir()
        said = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES_MAX}", "tmpfs", str(mount)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if said.returncode != 0:
            self.small_disk_missing = f"no disk of its own can be mounted here: {said.stderr.strip()}"
            return
        # This runs before PostgreSQL stops using the disk; `umount -l` removes it when it is no longer in use.
        self._stack.callback(subprocess.run, ["umount", "-l", str(mount)], check=False)
        place = mount / "events"
        place.mkdir(mode=0o700)
        owner = (self.folder / "postgres").stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        with self.database() as cursor:
            cursor.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
            cursor.execute(
                "SELECT 'log_events' UNION SELECT relid::regclass::text FROM pg_partition_tree('log_events')"
            )
            for (table,) in cursor.fetchall():
                cursor.execute(f"ALTER TABLE {table} SET TABLESPACE small")
        self.small_disk = mount

    def _start_programs(self) -> None:
        folder, settings = self.folder, self.settings
        self.ingests = [
            ingest(replace(settings, ingest_port=port), folder, f"ingest-{number}")
            for number, port in enumerate(self.ingest_ports)
        ]
        self.batches = batches_worker(settings, folder)
        self.control = control_worker(settings, folder)
        self.beat = beat(settings, folder)
        self.store = wiring.make_control_store(self.direct)
        self.context = WorkerContext(self.direct)  # for operators' commands, as a worker runs them
        self._stack.callback(self.context.close)
        for program in self.programs:
            if self.clocks:
                program.environ = clock_environ(self._clock(program.name))
            self._stack.callback(self.stop_program, program)
            program.start()
        self.wait(lambda: self.problem() is None, "the system is well", seconds_max=180)
        if self.kafka_cluster is not None:
            self.wait_in_sync(seconds_max=120)
        self._keeping = threading.Event()
        keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        keeper.start()
        self._stack.callback(keeper.join, 5)
        self._stack.callback(self._keeping.set)

    @property
    def programs(self) -> list[Program]:
        return [*self.ingests, self.batches, self.control, self.beat]

    def stop_program(self, program: Program) -> None:
        with contextlib.suppress(psutil.Error):
            if program.is_running:
                program.thaw()
            program.stop(seconds_max=1)

    def start_clients(self) -> None:
        while len(self.clients) < self.options.clients:
            self.clients.append(ClientProcess(self, self._next_client))
            self._next_client += 1

    def kill_client(self) -> int:
        """SIGKILL to a client; another client replaces it. Returns the killed client's process id."""
        client = self.clients.pop(0)
        client.kill()
        self._gone_clients.update(client.counts)
        self.start_clients()
        return client.process.pid

    def stop_clients(self) -> None:
        for client in self.clients:
            client.signal(signal.SIGTERM)
        for client in self.clients:
            client.stop()
            self._gone_clients.update(client.counts)
        self.clients = []

    def counts(self) -> Counter[str]:
        """Events by outcome, as clients reported them, repeats included; `sent` counts each event once."""
        total = Counter(self._gone_clients)
        for client in self.clients:
            total.update(client.counts)
        return total

    def stop(self) -> None:
        """End everything that was started."""
        for client in self.clients:
            client.kill()
        self.clients = []
        self._stack.close()
        for orphan in self.orphans:
            with contextlib.suppress(psutil.Error):
                orphan.kill()

    def _keep(self) -> None:
        """Restart programs that end by themselves, as a supervisor does, and note that they did."""
        while not self._keeping.wait(0.3):
            for program in self.programs:
                if program not in self.down and not program.is_running:
                    self.unplanned.append(Ended(program.name, time.time(), program.exit_status))
                    program.start()

    # --- a look from outside -----------------------------------------------------------------------

    @contextlib.contextmanager
    def database(self) -> Any:
        """A cursor on a connection of its own with autocommit."""
        with contextlib.closing(psycopg2.connect(self.direct.database_url, connect_timeout=2)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = '5s'")
                yield cursor

    @staticmethod
    def redis(server: Server) -> "redis.Redis":
        """A client that tries once."""
        return redis.Redis(
            host=LOOPBACK, port=server.port, socket_timeout=3, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
        )

    def stored_offsets(self) -> dict[tuple[str, int], int]:
        with self.database() as cursor:
            cursor.execute("SELECT log_id, log_partition, next_offset FROM stored_offsets")
            return {(log_id, partition): offset for log_id, partition, offset in cursor.fetchall()}

    def log_ends(self) -> dict[tuple[str, int], int]:
        """Where each partition ends now. Raises LogUnavailableError."""
        log_id, positions = self.log_positions()
        return {(log_id, partition): end for partition, (_, end) in positions.items()}

    def log_positions(self) -> tuple[str, dict[int, tuple[int, int]]]:
        """The log's id, and the offsets with which each partition begins and ends. Raises LogUnavailableError.

        It reads Redis without the adapter: the adapter would fence, and only the watched programs may do that.
        """
        if self.options.log == "redis":
            try:
                with self.redis(self.log) as client:
                    return _positions(client, self.direct.key_prefix)
            except redis.RedisError as error:
                raise LogUnavailableError(f"the log does not answer: {error}") from error
        log = wiring.make_log(self.direct)
        try:
            identity = log.identity()
            return identity.log_id, {one.partition: (one.begin, one.end) for one in log.positions()}
        finally:
            log.close()

    def wait_in_sync(self, *, seconds_max: float) -> None:
        """Wait until each broker has all records of its replicas. Raises AssertionError."""
        log = wiring.make_log(self.direct)

        def is_in_sync() -> bool:
            try:
                return log.identity().missing_replicas is None
            except SluiceError:
                return False

        try:
            wait_until(is_in_sync, "all replicas are in sync", seconds_max=seconds_max)
        finally:
            log.close()

    def add_partition(self, count: int) -> None:
        """Grow the Kafka topic to `count` partitions. Raises KafkaError."""
        from kafka import KafkaAdminClient  # slow to import, and most runs need no Kafka
        from kafka.admin import NewPartitions

        admin = KafkaAdminClient(bootstrap_servers=self.log.bootstrap, api_version=(2, 6, 0))
        try:
            admin.create_partitions({self.direct.log_topic: NewPartitions(count)})
        finally:
            admin.close()

    def problem(self) -> str | None:
        """A problem with something that every program needs; None if all is well."""
        for number, port in enumerate(self.ingest_ports):
            if http_status(f"http://{LOOPBACK}:{port}/readyz") != 200:
                return f"ingest-{number} is not ready"
        try:
            state = self.store.state()
        except SluiceError as error:
            return f"the control store does not answer: {error}"
        if state.breaker is not BreakerState.CLOSED:
            return f"the breaker is {state.breaker}"
        if state.pauses != ():
            return f"consumption is paused: {state.pauses}"
        if state.rate is None:
            return "no rate is published"
        return None

    def behind(self, ends: dict[tuple[str, int], int]) -> str | None:
        """The part of the log up to `ends` that is not stored yet, as text; None if all is stored."""
        try:
            stored = self.stored_offsets()
        except psycopg2.Error as error:
            return f"PostgreSQL does not answer: {error}"
        missing = {place[1]: end - stored.get(place, 0) for place, end in ends.items() if stored.get(place, 0) < end}
        return f"events not stored yet, by partition: {missing}" if missing else None

    def wait(self, condition: Callable[[], bool], what: str, *, seconds_max: float) -> None:
        """Wait for a condition. Raises AssertionError with the ends of the programs' logs if it does not come."""
        deadline = time.monotonic() + seconds_max
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {one.name}\n{one.log()[-1500:]}" for one in self.programs)
                raise AssertionError(f"not within {seconds_max:.0f} s: {what} ({self.problem()})\n{logs}")
            time.sleep(0.05)


UNDER_CLOCK = ROOT / "checks" / "testbed" / "under_clock"


def clock_environ(clock: SteppableClock) -> dict[str, str]:
    """The environment of a Python program that uses a steppable clock during the whole run."""
    path = os.pathsep.join([str(UNDER_CLOCK), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return {**_looking_rarely(clock.environ), "PYTHONPATH": path}


def _looking_rarely(environ: dict[str, str]) -> dict[str, str]:
    """Programs see a step within two seconds. A look at every call would make the system several times slower."""
    kept = {name: value for name, value in environ.items() if name != "FAKETIME_NO_CACHE"}
    return {**kept, "FAKETIME_CACHE_DURATION": "1"}


def _positions(client: "redis.Redis", prefix: str) -> tuple[str, dict[int, tuple[int, int]]]:
    """The id of a log on Redis, and the begin and end of each partition."""
    answer: Any = client.get(prefix + KEY_LOG_ID)
    if answer is None:
        raise LogUnavailableError("there is no log yet")
    log_id = answer.decode()
    positions = {}
    for partition in range(int(log_id.rpartition(".")[2])):
        key = f"{prefix}{KEY_LOG_STREAM}:{partition}"
        begin = end = 0
        if client.exists(key):
            facts: Any = client.xinfo_stream(key)
            end = begin = _sequence(facts["last-generated-id"])
            if facts["first-entry"]:
                begin = _sequence(facts["first-entry"][0]) - 1
        positions[partition] = begin, end
    return log_id, positions


def _sequence(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[2])


def remove(folder: Path) -> None:
    """Delete the files of a run."""
    shutil.rmtree(folder, ignore_errors=True)
