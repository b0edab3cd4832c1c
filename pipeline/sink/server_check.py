"""Checks whether a PostgreSQL server and its table can keep Sluice's guarantees; names each problem and its remedy.

Runs once for each connection, before anything else is sent on it. A refused server counts as one that does not answer:
nothing becomes a dead letter, the breaker opens with this reason, and all resumes once the problem is fixed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import SinkMisconfiguredError, SinkStandbyError

FSYNC_OFF: Final = "PostgreSQL has fsync=off: a power loss can take stored events (docs/guarantees.md)"
VERSION_MIN: Final = 13  # the oldest version whose catalog supports the queries below
_STANDBY: Final = (
    "it is a standby, which takes no writes: let DATABASE_URL name the primary, or all hosts and "
    "?target_session_attrs=read-write"
)


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """A server's facts about itself: the columns of the statement `server_facts`, in their order."""

    backend_pid: int
    version: int  # as server_version_num: 150018
    encoding: str
    is_standby: bool
    has_fsync: bool
    may_make_temporary: bool
    database: str
    user: str


@dataclass(frozen=True, slots=True)
class TableFacts:
    """The facts about log_events: the columns of the statement `table_facts`, in their order."""

    wrong_columns: Sequence[str]  # among those that Sluice writes
    unfilled_columns: Sequence[str]  # added by a user: NOT NULL, and filled neither by PostgreSQL nor by a trigger
    has_unique_ids: bool
    has_insert_rules: bool
    missing_rights: Sequence[str]
    is_by_day: bool = False  # partitioned by stored_at, and there is a table event_ids
    has_noted_ids: bool = False  # the trigger that notes each id is as it must be, and so is event_ids


def server_problem(facts: DatabaseFacts) -> str | None:
    """The reason why this server can't be used; None if it can."""
    if facts.version < VERSION_MIN * 10_000:
        return f"PostgreSQL {facts.version // 10_000} is too old: {VERSION_MIN} or newer is needed"
    if facts.encoding != "UTF8":
        return (
            f"the database {facts.database} has the encoding {facts.encoding}, which can't hold every text that ingest "
            "takes: make one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and name it in DATABASE_URL"
        )
    if facts.is_standby:
        return _STANDBY
    if not facts.may_make_temporary:
        return (
            f"the user {facts.user} may make no temporary table, through which repeats are stored: "
            f"GRANT TEMPORARY ON DATABASE {facts.database} TO {facts.user}"
        )
    return None


def table_problem(facts: TableFacts) -> str | None:
    """The reason why this table can't be used; None if it can."""
    return next(_table_problems(facts), None)


def _table_problems(facts: TableFacts) -> Iterator[str]:
    if facts.wrong_columns:
        yield f"log_events lacks columns as Sluice writes them: {', '.join(facts.wrong_columns)}"
    if facts.is_by_day and not facts.has_noted_ids:
        yield (
            "log_events is partitioned by day, and its trigger log_events_ids is missing or not ENABLE ALWAYS, or "
            "event_ids is UNLOGGED or has no unique index on event_id: an event could be stored twice: run "
            "`EVENTS_BY_DAY=yes python -m pipeline migrate`, which makes the trigger again"
        )
    if not facts.has_unique_ids and not facts.is_by_day:
        yield (
            "log_events has no unique index on event_id alone, without which an event could be stored twice "
            "(a table partitioned by time can't have one; EVENTS_BY_DAY=yes has another way)"
        )
    if facts.unfilled_columns:
        yield (
            f"nothing fills these columns of log_events, which are NOT NULL: {', '.join(facts.unfilled_columns)}: "
            "give them a default, or a trigger BEFORE INSERT"
        )
    if facts.has_insert_rules:
        yield "log_events has a rule ON INSERT, which COPY passes by and ON CONFLICT refuses: use a trigger"
    if facts.missing_rights:
        yield f"Sluice's user lacks rights: {', '.join(facts.missing_rights)}"


def refuse(problem: str | None) -> None:
    """Raise SinkMisconfiguredError if there is a problem; SinkStandbyError if it is that the server is a standby."""
    if problem is not None:
        refused = SinkStandbyError if problem == _STANDBY else SinkMisconfiguredError
        raise refused(f"this PostgreSQL can't be used: {problem} (docs/database.md)")


def facts_of(rows: Sequence[Sequence[Any]]) -> TableFacts | None:
    """The table's facts from the statement's result; None before the table is created."""
    return TableFacts(*rows[0]) if rows else None


LENT_BACKENDS: Final = (
    "a pooler lends its backends for single transactions (pgbouncer's pool_mode=transaction or statement), so that "
    "Sluice's locks and session settings would stay on backends of others: let DATABASE_URL name PostgreSQL itself, "
    "or a pool with pool_mode=session"
)
