"""The waits of the tests themselves."""

import time

import psycopg2
import pytest

from checks.testbed import database
from checks.testbed.waiting import eventually, while_it_lasts


def test_what_takes_longer_than_its_time_is_attempted_with_more() -> None:
    given: list[float] = []

    def attempt(seconds: float) -> None:
        given.append(seconds)
        if len(given) < 3:
            eventually(lambda: time.monotonic() - started > 0.01 * 4 ** len(given))
            raise AssertionError("it was over")

    started = time.monotonic()
    assert while_it_lasts(attempt, 0.01) == given[-1]
    assert given == [0.01, 0.04, 0.16]


def test_what_fails_within_its_time_fails() -> None:
    given: list[float] = []

    def attempt(seconds: float) -> None:
        given.append(seconds)
        raise AssertionError("it is wrong")

    with pytest.raises(AssertionError, match="it is wrong"):
        while_it_lasts(attempt, 60.0)
    assert given == [60.0]


def test_what_always_takes_too_long_fails() -> None:
    def attempt(seconds: float) -> None:
        eventually(lambda: time.monotonic() - started > seconds)
        raise AssertionError("it is over")

    started = time.monotonic()
    with pytest.raises(AssertionError, match="it is over"):
        while_it_lasts(attempt, 0.001, seconds_max=0.02)


def test_a_database_whose_sessions_have_not_ended_is_dropped_later(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def ask(_url: str, sql: str) -> list[tuple[object, ...]]:
        said.append(sql)
        if len(said) < 3:
            raise psycopg2.errors.ObjectInUse("1 other session is using the database")
        return []

    monkeypatch.setattr(database, "ask", ask)
    database.drop_database("postgresql://nowhere/sluice", "one")
    assert said == ["DROP DATABASE IF EXISTS one WITH (FORCE)"] * 3
    url = database.create_database("postgresql://nowhere/sluice", "two", "one")
    assert (url, said[3:]) == ("postgresql://nowhere/two", ["CREATE DATABASE two TEMPLATE one"])
