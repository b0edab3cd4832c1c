"""Small pieces of HTML. All text is escaped here, and only here."""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

_CODE: Final = re.compile(r"`([^`]+)`")


def inline(text: str) -> str:
    """A text; words between backticks become code."""
    parts = _CODE.split(text)
    return "".join(f"<code>{escape(part)}</code>" if at % 2 else escape(part) for at, part in enumerate(parts))


def prose(text: str) -> str:
    """Paragraphs, and lists of lines that start with a dash: the part of CommonMark that the descriptions use."""
    found = []
    for block in text.split("\n\n"):
        lines = block.split("\n")
        if all(line.startswith("- ") for line in lines):
            found.append("<ul>" + "".join(f"<li>{inline(line[2:])}</li>" for line in lines) + "</ul>")
        else:
            found.append(f"<p>{inline(block)}</p>")
    return "".join(found)


def code_block(text: str) -> str:
    """Unchanged text; it can be scrolled, also with the keyboard."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def json_block(value: Any) -> str:
    """A JSON value, indented."""
    return code_block(json.dumps(value, indent=2, ensure_ascii=False))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, label: str) -> str:
    """A table; its cells are HTML already. Each cell has its column's name: on a phone, rows become cards."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-name="{escape(name)}">{cell}</td>' if at else f'<th scope="row">{cell}</th>'
            for at, (name, cell) in enumerate(zip(heads, row, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    return f'<table aria-label="{escape(label)}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def link(target: str, text: str) -> str:
    """A link to a place on this page."""
    return f'<a href="#{escape(target)}">{escape(text)}</a>'
