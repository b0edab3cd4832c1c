"""Runs one client in the three situations, and counts its rows in PostgreSQL afterwards."""

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from checks.clients.catalog import Client
from checks.clients.judge import Outcome, Situation
from checks.clients.sluice import NotReadyError, Sluice, message, wait_for
from checks.loadgen.proxy import Proxy

_LIMIT_SECONDS: Final = 5.0  # the limit lasts so long after the first refusal
_BEFORE: Final = 0.2  # share of messages stored before a cut connection or a restart of ingest
_QUIET_SECONDS_MAX: Final = 20.0  # without a new row: then a shipper has given up the missing messages
_END_SECONDS_MAX: Final = 120.0  # for the client to send everything
_STOP_SECONDS_MAX: Final = 15.0
_TICK_SECONDS: Final = 0.05  # between two writes to the file that a shipper reads
_SUCCESS: Final = b"HTTP/1.1 20"  # the beginning of an answer that a cut connection loses


@dataclass(frozen=True)
class Plan:
    """The number of messages that a client sends in each situation, and their rate per second."""

    messages: int
    per_second: float


class Sender:
    """A client that sends the messages of one run, as a process of its own."""

    def __init__(self, client: Client, kit: Path, work: Path, port: int, plan: Plan) -> None:
        self.run = f"r{uuid.uuid4().hex[:10]}"
        self._client = client
        self._plan = plan
        self._input = work / "input.log"
        self.log_path = work / "client.log"
        work.mkdir(parents=True)
        filled = {"{kit}": str(kit), "{work}": str(work), "{port}": str(port)}
        if (kit / "classpath").exists():
            filled["{classpath}"] = (kit / "classpath").read_text().strip()
        if client.config:
            marks = {f"@{name[1:-1].upper()}@": text for name, text in filled.items()}  # braces are syntax there
            (work / client.config).write_text(_fill((kit / client.config).read_text(), marks))
            self._input.touch()
        self._command = [_fill(word, filled) for word in client.command]
        self._environ = {name: _fill(text, filled) for name, text in client.environ.items()} | {
            "SLUICE_URL": f"http://127.0.0.1:{port}",
            "SLUICE_PORT": str(port),
            "RUN": self.run,
            "MESSAGES": str(plan.messages),
            "PER_SECOND": str(plan.per_second),
        }
        self._kit = kit
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the client, and the writer of its input."""
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._kit, env={**os.environ, **self._environ}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        if self._client.config:
            self._writer.start()

    def wait(self, stored: Callable[[], int]) -> list[str]:
        """Wait until the client has sent everything, or has given up. Returns the problems."""
        assert self._process is not None
        if not self._client.config:
            try:
                status = self._process.wait(_END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                return [f"the client did not end within {_END_SECONDS_MAX:.0f} s"]
            return [f"the client ended with status {status}: {self._said()}"] if status else []
        self._writer.join()
        deadline = time.monotonic() + _END_SECONDS_MAX
        count, changed = 0, time.monotonic()
        while count < self._plan.messages and time.monotonic() - changed < _QUIET_SECONDS_MAX:
            if self._process.poll() is not None:
                return [f"the shipper ended with status {self._process.returncode}: {self._said()}"]
            if time.monotonic() > deadline:
                return [f"the shipper still sends after {_END_SECONDS_MAX:.0f} s"]
            if (now := stored()) != count:
                count, changed = now, time.monotonic()
            time.sleep(0.3)
        return []

    def has_failed(self) -> bool:
        """Whether it has ended with an error: then there is nothing to wait for."""
        return self._process is not None and self._process.poll() not in (None, 0)

    def stop(self) -> None:
        """End the client and all its children."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS_MAX)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_STOP_SECONDS_MAX)

    def _write(self) -> None:
        """Write the messages at their rate, like a program whose file a shipper reads."""
        began = time.monotonic()
        written = 0
        with self._input.open("a") as file:
            while written < self._plan.messages:
                due = min(self._plan.messages, int((time.monotonic() - began) * self._plan.per_second) + 1)
                file.writelines(f"{message(self.run, number)}\n" for number in range(written, due))
                file.flush()
                written = due
                time.sleep(_TICK_SECONDS)

    def _said(self) -> str:
        return " ".join(self.log_path.read_text(errors="replace").split())[-300:]


def try_client(client: Client, kit: Path, sluice: Sluice, folder: Path, plan: Plan) -> dict[Situation, Outcome]:
    """The outcome of a client in each situation."""
    return {
        situation: _one(client, kit, sluice, folder / client.name / situation.name.lower(), plan, situation)
        for situation in Situation
    }


def _one(client: Client, kit: Path, sluice: Sluice, work: Path, plan: Plan, situation: Situation) -> Outcome:
    letters = sluice.dead_letters()
    problems: list[str] = []
    with contextlib.ExitStack() as stack:
        port = sluice.port
        if situation is Situation.CUT:
            proxy = Proxy(sluice.port).start()
            stack.callback(proxy.stop)
            port = proxy.port
        sender = Sender(client, kit, work, port, plan)
        stack.callback(sender.stop)

        def stored() -> int:
            return len(sluice.rows(sender.run))

        try:
            match situation:
                case Situation.LIMIT:
                    _limit(client, sluice, sender)
                case Situation.CUT:
                    _cut(client, proxy, sender, stored, plan)
                case Situation.RESTART:
                    _restart(sluice, sender, stored, plan)
        except NotReadyError as error:
            problems.append(str(error))
        problems += sender.wait(stored)
    sluice.wait_until_stored()
    if (more := sluice.dead_letters() - letters) > 0:
        problems.append(f"{more} events became dead letters")
    return Outcome(plan.messages, sluice.rows(sender.run), problems)


def _limit(client: Client, sluice: Sluice, sender: Sender) -> None:
    """Start the client while the rate is limited, and end the limit some time after the first refusal."""
    refused = sluice.refused(client.protocol)
    with sluice.limited(client.limit):
        sender.start()
        wait_for(lambda: sender.has_failed() or sluice.refused(client.protocol) > refused, "a request is refused")
        time.sleep(_LIMIT_SECONDS)


def _cut(client: Client, proxy: Proxy, sender: Sender, stored: Callable[[], int], plan: Plan) -> None:
    """Reset the connection once, instead of forwarding an answer of success."""
    sender.start()
    _wait_for_some(sender, stored, plan)
    proxy.swallow(client.path.encode(), _SUCCESS, times=1)
    wait_for(lambda: sender.has_failed() or proxy.counts.swallowed == 1, "a connection is cut")


def _restart(sluice: Sluice, sender: Sender, stored: Callable[[], int], plan: Plan) -> None:
    """Restart ingest while the client sends."""
    sender.start()
    _wait_for_some(sender, stored, plan)
    if stored() == plan.messages:
        raise NotReadyError("everything was stored before ingest was restarted")
    sluice.restart_ingest()


def _wait_for_some(sender: Sender, stored: Callable[[], int], plan: Plan) -> None:
    enough = plan.messages * _BEFORE
    wait_for(lambda: sender.has_failed() or stored() >= enough, f"{_BEFORE:.0%} of the messages are stored")


def _fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text
