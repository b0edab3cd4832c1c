"""What `sluice doctor` found, one line each; and how checks run: all at once, each for a bounded time."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from pipeline.clock import Clock, SystemClock
from pipeline.errors import RecoverableError, SluiceError
from pipeline.secrets import hide_secrets
from pipeline.settings import Settings
from pipeline.text import on_one_line

_NAME_COLUMNS: Final = 14


class State(StrEnum):
    """Whether something must be done."""

    OK = "ok"
    WRONG = "wrong"
    UNKNOWN = "unknown"  # it could not be checked


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. Errors of the start checks say what to do themselves; `do` is for the others."""

    name: str
    state: State
    what: str
    do: str = ""

    @property
    def line(self) -> str:
        """The line for people."""
        do = f"; do: {self.do}" if self.do else ""
        return on_one_line(hide_secrets(f"{self.state.value:<8}{self.name:<{_NAME_COLUMNS}}{self.what}{do}"))


@dataclass(frozen=True, slots=True)
class Scene:
    """What checks look at."""

    settings: Settings
    environ: Mapping[str, str]
    clock: Clock


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at. `server`: what to do if nothing answers, where the check asks a server."""

    name: str
    look: Callable[[Scene], Iterable[Finding]]
    server: str = ""


class _Warnings(logging.Handler):
    """Collects the warnings of each check, by its thread's name: start checks log what does not stop a process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._of_checks: dict[str, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._of_checks.setdefault(record.threadName or "", []).append(record.getMessage())

    def of(self, check: Check) -> list[str]:
        """The warnings that a check has logged."""
        return self._of_checks.get(check.name, [])


def examine(checks: Sequence[Check], scene: Scene, *, seconds_max: float, clock: Clock | None = None) -> list[Finding]:
    """The findings of all checks, in their order. A check that takes longer than `seconds_max` is left alone."""
    clock = clock or SystemClock()
    warnings = _Warnings()
    root = logging.getLogger()
    root.addHandler(warnings)
    found: dict[str, list[Finding]] = {}
    threads = [
        threading.Thread(target=_examine, args=(check, scene, warnings, found), name=check.name, daemon=True)
        for check in checks
    ]
    try:
        for thread in threads:
            thread.start()
        deadline = clock.monotonic() + seconds_max
        for thread in threads:
            thread.join(max(0.0, deadline - clock.monotonic()))
    finally:
        root.removeHandler(warnings)
    return _once([finding for check in checks for finding in found.get(check.name, [_silent(check, seconds_max)])])


def _once(findings: list[Finding]) -> list[Finding]:
    """An error of a server that several checks ask: only the line of the server has its text."""
    said = {finding.what: finding.name for finding in findings if finding.state is State.WRONG}
    return [_without(finding, said) if finding.state is State.UNKNOWN else finding for finding in findings]


def _without(finding: Finding, said: Mapping[str, str]) -> Finding:
    for what, name in said.items():
        if finding.what.endswith(f": {what}"):
            return replace(finding, what=f"{finding.what.removesuffix(what)}see {name}")
    return finding


def _silent(check: Check, seconds_max: float) -> Finding:
    state = State.WRONG if check.server else State.UNKNOWN
    return Finding(check.name, state, f"no answer within {seconds_max:g} s", check.server or "try it again")


def _examine(check: Check, scene: Scene, warnings: _Warnings, found: dict[str, list[Finding]]) -> None:
    """Run one check in its thread. The start checks raise what stops a process, and log what does not."""
    try:
        seen = list(check.look(scene))
    except RecoverableError as error:  # a server is away
        if check.server:
            seen = [Finding(check.name, State.WRONG, str(error), check.server)]
        else:
            seen = [Finding(check.name, State.UNKNOWN, f"not checked: {error}")]
    except SluiceError as error:
        seen = [Finding(check.name, State.WRONG, str(error))]
    except Exception as error:  # the other lines are worth having
        seen = [Finding(check.name, State.UNKNOWN, f"the check failed: {error!r}", "report this")]
    logged = [Finding(check.name, State.WRONG, text) for text in warnings.of(check)]
    if logged:
        seen = [*(finding for finding in seen if finding.state is not State.OK), *logged]
    found[check.name] = seen


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings for JSON."""
    return {
        "ok": is_well(findings),
        "lines": [
            {"name": one.name, "state": one.state.value, "what": hide_secrets(one.what), "do": hide_secrets(one.do)}
            for one in findings
        ],
    }


def is_well(findings: Iterable[Finding]) -> bool:
    """Whether nothing has to be done."""
    return all(finding.state is State.OK for finding in findings)
