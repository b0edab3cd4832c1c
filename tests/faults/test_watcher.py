"""A watcher that sees nothing any more says so, and the run is judged as broken by it."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psycopg2
import pytest

from checks.soak import watcher
from checks.soak.found import Found
from checks.soak.history import History
from checks.soak.rig import Options
from checks.soak.run import Result, Verdict, _judge
from checks.soak.watcher import Watcher
from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline import wiring
from pipeline.errors import LogUnavailableError, StoreUnavailableError
from pipeline.settings import Settings


def _no_log() -> None:
    raise LogUnavailableError


RIG = SimpleNamespace(
    direct=SimpleNamespace(database_url="postgresql://nowhere"),
    settings=Settings(),
    options=Options("redis", Path(), 1, 100.0),
    unplanned=[],
    ingest_ports=[],
    log_positions=_no_log,
)


class _Store:
    """A control store and its events; `error` is what it says, `asked` how often it was asked twice."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._asked = 0
        self.asked = threading.Event()

    def state(self) -> Any:
        self._asked += 1
        if self._asked > 1:
            self.asked.set()
        raise self._error


def _watched(monkeypatch: pytest.MonkeyPatch, offsets: Exception, rates: Exception) -> Watcher:
    """A watcher whose servers say these errors, stopped after two looks or the death of its threads."""
    store, connected = _Store(rates), threading.Event()
    asked = [0]

    def connect(*_: object, **__: object) -> Any:
        asked[0] += 1
        if asked[0] > 1:
            connected.set()
        raise offsets

    monkeypatch.setattr(watcher, "PERIOD_SECONDS", 0.001)
    monkeypatch.setattr(psycopg2, "connect", connect)
    monkeypatch.setattr(wiring, "make_control_store", lambda _: store)
    monkeypatch.setattr(wiring, "make_control_events", lambda _: store)
    made = Watcher(cast("Any", RIG)).start()
    for thread, seen in zip(made._threads[:2], (connected, store.asked), strict=True):
        while thread.is_alive() and not seen.wait(0.01):
            pass
    made.stop()
    return made


def test_servers_that_are_away_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _watched(monkeypatch, psycopg2.OperationalError("away"), StoreUnavailableError("away"))
    assert made.failures == []


def test_a_watcher_that_died_is_a_violation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given watchers that met what they do not expect
    made = _watched(monkeypatch, KeyError("next_offset"), ZeroDivisionError("by a rate"))
    # When the run is judged
    result = Result(Options("redis", tmp_path, 1, 100.0), [])
    _judge(result, cast("Any", RIG), made, History(), Found("log.2"))
    # Then it is broken, in words that have what happened
    assert result.verdict is Verdict.BROKEN
    said = "\n".join(result.violations)
    assert "the watcher of stored offsets died" in said
    assert "KeyError('next_offset')" in said
    assert "the watcher of published rates died" in said
    assert "ZeroDivisionError('by a rate')" in said


def test_a_watcher_that_hangs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "JOIN_SECONDS_MAX", 0.05)
    end = threading.Event()
    monkeypatch.setattr(Watcher, "_watch_offsets", lambda _: end.wait(WAIT_SECONDS_MAX))
    monkeypatch.setattr(Watcher, "_watch_rates", lambda _: None)
    made = Watcher(cast("Any", RIG)).start()
    made.stop()
    end.set()
    assert [words for words in made.failures if "stored offsets hangs" in words]
