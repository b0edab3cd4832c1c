"""The documentation as a site: built in strict mode, every link leads somewhere, and nothing comes from other hosts."""

import html.parser
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

from checks.testbed.processes import ROOT
from sluice.documentation import SOURCES

pytestmark = pytest.mark.timeout(600)  # five seconds of CPU, on a machine that may do other things

# Addresses that a browser loads by itself. A link (`<a href>`) may lead to another host.
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("object", "data")}


class _Page(html.parser.HTMLParser):
    """What a page loads, its links and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if (tag, name) in LOADED:
                self.loaded.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)
            elif name == "id":
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]) -> Path:
    if importlib.util.find_spec("material") is None:
        missing("mkdocs-material (pip install -r requirements-docs.txt)")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sluice", "docs", "--build", str(folder)]  # in strict mode
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert built.stdout == f"built {folder}: open {folder / 'index.html'}\n"
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Page]:
    return {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("there is no mkdocs (pip install -r requirements-docs.txt)")
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / "docs" / "mkdocs_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_knows_every_source_of_the_site(hooks: ModuleType) -> None:
    outside = {path for path in hooks.EXTRA if not path.startswith("examples/")}
    assert {"mkdocs.yml", "docs", "examples", *outside} == set(SOURCES)
    examples = {str(path.relative_to(ROOT)) for path in (ROOT / "examples").rglob("README.md")}
    assert examples <= set(hooks.EXTRA)


def test_every_page_is_in_the_site(site: Path) -> None:
    for path in (ROOT / "docs").rglob("*.md"):
        place = site / path.relative_to(ROOT / "docs").with_suffix(".html")
        assert (place.with_name("index.html") if place.name == "README.html" else place).is_file(), path


def test_every_link_in_the_site_leads_to_a_page_and_an_anchor(pages: dict[Path, _Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            has_anchor = not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].anchors
            if not target.is_file() or not has_anchor:
                broken.append((path.name, link))
    assert broken == []


def test_the_site_loads_nothing_from_other_hosts(site: Path, pages: dict[Path, _Page]) -> None:
    loaded = {(path.name, address) for path, page in pages.items() for address in page.loaded}
    assert len(loaded) > 100
    assert [one for one in loaded if re.match(r"(?:[a-z]+:)?//", one[1])] == []
    styles = [(path.name, found) for path in site.rglob("*.css") for found in _outside(path.read_text("utf-8"))]
    assert styles == []
    # The theme loads its program for diagrams from another host, if a page has one.
    assert not [path for path in (ROOT / "docs").rglob("*.md") if "```mermaid" in path.read_text("utf-8")]


def _outside(style: str) -> list[str]:
    return re.findall(r"(?:url\(|@import)\s*['\"]?((?:[a-z]+:)?//[^)'\"]+)", style)


def test_an_address_of_another_host_would_be_found() -> None:
    page = _Page('<script src="https://cdn.example/x.js"></script><a href="https://e.org">x</a><img src="a.png">')
    assert page.loaded == ["https://cdn.example/x.js", "a.png"]
    assert _outside('a{src:url("//fonts.example/a.woff")}') == ["//fonts.example/a.woff"]


@pytest.mark.parametrize(
    ("place", "source", "written", "shown"),
    [
        ("x.md", "docs/x.md", "[s](../SECURITY.md#a)", "[s](repository/security.md#a)"),
        ("adr/x.md", "docs/adr/x.md", "[s](../../SECURITY.md)", "[s](../repository/security.md)"),
        ("x.md", "docs/x.md", "[a `b`](../ingest/app.py) `[c](../d.py)`", "a `b` (`ingest/app.py`) `[c](../d.py)`"),
        ("x.md", "docs/x.md", "[k](keys.md) [e](https://e.org) [h](#h)", "[k](keys.md) [e](https://e.org) [h](#h)"),
        ("repository/security.md", "SECURITY.md", "[k](docs/keys.md#a)", "[k](../keys.md#a)"),
        ("repository/python-client.md", "clients/python/README.md", "[k](../../docs/keys.md)", "[k](../keys.md)"),
        ("adr/x.md", "docs/adr/x.md", "![p](../images/load-test.png)", "![p](../images/load-test.png)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(
    hooks: ModuleType, place: str, source: str, written: str, shown: str
) -> None:
    assert hooks.adapted(written, place, source, (ROOT / "docs").joinpath) == shown
