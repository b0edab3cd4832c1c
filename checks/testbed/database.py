"""A look at the database from outside, on a connection of its own."""

import contextlib
from collections.abc import Sequence
from typing import Any

import psycopg2

from checks.testbed.waiting import eventually


def ask(database_url: str, sql: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
    """Run one statement, committed at once; its rows, if it has any."""
    with contextlib.closing(psycopg2.connect(database_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []


def create_database(server_url: str, name: str, template: str = "template1") -> str:
    """Make a database on a server; its URL. `server_url`: of any other database of it.

    PostgreSQL waits for 5 s until the sessions of the template have ended, which on a busy machine is too short.
    """
    _when_unused(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    return f"{server_url.rpartition('/')[0]}/{name}"


def drop_database(server_url: str, name: str) -> None:
    """End the sessions of a database, and drop it. PostgreSQL waits for their ends as `create_database` says."""
    _when_unused(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _when_unused(server_url: str, sql: str) -> None:
    def is_done() -> bool:
        ask(server_url, sql)
        return True

    eventually(is_done, sql, passing=(psycopg2.errors.ObjectInUse,))


def stored_ids(database_url: str) -> list[str]:
    """The ids of all events, in order."""
    return [event_id for (event_id,) in ask(database_url, "SELECT event_id FROM log_events ORDER BY event_id")]


def fail_on_insert(database_url: str, sqlstate: str, *, when: str = "true") -> None:
    """Make PostgreSQL refuse, with a SQLSTATE, each event for which `when` holds (a condition on NEW)."""
    ask(
        database_url,
        f"""
        CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF {when} THEN RAISE EXCEPTION 'refused by the test' USING ERRCODE = '{sqlstate}'; END IF;
            RETURN NEW;
        END $$;
        DROP TRIGGER IF EXISTS refuse ON log_events;  -- PostgreSQL 13 has no CREATE OR REPLACE TRIGGER
        CREATE TRIGGER refuse BEFORE INSERT ON log_events FOR EACH ROW EXECUTE FUNCTION refuse();
        """,
    )


def fail_no_more(database_url: str) -> None:
    """End `fail_on_insert`."""
    ask(database_url, "DROP TRIGGER refuse ON log_events")
