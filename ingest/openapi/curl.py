"""Commands to try the contract with, printed on `/docs`: each works in a shell without changes."""

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any, Final

from ingest.openapi.document import NDJSON
from ingest.openapi.schemas import EVENT, RICH_EVENT

# Characters that are safe in a command for a shell: a name or address, and a port.
_HOST: Final = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Command:
    """One command, its purpose, and the status of the answer."""

    title: str
    status: int
    line: str


def origin_of(host: str | None, proto: str | None, *, otherwise: str) -> str:
    """The address that a client used, from its Host and X-Forwarded-Proto; `otherwise` if they are invalid."""
    if host is None or _HOST.fullmatch(host) is None:
        return otherwise
    return f"{'https' if proto == 'https' else 'http'}://{host}"


def commands(origin: str) -> list[Command]:
    """The commands for an ingest at this address."""
    events = shlex.quote(f"{origin}/api/logs")
    one, two = _json(EVENT), _json([EVENT, RICH_EVENT])
    lines = " ".join(_json(event) for event in (EVENT, RICH_EVENT))
    as_json = "-H 'Content-Type: application/json'"
    return [
        Command("One event", 202, f"curl -i {events} {as_json} \\\n  -d {one}"),
        Command("A batch", 202, f"curl -i {events} {as_json} \\\n  -d {two}"),
        Command(
            "One event a line",
            202,
            f"printf '%s\\n' {lines} |\n  curl -i {events} -H 'Content-Type: {NDJSON}' --data-binary @-",
        ),
        Command(
            "Gzipped",
            202,
            f"printf '%s' {two} | gzip |\n  curl -i {events} {as_json} -H 'Content-Encoding: gzip' --data-binary @-",
        ),
        Command("What is missing is named", 422, f"curl -i {events} {as_json} -d '{{}}'"),
        Command("Health", 200, f"curl -i {shlex.quote(f'{origin}/api/logs/health')}"),
    ]


def _json(document: Any) -> str:
    return shlex.quote(json.dumps(document, ensure_ascii=False))
