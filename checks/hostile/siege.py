"""Measures a normal load during an attack (a flood, or slow bodies): its latency must not rise much."""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checks.loadgen.open_load import Responses, offer
from checks.testbed.wire import request

ROOT = Path(__file__).resolve().parents[2]
P99_SECONDS_SURE = 0.05  # a p99 below it is always good enough, even if it was lower without the flood
P99_TIMES_MAX = 2.0
OF_OTHERS = {"200", "202", "204", "400", "413", "429", "503"}  # 503: too many large bodies wait
CUT_SECONDS_SPARE = 2.0  # beyond the allowed time, for a busy machine


@dataclass
class Siege:
    """The load's responses without and with the attack, and the result of the attack."""

    before: Responses
    during: Responses
    attack: dict[str, Any]

    def problems(self, *, p99_seconds_sure: float = P99_SECONDS_SURE) -> list[str]:
        """The problems: responses other than 202 and 429, and a p99 that rises too much."""
        statuses = Counter(self.before.status) + Counter(self.during.status)
        wrong = {status: count for status, count in statuses.items() if status not in (202, 429)}
        found = [f"the load got {wrong}"] if wrong else []
        before, during = p99(self.before), p99(self.during)
        if during > max(p99_seconds_sure, P99_TIMES_MAX * before):
            found.append(f"p99 {1000 * during:.1f} ms beside the attack, {1000 * before:.1f} ms without")
        return found

    def add(self, other: "Siege") -> None:
        """Add another round of the same attack."""
        for mine, its in ((self.before, other.before), (self.during, other.during)):
            mine.seconds += its.seconds
            mine.status += its.status
        self.attack = _added(self.attack, other.attack)

    def figures(self) -> dict[str, Any]:
        """For programs; times in milliseconds."""
        return {
            "load without": _figures(self.before),
            "load beside": _figures(self.during),
            "attack": self.attack,
        }

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"load without: {_told(self.before)}",
            f"load beside:  {_told(self.during)}",
            f"attack: {json.dumps(self.attack)}",
        ]


def p99(responses: Responses) -> float:
    """The 99th percentile of the time from when a request was due to its answer, seconds."""
    return statistics.quantiles(responses.seconds, n=100, method="inclusive")[98]


def _figures(responses: Responses) -> dict[str, Any]:
    return {
        "requests": len(responses.seconds),
        "p50": round(1000 * statistics.median(responses.seconds), 2),
        "p99": round(1000 * p99(responses), 2),
        "worst": round(1000 * max(responses.seconds), 1),
        "statuses": {str(status): count for status, count in sorted(Counter(responses.status).items())},
    }


def _told(responses: Responses) -> str:
    told = _figures(responses)
    statuses = ", ".join(f"{count:,} times {status}" for status, count in told["statuses"].items())
    return f"p50 {told['p50']:.1f} ms, p99 {told['p99']:.1f} ms, worst {told['worst']:.0f} ms ({statuses})"


def _added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The figures of two rounds of a flood together: sums of counts, the oldest age, the ends of ranges."""
    found = dict(one)
    for name, value in other.items():
        if isinstance(value, dict):
            found[name] = dict(Counter(one[name]) + Counter(value))
        elif name == "cut_seconds":
            ends = [*one[name], *value]
            found[name] = [min(ends), max(ends)] if ends else []
        elif name == "oldest_seconds":
            found[name] = max(one[name], value)
        else:
            found[name] = one[name] + value
    return found


def siege(
    port: int, attack: Callable[[], contextlib.AbstractContextManager[dict[str, Any]]], *, rate: float,
    before_seconds: float, seconds: float,
) -> Siege:  # fmt: skip
    """Load at a constant rate, first alone and then during `attack`, which gives its result at its end."""
    body = json.dumps(
        {
            "correlationId": "siege",
            "severity": "INFO",
            "message": "m" * 100,
            "source": "siege",
            "timestamp": 1_700_000_000_000,
        }
    ).encode()
    requests = [request(body)]
    before = asyncio.run(offer("127.0.0.1", port, requests, [(before_seconds, rate)]))
    with attack() as told:
        during = asyncio.run(offer("127.0.0.1", port, requests, [(seconds, rate)]))
    return Siege(before, during, told)


@contextlib.contextmanager
def flooding(
    port: int, *, seconds: float, idle: int = 0, trickling: int = 0, hard: int = 0, others: int = 0
) -> Iterator[dict[str, Any]]:
    """A flood in a separate process. It is ready when this begins, and its result is complete when this ends."""
    command = [
        *(sys.executable, "-m", "checks.hostile.flood", str(port), "--idle", str(idle), "--seconds", str(seconds)),
        *("--heads", str(trickling // 2), "--bodies", str(trickling - trickling // 2), "--hard", str(hard)),
        *("--others", str(others)),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environ())
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
    """The problems: a trickling connection that is not cut off, or not with 408; a hard body that gets an answer other
    than its own refusal.
    """
    most = request_seconds_max + CUT_SECONDS_SPARE
    found = []
    if set(told["answers"]) - {"408", "none"}:
        found.append(f"trickling connections got {told['answers']}")
    if not told["answers"].get("408") and told["cut_seconds"]:
        found.append("no trickling connection got its 408")
    if (
        told["cut_seconds"]
        and not request_seconds_max - 0.5 <= told["cut_seconds"][0] <= told["cut_seconds"][1] <= most
    ):
        found.append(f"trickling connections were cut off after {told['cut_seconds']} s, not {request_seconds_max}")
    if told["oldest_seconds"] > most:
        found.append(f"a trickling connection lived for {told['oldest_seconds']:.1f} s")
    if set(told["refusals"]) - {"413", "422", "429"}:
        found.append(f"slow bodies got {told['refusals']}")
    if set(told.get("others", ())) - OF_OTHERS:
        found.append(f"slow bodies of other protocols got {told['others']}")
    if told["refused"]:
        found.append(f"{told['refused']} connections were refused")
    return found


def environ() -> dict[str, str]:
    """The environment in which programs of this package find each other."""
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
