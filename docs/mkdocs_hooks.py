"""Hooks of MkDocs for the site of the documentation.

The pages link to files of the repository, as GitHub needs it. The site has docs/ and the pages of EXTRA. A link to
another file becomes its path, as text.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
# Pages outside of docs/, and where the site has them.
EXTRA: Final = {
    "SECURITY.md": "repository/security.md",
    "CONTRIBUTING.md": "repository/contributing.md",
    "CHANGELOG.md": "repository/changelog.md",
    "clients/python/README.md": "repository/python-client.md",
    "examples/README.md": "repository/examples.md",
    **{
        f"examples/{name}/README.md": f"repository/example-{name}.md"
        for name in ("fastapi", "django", "otel-collector", "rsyslog", "fluent-bit", "incident")
    },
}
_SOURCES: Final = {place: source for source, place in EXTRA.items()}
_CODE: Final = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages outside of docs/."""
    for source, place in EXTRA.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Adapt the links of a page."""
    place = page.file.src_uri
    return adapted(markdown, place, _SOURCES.get(place, f"docs/{place}"), (ROOT / "docs").joinpath)


def adapted(markdown: str, place: str, source: str, in_docs: Callable[[str], Path]) -> str:
    """The text of a page with links for the site; `place` is its path there, `source` the one in the repository."""

    def link(match: "re.Match[str]") -> str:
        mark, text, url = match.groups()
        path, sharp, anchor = url.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = target.removeprefix("docs/") if target.startswith("docs/") else EXTRA.get(target)
        if there is None or (there not in _SOURCES and not in_docs(there).is_file()):
            return f"{text} (`{target}`)"
        return f"{mark}[{text}]({posixpath.relpath(there, posixpath.dirname(place) or '.')}{sharp}{anchor})"

    codes = list(_CODE.finditer(markdown))
    # Links within code are left alone: code is replaced by marks meanwhile. A link's text may have code.
    hidden = _CODE.sub("\0", markdown)
    pieces = _LINK.sub(link, hidden).split("\0")
    kept = iter(code[0] for code in codes)
    return pieces[0] + "".join(next(kept) + piece for piece in pieces[1:])
