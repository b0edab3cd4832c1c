"""What an SQLSTATE says about whose fault it was. Pure functions; by code, not by psycopg2's classes.

psycopg2 files a deadlock under OperationalError, beside a lost connection: its classes can't decide this.
Source: the PostgreSQL manual, appendix "PostgreSQL Error Codes".
"""

from enum import Enum
from typing import Final


class Fault(Enum):
    """Whose fault an error was, and so what happens next."""

    DATA = "data"  # a row's content: find the culprit, dead-letter it
    REPEAT = "repeat"  # an event_id that is stored already: store the batch through the staging table
    NOT_BY_COPY = "not_by_copy"  # the table takes INSERT only (row security): the same way
    CONTENTION = "contention"  # rolled back in favour of another transaction: repeat, uncounted
    SERVER = "server"  # everything else, a lost connection included: counts for the breaker, dead-letters nothing


UNIQUE_VIOLATION: Final = "23505"
LOCK_NOT_AVAILABLE: Final = "55P03"  # what `lock_timeout` raises too
INSUFFICIENT_PRIVILEGE: Final = "42501"
_NOT_SUPPORTED: Final = "0A000"
# The function of PostgreSQL's that raises 42501 for a row. Another one raises it for a table that may not be written.
_ROW_SECURITY_FUNCTION: Final = "ExecWithCheckOptions"
CONTENTION_CLASS: Final = "40"  # transaction rollback: deadlock, serialization failure
# Classes by which PostgreSQL says that something is wrong with itself, with the schema or with the session. All others
# are a row's: the standard's for data (22, 23, 44, 54), those of functions (P0, 21, 39) and whatever a user's trigger
# makes up, since what a trigger says of a row is the row's fault.
SERVER_CLASSES: Final = frozenset(
    {
        "08",  # connection
        "0A",  # feature not supported
        "25",  # transaction state: read-only, say
        "26",  # prepared statement unknown
        "28",  # authorization
        "2D",  # transaction termination
        "3D",  # no such database
        "3F",  # no such schema
        "42",  # no such table or column, no right to it
        "53",  # insufficient resources: disk, memory, connections
        "55",  # not in the state for it: a lock that is not free
        "57",  # operator intervention: cancelled, shutting down
        "58",  # system error: I/O
        "F0",  # configuration file
        "HV",  # foreign data wrapper
        "XX",  # internal error, corruption
    }
)
# Of these, the ones that no row's content can cause, however often a row fails with them.
_NEVER_A_ROWS_CLASSES: Final = frozenset({"08", "40", "53", "55", "58"})
_NEVER_A_ROWS: Final = frozenset({"57P01", "57P02", "57P03"})  # the server or its session is shut down


def fault_of(sqlstate: str | None, function: str | None = None) -> Fault:
    """Classify a SQLSTATE; None is an error that did not come from the server (connection lost, time-out).

    `function` is the one of PostgreSQL's source that raised it: it never changes with the server's language.
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


def may_be_a_rows(sqlstate: str | None) -> bool:
    """Whether a row's content may be the cause of a failure that comes again and again while other writes pass."""
    if sqlstate is None:
        return True
    return sqlstate[:2] not in _NEVER_A_ROWS_CLASSES and sqlstate not in _NEVER_A_ROWS
