"""`sluice doctor`: looks at settings, servers and this machine, and says what to do."""

import dataclasses
import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pipeline.clock import SystemClock
from pipeline.errors import SettingsError
from pipeline.running import CODE
from pipeline.settings import Settings, ignore_variables_of_others, no_system_to_ask
from pipeline.settings.misspelled import misspelled_in
from sluice.examinations import OF_SERVERS, OF_SHELL, load
from sluice.findings import Finding, Scene, State, document, examine, is_well

_ASSIGNMENT: Final = re.compile(r"^[ \t]*(?:export[ \t]+)?(\w+)[ \t]*=[ \t]*(.*)", re.MULTILINE)
_WITHOUT_SETTINGS = OF_SHELL[:1]


def main(asked: Namespace) -> int:
    """Print the findings; returns the exit status."""
    findings = look(seconds_max=asked.seconds)
    if asked.json:
        sys.stdout.write(f"{json.dumps(document(findings))}\n")
    else:
        for finding in findings:
            sys.stdout.write(f"{finding.line}\n")
        wrong = sum(finding.state is not State.OK for finding in findings)
        end = f"not ok: {wrong} of {len(findings)} lines" if wrong else "nothing is wrong"
        sys.stdout.write(f"\n{end}; `sluice status` shows what the system does\n")
    return 0 if is_well(findings) else 1


def look(*, seconds_max: float) -> list[Finding]:
    """All findings, with this process' environment."""
    environ, clock = dict(os.environ), SystemClock()
    ignored = ignore_variables_of_others()
    findings = [] if ignored is None else [Finding("shell", State.OK, ignored)]
    findings += _misspelled(environ)
    try:
        settings = Settings.for_commands()
    except SettingsError as error:
        what = Finding("settings", State.WRONG, str(error), "correct them: docs/settings.md has all of them")
        return [
            what,
            *findings,
            *examine(_WITHOUT_SETTINGS, Scene(Settings(), environ, clock), seconds_max=seconds_max),
        ]
    load(settings)
    scene, problem = Scene(settings, environ, clock), no_system_to_ask()
    if problem is not None:
        what = Finding("settings", State.WRONG, problem)
        return [what, *findings, *examine(OF_SHELL, scene, seconds_max=seconds_max)]
    changed = len(dataclasses.asdict(settings).items() - dataclasses.asdict(Settings()).items())
    what = Finding("settings", State.OK, f"{changed} differ from the defaults")
    return [what, *findings, *examine((*OF_SHELL, *OF_SERVERS), scene, seconds_max=seconds_max)]


def _misspelled(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that are probably misspelled settings: in this shell, and in the file that docker compose reads."""
    do = "correct the name, or unset it"
    for place, variables in (("", environ), (".env: ", _of_file(CODE / ".env"))):
        words = misspelled_in(variables)
        if words is not None:
            yield Finding("settings", State.WRONG, f"{place}{words}", do)


def _of_file(path: Path) -> dict[str, str]:
    """The variables that a file of lines NAME=VALUE sets; none if it can't be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return dict(_ASSIGNMENT.findall(text))
