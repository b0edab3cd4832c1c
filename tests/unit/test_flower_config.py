"""Flower's configuration file."""

import logging
import runpy
import time
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from celery.events.receiver import EventReceiver

from checks.testbed.processes import ROOT

INSPECTOR = logging.getLogger("flower.inspector")


@pytest.fixture
def configured() -> Iterator[dict[str, object]]:
    """The names that the file sets, for a Flower that begins now."""
    before, consume = list(INSPECTOR.filters), EventReceiver.consume
    yield runpy.run_path(str(ROOT / "monitoring" / "flowerconfig.py"))
    INSPECTOR.filters[:] = before
    EventReceiver.consume = consume  # type: ignore[method-assign]


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


def test_the_reader_of_events_sleeps_while_there_are_none(
    configured: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a reader as Flower makes it, to which nobody sends events for a minute
    waits: list[float] = []

    def drain_events(timeout: float) -> None:
        waits.append(timeout)
        receiver.should_stop = sum(waits) >= 60
        raise TimeoutError

    connection = SimpleNamespace(drain_events=drain_events, heartbeat_check=lambda: None)
    receiver: Any = object.__new__(EventReceiver)
    monkeypatch.setattr(EventReceiver, "consumer_context", lambda *_, **__: nullcontext((connection, None, [])))
    receiver.capture(limit=None, timeout=None, wakeup=True)
    assert len(waits) == 60 / 5


def test_no_name_of_the_file_is_an_option_by_accident(configured: dict[str, object]) -> None:
    # tornado takes each name that is one of its options: `logging` is one
    assert "logging" not in configured
