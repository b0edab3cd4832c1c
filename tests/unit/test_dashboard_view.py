"""What the page shows beside the charts, from memory."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ingest.dashboard
from ingest.appender import LogStatus
from ingest.dashboard.view import ViewSources, page_document
from ingest.health import HealthSources
from pipeline.errors import SettingsError
from pipeline.follower import ControlSnapshot
from pipeline.health.snapshot import Outlook
from pipeline.names import BreakerState, ControlEventKind, Mode, ProtocolName
from pipeline.ports.control import ControlState, PublishedRate
from pipeline.settings import Settings

ASSETS = Path(ingest.dashboard.__file__).parent / "assets"
NOW = 1_700_000_000.0
RATE = PublishedRate(
    version=7, rate=800.0, base_rate=800.0, mode=Mode.NORMAL, lag=17, published_at=NOW, lag_known_at=NOW
)
STATE = ControlState(rate=RATE, pauses=(), breaker=BreakerState.CLOSED, time=NOW, generation=1, floor_rate=100.0)
HEALTH = HealthSources(
    wall=NOW,
    now=1000.0,
    control=ControlSnapshot(STATE, read_at=999.5, published_at=998.0),
    store_problem=None,
    settings=Settings(),
    log=LogStatus(answers=True, is_full=False, problem=None),
    rate=800.0,
    available_permissions=300,
    is_local=False,
)
SOURCES = ViewSources(HEALTH, "host:1", 1)


def document(sources: ViewSources, tokens: float | None = None) -> dict[str, Any]:
    return page_document(replace(sources, health=replace(sources.health, outlook=Outlook(bucket_tokens=tokens))))


def test_the_bucket_never_holds_more_than_fits_in() -> None:
    # Given a process that holds a lease of 30 tokens beside a bucket that is full
    assert document(SOURCES, tokens=830)["availablePermissions"] == 800
    assert document(SOURCES, tokens=700)["availablePermissions"] == 700
    assert document(SOURCES)["availablePermissions"] is None
    assert document(SOURCES)["bucketCapacity"] == 800


def test_the_headline_is_the_worst_whoever_sees_it() -> None:
    # Given a controller that is silent, and a log that is full, which only this process knows
    health = replace(
        HEALTH,
        control=ControlSnapshot(STATE, read_at=999.5, published_at=900.0),
        log=LogStatus(answers=True, is_full=True, problem=None),
    )
    reasons = document(replace(SOURCES, health=health))["reasons"]
    assert [reason["severity"] for reason in reasons] == ["critical", "degraded"]
    assert reasons[0]["what"].startswith("The event log is full")


def test_the_links_of_the_settings_are_in_the_page() -> None:
    settings = Settings.from_environ({"PAGE_URLS": "Flower=http://127.0.0.1:5555, Grafana=https://g.example/?a=b"})
    shown = document(replace(SOURCES, health=replace(HEALTH, settings=settings)))
    assert shown["links"] == [
        {"name": "Flower", "url": "http://127.0.0.1:5555"},
        {"name": "Grafana", "url": "https://g.example/?a=b"},
    ]
    assert document(SOURCES)["links"] == []


@pytest.mark.parametrize("text", ["Flower", "=http://127.0.0.1", "Evil=javascript:alert(1)"])
def test_a_link_that_is_no_address_of_the_web_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="PAGE_URLS"):
        Settings.from_environ({"PAGE_URLS": text})


@pytest.mark.parametrize(("table", "vocabulary"), [("KINDS", ControlEventKind), ("PROTOCOLS", ProtocolName)])
def test_the_page_has_a_sign_or_a_name_for_each_word(
    table: str, vocabulary: "type[ControlEventKind | ProtocolName]"
) -> None:
    script = (ASSETS / "page.js").read_text(encoding="utf-8")
    found = re.search(rf"const {table} = {{(.*?)}};", script, re.DOTALL)
    assert found is not None
    assert set(re.findall(r"(\w+): [\[\"]", found[1])) == {one.value for one in vocabulary} - {"unknown"}
