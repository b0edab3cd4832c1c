"""Which servers and tables are refused, and that the reason says what to do."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import SinkMisconfiguredError, SinkStandbyError
from pipeline.sink.server_check import DatabaseFacts, TableFacts, refuse, server_problem
from pipeline.sink.server_check import table_problem as table

GOOD = DatabaseFacts(7, 180_004, "UTF8", False, True, True, "logs", "sluice")
TABLE = TableFacts([], [], True, False, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 120_022}, "PostgreSQL 12 is too old: 13 or newer"),
        ({"encoding": "LATIN1"}, "encoding LATIN1"),
        ({"encoding": "SQL_ASCII"}, "ENCODING 'UTF8' TEMPLATE template0"),
        ({"is_standby": True}, "standby"),
        ({"may_make_temporary": False}, "GRANT TEMPORARY ON DATABASE logs TO sluice"),
    ],
)
def test_a_server_that_breaks_promises_is_named(change: dict[str, Any], words: str) -> None:
    assert server_problem(GOOD) is None
    assert words in (server_problem(replace(GOOD, **change)) or "")


def test_a_standby_is_told_apart_because_a_failover_makes_one() -> None:
    with pytest.raises(SinkStandbyError, match=r"can't be used: it is a standby.*target_session_attrs=read-write"):
        refuse(server_problem(replace(GOOD, is_standby=True)))
    with pytest.raises(SinkMisconfiguredError) as raised:
        refuse(server_problem(replace(GOOD, is_standby=True, encoding="LATIN1")))
    assert not isinstance(raised.value, SinkStandbyError)


def test_a_server_without_fsync_is_for_its_owner_to_judge() -> None:
    assert server_problem(replace(GOOD, has_fsync=False)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wrong_columns": ["message text (it is bytea)"]}, "message text (it is bytea)"),
        ({"has_unique_ids": False}, "partitioned by time"),
        ({"unfilled_columns": ["tenant"]}, "NOT NULL: tenant"),
        ({"has_unique_ids": False, "is_by_day": True}, "ENABLE ALWAYS"),
        ({"has_insert_rules": True}, "rule ON INSERT"),
        ({"missing_rights": ["INSERT on log_events"]}, "INSERT on log_events"),
    ],
)
def test_a_table_that_breaks_promises_is_named(change: dict[str, Any], words: str) -> None:
    assert table(TABLE) is None
    assert words in (table(replace(TABLE, **change)) or "")


def test_a_table_by_day_that_notes_ids_needs_no_unique_index() -> None:
    assert table(replace(TABLE, has_unique_ids=False, is_by_day=True, has_noted_ids=True)) is None


def test_a_refusal_leads_to_the_page_with_more() -> None:
    with pytest.raises(SinkMisconfiguredError, match=r"can't be used: why \(docs/database\.md\)"):
        refuse("why")
    refuse(None)
