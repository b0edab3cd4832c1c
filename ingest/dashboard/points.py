"""The data of the charts: one point a second, from the history or from this process' own counters. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pipeline.ports.history import COUNTS, HistoryEntry

GAP_SECONDS: Final = 5.0  # between two entries; over a longer gap no rate is computed from their difference

COLUMNS: Final = (
    "t",  # seconds since the epoch
    "admitted",  # events/s
    "offered",  # events/s: admitted and rejected
    "s202",  # answers/s
    "s429",
    "s503",
    "s4xx",  # without 429
    "s5xx",  # without 503
    "rate",  # events/s that are admitted at most
    "tokens",  # in the bucket
    "lag",  # events, all partitions
    "lags",  # events, a list by partition
    "consumed",  # offsets that are stored, all partitions: their growth is the number of drained events
    "drained",  # events/s
    "breaker",  # closed, open, half-open or unknown
    "paused",  # whether consumption is paused; None if unknown
    "shadow",  # events/s that the policy of RATE_POLICY_SHADOW would admit at most; None without one
    "measure",  # what the thresholds of the rate policy are about; None if that is the lag
)


@dataclass(frozen=True, slots=True)
class Point:
    """One second of the system; None is an unknown value. `is_local`: the point is of this process alone."""

    t: float
    counts: tuple[float, ...] | None  # a second, by pipeline.ports.history.COUNTS
    sample: dict[str, Any]
    drained: float | None = None
    is_local: bool = False

    def row(self) -> list[Any]:
        """The values of COLUMNS."""
        count = None if self.counts is None else dict(zip(COUNTS, self.counts, strict=True))
        lags = self.sample.get("lags")
        return [
            round(self.t, 2),
            *(None, None, None, None, None, None, None)[: 0 if count else 7],
            *(() if count is None else _rates(count)),
            self.sample.get("rate"),
            self.sample.get("tokens"),
            None if lags is None else sum(lags),
            lags,
            self.sample.get("consumed"),
            _rounded(self.drained),
            self.sample.get("breaker", "unknown"),
            self.sample.get("paused"),
            _rounded(self.sample.get("shadow")),
            _rounded(self.sample.get("measure")),
        ]


def _rates(count: dict[str, float]) -> list[float | None]:
    values = (
        count["admitted"],
        count["admitted"] + count["refused"],
        count["accepted"],
        count["limited"],
        count["unavailable"],
        count["invalid"],
        count["failed"],
    )
    return [_rounded(value) for value in values]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def next_point(before: HistoryEntry | None, entry: HistoryEntry) -> Point:
    """The point of an entry. Its rates are differences to the entry before, unless a gap or a flush is between them."""
    if before is None:
        return Point(entry.at, None, entry.sample)
    seconds = entry.at - before.at
    if len(before.counts) != len(COUNTS) or len(entry.counts) != len(COUNTS):  # another version counts other things
        return Point(entry.at, None, entry.sample)
    growth = [new - old for old, new in zip(before.counts, entry.counts, strict=True)]
    if not 0 < seconds <= GAP_SECONDS or min(growth) < 0:
        return Point(entry.at, None, entry.sample)
    drained = _growth(before.sample.get("consumed"), entry.sample.get("consumed"), seconds)
    return Point(entry.at, tuple(each / seconds for each in growth), entry.sample, drained)


def _growth(before: float | None, after: float | None, seconds: float) -> float | None:
    if before is None or after is None or after < before:
        return None
    return (after - before) / seconds


def merged(history: Iterable[Point], local: Iterable[Point]) -> list[Point]:
    """The history, with this process' own points in its gaps."""
    found: list[Point] = []
    own = list(local)
    place = 0
    for point in history:
        while place < len(own) and own[place].t < point.t - 1:
            if not found or own[place].t > found[-1].t + (0 if found[-1].is_local else 2):
                found.append(own[place])
            place += 1
        found.append(point)
    last = found[-1] if found else None
    return found + [point for point in own[place:] if last is None or point.t > last.t + 2]
