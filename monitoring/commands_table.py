"""Commands of operators and control events as Markdown: `python -m monitoring.commands_table > docs/commands.md`."""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Final

from celery.worker.control import Panel

import tasks.remote  # its commands join those of Celery
from pipeline.names import ControlEventKind

_HEAD: Final = """\
# Commands and control events

`celery -A tasks.app inspect NAME` looks, and `celery -A tasks.app control NAME` changes something. Each runs once,
whatever the number of workers, and needs a control worker. `--dry-run` says what would happen. Every change is a
control event, with who and why. [operating.md](operating.md) has examples, the [runbooks](runbooks/README.md) say when.
`python -m monitoring.commands_table` writes this page.
"""
_EVENTS_HEAD: Final = """\
## Control events

The live page, `python -m pipeline status` and `inspect sluice` show the last ones in words. `status --json` has them in
`events`, with the kind of this table. `CONTROL_EVENTS_MAX` of them are kept.

| kind | when |
|---|---|
"""
_MEMBER: Final = re.compile(r'^    [A-Z_]+ = "(\w+)"  # (.+)$', re.MULTILINE)


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for kind, title in (("inspect", "Look"), ("control", "Change")):
        parts.append(f"## {title}\n\n| `{kind}` | what it does |\n|---|---|\n" + "".join(_commands(kind)))
    events = _MEMBER.findall(inspect.getsource(ControlEventKind))
    rows = "".join(f"| `{kind}` | {why} |\n" for kind, why in events)
    return "\n".join([*parts, _EVENTS_HEAD + rows])


def _commands(kind: str) -> Iterator[str]:
    """A row for each command of Sluice's own."""
    for name, command in Panel.meta.items():
        if command.type == kind and Panel.data[name].__module__ == tasks.remote.__name__:
            words = f"{name} {command.signature or ''}".strip().replace("|", "\\|")
            yield f"| `{words}` | {command.help} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
