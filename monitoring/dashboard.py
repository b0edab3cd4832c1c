"""The Grafana dashboard "Backpressure Monitoring" as code.

`python -m monitoring.dashboard > monitoring/grafana/dashboards/backpressure.json`; a test compares the two.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import Any, Final

_DATASOURCE: Final = {"type": "prometheus", "uid": "prometheus"}
_SCHEMA: Final = 41  # of Grafana 12
_WIDTH: Final = 24  # columns of Grafana's grid

_CHOSEN: Final = 'job=~"$job", instance=~"$instance"'  # filter by the dashboard's variables, for values of a process

_GREEN, _YELLOW, _RED, _BLUE, _GREY = "green", "yellow", "red", "blue", "text"


@dataclass(frozen=True)
class Panel:
    """One panel: `queries` are (legend, expression); `steps` are thresholds as (from, colour), the first from None."""

    title: str
    tells: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    height: int = 8
    steps: tuple[tuple[float | None, str], ...] = ()
    stacked: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    runbook: str = ""  # a page of docs/runbooks, which the panel links to


_EVENTS, _TOKENS = "suffix: events", "suffix: tokens"  # Grafana's custom units
_OPEN: Final = ((None, _GREEN), (1, _RED))

ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "Now",
        (
            Panel("Mode", "What the lag means for the rate.",
                  (("{{mode}}", "max by (mode) (sluice_mode) == 1"),),
                  kind="stat", width=4, height=4, extra={"textMode": "name"}),
            Panel("Circuit breaker", "Around the sink. Open: consumption is paused, and the rate is at its lowest.",
                  (("{{state}}", "max by (state) (circuit_breaker_state) == 1"),),
                  kind="stat", width=4, height=4, extra={"textMode": "name"}, runbook="breaker-open"),
            Panel("Rate limit", "Events per second that are admitted: the effective rate, with override and breaker.",
                  (("rate limit", "max(rate_limiter_rate_limit)"),), "eps", "stat", 4, 4),
            Panel("Consumer lag", "Events in the log that are not stored yet.",
                  (("lag", "max(sluice_lag_events)"),), _EVENTS, "stat", 4, 4,
                  ((None, _GREEN), (10_000, _YELLOW), (50_000, _RED)), runbook="behind"),
            Panel("Seconds of lag", "Time to store the lag at the current pace.",
                  (("lag", "max(sluice_lag_seconds)"),), "s", "stat", 4, 4,
                  ((None, _GREEN), (10, _YELLOW), (60, _RED))),
            Panel("Controller age", "Time since the last published rate; it should stay near the period, 5 s.",
                  (("age", "min(sluice_controller_age_seconds)"),), "s", "stat", 4, 4,
                  ((None, _GREEN), (15, _YELLOW), (30, _RED)), runbook="controller-silent"),
        ),
    ),
    (
        "Backpressure",
        (
            Panel("Consumer lag by partition", "With the lags at which the rate begins to fall and is at its lowest.",
                  (("partition {{partition}}", "partition:sluice_lag_events:max"),
                   ("sum", "max(sluice_lag_events)"),
                   ("degraded from", "max(sluice_lag_degraded_events)"),
                   ("critical above", "max(sluice_lag_critical_events)")), _EVENTS, runbook="behind"),
            Panel("Time to drain, by partition", "Seconds that the sink needs for the lag. With "
                  "RATE_POLICY=drain_time, the rate keeps the longest near the target.",
                  (("partition {{partition}}", "max by (partition) (sluice_drain_seconds)"),), "s"),
            Panel("Capacity and rate", "What the sink stores when it is fully used, as RATE_POLICY=drain_time "
                  "measures it, and the rate that follows from it.",
                  (("capacity", "max(sluice_capacity_events_per_second)"),
                   ("rate limit", "max(rate_limiter_rate_limit)"),
                   ("{{policy}} would admit", "max by (policy) (sluice_shadow_rate_limit)"),
                   ("share of an account", "max(sluice_share_events_per_second)"),
                   ("accepted", "sluice:accepted_events:rate1m")), "eps"),
            Panel("Admitted and offered", "Events per second. Events above the rate limit are refused. A body that was "
                  "refused unread counts as one offered event.",
                  (("offered", "sluice:offered_events:rate1m"),
                   ("accepted", "sluice:accepted_events:rate1m"),
                   ("rate limit", "max(rate_limiter_rate_limit)"),
                   ("policy's rate", "max(rate_limiter_base_rate_limit)"),
                   ("stored", "sluice:stored_events:rate1m")), "eps"),
            Panel("HTTP answers by status", "429: the rate is exceeded. 503: the event log is unavailable or full.",
                  (("{{status}}", "status:http_requests:rate1m"),), "reqps", stacked=True, runbook="refusing"),
            Panel("Available permissions", "Tokens in the bucket. At 0, requests are refused.",
                  (("available", "max(rate_limiter_available_permissions)"),
                   ("capacity", "max(rate_limiter_capacity_permissions)")), _TOKENS),
            Panel("Circuit breaker over time", "The state of the circuit breaker.",
                  (("{{state}}", "max by (state) (circuit_breaker_state)"),), kind="state-timeline", steps=_OPEN,
                  runbook="breaker-open"),
            Panel("Pauses and override", "The reasons for pauses, and whether an operator had set the rate.",
                  (("paused: {{reason}}", "max by (reason) (sluice_consumption_paused)"),
                   ("operator's rate", "max(rate_limiter_override_active)")), kind="state-timeline", steps=_OPEN,
                  runbook="paused"),
        ),
    ),
    (
        "Storing",
        (
            Panel("Receipt to store", "From ingest's receipt of an event to its commit in the sink.",
                  tuple((f"p{share}", f"histogram_quantile(0.{share}, max by (le) "
                                      "(rate(sluice_receipt_to_store_seconds_bucket[1m])))")
                        for share in ("50", "95", "99")), "s"),
            Panel("Drain throughput", "Events per second, by result.",
                  (("{{result}}", "max by (result) (rate(sluice_drained_events_total[1m]))"),), "eps",
                  runbook="no-progress"),
            Panel("Batch size", "Events of a batch; near 1 without load, near DRAIN_BATCH_RECORDS_MAX with a backlog.",
                  (("mean", "max(rate(sluice_batch_events_sum[1m])) / max(rate(sluice_batch_events_count[1m]))"),
                   ("p95", "histogram_quantile(0.95, max by (le) (rate(sluice_batch_events_bucket[1m])))")), _EVENTS),
            Panel("Batch duration", "From BEGIN to COMMIT.",
                  (("p50", "histogram_quantile(0.5, max by (le) (rate(sluice_batch_store_seconds_bucket[1m])))"),
                   ("p99", "histogram_quantile(0.99, max by (le) (rate(sluice_batch_store_seconds_bucket[1m])))")),
                  "s"),
            Panel("How drain runs end", "Outcomes other than finished and busy need a look.",
                  (("{{outcome}}", "max by (outcome) (rate(sluice_drain_runs_total[1m])) > 0"),), "ops"),
            Panel("Dead letters", "The sink refuses their content, or their id is stored with other content.",
                  (("open", "max(sluice_dead_letters_open)"),
                   ("of them conflicts", "max(sluice_dead_letter_conflicts_open)")), _EVENTS, steps=_OPEN,
                  runbook="dead-letters"),
        ),
    ),
    (
        "Ingest",
        (
            Panel("Duration of an append", "A 202 waits for the append.",
                  (("p50", "histogram_quantile(0.5, sum by (le) (rate(sluice_ingest_append_seconds_bucket[1m])))"),
                   ("p99", "histogram_quantile(0.99, sum by (le) (rate(sluice_ingest_append_seconds_bucket[1m])))")),
                  "s"),
            Panel("Events of an append", "Grows under load: while one append runs, the next one gathers.",
                  (("mean", "sum(rate(sluice_ingest_append_group_events_sum[1m]))"
                            " / sum(rate(sluice_ingest_append_group_events_count[1m]))"),), _EVENTS),
            Panel("Waiting for the log", "Events in memory. Near the limit, clients get 503.",
                  (("{{instance}}", "sluice_ingest_append_waiting_events{$chosen}"),), _EVENTS, runbook="log-down"),
            Panel("Bodies in memory", "Bytes received and not yet appended. Near the limit, large bodies get 503.",
                  (("{{instance}}", "sluice_ingest_held_bodies_bytes{$chosen}"),), "bytes"),
            Panel("Bucket calls", "`empty`: clients offer more than is admitted. `away`: Redis does not answer.",
                  (("{{result}}", "sum by (result) (rate(sluice_ingest_lease_calls_total[1m]))"),), "ops"),
            Panel("Answers by code", "Answers per second, by code: the reasons for refusals.",
                  (("{{code}}", "sum by (code) (rate(sluice_ingest_answers_total[1m]))"),), "reqps"),
            Panel("Events by protocol", "Records that clients send in protocols of others. Rejected ones "
                  "can't be mapped to an event; refused ones should come again.",
                  (("{{protocol}} {{outcome}}",
                    "sum by (protocol, outcome) (rate(sluice_ingest_protocol_events_total[1m])) > 0"),), "eps"),
            Panel("Requests by protocol", "Requests in protocols of others, by the status of their response.",
                  (("{{protocol}} {{status}}",
                    "sum by (protocol, status) (rate(sluice_ingest_protocol_requests_total[1m])) > 0"),), "reqps"),
            Panel("Refused by level", "Share of the offered events; only with ADMISSION_LEVELS.",
                  (("{{level}}", 'sum by (level) (rate(sluice_ingest_level_events_total{result="refused"}[1m]))'
                                 " / sum by (level) (rate(sluice_ingest_level_events_total[1m]))"),),
                  "percentunit"),
            Panel("Refused for the API key", "Requests, by reason; with INGEST_KEYS, or OPERATOR_PASSWORD.",
                  (("{{reason}}", "sum by (reason) (rate(sluice_ingest_key_refusals_total[1m]))"),
                   ("operators: {{reason}}", "sum by (reason) (rate(sluice_ingest_operator_refusals_total[1m]))"),
                   ("certificates: {{reason}}", "sum by (reason) (rate(sluice_ingest_tls_refusals_total[1m]))"),
                   ("{{instance}} knows keys", "sluice_ingest_keys{$chosen}"))),
            Panel("Connections", "Open connections of each ingest process, and those that it refuses a second.",
                  (("{{instance}}", "sluice_ingest_connections{$chosen}"),
                   ("refused: {{reason}}", "sum by (reason) (rate(sluice_ingest_connection_refusals_total[1m])) > 0"),
                   ("{{instance}} uses the last known rate", "sluice_ingest_admission_local{$chosen}"),
                   ("{{instance}} holds back accounts", "sluice_ingest_held_accounts{$chosen}"),
                   ("{{instance}} reaches the log", "sluice_ingest_log_answers{$chosen}"))),
        ),
    ),
    (
        "Machines",
        (
            Panel("Redis memory", "Share of maxmemory. A full event log refuses events.",
                  (("{{role}}", "max by (role) (sluice_redis_memory_bytes)"
                                " / max by (role) (sluice_redis_memory_limit_bytes)"),),
                  "percentunit", steps=((None, _GREEN), (0.8, _RED)), runbook="redis-memory-near-limit"),
            Panel("Disk left", "Free share of the disks under WATCHED_PATHS.",
                  (("{{path}}", "min by (path) (sluice_disk_free_bytes / sluice_disk_size_bytes)"),),
                  "percentunit", steps=((None, _RED), (0.1, _GREEN)), runbook="disk-near-full"),
            Panel("CPU", "Cores that each process uses, and workers' children.",
                  (("{{job}} {{instance}}", "rate(process_cpu_seconds_total{$chosen}[1m])"),
                   ("{{job}} {{instance}} children",
                    "clamp_min(deriv(sluice_worker_children_cpu_seconds_total{$chosen}[1m]), 0)")), "suffix: cores"),
            Panel("Memory", "Resident memory of each process, and of workers' children.",
                  (("{{job}} {{instance}}", "process_resident_memory_bytes{$chosen}"),
                   ("{{job}} {{instance}} children",
                    "sluice_worker_children_resident_memory_bytes{$chosen}")), "bytes"),
            Panel("Starts", "Starts of each program in 15 minutes. Unexpected starts are restarts.",
                  (("{{program}}", "max by (program) (increase(sluice_process_starts_total[15m]))"),), "suffix: starts",
                  runbook="process-missing"),
            Panel("Dropped messages", "Dropped from Celery's queues, by reason: no task, or an unknown one.",
                  (("{{reason}}", "sum by (reason) (increase(sluice_dropped_messages_total[15m]))"),),
                  "suffix: messages"),
            Panel("PostgreSQL", "Connections of Sluice, and the limit for all clients.",
                  (("connections", "max(sluice_database_connections)"),
                   ("allowed", "max(sluice_database_connections_limit)"),
                   ("worker processes", "sum(sluice_worker_children)")), "suffix: connections",
                  runbook="database-connections-high"),
            Panel("Size of the database", "It grows until expired events make room (RETENTION_DAYS).",
                  (("bytes", "max(sluice_database_bytes)"),), "bytes"),
            Panel("Expired rows", "Deleted because their time was over, by table.",
                  (("{{table}}", "max by (table) (rate(sluice_expired_rows_total[5m]))"),), "suffix: rows/s",
                  runbook="retention"),
            Panel("Scraped processes", "1: it answers.", (("{{job}} {{instance}}", "up{$chosen}"),), width=6),
            Panel("Version", "The version that runs, and its kind of event log.",
                  (("{{version}}, {{event_log}}", "max by (version, event_log) (sluice_build_info)"),),
                  kind="stat", width=6, extra={"textMode": "name"}),
        ),
    ),
)  # fmt: skip


def expressions() -> list[str]:
    """Every expression of every panel, with all processes selected."""
    written = [expression for _, panels in ROWS for panel in panels for _, expression in panel.queries]
    written += [expression for _, _, expression, _ in CONTROL_EVENTS]
    return [expression.replace("{$chosen}", "") for expression in written]


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's import format."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {"type": "row", "title": title, "id": len(panels) + 1, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1}}
        )  # fmt: skip
        y += 1
        x = height = 0
        for panel in row:
            if x + panel.width > _WIDTH:
                x, y = 0, y + height
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x, height = x + panel.width, panel.height
        y += height
    return {
        "uid": "sluice-backpressure",
        "title": "Backpressure Monitoring",
        "description": "Lag, admitted rate, breaker and storing of Sluice.",
        "tags": ["sluice"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timepicker": {},
        "templating": {"list": [_variable("job", "up"), _variable("instance", 'up{job=~"$job"}'), _page()]},
        "annotations": {"list": [_alerts(), *(_annotation(*one) for one in CONTROL_EVENTS)]},
        "links": [
            _link("Live page", "${page}/"),
            _link("Runbooks", "${page}/runbooks"),
        ],
        "panels": panels,
    }


def _variable(label: str, series: str) -> dict[str, Any]:
    """A selection of a label's values; initially all."""
    query = f"label_values({series}, {label})"
    return {
        "name": label,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": label},
        "definition": query,
        "refresh": 2,  # with the time range: processes start and stop
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _page() -> dict[str, Any]:
    """Where operators reach ingest: the live page and the runbooks. A field at the top of the dashboard."""
    here = "http://localhost:8081"
    return {
        "name": "page",
        "label": "Live page",
        "type": "textbox",
        "query": here,
        "current": {"text": here, "value": here},
        "options": [{"text": here, "value": here, "selected": True}],
    }


def _link(title: str, url: str) -> dict[str, Any]:
    return {"title": title, "type": "link", "url": url, "targetBlank": True, "icon": "external link", "tags": []}


# What the control loop did, as far as metrics tell: (name, title, expression that is 1 meanwhile, colour).
CONTROL_EVENTS: Final = (
    ("Breaker open", "breaker {{state}}", 'max by (state) (circuit_breaker_state{state=~"open|half-open"}) == 1', _RED),
    ("Paused", "paused: {{reason}}", "max by (reason) (sluice_consumption_paused) == 1", _YELLOW),
    ("Operator's rate", "an operator set the rate", "max(rate_limiter_override_active) == 1", _BLUE),
)


def _annotation(name: str, title: str, expression: str, color: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": _DATASOURCE,
        "enable": True,
        "iconColor": color,
        "expr": expression,
        "titleFormat": title,
        "step": "15s",  # samples that follow each other are one region
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": _DATASOURCE,
        "enable": True,
        "iconColor": _RED,
        "expr": 'ALERTS{alertstate="firing"}',
        "titleFormat": "{{alertname}}",
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    steps = panel.steps or ((None, _BLUE),)
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]},
    }
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 10,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
        }
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    elif panel.kind == "stat":
        options = {
            "colorMode": "value",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"]},
            **panel.extra,
        }
        defaults["color"] = {"mode": "thresholds"}
    else:
        options = {"mergeValues": True, "showValue": "never"}
        defaults["color"] = {"mode": "thresholds"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.tells,
        "datasource": _DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": expression.replace("$chosen", _CHOSEN),
                "legendFormat": legend,
                "datasource": _DATASOURCE,
            }
            for index, (legend, expression) in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "links": [_link("Runbook", f"${{page}}/runbooks/{panel.runbook}")] if panel.runbook else [],
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
