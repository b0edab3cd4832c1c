"""How many sessions of PostgreSQL a system uses, and which limits are too small for them."""

import re
from dataclasses import replace
from typing import Any

import pytest

from pipeline.settings import Settings
from pipeline.sink.sessions import SessionLimits, limits_problem, limits_warning, sessions_needed

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
    for word in [*words, "from LOG_PARTITIONS and DRAINS_MAX"]:
        assert word in problem, problem
    assert limits_warning(replace(FREE, **change), TEN) is None  # it is refused


@pytest.mark.parametrize(
    ("settings", "own", "allowed", "instead"),
    [
        (Settings(log_partitions=64), 0, 14, "; or set DRAINS_MAX=7"),
        (Settings(log_partitions=64), 0, 8, "; or set DRAINS_MAX=1"),
        (Settings(log_partitions=64), 0, 7, ""),  # not even one drain
        (Settings(log_partitions=4), 0, 10, "; or set DRAINS_MAX=3"),  # below the partitions, or it changes nothing
        (Settings(log_partitions=4), 40, 20, "; or have at most 15 processes in this worker (--concurrency)"),
        (
            Settings(log_partitions=4),
            40,
            10,
            "; or set DRAINS_MAX=3, and have at most 5 processes in this worker (--concurrency)",
        ),
        (
            Settings(log_partitions=4),
            6,
            10,
            "; or set DRAINS_MAX=3, and have at most 5 processes in this worker (--concurrency)",
        ),
        (Settings(log_partitions=4, event_sink_url="file:///events"), 40, 4, ""),  # drains have no session
    ],
)
def test_what_to_set_instead_is_enough_and_is_left_out_if_nothing_is(
    settings: Settings, own: int, allowed: int, instead: str
) -> None:
    needed, limits = sessions_needed(settings, own_processes=own), replace(FREE, role_limit=allowed)
    problem = limits_problem(limits, needed) or limits_warning(limits, needed)
    assert problem is not None
    assert problem.endswith(f"set ALTER ROLE sluice CONNECTION LIMIT {needed.all}{instead}")
    # What it says is enough
    drains = re.search(r"DRAINS_MAX=(\d+)", problem)
    changed = replace(settings, drains_max=int(drains[1])) if drains else settings
    processes = re.search(r"at most (\d+) processes in this worker", problem)
    now = sessions_needed(changed, own_processes=int(processes[1]) if processes else own)
    assert not instead or (limits_problem(limits, now), limits_warning(limits, now)) == (None, None)


def test_where_the_number_of_processes_is_from() -> None:
    few = replace(FREE, role_limit=1)
    own = str(limits_problem(few, sessions_needed(SMALL, own_processes=40)))
    assert "42 are needed (40 processes for batches, from --concurrency of this worker, and 2 for control)" in own
    assert "8 are needed (6 processes for batches, from LOG_PARTITIONS and DRAINS_MAX, and 2 for control)" in str(
        limits_problem(few, sessions_needed(SMALL, own_processes=6))
    )
    files = replace(SMALL, event_sink_url="file:///events")
    assert "2 are needed (2 for control), and 3 more" in str(limits_problem(few, sessions_needed(files)))


def test_enough_for_those_that_last_and_no_more_is_a_warning() -> None:
    assert (TEN.processes, TEN.held, TEN.all) == (6, 8, 11)
    exact = replace(FREE, role_limit=8)
    assert limits_problem(exact, TEN) is None
    assert "ALTER ROLE sluice CONNECTION LIMIT 11" in str(limits_warning(exact, TEN))
    enough = replace(FREE, role_limit=11)
    assert limits_warning(enough, TEN) is None
