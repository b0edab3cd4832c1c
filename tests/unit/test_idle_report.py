"""What an idle system costs: the table of `python -m checks.idle`."""

import pytest

from checks.idle.report import Usage, commands_since, ratio, report


def test_the_table_has_the_share_of_each_program_and_the_commands_a_second() -> None:
    # Given two counts, ten seconds apart; a worker began anew between them, and a server too
    before = Usage(
        {"batches": 100.0, "flower": 5.0, "control": 50.0},
        {"batches": 7, "flower": 1, "control": 3},
        {"REDIS_URL": {"get": 1000, "llen": 10, "ping": 3}, "EVENT_LOG_URL": {"xread": 5000}},
    )
    after = Usage(
        {"batches": 100.5, "flower": 5.05, "control": 0.1},
        {"batches": 7, "flower": 1, "control": 3},
        {"REDIS_URL": {"get": 1100, "llen": 25, "ping": 3}, "EVENT_LOG_URL": {"xread": 40}},
    )
    # Then what was used between them is there, the most first
    share, table = report(before, after, seconds=10.0, sessions=9)
    assert share == pytest.approx(6.5)
    lines = table.splitlines()
    assert [line.split() for line in lines[1:5]] == [
        ["batches", "7", "5.00"],
        ["control", "3", "1.00"],
        ["flower", "1", "0.50"],
        ["all", "11", "6.50"],
    ]
    assert lines[-3:] == [
        "9 sessions of PostgreSQL",
        "REDIS_URL: 11.5 commands/s (get 10.0, llen 1.5)",
        "EVENT_LOG_URL: 4.0 commands/s (xread 4.0)",
    ]


def test_commands_between_two_counts() -> None:
    # Given a command that was new, and one of a server that restarted
    assert commands_since({"get": 10, "hset": 50}, {"get": 25, "hset": 4, "ping": 1}) == 15 + 4 + 1


def test_systems_are_compared_with_the_first_one() -> None:
    assert [ratio(share, 3.0) for share in (3.0, 6.3)] == ["1.00", "2.10"]
    assert ratio(1.0, 0.0) == "-"
