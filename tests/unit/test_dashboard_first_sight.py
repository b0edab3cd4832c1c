"""What the page says before its script runs, or without one."""

import re
from dataclasses import replace
from pathlib import Path

import ingest.dashboard
from ingest.dashboard.first_sight import MARKERS, first_sight
from ingest.dashboard.view import document_of
from pipeline.health.snapshot import HealthInputs, Traffic
from pipeline.names import BreakerState, Mode
from support.health import BREAKER, HEALTHY, OVERRIDE

PAGE = (Path(ingest.dashboard.__file__).parent / "assets" / "index.html").read_text(encoding="utf-8")
NIGHT = replace(
    HEALTHY, breaker=BreakerState.OPEN, pauses=(replace(BREAKER, why="<script>alert('x')</script> & more"),),
    mode=Mode.CRITICAL, lag=60_000, rate=100.0,
)  # fmt: skip


def seen(inputs: HealthInputs, *, has_long_charts: bool = True) -> str:
    links = [{"name": "Grafana & more", "url": "https://grafana.example/?a=1&b=2"}]
    own = {"process": "host:1", "viewers": 1, "links": links, "hasLongCharts": has_long_charts}
    return first_sight(PAGE, document_of(inputs) | own).decode()


def text_of(page: str, element: str) -> str:
    """The text of the element with this id."""
    found = re.search(rf'id="{element}"[^>]*>(.*?)</(?:h1|p|div|ul|section|dl)>', page, re.DOTALL)
    assert found is not None, element
    return " ".join(re.sub(r"<[^>]+>", " ", found[1]).split())


def test_verdict_and_reasons_are_in_the_page() -> None:
    page = seen(NIGHT)
    assert text_of(page, "headline") == (
        "PostgreSQL fails since 22:13:10 UTC: the breaker is open, consumption is paused, the rate is at its lowest "
        "(100/s)"
    )
    assert text_of(page, "level") == "Critical"
    assert '<body data-severity="critical"' in page
    assert "tries a small write" in page
    assert "INSERT INTO probes VALUES (1, now())" in page.replace("&quot;", '"')
    assert 'href="/runbooks/breaker-open"' in page
    assert '</code> <a href="/runbooks#prepare-a-shell">in a prepared shell</a>' in page
    assert "Consumers are far behind: 60,000 events wait" in page


def test_what_a_server_said_is_text_and_not_markup() -> None:
    page = seen(NIGHT)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more" in page


def test_the_figures_are_in_the_page() -> None:
    page = seen(replace(HEALTHY, override=OVERRIDE))
    cards = dict(re.findall(r'id="card-(\w+)">.*?<b>(.*?)</b>', page))
    assert cards == {
        "admitted": "800 /s", "rate": "1,000 /s", "lag": "12 events", "drain": "800 /s", "refused": "0 /s",
        "bucket": "\u2013 tokens", "breaker": "closed", "consumption": "running", "controller": "2 s ago",
        "override": "50 /s",
    }  # fmt: skip
    assert text_of(page, "headline") == ("All is well: 800 events per second are admitted, 12 events wait to be stored")
    one = seen(replace(HEALTHY, lag=1, traffic=Traffic(1.0, 0.0, 0.0, 0.0)))
    assert text_of(one, "headline") == "All is well: 1 event per second is admitted, 1 event waits to be stored"


def test_it_says_when_it_was_made_and_how_to_get_newer_figures() -> None:
    [note] = re.findall(r"<noscript><p.*?</noscript>", seen(HEALTHY), re.DOTALL)[:1]
    assert "22:13:20 UTC" in note
    assert 'href="/"' in note


def test_what_is_unknown_has_a_dash() -> None:
    page = seen(replace(HEALTHY, traffic=None, lag=None, rate=None, drain_rate=None, controller_age=None))
    cards = dict(re.findall(r'id="card-(\w+)">.*?<b>(.*?)</b>', page))
    assert [cards[name] for name in ("admitted", "rate", "lag", "drain", "controller")] == [
        "\u2013 /s", "\u2013 /s", "\u2013 events", "\u2013 /s", "\u2013",
    ]  # fmt: skip


def test_no_marker_is_left_and_each_is_in_the_page_once() -> None:
    assert {marker: PAGE.count(marker) for marker in MARKERS} == dict.fromkeys(MARKERS, 1)
    page = seen(HEALTHY)
    assert [marker for marker in MARKERS if marker in page] == []


def test_links_to_other_tools_are_at_the_foot() -> None:
    foot = seen(HEALTHY).partition("<footer>")[2]
    assert '<a href="https://grafana.example/?a=1&amp;b=2">Grafana &amp; more</a>' in foot
    assert 'href="/runbooks"' in foot
    assert 'href="/docs"' in foot


def test_a_choice_of_longer_charts_is_there_if_prometheus_is() -> None:
    spans = re.findall(r'<button type="button" data-span="(\w*)" aria-pressed="(\w+)">', seen(HEALTHY))
    assert spans == [("", "true"), ("6h", "false"), ("7d", "false")]
    without = seen(HEALTHY, has_long_charts=False)
    assert "data-span" not in without
    assert "6 hours and 7 days need a Prometheus" in without
