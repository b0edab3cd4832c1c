"""The live page and the contract on a port of their own with a password, in a real browser."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, HttpCredentials

from stack.servers import free_port
from support.browser import chromium, chromium_path, close_pages, watched
from support.running_ingest import RunningIngest, running_ingest

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def browser(missing: Callable[[str], None]) -> Iterator[Browser]:
    if chromium_path() is None:
        missing("chromium")
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with running_ingest(operator_port=free_port(), operator_password=PASSWORD) as found:
        yield found


def test_the_page_its_files_and_its_stream_use_the_password_that_the_browser_asked_for(
    browser: Browser, edge: RunningIngest
) -> None:
    url = f"http://127.0.0.1:{edge.operator_port}"
    known = HttpCredentials(username="ann", password=PASSWORD)
    try:
        # Given the password, then the page is live, with nothing to complain about and nobody else asked
        seen = watched(browser, url, http_credentials=known)
        seen.wait("document.getElementById('link').dataset.state === 'live'")
        assert (seen.complaints, seen.hosts) == ([], {f"127.0.0.1:{edge.operator_port}"})
        # And so is the contract, whose commands name the port for events
        docs = watched(browser, f"{url}/docs#/events/postLogs", http_credentials=known)
        docs.wait_words("#contract", f"http://127.0.0.1:{edge.port}/api/logs")
        assert f":{edge.operator_port}" not in docs.text("#contract")
        assert docs.complaints == []
        # With a wrong one there is neither
        wrong = browser.new_context(http_credentials=HttpCredentials(username="ann", password="x" * 12)).new_page()
        answer = wrong.goto(url)
        assert answer is not None
        assert answer.status == 401
    finally:
        close_pages(browser)
