"""The load test's verdict, on recordings made by hand: each expectation can be broken."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from loadtest.report import page, row
from loadtest.story import Bands, Phase, phases
from loadtest.verdict import Figures, Request, Sample, Stored, figures, judge, judge_stored, percentile
from support.processes import ROOT

BANDS = Bands(1000.0, 100.0, 1000, 5000)


def sample(at: float, status: str = "healthy", **changes: object) -> Sample:
    return replace(Sample(at, status, 0, 1000.0, "closed", "running"), **changes)  # type: ignore[arg-type]


def requests(
    count: int, *, status: int = 202, seconds: float = 0.01, events: int = 1, end: float = 10.0
) -> list[Request]:
    return [Request(end * number / count, events, status, seconds) for number in range(count)]


def judged(name: str, made: list[Request], samples: list[Sample], *, late: float = 0.0) -> list[str]:
    phase = Phase(name, 10.0, 1.0)
    return judge(figures(phase, 0.0, 10.0, made, samples), BANDS, late_seconds=late)


def refused(count: int, **how: float) -> list[Request]:
    return requests(count, status=429, **how)  # type: ignore[arg-type]


GOOD: dict[str, tuple[list[Request], list[Sample]]] = {
    "normal": (requests(8000), [sample(9)]),
    "1.5 times the rate": (requests(10_500) + refused(4500), [sample(9)]),
    "5 times the rate": (requests(10_500) + refused(40_000), [sample(9)]),
    "backlog": (
        requests(6000) + refused(9000),
        [sample(1), sample(4, "degraded", lag=3000, rate=500.0), sample(9, "critical", lag=6000, rate=100.0)],
    ),
    "catching up": (requests(5000), [sample(9)]),
    "PostgreSQL away": (
        requests(1000) + refused(7000),
        [sample(9, "critical", rate=100.0, breaker="open", consumption="paused")],
    ),
    "recovery": (requests(5000), [sample(9)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_phase_holds(name: str) -> None:
    assert judged(name, *GOOD[name]) == []


def test_every_phase_of_the_story_has_a_good_example_and_is_judged() -> None:
    assert [phase.name for phase in phases(BANDS, scale=1.0, own=True)] == list(GOOD)
    assert [phase.act for phase in phases(BANDS, scale=1.0, own=False)] == ["", "", ""]


@pytest.mark.parametrize(
    ("name", "made", "samples", "says"),
    [
        ("normal", requests(7000) + refused(1000), [sample(9)], "were refused"),
        ("normal", requests(8000) + requests(1, status=503), [sample(9)], "another answer"),
        ("normal", requests(8000) + requests(1, status=0), [sample(9)], "another answer"),
        ("normal", requests(8000, seconds=1.5), [sample(9)], "p99 of admitted"),
        ("normal", [], [sample(9)], "nothing was offered"),
        ("normal", requests(8000), [], "never seen"),
        ("1.5 times the rate", requests(15_000), [sample(9)], "nothing was refused"),
        ("1.5 times the rate", requests(15_000) + refused(1), [sample(9)], "were admitted, not about"),
        ("1.5 times the rate", requests(7000) + refused(8000), [sample(9)], "were admitted, not about"),
        ("5 times the rate", requests(10_500) + refused(40_000, seconds=0.7), [sample(9)], "p99 of refused"),
        ("backlog", GOOD["backlog"][0], GOOD["backlog"][1][:2], "was never critical"),
        ("backlog", GOOD["backlog"][0], [sample(9, "critical", rate=100.0)], "was never degraded"),
        ("backlog", GOOD["backlog"][0], [sample(4, "degraded"), sample(9, "critical", rate=400.0)], "to 400/s only"),
        ("catching up", requests(5000), [sample(9, lag=1500)], "the lag is 1500"),
        ("catching up", requests(5000), [sample(9, lag=None)], "the lag is None"),
        ("catching up", requests(5000), [sample(9, rate=900.0)], "the rate is 900/s"),
        ("recovery", requests(5000), [sample(9, breaker="open")], "the breaker is open"),
        ("PostgreSQL away", requests(1000), [sample(9, rate=100.0, consumption="paused")], "did not open"),
        ("PostgreSQL away", requests(1000), [sample(9, rate=100.0, breaker="open")], "not paused"),
        ("PostgreSQL away", requests(1000), [sample(9, breaker="open", consumption="paused")], "not at its floor"),
    ],
)  # fmt: skip
def test_what_did_not_hold_is_said(name: str, made: list[Request], samples: list[Sample], says: str) -> None:
    problems = judged(name, made, samples)
    assert any(says in problem for problem in problems), problems


def test_a_generator_that_is_late_is_blamed_first() -> None:
    assert "generator too slow" in judged("normal", *GOOD["normal"], late=0.6)[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda stored: replace(stored, lost=1), "1 of 10 acknowledged events are not stored"),
        (lambda stored: replace(stored, unasked=1), "stored that were refused"),
        (lambda stored: replace(stored, twice=1), "stored twice"),
    ],
)
def test_what_is_stored_is_judged(change: Callable[[Stored], Stored], says: str) -> None:
    good = Stored(checked=True, acknowledged=10)
    assert judge_stored(good) == []
    [problem] = judge_stored(change(good))
    assert says in problem


def test_requests_count_to_the_phase_in_which_they_were_due() -> None:
    phase = Phase("normal", 10.0, 0.8)
    made = [Request(9.9, 1, 202, 5.0), Request(10.0, 100, 202, 0.1), Request(-0.1, 100, 202, 0.1)]
    found = figures(phase, 0.0, 10.0, made, [sample(9)])
    assert (found.offered, found.admitted) == (1, 1)


def test_a_percentile_is_not_below_its_share() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([], 0.99)) == (51.0, 100.0, 0.0)


def test_the_time_to_fill_a_backlog_follows_the_line() -> None:
    # By small steps of what the controller would admit
    lag = seconds = 0.0
    while lag < BANDS.lag_critical - 1:
        share = min(1.0, max(0.0, (lag - 1000) / 4000))
        lag += (1000 - 900 * share) * 0.001
        seconds += 0.001
    assert BANDS.seconds_to_critical == pytest.approx(seconds, rel=0.01)


def test_the_page_stands_alone_and_says_what_failed() -> None:
    found = Figures(Phase("<normal>", 10.0, 0.8, "", "all"), 0.0, 10.0, offered=10, problems=["a & b"])
    text = page([found], "1 of 1", ["lost"], ["a note"], b'<?xml version="1.0"?><svg></svg>')
    assert "&lt;normal&gt;" in text
    assert "a &amp; b" in text
    assert "<?xml" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert row(found)[-1] == "a & b"


def test_load_is_sent_to_this_machine_only() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "loadtest", "--url", "http://192.0.2.1:8080"], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert said.returncode == 2
    assert "to this machine only" in said.stderr
