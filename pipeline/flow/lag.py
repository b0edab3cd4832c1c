"""Lag: how many events of the log are not stored yet.

    lag = end - max(committed, stored)        where either is known
    lag = end - begin                         where neither exists: nothing was consumed yet

`committed` is what the log was told, and expires or gets lost there; `stored` is PostgreSQL's offset, which decides.
All are offsets of a next record, so that lag is a subtraction.
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


def partition_lag(begin: int, end: int, committed: int | None, stored: int | None) -> int:
    """Events of one partition that are not stored yet; never negative.

    The higher of `committed` and `stored` counts, since commits are made after storing and may fail. Records below
    `begin` are gone and wait for nobody. Beyond `end` lies nothing (a log that came back without its tail).
    """
    known = [offset for offset in (committed, stored) if offset is not None]
    return max(0, end - max([begin, *known]))


def lag_by_partition(positions: Iterable[Position], stored: Mapping[int, int] | None) -> dict[int, int] | None:
    """Lag of each partition; None when it can't be known.

    `stored` is PostgreSQL's offset of each partition that has one; None where PostgreSQL could not be asked. Then a
    partition that has records but no commit is unknown, and so is the whole: unknown is not "everything", nor 0. One
    without records has no lag, whoever says what was consumed.
    """
    lags = {}
    for position in positions:
        if stored is None and position.committed is None and position.end > position.begin:
            return None
        lags[position.partition] = partition_lag(
            position.begin, position.end, position.committed, (stored or {}).get(position.partition)
        )
    return lags


def total_lag(positions: Iterable[Position], stored: Mapping[int, int] | None) -> int | None:
    """Lag of all partitions together; None when it can't be known, see `lag_by_partition`."""
    lags = lag_by_partition(positions, stored)
    return None if lags is None else sum(lags.values())
