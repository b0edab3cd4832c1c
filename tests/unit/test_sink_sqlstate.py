"""Whose fault an SQLSTATE is."""

import pytest

from pipeline.sink.sqlstate import Fault, fault_of, is_refusal, may_be_a_rows, refuses_connections


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
        ("25P03", Fault.SERVER),  # idle_in_transaction_session_timeout
        ("25P04", Fault.SERVER),  # transaction_timeout
        ("28P01", Fault.SERVER),  # wrong password
        ("42P01", Fault.SERVER),  # no such table
        ("42703", Fault.SERVER),  # no such column
        ("53100", Fault.SERVER),  # disk full
        ("53300", Fault.SERVER),  # too many connections
        ("55P03", Fault.SERVER),  # lock not available
        ("57014", Fault.SERVER),  # cancelled: a statement_timeout
        ("57P01", Fault.SERVER),  # terminated
        ("57P03", Fault.SERVER),  # starting up
        ("57P04", Fault.SERVER),  # the database was dropped
        ("57P05", Fault.SERVER),  # idle_session_timeout
        ("58030", Fault.SERVER),  # I/O error
        ("XX000", Fault.SERVER),  # internal error
        ("P0001", Fault.DATA),  # raised by a trigger without a code
        ("", Fault.SERVER),
        (None, Fault.SERVER),  # the connection was lost
    ],
)
def test_fault(sqlstate: str | None, fault: Fault) -> None:
    assert fault_of(sqlstate) is fault


@pytest.mark.parametrize(
    "sqlstate", ["25006", "25P01", "25P02", "25P03", "57000", "57P01", "57P02", "57P03", "57P04", "57P05"]
)
def test_a_session_that_the_server_ends_or_refuses_to_write_is_no_rows_fault(sqlstate: str) -> None:
    assert not may_be_a_rows(sqlstate)


@pytest.mark.parametrize("sqlstate", [None, "25P04", "42883", "57014", "XX000"])
def test_a_row_may_take_too_long_or_make_a_function_fail(sqlstate: str | None) -> None:
    assert may_be_a_rows(sqlstate)


@pytest.mark.parametrize(
    ("sqlstate", "is_refused"),
    [
        ("28P01", True),
        ("3D000", True),
        ("42501", True),
        ("42P01", True),
        ("53100", False),
        ("57P03", False),
        (None, False),
    ],
)
def test_what_only_an_operator_can_change(sqlstate: str | None, is_refused: bool) -> None:
    assert is_refusal(sqlstate) is is_refused


FIRST, SECOND = (
    'connection to server at "10.0.0.1", port 5432 failed: ',
    'connection to server at "db2", port 5432 failed: ',
)
WRONG = 'FATAL:  password authentication failed for user "sluice"\n'
REFUSED = "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?\n"


@pytest.mark.parametrize(
    ("said", "is_refused"),
    [
        (FIRST + WRONG, True),
        (FIRST + 'FATAL:  database "sluice" is not currently accepting connections\n', True),
        (FIRST + 'ВАЖНО:  пользователь "sluice" не прошёл проверку подлинности\n', True),
        (FIRST + "fe_sendauth: no password supplied\n", True),
        (FIRST + "SSL error: certificate verify failed\n", True),
        (FIRST + WRONG + SECOND + WRONG, True),
        (FIRST + WRONG + SECOND + REFUSED, False),  # the primary may be the one that is down
        (FIRST + REFUSED, False),
        (FIRST + "FATAL:  the database system is starting up\n", False),
        (FIRST + "FATAL:  sorry, too many clients already\n", False),
        (FIRST + "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute\n", False),
        (FIRST + "server closed the connection unexpectedly\n\tThis probably means the server terminated\n", False),
        ("timeout expired\n", False),
        ("", False),
    ],
)
def test_a_server_that_answers_and_refuses_the_session(said: str, is_refused: bool) -> None:
    assert refuses_connections(said) is is_refused
