"""The load test's verdict, on recordings made by hand: each expectation can be broken."""

import contextlib
import io
import itertools
import json
import socketserver
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from checks.loadgen.open_load import Responses
from checks.loadtest.__main__ import (
    HealthSampler,
    Target,
    asked_of,
    line_of,
    notes_of,
    play,
    policy_at,
    requests_of,
    settings_of,
)
from checks.loadtest.given import Access
from checks.loadtest.options import limits_of, own_limits, parse
from checks.loadtest.pictures import Pictures, file_name
from checks.loadtest.report import backlog, page, picture, row, series_of
from checks.loadtest.scenario import Action, Limits, Phase, phases, seconds_least
from checks.loadtest.verdict import (
    Asked,
    Figures,
    Request,
    Sample,
    Stored,
    compare,
    figures,
    judge,
    judge_stored,
    percentile,
)
from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX
from pipeline.policies.drain_time import DrainTimePolicy
from pipeline.ports.rate import PartitionSample, PolicyState, RateSample
from stack.servers import free_port
from support.running_ingest import running_ingest

LIMITS = Limits(1000.0, 100.0, 1000, 5000)


def sample(at: float, status: str = "healthy", **changes: object) -> Sample:
    return replace(Sample(at, status, 0, 1000.0, "closed", "running"), **changes)  # type: ignore[arg-type]


class Offer:
    """Requests, which are made when a test asks for them: else each process that collects tests makes 400,000."""

    def __init__(self, *parts: Callable[[], Iterator[Request]]) -> None:
        self._parts = parts

    def __add__(self, other: "Offer") -> "Offer":
        return Offer(*self._parts, *other._parts)

    def __iter__(self) -> Iterator[Request]:
        return itertools.chain.from_iterable(make() for make in self._parts)


def requests(count: int, *, status: int = 202, seconds: float = 0.01) -> Offer:
    return Offer(lambda: (Request(10.0 * number / count, 1, status, seconds) for number in range(count)))


def judged(
    name: str, made: Iterable[Request], samples: list[Sample], *, late: float = 0.0, limits: Limits = LIMITS
) -> list[str]:
    phase = Phase(name, 10.0, 1.0)
    return judge(figures(phase, 0.0, 10.0, [*made], samples), limits, late_seconds=late)


def refused(count: int, *, seconds: float = 0.01) -> Offer:
    return requests(count, status=429, seconds=seconds)


GOOD: dict[str, tuple[Offer, list[Sample]]] = {
    "normal": (requests(8000), [sample(9)]),
    "1.5 times the rate": (requests(10_500) + refused(4500), [sample(9)]),
    "5 times the rate": (requests(10_500) + refused(40_000), [sample(9)]),
    "backlog": (
        requests(6000) + refused(9000),
        [sample(1), sample(4, "degraded", lag=3000, rate=500.0), sample(9, "critical", lag=6000, rate=100.0)],
    ),
    "catching up": (requests(5000), [sample(9)]),
    "PostgreSQL outage": (
        requests(1000) + refused(7000),
        [sample(9, "critical", rate=100.0, breaker="open", consumption="paused")],
    ),
    "recovery": (requests(5000), [sample(9)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_phase_holds(name: str) -> None:
    assert judged(name, *GOOD[name]) == []


def test_every_phase_of_the_story_has_a_good_example_and_is_judged() -> None:
    assert [phase.name for phase in phases(LIMITS, own=True)] == list(GOOD)
    assert [phase.action for phase in phases(LIMITS, own=False)] == ["", "", ""]


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
        ("PostgreSQL outage", requests(1000), [sample(9, rate=100.0, consumption="paused")], "did not open"),
        ("PostgreSQL outage", requests(1000), [sample(9, rate=100.0, breaker="open")], "not paused"),
        ("PostgreSQL outage", requests(1000), [sample(9, breaker="open", consumption="paused")], "not at its lowest"),
    ],
)  # fmt: skip
def test_what_did_not_hold_is_said(name: str, made: Iterable[Request], samples: list[Sample], says: str) -> None:
    problems = judged(name, made, samples)
    assert any(says in problem for problem in problems), problems


DRAIN_LIMITS = own_limits(1000.0, full=False, policy="drain_time")
FULL: dict[str, Any] = {"drain": 2.1, "capacity": 980.0}
GOOD_DRAIN: dict[str, tuple[Offer, list[Sample]]] = {
    "normal": (requests(8000), [sample(9, drain=0.1, capacity=1000.0)]),
    "1.5 times the rate": (requests(13_000) + refused(2000), [sample(9, rate=1030.0, **FULL)]),
    "5 times the rate": (requests(10_500) + refused(40_000), [sample(9, rate=1000.0, **FULL)]),
    "backlog": (
        requests(4500) + refused(10_500),
        [sample(1, drain=1.0), sample(9, "degraded", rate=100.0, drain=4.2, capacity=980.0)],
    ),
    "catching up": (requests(5000), [sample(1, rate=100.0, drain=4.2), sample(9, rate=1020.0, drain=0.3)]),
    "PostgreSQL outage": GOOD["PostgreSQL outage"],
    "recovery": (requests(5000), [sample(9, rate=1020.0, drain=0.3)]),
}


@pytest.mark.parametrize("name", GOOD_DRAIN)
def test_a_good_phase_holds_under_drain_time(name: str) -> None:
    assert list(GOOD_DRAIN) == [phase.name for phase in phases(DRAIN_LIMITS, own=True)]
    assert judged(name, *GOOD_DRAIN[name], limits=DRAIN_LIMITS) == []


@pytest.mark.parametrize(
    ("name", "made", "samples", "says"),
    [
        ("normal", requests(7000) + refused(1000), [sample(9)], "were refused"),
        ("1.5 times the rate", requests(8000) + refused(7000), [sample(9, **FULL)], "less than 1,000"),
        ("1.5 times the rate", requests(15_000) + refused(1), [sample(9, **FULL)], "more than about 1,000"),
        ("1.5 times the rate", requests(13_000), [sample(9, **FULL)], "nothing was refused"),
        ("5 times the rate", *GOOD_DRAIN["5 times the rate"][:1], [sample(9, drain=4.1, capacity=980.0)],
         "the drain time came to 4.1 s, above 4 s"),
        ("5 times the rate", *GOOD_DRAIN["5 times the rate"][:1], [sample(9)], "the drain time came to unknown"),
        ("5 times the rate", *GOOD_DRAIN["5 times the rate"][:1], [sample(9, drain=2.0, capacity=700.0)],
         "the capacity is 700/s at the end, not about 1,000/s"),
        ("backlog", GOOD_DRAIN["backlog"][0], [sample(9, drain=4.2, rate=100.0)], "was never degraded"),
        ("backlog", GOOD_DRAIN["backlog"][0], [sample(9, "degraded", drain=3.9, rate=100.0)], "came to 3.9 s only"),
        ("backlog", GOOD_DRAIN["backlog"][0], [sample(9, "degraded", drain=4.2, rate=200.0)], "fell to 200/s only"),
        ("catching up", requests(5000), [sample(9, drain=2.1)], "is 2.1 s at the end, above 2 s"),
        ("catching up", requests(5000), [sample(9, drain=0.1, rate=800.0)], "the rate is 800/s at the end"),
        ("recovery", requests(5000), [sample(9, drain=0.1, breaker="open")], "the breaker is open"),
        ("PostgreSQL outage", requests(1000), [sample(9, breaker="open", consumption="paused")], "not at its lowest"),
    ],
)  # fmt: skip
def test_what_did_not_hold_under_drain_time_is_said(
    name: str, made: Iterable[Request], samples: list[Sample], says: str
) -> None:
    problems = judged(name, made, samples, limits=DRAIN_LIMITS)
    assert any(says in problem for problem in problems), problems


def test_a_rate_that_is_given_is_only_the_least_that_drain_time_admits() -> None:
    # Given a system of others, of which only the rate at the beginning is known
    given = Limits(1000.0, 100.0, policy="drain_time")
    assert judged("5 times the rate", requests(45_000), [sample(9, rate=6000.0)], limits=given) == []
    assert judged("5 times the rate", requests(8000), [sample(9)], limits=given) != []


def test_a_rate_beyond_the_first_one_takes_some_seconds_to_be_found() -> None:
    # Given a PostgreSQL that stores 2,000, and a policy that begins with 1,000
    limits = own_limits(2000.0, full=False, policy="drain_time")
    assert judged("normal", requests(14_000) + refused(2000), [sample(9)], limits=limits) == []
    assert judged("normal", requests(13_000) + refused(3000), [sample(9)], limits=limits) == [
        "3000 events were refused"
    ]


def test_the_time_to_the_lowest_rate_follows_the_policy() -> None:
    # By small steps of what drain_time admits while nothing is stored
    policy = DrainTimePolicy(rate_max=50_000.0, rate_min=100.0, target_seconds=2.0, period_seconds=1.0)
    lag = seconds = 0.0
    state: PolicyState | None = None
    rate = 950.0  # 5 % below: the slowest way up
    while lag <= 4000:
        decision = policy.decide(
            RateSample(0.1, {0: PartitionSample(int(lag), int(lag))}, was_paused=True, last_rate=1000.0), state
        )
        state, rate = decision.state, decision.rate
        lag += rate * 0.1
        seconds += 0.1
    assert rate == pytest.approx(100.0)
    assert seconds <= DRAIN_LIMITS.seconds_to_lowest == pytest.approx(seconds, abs=1.0)
    assert next(one for one in phases(DRAIN_LIMITS, own=True) if one.name == "backlog").seconds > seconds + 10


def test_the_settings_of_each_policy() -> None:
    bands = settings_of(own_limits(1000.0, full=False, shadow="drain_time"))
    assert (bands["RATE_POLICY"], bands["RATE_POLICY_SHADOW"], bands["RATE_MAX"]) == ("bands", "drain_time", "1000.0")
    assert bands["DRAIN_BATCH_RECORDS_MAX"] == "250"
    # no batch is held so long that PostgreSQL seems to be frozen
    assert settings_of(own_limits(200.0, full=False, shadow="drain_time"))["DRAIN_BATCH_RECORDS_MAX"] == "75"
    # drain_time is not told what it must find
    ours = settings_of(DRAIN_LIMITS)
    assert "RATE_MAX" not in ours
    assert ours["RATE_POLICY"] == "drain_time"
    assert "DRAIN_BATCH_RECORDS_MAX" not in settings_of(own_limits(1000.0, full=False))


def test_what_postgresql_stores_is_known_where_drain_time_runs() -> None:
    sinks = [
        limits_of(parse(words)).sink
        for words in (
            [],
            ["--policy", "drain-time"],
            ["--shadow", "drain-time"],
            ["--policy", "drain-time", "--rate", "500"],
        )
    ]
    assert sinks == [None, 1000.0, 1500.0, 500.0]


def test_the_notes_and_the_lines_are_about_the_policy_that_rules() -> None:
    assert "Lag thresholds 1,000 and 5,000" in " ".join(notes_of(own_limits(1000.0, full=False), full=False))
    ours = " ".join(notes_of(DRAIN_LIMITS, full=False))
    assert "Rate policy drain_time" in ours
    assert "store 1,000 events/s" in ours
    assert "Lag thresholds" not in ours
    beside = " ".join(notes_of(own_limits(1000.0, full=False, shadow="drain_time"), full=False))
    assert "shadow policy drain_time admits nothing" in beside
    assert "store 1,500 events/s" in beside
    assert "drain" not in line_of(sample(1), "normal")
    assert "drain   2.1 s" in line_of(sample(1, shadow=1500.0, **FULL), "normal")
    assert "shadow   1,500/s" in line_of(sample(1, shadow=1500.0), "normal")


def test_the_table_has_the_time_to_drain_where_it_was_measured() -> None:
    phase = Phase("normal", 10.0, 0.8)
    bands = figures(phase, 0.0, 10.0, [*requests(10)], [sample(9, lag=1200)])
    ours = figures(phase, 0.0, 10.0, [*requests(10)], [sample(8, lag=1200, drain=1.25), sample(9, **FULL)])
    assert (row(bands)[7], row(ours)[7]) == ("1,200", "1,200, 2.1 s")
    assert backlog(bands) == "lag up to 1,200"
    assert backlog(ours) == "lag up to 1,200, 2.1 s to drain, capacity 980/s at the end"


def test_the_shadow_would_have_admitted_what_was_offered_up_to_its_rate() -> None:
    made = [Request(at, 100, 202 if at < 2 else 429, 0.01) for at in (0.1, 0.6, 1.2, 2.1, 2.2, 2.3)]
    samples = [sample(0.0), sample(0.4, shadow=150.0), sample(1.4, shadow=60.0), sample(2.4, shadow=250.0)]
    series = series_of(made, samples, begin=0.0, end=2.9)
    assert series.offered == [200, 100, 300]
    assert series.admitted == [200, 100, 0]
    assert series.shadow_admitted == [150, 60, 250]
    assert series.answers == {"202": [2, 1, 0], "429": [0, 0, 3], "other": [0, 0, 0]}
    assert series_of(made, [sample(0.0)], begin=0.0, end=2.9).shadow_admitted is None


@pytest.mark.parametrize("limits", [LIMITS, DRAIN_LIMITS, own_limits(1000.0, full=False, shadow="drain_time")])
def test_the_picture_draws_the_story_of_the_policy(limits: Limits) -> None:
    said: dict[str, Any] = {} if limits.sink is None else {**FULL, "shadow": 1200.0 if limits.shadow else None}
    samples = [sample(1, **said), sample(9, **said)]
    found = figures(Phase("normal", 10.0, 0.8), 0.0, 10.0, [*requests(100)], samples)
    drawn = picture([found], [*requests(100)], samples, limits, "svg").decode()
    # matplotlib writes each text as a comment beside its outlines
    for words, is_drawn in {
        f"admitted by {limits.policy}": True,
        "time to drain": limits.sink is not None,
        "degraded above 4 s": limits.sink is not None,
        "degraded from 1,000": not limits.follows_drain,
        "drain_time would have admitted": bool(limits.shadow),
        "capacity, as drain_time measures it": limits.sink is not None,
    }.items():
        assert (words in drawn) is is_drawn, words


@pytest.mark.parametrize(
    ("said", "policy"),
    [
        (b'event: snapshot\ndata: {"status": {"ratePolicy": {"name": "drain_time"}}}\n\n', "drain_time"),
        (b'{"status": "healthy"}', "bands"),
        (b'data: {"status": {}}\n', "bands"),
        (b"data: not JSON\n", "bands"),
    ],
)
def test_a_given_system_says_its_policy_on_its_page(said: bytes, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Access, "look", lambda *_: io.BytesIO(said))
    assert policy_at(Target(Access("http://127.0.0.1:1"), None)) == policy


def test_health_and_policy_of_a_given_system_are_read_where_operators_look() -> None:
    password = "a long p:ss w\u00f6rd"
    with running_ingest(operator_port=free_port(), operator_password=password, rate_policy="drain_time") as edge:
        url, operators = f"http://127.0.0.1:{edge.port}", f"http://127.0.0.1:{edge.operator_port}"
        given = Target(Access(url, operators, password=password), None)
        assert given.health()["rateLimit"] > 0
        assert policy_at(given) == "drain_time"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            Target(Access(url, operators), None).health()


def test_a_picture_of_the_page_is_planned_for_each_phase_that_begins(tmp_path: Path) -> None:
    # Given a system that goes away in the first of two phases, and a browser that only notes down what it is to take
    class Noted(Pictures):
        def plan(self, number: int, name: str, seconds: float) -> None:
            self.taken.append(tmp_path / file_name(number, name))

    pictures = Noted("http://127.0.0.1:1", tmp_path)
    scenario = [Phase("1.5 times the rate", 10.0, 1.5), Phase("normal", 10.0, 0.8)]
    with dying(admits=0) as server:
        target = Acted(Access(server.url), None)
        play(target, LIMITS, scenario, "load-1", HealthSampler(target), pictures)
    assert pictures.taken == [tmp_path / "page-1-1-5-times-the-rate.png"]


def test_a_browser_that_fails_ends_no_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_browser(url: str, **_: object) -> None:
        raise OSError("no display")

    monkeypatch.setattr("checks.loadtest.pictures.open_page", no_browser)
    with Pictures("http://127.0.0.1:1", tmp_path).running() as pictures:
        pictures.plan(1, "normal", 0.0)
    assert pictures.problems == ["no further pictures of the page: no display"]


def test_a_generator_that_is_late_is_blamed_first() -> None:
    assert "generator too slow" in judged("normal", *GOOD["normal"], late=0.6)[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda stored: replace(stored, lost=1), "1 of 10 acknowledged events are not stored"),
        (lambda stored: replace(stored, unasked=1), "stored that were refused or never sent"),
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
    while lag < 5000 - 1:
        share = min(1.0, max(0.0, (lag - 1000) / 4000))
        lag += (1000 - 900 * share) * 0.001
        seconds += 0.001
    assert LIMITS.seconds_to_critical == pytest.approx(seconds, rel=0.01)


def test_the_page_stands_alone_and_says_what_failed() -> None:
    found = Figures(Phase("<normal>", 10.0, 0.8, "", "all"), 0.0, 10.0, offered=10, problems=["a & b"])
    text = page([found], "1 of 1", ["lost"], ["a note"], b'<?xml version="1.0"?><svg></svg>')
    assert "&lt;normal&gt;" in text
    assert "a &amp; b" in text
    assert "<?xml" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert row(found)[-1] == "a & b"


SENT = [f"load-1-0-1-{index}" for index in range(4)]
ROWS = [(event_id, event_id) for event_id in SENT[:2]]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (ROWS[:1], "1 of 2 acknowledged events are not stored"),
        ([ROWS[0], (SENT[1], SENT[0])], "1 of 2 acknowledged events are not stored"),  # another's content
        ([*ROWS, (SENT[2], SENT[2])], "1 events are stored that were refused or never sent"),
        ([*ROWS, ("load-1-0-2-0", "load-1-0-2-0")], "1 events are stored that were refused or never sent"),
        ([*ROWS, ("another id", SENT[0])], "1 events are stored twice"),
    ],
)
def test_what_is_stored_is_compared_with_all_that_was_sent(rows: list[tuple[str, str]], says: str) -> None:
    # Given two events that were acknowledged, one that was refused, and one whose answer never came
    asked = Asked(set(SENT), set(SENT[:2]), {SENT[2]})
    assert judge_stored(compare(asked, ROWS)) == []
    assert judge_stored(compare(asked, [*ROWS, (SENT[3], SENT[3])])) == []  # it may be stored or not
    assert says in judge_stored(compare(asked, rows))


def test_what_was_due_and_never_sent_is_offered_but_was_not_asked_for() -> None:
    # Given requests 1 to 3 of the first phase that were sent, and a fourth that found no connection
    responses = Responses([0.0, 0.1], [0.01, 0.01], [202, 429], [1, 2], sent=3, unanswered=[(0.2, 3), (0.3, 4)])
    assert [(one.events, one.status) for one in requests_of(responses)] == [(10, 202), (1, 429), (10, 0), (1, 0)]
    asked = asked_of("load-1", [responses])
    assert len(asked.acknowledged) == 10
    assert asked.refused == {"load-1-0-2-0"}
    assert len(asked.sent) == 21
    assert "load-1-0-4-0" not in asked.sent


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("longer", [0.0, 1.0, 30.0, 300.0, 1000.0])
def test_the_story_is_as_long_as_was_asked(longer: float, own: bool) -> None:
    seconds = seconds_least(LIMITS, own=own) + longer
    scenario = phases(LIMITS, own=own, seconds=seconds)
    assert sum(phase.seconds for phase in scenario) == pytest.approx(seconds)
    assert min(phase.seconds for phase in scenario) >= 5.0
    assert all(phase.seconds >= 25.0 for phase in scenario if phase.name == "recovery")
    with pytest.raises(ValueError, match="at least"):
        phases(LIMITS, own=own, seconds=seconds_least(LIMITS, own=own) - 1)


HEALTH = json.dumps(
    {"status": "healthy", "consumerLag": 0, "rateLimit": 1000, "circuitBreaker": "closed", "consumption": "running"}
).encode()


class Dying(socketserver.ThreadingTCPServer):
    """Admits so many requests, and then closes every connection that brings one; health is told for ever."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, admits: int) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.left = admits
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Answering(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Dying)
        with contextlib.suppress(ConnectionError):
            while line := self.rfile.readline():
                length = 0
                while (header := self.rfile.readline()).strip():
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                self.rfile.read(length)
                if line.startswith(b"GET"):
                    self.wfile.write(
                        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(HEALTH), HEALTH)
                    )
                    return
                with self.server.lock:
                    self.server.left -= 1
                    if self.server.left < 0:
                        return
                self.wfile.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")


@contextlib.contextmanager
def dying(admits: int) -> Iterator[Dying]:
    with Dying(admits) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Acted(Target):
    """A system whose acts are only noted down."""

    done: list[str] = field(default_factory=list)

    def do(self, action: Action) -> None:
        self.done.append(action)


def test_a_system_that_goes_away_ends_the_story_with_all_that_was_due() -> None:
    # Given a system that answers twenty requests and no more
    scenario = [Phase("backlog", 10.0, 0.8, "pause"), Phase("catching up", 10.0, 0.5, "resume")]
    with dying(admits=20) as server:
        target = Acted(Access(server.url), None)
        told = play(target, LIMITS, scenario, "load-1", HealthSampler(target))
    # Then the phase ends with a word why, the next is not begun, and the pause is lifted
    assert "closed a connection" in told.gone
    assert len(told.responses) == len(told.marks) == 1
    assert target.done == ["pause", "resume"]
    # and what was due is offered, answered or not, by numbers without a gap
    [responses] = told.responses
    assert responses.status == [202] * 20
    assert responses.unanswered
    assert sorted(responses.number + [number for _, number in responses.unanswered]) == list(
        range(1, 21 + len(responses.unanswered))
    )
    found = figures(scenario[0], *told.marks[0], requests_of(responses), [sample(told.marks[0][0])])
    assert found.other == len(responses.unanswered)
    assert found.offered > found.admitted


def test_a_system_that_takes_no_connection_ends_the_story() -> None:
    with dying(admits=0) as server:
        url = server.url
    target = Acted(Access(url), None)
    told = play(target, LIMITS, [Phase("normal", 10.0, 0.8)], "load-1", HealthSampler(target))
    assert "takes no connection" in told.gone
    assert told.responses == [Responses()]


def load_test(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "checks.loadtest", *words],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=RUN_SECONDS_MAX,
    )  # fmt: skip


def test_a_system_that_goes_away_is_reported_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with dying(admits=200) as server:  # about a second's worth, so that health is seen once
        said = load_test("--url", server.url, "--out", str(tmp_path))
    assert said.returncode == 1, said.stdout + said.stderr
    assert "normal: NOT HELD: the server under load closed a connection" in said.stdout
    assert "1 of 1 phases did not hold, 2 more were not begun; what is stored was not checked" in said.stdout
    assert "Traceback" not in said.stderr
    page = (tmp_path / "load-report.html").read_text()
    assert "closed a connection" in page
    assert "Lag thresholds" not in page  # a system that is given does not tell them


def test_a_port_where_nobody_listens_is_said_in_one_line() -> None:
    with dying(admits=0) as server:
        url = server.url
    said = load_test("--url", url)
    assert said.returncode == 2
    assert said.stderr.startswith(f"load-test.sh: --url {url}: no Sluice tells its health there: ")
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--url", "http://192.0.2.1:8080"), "to this machine only"),
        (("--url", "ftp://127.0.0.1"), "begins with neither http:// nor https://"),
        (("--url", "http://127.0.0.1:99999"), "ort out of range"),
        (("--key-file", "key"), "--key-file is for the system at --url"),
        (("--ca-file", "ca.pem"), "--ca-file is for the system at --url"),
        (("--url", "http://127.0.0.1:9", "--full"), "--full is for a system of its own"),
        (("--url", "http://127.0.0.1:9", "--log", "kafka"), "--log is for a system of its own"),
        (("--url", "http://127.0.0.1:9", "--rate", "2000"), "--rate is for a system of its own"),
        (("--url", "http://127.0.0.1:9", "--duration", "14"), "this scenario takes 15 s at least"),
        (("--duration", "88"), "this scenario takes 89 s at least"),
        (("--duration", "150", "--full"), "this scenario takes 190 s at least"),
        (("--duration", "1201"), "1200 at most"),
        (("--url", "http://127.0.0.1:9", "--policy", "drain-time"), "--policy is for a system of its own"),
        (("--url", "http://127.0.0.1:9", "--shadow", "drain-time"), "--shadow is for a system of its own"),
        (("--shadow", "bands"), "this is the policy itself"),
        (("--policy", "drain-time", "--rate", "499"), "it takes 500 at least"),
        (("--policy", "drain-time", "--full"), "--full is for the lag thresholds of bands"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parse(words)
    assert left.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
