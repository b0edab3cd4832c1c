"""Flower's configuration file."""

import logging
import runpy
import time
from collections.abc import Iterator

import pytest

from checks.testbed.processes import ROOT

INSPECTOR = logging.getLogger("flower.inspector")


@pytest.fixture
def configured() -> Iterator[dict[str, object]]:
    """The names that the file sets, for a Flower that begins now."""
    before = list(INSPECTOR.filters)
    yield runpy.run_path(str(ROOT / "monitoring" / "flowerconfig.py"))
    INSPECTOR.filters[:] = before


def warns(level: int = logging.WARNING) -> bool:
    return bool(INSPECTOR.filter(INSPECTOR.makeRecord("", level, "", 0, "Inspect method conf failed", (), None)))


def test_workers_that_do_not_answer_while_the_system_starts_are_no_warning(
    configured: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not warns()
    assert warns(logging.ERROR)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    assert warns()


def test_no_name_of_the_file_is_an_option_by_accident(configured: dict[str, object]) -> None:
    # tornado takes each name that is one of its options: `logging` is one
    assert "logging" not in configured
