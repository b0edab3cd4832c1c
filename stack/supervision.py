"""The supervisor of one system: its configuration, its daemon, and its leftover processes if it was killed."""

import contextlib
import hashlib
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from xmlrpc.client import Fault, ServerProxy

import psutil
from supervisor.states import ProcessStates
from supervisor.xmlrpc import SupervisorTransport

from pipeline.running import supervisor_pid
from stack.servers import ROOT, ServerError, runs

STOP_SECONDS_MAX: Final = 90.0  # to stop everything in order; then processes are killed
_LEFT_SECONDS_MAX: Final = 10.0  # for the leftovers of a killed supervisor to end themselves, in each of three steps
_FILES: Final = 8192  # open files of a process: ingest accepts 2,000 connections, and the usual limit is 1,024
_SOCKET_CHARS_MAX: Final = 100  # of a unix socket's path, which the kernel limits to 107
_SERVERS: Final = frozenset({"postgres", "redis-server", "java"})  # names of processes
_SERVER_PROGRAMS: Final = frozenset({"postgres", "redis-control", "redis-log", "kafka"})
_STEPS: Final = 3  # of a stop
_STOPPING_STATES: Final = frozenset({ProcessStates.STARTING, ProcessStates.RUNNING, ProcessStates.STOPPING})


@dataclass(frozen=True)
class Program:
    """One supervised process. If the supervisor itself stops everything, lower priorities stop last."""

    name: str
    command: list[str]
    priority: int
    environ: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"
    stop_seconds: int = 15


class Supervisor:
    """A supervisord with its files in the system's folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.logs = home / "logs"
        self.pid_path = home / "supervisor.pid"
        self.config_path = home / "supervisord.conf"
        self.socket_path = home / "supervisor.sock"
        if len(str(self.socket_path)) > _SOCKET_CHARS_MAX:
            digest = hashlib.sha256(str(home).encode()).hexdigest()[:12]
            self.socket_path = Path(tempfile.gettempdir()) / f"sluice-{os.getuid()}-{digest}.sock"

    def rpc(self) -> Any:
        """The supervisor's XML-RPC interface."""
        transport = SupervisorTransport(None, None, f"unix://{self.socket_path}")
        return ServerProxy("http://localhost", transport=transport).supervisor

    def pid(self) -> int | None:
        """The running supervisor's process id; None if none runs."""
        return supervisor_pid(self.home)

    def programs(self) -> list[dict[str, Any]]:
        """The supervisor's view of every program. Raises OSError if no supervisor runs."""
        found: list[dict[str, Any]] = self.rpc().getAllProcessInfo()
        return found

    def answers(self) -> bool:
        """Whether the supervisor accepts commands."""
        try:
            self.programs()
        except (OSError, Fault):
            return False
        return True

    def start(self, programs: Iterable[Program], environ: Mapping[str, str]) -> None:
        """Start the daemon, which starts no program yet. Raises ServerError.

        Every program inherits `environ`: URLs may have passwords, and the configuration is a file.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(self._configuration(programs))
        said = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(self.config_path)],
            cwd=ROOT,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode != 0:
            raise ServerError(f"the supervisor does not start: {(said.stderr or said.stdout).strip()}")

    def stop(self) -> bool:
        """Stop everything in order and wait for the end; kill what takes too long. False if nothing ran."""
        pid = self.pid()
        if pid is None:
            return self.end_remains()
        deadline = time.monotonic() + STOP_SECONDS_MAX
        with contextlib.suppress(OSError, Fault):
            self._stop_programs(deadline)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)  # also stops programs that still run
        while self.pid() is not None:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.05)
        self.end_remains()  # children of a killed worker, which the supervisor no longer manages
        return True

    def _stop_programs(self, deadline: float) -> None:
        """Stop ingest, then the other programs, then the servers; all programs of a step together.

        The supervisor itself stops them one by one, and takes up to a second longer for each.
        """
        for step in range(_STEPS):
            names = [info["name"] for info in self.programs() if _stop_step(info["name"]) == step]
            for name in names:
                with contextlib.suppress(Fault):  # does not run
                    self.rpc().stopProcess(name, False)
            while any(info["name"] in names and info["state"] in _STOPPING_STATES for info in self.programs()):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.05)

    def remains(self) -> list[psutil.Process]:
        """Processes of this system without a supervisor: the supervisor, or their own parent, was killed.

        Its programs have the supervisor's address in their environment. PostgreSQL and Redis overwrite theirs, and work
        in their data folders. A deeper folder can belong to another system.
        """
        folders = {self.home.resolve() / name for name in _SERVER_PROGRAMS}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_ours = process.environ().get("SUPERVISOR_SERVER_URL") == f"unix://{self.socket_path}"
                if is_ours or (process.name() in _SERVERS and Path(process.cwd()) in folders):
                    found.append(process)
        return found

    def end_remains(self) -> bool:
        """End the processes without a supervisor: ingest first, servers last. False if there were none."""
        steps: list[list[psutil.Process]] = [[] for _ in range(_STEPS)]
        for process in self.remains():
            with contextlib.suppress(psutil.Error):
                is_server = process.name() in _SERVERS
                name = process.environ().get("SUPERVISOR_PROCESS_NAME", "")
                steps[_STEPS - 1 if is_server else _stop_step(name)].append(process)
        for left in steps:
            _end(left)
        return any(steps)

    def _configuration(self, programs: Iterable[Program]) -> str:
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
                f"command={_escaped(shlex.join(program.command))}",
                *([f"environment={environ}"] if environ else []),
                f"priority={program.priority}",
                f"stdout_logfile={_escaped(self.logs / f'{program.name}.log')}",
                "stdout_logfile_maxbytes=10MB",
                "stdout_logfile_backups=2",
                "redirect_stderr=true",
                "autostart=false",
                "autorestart=true",
                "startsecs=1",
                "startretries=1000000",  # a failing program is restarted forever, with growing waits
                f"stopsignal={program.stop_signal}",
                f"stopwaitsecs={program.stop_seconds}",
                "killasgroup=true",
            ]
        return "\n".join(lines) + "\n"


def _stop_step(name: str) -> int:
    """The step in which a program is stopped: 0 first."""
    if name.startswith("ingest"):
        return 0
    return 2 if name in _SERVER_PROGRAMS else 1


def _end(processes: list[psutil.Process]) -> None:
    """Terminate processes, and kill those that do not end."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.name() != "postgres":
                process.terminate()
            elif process.ppid() not in {other.pid for other in processes}:
                process.send_signal(signal.SIGINT)  # the postmaster's fast shutdown; it ends its children
    alive = _left_of(processes)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _left_of(alive)


def _left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Wait for the end of processes; returns those that still run after _LEFT_SECONDS_MAX."""
    deadline = time.monotonic() + _LEFT_SECONDS_MAX
    while (left := [process for process in processes if runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _files() -> int:
    """The number of files that a process may open: the wanted number, or this user's maximum."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)


def _escaped(text: object) -> str:
    """A value in supervisor's configuration, in which % is special."""
    return str(text).replace("%", "%%")
