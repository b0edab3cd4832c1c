"""How a controlled rate behaves after a step, from counts by time: pure arithmetic, so that it can be tested."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BAND: Final = 0.10
# The mean of three seconds shows whether a rate has settled. A process takes permissions in leases of a tenth of a
# second. One lease is as large as the band, so single seconds leave it even under a constant limit.
SMOOTH_SECONDS: Final = 3
NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Step:
    """`settle_seconds` is inf if the rate does not stay within the band to the end."""

    settle_seconds: float  # of the mean of `SMOOTH_SECONDS`
    swings: int  # how often a second outside the band followed one in it
    overshoot: float  # highest lag divided by the final lag


def rates_of(times: Sequence[float], counts: Sequence[int], *, begin: float, end: float) -> list[float]:
    """Events/s in each whole second from `begin` on."""
    bins = [0.0] * max(0, int(end - begin))
    for at, count in zip(times, counts, strict=True):
        number = int(at - begin) if at >= begin else -1
        if 0 <= number < len(bins):
            bins[number] += count
    return bins


def between(times: Sequence[float], counts: Sequence[int], *, begin: float, end: float) -> int:
    """The sum of the counts from `begin` to before `end`."""
    return sum(count for at, count in zip(times, counts, strict=True) if begin <= at < end)


def could_of(rates: Sequence[tuple[float, float]], *, begin: float, end: float) -> float:
    """Events that a sink could have stored from `begin` to `end`; `rates`: (start, events/s) pairs."""
    total = 0.0
    for number, (since, rate) in enumerate(rates):
        until = rates[number + 1][0] if number + 1 < len(rates) else end
        total += rate * max(0.0, min(until, end) - max(since, begin))
    return total


def step_of(admitted: Sequence[float], stored: Sequence[float], *, capacity: float, lag_before: float) -> Step:
    """Judge the seconds after a step; `admitted` and `stored` are events/s of each second, `capacity` too.

    The final lag is the median of the last third. It counts as at least one second of the capacity: a smaller lag is
    only the batches in progress, and a ratio to it would be noise.
    """
    if not admitted:
        return Step(NEVER, 0, 0.0)
    inside = [abs(rate - capacity) <= BAND * capacity for rate in admitted]
    outside = [number for number, rate in enumerate(_smoothed(admitted)) if abs(rate - capacity) > BAND * capacity]
    settled = outside[-1] + 1 if outside else 0
    swings = sum(1 for before, after in itertools.pairwise(inside) if before and not after)
    lags, lag = [], lag_before
    for gained, lost in zip(admitted, stored, strict=True):
        lag += gained - lost
        lags.append(lag)
    final = max(statistics.median(lags[-max(1, len(lags) // 3) :]), capacity)
    return Step(NEVER if settled >= len(admitted) else float(settled), swings, max(max(lags) / final, 0.0))


def _smoothed(rates: Sequence[float]) -> list[float]:
    """The mean of each second and those just after it."""
    return [statistics.fmean(rates[at : at + SMOOTH_SECONDS]) for at in range(len(rates))]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that is at least as large as this share of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
