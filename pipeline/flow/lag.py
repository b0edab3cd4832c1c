"""Lag: how many events of the log are not stored yet.

    lag = end - stored        if PostgreSQL answers; a partition without an offset has no stored records
    lag = end - committed     if PostgreSQL does not answer
    lag = end - begin         if that is less: records below `begin` are gone, so they cannot be consumed

`stored` is PostgreSQL's offset. It alone decides. `committed` is the last offset that was committed to the log: it can
expire, get lost, or outlive a database that was emptied or restored. All are offsets of a next record, so that lag is a
subtraction.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol


class Position(Protocol):
    """Where a partition begins and ends, and its committed offset in the log (None: no commit)."""

    @property
    def partition(self) -> int:
        """Number of the partition."""

    @property
    def begin(self) -> int:
        """Offset of the first record."""

    @property
    def end(self) -> int:
        """Offset of the next record to be appended."""

    @property
    def committed(self) -> int | None:
        """Offset of the next record to consume."""


def partition_lag(begin: int, end: int, consumed: int | None) -> int:
    """Events of one partition that are not stored yet; never negative.

    `consumed` is the offset of the next record to store (None: nothing was stored yet). If it is beyond `end`, the log
    came back without its tail, and the lag is 0.
    """
    return max(0, end - max(begin, consumed or 0))


def lag_by_partition(positions: Iterable[Position], stored: Mapping[int, int] | None) -> dict[int, int] | None:
    """Lag of each partition that has a position; None if it is unknown.

    `stored` is PostgreSQL's offset of each partition that has one; None if PostgreSQL did not answer. Then the commits
    count. In that case a partition with records but without a commit is unknown, and so is the whole result: unknown is
    neither "everything" nor 0. A partition without records has no lag in any case.
    """
    lags = {}
    for position in positions:
        if stored is None and position.committed is None and position.end > position.begin:
            return None
        consumed = position.committed if stored is None else stored.get(position.partition)
        lags[position.partition] = partition_lag(position.begin, position.end, consumed)
    return lags


def total_lag(positions: Iterable[Position], stored: Mapping[int, int] | None) -> int | None:
    """Lag of all partitions together; None if it is unknown, see `lag_by_partition`."""
    lags = lag_by_partition(positions, stored)
    return None if lags is None else sum(lags.values())


def held_lags(known: Mapping[int, int], partitions: int, last: Mapping[int, int]) -> dict[int, int]:
    """The assumed lag of partitions that do not answer: never 0 while other partitions have a lag.

    No process can append to such a partition or read from it, so its lag is the `last` known value. Without a known
    value, the lag is assumed to be that of the partition with the largest lag: events are spread evenly.
    """
    most = max(known.values(), default=0)
    return {partition: last.get(partition, most) for partition in range(partitions) if partition not in known}
