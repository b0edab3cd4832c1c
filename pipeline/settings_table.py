"""The table of all settings as Markdown: `python -m pipeline.settings_table > docs/settings.md`."""

import dataclasses
import re
import sys
from typing import Any, Final

from pipeline.settings import Settings

# The first setting of each group, and the group's title.
_GROUPS: Final = {
    "database_url": "Servers",
    "kafka_ca_file": "Links",
    "log_level": "Log lines",
    "ingest_host": "Ingest: HTTP",
    "operator_port": "Ingest: operators",
    "ingest_keys": "Ingest: API keys",
    "trusted_proxies": "Ingest: accounts",
    "append_group_events_max": "Ingest: append",
    "log_partitions": "Event log",
    "drain_batch_records_max": "Drain",
    "rate_policy": "Control loop",
    "retention_days": "Retention",
    "metrics_host": "Metrics",
    "visibility_timeout_seconds": "Celery",
}
# The unit is the last word of a name, before `max` or `min`; these names have no unit word.
_UNITS: Final = {
    "event_time_min_ms": "ms",
    "retention_days": "days",
    "dead_letter_days": "days",
    "dedup_days": "days",
    "retention_rows_max": "rows",
    "log_keep_hours": "hours",
    "rate_max": "events/s",
    "override_rate_max": "events/s",
    "rate_min": "events/s",
    "lag_degraded": "events",
    "lag_critical": "events",
    "breaker_failures_max": "failures",
    "log_entries_max": "entries",
    "log_partitions": "partitions",
    "drains_max": "drains",
    "kafka_replication": "replicas",
    "log_replicas_min": "replicas",
    "ingest_connections_max": "connections",
    "ingest_processes_max": "processes",
    "accounts_max": "accounts",
    "api_keys_max": "keys",
    "account_limits_max": "accounts",
    "page_viewers_max": "pages",
    "control_events_max": "events",
    "poison_ratio_max": "share",
    "refused_ratio_max": "share",
}
_UNIT: Final = re.compile(r"_(seconds|bytes|events|records|periods|milliseconds)(?:_max|_min)?$")
_HEAD: Final = """\
# Settings

Each is an environment variable of every process of Sluice; one that is unset or empty takes its default. Values are
checked at the start: an invalid setting is refused with its name, its value and the allowed values.
`python -m pipeline.settings_table` writes this page.

`./run.sh` has variables of its own for folders and ports, see `./run.sh --help`.

A user or a password in a URL is percent-encoded: `%` is `%25`, `@` is `%40`, `/` is `%2F`. No log line, error or page
shows a password. {secrets} can also be in a file: add `_FILE` to the name, as in `{example}_FILE=/run/secrets/x`. The
value is the file's only line; it is read once, at the start. Only `./run.sh` takes no file for an address.

Variables of other programs change nothing: `CELERY_…`, `PG…` and `PROMETHEUS_MULTIPROC_DIR` are removed at the start,
with one line that names them. Only `PGPASSWORD` and `PGPASSFILE` are kept, for a password that should not be in a URL.
Other options of PostgreSQL's client belong in `DATABASE_URL`, as in
`?sslmode=verify-full&sslrootcert=/etc/ssl/db.pem`. `./run.sh` also removes options of Python, Java and Flower; those of
Flower, such as `FLOWER_URL_PREFIX`, it names.
"""


def unit_of(name: str) -> str:
    """The unit of a setting; "" for a text, a port or a yes/no value."""
    found = _UNIT.search(name)
    return _UNITS.get(name) or (found[1].replace("seconds", "s") if found else "")


def table() -> str:
    """The page."""
    secrets = [field.name.upper() for field in dataclasses.fields(Settings) if field.metadata["is_secret"]]
    named = ", ".join(f"`{name}`" for name in secrets[:-1]) + f" and `{secrets[-1]}`"
    parts = [_HEAD.format(secrets=named, example=secrets[0])]
    for field in dataclasses.fields(Settings):
        if field.name in _GROUPS:
            parts.append(f"\n## {_GROUPS[field.name]}\n")
            parts.append("| Setting | Default | Unit | What it does | When to change it |\n|---|---|---|---|---|")
        meta = field.metadata
        what = _cell(f"{meta['why']}{_limits(meta)}")
        parts.append(
            f"| `{field.name.upper()}` | {_default(field.default)} | {unit_of(field.name)} | {what} "
            f"| {_cell(meta['when'])} |"
        )
    return "\n".join(parts) + "\n"


def _limits(meta: Any) -> str:
    if meta["choices"] is not None:
        return " (" + ", ".join(meta["choices"]) + ")"
    if meta["low"] is None:
        return ""
    return f" ({_number(meta['low'])} to {_number(meta['high'])})"


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value)
    return f"`{value}`" if value else ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.10g}"  # as an operator would type it: without separators


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(table())
