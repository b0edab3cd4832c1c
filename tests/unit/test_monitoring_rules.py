"""Rules and dashboard: promtool's tests of every alert, and that what is in the repository is what is generated."""

import itertools
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline.metrics
from checks.testbed.processes import ROOT
from monitoring import addresses_table, commands_table, dashboard, metrics_table
from pipeline import __version__
from pipeline.names import BreakerState, ControlEventKind

pytestmark = pytest.mark.timeout(600)  # seconds of CPU, on a machine that may do other things

MONITORING = ROOT / "monitoring"


def alerts(path: Path = MONITORING / "rules" / "alerts.yml") -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def promtool(missing: Callable[[str], None]) -> str:
    found = shutil.which("promtool")
    if found is None:
        missing("there is no promtool (Debian: prometheus)")
    return str(found)


def run(*words: str, folder: Path = MONITORING) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def test_rules_and_configuration_are_well_formed(promtool: str) -> None:
    rules = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", "rules/alerts.yml", "rules/recording.yml")
    assert rules.returncode == 0, rules.stdout + rules.stderr
    config = run(promtool, "check", "config", "--syntax-only", "prometheus.yml")
    assert config.returncode == 0, config.stdout + config.stderr


def test_every_alert_fires_when_it_should_and_not_before(promtool: str) -> None:
    said = run(promtool, "test", "rules", "tests/alerts.yml")
    assert said.returncode == 0, said.stdout + said.stderr
    tested = yaml.safe_load((MONITORING / "tests" / "alerts.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tested for case in test["alert_rule_test"] if case["exp_alerts"]}
    quiet = {case["alertname"] for case in tested[0]["alert_rule_test"] if not case["exp_alerts"]}
    assert fired == quiet == {rule["alert"] for rule in alerts()}


def test_a_changed_threshold_is_noticed(promtool: str, tmp_path: Path) -> None:
    # Given each alert with a pause twenty times as long before it fires, one at a time
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    path = tmp_path / "monitoring" / "rules" / "alerts.yml"
    text = path.read_text()
    changed = re.sub(r"\n        for: 5m\n", "\n        for: 100m\n", text, count=1)
    assert changed != text
    path.write_text(changed)
    assert run(promtool, "test", "rules", "tests/alerts.yml", folder=tmp_path / "monitoring").returncode != 0


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_tells_whoever_is_woken_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    for name in ("summary", "description", "runbook"):
        assert len(rule["annotations"][name].split()) >= 4, name


def test_the_dashboard_is_what_its_module_makes() -> None:
    written = (MONITORING / "grafana" / "dashboards" / "backpressure.json").read_text()
    assert written == dashboard.text(), (
        "python -m monitoring.dashboard > monitoring/grafana/dashboards/backpressure.json"
    )


def test_the_dashboards_panels_stand_beside_each_other() -> None:
    found = json.loads(dashboard.text())
    panels = [panel for panel in found["panels"] if panel["type"] != "row"]
    assert found["title"] == "Backpressure Monitoring"
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["description"]
        assert panel["targets"]
    uid = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert {panel["datasource"]["uid"] for panel in panels} == {uid["datasources"][0]["uid"]}


def test_the_dashboards_variables_choose_processes() -> None:
    found = dashboard.dashboard()
    assert [one["name"] for one in found["templating"]["list"]] == ["job", "instance", "page"]
    chosen = [t["expr"] for p in found["panels"] for t in p.get("targets", []) if "$" in t["expr"]]
    assert 'up{job=~"$job", instance=~"$instance"}' in chosen
    assert not [one for one in chosen if "$chosen" in one]


def test_panels_link_to_runbooks_that_exist() -> None:
    runbooks = {panel.runbook for _, panels in dashboard.ROWS for panel in panels} - {""}
    pages = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert runbooks <= pages
    assert {"behind", "breaker-open", "paused", "refusing", "dead-letters"} <= runbooks
    made = dashboard.dashboard()
    links = [link["url"] for panel in made["panels"] for link in panel.get("links", ())]
    assert len(links) == sum(bool(panel.runbook) for _, panels in dashboard.ROWS for panel in panels)
    assert all(link.startswith("${page}/runbooks/") for link in links)


def test_what_the_control_loop_did_is_marked_in_every_panel() -> None:
    marks = {one["name"]: one["expr"] for one in dashboard.dashboard()["annotations"]["list"]}
    assert set(marks) == {"Alerts", "Breaker open", "Paused", "Operator's rate"}
    states = {state.value for state in BreakerState}
    named = re.findall(r'state=~"([^"]+)"', marks["Breaker open"])[0].split("|")
    assert set(named) <= states


def test_panels_of_events_have_that_unit() -> None:
    units = {panel.title: panel.unit for _, panels in dashboard.ROWS for panel in panels}
    counted = ("Consumer lag", "Consumer lag by partition", "Batch size", "Waiting for the log", "Dead letters")
    assert {units[title] for title in counted} == {"suffix: events"}


def test_the_version_shown_is_that_of_the_project() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_the_containers_prometheus_scrapes_what_compose_runs() -> None:
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    # Alertmanager, which has no settings of ours
    assert jobs.pop() == {"job_name": "alertmanager", "static_configs": [{"targets": ["alertmanager:9093"]}]}
    assert "alertmanager" in compose["services"]
    for job in jobs:
        [found] = job["dns_sd_configs"]
        assert found["names"] == [job["job_name"]]
        environment = compose["services"][job["job_name"]]["environment"]
        variable = "INGEST_METRICS_PORT" if job["job_name"] == "ingest" else "WORKER_METRICS_PORT"
        assert environment[variable] == str(found["port"])
        assert environment["METRICS_HOST"] == "0.0.0.0"


def test_the_table_of_metrics_is_what_they_say() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text()
    assert written == metrics_table.table(), "python -m monitoring.metrics_table > docs/metrics.md"


def test_the_page_of_commands_is_what_they_say() -> None:
    written = (ROOT / "docs" / "commands.md").read_text()
    assert written == commands_table.page(), "python -m monitoring.commands_table > docs/commands.md"
    assert all(f"| `{kind.value}` | " in written for kind in ControlEventKind)
    assert "| `skip_gap [--dry-run] <partition> <from> <to> [reason …]` |" in written


def test_the_page_of_addresses_has_every_operation_of_the_contract() -> None:
    written = (ROOT / "docs" / "addresses.md").read_text()
    assert written == addresses_table.page(), "python -m monitoring.addresses_table > docs/addresses.md"
    paths = yaml.safe_load((ROOT / "ingest" / "openapi" / "openapi.yaml").read_text())["paths"]
    assert set(re.findall(r"^\| `[A-Z]+ ([^`]+)` \|", written, re.MULTILINE)) == set(paths)


def test_every_metric_tells_something_and_is_named_as_prometheus_asks() -> None:
    for metrics in metrics_table.groups().values():
        for metric in metrics:
            assert len(metric.documentation.split()) >= 2, metric.name
            assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
            assert not metric.name.endswith(("_milliseconds", "_ms", "_count", "_total")), metric.name


def test_every_metric_is_declared_in_one_file_with_a_comment() -> None:
    shown = {metric.name for metrics in metrics_table.groups().values() for metric in metrics}
    declared = {one.name for one in vars(pipeline.metrics).values() if isinstance(one, pipeline.metrics.Declared)}
    assert declared == shown
    lines = (ROOT / "pipeline" / "metrics.py").read_text().splitlines()
    bare = [
        line
        for before, line in itertools.pairwise(lines)
        if re.match(r"[A-Z_]+: Final = Declared\(", line) and not before.startswith("# ")
    ]
    assert bare == []
    others = [
        str(path.relative_to(ROOT))
        for folder in ("ingest", "pipeline", "tasks", "monitoring")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "metrics.py" or path.parent.name != "pipeline"
        if re.search(r"(?:MetricFamily|\b(?:Counter|Gauge|Histogram|Summary))\(", path.read_text())
    ]
    assert others == []


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    used = " ".join([*dashboard.expressions(), *(rule["expr"] for rule in alerts())])
    used += " ".join(rule["expr"] for rule in alerts(MONITORING / "rules" / "recording.yml"))
    unused = {
        metric.name for metrics in metrics_table.groups().values() for metric in metrics if metric.name not in used
    }
    # For a closer look, where the dashboard has a figure of the whole system
    assert unused == {
        "sluice_ingest_rate",
        "sluice_ingest_available_tokens",
        "sluice_ingest_append_waiting_bytes",
        "rate_limiter_floor_rate_limit",
        "sluice_drain_rate",
        "sluice_rate_policy_figure",
    }
