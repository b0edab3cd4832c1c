"""What an operator reads on the live page, in a real browser: verdicts and control events of the tests' own choice."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from checks.testbed.waiting import wait_until
from checks.testbed.wire import get
from ingest.dashboard.event_rows import event_rows
from ingest.dashboard.points import COLUMNS
from ingest.dashboard.view import document_of
from pipeline.flow.refusals import Refusals, Refused
from pipeline.health.snapshot import HealthInputs, Traffic
from pipeline.names import BreakerState, ControlEventKind, LimitedBy, Mode
from pipeline.ports.control import ControlEvent
from pipeline.settings import Settings
from stack.servers import free_port
from support.browser import Watched, chromium, chromium_path, close_pages, watched
from support.health import BREAKER, BY_HAND, HEALTHY, NOW, OVERRIDE
from support.running_ingest import RunningIngest

PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
WIDE = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
CONTROL = "control-4ba73c@vm/22567"

# Three problems at once, each with much to say.
NIGHT = replace(
    HEALTHY,
    breaker=BreakerState.OPEN,
    pauses=(replace(BREAKER, why="5 failures in a row until 22:13:10 UTC: no connection to PostgreSQL: refused"),),
    mode=Mode.CRITICAL,
    lag=60_000,
    lag_by_partition=dict.fromkeys(range(4), 15000),
    rate=100.0,
    traffic=Traffic(100.0, 900.0, 0.9, 0.0),
    refusals=Refusals({"key:shop": {LimitedBy.RATE.value: Refused(90, 900)}}, {}),
)
EVENTS = [
    ControlEvent("1-0", NOW - 4000, ControlEventKind.BREAKER_OPENED, "batches-11aa22@vm/7", "refused", {}),
    *(
        ControlEvent(f"{i}-0", NOW - 600 + 5 * i, ControlEventKind.RATE_CHANGED, CONTROL, f"lag {i}",
                     {"previous": f"{1000 - i}", "rate": f"{999 - i}", "mode": "degraded", "decided_by": "lag"})
        for i in range(2, 100)
    ),
]  # fmt: skip


def point(number: int) -> list[Any]:
    """A second of the charts, 60 of which end now."""
    known = {
        "t": NOW - 59 + number, "admitted": 100.0 + number, "offered": 200.0 + number, "rate": 1000.0,
        "lag": 4 * number, "lags": [number] * 4, "drained": 50.0 + number, "tokens": 700 + number,
    }  # fmt: skip
    return [known.get(name) for name in COLUMNS]


POINTS = [point(number) for number in range(60)]


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    running = RunningIngest(replace(Settings(ingest_port=free_port()), log_partitions=4, regulate_seconds=60.0)).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def running_browser(missing: Callable[[str], None]) -> Iterator[Browser]:
    if chromium_path() is None:
        missing("chromium")
    with chromium() as found:
        yield found


@pytest.fixture
def browser(running_browser: Browser) -> Iterator[Browser]:
    yield running_browser
    close_pages(running_browser)


class Reading:
    """The page with a stream that stays silent: it shows what a test gives it, and does not notice the silence."""

    def __init__(self, browser: Browser, edge: RunningIngest, **context: Any) -> None:
        self._url = f"http://127.0.0.1:{edge.port}/"
        self.seen: Watched = watched(browser, "about:blank", **context)
        self.seen.page.route("**/events", lambda route: None)
        self.seen.page.add_init_script("window.setInterval = () => 0")
        self.seen.page.goto(self._url, wait_until="domcontentloaded")

    def show(
        self, inputs: HealthInputs, events: list[ControlEvent] | None = None, points: list[list[Any]] | None = None
    ) -> Watched:
        document = document_of(inputs) | {"process": "host:1", "viewers": 1}
        message = {"status": document} | ({} if events is None else {"events": event_rows(events)})
        self.seen.page.evaluate(
            "([columns, points, message]) => { charts.reset(columns, points, 900); live.show(message); }",
            [COLUMNS, points or [], message],
        )
        return self.seen


def test_the_order_is_verdict_cause_what_happens_by_itself_and_what_to_do(
    browser: Browser, edge: RunningIngest
) -> None:
    seen = Reading(browser, edge, **WIDE).show(NIGHT, EVENTS)
    # Then the verdict is short, and the cause beside it
    assert seen.text("#headline") == "PostgreSQL fails since 22:13:10 UTC"
    assert seen.text("#cause").startswith("The breaker is open, consumption is paused, the rate is at its lowest")
    # And each part has its place above the next one
    parts = ["#headline", "#cause", "#look div:nth-child(1)", "#look div:nth-child(2)", "#look div:nth-child(3)",
             ".cards", "#chart-rate", "#events"]  # fmt: skip
    tops = [seen.page.locator(one).bounding_box() or {"y": -1} for one in parts]
    assert [box["y"] for box in tops] == sorted(box["y"] for box in tops)
    assert "tries a small write" in seen.text("#look div:nth-child(1)")
    assert "no connection to PostgreSQL" in seen.text("#look div:nth-child(2)")
    assert seen.text("#look code").startswith('psql "$DATABASE_URL"')
    # And what follows from the first problem is folded, with its answer on request
    assert [one.split(":")[0] for one in seen.page.locator("#more summary").all_inner_texts()] == [
        "Consumers are far behind", "90 % of the offered events were refused in the last minute",
    ]  # fmt: skip
    assert not seen.page.locator("#more .answer").first.is_visible()
    seen.page.locator("#more summary").first.click()
    assert seen.page.locator("#more .answer code").first.inner_text() == "celery -A tasks.app inspect lag"
    assert seen.complaints == []


def test_the_command_is_copied_as_it_is(browser: Browser, edge: RunningIngest) -> None:
    reading = Reading(browser, edge, **WIDE)
    seen = reading.show(replace(HEALTHY, mode=Mode.DEGRADED, lag=16_000))
    seen.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    seen.page.locator("#look button").click()
    seen.wait("document.querySelector('#look button').textContent === 'Copied'")
    assert seen.page.evaluate("navigator.clipboard.readText()") == "celery -A tasks.app inspect lag"
    # And the focus stays where it was when the figures change
    reading.show(replace(HEALTHY, mode=Mode.DEGRADED, lag=17_000, at=NOW + 1))
    assert "17,000 events wait" in seen.text("#cause")
    assert seen.page.evaluate("document.activeElement === document.querySelector('#look button')")


def test_charts_go_on_when_the_clock_was_set_back(browser: Browser, edge: RunningIngest) -> None:
    # Given charts of a minute
    seen = Reading(browser, edge, **WIDE).show(HEALTHY, points=POINTS)
    times = "charts.rows().map((row) => row[0])"
    assert len(seen.page.evaluate(times)) == len(POINTS)
    # When the next seconds come by a clock that was set back, then they are drawn in place of those in the future
    place, later = COLUMNS.index("t"), [[NOW - 39.5 + number, *POINTS[0][1:]] for number in range(3)]
    seen.page.evaluate("(rows) => charts.add(rows)", later)
    before = [one[place] for one in POINTS[:20]]
    assert seen.page.evaluate(times) == [*before, *(row[place] for row in later)]
    # And a second that is known already is not drawn twice
    seen.page.evaluate("(rows) => charts.add(rows)", later[1:])
    assert len(seen.page.evaluate(times)) == 23


def test_a_healthy_system_has_nothing_to_do(browser: Browser, edge: RunningIngest) -> None:
    seen = Reading(browser, edge, **WIDE).show(HEALTHY)
    assert seen.text("#headline").startswith("All is well")
    assert not seen.page.locator("#look dl").is_visible()
    # And it says on how many servers an event is
    assert "log: Redis Streams, single copy" in seen.text(".cards")
    replicated = Reading(browser, edge, **WIDE).show(replace(HEALTHY, log_copies=3, event_log="kafka", at=NOW + 1))
    assert "log: Kafka, 3 copies" in replicated.text(".cards")


def test_control_events_fold_and_the_rare_come_first(browser: Browser, edge: RunningIngest) -> None:
    seen = Reading(browser, edge, **WIDE).show(HEALTHY, EVENTS)
    assert seen.page.locator("#rows tr").count() == 1
    assert "Breaker opened" in seen.text("#rows")
    assert seen.page.locator("#routine tr").count() == 1
    assert "in 98 steps" in seen.text("#routine")
    # And a time is that of the day and how long ago it was; a worker has a short name
    assert seen.text("#rows td:nth-child(1)") == "21:06:40 67 min ago"
    assert seen.text("#rows td:nth-child(3)") == "batches"
    assert seen.page.locator("#rows td:nth-child(3)").get_attribute("title") == "batches-11aa22@vm/7"


def test_a_filter_finds_events_by_every_text(browser: Browser, edge: RunningIngest) -> None:
    seen = Reading(browser, edge, **WIDE).show(HEALTHY, EVENTS)
    seen.page.get_by_label("Filter").fill("11AA22")
    assert (seen.page.locator("#rows tr").count(), seen.page.locator("#routine tr").count()) == (1, 0)
    assert seen.text("#filtered") == "1 of 2"
    seen.page.get_by_label("Filter").fill("nobody")
    assert seen.text("#rows") == "No event has this text."
    seen.page.get_by_label("Filter").fill("")
    assert seen.page.locator("#routine tr").count() == 1


def test_on_a_phone_the_events_begin_within_three_screens(browser: Browser, edge: RunningIngest) -> None:
    seen = Reading(browser, edge, **PHONE).show(NIGHT, EVENTS)
    assert 0.5 < seen.page.evaluate(EVENTS_AT) <= 3
    assert not seen.overflows()


def test_on_a_phone_only_the_partitions_with_the_most_events_have_bars(browser: Browser, edge: RunningIngest) -> None:
    # Given 64 partitions, the last ones with the largest lags
    inputs = replace(NIGHT, lag_by_partition={partition: 100 * partition for partition in range(64)})
    seen = Reading(browser, edge, **PHONE).show(inputs, EVENTS)
    # Then eight of them are shown, and the events still begin within three screens
    shown = [one.split()[0] for one in seen.page.locator("#lags li:visible").all_inner_texts()]
    assert shown == [f"p{partition}" for partition in range(56, 64)]
    assert (
        seen.text("#lags-scale")
        == "p0 is partition 0. A full bar is 10,000 events. These 8 of 64 partitions have the most events."
    )
    assert seen.page.evaluate(EVENTS_AT) <= 3
    # And a wide page has them all
    wide = Reading(browser, edge, **WIDE).show(inputs)
    assert wide.page.locator("#lags li:visible").count() == 64
    assert wide.text("#lags-scale") == "p0 is partition 0. A full bar is 10,000 events."


EVENTS_AT = "(document.getElementById('events').getBoundingClientRect().top + scrollY) / innerHeight"


def test_every_line_of_a_chart_has_its_unit(browser: Browser, edge: RunningIngest) -> None:
    seen = Reading(browser, edge, **WIDE).show(HEALTHY, points=POINTS)
    assert seen.text("#legend-rate") == "rate limit 1,000 /s offered 257 /s admitted 157 /s"
    assert seen.text("#legend-lag") == "one partition each all partitions 236 events"
    assert seen.text("#legend-drain") == "stored 107 /s tokens, on the right 759 tokens"
    assert [name for name in UNITS if UNITS[name] not in seen.page.evaluate(f"charts.units('{name}').join()")] == []


UNITS = {"rate": "events/s", "lag": "events", "answers": "requests/s", "drain": "events/s,tokens"}


def test_partitions_have_bars_on_one_scale_that_is_named(browser: Browser, edge: RunningIngest) -> None:
    seen = Reading(browser, edge, **WIDE).show(replace(HEALTHY, lag_by_partition={0: 1_500, 1: 600, 2: 0}))
    assert seen.page.locator("#lags li b").all_inner_texts() == ["1,500", "600", "0"]
    widths = seen.page.evaluate("[...document.querySelectorAll('#lags i')].map((bar) => bar.style.width)")
    assert widths == ["75%", "30%", "0%"]
    assert seen.text("#lags-scale") == "p0 is partition 0. A full bar is 2,000 events."


def test_few_events_do_not_fill_a_bar(browser: Browser, edge: RunningIngest) -> None:
    seen = Reading(browser, edge, **WIDE).show(replace(HEALTHY, lag_by_partition={0: 1, 1: 0}))
    assert seen.page.evaluate("document.querySelector('#lags i').style.width") == "1%"


def test_hovering_shows_the_values_of_that_time_in_every_chart(browser: Browser, edge: RunningIngest) -> None:
    seen = Reading(browser, edge, **WIDE).show(HEALTHY, points=POINTS)
    area = seen.page.locator("#chart-rate .u-over")
    # When the pointer is over the first second
    area.hover(position={"x": 1, "y": 20})
    # Then the legends have its values, and say of when they are
    seen.wait("document.querySelector('#legend-rate').innerText.includes('22:12:21')")
    assert seen.text("#legend-rate") == "11-14 22:12:21 rate limit 1,000 /s offered 200 /s admitted 100 /s"
    assert seen.text("#legend-lag") == "11-14 22:12:21 one partition each all partitions 0 events"
    # And without it, those of now
    seen.page.mouse.move(1, 1)
    seen.wait("!document.querySelector('#legend-rate').innerText.includes('22:12:21')")
    assert "admitted 157 /s" in seen.text("#legend-rate")


def test_a_chart_can_be_read_with_the_keyboard(browser: Browser, edge: RunningIngest) -> None:
    seen = Reading(browser, edge, **WIDE).show(HEALTHY, points=POINTS)
    seen.page.locator("#chart-rate").focus()
    seen.page.keyboard.press("Home")
    assert "22:12:21" in seen.text("#legend-rate")
    seen.page.keyboard.press("ArrowRight")
    assert "22:12:22" in seen.text("#legend-rate")
    assert "admitted 101" in seen.text("#announce")
    seen.page.keyboard.press("Escape")
    assert "22:12:22" not in seen.text("#legend-rate")


def test_every_control_is_reached_with_the_tab_key(browser: Browser, edge: RunningIngest) -> None:
    seen = Reading(browser, edge, **WIDE).show(NIGHT, EVENTS, POINTS)
    seen.page.evaluate("document.querySelectorAll('#more details').forEach((one) => { one.open = true; })")
    reached: list[str] = []
    for _ in range(60):
        seen.page.keyboard.press("Tab")
        name = seen.page.evaluate(
            "(() => { const one = document.activeElement; one.dataset.reached = 'yes';"
            " return one === document.body ? '' : one.id || one.textContent; })()"
        )
        if not name:
            break
        reached.append(name)
    left = seen.page.evaluate(
        "[...document.querySelectorAll('a[href], button, input, summary, [tabindex=\"0\"]')]"
        ".filter((one) => one.checkVisibility() && !one.dataset.reached).map((one) => one.outerHTML)"
    )
    assert left == []
    assert {"Copy", "filter", "chart-rate", "Runbook", "in a prepared shell"} <= set(reached)
    shell = seen.page.get_by_role("link", name="in a prepared shell").first
    assert shell.get_attribute("href") == "/runbooks#prepare-a-shell"


STATES = {
    "healthy": HEALTHY,
    "night": NIGHT,
    "at its limit": replace(HEALTHY, traffic=Traffic(1000.0, 1000.0, 0.5, 0.0)),
    "degraded": replace(HEALTHY, mode=Mode.DEGRADED, lag=16_000, rate=600.0),
    "paused": replace(HEALTHY, pauses=(BY_HAND,), mode=Mode.DEGRADED, lag=26_000, drain_rate=0.0),
    "set by an operator": replace(HEALTHY, rate=50.0, override=OVERRIDE),
    "without a control store": replace(
        HEALTHY, store_problem="refused", breaker=BreakerState.UNKNOWN, pauses=None, mode=Mode.UNKNOWN
    ),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_state(browser: Browser, edge: RunningIngest, scheme: str) -> None:
    reading = Reading(browser, edge, **{**WIDE, "color_scheme": scheme})
    found = {name: axe(reading.show(inputs, EVENTS, POINTS)) for name, inputs in STATES.items()}
    # And when nothing comes any more
    reading.seen.page.evaluate("performance.now = () => 1e9")
    found["no data"] = axe(reading.show(STATES["without a control store"], EVENTS, POINTS))
    assert reading.seen.text("#level") == "UNKNOWN"
    assert {name: complaints for name, complaints in found.items() if complaints} == {}


def axe(seen: Watched) -> list[tuple[str, list[str]]]:
    """What axe-core complains about, with everything unfolded."""
    seen.page.evaluate("document.querySelectorAll('#more details').forEach((one) => { one.open = true; })")
    found = Axe().run(seen.page).response["violations"]
    return [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]


def test_without_a_script_the_verdict_and_the_figures_are_there(browser: Browser, edge: RunningIngest) -> None:
    # Given ingest with a rate that the controller published
    edge.publish(777.0)
    wait_until(lambda: get(edge.port, "/api/logs/health").json["rateLimit"] == 777.0, "ingest knows the rate")
    # When a browser that runs no script opens the page
    seen = watched(browser, f"http://127.0.0.1:{edge.port}/", **PHONE, java_script_enabled=False)
    # Then it has the verdict, the figures and how to get newer ones, and nothing that only a script would fill
    assert seen.text("#headline").startswith("Breaker and pauses are unknown")
    assert "777 /s" in seen.text("#card-rate")
    assert "Without JavaScript" in seen.text("main")
    assert seen.page.get_by_role("link", name="Load it again").is_visible()
    assert not seen.page.locator("#chart-rate").is_visible()
    assert not seen.page.locator("#link").is_visible()
    assert seen.complaints == []


def test_a_stream_that_brings_nothing_makes_the_first_sight_unknown(browser: Browser, edge: RunningIngest) -> None:
    seen = watched(browser, "about:blank", **WIDE)
    seen.page.route("**/events", lambda route: None)
    seen.page.goto(f"http://127.0.0.1:{edge.port}/", wait_until="domcontentloaded")
    seen.wait("document.body.dataset.severity === 'unknown'")
    assert seen.text("#headline").startswith("No data")
    assert seen.text("#cause") == "All figures below are old."
