"""Debian's Chromium, and one page of it with everything that went wrong on it."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from checks.testbed.waiting import WAIT_SECONDS_MAX

FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def chromium_path() -> str | None:
    """Where Chromium is; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that asks nobody but who it is told to."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), args=FLAGS, timeout=1000 * WAIT_SECONDS_MAX
        )
        try:
            yield browser
        finally:
            browser.close()


def close_pages(browser: Browser) -> None:
    """Close every page of a browser, with what it has stored."""
    for context in list(browser.contexts):
        context.close()


@dataclass
class Watched:
    """A page, what its console complained about, and which hosts it asked."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def text(self, selector: str) -> str:
        """The visible text of an element, on one line."""
        return " ".join(self.page.locator(selector).inner_text().split())

    def card(self, name: str) -> str:
        return self.text(f"#card-{name}")

    def level(self) -> str:
        return self.page.evaluate("document.body.dataset.severity") or ""

    def points(self) -> int:
        """How many seconds the charts show."""
        return int(self.page.evaluate("Number(document.getElementById('chart-lag').dataset.points || 0)"))

    def wait_live(self) -> None:
        """Until the stream has brought the first state: before, the page shows what ingest wrote into it."""
        self.wait("document.getElementById('link').dataset.state === 'live'")

    def overflows(self) -> bool:
        """Whether one would have to scroll sideways."""
        found: bool = self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        return found

    def wait(self, expression: str, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        """Until a JavaScript expression holds."""
        self.page.wait_for_function(f"() => {expression}", timeout=seconds_max * 1000)

    def wait_words(self, selector: str, words: str, *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        self.page.wait_for_function(
            "([selector, words]) => document.querySelector(selector).innerText.includes(words)",
            arg=[selector, words], timeout=seconds_max * 1000,
        )  # fmt: skip


def watched(browser: Browser, url: str, **context: Any) -> Watched:
    """A page of a context of its own, open at `url`."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(WAIT_SECONDS_MAX * 1000)
    found = Watched(page)

    def note_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            found.complaints.append(f"{message.type}: {message.text}")

    def note_request(request: Request) -> None:
        found.hosts.add(urlsplit(request.url).netloc)

    page.on("console", note_console)
    page.on("pageerror", lambda error: found.complaints.append(f"error: {error}"))
    page.on("request", note_request)
    page.goto(url)
    return found
