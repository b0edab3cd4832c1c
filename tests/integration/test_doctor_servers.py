"""`sluice doctor` with real servers, and with servers that are away."""

import pytest

from pipeline import wiring
from pipeline.settings import Settings
from sluice import doctor
from sluice.findings import Finding, State
from stack.config import environ_of
from stack.servers import free_port

SERVERS = ("Redis", "rights", "event log", "PostgreSQL", "sessions", "schema", "clocks")


def look(monkeypatch: pytest.MonkeyPatch, settings: Settings, **changed: str) -> dict[str, list[Finding]]:
    """The lines by their names."""
    monkeypatch.setenv("SLUICE_HOME", "/no/system/here")
    monkeypatch.delenv("SLUICE_SYSTEM", raising=False)
    for name, value in {**environ_of(settings), **changed}.items():
        monkeypatch.setenv(name, value)
    found: dict[str, list[Finding]] = {}
    for finding in doctor.look(seconds_max=100):
        found.setdefault(finding.name, []).append(finding)
    return found


def test_real_servers_are_looked_at(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    wiring.make_schema(settings).migrate(wait_seconds=60)
    found = look(monkeypatch, settings)
    # Then all is well, but for PostgreSQL: that of the tests would lose events with the machine's power
    assert {name: found[name][0].state for name in SERVERS} == {
        **dict.fromkeys(SERVERS, State.OK),
        "PostgreSQL": State.WRONG,
    }, found
    assert "fsync=off" in found["PostgreSQL"][0].what
    assert found["rights"][0].what.endswith("ingest, worker, operator")
    assert "PostgreSQL differ" in found["clocks"][0].what


def test_servers_that_are_away_are_named_with_what_to_do(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    away = f"127.0.0.1:{free_port()}"
    found = look(
        monkeypatch,
        settings,
        REDIS_URL=f"redis://:secret@{away}/0",
        EVENT_LOG_URL=f"redis://{away}/1",
        DATABASE_URL=f"postgresql://u:secret@{away}/events",
        INGEST_URL=f"http://{away}",
    )
    lines = [finding.line for findings in found.values() for finding in findings]
    for name, setting in (("Redis", "REDIS_URL"), ("event log", "EVENT_LOG_URL"), ("PostgreSQL", "DATABASE_URL")):
        assert [one.state for one in found[name]] == [State.WRONG]
        assert found[name][0].do == f"start the server of {setting}, or correct that setting"
    assert found["ingest"][0].state is State.WRONG
    # And what can't be known without them is no finding of its own
    assert {name: found[name][0].state for name in ("rights", "sessions", "schema", "clocks")} == dict.fromkeys(
        ("rights", "sessions", "schema", "clocks"), State.UNKNOWN
    )
    assert not any("secret" in line for line in lines)
