"""The problems that other processes report, as alarms of the system."""

from collections.abc import Mapping
from typing import Final

from pipeline.names import AlarmCode, ProblemCode, Severity
from pipeline.ports.control import Alarm
from pipeline.regulate.clocks import synchronise
from pipeline.regulate.context import ControlAdapters
from pipeline.regulate.refusal import name_refused_sink
from pipeline.regulate.sample import Sample

# Problems with a server that ingest processes report. All of them usually have the same one: it is one alarm.
_OF_SERVERS: Final[Mapping[str, Severity]] = {
    ProblemCode.LOG_DOWN: Severity.CRITICAL,
    ProblemCode.LOG_FULL: Severity.CRITICAL,
    ProblemCode.BUCKET_UNAVAILABLE: Severity.DEGRADED,
}
_REPORTERS_SHOWN: Final = 3  # processes


def hear_troubles(control: ControlAdapters, sample: Sample) -> None:
    """Turn the problems that processes report into alarms of the system."""
    by_code: dict[str, list[tuple[str, str]]] = {}
    for process, problems in (control.troubles.reported() if control.troubles is not None else {}).items():
        for problem in problems:
            if problem.code in _OF_SERVERS:
                by_code.setdefault(problem.code, []).append((process, problem.what))
            elif problem.code == AlarmCode.DATABASE_REFUSED:
                name_refused_sink(sample, problem.what)
            else:
                sample.degraded(problem.code, f"{process}: {problem.what}", _where(process, problem.code))
    for code, found in sorted(by_code.items()):
        names, (_, what) = sorted(process for process, _ in found), found[0]
        reporters = ", ".join(names[:_REPORTERS_SHOWN]) + (
            f" and {len(names) - _REPORTERS_SHOWN} more" if len(names) > _REPORTERS_SHOWN else ""
        )
        sample.alarms.append(Alarm(code, _OF_SERVERS[code], f"{reporters}: {what}", f"reported by {reporters}"))


def _where(process: str, code: str) -> str:
    """Where to look at a problem that a process reports."""
    if code == AlarmCode.CLOCKS_DIFFER:
        return synchronise(process)
    return "docs/retention.md" if code == AlarmCode.RETENTION else _read_log(process)


def _read_log(process: str) -> str:
    return f"the log of {process} (action loop_failed); a restart of that process may help"
