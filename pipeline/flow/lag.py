"""Lag: how many events of the log are not stored yet.

    lag = end - stored        where PostgreSQL answers; without an offset of the partition, nothing of it is stored
    lag = end - committed     where it does not answer
    lag = end - begin         where that is less: records below `begin` are gone and wait for nobody

`stored` is PostgreSQL's offset. It alone decides: `committed` is what the log was told, which expires, gets lost, or
outlives a database that was emptied or restored. All are offsets of a next record, so that lag is a subtraction.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol


class Position(Protocol):
    """Where a partition begins and ends, and how far the log was told that it is consumed (None: never told)."""

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

    `consumed` is the offset of the next record to store (None: nothing was stored yet). Beyond `end` lies nothing: the
    log came back without its tail.
    """
    return max(0, end - max(begin, consumed or 0))


def lag_by_partition(positions: Iterable[Position], stored: Mapping[int, int] | None) -> dict[int, int] | None:
    """Lag of each partition that has a position; None when it can't be known.

    `stored` is PostgreSQL's offset of each partition that has one; None where PostgreSQL could not be asked. Then the
    commits count. A partition that has records but no commit is unknown then, and so is the whole: unknown is not
    "everything", nor 0. One without records has no lag, whoever says what was consumed.
    """
    lags = {}
    for position in positions:
        if stored is None and position.committed is None and position.end > position.begin:
            return None
        consumed = position.committed if stored is None else stored.get(position.partition)
        lags[position.partition] = partition_lag(position.begin, position.end, consumed)
    return lags


def total_lag(positions: Iterable[Position], stored: Mapping[int, int] | None) -> int | None:
    """Lag of all partitions together; None when it can't be known, see `lag_by_partition`."""
    lags = lag_by_partition(positions, stored)
    return None if lags is None else sum(lags.values())


def held_lags(known: Mapping[int, int], partitions: int, last: Mapping[int, int]) -> dict[int, int]:
    """What to take for the lag of partitions that can't be asked: never 0 while others have some.

    Nobody can append to such a partition, nor read from it, so its lag is what it was when it was `last` known. Where
    it never was, it is taken to have as much as the one with the most: events are spread evenly.
    """
    most = max(known.values(), default=0)
    return {partition: last.get(partition, most) for partition in range(partitions) if partition not in known}
