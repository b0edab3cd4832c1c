"""Requests that real clients sent, where the recordings of them are there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

_FOLDER: Final = Path(__file__).parents[2].parent / "shared" / "data" / "clients"


@dataclass(frozen=True)
class Recorded:
    """A request as its client sent it: its method, target, header fields (in lower case) and body."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def recorded(name: str) -> Recorded:
    """A recorded request, such as "py-datadog-0". Skips the test where there is none."""
    head, _, body = _read(f"{name}.http").partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    fields = (line.partition(":") for line in lines)
    return Recorded(method, target, {name.lower(): value.strip() for name, _, value in fields}, body)


def recorded_lines(name: str) -> bytes:
    """The lines that a logging library wrote, such as "structlog". Skips the test where there are none."""
    return _read(f"lines-{name}.ndjson")


def _read(name: str) -> bytes:
    path = _FOLDER / name
    if not path.exists():
        pytest.skip(f"no recording {name}")
    return path.read_bytes()
