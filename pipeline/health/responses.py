"""What the system does about a problem by itself, and the command that an operator begins with. Pure.

Each runbook (docs/runbooks/) has all the steps; a command here is the first of them, and can be copied as it is.
"""

from typing import Final, NamedTuple

from pipeline.names import AlarmCode, PauseReason, ProblemCode

_CELERY: Final = "celery -A tasks.app"
DOCTOR: Final = "python -m sluice doctor"  # asks every server, and says what to do about each
_RESUME: Final = f"{_CELERY} control resume_consumption"
_ACTIVE: Final = f"{_CELERY} inspect active"
_LAG: Final = f"{_CELERY} inspect lag"
_WRITE: Final = (
    'psql "$DATABASE_URL" -c "INSERT INTO probes VALUES (1, now()) ON CONFLICT (id) DO UPDATE SET probed_at = now()"'
)


class Response(NamedTuple):
    """`by_itself`: a sentence; `command`: empty if no single command is the first step."""

    by_itself: str
    command: str


_NONE: Final = Response("", "")
_HELD: Final = "Accepted events wait in the event log, and none is lost."
_RATE_FALLS: Final = "The last rate holds for RATE_HOLD_SECONDS, then it falls step by step to RATE_MIN."

_RESPONSES: Final[dict[str, Response]] = {
    ProblemCode.LOG_DOWN: Response(
        "Ingest acknowledges nothing, and goes on as soon as the log answers; clients send again.", DOCTOR
    ),
    ProblemCode.LOG_FULL: Response(
        "Stored events leave the log, so it gets room as soon as something is stored; clients send again.", _LAG
    ),
    ProblemCode.STORE_DOWN: Response(f"{_RATE_FALLS} {_HELD}", DOCTOR),
    ProblemCode.BUCKET_UNAVAILABLE: Response(
        "Each ingest process admits its own share of the last known rate.", DOCTOR
    ),
    ProblemCode.DATABASE_SILENT: Response("The next query tries again; if drains fail too, the breaker opens.", DOCTOR),
    ProblemCode.BREAKER_OPEN: Response(
        f"The control worker tries a small write from time to time; one that succeeds closes the breaker. {_HELD}",
        _WRITE,
    ),
    ProblemCode.PAUSED: Response(f"Nothing: this pause ends only by an operator. {_HELD}", ""),
    ProblemCode.PAUSES_UNKNOWN: Response(
        "The controller restores them from PostgreSQL at its next tick; until then workers keep what they knew.", DOCTOR
    ),
    ProblemCode.CONTROLLER_SILENT: Response(
        f"{_RATE_FALLS} Events are still accepted and stored.", f"{_CELERY} inspect ping"
    ),
    ProblemCode.NO_PROGRESS: Response(
        f"A drain without progress is ended after DRAIN_STALLED_SECONDS_MAX, and another one starts. {_HELD}", _ACTIVE
    ),
    ProblemCode.BEHIND: Response(
        "The rate policy lowers the rate until consumers catch up, then raises it. Clients above it get 429.",
        _LAG,
    ),
    ProblemCode.LOOP: Response("The loop goes on with its last state, and tries again.", ""),
    ProblemCode.REFUSING: Response(
        "Clients get 429 or 503 with Retry-After, and should send again. What is accepted is not affected.",
        f"{_CELERY} inspect throttle",
    ),
    AlarmCode.LAG_UNKNOWN: Response(f"{_RATE_FALLS} It does not rise while the lag is unknown.", DOCTOR),
    AlarmCode.OFFSETS_UNKNOWN: Response(
        "The lag is counted by the log's own commits until the stored offsets can be read.", DOCTOR
    ),
    AlarmCode.NOT_RESTORED: Response("The controller tries again at each tick; workers keep what they knew.", DOCTOR),
    AlarmCode.LOOP_FAILS: Response("The loop goes on with its last state, and tries again.", ""),
    AlarmCode.CLOCKS_DIFFER: Response("No decision of the control loop depends on that clock; shown times do.", DOCTOR),
    AlarmCode.FORMER_LOG: Response("Nothing: no worker drains that log. Its events stay there.", ""),
    AlarmCode.BEGAN_LATE: Response(
        "Storing goes on with the first record that the log holds. No event is stored twice in one database.",
        'psql "$DATABASE_URL" -c "SELECT * FROM stored_offsets"',
    ),
    AlarmCode.LOG_BEHIND_STORED: Response("The partition is paused, so that no event is passed over.", ""),
    AlarmCode.SCHEMA_REFUSED: Response(
        f"Workers that refuse the schema store nothing, and look again. {_HELD}",
        'psql "$DATABASE_URL" -c "SELECT * FROM schema_migrations ORDER BY 1"',
    ),
    AlarmCode.DATABASE_REFUSED: Response(
        f"Workers look again with each new connection, and store as soon as the database can be used. {_HELD}", DOCTOR
    ),
    AlarmCode.FEW_SESSIONS: Response(
        f"Workers for batches that run go on, and those that start end with the same text in their log. {_HELD}", DOCTOR
    ),
    AlarmCode.STANDS_STILL: Response(
        f"A drain without progress is ended after DRAIN_STALLED_SECONDS_MAX, and another one starts. {_HELD}", _ACTIVE
    ),
    AlarmCode.DRAINER_NOT_ENDED: Response(f"The next tick tries again to end it. {_HELD}", _ACTIVE),
    AlarmCode.PARTITION_UNAVAILABLE: Response(
        "The other partitions work. The last known lag of this one counts, so the rate does not rise because of it.",
        DOCTOR,
    ),
    AlarmCode.REPLICAS_MISSING: Response("A replica that comes back catches up by itself.", DOCTOR),
    AlarmCode.LOG_TAIL_LOST: Response(
        "Sluice goes on, and uses no offset twice. Lost events come back only if clients send them again.", ""
    ),
    AlarmCode.RETENTION: Response("Events are accepted and stored as usual; the table grows.", ""),
    AlarmCode.LOG_SET_UP: Response("Nothing: what the log holds is stored, at the risk that is named.", ""),
}

# If only the processes that are named have the problem.
_WHERE_NAMED: Final[dict[str, Response]] = {
    ProblemCode.LOG_DOWN: Response(
        "The processes that are named acknowledge nothing, and go on as soon as the log answers them; their clients "
        "send again.",
        DOCTOR,
    ),
    ProblemCode.BUCKET_UNAVAILABLE: Response(
        "The processes that are named admit their own share of the last known rate; the others use the bucket.", DOCTOR
    ),
}

_OF_PARTITION: Final = {
    PauseReason.POISON: f"{_CELERY} inspect poison",
    PauseReason.LOG_GAP: f"{_CELERY} inspect gap",
}


def response_to(code: str) -> Response:
    """The response to a problem or an alarm; empty for a code of a newer version."""
    return _RESPONSES.get(code, _NONE)


def response_where_named(code: str) -> Response:
    """The response to a problem that only some processes report."""
    return _WHERE_NAMED.get(code, response_to(code))


def by_itself_of_pause(reason: PauseReason) -> str:
    """What the system does about a pause by itself; empty: what the problem `paused` says."""
    if reason is not PauseReason.LOG_GAP:
        return ""
    return "Nothing: only an operator ends this pause, since records are missing. Later events wait in the event log."


def command_of_pause(reason: PauseReason, partition: int | None) -> str:
    """The first command for a pause that an operator must end; empty for a reason of a newer version."""
    if reason is PauseReason.OPERATOR:
        return _RESUME
    shows = _OF_PARTITION.get(reason)
    return "" if shows is None or partition is None else f"{shows} {partition}"


def command_of_alarm(code: str, partition: int | None) -> str:
    """The first command for an alarm about a partition, or about none."""
    if code == AlarmCode.LOG_BEHIND_STORED and partition is not None:
        return f"{_OF_PARTITION[PauseReason.LOG_GAP]} {partition}"
    return response_to(code).command


CLEAR_RATE: Final = f"{_CELERY} control clear_rate_limit"
