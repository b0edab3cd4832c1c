"""What an SQLSTATE says about whose fault it was. One pure function; by code, not by psycopg2's classes.

psycopg2 files a deadlock under OperationalError, beside a lost connection: its classes can't decide this.
Source: the PostgreSQL manual, appendix "PostgreSQL Error Codes".
"""

from enum import Enum
from typing import Final


class Fault(Enum):
    """Whose fault an error was, and so what happens next."""

    DATA = "data"  # a row's content: find the culprit, dead-letter it
    REPEAT = "repeat"  # an event_id that is stored already: store the batch through the staging table
    CONTENTION = "contention"  # rolled back in favour of another transaction: repeat, uncounted
    SERVER = "server"  # everything else, a lost connection included: counts for the breaker, dead-letters nothing


UNIQUE_VIOLATION: Final = "23505"
_DATA_CLASSES: Final = frozenset(
    {
        "22",  # data exception: an invalid byte sequence, a number or a time out of range
        "23",  # integrity constraint violation
        "54",  # program limit exceeded: a value too long for an index, say
    }
)
_CONTENTION_CLASS: Final = "40"  # transaction rollback: deadlock, serialization failure


def fault_of(sqlstate: str | None) -> Fault:
    """Classify a SQLSTATE; None is an error that did not come from the server (connection lost, time-out)."""
    if sqlstate is None:
        return Fault.SERVER
    if sqlstate == UNIQUE_VIOLATION:
        return Fault.REPEAT
    if sqlstate[:2] in _DATA_CLASSES:
        return Fault.DATA
    if sqlstate[:2] == _CONTENTION_CLASS:
        return Fault.CONTENTION
    return Fault.SERVER
