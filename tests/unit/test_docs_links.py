"""Links between the pages of the documentation lead somewhere, and the index of decisions is complete."""

import re
from pathlib import Path

import pytest

from sluice.arguments import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.md")),
        *(ROOT / "clients").glob("*/README.md"),
    ]
)
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", _CODE.sub(lambda one: one[0].strip("`"), text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", words)))
    return found


def broken_links(page: Path) -> list[str]:
    """The links of a page to files or headings of this repository that are not there."""
    broken = []
    for link in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_or_heading(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# The `b` page, once\n", encoding="utf-8")
    page = tmp_path / "a.md"
    page.write_text(
        "[x](b.md) [x](b.md#the-b-page-once) [x](c.md) [x](b.md#other) `[x](d.md)` [x](https://e.org)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["c.md", "b.md#other"]


def test_the_index_of_decisions_has_every_page() -> None:
    folder = ROOT / "docs" / "adr"
    listed = set(_LINK.findall((folder / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in folder.glob("*.md")} - {"README.md"} <= listed


def test_every_picture_is_in_a_page() -> None:
    shown = {Path(link).name for page in PAGES for link in _LINK.findall(page.read_text(encoding="utf-8"))}
    assert [path.name for path in (ROOT / "docs" / "images").iterdir() if path.name not in shown] == []


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_commands_of_the_front_page_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    scripts = set(re.findall(r"(?<!\S)`?\./([\w-]+\.sh)", text))
    assert {name for name in scripts if not (ROOT / name).exists()} == set()
    commands = set(re.findall(r"\bsluice ([a-z]+)\b(?= |`)", "\n".join(_CODE.findall(text))))
    assert {"send", "status", "doctor"} <= commands <= set(COMMANDS), commands
