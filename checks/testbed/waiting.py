"""Waits for conditions, each with a deadline."""

import time
from typing import Any


def wait_until(condition: Any, what: str, *, seconds_max: float) -> None:
    """Poll a condition until it holds. Raises AssertionError that names it."""
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds_max} s: {what}"
        time.sleep(0.05)
