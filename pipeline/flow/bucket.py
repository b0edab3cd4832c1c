"""A token bucket as arithmetic: the reference for `pipeline/control_store/bucket.lua`, which Redis runs.

One token is one event. The bucket fills at `rate` up to `burst`. A request passes if the bucket holds one token,
whatever the request's size, and may leave the bucket in debt. So bodies of all sizes have the same chance beside each
other, and the debt is always smaller than one body. The caller reads the clock, once.

A level below the highest also leaves its reserve in the bucket: it passes if the bucket holds one token above it.

    reserve(level) = RESERVES[level] * (burst - 1)      so a full bucket admits every level, also with a burst of 1

- A larger body of such a level would use the reserve that higher levels need. So it defers what it takes of its
  reserve: for higher levels the bucket looks as if that had not been taken. What arrives fills the reserve first. What
  arrives beyond that pays for the deferred tokens, and at least ALLOWANCE of the rate does.
- A level that its reserve keeps out passes like the highest one while it has an allowance, which fills at ALLOWANCE of
  the rate. So it does not starve, however much of higher levels is sent. The lowest level has none.

Neither lets the bucket owe more than one body less a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, inf
from typing import Final

from pipeline.names import LEVEL_HIGHEST, Level

# A request after exactly the predicted wait must not fail because of float rounding. Far below one token.
TOLERANCE_TOKENS: Final = 1e-6
RESERVES: Final = (0.6, 0.4, 0.2, 0.0)  # by level, parts of the burst
ALLOWANCE: Final = 0.01  # of the rate, for each level that has one
ALLOWED: Final = (Level.INFO, Level.WARN)  # the levels that have one, in the order of BucketState.allowances


@dataclass(frozen=True, slots=True)
class BucketState:
    """The bucket's content (`tokens`, negative while in debt) at a time (seconds), and its rate then (tokens/s)."""

    tokens: float
    at: float
    rate: float
    deferred: float = 0.0  # tokens that levels above `deferred_by` may use in addition
    deferred_by: Level = Level.DEBUG
    allowances: tuple[float, ...] = ()  # tokens, of INFO and WARN; empty: no lower level has taken tokens yet


@dataclass(frozen=True, slots=True)
class Taken:
    """The bucket after a request.

    `wait_seconds` is 0 if the need was granted, with `granted` at least the needed number. Otherwise `granted` may
    still be a part of what was wanted beside the need: these tokens are for higher levels.
    """

    state: BucketState
    granted: int
    wait_seconds: float
    ran_dry: bool  # clients want more than the rate: it gave fewer tokens than wanted, and was not full before


def burst_of(rate: float, burst_seconds: float) -> int:
    """Tokens that the full bucket holds: at least 1, because with 0 no event could pass."""
    return max(1, int(rate * burst_seconds))


def reserve_of(level: Level, burst: int) -> float:
    """Tokens that a body of this level leaves in the bucket."""
    return RESERVES[level] * (burst - 1)


def missing(
    tokens: float, *, needed: int, level: Level, burst: int, deferred: float = 0.0, deferred_by: Level = Level.DEBUG
) -> float:
    """Tokens that must arrive before a body passes without an allowance; not above 0 if it may pass now.

    A body that needs no debt also passes by tokens that lower levels deferred. Beyond their reserve these are no help:
    what arrives then pays for them.
    """
    reserve = reserve_of(level, burst)
    short = 1 + reserve - tokens
    if deferred > 0 and level > deferred_by and needed + reserve <= reserve_of(deferred_by, burst):
        short = min(short, (needed + reserve - tokens - deferred) / (1 - ALLOWANCE))  # the rest of the rate pays
    return short


def refill(state: BucketState | None, *, now: float, rate: float, burst: int, lowest_rate: float = inf) -> BucketState:
    """The bucket at `now` (seconds) under `rate` (tokens/s) and `burst` (tokens). A new bucket is full.

    The rate may have changed at any time in the interval since the last look. So the interval fills the bucket at the
    lowest of the rates at its two ends and between them (`lowest_rate`): admissions never exceed the integral of the
    rate by more than one burst. A clock that went backwards fills nothing; the next interval starts at its new time.
    """
    if state is None:
        return BucketState(float(burst), now, rate)
    arrived = max(0.0, now - state.at) * min(rate, state.rate, lowest_rate)
    tokens = min(float(burst), state.tokens + arrived)
    deferred = _deferred_left(state.deferred - ALLOWANCE * arrived, state.deferred_by, tokens, burst)
    allowances = tuple(min(_allowance_max(burst), held + ALLOWANCE * arrived) for held in state.allowances)
    return BucketState(tokens, now, rate, deferred, state.deferred_by, allowances)


def take(
    state: BucketState | None,
    *,
    now: float,
    rate: float,
    burst: int,
    needed: int,
    wanted: int,
    returned: int = 0,
    level: Level = LEVEL_HIGHEST,
    lowest_rate: float = inf,
) -> Taken:
    """Take between `needed` and `wanted` tokens, or none (0 ≤ needed ≤ wanted; rate > 0; burst ≥ 1).

    The need is of a body of `level`; what is wanted beside it is for any body, also of the highest level. `returned`
    tokens come back first, as far as there is room for them. `lowest_rate` is the lowest one since the last look.
    """
    filled = refill(state, now=now, rate=rate, burst=burst, lowest_rate=lowest_rate)
    tokens = min(float(burst), filled.tokens + returned)
    deferred, deferred_by = _deferred_left(filled.deferred, filled.deferred_by, tokens, burst), filled.deferred_by
    allowances = filled.allowances
    if level < LEVEL_HIGHEST and not allowances:
        allowances = (_allowance_max(burst),) * len(ALLOWED)
    spare = floor(tokens + deferred + TOLERANCE_TOKENS)  # for the highest level

    def short_of(one: Level) -> float:
        return missing(tokens, needed=needed, level=one, burst=burst, deferred=deferred, deferred_by=deferred_by)

    short = short_of(level) if needed else -tokens
    wait_seconds = 0.0
    if short > TOLERANCE_TOKENS:
        wait_seconds = short / rate
        if level in ALLOWED:
            of_allowance = (1 - allowances[ALLOWED.index(level)]) / ALLOWANCE
            by_allowance = max(of_allowance, short_of(LEVEL_HIGHEST))
            if by_allowance <= TOLERANCE_TOKENS:
                wait_seconds = 0.0
                allowances = _spent(allowances, ALLOWED.index(level), needed)
            else:
                wait_seconds = min(wait_seconds, by_allowance / rate)
    if wait_seconds:
        granted = max(0, min(wanted - needed, spare))
    else:
        granted = max(needed, min(wanted, spare))
        if level < LEVEL_HIGHEST and needed:
            # After an allowance the bucket may be far below the reserve: then only the body itself counts, less the
            # token that let it pass.
            of_reserve = min(needed - 1.0, reserve_of(level, burst) - (tokens - needed))
            if of_reserve > deferred:
                deferred, deferred_by = of_reserve, level
    # A full bucket proves that clients did not use the rate. It may still hold less than a large body and a lease.
    ran_dry = granted < wanted and tokens + TOLERANCE_TOKENS < burst
    after = BucketState(tokens - granted, now, rate, deferred, deferred_by, allowances)
    return Taken(after, granted, wait_seconds, ran_dry)


def _deferred_left(deferred: float, deferred_by: Level, tokens: float, burst: int) -> float:
    """What of the deferred tokens is not paid: with them the bucket holds the reserve of their level at most."""
    return max(0.0, min(deferred, reserve_of(deferred_by, burst) - tokens))


def _allowance_max(burst: int) -> float:
    """Tokens of a full allowance: at least one, since one lets a body pass."""
    return max(1.0, ALLOWANCE * burst)


def _spent(allowances: Sequence[float], index: int, count: int) -> tuple[float, ...]:
    return tuple(held - count if at == index else held for at, held in enumerate(allowances))
