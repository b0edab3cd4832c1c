"""How many sessions of PostgreSQL a system uses, and which limits are too small for them."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.settings import Settings
from pipeline.sink.sessions import SessionLimits, SessionsNeeded, limits_problem, limits_warning, sessions_needed

FREE = SessionLimits(
    backend_pid=7, max_connections=100, superuser_reserved=3, reserved=0, is_superuser=False, may_use_reserved=False,
    role_limit=-1, database_limit=-1, user="sluice", database="logs",
)  # fmt: skip
SMALL = Settings(log_partitions=4)
TEN = sessions_needed(SMALL)


@pytest.mark.parametrize(
    ("settings", "own", "held"),
    [
        (Settings(log_partitions=4), 0, 4 + 2 + 2),
        (Settings(log_partitions=64), 0, 8 + 2 + 2),  # DRAINS_MAX
        (Settings(log_partitions=64, drains_max=64), 0, 64 + 2 + 2),
        (Settings(log_partitions=4), 3, 4 + 2 + 2),  # the others are on other hosts
        (Settings(log_partitions=4), 40, 40 + 2),  # a worker with --concurrency 40
        (Settings(log_partitions=64, event_sink_url="file:///events"), 0, 2),  # drains store in files
    ],
)
def test_sessions_grow_with_the_processes(settings: Settings, own: int, held: int) -> None:
    assert sessions_needed(settings, own_processes=own).held == held


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"max_connections": 10}, 7),
        ({"max_connections": 12, "reserved": 2}, 7),
        ({"role_limit": 7}, 7),
        ({"database_limit": 7}, 7),
        ({"role_limit": 0}, 0),
        ({"max_connections": 12, "reserved": 2, "may_use_reserved": True}, 9),
        ({"max_connections": 7, "is_superuser": True}, 7),
        ({"role_limit": 1, "database_limit": 1, "is_superuser": True}, 100),  # limits do not hold for superusers
    ],
)
def test_the_smallest_limit_counts(change: dict[str, Any], allowed: int) -> None:
    assert replace(FREE, **change).allowed == allowed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_connections": 10}, ["at most 7 sessions", "max_connections 10", "8 are needed", "max_connections=14"]),
        ({"role_limit": 7}, ["at most 7 sessions", "ALTER ROLE sluice CONNECTION LIMIT 11", "8 are needed"]),
        ({"database_limit": 5}, ["at most 5 sessions", "ALTER DATABASE logs CONNECTION LIMIT 11"]),
        # Both figures of a server that has reserved some for its owners
        ({"max_connections": 12, "reserved": 2}, ["less 5 reserved", "max_connections=16"]),
    ],
)
def test_what_is_too_small_is_named_with_what_to_set(change: dict[str, Any], words: list[str]) -> None:
    problem = limits_problem(replace(FREE, **change), TEN)
    assert problem is not None
    assert "\n" not in problem
    for word in [*words, "LOG_PARTITIONS", "DRAINS_MAX"]:
        assert word in problem, problem
    assert limits_warning(replace(FREE, **change), TEN) is None  # it is refused


def test_enough_for_those_that_last_and_no_more_is_a_warning() -> None:
    assert SessionsNeeded(processes=6, held=8, moments=3) == TEN
    exact = replace(FREE, role_limit=8)
    assert limits_problem(exact, TEN) is None
    assert "ALTER ROLE sluice CONNECTION LIMIT 11" in str(limits_warning(exact, TEN))
    enough = replace(FREE, role_limit=11)
    assert limits_warning(enough, TEN) is None
