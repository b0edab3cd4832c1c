"""`/openapi.json` and `/docs` as they are served: every address of ingest is in them, and what they print works."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html import unescape

import pytest
from axe_playwright_python.sync_playwright import Axe

from support.browser import chromium, chromium_path, watched
from support.edge import RunningEdge, get, request, running_edge, send


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningEdge]:
    with running_edge(body_events_max=321) as running:
        yield running


def test_every_address_of_ingest_is_in_the_document(edge: RunningEdge) -> None:
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
def test_a_client_that_has_it_gets_it_once(edge: RunningEdge, path: str) -> None:
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


def test_every_command_of_the_page_works_as_it_is_printed(edge: RunningEdge, missing: Callable[[str], None]) -> None:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        missing("curl or bash")
    # Given the page as a browser gets it
    page = get(edge.port, "/docs").body.decode().replace("localhost", f"127.0.0.1:{edge.port}")
    commands = re.findall(
        r'<span class="status" data-class="\d">(\d+) [^<]*</span></figcaption><pre[^>]*><code>([^<]+)<', page
    )
    assert len(commands) == 6
    # When each command is pasted into a shell, Then it gets the status beside it
    for status, command in commands:
        run = subprocess.run(["bash", "-c", unescape(command)], capture_output=True, text=True, check=True, timeout=20)
        assert run.stdout.startswith(f"HTTP/1.1 {status} "), (command, run.stdout)


def test_the_page_is_for_the_address_in_use(edge: RunningEdge) -> None:
    def page(host: str, **headers: str) -> str:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        return send(edge.port, f"GET /docs HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode()).body.decode()

    assert "curl -i https://logs.example.org/api/logs" in page("logs.example.org", X_Forwarded_Proto="https")
    assert "the Host is not a name" in page("<b>x</b>")
    for host in ("a'b", "$(id)", ""):
        assert f"curl -i http://127.0.0.1:{edge.port}/api/logs" in page(host)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_page_in_a_browser(edge: RunningEdge, missing: Callable[[str], None], width: int, scheme: str) -> None:
    if chromium_path() is None:
        missing("chromium")
    with chromium() as browser:
        seen = watched(
            browser, f"http://127.0.0.1:{edge.port}/docs", viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        # Everything that can be folded is open
        seen.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert "Takes events over HTTP" in seen.text("h1")
        assert seen.complaints == []
        assert seen.hosts == {f"127.0.0.1:{edge.port}"}
        assert not seen.overflows()
        found = Axe().run(seen.page).response["violations"]
        assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []
        # The style of the page is in force: the policy allows it, and nothing else
        assert seen.page.evaluate("getComputedStyle(document.querySelector('pre')).overflowX") != "visible"
        policy = get(edge.port, "/docs").headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "'self'" not in policy


def test_the_document_is_what_it_says(edge: RunningEdge) -> None:
    answer = get(edge.port, "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["openapi"] == "3.1.0"
