"""A normal load beside a flood: it must hardly notice. And the same beside bodies that are hard to read."""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.open_load import Answers, offer
from support.edge import request

ROOT = Path(__file__).resolve().parents[3]
P99_SECONDS_SURE = 0.05  # a p99 below it is good enough, whatever it was without the flood
P99_TIMES_MAX = 2.0
CUT_SECONDS_SPARE = 2.0  # beyond the time allowed, for a machine that is busy


@dataclass
class Siege:
    """The load's answers without and with the attack, and what became of the attack."""

    before: Answers
    during: Answers
    attack: dict[str, Any]

    def problems(self) -> list[str]:
        """What must not be: answers other than 202 and 429, and a p99 that suffers."""
        statuses = Counter(self.before.status) + Counter(self.during.status)
        wrong = {status: count for status, count in statuses.items() if status not in (202, 429)}
        found = [f"the load got {wrong}"] if wrong else []
        before, during = p99(self.before), p99(self.during)
        if during > max(P99_SECONDS_SURE, P99_TIMES_MAX * before):
            found.append(f"p99 {1000 * during:.1f} ms beside the attack, {1000 * before:.1f} ms without")
        return found

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"load without: {_told(self.before)}",
            f"load beside:  {_told(self.during)}",
            f"attack: {json.dumps(self.attack)}",
        ]


def p99(answers: Answers) -> float:
    """The 99th percentile of the time from when a request was due to its answer, seconds."""
    return statistics.quantiles(answers.seconds, n=100, method="inclusive")[98]


def _told(answers: Answers) -> str:
    middle = statistics.median(answers.seconds)
    return (
        f"{len(answers.seconds)} requests, p50 {1000 * middle:.2f} ms, p99 {1000 * p99(answers):.2f} ms, "
        f"worst {1000 * max(answers.seconds):.1f} ms, {dict(Counter(answers.status))}"
    )


def siege(
    port: int, attack: Callable[[], contextlib.AbstractContextManager[dict[str, Any]]], *, rate: float,
    before_seconds: float, seconds: float,
) -> Siege:  # fmt: skip
    """Load at a constant rate, first alone and then within `attack`, which gives what it has to tell at its end."""
    body = json.dumps(
        {"correlationId": "siege", "severity": "INFO", "message": "m" * 100, "source": "siege", "timestamp": 1}
    ).encode()
    requests = [request(body)]
    before = asyncio.run(offer("127.0.0.1", port, requests, [(before_seconds, rate)]))
    with attack() as told:
        during = asyncio.run(offer("127.0.0.1", port, requests, [(seconds, rate)]))
    return Siege(before, during, told)


@contextlib.contextmanager
def flooding(port: int, *, idle: int, trickling: int, seconds: float) -> Iterator[dict[str, Any]]:
    """A flood in a process of its own, ready when this begins; what became of it is there at the end."""
    command = [
        *(sys.executable, "-m", "support.hostile.flood", str(port), "--idle", str(idle), "--seconds", str(seconds)),
        *("--heads", str(trickling // 2), "--bodies", str(trickling - trickling // 2)),
    ]
    process = subprocess.Popen(command, cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True, env=environ())
    told: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n", f"the flood did not come: {line!r}"
        yield told
        out, _ = process.communicate(timeout=seconds + 60)
        told.update(json.loads(out))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def flood_problems(told: dict[str, Any], request_seconds_max: float) -> list[str]:
    """What must not be: a trickling connection that is not cut off, or is cut off otherwise than with 408."""
    most = request_seconds_max + CUT_SECONDS_SPARE
    found = []
    if set(told["answers"]) - {"408", "none"}:
        found.append(f"trickling connections got {told['answers']}")
    if not told["answers"].get("408"):
        found.append("no trickling connection got its 408")
    if (
        told["cut_seconds"]
        and not request_seconds_max - 0.5 <= told["cut_seconds"][0] <= told["cut_seconds"][1] <= most
    ):
        found.append(f"trickling connections were cut off after {told['cut_seconds']} s, not {request_seconds_max}")
    if told["oldest_seconds"] > most:
        found.append(f"a trickling connection lived for {told['oldest_seconds']:.1f} s")
    if told["refused"]:
        found.append(f"{told['refused']} connections were refused")
    return found


@contextlib.contextmanager
def sending(port: int, bodies: list[bytes], *, clients: int) -> Iterator[dict[str, Any]]:
    """Clients that send these bodies one after another, as fast as they are refused."""
    from support.edge import Wire

    stopping = threading.Event()
    told: dict[str, Any] = {"statuses": Counter()}
    failures: list[BaseException] = []

    def send() -> None:
        try:
            with Wire(port, seconds_max=30) as wire:
                while not stopping.is_set():
                    for body in bodies:
                        wire.send(request(body))
                        told["statuses"][wire.answer().status] += 1
        except (OSError, EOFError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=send, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        stopping.set()
        for thread in threads:
            thread.join(60)
    assert not failures, failures


def environ() -> dict[str, str]:
    """The environment in which programs of this package find each other."""
    import os

    return {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
