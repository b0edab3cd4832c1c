"""An outage of PostgreSQL of one minute under load, told three times: by the live page, by Prometheus, by Celery.

`python -m checks.bench.outage` starts a system of its own with its Prometheus, stops PostgreSQL for a minute under a
steady load, and writes a page with pictures, queries and transcripts: outage.md in `--out`. Its exit status is 1 where
the three accounts do not agree with the control events. It takes about two and a half minutes. The page in the
repository was written by `python -m checks.bench.outage --out docs`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from checks.loadgen.page import open_page, save_picture
from checks.loadgen.steady import SteadyLoad
from pipeline import wiring
from pipeline.event_text import event_text
from pipeline.ports.control import ControlEvent
from pipeline.settings import Settings
from stack.config import StackConfig, environ_of_its_own
from stack.prometheus import SCRAPE_SECONDS
from stack.servers import ROOT
from stack.system import System

BATCH_EVENTS: Final = 20
EVENTS_PER_SECOND: Final = 800  # below the full rate, far above the floor
NORMAL_SECONDS: Final = 25.0
LOOK_AT_SECONDS: Final = 40.0  # into the outage
OUTAGE_SECONDS: Final = 60.0
LOAD_SECONDS_MAX: Final = 400.0  # more than all of it
STEADY_SECONDS_MAX: Final = 60.0  # for everything to be well again
MOMENTS: Final = ("normal", "unavailable", "back", "healthy again")


@dataclass
class Account:
    """What the page and the command line said at one moment."""

    name: str
    at: float
    headline: str
    transcript: str
    status: int


@dataclass
class Scenario:
    """A system, a browser that looks at it, and what was seen."""

    environ: dict[str, str]
    urls: dict[str, str]
    page: Any
    images: Path
    accounts: list[Account] = field(default_factory=list)

    def record(self, name: str) -> Account:
        """Take a picture, and ask Celery."""
        self.page.wait_for_timeout(1500)  # a message a second: the page shows what holds now
        headline = " ".join(self.page.locator("#headline").inner_text().split())
        save_picture(self.page.screenshot(), self.images / f"outage-{len(self.accounts) + 1}.png")
        said = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tasks.app", "inspect", "sluice"],
            cwd=ROOT, env={**os.environ, **self.environ, **self.urls, "NO_COLOR": "1"}, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        account = Account(name, time.time(), headline, said.stdout.strip() or said.stderr.strip(), said.returncode)
        self.accounts.append(account)
        print(f"--- {name}, {clock(account.at)}\n{headline}\n{account.transcript}\n", flush=True)
        return account

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.urls['INGEST_URL']}/api/logs/health", timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def until(self, condition: Callable[[dict[str, Any]], bool], what: str) -> float:
        """Wait for a condition of the health document; returns when it held."""
        deadline = time.monotonic() + STEADY_SECONDS_MAX
        while not condition(self.health()):
            if time.monotonic() > deadline:
                raise SystemExit(f"not within {STEADY_SECONDS_MAX:.0f} s: {what}")
            time.sleep(0.2)
        return time.time()

    def series(self, expression: str, begin: float, end: float) -> list[tuple[float, float]]:
        """(time, value) of an expression that gives one series."""
        query = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": SCRAPE_SECONDS})
        with urllib.request.urlopen(f"{self.urls['PROMETHEUS_URL']}/api/v1/query_range?{query}", timeout=10) as answer:
            found = json.loads(answer.read())["data"]["result"]
        return [(float(at), float(value)) for at, value in found[0]["values"]] if found else []


def clock(at: float) -> str:
    """The time of day in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


@dataclass
class Stage:
    """One stage as Prometheus tells it."""

    told: str
    query: str
    found: str
    agrees: bool


def stages(
    scenario: Scenario, events: list[ControlEvent], began: float, stopped_at: float, well_at: float
) -> list[Stage]:
    """Ask Prometheus about each stage, and compare with the control events."""
    opened = next(event.at for event in events if event.kind.value == "breaker_opened")
    closed = next(event.at for event in events if event.kind.value == "breaker_closed")
    slack = 2 * SCRAPE_SECONDS
    breaker = 'max(circuit_breaker_state{state=~"open|half-open"})'
    paused = 'max(sluice_consumption_paused{reason="breaker"})'
    is_open = [at for at, value in scenario.series(breaker, began, well_at) if value == 1]
    is_paused = [at for at, value in scenario.series(paused, began, well_at) if value == 1]
    # A rate over ten seconds looks back for as long, and the first seconds are PostgreSQL's last
    stored = scenario.series("sum(rate(sluice_drained_events_total[10s]))", stopped_at + 20, closed)
    before = scenario.series("max(rate_limiter_rate_limit)", began, opened - 1)
    during = scenario.series("max(rate_limiter_rate_limit)", opened + slack, closed)
    after = scenario.series("max(rate_limiter_rate_limit)", well_at - SCRAPE_SECONDS, well_at)
    lag = scenario.series("max(sluice_lag_events)", began, well_at)
    refused = scenario.series('sum(rate(http_requests_total{status="429"}[20s]))', began, well_at)

    def span(times: list[float]) -> str:
        return f"{clock(times[0])} to {clock(times[-1])}" if times else "never"

    def fits(times: list[float]) -> bool:
        # A sample stands until the next scrape, so each end may be seen later by one.
        return bool(times) and 0 <= times[0] - opened <= slack and -SCRAPE_SECONDS <= closed - times[-1] <= slack

    return [
        Stage("the full rate before", "max(rate_limiter_rate_limit)", f"{before[-1][1]:,.0f}/s", before[-1][1] == 1000),
        Stage(f"the breaker opens ({clock(opened)}) and closes ({clock(closed)})", breaker, span(is_open),
              fits(is_open)),
        Stage("consumption is paused as long", paused, span(is_paused), fits(is_paused)),
        Stage("the rate is at its lowest", "max(rate_limiter_rate_limit)",
              f"{max(value for _, value in during):,.0f}/s at most", all(value == 100 for _, value in during)),
        Stage("nothing is stored", "sum(rate(sluice_drained_events_total[10s]))",
              f"{max((value for _, value in stored), default=0):,.0f}/s at most", all(v == 0 for _, v in stored)),
        Stage("events above the lowest rate are refused", 'sum(rate(http_requests_total{status="429"}[20s]))',
              f"up to {max((value for _, value in refused), default=0):,.0f} requests/s",
              max((value for _, value in refused), default=0) > 0),
        Stage("the backlog grows, and is stored", "max(sluice_lag_events)",
              f"up to {max(value for _, value in lag):,.0f} events, {lag[-1][1]:,.0f} at the end",
              max(value for _, value in lag) > 100 * OUTAGE_SECONDS / 2 and lag[-1][1] < 1000),
        Stage("the full rate again", "max(rate_limiter_rate_limit)", f"{after[-1][1]:,.0f}/s", after[-1][1] == 1000),
    ]  # fmt: skip


def agreements(scenario: Scenario, events: list[ControlEvent]) -> list[tuple[str, bool]]:
    """Whether page and command line name what the control events name."""
    opened = clock(next(event.at for event in events if event.kind.value == "breaker_opened"))
    normal, unavailable, _, well = scenario.accounts
    return [
        (
            f"the page says at {clock(unavailable.at)} that PostgreSQL fails since {opened}",
            f"since {opened}" in unavailable.headline,
        ),
        (f"`inspect sluice` says the same at {clock(unavailable.at)}", f"since {opened}" in unavailable.transcript),
        ("it says what holds the rate down", "of 1,000: breaker is open" in unavailable.transcript),
        ("both call it normal before", "PostgreSQL" not in normal.headline and "CRITICAL" not in normal.transcript),
        ("both call it normal afterwards", "PostgreSQL" not in well.headline and "CRITICAL" not in well.transcript),
        ("Celery answered each time", all(account.status == 0 for account in scenario.accounts)),
    ]


def document(
    scenario: Scenario, events: list[ControlEvent], told: list[Stage], agreed: list[tuple[str, bool]], load: SteadyLoad,
    stopped: float, started: float,
) -> str:  # fmt: skip
    """The page docs/outage.md."""
    mark = {True: "agrees", False: "**does not agree**"}
    statuses = ", ".join(f"{count:,} times {status}" for status, count in sorted(load.statuses.items()))
    lines = [
        "# An outage of one minute, told three times", "",
        f"Written by `python -m checks.bench.outage --out docs`: {EVENTS_PER_SECOND} events/s in bodies of "
        f"{BATCH_EVENTS}; PostgreSQL is stopped at {clock(stopped)} UTC and started again at {clock(started)}, "
        f"everything else keeps its defaults. Answers to clients: {statuses}.", "",
        "## What the control loop recorded", "",
        "| UTC | event | by | why |", "|---|---|---|---|",
        *(f"| {clock(event.at)} | {event_text(event)} | {event.actor} | {_cell(event.why)} |" for event in events), "",
        "## By Prometheus", "",
        f"Scraped every {SCRAPE_SECONDS} s, so times may be later by that.", "",
        "| stage | query | answer | |", "|---|---|---|---|",
        *(f"| {stage.told} | `{_cell(stage.query)}` | {stage.found} | {mark[stage.agrees]} |" for stage in told), "",
        "## By the live page and by Celery", "",
        *(f"- {what}: {mark[holds]}" for what, holds in agreed), "",
    ]  # fmt: skip
    for number, account in enumerate(scenario.accounts, 1):
        lines += [
            f"### {account.name}, {clock(account.at)}", "",
            f"![the live page, {account.name}](images/outage-{number}.png)", "",
            "```", "$ celery -A tasks.app inspect sluice", account.transcript, "```", "",
        ]  # fmt: skip
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(words: list[str] | None = None) -> int:
    """Run the outage; returns 0 where all accounts agree."""
    parser = argparse.ArgumentParser(prog="python -m checks.bench.outage", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / ".local" / "outage",
        metavar="FOLDER",
        help="folder of the page (.local/outage)",
    )
    out: Path = parser.parse_args(words).out
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        environ_of_its_own(SLUICE_HOME=folder, PROMETHEUS="yes") as environ,
    ):
        system = System(StackConfig.from_environ("redis"))
        urls = system.start(threading.Event())
        load = SteadyLoad(int(environ["INGEST_PORT"]), EVENTS_PER_SECOND, BATCH_EVENTS, LOAD_SECONDS_MAX)
        try:
            with open_page(urls["INGEST_URL"]) as page:
                scenario = Scenario(environ, urls, page, images)
                began = time.time()
                load.start()
                time.sleep(NORMAL_SECONDS)
                scenario.record(MOMENTS[0])
                system.supervisor().stopProcess("postgres", True)
                stopped = time.time()
                time.sleep(LOOK_AT_SECONDS)
                scenario.record(MOMENTS[1])
                time.sleep(max(0.0, stopped + OUTAGE_SECONDS - time.time()))
                system.supervisor().startProcess("postgres", False)
                started = time.time()
                scenario.until(lambda health: health["circuitBreaker"] == "closed", "the breaker is closed")
                scenario.record(MOMENTS[2])
                scenario.until(lambda health: health["status"] == "healthy", "healthy")
                time.sleep(2 * SCRAPE_SECONDS + 1)
                scenario.record(MOMENTS[3])
                well = time.time()
                load.stop()
                settings = Settings.from_environ({**os.environ, **urls})
                events = [event for event in wiring.make_control_events(settings).last(200) if event.at >= began]
                told = stages(scenario, events, began, stopped, well)
                agreed = agreements(scenario, events)
        finally:
            load.stop()
            system.stop()
    written = out / "outage.md"
    written.write_text(document(scenario, events, told, agreed, load, stopped, started))
    for stage in told:
        print(f"{'agrees' if stage.agrees else 'DOES NOT AGREE':15} {stage.told}: {stage.found}")
    for what, holds in agreed:
        print(f"{'agrees' if holds else 'DOES NOT AGREE':15} {what}")
    print(f"written to {written}")
    return 0 if all(stage.agrees for stage in told) and all(holds for _, holds in agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
