"""One system under a supervisor: its programs, how they start, and how to check that they are ready."""

import base64
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from xmlrpc.client import Fault

import psutil

from pipeline.running import URLS, how_to
from stack.config import StackConfig, free_base
from stack.prometheus import prometheus_config
from stack.servers import (
    IDLE_TIMER_HZ,
    KAFKA_LIBS,
    LOOPBACK,
    ROOT,
    TIMER_HZ,
    Server,
    ServerError,
    kafka_server,
    port_problem,
    postgres_server,
    redis_server,
)
from stack.supervision import Program, Supervisor

_T = TypeVar("_T")

READY_SECONDS_MAX: Final = 60.0  # for one program, after the one before it was ready
_FAILED_STARTS_MAX: Final = 3  # of one program while the system starts: then it will not recover
_POLL_SECONDS: Final = 0.05  # between two checks for what a start waits for
_LOOK_SECONDS: Final = 0.5  # between two checks for ended programs during a start
_UNVERIFIED: Final = ssl.create_default_context()
_UNVERIFIED.check_hostname = False
_UNVERIFIED.verify_mode = ssl.CERT_NONE
# For questions to the system's own ingest: no proxy can reach our loopback address, and the certificate of
# INGEST_TLS_CERT is for another name than that.
_OPENER: Final = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_UNVERIFIED)
)
# `clean` deletes these: the folder may have existed before, and have other contents.
_DATA: Final = ("postgres", "postgres.new", "redis-control", "redis-log", "kafka", "prometheus", "logs")
_FILES: Final = ("log", "running.json", "supervisord.conf", "supervisor.pid", "supervisor.sock", "lock")


class SystemFolder:
    """The folder of a system: the system is queried and stopped through its supervisor. This needs no settings."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.logs = home / "logs"
        self.state_path = home / "running.json"
        self._supervisor = Supervisor(home)

    # --- queries ------------------------------------------------------------------------------------

    def supervisor(self) -> Any:
        """The supervisor's XML-RPC interface."""
        return self._supervisor.rpc()

    def supervisor_pid(self) -> int | None:
        """The running supervisor's process id; None if none runs."""
        return self._supervisor.pid()

    def programs_now(self) -> list[dict[str, Any]]:
        """The supervisor's view of every program. Raises OSError if no supervisor runs."""
        return self._supervisor.programs()

    def remains(self) -> int:
        """The number of leftover processes of a system whose supervisor was killed."""
        return 0 if self.supervisor_pid() is not None else len(self._supervisor.remains())

    def urls(self) -> dict[str, str]:
        """The addresses of the running system. Raises ServerError if none runs."""
        if self.supervisor_pid() is None:
            raise ServerError(f"no system runs in {self.home}: {how_to('up')} starts one")
        urls: dict[str, str] = json.loads(self.state_path.read_text())["urls"]
        return urls

    # --- stopping ---------------------------------------------------------------------------------------------

    def stop(self) -> bool:
        """Stop everything, in order, and wait for the end; False if nothing ran."""
        return self._supervisor.stop()

    def clean(self) -> None:
        """Delete the data, and the folder if it is empty then. Raises ServerError while the system runs."""
        if not self.home.exists():
            return
        with self._alone():
            if self.supervisor_pid() is not None or self.remains():
                raise ServerError(f"a system runs in {self.home}: stop it first with {how_to('stop')}")
            for name in _DATA:
                if (self.home / name).exists():
                    shutil.rmtree(self.home / name)
            for name in _FILES:
                (self.home / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.home.rmdir()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of this folder against a second start, and a clean. Raises ServerError."""
        with (self.home / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServerError(
                    f"another {how_to('up')} is working in {self.home}: wait for it, or stop it"
                ) from None
            yield


class System(SystemFolder):
    """A system that can be started."""

    def __init__(self, config: StackConfig, *, ready_seconds_max: float = READY_SECONDS_MAX) -> None:
        """`ready_seconds_max`: how long a start waits for one program, after the one before it was ready."""
        super().__init__(config.home)
        self.config = config
        self._ready_seconds_max = ready_seconds_max
        self._interrupted = threading.Event()
        self._ended: defaultdict[str, set[int]] = defaultdict(set)  # when programs ended during a start, epoch s
        self._logs_began: dict[str, int] = {}  # bytes of each log that earlier runs wrote

    # --- starting -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise ServerError, in one line, if a start can't succeed."""
        if sys.platform != "linux":
            raise ServerError(
                f"a system runs on Linux only, and this is {sys.platform}: use a virtual machine with Linux"
            )
        if self.supervisor_pid() is not None:
            raise ServerError(f"a system runs already in {self.home}: {how_to('status')}, {how_to('stop')}")
        hosts = {
            "INGEST_PORT": self.config.host,
            "OPERATOR_PORT": self.config.operator_host,
            "FLOWER_PORT": self.config.flower_host,
        }
        users: dict[int, str] = {}
        for name, port in self.config.ports_used.items():
            if port in users:
                raise ServerError(f"{name}={port} is {users[port]}'s port too: set one of them to another port")
            users[port] = name
            host = hosts.get(name, self.config.metrics_host if "METRICS_PORT" in name else LOOPBACK)
            problem = port_problem(host, port)
            if problem is not None:
                raise ServerError(
                    f"{name}={port} {problem} on {host}: set {name} to another port, or PORT_BASE={free_base()}, which "
                    "moves all ports without a setting of their own; a second system beside the first needs its own "
                    "SLUICE_HOME too"
                )

    def start(self, interrupted: threading.Event) -> dict[str, str]:
        """Start everything and wait until it is ready; returns the addresses.

        If a program does not start, or `interrupted` is set, it stops everything that was started, and raises
        ServerError.
        """
        self._interrupted = interrupted
        self._ended.clear()
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServerError(
                f"the folder of data and logs, {self.home}, can't be made: {error.strerror}; "
                "SLUICE_HOME names another one"
            ) from error
        self._logs_began = {path.stem: path.stat().st_size for path in self.logs.glob("*.log")}
        with self._alone():
            if self.remains() and self._supervisor.end_remains():
                print("ended what an earlier run had left, whose supervisor was killed", file=sys.stderr)
            self.check()
            servers = self._unless_interrupted(self._servers)
            for server in servers.values():
                for line in self._unless_interrupted(server.repair):
                    print(line, file=sys.stderr)
            urls = self._urls(servers)
            programs = [_server_program(server) for server in servers.values()] + self._sluice(urls)
            (self.home / "log").write_text(self.config.log + "\n")
            self._write_state(urls)
            self._supervisor.start(programs, self._environ(urls))
            try:
                self._wait(self._supervisor.answers, "supervisor")
                for server in servers.values():
                    self._start_program(server.name)
                for server in servers.values():
                    self._wait(server.is_ready, server.name)
                self._unless_interrupted(lambda: self._migrate(urls))
                for program in programs:
                    if program.name not in servers:
                        self._start_program(program.name)
                self._wait_for_sluice(urls, time.monotonic())
            except BaseException:
                self.stop()
                raise
        return urls

    def _start_program(self, name: str) -> None:
        try:
            self.supervisor().startProcess(name, False)
        except (OSError, Fault) as error:
            raise ServerError(f"{name} can't be started: {getattr(error, 'faultString', error)}") from None

    def _write_state(self, urls: Mapping[str, str]) -> None:
        """Write the data for `env` and for commands in a new shell.

        Only this user can read it: a URL may have a password.
        """
        own = [urls[name] for name in URLS if name not in self.config.given]
        new = self.state_path.with_suffix(".new")
        new.touch(mode=0o600)
        state = {"urls": dict(urls), "own": own, "settings": _settings_given()}
        new.write_text(json.dumps(state))
        new.replace(self.state_path)

    def _servers(self) -> dict[str, Server]:
        """The private servers that this system needs, by name."""
        config, home = self.config, self.home
        servers = []
        if "DATABASE_URL" not in config.given:
            servers.append(postgres_server(home, config.ports["POSTGRES_PORT"]))
        if "REDIS_URL" not in config.given:
            port = config.ports["REDIS_PORT"]
            servers.append(redis_server(home, port, is_log=False, maxmemory="256mb", hz=IDLE_TIMER_HZ))
        if "EVENT_LOG_URL" not in config.given:
            if config.log == "kafka":
                if not KAFKA_LIBS.is_dir():
                    print("fetching Kafka with Maven, this once …", flush=True)
                servers.append(kafka_server(home, config.ports["KAFKA_PORT"], config.ports["KAFKA_CONTROLLER_PORT"]))
            else:
                port = config.ports["LOG_REDIS_PORT"]
                has_replicas = os.environ.get("LOG_REPLICAS_MIN", "").strip() not in ("", "0")
                hz = TIMER_HZ if has_replicas else IDLE_TIMER_HZ
                servers.append(redis_server(home, port, is_log=True, maxmemory="1gb", hz=hz))
        return {server.name: server for server in servers}

    def _urls(self, servers: Mapping[str, Server]) -> dict[str, str]:
        given = self.config.given
        log = servers.get("kafka") or servers.get("redis-log")
        return {
            "INGEST_URL": _http_url(
                self.config.host, self.config.ports["INGEST_PORT"], scheme="https" if _has_certificate() else "http"
            ),
            **(
                {
                    "OPERATOR_URL": _http_url(
                        self.config.operator_host,
                        self.config.ports["OPERATOR_PORT"],
                        scheme="https" if _has_certificate() else "http",
                    )
                }
                if "OPERATOR_PORT" in self.config.ports
                else {}
            ),
            "DATABASE_URL": given.get("DATABASE_URL") or servers["postgres"].url,
            "REDIS_URL": given.get("REDIS_URL") or servers["redis-control"].url,
            "EVENT_LOG_URL": given.get("EVENT_LOG_URL") or (log.url if log is not None else ""),
            "FLOWER_URL": _http_url(self.config.flower_host, self.config.ports["FLOWER_PORT"]),
            **(
                {"PROMETHEUS_URL": _http_url(LOOPBACK, self.config.ports["PROMETHEUS_PORT"])}
                if self.config.prometheus
                else {}
            ),
        }

    def _environ(self, urls: Mapping[str, str]) -> dict[str, str]:
        """The environment of Sluice's processes, beyond the settings that the user gave."""
        is_whole = "REDIS_URL" not in self.config.given and not os.environ.get("INGEST_PROCESSES_MAX")
        return {
            **{name: urls[name] for name in URLS},
            # If the system has its own Redis, no other host has ingest processes of this system.
            **({"INGEST_PROCESSES_MAX": str(self.config.ingest_processes)} if is_whole else {}),
            "INGEST_HOST": self.config.host,
            "INGEST_PORT": str(self.config.ports["INGEST_PORT"]),
            "PROMETHEUS_URL": urls.get("PROMETHEUS_URL") or os.environ.get("PROMETHEUS_URL", ""),
            "PAGE_URLS": os.environ.get("PAGE_URLS") or _page_urls(urls),
            "PYTHONUNBUFFERED": "1",
        }

    def _sluice(self, urls: Mapping[str, str]) -> list[Program]:
        """Sluice's own programs."""
        # The stack's other commands need no settings.
        from pipeline.settings import Settings  # noqa: PLC0415
        from pipeline.sink.sessions import batch_processes  # noqa: PLC0415

        settings = Settings.from_environ({**os.environ, **self._environ(urls)})
        python = sys.executable
        celery = [python, "-W", "ignore", "-m", "celery", "-A", "tasks.app"]
        worker = ["--without-gossip", "--without-mingle"]
        drains = batch_processes(settings)
        flower = [f"--conf={ROOT / 'monitoring' / 'flowerconfig.py'}", f"--port={self.config.ports['FLOWER_PORT']}"]
        # Flower exits if it finds unknown FLOWER_ variables; these are ours.
        own = [word for name in ("FLOWER_URL", "FLOWER_HOST", "FLOWER_PORT") for word in ("-u", name)]
        programs = [
            Program(
                "control",
                [*celery, "worker", "-Q", "control", "-n", self._node("control"), "-c", "2", *worker],
                20,
                {
                    "WORKER_METRICS_PORT": str(self.config.ports["CONTROL_METRICS_PORT"]),
                    "WATCHED_PATHS": settings.watched_paths or str(self.home),
                },
            ),
            Program(
                "batches",
                [*celery, "worker", "-Q", "batches", "-n", self._node("batches"), "-c", str(drains), *worker],
                20,
                {"WORKER_METRICS_PORT": str(self.config.ports["BATCHES_METRICS_PORT"])},
                stop_signal="QUIT",  # at once: events that a drain has not committed are drained again
            ),
            Program("beat", [*celery, "beat", "--pidfile="], 20),
            Program(
                "flower", ["env", *own, *celery, "flower", *flower], 30, {"FLOWER_ADDRESS": self.config.flower_host}
            ),
        ]
        metrics_ports = self.config.metrics_ports or [0]
        for number, port in enumerate(metrics_ports):
            programs.append(
                Program(
                    f"ingest-{number}",
                    [python, "-m", "ingest"],
                    40,
                    {"INGEST_METRICS_PORT": str(port)},
                    stop_seconds=int(settings.stop_seconds_max) + 5,
                )
            )
        if self.config.prometheus is not None:
            runbooks = settings.runbooks_url or f"{urls.get('OPERATOR_URL', urls['INGEST_URL'])}/runbooks"
            programs.append(self._prometheus(self.config.prometheus, runbooks))
        return programs

    def _prometheus(self, program: str, runbooks: str) -> Program:
        """Prometheus with the rules of monitoring/, and its targets on this machine."""
        config, ports = self.config, self.config.ports
        folder = self.home / "prometheus"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "prometheus.yml"
        own = [_place(config.metrics_host, port) for port in config.metrics_ports]
        path.write_text(
            prometheus_config(
                {
                    "ingest": own or [_place(config.host, ports["INGEST_PORT"])],
                    "control": [_place(config.metrics_host, ports["CONTROL_METRICS_PORT"])],
                    "worker": [_place(config.metrics_host, ports["BATCHES_METRICS_PORT"])],
                },
                config.prometheus_seconds,
                runbooks=runbooks,
                https=("ingest",) if _has_certificate() and not own else (),
            )
        )
        return Program(
            "prometheus",
            [
                program,
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--storage.tsdb.retention.time=8d",  # the live page has charts of 7 days
                "--storage.tsdb.retention.size=1GB",  # whichever limit is reached first
                f"--web.listen-address={LOOPBACK}:{ports['PROMETHEUS_PORT']}",
            ],
            50,
            # With more, each scrape and each round of rules wakes threads that look for work and find none.
            {"GOMAXPROCS": "1"},
        )

    def _node(self, queue: str) -> str:
        """A worker's name, unique among all systems on the same broker."""
        return f"{queue}-{hashlib.sha256(str(self.home).encode()).hexdigest()[:6]}@{socket.gethostname()}"

    def _migrate(self, urls: Mapping[str, str]) -> None:
        from pipeline.settings import Settings  # noqa: PLC0415
        from pipeline.sink.migrate import migrate  # noqa: PLC0415
        from pipeline.sink.sessions import check_sessions  # noqa: PLC0415

        settings = Settings.from_environ({**os.environ, **self._environ(urls)})
        migrate(settings)
        check_sessions(settings)  # the workers would end with the same line, in their logs

    # --- readiness ------------------------------------------------------------------------------------------

    def _wait_for_sluice(self, urls: Mapping[str, str], started: float) -> None:
        """Wait until events are accepted, the control loop has ticked since the start, and every program runs."""
        from pipeline.settings import Settings  # noqa: PLC0415

        settings = Settings.from_environ({**os.environ, **self._environ(urls)})
        self._wait(lambda: _status(settings.ready_url()) == 200, "ingest-0")
        operators, password = urls.get("OPERATOR_URL", urls["INGEST_URL"]), settings.operator_password
        self._wait(lambda: _has_ticked(_health(operators, password), since=started), "control")
        self._wait_for_workers(urls)
        self._wait(lambda: _status(urls["FLOWER_URL"] + "/healthcheck") == 200, "flower")
        if "PROMETHEUS_URL" in urls:
            self._wait(lambda: _status(urls["PROMETHEUS_URL"] + "/-/ready") == 200, "prometheus")
        for info in self.programs_now():
            self._wait(partial(self._runs, str(info["name"])), str(info["name"]))

    def _wait_for_workers(self, urls: Mapping[str, str]) -> None:
        """Wait until both workers answer Celery's ping: then they take tasks."""
        from kombu.exceptions import OperationalError  # noqa: PLC0415 - slow to import, and only a start needs it

        from pipeline.settings import Settings  # noqa: PLC0415
        from tasks.app import make_app  # noqa: PLC0415

        settings = Settings.from_environ({**os.environ, **self._environ(urls)})
        with make_app(settings) as app:  # it signs, if messages are signed

            def answers(node: str) -> bool:
                try:
                    return bool(app.control.ping(destination=[node], timeout=1.0, limit=1))
                except OperationalError:
                    return False

            for queue in ("batches", "control"):
                self._wait(partial(answers, self._node(queue)), queue)

    def _runs(self, name: str) -> bool:
        try:
            return bool(self.supervisor().getProcessInfo(name)["statename"] == "RUNNING")
        except OSError:
            return False

    def _wait(self, condition: Callable[[], bool], name: str) -> None:
        """Wait until a program is ready. Raises ServerError with the end of its log."""
        deadline = time.monotonic() + self._ready_seconds_max
        next_look = time.monotonic() + _LOOK_SECONDS
        while not condition():
            self._check_interrupted()
            if name != "supervisor" and self.supervisor_pid() is None:
                raise ServerError("the supervisor has ended: the system was stopped while it started")
            now = time.monotonic()
            if now > next_look:
                self._look_for_failures()
                next_look = now + _LOOK_SECONDS
            if now > deadline:
                raise ServerError(
                    f"{name} is not ready after {self._ready_seconds_max:.0f} s; its log ends:\n{self.tail(name)}"
                )
            time.sleep(_POLL_SECONDS)

    def _unless_interrupted(self, work: Callable[[], _T]) -> _T:
        """Do `work` and return its result. Raises ServerError as soon as the start is interrupted.

        While PostgreSQL or another program works for it, `work` can't notice a signal. So it runs on a thread. If the
        start is interrupted, the thread is left and ends with this process, and the programs it had started are ended.
        """
        earlier = set(psutil.Process().children(recursive=True))
        result: Future[_T] = Future()

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=run, name="start", daemon=True).start()
        while not wait([result], timeout=_POLL_SECONDS).done:
            try:
                self._check_interrupted()
            except ServerError:
                for child in set(psutil.Process().children(recursive=True)) - earlier:
                    with contextlib.suppress(psutil.Error):
                        child.kill()
                raise
        return result.result()

    def _check_interrupted(self) -> None:
        """Raise ServerError if the user has stopped the start."""
        if self._interrupted.is_set():
            raise ServerError("interrupted while starting; everything is stopped again")

    def _look_for_failures(self) -> None:
        """Raise ServerError for a program that can't be started, or ends repeatedly."""
        if not self._supervisor.answers():
            return
        for info in self.programs_now():
            name = info["name"]
            # "Bad exit code": it ended later than supervisor's `startsecs`, as on a busy machine.
            if info["spawnerr"] and not info["spawnerr"].startswith(("Exited too quickly", "Bad exit code")):
                raise ServerError(f"{name} can't be started: {info['spawnerr']}")
            if info["stop"]:
                self._ended[name].add(info["stop"])
            if len(self._ended[name]) >= _FAILED_STARTS_MAX:
                raise ServerError(f"{name} ends again and again; its log ends:\n{self.tail(name)}")

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a program's log, without what earlier runs wrote."""
        path = self.logs / f"{name}.log"
        if not path.exists():
            return "(no log)"
        began = self._logs_began.get(name, 0)
        with path.open("rb") as file:
            file.seek(began if began <= path.stat().st_size else 0)  # supervisor has begun a new file
            last = "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        return last or "(nothing yet: if this machine is very busy, try again once it is less so)"


def _settings_given() -> dict[str, str]:
    """Settings in this process' environment, without the servers' addresses."""
    from pipeline.settings import Settings  # noqa: PLC0415

    names = {field.name.upper() for field in dataclasses.fields(Settings)} - set(URLS)
    return {name: value for name, value in os.environ.items() if name in names and value}


def _server_program(server: Server) -> Program:
    name = "INT" if server.stop_signal == signal.SIGINT else "TERM"
    return Program(server.name, server.command, 10, server.environ, name, 30)


def _has_certificate() -> bool:
    """Whether ingest will speak HTTPS."""
    return bool(os.environ.get("INGEST_TLS_CERT", "").strip())


def _place(host: str, port: int) -> str:
    """Where a program of this machine reaches a server that listens on `host`."""
    shown = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - shown, not bound
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


def _page_urls(urls: Mapping[str, str]) -> str:
    """The links of the live page to what runs beside ingest."""
    found = {"Flower": urls.get("FLOWER_URL"), "Prometheus": urls.get("PROMETHEUS_URL")}
    return ",".join(f"{name}={url}" for name, url in found.items() if url)


def _http_url(host: str, port: int, *, scheme: str = "http") -> str:
    """The URL from this machine of a server that listens on `host`."""
    return f"{scheme}://{_place(host, port)}"


def _has_ticked(health: Mapping[str, Any], *, since: float) -> bool:
    """Whether the control loop has ticked after a time (monotonic). Values of an earlier run in Redis are older."""
    age_seconds = health.get("controllerAgeSeconds")
    return age_seconds is not None and age_seconds < time.monotonic() - since and health["consumption"] != "unknown"


def _status(url: str) -> int | None:
    try:
        with _OPENER.open(url, timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _health(url: str, password: str) -> dict[str, Any]:
    """The health answer at operators' address; empty if there is none."""
    request = urllib.request.Request(f"{url}/api/logs/health")
    if password:
        coded = base64.b64encode(f"run.sh:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {coded}")
    try:
        with _OPENER.open(request, timeout=2) as answer:
            document: dict[str, Any] = json.loads(answer.read())
            return document
    except (OSError, ValueError):
        return {}
