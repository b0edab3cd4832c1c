"""An outage of PostgreSQL of one minute under load, in three views: the live page, Prometheus and Celery.

`python -m checks.bench.outage` starts a system of its own with its Prometheus, stops PostgreSQL for a minute under a
steady load, and writes a page with pictures, queries and transcripts: outage.md in `--out`. Its exit status is 1 if a
view does not agree with the control events. It takes about two and a half minutes, and needs Prometheus and Chromium.
The page in the repository was written by `python -m checks.bench.outage --out docs`.
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
STEADY_SECONDS_MAX: Final = 60.0  # until the system is healthy again
MOMENTS: Final = ("before the outage", "during the outage", "PostgreSQL is back", "healthy again")


@dataclass
class View:
    """What the page and the command line showed at one moment."""

    name: str
    at: float
    headline: str
    transcript: str
    status: int


@dataclass
class Scenario:
    """A system, a browser that shows its page, and the views that were recorded."""

    environ: dict[str, str]
    urls: dict[str, str]
    page: Any
    images: Path
    views: list[View] = field(default_factory=list)

    def record(self, name: str) -> View:
        """Take a picture of the page, and run `inspect sluice`."""
        self.page.wait_for_timeout(1500)  # one message a second: then the page is up to date
        headline = " ".join(": ".join(self.page.locator("#headline, #cause").all_inner_texts()).split())
        save_picture(self.page.screenshot(), self.images / f"outage-{len(self.views) + 1}.png")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tasks.app", "inspect", "sluice"],
            cwd=ROOT, env={**os.environ, **self.environ, **self.urls, "NO_COLOR": "1"}, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        view = View(name, time.time(), headline, done.stdout.strip() or done.stderr.strip(), done.returncode)
        self.views.append(view)
        print(f"--- {name}, {clock(view.at)}\n{headline}\n{view.transcript}\n", flush=True)
        return view

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
    """One stage of the outage, as recorded by Prometheus."""

    what: str
    query: str
    found: str
    agrees: bool


def stages(
    scenario: Scenario, events: list[ControlEvent], began: float, stopped_at: float, ended_at: float
) -> list[Stage]:
    """Query Prometheus for each stage, and compare the result with the control events."""
    opened = next(event.at for event in events if event.kind.value == "breaker_opened")
    closed = next(event.at for event in events if event.kind.value == "breaker_closed")
    slack = 2 * SCRAPE_SECONDS
    breaker = 'max(circuit_breaker_state{state=~"open|half-open"})'
    paused = 'max(sluice_consumption_paused{reason="breaker"})'
    is_open = [at for at, value in scenario.series(breaker, began, ended_at) if value == 1]
    is_paused = [at for at, value in scenario.series(paused, began, ended_at) if value == 1]
    # A rate over ten seconds covers the ten before. The first seconds still have PostgreSQL's last work.
    stored = scenario.series("sum(rate(sluice_drained_events_total[10s]))", stopped_at + 20, closed)
    before = scenario.series("max(rate_limiter_rate_limit)", began, opened - 1)
    during = scenario.series("max(rate_limiter_rate_limit)", opened + slack, closed)
    after = scenario.series("max(rate_limiter_rate_limit)", ended_at - SCRAPE_SECONDS, ended_at)
    lag = scenario.series("max(sluice_lag_events)", began, ended_at)
    refused = scenario.series('sum(rate(http_requests_total{status="429"}[20s]))', began, ended_at)

    def span(times: list[float]) -> str:
        return f"{clock(times[0])} to {clock(times[-1])}" if times else "never"

    def fits(times: list[float]) -> bool:
        # A sample is valid until the next scrape, so each end may be seen one scrape later.
        return bool(times) and 0 <= times[0] - opened <= slack and -SCRAPE_SECONDS <= closed - times[-1] <= slack

    return [
        Stage("the rate before the outage", "max(rate_limiter_rate_limit)", f"{before[-1][1]:,.0f}/s",
              before[-1][1] == 1000),
        Stage(f"the breaker opens ({clock(opened)}) and closes ({clock(closed)})", breaker, span(is_open),
              fits(is_open)),
        Stage("consumption is paused for the same time", paused, span(is_paused), fits(is_paused)),
        Stage("the lowest rate holds meanwhile", "max(rate_limiter_rate_limit)",
              f"{max(value for _, value in during):,.0f}/s at most", all(value == 100 for _, value in during)),
        Stage("no event is stored meanwhile", "sum(rate(sluice_drained_events_total[10s]))",
              f"{max((value for _, value in stored), default=0):,.0f}/s at most", all(v == 0 for _, v in stored)),
        Stage("what exceeds the lowest rate is refused", 'sum(rate(http_requests_total{status="429"}[20s]))',
              f"up to {max((value for _, value in refused), default=0):,.0f} requests/s",
              max((value for _, value in refused), default=0) > 0),
        Stage("the lag grows, and falls afterwards", "max(sluice_lag_events)",
              f"up to {max(value for _, value in lag):,.0f} events, {lag[-1][1]:,.0f} at the end",
              max(value for _, value in lag) > 100 * OUTAGE_SECONDS / 2 and lag[-1][1] < 1000),
        Stage("the rate afterwards", "max(rate_limiter_rate_limit)", f"{after[-1][1]:,.0f}/s", after[-1][1] == 1000),
    ]  # fmt: skip


def agreements(scenario: Scenario, events: list[ControlEvent]) -> list[tuple[str, bool]]:
    """Whether the page and the command line agree with the control events."""
    opened = clock(next(event.at for event in events if event.kind.value == "breaker_opened"))
    before, during, _, after = scenario.views
    return [
        (
            f"the page shows at {clock(during.at)} that PostgreSQL fails since {opened}",
            f"since {opened}" in during.headline,
        ),
        (f"`inspect sluice` shows the same at {clock(during.at)}", f"since {opened}" in during.transcript),
        ("`inspect sluice` shows why the rate is low", "of 1,000: breaker is open" in during.transcript),
        ("neither shows a problem before", "PostgreSQL" not in before.headline and "CRITICAL" not in before.transcript),
        (
            "neither shows a problem afterwards",
            "PostgreSQL" not in after.headline and "CRITICAL" not in after.transcript,
        ),
        ("Celery responded each time", all(view.status == 0 for view in scenario.views)),
    ]


def document(
    scenario: Scenario, events: list[ControlEvent], found: list[Stage], agreed: list[tuple[str, bool]],
    load: SteadyLoad, stopped: float, started: float,
) -> str:  # fmt: skip
    """The page docs/outage.md."""
    mark = {True: "agrees", False: "**does not agree**"}
    statuses = ", ".join(f"{count:,} times {status}" for status, count in sorted(load.statuses.items()))
    lines = [
        "# An outage of one minute, in three views", "",
        f"Written by `python -m checks.bench.outage --out docs`. Clients send {EVENTS_PER_SECOND} events/s in bodies "
        f"of {BATCH_EVENTS}. PostgreSQL is stopped at {clock(stopped)} UTC, and started again at {clock(started)}. All "
        f"settings have their defaults. Responses to clients: {statuses}. \"Agrees\" means: with the control events.",
        "", "## The control events", "",
        "| UTC | event | by | why |", "|---|---|---|---|",
        *(f"| {clock(event.at)} | {event_text(event)} | {event.actor} | {_cell(event.why)} |" for event in events), "",
        "## Prometheus", "",
        f"Prometheus reads all metrics every {SCRAPE_SECONDS} s, so its times may be late by so much.", "",
        "| stage | query | result | |", "|---|---|---|---|",
        *(f"| {stage.what} | `{_cell(stage.query)}` | {stage.found} | {mark[stage.agrees]} |" for stage in found), "",
        "## The live page and Celery", "",
        *(f"- {what}: {mark[holds]}" for what, holds in agreed), "",
    ]  # fmt: skip
    for number, view in enumerate(scenario.views, 1):
        lines += [
            f"### {view.name[0].upper()}{view.name[1:]}, {clock(view.at)} UTC", "",
            f"![the live page, {view.name}](images/outage-{number}.png)", "",
            "```", "$ celery -A tasks.app inspect sluice", view.transcript, "```", "",
        ]  # fmt: skip
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(words: list[str] | None = None) -> int:
    """Run the outage; returns 0 if all views agree."""
    parser = argparse.ArgumentParser(prog="python -m checks.bench.outage", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / ".local" / "outage",
        metavar="FOLDER",
        help="folder for the page and its pictures (.local/outage)",
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
                stopped = time.time()
                system.supervisor().stopProcess("postgres", True)
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
                ended = time.time()
                load.stop()
                settings = Settings.from_environ({**os.environ, **urls})
                events = [event for event in wiring.make_control_events(settings).last(200) if event.at >= began]
                found = stages(scenario, events, began, stopped, ended)
                agreed = agreements(scenario, events)
        finally:
            load.stop()
            system.stop()
    written = out / "outage.md"
    written.write_text(document(scenario, events, found, agreed, load, stopped, started))
    for stage in found:
        print(f"{'agrees' if stage.agrees else 'DOES NOT AGREE':15} {stage.what}: {stage.found}")
    for what, holds in agreed:
        print(f"{'agrees' if holds else 'DOES NOT AGREE':15} {what}")
    print(f"written to {written}")
    return 0 if all(stage.agrees for stage in found) and all(holds for _, holds in agreed) else 1


if __name__ == "__main__":
    sys.exit(main())
