"""A token bucket as arithmetic: the reference for `pipeline/store/bucket.lua`, which does the same on the server.

One token is one event. The bucket fills at `rate` up to `burst`. A request passes if the bucket holds one token,
whatever the request's size, and may leave the bucket in debt. So bodies of all sizes have the same chance beside each
other, and the debt is always smaller than one body. The caller reads the clock, once.
"""

from dataclasses import dataclass
from typing import Final

# A request after exactly the predicted wait must not fail because of float rounding. Far below one token.
TOLERANCE_TOKENS: Final = 1e-6


@dataclass(frozen=True, slots=True)
class BucketState:
    """The bucket's content (`tokens`, negative while in debt) at a time (seconds), and its rate then (tokens/s)."""

    tokens: float
    at: float
    rate: float


@dataclass(frozen=True, slots=True)
class Taken:
    """The bucket after a request; `granted` is 0 or at least the needed number, `wait_seconds` is 0 when granted."""

    state: BucketState
    granted: int
    wait_seconds: float
    ran_dry: bool  # clients want more than the rate: it gave fewer tokens than wanted, and was not full before


def burst_of(rate: float, burst_seconds: float) -> int:
    """Tokens that the full bucket holds: at least 1, because with 0 no event could pass."""
    return max(1, int(rate * burst_seconds))


def refill(state: BucketState | None, *, now: float, rate: float, burst: int) -> BucketState:
    """The bucket at `now` (seconds) under `rate` (tokens/s) and `burst` (tokens). A new bucket is full.

    The rate may have changed at any time in the interval since the last look. So the interval fills the bucket at the
    lower of the rates at its two ends: admissions never exceed the integral of the rate by more than one burst. A clock
    that went backwards fills nothing; the next interval starts at its new time.
    """
    if state is None:
        return BucketState(float(burst), now, rate)
    elapsed_seconds = max(0.0, now - state.at)
    tokens = state.tokens + elapsed_seconds * min(rate, state.rate)
    return BucketState(min(float(burst), tokens), now, rate)


def take(
    state: BucketState | None, *, now: float, rate: float, burst: int, needed: int, wanted: int, returned: int = 0
) -> Taken:
    """Take between `needed` and `wanted` tokens, or none (0 ≤ needed ≤ wanted; rate > 0; burst ≥ 1).

    One token is enough for any need: a larger need leaves the bucket in debt. `returned` tokens come back first, as far
    as there is room for them.
    """
    filled = refill(state, now=now, rate=rate, burst=burst)
    tokens = min(float(burst), filled.tokens + returned)
    threshold = min(needed, 1)
    if tokens + TOLERANCE_TOKENS < threshold:
        return Taken(BucketState(tokens, now, rate), 0, (threshold - tokens) / rate, ran_dry=True)
    granted = max(needed, min(wanted, int(tokens + TOLERANCE_TOKENS)))
    # A full bucket proves that clients did not use the rate. It may still hold less than a large body and a lease.
    ran_dry = granted < wanted and tokens + TOLERANCE_TOKENS < burst
    return Taken(BucketState(tokens - granted, now, rate), granted, 0.0, ran_dry)
