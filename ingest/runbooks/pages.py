"""Runbooks from Markdown to HTML. Pure, but for the folder that is read.

docs/runbooks/ is written for GitHub and for the site. Here a link to another runbook stays a link. A link to another
page of docs/ becomes the path of that file, because ingest does not serve it.
"""

import html
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import mistune
from mistune.plugins.table import table, table_in_list

FOLDER: Final = Path(__file__).parent / "docs"  # a link to docs/runbooks/; an installed package has the files
INDEX: Final = "README"
ADDRESS: Final = "/runbooks"

_TITLE: Final = re.compile(r"^# (.+)$", re.MULTILINE)
_OWN_SUFFIX: Final = re.compile(r"\.(?:md|html)$")


@dataclass(frozen=True, slots=True)
class RunbookPage:
    """One page: its title as text, and its body as HTML."""

    title: str
    body: str


class Runbooks:
    """The pages of a folder, each read and converted once, when it is first asked for."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self.names = frozenset(path.stem for path in folder.glob("*.md"))
        self._made = cache(self._make)

    def page(self, name: str) -> RunbookPage | None:
        """The page with a name; .md or .html at its end is left out. None if there is none."""
        name = _OWN_SUFFIX.sub("", name)
        return self._made(name) if name in self.names else None

    def _make(self, name: str) -> RunbookPage:
        text = (self._folder / f"{name}.md").read_text(encoding="utf-8")
        found = _TITLE.search(text)
        return RunbookPage(found[1] if found is not None else name, _html_of(text, self.names))


def _html_of(text: str, names: Collection[str]) -> str:
    markdown = mistune.create_markdown(renderer=_Renderer(names), plugins=[table, table_in_list])
    return str(markdown(text))


class _Renderer(mistune.HTMLRenderer):
    """HTML with anchors for headings, and links that lead somewhere here. HTML in the text is escaped."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(escape=True)
        self._names = names

    def heading(self, text: str, level: int, **_: Any) -> str:
        return f'<h{level} id="{anchor_of(text)}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        path, mark, anchor = url.partition("#")
        if ":" in path or not path:
            return super().link(text, url, title)
        name = path.removesuffix(".md")
        if name == INDEX:
            return super().link(text, f"{ADDRESS}{mark}{anchor}", title)
        if name in self._names:
            return super().link(text, f"{ADDRESS}/{name}{mark}{anchor}", title)
        return f"{text} (<code>docs/{html.escape(path.removeprefix('../'))}</code>)"


def anchor_of(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    words = re.sub(r"<[^>]*>", "", heading).lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", html.unescape(words)))
