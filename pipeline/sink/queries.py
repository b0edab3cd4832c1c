"""Loads the adapter's SQL from `queries.sql`: statements by name."""

import re
from functools import cache
from importlib import resources
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def queries() -> dict[str, str]:
    """Every statement of queries.sql, without comments, by the name above it."""
    text = resources.files("pipeline.sink").joinpath("queries.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    found: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in found:
            raise ValueError(f"queries.sql has two statements named {name}")
        found[name] = "\n".join(line for line in body.splitlines() if not line.lstrip().startswith("--")).strip()
    return found


def query(name: str) -> str:
    """One statement of queries.sql. Raises KeyError if there is none of that name."""
    return queries()[name]
