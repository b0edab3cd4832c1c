"""The runbook of each reason of health: a page of docs/runbooks/, which tells operators what to do. Pure."""

from typing import Final

from pipeline.names import AlarmCode, ProblemCode

# Reasons with the same condition share a page. Every other reason has a page with its own name.
_SHARED: Final[dict[str, str]] = {
    ProblemCode.BUCKET_UNAVAILABLE: "store-down",
    AlarmCode.NOT_RESTORED: "pauses-unknown",
    AlarmCode.OFFSETS_UNKNOWN: "database-silent",
    AlarmCode.STANDS_STILL: "no-progress",
    AlarmCode.DRAINER_NOT_ENDED: "no-progress",
    AlarmCode.LOOP_FAILS: "loop",
    AlarmCode.FEW_SESSIONS: "database-refused",
}
_RUNBOOKS: Final = {code.value: _SHARED.get(code, code.value.replace("_", "-")) for code in (*ProblemCode, *AlarmCode)}


def runbook_of(code: str) -> str | None:
    """The name of the page; None for a reason of a newer version."""
    return _RUNBOOKS.get(code)


def runbook_place(code: str, runbooks_url: str) -> str | None:
    """Where an operator reads it: below RUNBOOKS_URL or, if that is empty, a file of the repository."""
    name = runbook_of(code)
    if name is None:
        return None
    return f"docs/runbooks/{name}.md" if not runbooks_url else f"{runbooks_url.rstrip('/')}/{name}"
