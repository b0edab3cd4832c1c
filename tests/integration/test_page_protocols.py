"""What the live page says of protocols, in a real browser."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from checks.testbed.wire import post
from ingest.dashboard.recorder import SystemReaders
from pipeline.control_store.memory import MemoryServer
from pipeline.control_store.memory_history import MemoryHistory
from pipeline.log.memory import MemoryLog
from pipeline.settings import Settings
from stack.servers import free_port
from support.browser import chromium, chromium_path, watched
from support.running_ingest import RunningIngest, eventually, sample


@pytest.fixture
def edge() -> Iterator[RunningIngest]:
    """Ingest with a history in memory."""
    settings, control = replace(Settings(ingest_port=free_port()), log_partitions=2), MemoryServer()
    running = RunningIngest(
        settings,
        control=control,
        make_readers=lambda log: SystemReaders(MemoryHistory(control), MemoryLog(server=log)),
    )
    yield running.start()
    running.stop()


def test_a_part_of_the_page_tells_protocols_apart_once_another_is_used(
    edge: RunningIngest, missing: Callable[[str], None]
) -> None:
    if chromium_path() is None:
        missing("chromium")
    with chromium() as browser:
        # Given a page as wide as a phone, and clients that use Sluice's own JSON
        page = watched(browser, f"http://127.0.0.1:{edge.port}/", viewport={"width": 390, "height": 844})
        assert post(edge.port, sample()).status == 202
        page.wait_live()
        assert page.page.locator("#protocols").is_hidden()
        # When one comes that has another protocol, and a record that can't become an event
        body = {"streams": [{"stream": {"app": "shop"}, "values": [["1700000000000000000", "paid"], 5]}]}

        def is_shown() -> bool:
            assert post(edge.port, body, path="/loki/api/v1/push").status == 204
            return page.page.locator("#protocols").is_visible()

        eventually(is_shown, "the part is shown")
        # Then each has a row
        assert page.page.locator("#protocol-rows th").all_text_contents() == ["Sluice\u2019s JSON", "Loki"]
        assert "Accepted" in page.text(".protocols thead")
        assert page.complaints == []
        assert not page.overflows()
