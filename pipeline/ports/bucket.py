"""The global token bucket. Ingest processes take leases from it."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Grant:
    """Response to a request for tokens; one token is one event.

    `granted` is 0, or at least the needed number. `wait_seconds` is the predicted time until the bucket holds a token
    again (0 when granted): after it, a request of any size passes, unless another one came first. `tokens` is the
    bucket's level after the grant; it is negative while the bucket is in debt.
    """

    granted: int
    wait_seconds: float
    tokens: float
    rate: float  # events/s; the rate at which the bucket fills
    burst: int  # tokens that the full bucket holds
    version: int  # of the published rate; a lease with an older version is void if the rate has fallen
    live_processes: int  # ingest processes that requested tokens recently, including this one


class Bucket(Protocol):
    """One token bucket for all ingest processes."""

    def take(self, *, needed: int, wanted: int, process: str, returned: int = 0) -> Grant:
        """Take between `needed` and `wanted` tokens (0 ≤ needed ≤ wanted), or none.

        A bucket that holds one token grants any need, and goes into debt for a larger one. `returned` tokens that this
        process took earlier come back first, also if nothing is granted. Each call renews the presence of the process.
        A call with 0 wanted tokens changes nothing else. Raises StoreUnavailableError.
        """
