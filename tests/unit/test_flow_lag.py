"""Lag is end minus what was consumed, and unknown where nobody can say."""

import pytest

from pipeline.flow.lag import held_lags, lag_by_partition, partition_lag, total_lag
from pipeline.ports.log import PartitionPosition


@pytest.mark.parametrize(
    ("begin", "end", "consumed", "lag"),
    [
        (0, 0, None, 0),  # a new partition
        (0, 10, None, 10),  # nothing consumed yet: all of it
        (4, 10, None, 6),  # ... that is still there
        (0, 10, 7, 3),
        (0, 10, 0, 10),  # consumed nothing is not the same as never asked
        (0, 10, 10, 0),
        (6, 10, 2, 4),  # what was trimmed unread waits for nobody
        (6, 6, 2, 0),
        (0, 10, 12, 0),  # a log that came back without its tail: never negative
        (12, 12, None, 0),  # emptied
    ],
)
def test_lag_of_a_partition(begin: int, end: int, consumed: int | None, lag: int) -> None:
    assert partition_lag(begin, end, consumed) == lag


def test_lag_by_partition_takes_each_partitions_own_offset() -> None:
    # Given three partitions, one of which the log was told more of than PostgreSQL has
    positions = [
        PartitionPosition(0, 0, 100, 98),
        PartitionPosition(1, 0, 100, None),
        PartitionPosition(2, 0, 100, 40),
    ]
    # Then each has its own lag by PostgreSQL's word alone, and an offset of a partition that does not exist counts for
    # nothing
    assert lag_by_partition(positions, {0: 95, 1: 40, 7: 1}) == {0: 5, 1: 60, 2: 100}
    assert total_lag(positions, {0: 95, 1: 40, 7: 1}) == 165


def test_a_database_that_was_emptied_has_everything_to_store_again() -> None:
    # Given a log with the commits of before
    positions = [PartitionPosition(0, 0, 100_000, 100_000), PartitionPosition(1, 20, 50, 50)]
    # Then what is still there is lag, though the log was told otherwise
    assert lag_by_partition(positions, {}) == {0: 100_000, 1: 30}
    # And 0 only while PostgreSQL does not answer
    assert lag_by_partition(positions, None) == {0: 0, 1: 0}


def test_a_partition_without_records_has_no_lag_whoever_knows() -> None:
    # Given a system that has just begun: one event, on one of its partitions
    begun = [PartitionPosition(0, 0, 1, 1), PartitionPosition(1, 0, 0, None), PartitionPosition(2, 7, 7, None)]
    assert lag_by_partition(begun, None) == {0: 0, 1: 0, 2: 0}
    assert lag_by_partition([*begun, PartitionPosition(3, 7, 8, None)], None) is None


def test_lag_without_postgresql_is_known_from_the_commits() -> None:
    # Given a log that was told of every partition
    positions = [PartitionPosition(0, 0, 100, 90), PartitionPosition(1, 0, 50, 50)]
    # Then PostgreSQL need not be asked: it may be away right now
    assert lag_by_partition(positions, None) == {0: 10, 1: 0}
    assert total_lag(positions, None) == 10


def test_lag_is_unknown_where_nobody_can_say() -> None:
    # Given one partition whose commit expired, and PostgreSQL away
    positions = [PartitionPosition(0, 0, 100, 90), PartitionPosition(1, 0, 50, None)]
    # Then the lag is unknown: neither 10, nor 60, nor 0
    assert lag_by_partition(positions, None) is None
    assert total_lag(positions, None) is None


def test_a_log_without_partitions_has_no_lag() -> None:
    assert lag_by_partition([], None) == {}
    assert total_lag([], {}) == 0


def test_a_partition_that_cannot_be_asked_is_taken_for_what_it_last_had() -> None:
    assert held_lags({0: 5, 1: 60}, 4, {0: 9, 2: 7, 3: 0}) == {2: 7, 3: 0}


def test_one_that_was_never_known_is_taken_for_the_largest() -> None:
    assert held_lags({0: 5, 1: 60}, 4, {}) == {2: 60, 3: 60}
    assert held_lags({0: 5, 1: 60}, 2, {}) == {}
    assert held_lags({}, 1, {}) == {0: 0}
