"""The page's charts of 6 hours and 7 days, from a real Prometheus with a week of data, in a real browser."""

import contextlib
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from checks.testbed.wire import Response, get
from ingest.dashboard.points import COLUMNS
from pipeline.settings import Settings
from stack.servers import free_port
from support.browser import chromium, chromium_path, watched
from support.running_ingest import RunningIngest

WIDE = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
DAY, HOUR = 86_400, 3_600
LAG, EVENTS_PER_SECOND = 1_200, 50


@dataclass
class Week:
    """Prometheus, and the ingest whose page asks it."""

    edge: RunningIngest
    prometheus: "subprocess.Popen[bytes]"
    now: int


def _samples(now: int) -> Iterator[str]:
    """A week in which 50 events a second were accepted, with an outage three days ago that took 20 minutes."""
    times = [*range(now - 7 * DAY - HOUR, now - 7 * HOUR, 600), *range(now - 7 * HOUR, now, 60)]
    outage = range(now - 3 * DAY, now - 3 * DAY + 1_200)
    series: dict[str, Callable[[int], float]] = {
        "sluice_lag_events": lambda at: LAG if at in outage else 7,
        'redis_stream_consumer_lag{partition="0"}': lambda at: LAG if at in outage else 7,
        'circuit_breaker_state{state="open"}': lambda at: float(at in outage),
        "rate_limiter_rate_limit": lambda at: 100 if at in outage else 1_000,
        "sluice_ingest_accepted_events_total": lambda at: EVENTS_PER_SECOND * (at - times[0]),
        "sluice_ingest_refused_events_total": lambda at: 0,
    }
    for name, value in series.items():
        bare = name.partition("{")[0]
        yield f"# TYPE {bare.removesuffix('_total')} {'counter' if bare.endswith('_total') else 'gauge'}"
        yield from (f"{name} {value(at)} {at}" for at in times)
    yield "# EOF"


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]) -> Iterator[Week]:
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        missing("there is no prometheus (Debian: prometheus)")
    folder = tmp_path_factory.mktemp("week")
    now = int(time.time()) // 1_800 * 1_800  # noqa: TID251 - Prometheus keeps the times of day
    (folder / "week.om").write_text("\n".join(_samples(now)) + "\n")
    (folder / "prometheus.yml").write_text("scrape_configs: []\n")
    make = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=168h"]  # one, not 84
    files = [str(folder / "week.om"), str(folder / "data")]
    subprocess.run([*make, *files], check=True, capture_output=True, timeout=RUN_SECONDS_MAX)
    port = free_port()
    with _prometheus(folder, port) as prometheus:
        settings = Settings(ingest_port=free_port(), log_partitions=1, prometheus_url=f"http://127.0.0.1:{port}")
        edge = RunningIngest(replace(settings, regulate_seconds=60.0)).start()
        try:
            yield Week(edge, prometheus, now)
        finally:
            edge.stop()


@contextlib.contextmanager
def _prometheus(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    words = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *words, f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=8d"],
            stdout=log,
            stderr=log,
        )

    def is_ready() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready") as answer:
            return bool(answer.status == 200)
        return False

    try:
        wait_until(is_ready, "Prometheus is ready")
        yield process
    finally:
        process.kill()
        process.wait(WAIT_SECONDS_MAX)


def _charts(week: Week, span: str) -> dict[str, Any]:
    """The charts of a span, as soon as Prometheus answers in time."""
    found: list[Response] = []

    def is_answered() -> bool:
        week.edge.service.long_charts.forget()
        found.append(get(week.edge.port, f"/charts/{span}"))
        return found[-1].status == 200

    wait_until(is_answered, "Prometheus answers")
    document: dict[str, Any] = found[-1].json
    return document


def test_the_charts_have_what_prometheus_has(week: Week) -> None:
    found = _charts(week, "7d")
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in found["points"]]
    assert (found["columns"], found["seconds"]) == (list(COLUMNS), 7 * DAY)
    assert 300 < len(rows) <= 337
    # The outage of 20 minutes is seen, though a point is 30 minutes
    bad = [row for row in rows if row["breaker"] == "open"]
    assert 1 <= len(bad) <= 3
    assert {row["lag"] for row in bad} == {LAG}
    assert {row["lags"][0] for row in bad} == {LAG}
    assert all(week.now - 3 * DAY <= row["t"] <= week.now - 3 * DAY + 4_800 for row in bad)
    assert rows[len(rows) // 4]["admitted"] == pytest.approx(EVENTS_PER_SECOND, rel=0.1)
    # And 6 hours in steps of a minute
    hours = _charts(week, "6h")
    assert hours["step"] == 60
    assert all(row[0] > week.now - 7 * HOUR for row in hours["points"])
    assert all(row[COLUMNS.index("breaker")] != "open" for row in hours["points"])


@pytest.mark.parametrize("span", ["5y", "7d%22%7D", "1h"])
def test_no_other_span_is_asked_for(week: Week, span: str) -> None:
    assert get(week.edge.port, f"/charts/{span}").status == 404


@pytest.fixture(scope="module")
def browser(missing: Callable[[str], None]) -> Iterator[Browser]:
    if chromium_path() is None:
        missing("chromium")
    with chromium() as found:
        yield found


def test_a_week_is_chosen_and_read_with_the_keyboard(week: Week, browser: Browser) -> None:
    seen = watched(browser, f"http://127.0.0.1:{week.edge.port}", **WIDE)
    seen.wait_live()
    place = seen.page.locator("#chart-rate").bounding_box()
    assert seen.text("#charts") == "The last 15 minutes"
    # When the week is chosen with the keyboard
    button = seen.page.get_by_role("button", name="7 d")
    button.focus()
    seen.page.keyboard.press("Enter")
    # Then the charts have it, say so, and have not moved
    seen.wait_words("#span-note", "a point is 30 min")
    seen.wait("document.getElementById('chart-lag').dataset.points > 300")
    assert seen.text("#charts") == "The last 7 days"
    assert button.get_attribute("aria-pressed") == "true"
    assert seen.page.locator("#chart-rate").bounding_box() == place
    assert "Chart of 7 days" in (seen.page.locator("#chart-lag").get_attribute("aria-label") or "")
    # And they are read as the live ones, with the day
    seen.page.locator("#chart-lag").focus()
    seen.page.keyboard.press("Home")
    day = seen.page.evaluate(f"new Date({1000 * (week.now - 7 * DAY)}).toISOString().slice(5, 10)")
    assert seen.text("#legend-lag .when").startswith(day)
    assert "7 events" in seen.text("#legend-lag")
    found = Axe().run(seen.page).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []
    assert seen.complaints == []
    assert seen.hosts == {f"127.0.0.1:{week.edge.port}"}
    assert not seen.overflows()
    # And the live ones are back at once
    seen.page.get_by_role("button", name="15 min").click()
    assert seen.text("#charts") == "The last 15 minutes"
    seen.wait("document.getElementById('chart-lag').dataset.points < 300")


def test_without_an_answer_the_page_says_why(week: Week, browser: Browser) -> None:
    seen = watched(browser, f"http://127.0.0.1:{week.edge.port}", **WIDE)
    seen.wait_live()
    week.prometheus.kill()
    week.edge.service.long_charts.forget()
    seen.page.get_by_role("button", name="6 h").click()
    seen.wait_words("#span-note", "Prometheus (PROMETHEUS_URL) has no charts")
    assert seen.page.locator("#chart-rate").is_visible()
