"""The system on which a runbook is acted out, and the transcript."""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil
import redis
from prometheus_client.parser import text_string_to_metric_families

from checks.testbed.clocks import SteppableClock, fake_time_library
from stack.servers import ROOT, freeze_family, thaw_family
from stack.system import System

# These only end a wait that would last forever: on a busy machine, a command may take minutes.
SECONDS_MAX: Final = 600.0  # for a condition to be seen, or to end
RUN_SECONDS_MAX: Final = 300.0  # of one command
_NOT_RUN: Final = (126, 127)  # a shell's status for a command that is missing or can't be run
_BROKEN_COMMAND: Final = re.compile(
    r"^(Traceback \(most recent|psql:.* error|ERROR:  |Error: No such command)", re.MULTILINE
)
_Part = TypeVar("_Part")
_EVENT: Final = {"severity": "INFO", "message": "acted out", "source": "runbooks", "timestamp": 1764200000000}


class NotActedOutError(Exception):
    """The condition was not seen, or did not end."""


class Act:
    """The actions of a scenario on the system. Each command and its output go into the transcript."""

    def __init__(self, system: System, urls: dict[str, str], parts: Sequence[object] = (), **environ: str) -> None:
        """`parts` run beside the system's own programs; `environ` has more variables of the operator's shell."""
        self.urls = urls
        self._parts = parts
        self.lines: list[str] = []
        self._system = system
        self._sent = 0
        # A shell as docs/runbooks/README.md prepares it.
        path = f"{ROOT / '.venv' / 'bin'}:{environ.pop('PATH', os.environ['PATH'])}"
        self._environ = {
            **os.environ,
            **urls,
            "PATH": path,
            "NO_COLOR": "1",
            "PYTHONWARNINGS": "ignore",
            "COLUMNS": "120",
            **environ,
        }

    # --- Actions of an operator -----------------------------------------------------------------------------------

    def run(self, command: str, *, may_fail: bool = False) -> str:
        """Run a command of the runbook, and keep it with its output. `may_fail`: its output may be an error."""
        try:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=ROOT,
                env=self._environ,
                capture_output=True,
                text=True,
                check=False,
                timeout=RUN_SECONDS_MAX,
            )
        except subprocess.TimeoutExpired:
            raise NotActedOutError(f"not ended within {RUN_SECONDS_MAX:g} s: {command}") from None
        said = (done.stdout + done.stderr).strip()
        self.lines += [f"$ {command}", *said.splitlines(), ""]
        if done.returncode in _NOT_RUN or (_BROKEN_COMMAND.search(said) and not may_fail):
            raise NotActedOutError(f"a command of the page does not work (exit status {done.returncode}): {command}")
        return said

    def run_until(self, command: str, is_right: Callable[[str], bool], what: str) -> str:
        """Run a command until its output is right, and keep only the last run."""
        before = len(self.lines)

        def is_seen() -> bool:
            del self.lines[before:]
            return is_right(self.run(command))

        self._until(is_seen, what)
        return "\n".join(self.lines[before + 1 :]).strip()

    def note(self, words: str) -> None:
        """Write an action without a command into the transcript."""
        self.lines += [f"# {words}", ""]

    # --- Causes of a condition ------------------------------------------------------------------------------------

    def send(self, count: int, *, bodies: int = 1, key: str = "order-1", **fields: Any) -> list[int]:
        """Send bodies of `count` events; returns their statuses."""
        return [self._send([{**_EVENT, "correlationId": key, **fields}] * count) for _ in range(bodies)]

    def _send(self, events: Sequence[dict[str, Any]]) -> int:
        request = urllib.request.Request(
            f"{self.urls['INGEST_URL']}/api/logs",
            data=json.dumps(events).encode(),
            headers={"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def sql(self, *statements: str, database: str = "sluice") -> None:
        """Run SQL, each statement by itself."""
        url = self.urls["DATABASE_URL"].rpartition("/")[0] + f"/{database}"
        for statement in statements:
            command = ["psql", url, "-q", "-c", statement]
            done = subprocess.run(command, env=self._environ, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotActedOutError(f"{statement}: {done.stderr.strip()}")

    def redis(self, name: str) -> redis.Redis:
        """A client of the server in a URL of the system."""
        return redis.Redis.from_url(self.urls[name])

    def freeze(self, program: str) -> None:
        """Stop a program and its children as SIGSTOP does: the program exists, but answers nothing."""
        freeze_family(self._main_process(program))

    def thaw(self, program: str) -> None:
        """Let a frozen program continue."""
        thaw_family(self._main_process(program))

    def _main_process(self, program: str) -> psutil.Process:
        return psutil.Process(next(int(info["pid"]) for info in self._system.programs_now() if info["name"] == program))

    def stop(self, program: str) -> None:
        """Stop a program; its supervisor does not start it again."""
        self._system.supervisor().stopProcess(program, True)

    def start(self, program: str) -> None:
        """Start a program that was stopped."""
        self._system.supervisor().startProcess(program, True)

    @property
    def home(self) -> Path:
        """The folder of the system."""
        return self._system.home

    def port(self, name: str) -> int:
        """A port of the system, by its setting."""
        return self._system.config.ports[name]

    def part(self, kind: type[_Part]) -> _Part:
        """The system's part of this kind, beside its own programs."""
        return next(one for one in self._parts if isinstance(one, kind))

    @contextlib.contextmanager
    def program(self, name: str, *words: str, environ: Mapping[str, str] | None = None) -> Iterator[None]:
        """Another program beside the system, with a log of its own, until the block ends."""
        with (self._system.logs / f"{name}.log").open("a") as output:
            program = subprocess.Popen(
                words, cwd=ROOT, env={**self._environ, **(environ or {})}, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield
        finally:
            program.terminate()
            program.wait(SECONDS_MAX)

    @contextlib.contextmanager
    def worker(self, name: str, queue: str, app: str = "tasks.app", **environ: str) -> Iterator[None]:
        """Another worker, with settings that differ from the system's, until the block ends."""
        words = ["celery", "-A", app, "worker", "-Q", queue, "-n", f"{name}@%h", "-c", "1"]
        with self.program(name, *words, "--without-gossip", "--without-mingle", environ=environ):
            yield

    def clock(self, name: str, seconds: float) -> SteppableClock:
        """A wrong clock, for a worker."""
        if fake_time_library() is None:
            raise NotActedOutError("there is no libfaketime on this machine (Debian: libfaketime)")
        return SteppableClock(self._system.home, name, seconds=seconds)

    def snapshot_of_log(self) -> Callable[[], None]:
        """Copy the files of the log's Redis; the returned function starts the server on that copy."""
        files = self._system.home / "redis-log" / "appendonlydir"
        copy = self._system.home / "appendonlydir-older"
        shutil.copytree(files, copy)

        def go_back() -> None:
            self.stop("redis-log")
            shutil.rmtree(files)
            copy.rename(files)
            self.start("redis-log")

        return go_back

    # --- Observations ---------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """`python -m pipeline status --json`."""
        command = ["python", "-m", "pipeline", "status", "--json"]
        done = subprocess.run(command, cwd=ROOT, env=self._environ, capture_output=True, text=True, check=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def metric(self, name: str, **labels: str) -> float:
        """A metric of the whole system, from the control worker; NaN if it is absent."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.port('CONTROL_METRICS_PORT')}/metrics", timeout=20
        ) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        values = [
            one.value for family in families for one in family.samples if (one.name, one.labels) == (name, labels)
        ]
        return max(values, default=math.nan)

    def health(self) -> dict[str, Any]:
        """`GET /api/logs/health`."""
        with urllib.request.urlopen(f"{self.urls['INGEST_URL']}/api/logs/health", timeout=20) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def see(self, code: str, words: str = "") -> None:
        """Wait until status has a reason, and keep the lines of that reason."""
        began = time.monotonic()

        def is_seen() -> bool:
            return any(one["code"] == code and words in one["what"] for one in self.status()["reasons"])

        self._until(is_seen, f"the reason {code} {words}".strip())
        self.note(f"status shows {code} within {time.monotonic() - began:.0f} s")
        shown = subprocess.run(
            ["python", "-m", "pipeline", "status"],
            cwd=ROOT,
            env=self._environ,
            capture_output=True,
            text=True,
            check=False,
        )
        head = re.match(r"\w+ at .*\n(?:(?:! |    ).*\n)*", shown.stdout)
        self.lines += ["$ python -m pipeline status", *(head[0].splitlines() if head else []), "…", ""]

    def see_end(self, *codes: str) -> None:
        """Wait until status has none of these reasons."""
        began = time.monotonic()
        self._until(
            lambda: not {one["code"] for one in self.status()["reasons"]} & set(codes), f"the end of {', '.join(codes)}"
        )
        self.note(f"status shows no {', '.join(codes)} any more after {time.monotonic() - began:.0f} s")

    def await_scrapes(self) -> None:
        """Wait until Prometheus has scraped each of its targets: it sees no increase before its first scrape."""
        url = self.urls.get("PROMETHEUS_URL", "")
        if url:
            self._until(lambda: _are_scraped(url), "Prometheus' first scrape of each target")

    def see_alert(self, name: str, url: str = "") -> None:
        """Wait until Prometheus has an alert: firing, or pending while its condition has not held for long enough."""
        url = url or self.urls.get("PROMETHEUS_URL", "")
        if not url:
            self.note(f"the alert {name} was not looked for: there is no prometheus on the PATH")
            return
        self._until(lambda: _alert_state(url, name) is not None, f"the alert {name}")
        self.note(f"Prometheus has the alert {name} ({_alert_state(url, name)})")

    def see_alert_end(self, name: str, url: str = "") -> None:
        """Wait until Prometheus no longer has an alert. Not for alerts whose query looks minutes back."""
        url = url or self.urls.get("PROMETHEUS_URL", "")
        if url:
            self._until(lambda: _alert_state(url, name) is None, f"the end of the alert {name}")
            self.note(f"Prometheus has the alert {name} no more")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition that is no reason of health."""
        self._until(condition, what)
        self.note(what)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not condition():
            if time.monotonic() > deadline:
                raise NotActedOutError(f"not within {SECONDS_MAX:.0f} s: {what}")
            time.sleep(0.2)


def _are_scraped(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/api/v1/targets?state=active", timeout=20) as answer:
        targets = json.loads(answer.read())["data"]["activeTargets"]
    return bool(targets) and all(one["health"] != "unknown" for one in targets)


def _alert_state(url: str, name: str) -> str | None:
    """`pending` or `firing`; None if Prometheus has no such alert now."""
    with urllib.request.urlopen(f"{url}/api/v1/alerts", timeout=20) as answer:
        alerts = json.loads(answer.read())["data"]["alerts"]
    states = {one["state"] for one in alerts if one["labels"]["alertname"] == name}
    return max(states, default=None, key=lambda state: state == "firing")
