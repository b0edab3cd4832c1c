"""What the live page says of each rate policy: its script in a real browser, with the documents of real policies."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

import ingest.dashboard
from pipeline.policies.bands import BandPolicy
from pipeline.policies.drain_time import DrainTimePolicy
from pipeline.ports.rate import Explanation, PartitionSample, RateSample
from pipeline.status import policy_document
from support.browser import chromium, chromium_path

ASSETS = Path(ingest.dashboard.__file__).parent / "assets"
BANDS = BandPolicy(rate_max=1000.0, rate_min=100.0, lag_degraded=10_000, lag_critical=50_000)
DRAIN_TIME = DrainTimePolicy(rate_max=50_000.0, rate_min=100.0, target_seconds=2.0, period_seconds=1.0)


@pytest.fixture(scope="module")
def page(missing: Callable[[str], None]) -> Iterator[Page]:
    if chromium_path() is None:
        missing("chromium")
    with chromium() as browser:
        found = browser.new_page()
        for name in ("format.js", "policies.js"):
            found.add_script_tag(path=ASSETS / name)
        yield found


def said(page: Page, call: str, explanation: Explanation, *more: object) -> Any:
    return page.evaluate(
        f"([policy, ...more]) => policies.{call}(policy, ...more)", [policy_document(explanation), *more]
    )


def decided(lag: int) -> Explanation:
    """drain_time for a lag, at a capacity of 1,450 events/s."""
    sample = RateSample(1.0, {0: PartitionSample(lag, lag)}, ran_dry=True, last_rate=1450.0)
    return DRAIN_TIME.decide(sample, None).explanation


def test_below_the_lag_is_what_the_policy_goes_by(page: Page) -> None:
    assert said(page, "backlogWords", BANDS.describe()) == "degraded from 10k, critical above 50k"
    assert said(page, "backlogWords", decided(2755)) == (
        "drain time 1.9 s, target 2 s, degraded above 4 s, critical above 10 s"
    )
    # a drain time that nobody measured yet is not invented
    assert said(page, "backlogWords", DRAIN_TIME.describe()) == "not stored yet"


def test_only_a_policy_with_a_measure_of_its_own_has_a_chart_of_it(page: Page) -> None:
    assert said(page, "caption", BANDS.describe()) == ""
    assert said(page, "caption", decided(0)) == "Drain time, s, with the thresholds of the rate policy"
    assert said(page, "target", decided(0))["value"] == 2


def test_thresholds_have_the_unit_of_their_measure(page: Page) -> None:
    words = "(policy) => policy.thresholds.map(policies.levelWords)"
    assert page.evaluate(words, policy_document(BANDS.describe())) == ["degraded from 10,000", "critical above 50,000"]
    assert page.evaluate(words, policy_document(decided(0))) == ["degraded above 4 s", "critical above 10 s"]


@pytest.mark.parametrize(
    ("rate", "is_lowered"),
    [(1450.0, False), (1522.0, False), (1306.0, False), (1304.0, True), (100.0, True)],
)
def test_a_rate_is_compared_with_what_the_sink_stores_where_that_is_measured(
    page: Page, rate: float, is_lowered: bool
) -> None:
    scale = said(page, "scale", decided(2900), rate, "the archive")
    assert (scale["full"], scale["isLowered"]) == (1450, is_lowered)
    assert scale["of"] == "1,450 that the archive stores"


def test_else_a_rate_is_compared_with_the_highest_one(page: Page) -> None:
    assert said(page, "scale", BANDS.describe(), 999.0) == {"full": 1000, "isLowered": True, "of": "1,000"}
    assert said(page, "scale", BANDS.describe(), 1000.0)["isLowered"] is False


def test_the_shadow_says_what_it_would_do_and_why(page: Page) -> None:
    bands, beside = policy_document(BANDS.describe()), policy_document(decided(20_300))
    told = page.evaluate("(policy) => policies.sentence(policy)", bands | {"shadow": beside | {"rate": 100.0}})
    assert told == (
        "Rate policy bands: 1,000/s below a lag of 10,000 events, falling to 100/s at 50,000. The shadow policy drain "
        "time would admit at most 100 events a second (the backlog takes 14.0 s)."
    )
    assert "shadow" not in page.evaluate("(policy) => policies.sentence(policy)", bands | {"shadow": None})


@pytest.mark.parametrize(
    ("value", "text"), [(None, "\u2013"), (0, "0"), (1.94, "1.9"), (12.04, "12"), (99.94, "99.9"), (1234.5, "1,235")]
)
def test_seconds_have_a_digit_that_means_something(page: Page, value: float | None, text: str) -> None:
    assert page.evaluate("(value) => format.fine(value)", value) == text


def test_the_marks_of_a_scale_are_what_they_say(page: Page) -> None:
    # Given the marks of a scale from 0 to 1, and of larger ones
    marks = [0, 0.25, 0.5, 0.75, 1, 1.25, 2.5, 50, 1_500, 25_000]
    assert page.evaluate("(marks) => marks.map(format.short)", marks) == [
        "0", "0.25", "0.5", "0.75", "1", "1.25", "2.5", "50", "1,500", "25k",
    ]  # fmt: skip


def test_a_low_rate_is_not_shown_as_0_and_one_event_is_no_plural(page: Page) -> None:
    assert page.evaluate("[0, 0.42, 9.94, 12.3, null].map(format.rate)") == ["0", "0.4", "9.9", "12", "\u2013"]
    counts = page.evaluate("[0, 1, 1200].map((count) => format.counted(count, 'event'))")
    assert counts == ["0 events", "1 event", "1,200 events"]
