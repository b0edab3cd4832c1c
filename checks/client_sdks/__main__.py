"""Compares the Python client with other SDKs, in one table.

python -m checks.client_sdks                   the server is away, or answers 429, for a minute
python -m checks.client_sdks --seconds 15      the same in less time
python -m checks.client_sdks --sdk Sentry      one SDK (repeatable)

requirements-sdks.txt has the SDKs of others. A scenario runs for all SDKs at the same time, each with a server and a
process of its own. Exit status 1 if the Python client lost or doubled an event.
"""

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from checks.client_sdks.sender import SDKS
from checks.client_sdks.server import Reply, Rule, Server
from stack.servers import free_port

ROOT: Final = Path(__file__).parents[2]
OWN: Final = "sluice-client"
PACKAGES: Final = {OWN: "", "OpenTelemetry": "opentelemetry-sdk", "Sentry": "sentry-sdk", "PostHog": "posthog"}
END_SECONDS_MAX: Final = 120.0  # for a program to end; then it is killed


@dataclass(frozen=True, slots=True)
class Scenario:
    """The behaviour of the server. `is_late`: it starts to listen only after `seconds`."""

    name: str
    title: str
    rule: Rule
    is_late: bool = False
    has_server: bool = True


def scenarios(seconds: float) -> list[Scenario]:
    """All scenarios. The server does not accept events for `seconds`."""

    def limited(elapsed: float, _: int) -> Reply:
        return Reply(429, retry_after_seconds=5) if elapsed < seconds else Reply()

    return [
        Scenario("away", f"the server is away for {seconds:g} s", lambda *_: Reply(), is_late=True),
        Scenario("429", f"429 with Retry-After: 5 for {seconds:g} s", limited),
        Scenario("lost", "the first three answers are lost", lambda _, number: Reply(is_cut=number < 3)),
        Scenario("exit", "the program ends at once; each answer takes 0.2 s", lambda *_: Reply(delay_seconds=0.2)),
        Scenario("exit", "the program ends at once; no server", lambda *_: Reply(), has_server=False),
        Scenario("fork", "the program forks, and both processes send", lambda *_: Reply(delay_seconds=0.2)),
    ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for the events of one SDK in one scenario."""

    sent: int
    lost: int
    doubled: int
    longest_call_ms: float | None
    end_seconds: float | None  # None: it was killed

    @property
    def cell(self) -> str:
        """A cell of the table."""
        call = "?" if self.longest_call_ms is None else f"{self.longest_call_ms:.0f}"
        end = f"> {END_SECONDS_MAX:g}" if self.end_seconds is None else f"{self.end_seconds:.1f}"
        return f"{self.lost} / {self.doubled} / {call} / {end}"


def run(sdk: str, scenario: Scenario, seconds: float, events: int) -> Outcome:
    """Run one SDK in one scenario."""
    port = free_port()
    server = None if scenario.is_late or not scenario.has_server else Server(scenario.rule, port)
    arguments = [sdk, str(port), scenario.name, str(seconds if scenario.name in ("away", "429") else 5), str(events)]
    process = subprocess.Popen(
        [sys.executable, "-m", "checks.client_sdks.sender", *arguments],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        if scenario.is_late:
            time.sleep(seconds)
            server = Server(scenario.rule, port)
        assert process.stdout is not None
        line = process.stdout.readline()
        began = time.monotonic()
        try:
            process.wait(END_SECONDS_MAX)
            end_seconds: float | None = time.monotonic() - began
        except subprocess.TimeoutExpired:
            process.kill()
            end_seconds = None
    count = events if scenario.name != "fork" else events // 4 * 4
    expected = {f"evt-parent-{n}-x" for n in range(events if scenario.name != "fork" else events * 3 // 4)}
    if scenario.name == "fork":
        expected |= {f"evt-child-{n}-x" for n in range(events // 4)}
    stored = {} if server is None else dict(server.stored)
    if server is not None:
        server.stop()
    return Outcome(
        sent=count,
        lost=len(expected - stored.keys()),
        doubled=sum(times > 1 for times in stored.values()),
        longest_call_ms=float(line) if line.strip() else None,
        end_seconds=end_seconds,
    )


def _version(sdk: str) -> str:
    try:
        return f"{sdk} {version(PACKAGES[sdk])}" if PACKAGES[sdk] else sdk
    except PackageNotFoundError:
        sys.exit(f"{PACKAGES[sdk]} is not installed: pip install -c constraints.txt -r requirements-sdks.txt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all scenarios and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m checks.client_sdks", description="Compare SDKs for Python.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the server takes no events (60)")
    parser.add_argument("--events", type=int, default=2000, help="events of each program (2000)")
    parser.add_argument("--sdk", action="append", choices=list(SDKS), help="only this SDK; repeatable")
    parsed = parser.parse_args(arguments)
    sdks = parsed.sdk or list(SDKS)
    print(f"| {parsed.events} events: lost / doubled / longest call, ms / end of the program, s | ", end="")
    print(" | ".join(map(_version, sdks)) + " |")
    print("|---|" + "---|" * len(sdks), flush=True)
    is_good = True
    for scenario in scenarios(parsed.seconds):
        outcomes: dict[str, Outcome] = {}

        def measure(sdk: str, scenario: Scenario = scenario, outcomes: dict[str, Outcome] = outcomes) -> None:
            outcomes[sdk] = run(sdk, scenario, parsed.seconds, parsed.events)

        threads = [threading.Thread(target=measure, args=(sdk,)) for sdk in sdks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"| {scenario.title} | " + " | ".join(outcomes[sdk].cell for sdk in sdks) + " |", flush=True)
        if OWN in outcomes and scenario.has_server:
            is_good = is_good and outcomes[OWN].lost == 0 and outcomes[OWN].doubled == 0
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
