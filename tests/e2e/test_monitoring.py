"""A running system as the real Prometheus sees it: every expression of dashboard and rules has data."""

import json
import os
import random
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX, WAIT_SECONDS_MAX, wait_until
from monitoring import dashboard
from stack.config import free_ports
from stack.servers import LOOPBACK, kafka_is_possible, port_is_taken

# Lists of labels, and texts outside of label matchers: no metrics.
NO_METRIC = re.compile(r'(\{[^}]*\})|(?:by|on) \([^)]*\)|"[^"]*"')
# Expressions without data in a healthy system that has not refused anything; what they select must have data.
# With RATE_POLICY=drain_time, _SHADOW, ADMISSION_SHARES or _LEVELS, INGEST_KEYS, INGEST_TLS_CLIENT, OPERATOR_PASSWORD,
# RETENTION_DAYS or an Alertmanager.
NOT_BY_DEFAULT = re.compile(
    "sluice_capacity_events_per_second|sluice_drain_seconds|sluice_shadow|sluice_share|sluice_ingest_level"
    "|sluice_ingest_key|sluice_ingest_operator|sluice_retention|sluice_ingest_tls_refusals|alertmanager_"
)
EMPTY_WHEN_HEALTHY = re.compile(r"[<>]|== [01]\b|absent\(")


@dataclass
class Watched:
    """A system started by run.sh, with its Prometheus."""

    log: str
    environ: dict[str, str]
    processes: int  # of ingest
    sent: int = 0  # events that were accepted

    def url(self, name: str, path: str) -> str:
        return f"http://127.0.0.1:{self.environ[name]}{path}"

    def get(self, name: str, path: str) -> Any:
        with urllib.request.urlopen(self.url(name, path), timeout=WAIT_SECONDS_MAX) as answer:
            return answer.read().decode()

    def query(self, expression: str) -> list[Any]:
        path = "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        found: list[Any] = json.loads(self.get("PROMETHEUS_PORT", path))["data"]["result"]
        return found

    def post(self, count: int) -> None:
        event = {
            "correlationId": "c",
            "severity": "INFO",
            "message": "m",
            "source": "s",
            "timestamp": 1_700_000_000_000,
        }
        request = urllib.request.Request(
            self.url("INGEST_PORT", "/api/logs"),
            data=json.dumps([{**event, "correlationId": f"c{n}"} for n in range(count)]).encode(),
            headers={"Content-Type": "application/json"},
        )

        def is_taken() -> bool:
            try:
                with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
                    return bool(answer.status == 202)
            except urllib.error.HTTPError as error:
                if error.code != 429:  # the bucket is empty: a moment later it is not
                    raise
                return False

        wait_until(is_taken, "the events are taken")
        self.sent += count


def two_free_ports() -> int:
    """The first of two free ports that follow each other, below those that any other test gets."""
    while True:
        port = random.randrange(10_000, 14_998)
        if not any(port_is_taken(LOOPBACK, one) for one in (port, port + 1)):
            return port


@pytest.fixture(scope="module", params=["redis", "kafka"])
def watched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]
) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        missing("there is no prometheus (Debian: prometheus)")
    if request.param == "kafka" and kafka_is_possible() is not None:
        missing(str(kafka_is_possible()))
    home = tmp_path_factory.mktemp(f"watched-{request.param}")
    environ = {
        "PATH": os.environ["PATH"],
        "JDK_JAVA_OPTIONS": os.environ["JDK_JAVA_OPTIONS"],
        "HOME": os.environ["HOME"],
        "SLUICE_HOME": str(home),
        "PROMETHEUS": "yes",
        "PROMETHEUS_SECONDS": "1",
        "MEASURE_SECONDS": "1",
        "APPEND_SECONDS_MAX": "15",
        **free_ports(),
    }
    processes = 1
    if request.param == "kafka":  # two, as in compose: each is then asked on a port of its own
        processes = 2
        environ |= {"INGEST_PROCESSES": "2", "INGEST_METRICS_PORT": str(two_free_ports())}

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["./run.sh", *words],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_SECONDS_MAX,
        )

    said = run("--log", request.param, "--detach")
    assert said.returncode == 0, said.stderr
    try:
        yield Watched(request.param, environ, processes)
    finally:
        run("stop")


def _rules(name: str) -> list[str]:
    groups = yaml.safe_load((ROOT / "monitoring" / "rules" / name).read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def _selectors(expression: str) -> list[str]:
    """Each metric of an expression with its label matchers, of which those that a healthy system need not have are
    widened: a status that was not answered, a state that was not taken."""
    names = re.findall(r"[a-z_:][a-z0-9_:]*(?:\{[^}]*\})?", NO_METRIC.sub(r"\1", expression))
    words = {"max", "min", "sum", "rate", "increase", "histogram_quantile", "by", "or", "vector", "absent", "deriv"}
    words |= {"clamp_min", "count", "label_replace", "unless", "m", "s", "for", "e"}
    found = [name for name in names if re.split(r"\{", name)[0] not in words and len(name) > 1]
    return [re.sub(r"\{[^}]*status[^}]*\}", "", name) for name in found]


def test_every_expression_of_dashboard_and_rules_has_data(watched: Watched) -> None:
    # Given traffic, and Prometheus' first looks at it
    poll(watched, lambda: [] if watched.query("sluice:stored_events:rate1m > 0") else ["stored events"])
    expressions = [*dashboard.expressions(), *_rules("recording.yml"), *_rules("alerts.yml")]
    expressions = [expression for expression in expressions if not NOT_BY_DEFAULT.search(expression)]
    assert len(expressions) > 60

    def without_data() -> list[str]:
        missing = []
        for expression in expressions:
            for wanted in _selectors(expression) if EMPTY_WHEN_HEALTHY.search(expression) else [expression]:
                if not watched.query(wanted):
                    missing.append(wanted)
        return missing

    poll(watched, without_data)


def poll(watched: Watched, without_data: Callable[[], list[str]], *, seconds_max: float = 180.0) -> None:
    """Send events until nothing is without data."""
    deadline = time.monotonic() + seconds_max
    while (left := without_data()) != []:
        assert time.monotonic() < deadline, f"no data for {left}"
        watched.post(50)
        time.sleep(0.5)


def test_no_alert_fires_and_every_process_is_scraped(watched: Watched) -> None:
    wait_until(lambda: len(watched.query("up == 1")) == 2 + watched.processes, "all are scraped")
    # None fires, nor is about to; the test itself is refused now and then
    alerts = 'ALERTS{alertname!="HighRefusalRatio"}'
    assert watched.query(alerts.replace("}", ',alertstate="firing"}')) == []
    wait_until(lambda: watched.query(alerts) == [], "nothing is about to fire")  # a machine may have stood still
    assert {(one["metric"]["job"], one["value"][1]) for one in watched.query("up")} == {
        ("ingest", "1"),
        ("control", "1"),
        ("worker", "1"),
    }
    wait_until(lambda: bool(watched.query("sluice_lag_events")), "the lag is known")
    lag = "kafka_consumer_lag" if watched.log == "kafka" else "redis_stream_consumer_lag"
    assert {one["metric"]["partition"] for one in watched.query(lag)} == {"0", "1", "2", "3"}


def test_prometheus_agrees_with_what_was_sent(watched: Watched) -> None:
    # Given so many events more
    def value(expression: str) -> float:
        return sum(float(one["value"][1]) for one in watched.query(expression))

    for _ in range(7):
        watched.post(100)
    # Then as many as ever were sent were accepted, stored and timed
    counted = (
        "sluice_ingest_accepted_events_total",
        'sluice_drained_events_total{result="stored"}',
        "sluice_receipt_to_store_seconds_count",
    )
    wait_until(lambda: {value(one) for one in counted} == {watched.sent}, f"{watched.sent} are stored")
    assert value('http_requests_total{status="202"}') >= 7


def test_names_and_labels_are_as_prometheus_asks(watched: Watched) -> None:
    for name in ("INGEST_PORT", "CONTROL_METRICS_PORT", "BATCHES_METRICS_PORT"):
        text = watched.get(name, "/metrics")
        said = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        ours = [line for line in said.stderr.splitlines() if not line.startswith(("process_", "python_"))]
        assert ours == [], name
        series = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert len(series) < 400, f"{name}: {len(series)} series"
