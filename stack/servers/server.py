"""A server as a process of this machine: its start and end, and tests that freeze or kill it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from pipeline.secrets import hide_secrets
from pipeline.text import on_its_lines
from stack.servers.ports import LOOPBACK

_STOPPED: Final = frozenset("TtZX")  # states of a thread in /proc: stopped, traced, or at its end


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
        while runs(member):
            if time.monotonic() > deadline:
                raise ServerError(f"process {member.pid} has not ended within {seconds_max:g} s of SIGKILL")
            time.sleep(0.001)


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended. A zombie has: not every init reaps those that it inherits."""
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


def _tail(path: Path, lines: int = 8) -> str:
    with contextlib.suppress(OSError):
        return " | ".join(path.read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"
