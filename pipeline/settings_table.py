"""The table of all settings as Markdown: `python -m pipeline.settings_table > docs/settings.md`."""

import dataclasses
import inspect
import re
import sys
from typing import Any, Final

from pipeline.settings import Settings
from pipeline.settings.access import ApiKeySettings, OperatorSettings
from pipeline.settings.accounts import AccountSettings
from pipeline.settings.append import AppendSettings
from pipeline.settings.control_loop import ControlLoopSettings
from pipeline.settings.drain import DrainSettings
from pipeline.settings.event_log import EventLogSettings
from pipeline.settings.http import HttpSettings
from pipeline.settings.kafka_link import KafkaLinkSettings
from pipeline.settings.log_lines import LogLineSettings
from pipeline.settings.metrics import MetricsSettings
from pipeline.settings.redis_link import RedisLinkSettings
from pipeline.settings.retention import RetentionSettings
from pipeline.settings.servers import ServerSettings
from pipeline.settings.task_queue import TaskQueueSettings

# The areas below each heading.
_AREAS: Final[dict[str, tuple[type, ...]]] = {
    "Servers": (ServerSettings,),
    "Links": (KafkaLinkSettings, RedisLinkSettings),
    "Log lines": (LogLineSettings,),
    "Ingest: HTTP": (HttpSettings,),
    "Ingest: operators": (OperatorSettings,),
    "Ingest: API keys": (ApiKeySettings,),
    "Ingest: accounts": (AccountSettings,),
    "Ingest: append": (AppendSettings,),
    "Event log": (EventLogSettings,),
    "Drain": (DrainSettings,),
    "Control loop": (ControlLoopSettings,),
    "Retention": (RetentionSettings,),
    "Metrics": (MetricsSettings,),
    "Celery": (TaskQueueSettings,),
}
# The unit is the last word of a name, before `max` or `min`; other settings declare theirs.
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

A misspelled setting is ignored. If its name is nearly that of a setting, as `RATE_MX`, each program says so in one line
at its start, with the setting that was probably meant; so do `./run.sh` and `sluice doctor`, which also reads the
`.env` of docker compose in a checkout.
"""


def unit_of(field: "dataclasses.Field[Any]") -> str:
    """The unit of a setting; "" for a text, a port or a yes/no value."""
    found = _UNIT.search(field.name)
    return field.metadata["unit"] or (found[1].replace("seconds", "s") if found else "")


def table() -> str:
    """The page."""
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    secrets = [field.name.upper() for field in fields.values() if field.metadata["is_secret"]]
    named = ", ".join(f"`{name}`" for name in secrets[:-1]) + f" and `{secrets[-1]}`"
    parts = [_HEAD.format(secrets=named, example=secrets[0])]
    for heading, areas in _AREAS.items():
        parts.append(f"\n## {heading}\n")
        parts.append("| Setting | Default | Unit | What it does | When to change it |\n|---|---|---|---|---|")
        parts += [_row(fields[name]) for area in areas for name in inspect.get_annotations(area)]
    return "\n".join(parts) + "\n"


def _row(field: "dataclasses.Field[Any]") -> str:
    meta = field.metadata
    what = _cell(f"{meta['why']}{_limits(meta)}")
    return f"| `{field.name.upper()}` | {_default(field.default)} | {unit_of(field)} | {what} | {_cell(meta['when'])} |"


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
