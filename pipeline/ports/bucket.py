"""The global token bucket, from which ingest processes take leases."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Grant:
    """Answer to a request for tokens; one token is one event.

    `granted` is 0 or at least what was needed. `wait_seconds` is the predicted time until the needed tokens are
    there (0 when granted). `tokens` is the bucket's level after the grant, negative while in debt.
    """

    granted: int
    wait_seconds: float
    tokens: float
    rate: float  # events/s at which the bucket fills
    burst: int  # tokens that the full bucket holds
    version: int  # of the published rate; a lease of an older version is void when the rate has fallen
    live_processes: int  # ingest processes that asked lately, this one included


class Bucket(Protocol):
    """One token bucket for all ingest processes."""

    def take(self, *, needed: int, wanted: int, process: str) -> Grant:
        """Take between `needed` and `wanted` tokens (0 ≤ needed ≤ wanted), or none.

        A need above the burst is granted when the bucket is full, and leaves it in debt. A call that wants 0 tokens
        changes nothing but the presence of the process, which each call renews. Raises StoreUnavailableError.
        """
