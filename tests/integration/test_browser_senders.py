"""Pages of other origins that send events, in a real browser: what their scripts can send and read."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from checks.testbed.wire import get
from pipeline.keys import ApiKey, digest_of, make_key
from support.browser import chromium, chromium_path
from support.running_ingest import RunningIngest, edge_settings, eventually, running_ingest, sample

KEY, KEY_ID = make_key()
# What a script gets: the answer with the fields that it may read, or the error.
FETCH = """async ([url, method, headers, body]) => {
  try {
    const answer = await fetch(url, {method, headers, body});
    return {status: answer.status, body: await answer.text(), fields: Object.fromEntries(answer.headers)};
  } catch (error) { return {error: String(error)}; }
}"""


class Blank(BaseHTTPRequestHandler):
    """A page of another origin."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a shop</title>")

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@pytest.fixture(scope="module")
def running_browser(missing: Callable[[str], None]) -> Iterator[Browser]:
    if chromium_path() is None:
        missing("chromium")
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    """The origin of a page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Blank)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def page(running_browser: Browser, shop: str) -> Page:
    page = running_browser.new_page()
    page.goto(shop)
    return page


def fetch(
    page: Page, port: int, path: str = "/api/logs", *, method: str = "POST", body: str | None = None, **headers: str
) -> dict[str, Any]:
    fields = {name.replace("_", "-"): value for name, value in headers.items()} or {"content-type": "application/json"}
    given = [f"http://127.0.0.1:{port}{path}", method, fields, body]
    found: dict[str, Any] = page.evaluate(FETCH, given)
    return found


def test_a_page_sends_events_and_reads_202_and_429_with_its_wait(page: Page, shop: str) -> None:
    with running_ingest(ingest_cors_origins=shop, rate_min=1, rate_max=1) as edge:
        body = json.dumps(sample())
        first = fetch(page, edge.port, body=body)
        assert (first["status"], json.loads(first["body"])) == (202, {"accepted": 1})
        assert first["fields"]["x-request-id"]
        found: dict[str, Any] = {}

        def is_refused() -> bool:
            found.update(fetch(page, edge.port, body=body))
            return bool(found["status"] == 429)

        eventually(is_refused, "the rate is used up")
        assert json.loads(found["body"])["error"]["code"] == "rate_limited"
        assert int(found["fields"]["retry-after"]) >= 1
        assert found["fields"]["ratelimit"].startswith('"events";')
        assert found["fields"]["ratelimit-policy"]


def test_without_the_setting_a_page_neither_sends_json_nor_reads_an_answer(page: Page, shop: str) -> None:
    for origins in ("", "https://another.example"):
        with running_ingest(ingest_cors_origins=origins) as edge:
            assert "error" in fetch(page, edge.port, body=json.dumps(sample()))
            assert edge.records() == []
            # A text needs no question beforehand, so the browser sends it; its script learns nothing of the answer.
            assert "error" in fetch(page, edge.port, "/api/logs/lines", body="a line", content_type="text/plain")


def test_a_page_sends_its_key_in_every_protocol_of_browsers_and_reads_a_401(page: Page, shop: str) -> None:
    edge = RunningIngest(edge_settings(ingest_keys=True, ingest_cors_origins=shop))
    edge.stored_keys = lambda: (ApiKey(KEY_ID, "shop", digest_of(KEY), (), None, "test", "a test", 0.0),)
    edge.start()
    try:
        loki = {"streams": [{"stream": {"app": "shop"}, "values": [["1700000000000000000", "a line"]]}]}
        otlp = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": "a line"}}]}]}]}
        bulk = '{"create": {}}\n{"message": "a line"}\n'
        for path, body, media_type, status in (
            ("/api/logs", json.dumps(sample()), "application/json", 202),
            ("/api/logs/lines", "a line\n", "text/plain", 202),
            ("/v1/logs", json.dumps(otlp), "application/json", 200),
            ("/loki/api/v1/push", json.dumps(loki), "application/json", 204),
            ("/shop/_bulk", bulk, "application/x-ndjson", 200),
            ("/services/collector/event", '{"event": "e"}', "application/json", 200),
        ):
            said = {"content_type": media_type, "authorization": f"Bearer {KEY}", "x_scope_orgid": "shop",
                    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}  # fmt: skip
            answer = fetch(page, edge.port, path, body=body, **said)
            assert answer.get("status") == status, (path, answer)
            refused = fetch(page, edge.port, path, body=body, content_type=media_type)
            assert refused.get("status") == 401, (path, refused)
        assert len(edge.records()) == 6
    finally:
        edge.stop()


def test_all_origins_may_send_and_none_reads_what_operators_see(page: Page) -> None:
    with running_ingest(ingest_cors_origins="*") as edge:
        assert fetch(page, edge.port, body=json.dumps(sample()))["status"] == 202
        for path in ("/api/logs/health", "/metrics", "/openapi.json", "/api/logs/throttle"):
            assert "error" in fetch(page, edge.port, path, method="GET", accept="*/*"), path
            assert get(edge.port, path).status == 200
