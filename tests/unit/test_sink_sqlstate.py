"""Whose fault an SQLSTATE is."""

import pytest

from pipeline.sink.sqlstate import Fault, fault_of


@pytest.mark.parametrize(
    ("sqlstate", "fault"),
    [
        ("22001", Fault.DATA),  # value too long
        ("22003", Fault.DATA),  # number out of range
        ("22008", Fault.DATA),  # time out of range
        ("22021", Fault.DATA),  # not in the encoding
        ("22P02", Fault.DATA),  # invalid text representation
        ("22P05", Fault.DATA),  # untranslatable character
        ("23502", Fault.DATA),  # not null
        ("23503", Fault.DATA),  # foreign key
        ("23514", Fault.DATA),  # check
        ("23P01", Fault.DATA),  # exclusion
        ("54000", Fault.DATA),  # index row too large
        ("23505", Fault.REPEAT),  # unique
        ("40001", Fault.CONTENTION),  # serialization failure
        ("40P01", Fault.CONTENTION),  # deadlock: an OperationalError for psycopg2
        ("08006", Fault.SERVER),  # connection failure
        ("25006", Fault.SERVER),  # read-only: a standby
        ("28P01", Fault.SERVER),  # wrong password
        ("42P01", Fault.SERVER),  # no such table
        ("42703", Fault.SERVER),  # no such column
        ("53100", Fault.SERVER),  # disk full
        ("53300", Fault.SERVER),  # too many connections
        ("55P03", Fault.SERVER),  # lock not available
        ("57014", Fault.SERVER),  # cancelled: a statement_timeout
        ("57P01", Fault.SERVER),  # terminated
        ("57P03", Fault.SERVER),  # starting up
        ("58030", Fault.SERVER),  # I/O error
        ("XX000", Fault.SERVER),  # internal error
        ("P0001", Fault.DATA),  # raised by a trigger without a code
        ("", Fault.SERVER),
        (None, Fault.SERVER),  # the connection was lost
    ],
)
def test_fault(sqlstate: str | None, fault: Fault) -> None:
    assert fault_of(sqlstate) is fault
