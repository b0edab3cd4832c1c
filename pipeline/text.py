"""Numbers with their nouns; and makes text from outside safe to show in a terminal or a log file.

A line feed in an id or a reason would start a forged log line, and an escape sequence would reach the reader's
terminal.
"""

import re
from collections.abc import Collection
from typing import Final

NAMED_MAX: Final = 3  # of many partitions with one problem: with more, a line for each would hide all others

# C0 and C1 controls, Unicode line separators, and marks that change the display order of the text after them.
_HIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_HIDDEN_BUT_LINES: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the singular or the plural: 1 event, 1,200 events."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def some_of(found: Collection[int] | Collection[str]) -> str:
    """The first few of some numbers or names: 1, 2, 3, …"""
    shown = ", ".join(str(one) for one in sorted(found)[:NAMED_MAX])
    return f"{shown}, …" if len(found) > NAMED_MAX else shown


def on_one_line(text: str) -> str:
    r"""The text with control characters as escapes: a line feed is `\n`, an escape `\x1b`."""
    return _HIDDEN.sub(_escaped, text)


def on_its_lines(text: str) -> str:
    """The same for text of several lines; keeps its line feeds and tabs."""
    return _HIDDEN_BUT_LINES.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
