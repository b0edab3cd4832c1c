"""The global token bucket. Ingest processes take leases from it."""

from dataclasses import dataclass
from typing import Protocol

from pipeline.names import LEVEL_HIGHEST, Level


@dataclass(frozen=True, slots=True)
class Grant:
    """Response to a request for tokens; one token is one event.

    If `wait_seconds` is 0, the need was granted, with `granted` at least the needed number. Otherwise it is the
    predicted time until a request of this level and size passes, unless another one comes first; `granted` then has at
    most what was wanted beside the need. `tokens` is the bucket's level after the grant; it is negative while the
    bucket is in debt. Levels above `deferred_by` may use `deferred` tokens in addition.
    """

    granted: int
    wait_seconds: float
    tokens: float
    rate: float  # events/s; the rate at which the bucket fills
    burst: int  # tokens that the full bucket holds
    version: int  # of the published rate; a lease with an older version is void if the rate has fallen
    live_processes: int  # ingest processes that requested tokens recently, including this one
    deferred: float = 0.0
    deferred_by: Level = Level.DEBUG


class Bucket(Protocol):
    """One token bucket for all ingest processes."""

    def take(self, *, needed: int, wanted: int, process: str, returned: int = 0, level: Level = LEVEL_HIGHEST) -> Grant:
        """Take between `needed` and `wanted` tokens (0 ≤ needed ≤ wanted), or none.

        A bucket that holds one token above the reserve of the level grants any need, and goes into debt for a larger
        one. What is wanted beside the need is a lease for bodies of any level. `returned` tokens that this process took
        earlier come back first, also if nothing is granted. Each call renews the presence of the process. A call with 0
        wanted tokens changes nothing else. Raises StoreUnavailableError.
        """
