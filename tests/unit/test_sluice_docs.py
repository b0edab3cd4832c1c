"""`sluice docs`: builds the documentation's site when that is needed, and serves it on this machine."""

import importlib.util
import os
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sluice import documentation
from sluice.__main__ import main
from sluice.documentation import DocumentationError, build, is_stale
from stack.config import StackConfig, docs_port
from stack.servers import ServerError, free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two pages, whose site is built by a copy."""
    folder = tmp_path / "code"
    (folder / "docs").mkdir(parents=True)
    (folder / "mkdocs.yml").write_text("site_name: x\n")
    (folder / "docs" / "README.md").write_text("one")
    (folder / "docs" / "b.md").write_text("two")
    monkeypatch.setattr(documentation, "CODE", folder)
    monkeypatch.setattr(documentation, "local_folder", lambda _: tmp_path / "local")
    return folder


@pytest.fixture
def built(code: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were built; instead of MkDocs, something quick writes one page."""
    folders: list[Path] = []

    def instead(folder: Path, *, strict: bool) -> None:
        assert not strict
        folders.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.html").write_text((code / "docs" / "README.md").read_text())

    monkeypatch.setattr(documentation, "_run_mkdocs", instead)
    return folders


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What would be served: the first page, and the port."""
    seen: list[tuple[str, int]] = []

    def instead(site: Path, port: int) -> None:
        seen.append(((site / "index.html").read_text(), port))

    monkeypatch.setattr(documentation, "serve", instead)
    return seen


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT_BASE", "DOCS_PORT"):
        monkeypatch.delenv(name, raising=False)


def age(path: Path, seconds: float) -> None:
    """Make a file or folder that much older than now."""
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


def test_the_site_is_built_when_it_is_not_there_and_when_a_source_is_newer(
    code: Path, built: list[Path], served: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (code / "mkdocs.yml", code / "docs" / "README.md", code / "docs" / "b.md", code / "docs"):
        age(path, 1000)
    assert main(["docs"]) == 0
    assert (len(built), served) == (1, [("one", 8000)])
    # When nothing changed, it is not built again
    monkeypatch.setenv("PORT_BASE", "18100")
    assert main(["docs"]) == 0
    assert (len(built), served[-1]) == (1, ("one", 18174))
    # When a page is changed, it is
    (code / "docs" / "README.md").write_text("changed")
    os.utime(code / "docs" / "README.md", (2**33, 2**33))
    assert main(["docs"]) == 0
    assert (len(built), served[-1]) == (2, ("changed", 18174))


def test_a_page_that_went_away_makes_the_site_old(code: Path, built: list[Path], served: list[tuple[str, int]]) -> None:
    assert main(["docs"]) == 0
    [site] = (code.parent / "local").iterdir()
    os.utime(site, (2**33, 2**33))
    assert not is_stale(site)
    (code / "docs" / "b.md").unlink()
    os.utime(code / "docs", (2**33 + 1, 2**33 + 1))
    assert is_stale(site)


def test_a_source_that_changes_during_a_build_makes_the_site_old(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changes_meanwhile(folder: Path, *, strict: bool) -> None:
        (folder / "index.html").write_text("old")
        (code / "docs" / "b.md").write_text("new")

    monkeypatch.setattr(documentation, "_run_mkdocs", changes_meanwhile)
    assert is_stale(documentation.fresh_site())


def test_a_build_that_fails_leaves_the_site_as_it_was(
    code: Path, built: list[Path], served: list[tuple[str, int]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert main(["docs"]) == 0
    os.utime(code / "mkdocs.yml", (2**33, 2**33))

    def fails(folder: Path, *, strict: bool) -> None:
        (folder / "index.html").write_text("half")
        raise DocumentationError("mkdocs failed: x")

    monkeypatch.setattr(documentation, "_run_mkdocs", fails)
    assert main(["docs"]) == 1
    assert capsys.readouterr().err.endswith("…\nsluice docs: mkdocs failed: x\n")
    [site] = (code.parent / "local").iterdir()
    assert (site / "index.html").read_text() == "one"
    assert is_stale(site)
    assert len(served) == 1


@pytest.mark.parametrize("fault", ["a link to nowhere", "a page without a place in the navigation"])
def test_a_fault_of_the_pages_fails_the_build_and_is_named(code: Path, fault: str) -> None:
    if importlib.util.find_spec("material") is None:
        pytest.skip("there is no mkdocs-material (pip install -r requirements-docs.txt)")
    # Given the validation of this project's site, and two pages of which both are in the navigation
    shown = re.search(r"^validation:\n(?:  .*\n)+", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert shown is not None
    (code / "mkdocs.yml").write_text(f"site_name: x\n{shown[0]}nav: [README.md, b.md]\n")
    build(code.parent / "site")
    # When one has a fault
    if fault == "a link to nowhere":
        (code / "docs" / "b.md").write_text("[x](c.md)")
    else:
        (code / "docs" / "c.md").write_text("three")
    # Then the build fails, and says which
    with pytest.raises(DocumentationError, match=r"c\.md"):
        build(code.parent / "site")


def test_a_package_without_the_documentation_says_where_it_is(
    code: Path, served: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    (code / "mkdocs.yml").unlink()
    assert main(["docs"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"sluice docs: {code} has no documentation")
    assert said.count("\n") == 1
    assert "in a checkout" in said


def test_a_missing_mkdocs_says_how_to_get_it(
    code: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "material" else found(name))
    assert main(["docs"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("sluice docs: the package mkdocs-material is missing: ")
    assert f"pip install -c {code / 'constraints.txt'} -r {code / 'requirements-docs.txt'}" in said


@pytest.mark.parametrize(("found", "takes"), [("notes.txt", False), ("search/search_index.json", True), (None, True)])
def test_a_build_deletes_nothing_but_an_earlier_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str | None, *, takes: bool
) -> None:
    ran: list[tuple[Path, bool]] = []
    monkeypatch.setattr(documentation, "_run_mkdocs", lambda folder, *, strict: ran.append((folder, strict)))
    folder = tmp_path / "there"
    if found is not None:
        (folder / found).parent.mkdir(parents=True)
        (folder / found).touch()
    if takes:
        assert main(["docs", "--build", str(folder)]) == 0
        assert ran == [(folder, True)]
    else:
        with pytest.raises(DocumentationError, match="is not an earlier site"):
            build(folder)
        assert ran == []


def test_the_port_follows_the_base_unless_it_is_set() -> None:
    assert docs_port({}) == 8000
    most = {"PORT_BASE": "18100", "INGEST_PROCESSES": "64", "PATH": "/nowhere"}
    last = max(StackConfig.from_environ("redis", most).ports_used.values())
    assert docs_port({"PORT_BASE": "18100"}) == last + 1 == 18174
    assert docs_port({"PORT_BASE": "18100", "DOCS_PORT": "9999"}) == 9999
    with pytest.raises(ServerError, match="DOCS_PORT='x'"):
        docs_port({"DOCS_PORT": "x"})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "index.html").write_text("<title>Sluice</title>")
    (tmp_path / "adr").mkdir()
    (tmp_path / "adr" / "index.html").write_text("decisions")
    port = free_port()
    with documentation.listen(tmp_path, port) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            listening.shutdown()
            thread.join()


def test_the_site_is_served_on_the_loopback_address(server: str, get: Callable[[str], str]) -> None:
    assert get(f"{server}/") == "<title>Sluice</title>"
    assert get(f"{server}/adr/") == "decisions"
    port = int(server.rpartition(":")[2])
    with pytest.raises(DocumentationError, match=f"port {port} is taken: set DOCS_PORT"):
        documentation.listen(Path(), port)


@pytest.fixture
def get() -> Callable[[str], str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answer(url: str) -> str:
        with opener.open(url, timeout=60) as response:
            return str(response.read().decode())

    return answer
