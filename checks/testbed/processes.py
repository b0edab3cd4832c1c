"""Sluice's own processes, on servers that the caller chooses."""

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from checks.testbed.waiting import WAIT_SECONDS_MAX, wait_until
from pipeline.settings import Settings
from pipeline.sink.sessions import batch_processes
from stack.config import environ_with
from stack.servers import freeze_family, kill_family, thaw_family, wait_ended

ROOT = Path(__file__).resolve().parent.parent.parent


class Program:
    """One process of Sluice, with its log in a file. A test can kill, freeze and restart it."""

    def __init__(
        self, name: str, arguments: list[str], settings: Settings, folder: Path, *, under: tuple[str, ...] = ()
    ) -> None:
        """`under`: the command that runs it, as `prlimit` does."""
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.environ: dict[str, str] = {}  # added to the environment of each start
        self.root = ROOT  # the checkout whose code it runs
        self._command = [*under, sys.executable, "-m", *arguments]
        self._environ = {**environ_with(settings), "PYTHONWARNINGS": "default"}
        self._process: subprocess.Popen[bytes] | None = None
        self._is_wanted = False
        self._changing = threading.RLock()  # held by the thread that starts or ends it: a test's or the supervisor's

    def start(self, **environ: str) -> "Program":
        """Start, with these variables added to the environment of this start only."""
        with self._changing, self.log_path.open("ab") as log:
            self._is_wanted = True
            self._process = subprocess.Popen(
                self._command,
                cwd=self.root,
                env=self._environ | self.environ | environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """The exit status of a program that ended by itself, or the negative number of the signal that killed it.

        None while it runs, and after `kill` and `stop`.
        """
        return None if self._process is None else self._process.poll()

    def start_where_ended(self) -> None:
        """Start it again if it ended without a call of `kill` or `stop`."""
        with self._changing:
            if self._is_wanted and not self.is_running:
                self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.pid).children(recursive=True))

    def freeze(self) -> list[psutil.Process]:
        """Stop the process and its children; returns them when none of their threads runs any more."""
        return freeze_family(psutil.Process(self.pid))

    def thaw(self) -> None:
        thaw_family(psutil.Process(self.pid))

    def ensure_running(self) -> None:
        """Let a frozen program continue, and start one that was killed, stopped, or has ended."""
        with self._changing:
            if self.is_running:
                self.thaw()
            else:
                self.start()

    def kill(self) -> None:
        """Send SIGKILL to the main process alone, as the kernel would: its children must notice that themselves."""
        with self._changing:
            self._is_wanted = False
            assert self._process is not None, f"{self.name} is not running"
            self._process.kill()  # nothing where it has just ended by itself
            self._process.wait(WAIT_SECONDS_MAX)
            self._process = None

    def stop(self, *, seconds_max: float = WAIT_SECONDS_MAX) -> int | None:
        """Send SIGTERM and wait; kill all its processes if that takes too long. Returns the exit status."""
        with self._changing:
            return self._stop(seconds_max)

    def _stop(self, seconds_max: float) -> int | None:
        self._is_wanted = False
        if self._process is None:
            return None
        family = [psutil.Process(self.pid), *self.children()] if self._process.poll() is None else []
        self._process.terminate()
        try:
            status = self._process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            status = None
            family += kill_family(psutil.Process(self.pid))
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends by itself
                one.kill()
        self._process.wait(WAIT_SECONDS_MAX)
        wait_ended(family)
        self._process = None
        return status

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


def _worker(queue: str, concurrency: int, app: str = "tasks.app") -> list[str]:
    name = f"{queue}-{os.urandom(3).hex()}@{socket.gethostname()}"
    return [
        *("celery", "-A", app, "worker", "-Q", queue, "-n", name, "--concurrency", str(concurrency)),
        *("--without-gossip", "--without-mingle", "--loglevel", "info"),
    ]


def batches_worker(settings: Settings, folder: Path, *, app: str = "tasks.app") -> Program:
    """The worker that drains the log, with as many processes as its drains need."""
    return Program("batches", _worker("batches", batch_processes(settings), app), settings, folder)


def control_worker(settings: Settings, folder: Path, *, app: str = "tasks.app") -> Program:
    """The worker that regulates the rate."""
    return Program("control", _worker("control", 2, app), settings, folder)


def beat(settings: Settings, folder: Path) -> Program:
    """Celery Beat, with its files in the folder."""
    arguments = ["celery", "-A", "tasks.app", "beat", "--loglevel", "info"]
    return Program("beat", [*arguments, f"--pidfile={folder / 'beat.pid'}"], settings, folder)


def ingest(settings: Settings, folder: Path, name: str = "ingest") -> Program:
    """One ingest process."""
    return Program(name, ["ingest"], settings, folder)


def http_status(url: str) -> int | None:
    """The status of a GET, None without an answer."""
    try:
        with urllib.request.urlopen(url, timeout=WAIT_SECONDS_MAX) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@contextlib.contextmanager
def supervised(*programs: Program) -> Iterator[None]:
    """Restart programs that end by themselves, as a supervisor does: Celery 5.7 may end if it loses its broker."""
    stopping = threading.Event()

    def keep() -> None:
        while not stopping.wait(0.3):
            for program in programs:
                program.start_where_ended()

    thread = threading.Thread(target=keep, name="supervisor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(WAIT_SECONDS_MAX)


class System:
    """The whole of Sluice on given servers: ingest, both workers and Beat."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.url = f"http://{settings.ingest_host}:{settings.ingest_port}"
        self.ingest = ingest(settings, folder)
        self.batches = batches_worker(settings, folder)
        self.control = control_worker(settings, folder)
        self.beat = beat(settings, folder)
        self._stack = contextlib.ExitStack()

    @property
    def programs(self) -> list[Program]:
        return [self.ingest, self.batches, self.control, self.beat]

    def start(self) -> "System":
        """Start, and wait until it is at work. Nothing runs on where that fails."""
        try:
            for program in self.programs:
                program.start()
            self._stack.enter_context(supervised(self.batches, self.control, self.beat))
            self.wait(lambda: http_status(f"{self.url}/readyz") == 200, "ingest is ready")
            self.wait(lambda: self.health()["consumption"] == "running", "consumption runs")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        self._stack.close()
        for program in self.programs:
            program.stop()

    def health(self) -> dict[str, Any]:
        """The health document."""
        document: dict[str, Any] = json.loads(self.get("/api/logs/health"))
        return document

    def get(self, path: str) -> str:
        """What operators read at this path of ingest. Raises HTTPError."""
        request = urllib.request.Request(f"{self.url}{path}")
        if self.settings.operator_password:
            login = base64.b64encode(f"test:{self.settings.operator_password}".encode()).decode()
            request.add_header("Authorization", f"Basic {login}")
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
            return str(answer.read().decode())

    def wait(self, condition: Callable[[], bool], what: str, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        """Wait for a condition; if it does not come, the error has the ends of the logs."""
        try:
            wait_until(condition, what, seconds_max=seconds_max)
        except AssertionError as error:
            logs = "\n".join(f"--- {one.name}\n{one.log()[-1500:]}" for one in self.programs)
            raise AssertionError(f"{error}\n{logs}") from None
