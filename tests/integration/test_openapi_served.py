"""`/openapi.json` and `/docs` as they are served: every address of ingest is in them, and what they print works."""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX
from checks.testbed.wire import get, request, send
from support.browser import Watched, chromium, chromium_path, close_pages, watched
from support.running_ingest import RunningIngest, running_ingest


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with running_ingest(body_events_max=321) as running:
        yield running


def test_every_address_of_ingest_is_in_the_document(edge: RunningIngest) -> None:
    document = get(edge.port, "/openapi.json").json
    told = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    served = {
        ("/" + re.sub(r"<(\w+):\w+>", r"{\1}", route.path), method)
        for route in edge.app.router.routes
        for method in route.methods
        if method != "HEAD"
    }
    assert told == served
    assert document["components"]["schemas"]["Batch"]["maxItems"] == 321


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_a_client_that_has_it_gets_it_once(edge: RunningIngest, path: str) -> None:
    # Given a client that has asked before
    first = get(edge.port, path)
    etag = first.headers["etag"]
    assert first.status == 200
    # When it asks again, Then it is told that nothing has changed
    for names in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = send(edge.port, request(method="GET", path=path, headers={"If-None-Match": names}), has_body=False)
        assert (again.status, again.headers["etag"]) == (304, etag)
    # And it gets the content where it has another
    assert send(edge.port, request(method="GET", path=path, headers={"If-None-Match": '"x"'})).body == first.body
    head = send(edge.port, request(method="HEAD", path=path), has_body=False)
    assert head.status == 200
    assert head.headers["content-length"] == str(len(first.body))
    assert send(edge.port, request(b"", path=path)).status == 405


def test_every_command_of_the_contract_works_as_it_is_printed(
    edge: RunningIngest, missing: Callable[[str], None]
) -> None:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        missing("curl or bash")
    # Given the commands in the contract
    text = get(edge.port, "/openapi.json").json["paths"]["/api/logs"]["post"]["description"]
    commands = re.findall(r": (\d{3})\n\n```\n(.+?)\n```", text, re.DOTALL)
    assert [status for status, _ in commands] == ["202", "202", "202", "202", "422"]
    # When each command is pasted into a shell, Then it gets the status beside it
    for status, command in commands:
        here = re.sub(r"http://localhost:\d+", f"http://127.0.0.1:{edge.port}", command)
        run = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True, timeout=WAIT_SECONDS_MAX)
        assert run.stdout.startswith(f"HTTP/1.1 {status} "), (here, run.stdout)


def test_the_page_loads_its_own_files_and_runs_nothing_else(edge: RunningIngest) -> None:
    page = get(edge.port, "/docs")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;")
    assert "unsafe" not in policy
    text = page.body.decode()
    assert "{{" not in text
    assert "style=" not in text
    files = re.findall(r'(?:src|href)="(/assets/[^"]+)"', text)
    assert len(files) == 5
    for file in files:
        answer = get(edge.port, file)
        assert (answer.status, "immutable" in answer.headers["cache-control"]) == (200, True)
    # And the policy of the live page stays what it was
    assert "data:" not in get(edge.port, "/").headers["content-security-policy"]


# Rules that Swagger UI's own markup breaks; contrast, names of fields and all other rules hold.
UPSTREAM = {"heading-order", "landmark-unique", "nested-interactive", "region", "scrollable-region-focusable"}


@pytest.fixture(scope="module")
def browser(edge: RunningIngest, missing: Callable[[str], None]) -> Iterator[Browser]:
    """It ends before `edge`, which has pages of it open otherwise."""
    if chromium_path() is None:
        missing("chromium")
    with chromium() as found:
        yield found


@contextlib.contextmanager
def _opened_page(browser: Browser, edge: RunningIngest, **context: Any) -> Iterator[Watched]:
    """The page in a browser, without a complaint or a request to another host until the end."""
    try:
        seen = watched(browser, f"http://127.0.0.1:{edge.port}/docs", **context)
        seen.wait(f"document.querySelectorAll('.opblock').length === {len(_operations(edge))}")
        yield seen
        assert seen.complaints == []
        assert seen.hosts == {f"127.0.0.1:{edge.port}"}
    finally:
        close_pages(browser)


def _operations(edge: RunningIngest) -> list[tuple[str, str, dict[str, Any]]]:
    paths = get(edge.port, "/openapi.json").json["paths"]
    return [(path, method, one) for path, item in paths.items() for method, one in item.items()]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_page_in_a_browser(browser: Browser, edge: RunningIngest, width: int, scheme: str) -> None:
    with _opened_page(browser, edge, viewport={"width": width, "height": 800}, color_scheme=scheme) as seen:
        # The colours are those that the reader's system prefers
        background = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(28, 32, 34)" if scheme == "dark" else "rgb(255, 255, 255)")
        assert not seen.overflows()
        # One operation is open: all have the same markup, and an audit of all would take long
        post = seen.page.locator("#operations-events-postLogs")
        post.locator(".opblock-summary-control").click()
        post.locator(".responses-table").first.wait_for()
        assert not seen.overflows()
        assert f"curl -i 'http://127.0.0.1:{edge.port}/api/logs'" in post.inner_text(), "the address in use"
        assert "localhost" not in post.inner_text()
        found = Axe().run(seen.page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:120]) for one in found if one["id"] not in UPSTREAM] == []


def test_the_page_has_every_operation_answer_schema_and_field(browser: Browser, edge: RunningIngest) -> None:
    components = get(edge.port, "/openapi.json").json["components"]
    operations = _operations(edge)
    with _opened_page(browser, edge) as seen:
        # Given a page with operations and all schemas open. Opening an operation takes Swagger UI seconds, so the first
        # of each tag stands for the others.
        opened = list(
            {operation["tags"][0]: (path, method, operation) for path, method, operation in operations[::-1]}.values()
        )
        blocks = {
            operation["operationId"]: f"#operations-{operation['tags'][0]}-{operation['operationId']}"
            for _, _, operation in operations
        }
        open_all = "document.querySelectorAll('{}').forEach(one => one.click())"
        for _, _, operation in opened:
            control = f"{blocks[operation['operationId']]} .opblock-summary-control[aria-expanded=false]"
            seen.page.evaluate(open_all.format(control))
        seen.page.evaluate(open_all.format("section.models .json-schema-2020-12-expand-deep-button"))
        are_open = "document.querySelectorAll('.opblock.is-open .responses-table').length"
        seen.wait(f"{are_open} === {len(opened)}", seconds_max=RUN_SECONDS_MAX)
        # Then each operation is there, and an open one has its answers
        for path, method, operation in operations:
            block = seen.page.locator(blocks[operation["operationId"]])
            assert block.locator(".opblock-summary-method").inner_text() == method.upper()
            assert block.locator(".opblock-summary-path").get_attribute("data-path") == path
            if (path, method, operation) not in opened:
                continue
            statuses = block.locator("tr.response td.response-col_status").all_inner_texts()
            assert set(statuses) == set(operation["responses"])
        # And each schema its fields
        text = seen.text("section.models")
        for name, schema in components["schemas"].items():
            assert name in text
            for field in schema.get("properties", ()):
                assert field in text, (name, field)
        # And each answer of POST its first example
        posted = seen.page.locator("#operations-events-postLogs").inner_text()
        for one in operations[0][2]["responses"].values():
            answer = components["responses"][one["$ref"].rpartition("/")[2]]
            first = next(iter(answer["content"]["application/json"]["examples"].values()))["value"]
            assert str(first["error"]["message"] if "error" in first else first["accepted"]) in posted


def test_the_document_is_what_it_says(edge: RunningIngest) -> None:
    answer = get(edge.port, "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["openapi"] == "3.1.0"
