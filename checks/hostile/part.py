"""One part of a run: what was done, the figures, and what is wrong."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Part:
    """`problems`: what must not be; none of them: it held. `skipped`: why it could not be done on this machine."""

    name: str
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: str | None = None
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.problems:
            return "BROKEN"
        return "skipped" if self.skipped is not None else "held"
