"""A token bucket as arithmetic: the reference for `pipeline/store/bucket.lua`, which does the same on the server.

One token is one event. The bucket fills at `rate` up to `burst`; a clock is read by the caller, once.
"""

from dataclasses import dataclass
from typing import Final

# A wait that was predicted exactly must not fail for the last bit of a float. Far below one token.
TOLERANCE_TOKENS: Final = 1e-6


@dataclass(frozen=True, slots=True)
class BucketState:
    """What the bucket held (`tokens`, negative while in debt) at a time (seconds), and its rate then (tokens/s)."""

    tokens: float
    at: float
    rate: float


@dataclass(frozen=True, slots=True)
class Taken:
    """The bucket after a request; `granted` is 0 or at least what was needed, `wait_seconds` is 0 when granted."""

    state: BucketState
    granted: int
    wait_seconds: float


def burst_of(rate: float, burst_seconds: float) -> int:
    """Tokens that the full bucket holds: at least 1, or nothing would ever pass."""
    return max(1, int(rate * burst_seconds))


def refill(state: BucketState | None, *, now: float, rate: float, burst: int) -> BucketState:
    """The bucket at `now` (seconds) under `rate` (tokens/s) and `burst` (tokens). A bucket that is new is full.

    The interval since the last look fills it at the lower of the rates at its two ends, since it is not known when
    the rate changed: so admissions never exceed the integral of the rate by more than one burst. A clock that went
    backwards fills nothing, and counts from its new time.
    """
    if state is None:
        return BucketState(float(burst), now, rate)
    elapsed_seconds = max(0.0, now - state.at)
    tokens = state.tokens + elapsed_seconds * min(rate, state.rate)
    return BucketState(min(float(burst), tokens), now, rate)


def take(state: BucketState | None, *, now: float, rate: float, burst: int, needed: int, wanted: int) -> Taken:
    """Take between `needed` and `wanted` tokens, or none (0 ≤ needed ≤ wanted; rate > 0; burst ≥ 1).

    A need above the burst could never be met: it passes when the bucket is full, and leaves it in debt.
    """
    filled = refill(state, now=now, rate=rate, burst=burst)
    threshold = min(needed, burst)
    if filled.tokens + TOLERANCE_TOKENS < threshold:
        return Taken(filled, 0, (threshold - filled.tokens) / rate)
    granted = needed if needed > burst else min(wanted, int(filled.tokens + TOLERANCE_TOKENS))
    return Taken(BucketState(filled.tokens - granted, now, rate), granted, 0.0)
