"""A server as a process of this machine: its start and end, and tests that freeze or kill it."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from stack.servers.errors import ServerError
from stack.servers.family import family_of, freeze_family, kill_family, thaw_family, wait_ended
from stack.servers.ports import LOOPBACK


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

    def start(self, *, seconds_max: float = 240.0) -> "Server":
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
        main = self._main()
        return [] if main is None else family_of(main)

    def _main(self) -> psutil.Process | None:
        try:
            return None if self.process is None else psutil.Process(self.process.pid)
        except psutil.NoSuchProcess:
            return None

    def freeze(self) -> None:
        """SIGSTOP to the main process and all its children: the server does not respond, its sockets stay open.

        Returns when none of their threads runs any more. Raises ServerError where one does not stop; then all continue.
        """
        if (main := self._main()) is not None:
            freeze_family(main)

    def thaw(self) -> None:
        """SIGCONT to all processes that `freeze` stopped."""
        if (main := self._main()) is not None:
            thaw_family(main)

    def ensure_running(self) -> None:
        """Let a frozen server continue, and start one that was killed or has ended. Raises ServerError."""
        self.thaw()
        if self.process is None or self.process.poll() is not None:
            self.start()

    def kill(self) -> None:
        """SIGKILL to the main process and all its children. Returns when all have ended."""
        main = self._main()
        members = [] if main is None else kill_family(main)
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


def _tail(path: Path, lines: int = 8) -> str:
    with contextlib.suppress(OSError):
        return " | ".join(path.read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"
