"""One part of a run: what it did, its figures and its problems."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Part:
    """`problems`: what is wrong; the part held if there are none. `skipped`: why it could not run on this machine."""

    name: str
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: str | None = None
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """The verdict in a word."""
        if self.problems:
            return "BROKEN"
        return "skipped" if self.skipped is not None else "held"
