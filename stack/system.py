"""One system under a supervisor: which programs there are, how they start, and how one tells that they are ready."""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from stack.config import StackConfig
from stack.servers import (
    LOOPBACK,
    ROOT,
    Server,
    ServerError,
    kafka_server,
    port_is_taken,
    postgres_server,
    redis_server,
)

READY_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 60.0
SPARE_DRAINS: Final = 2  # worker processes beyond one a partition: a frozen one must not keep others from its work
_FILES: Final = 8192  # open files a process: ingest takes 2,000 connections, and the usual limit is 1,024
_SOCKET_CHARS_MAX: Final = 100  # of a unix socket's path, which the kernel limits to 107


@dataclass(frozen=True)
class Program:
    """One supervised process. Lower priorities start first and stop last."""

    name: str
    command: list[str]
    priority: int
    environ: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"
    stop_seconds: int = 15


class System:
    """A system in its folder: started, asked and stopped through its supervisor."""

    def __init__(self, config: StackConfig) -> None:
        self.config = config
        self.home = config.home
        self.logs = self.home / "logs"
        self._interrupted = threading.Event()
        self.pid_path = self.home / "supervisor.pid"
        self.state_path = self.home / "running.json"
        self.socket_path = self.home / "supervisor.sock"
        if len(str(self.socket_path)) > _SOCKET_CHARS_MAX:
            digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
            self.socket_path = Path(tempfile.gettempdir()) / f"sluice-{os.getuid()}-{digest}.sock"

    # --- asking -------------------------------------------------------------------------------------

    def supervisor(self) -> Any:
        """The supervisor's XML-RPC interface."""
        transport = SupervisorTransport(None, None, f"unix://{self.socket_path}")
        return ServerProxy("http://localhost", transport=transport).supervisor

    def supervisor_pid(self) -> int | None:
        """The running supervisor's process id; None where none runs."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self.pid_path.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"supervisord" in command and str(self.home).encode() in command:
                return pid
        return None

    def programs_now(self) -> list[dict[str, Any]]:
        """The supervisor's view of every program. Raises OSError where no supervisor runs."""
        found: list[dict[str, Any]] = self.supervisor().getAllProcessInfo()
        return found

    def urls(self) -> dict[str, str]:
        """The addresses of the running system. Raises ServerError where none runs."""
        if self.supervisor_pid() is None:
            raise ServerError(f"no system runs in {self.home}: ./run.sh starts one")
        urls: dict[str, str] = json.loads(self.state_path.read_text())
        return urls

    # --- starting -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise ServerError, in one line, where a start could not succeed."""
        if self.supervisor_pid() is not None:
            raise ServerError(f"a system runs already in {self.home}: ./run.sh status, ./run.sh stop")
        for name, port in self.config.ports_used.items():
            host = self.config.host if name in ("INGEST_PORT", "FLOWER_PORT") else LOOPBACK
            if port_is_taken(host, port):
                raise ServerError(f"{name}={port} is taken on {host}: set {name} to another port")

    def start(self, interrupted: threading.Event) -> dict[str, str]:
        """Start everything and wait until it is ready; returns the addresses.

        Raises ServerError where something does not start or `interrupted` is set, after stopping what was started.
        """
        self._interrupted = interrupted
        self.check()
        self.logs.mkdir(parents=True, exist_ok=True)
        servers = self._servers()
        urls = self._urls(servers)
        programs = [_server_program(server) for server in servers.values()] + self._sluice(urls)
        (self.home / "log").write_text(self.config.log + "\n")
        self._write_config(programs)
        self.state_path.write_text(json.dumps(urls))
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(self.home / "supervisord.conf")],
            check=True,
            cwd=ROOT,
        )
        try:
            self._wait(self._answers, "the supervisor")
            for server in servers.values():
                self.supervisor().startProcess(server.name, False)
            for server in servers.values():
                self._wait(server.is_ready, server.name)
            self._migrate(urls)
            for program in programs:
                if program.name not in servers:
                    self.supervisor().startProcess(program.name, False)
            self._wait_for_sluice(urls, time.monotonic())
        except BaseException:
            self.stop()
            raise
        return urls

    def _servers(self) -> dict[str, Server]:
        """The private servers that this system needs, by name."""
        config, home = self.config, self.home
        servers = []
        if "DATABASE_URL" not in config.given:
            servers.append(postgres_server(home, config.ports["POSTGRES_PORT"]))
        if "REDIS_URL" not in config.given:
            servers.append(redis_server(home, config.ports["REDIS_PORT"], is_log=False, maxmemory="256mb"))
        if "EVENT_LOG_URL" not in config.given:
            if config.log == "kafka":
                servers.append(kafka_server(home, config.ports["KAFKA_PORT"], config.ports["KAFKA_CONTROLLER_PORT"]))
            else:
                servers.append(redis_server(home, config.ports["LOG_REDIS_PORT"], is_log=True, maxmemory="1gb"))
        return {server.name: server for server in servers}

    def _urls(self, servers: Mapping[str, Server]) -> dict[str, str]:
        given = self.config.given
        log = servers.get("kafka") or servers.get("redis-log")
        shown = LOOPBACK if self.config.host in ("0.0.0.0", "::") else self.config.host  # noqa: S104 - compared, not bound
        return {
            "INGEST_URL": f"http://{shown}:{self.config.ports['INGEST_PORT']}",
            "DATABASE_URL": given.get("DATABASE_URL") or servers["postgres"].url,
            "REDIS_URL": given.get("REDIS_URL") or servers["redis-control"].url,
            "EVENT_LOG_URL": given.get("EVENT_LOG_URL") or (log.url if log is not None else ""),
            "FLOWER_URL": f"http://{shown}:{self.config.ports['FLOWER_PORT']}",
        }

    def _environ(self, urls: Mapping[str, str]) -> dict[str, str]:
        """What Sluice's processes find in their environment, beyond the settings that the user gave."""
        return {
            **{name: urls[name] for name in ("DATABASE_URL", "REDIS_URL", "EVENT_LOG_URL")},
            "INGEST_HOST": self.config.host,
            "INGEST_PORT": str(self.config.ports["INGEST_PORT"]),
            "PYTHONUNBUFFERED": "1",
        }

    def _sluice(self, urls: Mapping[str, str]) -> list[Program]:
        """Sluice's own programs."""
        from pipeline.settings import Settings  # noqa: PLC0415 - the stack's other commands need no settings

        environ = self._environ(urls)
        settings = Settings.from_environ({**os.environ, **environ})
        unique = hashlib.sha256(str(self.home).encode()).hexdigest()[:6]
        python = sys.executable
        celery = [python, "-W", "ignore", "-m", "celery", "-A", "tasks.app"]
        worker = ["--without-gossip", "--without-mingle", "--loglevel", "info"]
        drains = settings.log_partitions + SPARE_DRAINS
        flower = [f"--address={self.config.host}", f"--port={self.config.ports['FLOWER_PORT']}"]
        programs = [
            Program(
                "control", [*celery, "worker", "-Q", "control", "-n", f"control-{unique}@%h", "-c", "2", *worker], 20
            ),
            Program(
                "batches",
                [*celery, "worker", "-Q", "batches", "-n", f"batches-{unique}@%h", "-c", str(drains), *worker],
                20,
                stop_signal="QUIT",  # at once: what a drain has not committed is drained again
            ),
            Program("beat", [*celery, "beat", "--scheduler", "celery.beat:Scheduler", "--pidfile=", "-l", "info"], 20),
            Program("flower", [*celery, "flower", *flower], 30),
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
        return [replace(program, environ={**environ, **program.environ}) for program in programs]

    def _migrate(self, urls: Mapping[str, str]) -> None:
        from pipeline.settings import Settings  # noqa: PLC0415
        from pipeline.sink.migrate import migrate  # noqa: PLC0415

        migrate(Settings.from_environ({**os.environ, **self._environ(urls)}))

    def _write_config(self, programs: list[Program]) -> None:
        lines = [
            "[supervisord]",
            f"pidfile={_escaped(self.pid_path)}",
            f"logfile={_escaped(self.logs / 'supervisor.log')}",
            f"childlogdir={_escaped(self.logs)}",
            f"directory={_escaped(ROOT)}",
            "logfile_maxbytes=5MB",
            "logfile_backups=1",
            f"minfds={_files()}",
            *(["user=root"] if os.geteuid() == 0 else []),
            "[unix_http_server]",
            f"file={_escaped(self.socket_path)}",
            "chmod=0700",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]
        for program in programs:
            environ = ",".join(f'{name}="{_escaped(value)}"' for name, value in program.environ.items())
            lines += [
                f"[program:{program.name}]",
                f"command={_escaped(_quoted(program.command))}",
                *([f"environment={environ}"] if environ else []),
                f"priority={program.priority}",
                f"stdout_logfile={_escaped(self.logs / f'{program.name}.log')}",
                "stdout_logfile_maxbytes=10MB",
                "stdout_logfile_backups=2",
                "redirect_stderr=true",
                "autostart=false",
                "autorestart=true",
                "startsecs=1",
                "startretries=1000000",  # what fails is tried for ever, ever more rarely
                f"stopsignal={program.stop_signal}",
                f"stopwaitsecs={program.stop_seconds}",
                "killasgroup=true",
            ]
        (self.home / "supervisord.conf").write_text("\n".join(lines) + "\n")

    # --- readiness ------------------------------------------------------------------------------------------

    def _wait_for_sluice(self, urls: Mapping[str, str], started: float) -> None:
        """Until events are taken, the control loop has ticked since the start, and every program runs."""
        self._wait(lambda: _status(urls["INGEST_URL"] + "/readyz") == 200, "ingest-0")
        self._wait(lambda: _has_ticked(_health(urls["INGEST_URL"]), since=started), "control")
        self._wait(lambda: _status(urls["FLOWER_URL"] + "/healthcheck") == 200, "flower")
        for info in self.programs_now():
            self._wait(lambda name=info["name"]: self._runs(name), str(info["name"]))

    def _runs(self, name: str) -> bool:
        return bool(self.supervisor().getProcessInfo(name)["statename"] == "RUNNING")

    def _answers(self) -> bool:
        try:
            self.programs_now()
        except (OSError, Fault):
            return False
        return True

    def _wait(self, condition: Any, name: str) -> None:
        """Wait until a program is ready. Raises ServerError with the end of its log."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not condition():
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{name} is not ready after {READY_SECONDS_MAX:.0f} s; its log ends:\n{self.tail(name)}"
                )
            if self._interrupted.is_set():
                raise ServerError("interrupted while starting; everything is stopped again")
            if self.supervisor_pid() is None and name != "the supervisor":
                raise ServerError("the supervisor has ended: somebody stopped the system while it started")
            time.sleep(0.05)

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a program's log."""
        path = self.logs / f"{name}.log"
        if not path.exists():
            return "(no log)"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])

    # --- stopping ---------------------------------------------------------------------------------------------

    def stop(self) -> bool:
        """Stop everything, in order, and wait for its end; False where nothing ran."""
        pid = self.supervisor_pid()
        if pid is None:
            return False
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while self.supervisor_pid() is not None:
            if time.monotonic() > deadline:
                raise ServerError(f"the supervisor (process {pid}) does not end within {STOP_SECONDS_MAX:.0f} s")
            time.sleep(0.05)
        return True

    def clean(self) -> None:
        """Delete the data. Raises ServerError while the system runs."""
        if self.supervisor_pid() is not None:
            raise ServerError(f"a system runs in {self.home}: ./run.sh stop comes first")
        if self.home.exists():
            shutil.rmtree(self.home)


def _server_program(server: Server) -> Program:
    name = "INT" if server.stop_signal == signal.SIGINT else "TERM"
    return Program(server.name, server.command, 10, server.environ, name, 30)


def _files() -> int:
    """How many files a process may open: what we want, or what this user may have at most."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)


def _escaped(text: object) -> str:
    """A value of supervisor's configuration, in which % is special."""
    return str(text).replace("%", "%%")


def _quoted(command: list[str]) -> str:
    """A command line for supervisor, which splits it as a shell would."""
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in command)


def _has_ticked(health: Mapping[str, Any], *, since: float) -> bool:
    """Whether the control loop has ticked after a time (monotonic): what Redis remembers of an earlier run is older."""
    age_seconds = health.get("controllerAgeSeconds")
    return age_seconds is not None and age_seconds < time.monotonic() - since and health["consumption"] != "unknown"


def _status(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _health(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{url}/api/logs/health", timeout=2) as answer:
            document: dict[str, Any] = json.loads(answer.read())
            return document
    except (OSError, ValueError):
        return {}
