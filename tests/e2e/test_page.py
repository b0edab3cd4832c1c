"""The live page in a real browser, through the story of an outage."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from checks.testbed.processes import http_status, ingest
from checks.testbed.waiting import wait_until
from pipeline import wiring
from pipeline.event_text import clock_time
from pipeline.names import ControlEventKind
from stack.servers import free_port
from support.browser import Watched, chromium, chromium_path, close_pages, watched
from support.images import save_image
from support.site import Site
from support.traffic import Traffic

pytestmark = pytest.mark.parametrize("started", ["redis"], indirect=True)

WIDE = {"viewport": {"width": 1280, "height": 1120}, "color_scheme": "light"}
DARK = {"viewport": {"width": 1280, "height": 1120}, "color_scheme": "dark"}
PHONE = {"viewport": {"width": 360, "height": 900}, "color_scheme": "light", "device_scale_factor": 2}


@pytest.fixture(scope="module")
def running_browser(missing: Callable[[str], None]) -> Iterator[Browser]:
    if chromium_path() is None:
        missing("chromium")
    with chromium() as found:
        yield found


@pytest.fixture
def browser(running_browser: Browser) -> Iterator[Browser]:
    """A browser whose pages end with the test: each draws its charts once a second."""
    yield running_browser
    close_pages(running_browser)


class Album:
    """Pictures of the page for docs/, where they are asked for; the story takes its time then."""

    def __init__(self, folder: str, hold_seconds: float) -> None:
        self._folder = Path(folder) if folder else None
        self._hold_seconds = hold_seconds

    def take(self, seen: Watched, name: str) -> None:
        if self._folder is not None:
            save_image(seen.page.screenshot(), self._folder / f"page-{name}.png")

    def hold(self, seen: Watched, share: float = 1.0) -> None:
        """Let what the charts show go on for a while."""
        if self._folder is not None:
            seen.page.wait_for_timeout(1000 * self._hold_seconds * share)


@pytest.fixture
def album(request: pytest.FixtureRequest) -> Album:
    return Album(request.config.getoption("--page-images"), 35.0)


def assert_is_sound(seen: Watched, site: Site) -> None:
    """Nothing on the console, nobody else asked, and nothing to scroll sideways."""
    assert seen.complaints == []
    assert seen.hosts == {f"127.0.0.1:{site.settings.ingest_port}"}
    assert not seen.overflows()


def assert_is_accessible(seen: Watched) -> None:
    """axe-core finds nothing to complain about, contrast included."""
    found = Axe().run(seen.page).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []


def number_in(text: str) -> int:
    """The first number of a text."""
    digits = "".join(one if one.isdigit() else " " for one in text.replace(",", ""))
    return int(digits.split()[0])


@pytest.mark.timeout(900)
def test_the_page_tells_an_outage_from_its_first_second_to_its_last(site: Site, browser: Browser, album: Album) -> None:
    seen = watched(browser, site.system.url, **WIDE)
    # Before its first event the lag is 0, and drawn: a new system is not one of which nothing is known
    seen.wait("charts.latest('lag') === 0")
    with site.traffic(events_per_second=900, events_max=400_000) as traffic:
        _normal(seen, site, album)
        _behind(seen, browser, site, album, traffic)
        # a phone sees the rest of the story; three pages that draw all the time keep a processor busy
        phone = watched(browser, site.system.url, **PHONE)
        phone.wait_words("#headline", "All is well")
        assert_is_sound(phone, site)
        _breaker_open(seen, phone, site, album)
        _recovered(seen, site, album)
    for page in (seen, phone):
        assert_is_sound(page, site)
    # And what it showed is what was: the events of the table are those of the system
    assert "Breaker opened" in seen.text("#rows")
    site.check(traffic)


def _normal(seen: Watched, site: Site, album: Album) -> None:
    # Given a system at work, then the page says so, with numbers that are true
    seen.wait_words("#headline", "All is well")
    seen.wait("charts.lately('admitted') > 100")
    # (on a busy machine events may wait for a moment)
    wait_until(lambda: _says_that_all_is_well(seen, site), "all of it says so")
    assert_is_accessible(seen)
    album.hold(seen)
    album.take(seen, "normal")


def _says_that_all_is_well(seen: Watched, site: Site) -> bool:
    return (
        seen.level() == "healthy"
        and seen.text("#level") == "HEALTHY"
        and seen.page.title().startswith("Healthy")
        and number_in(seen.card("rate").removeprefix("Rate limit")) == site.settings.rate_max
        and "closed" in seen.card("breaker")
        and "running" in seen.card("consumption")
        and seen.text("#link-words").startswith("live")
    )


def _behind(seen: Watched, browser: Browser, site: Site, album: Album, traffic: Traffic) -> None:
    # When nothing is drained, then the page passes from degraded to critical, and says how many events wait
    site.system.batches.freeze()
    try:
        # on a busy machine a moment's lag is enough for the word; the backlog comes with the seconds
        seen.wait(f"charts.latest('lag') >= {site.settings.lag_degraded}")
        seen.wait("document.body.dataset.severity === 'degraded'")
        assert "behind" in seen.text("#headline")
        assert "Look at" in seen.text("#look")
        assert "celery -A tasks.app inspect lag" in seen.text("#look code")
        assert number_in(seen.card("lag").removeprefix("Lag")) >= site.settings.lag_degraded
        album.take(seen, "degraded")
        seen.wait("document.body.dataset.severity === 'critical'")
        # (on a busy machine so much time may have passed that the first reason is already that nothing is stored)
        assert any(words in seen.text("#headline") for words in ("far behind", "was stored for"))
        wait_until(lambda: traffic.outcomes.statuses["429"] > 20, "refusals")
        seen.wait("charts.lately('s429') > 1")
        seen.wait(f"charts.latest('lag') > {site.settings.lag_critical}")
        offered, admitted = (seen.page.evaluate(f"charts.lately('{name}')") for name in ("offered", "admitted"))
        assert offered > admitted
        album.hold(seen, 0.5)
        album.take(seen, "critical")
        dark = watched(browser, site.system.url, **DARK)
        dark.wait("document.body.dataset.severity === 'critical'")
        dark.wait(f"charts.latest('lag') > {site.settings.lag_critical}")
        album.take(dark, "dark")
        assert_is_accessible(dark)
        assert_is_sound(dark, site)
        dark.page.close()
        # And frozen workers are not called running: nothing is stored, and the page says so with the health answer
        seen.wait_words("#headline", "was stored for")
        assert "stalled" in seen.card("consumption")
        health = site.system.health()
        assert (health["status"], health["consumption"], health["stored"]) == ("critical", "stalled", 0)
        assert health["refused"] > 0
        assert health["offered"] == pytest.approx(health["admitted"] + health["refused"], abs=0.2)
        assert any("of the offered events were refused" in reason for reason in health["reasons"])
        assert "of the offered events were refused in the last 5 s" in seen.text("#more")
        _leads_to_a_runbook(seen, browser, site)
    finally:
        site.system.batches.thaw()
    seen.wait_words("#headline", "All is well")
    album.hold(seen, 0.7)


def _leads_to_a_runbook(seen: Watched, browser: Browser, site: Site) -> None:
    """The link beside a reason leads to a page that ingest itself serves, also on a phone."""
    address = seen.page.locator("#look a", has_text="Runbook").get_attribute("href") or ""
    assert address.startswith("/runbooks/")
    runbook = watched(browser, f"{site.system.url}{address}", **PHONE)
    assert "What not to do" in runbook.text("main")
    assert_is_accessible(runbook)
    assert_is_sound(runbook, site)
    runbook.page.close()


def _breaker_open(seen: Watched, phone: Watched, site: Site, album: Album) -> None:
    # When PostgreSQL dies, then the page says what fails, since when, and what it means
    site.postgres.kill()
    try:
        seen.wait_words("#headline", "PostgreSQL fails since")
        assert "consumption is paused" in seen.text("#cause")
        assert f"({site.settings.rate_min:,.0f}/s)" in seen.text("#cause")
        assert "open" in seen.card("breaker")
        assert "paused" in seen.card("consumption")
        seen.wait_words("#rows", "Breaker opened")
        opened = next(
            one
            for one in wiring.make_control_events(site.settings).last(50)
            if one.kind is ControlEventKind.BREAKER_OPENED
        )
        row = seen.page.locator("#rows tr:has(td:nth-child(2):has-text('Breaker opened'))").first.inner_text()
        # the title of the tab is whole, also where a time of day stands in it
        assert seen.page.title() == f"Critical: PostgreSQL fails since {clock_time(opened.at)} · Sluice"
        assert "breaker is open" in seen.card("rate")
        assert "the lowest rate while the breaker is open" in seen.card("override")
        # "before" while the pace of the last seconds still counts what was stored then
        drain = seen.card("drain")
        assert any(words in drain for words in ("before consumption was paused", "none while consumption is paused"))
        # what follows from the error does not repeat it
        assert seen.text("#rows").count(opened.why[:40]) == 1
        assert clock_time(opened.at).removesuffix(" UTC") in row
        assert opened.actor.split("-")[0] in row
        assert opened.why[:40] in row
        assert site.system.health()["circuitBreaker"] in ("open", "half-open")
        phone.wait_words("#headline", "PostgreSQL fails since")
        assert_is_accessible(phone)
        album.hold(seen, 0.5)
        album.take(seen, "breaker-open")
        album.take(phone, "phone")
    finally:
        site.postgres.start()


def _recovered(seen: Watched, site: Site, album: Album) -> None:
    # When it is back, then all is well again, and a reload still shows what was
    seen.wait_words("#headline", "All is well")
    shown = seen.points()
    assert shown > 10
    seen.page.reload()
    seen.wait_live()
    seen.wait_words("#headline", "All is well")
    assert seen.points() >= shown
    assert seen.page.evaluate("charts.rows().some((row) => row[charts.at('breaker')] === 'open')")
    assert "Breaker closed" in seen.text("#rows")
    album.hold(seen, 0.5)
    album.take(seen, "recovered")


def test_without_news_the_state_is_unknown_and_nothing_is_green(site: Site, browser: Browser, album: Album) -> None:
    seen = watched(browser, site.system.url, **WIDE)
    seen.wait_live()
    seen.wait_words("#headline", "All is well")
    # When ingest is frozen, so that its stream stays open and brings nothing
    site.system.ingest.freeze()
    try:
        seen.wait("document.body.dataset.severity === 'unknown'")
        _assert_unknown(seen)
        assert_is_accessible(seen)
        album.take(seen, "unknown")
    finally:
        site.system.ingest.thaw()
    # Then the page comes back with it
    seen.wait_words("#headline", "All is well")
    assert seen.page.locator("#lost").is_hidden()
    # And when ingest dies, and the stream is lost
    site.system.ingest.kill()
    try:
        seen.wait("document.body.dataset.severity === 'unknown'")
        _assert_unknown(seen)
    finally:
        site.system.ingest.start()
    seen.wait_words("#headline", "All is well")
    wait_until(lambda: _says_that_all_is_well(seen, site), "all of it says so")
    assert seen.page.title().startswith("Healthy: all is well")


def _assert_unknown(seen: Watched) -> None:
    assert seen.text("#level") == "UNKNOWN"
    assert "No data since" in seen.text("#headline")
    assert "All figures below are old" in seen.text("#cause")
    assert seen.page.title().startswith("Unknown: no data since")
    assert seen.page.locator("#lost").is_visible()
    icon, unknown = (
        seen.page.evaluate(f"document.getElementById('icon').{name}")
        for name in ("getAttribute('href')", "dataset.unknown")
    )
    assert icon == unknown
    # every colour of what is old is gone
    assert seen.page.evaluate("getComputedStyle(document.querySelector('.cards')).filter") == "grayscale(1)"
    assert seen.page.evaluate("getComputedStyle(document.querySelector('.charts')).filter") == "grayscale(1)"


def test_without_the_control_store_the_page_shows_what_one_process_knows(site: Site, browser: Browser) -> None:
    seen = watched(browser, site.system.url, **WIDE)
    seen.wait_live()
    seen.wait_words("#headline", "All is well")
    points = seen.points()
    with site.traffic(events_per_second=100, events_max=10_000) as traffic:
        traffic.wait_acked(100)  # a process that has not appended yet could not without the store
        site.control_redis.kill()
        try:
            seen.wait_words("#headline", "control store (Redis) does not answer")
            assert seen.text("#link-words") == "live, from one process"
            assert "unknown" in seen.card("breaker")
            # What this process admits and the log's lag are still there, and go on
            seen.wait(f"charts.rows().length > {points + 4} && charts.latest('lag') !== null")
            seen.wait("charts.lately('admitted') > 20")
        finally:
            site.control_redis.start()
        seen.wait_words("#headline", "All is well")
    assert seen.text("#link-words").startswith("live, ")
    assert seen.complaints == []
    site.check(traffic)


def test_a_rate_set_by_hand_shows_with_its_end_and_who_set_it(site: Site, browser: Browser) -> None:
    seen = watched(browser, site.system.url, **WIDE)
    seen.wait_live()
    seen.wait_words("#headline", "All is well")
    assert "none" in seen.card("override")
    store = wiring.make_control_store(site.settings)
    until = store.state().time + 600
    store.set_override(321.0, until=until, actor="ann@example", why="a test of the page")
    try:
        seen.wait_words("#card-override", "321")
        told = f"until {clock_time(until).removesuffix(' UTC')}, by ann@example: a test of the page"
        assert told in seen.card("override")
        seen.wait_words("#card-rate", "321")
        seen.wait_words("#card-rate", "set by an operator")
        # An operator chose it: it is no problem, so the card has no colour
        assert seen.page.locator("#card-rate").get_attribute("data-level") is None
        seen.wait_words("#rows", f"Override: 321/s until {clock_time(until)}")
    finally:
        store.clear_override(actor="ann@example", why="the test is over")
    seen.wait_words("#card-override", "none")


def test_several_processes_show_one_system(site: Site, browser: Browser, tmp_path: Path) -> None:
    other = replace(site.settings, ingest_port=free_port())
    program = ingest(other, tmp_path, name="other").start()
    with contextlib.ExitStack() as stack:
        stack.callback(program.stop)
        wait_until(lambda: _is_ready(other.ingest_port), "the other ingest is ready")
        seen = watched(browser, f"http://127.0.0.1:{other.ingest_port}", **WIDE)
        seen.wait_words("#headline", "All is well")
        # When all traffic goes to the first process, then the page of the other shows it
        with site.traffic(events_per_second=200, events_max=20_000) as traffic:
            seen.wait("charts.lately('admitted') > 100")
        site.check(traffic)


def _is_ready(port: int) -> bool:
    return http_status(f"http://127.0.0.1:{port}/readyz") == 200
