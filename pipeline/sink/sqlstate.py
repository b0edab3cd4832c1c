"""Classifies errors by SQLSTATE: what was at fault. Pure functions; by code, not by psycopg2's classes.

psycopg2 reports both a deadlock and a lost connection as OperationalError, so its classes can't decide this.
Source: the PostgreSQL manual, appendix "PostgreSQL Error Codes".
"""

import re
from enum import Enum
from typing import Final


class Fault(Enum):
    """What was at fault in an error; it decides the next step."""

    DATA = "data"  # the content of a row: find the row, dead-letter it
    REPEAT = "repeat"  # an event_id that is already stored: store the batch through the staging table
    NOT_BY_COPY = "not_by_copy"  # the table accepts INSERT only (row security): also through the staging table
    CONTENTION = "contention"  # rolled back in favour of another transaction: repeat, uncounted
    SERVER = "server"  # all other errors, including a lost connection: counts for the breaker, dead-letters nothing


UNIQUE_VIOLATION: Final = "23505"
LOCK_NOT_AVAILABLE: Final = "55P03"  # `lock_timeout` raises it too
INSUFFICIENT_PRIVILEGE: Final = "42501"
UNDEFINED_COLUMN: Final = "42703"
QUERY_CANCELED: Final = "57014"  # by its statement_timeout, or by a person
# A table, a column or a function is missing, or the schema with all of them.
_UNDEFINED: Final = frozenset({"42P01", UNDEFINED_COLUMN, "42883", "3F000"})
_NOT_SUPPORTED: Final = "0A000"
# PostgreSQL's function that raises 42501 for a row. Another function raises it for a table that may not be written.
_ROW_SECURITY_FUNCTION: Final = "ExecWithCheckOptions"
CONTENTION_CLASS: Final = "40"  # transaction rollback: deadlock, serialization failure
# Classes for problems of the server, the schema or the session. All others are a row's fault: the standard's classes
# for data (22, 23, 44, 54), those of functions (P0, 21, 39), and any code that a user's trigger raises, because a
# trigger's error about a row is the row's fault.
SERVER_CLASSES: Final = frozenset(
    {
        "08",  # connection
        "0A",  # feature not supported
        "25",  # transaction state: for example read-only
        "26",  # prepared statement unknown
        "28",  # authorization
        "2D",  # transaction termination
        "3D",  # no such database
        "3F",  # no such schema
        "42",  # no such table or column, no right to it
        "53",  # insufficient resources: disk, memory, connections
        "55",  # wrong state for it: a lock that is not free
        "57",  # operator intervention: cancelled, shutting down
        "58",  # system error: I/O
        "F0",  # configuration file
        "HV",  # foreign data wrapper
        "XX",  # internal error, corruption
    }
)
# Classes that no row's content can cause, even if a row fails with them many times. In 25 and 57 are the time-outs by
# which the server ends a session that waits (25P03, 57P05), and its own shutdown.
_NEVER_A_ROWS_CLASSES: Final = frozenset({"08", "25", "40", "53", "55", "57", "58"})
# Except for these: a trigger may take too long for one row. statement_timeout, and transaction_timeout.
_TOO_LONG: Final = frozenset({"57014", "25P04"})
# Classes of what only an operator can change: authorization; no such database, schema, table or column; no right to it.
_REFUSAL_CLASSES: Final = frozenset({"28", "3D", "3F", "42"})
# libpq has no SQLSTATE for a failed connection. Each address that it tried has a message of its own.
_ATTEMPT: Final = re.compile(r"failed: (.*?)(?=\nconnection to |\Z)", re.DOTALL)
# The server's message begins with its severity, a colon and two spaces, in each language of the server. The others are
# libpq's: the server asks for what Sluice does not have, or Sluice does not trust it.
_ANSWER: Final = re.compile(
    r"[^\s:][^:\n]{0,30}:  |fe_sendauth: |SSL error: certificate |server does not support SSL|"
    r"server certificate |root certificate "
)
# Refusals that pass, or that have a page of their own (too many sessions). In another language they count as lasting.
_PASSES: Final = re.compile(
    r"starting up|shutting down|recovery mode|not yet accepting|too many (?:clients|connections)|connection slots"
)


def fault_of(sqlstate: str | None, function: str | None = None) -> Fault:
    """Classify an SQLSTATE; None is an error that did not come from the server (connection lost, time-out).

    `function` is the function in PostgreSQL's source that raised it: it does not depend on the server's language.
    """
    if not sqlstate:
        return Fault.SERVER
    if sqlstate == UNIQUE_VIOLATION:
        return Fault.REPEAT
    if sqlstate == _NOT_SUPPORTED:
        return Fault.NOT_BY_COPY
    if sqlstate == INSUFFICIENT_PRIVILEGE and function == _ROW_SECURITY_FUNCTION:
        return Fault.DATA
    if sqlstate[:2] == CONTENTION_CLASS:
        return Fault.CONTENTION
    return Fault.SERVER if sqlstate[:2] in SERVER_CLASSES else Fault.DATA


def is_schema_missing(sqlstate: str | None, context: str | None) -> bool:
    """Whether a statement of Sluice uses what the database does not have. `context`: within what it failed, if any.

    A function or a trigger of others fails within something.
    """
    return sqlstate in _UNDEFINED and context is None


def may_be_a_rows(sqlstate: str | None) -> bool:
    """Whether a row's content may be the cause of a failure that repeats while other writes succeed."""
    if sqlstate is None:
        return True
    return sqlstate in _TOO_LONG or sqlstate[:2] not in _NEVER_A_ROWS_CLASSES


def is_refusal(sqlstate: str | None) -> bool:
    """Whether the server answers, and refuses until an operator changes something."""
    return sqlstate is not None and sqlstate[:2] in _REFUSAL_CLASSES


def refuses_connections(said: str) -> bool:
    """The same of libpq's error for a connection: every server that it tried has answered, and refuses the session."""
    attempts = _ATTEMPT.findall(said)
    return bool(attempts) and all(_ANSWER.match(one) and not _PASSES.search(one) for one in attempts)
