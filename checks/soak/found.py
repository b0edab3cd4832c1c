"""The checker's input from the end of a run: rows, dead letters, offsets and the whole log."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Place(NamedTuple):
    """The place of a record in the log."""

    partition: int
    offset: int


class Stored(NamedTuple):
    """An event in log_events, in dead_letters (open ones) or in the log."""

    place: Place
    key: str  # empty: no event of ours
    digest: str
    event_id: str
    request_id: str = ""
    received_at: float = 0.0  # epoch s, by the clock of ingest
    hash: int | None = None  # CRC-32 of the correlation id, from which the partition follows
    log_id: str | None = None  # None: not read
    stored_at: float | None = None  # epoch s, when PostgreSQL committed it; None: not in PostgreSQL, or not known
    sqlstate: str | None = None  # of a dead letter


class Hole(NamedTuple):
    """Offsets that the log does not hold: from `first` up to, but without, `end`."""

    partition: int
    first: int
    end: int
    declared: bool  # by the log itself, which came back without them


class RateSample(NamedTuple):
    """The published admitted rate (events/s) at a time (epoch s); None if the control server did not answer."""

    at: float
    rate: float | None


class OffsetSample(NamedTuple):
    """The stored offset of a partition as PostgreSQL showed it at a time (epoch s)."""

    at: float
    log_id: str
    partition: int
    next_offset: int


@dataclass(slots=True)
class Found:
    """Everything that was read. `lost` has the log's records that the machine lost by a fault of the harness."""

    log_id: str
    rows: Sequence[Stored] = ()
    letters: Sequence[Stored] = ()
    log: Sequence[Stored] = ()
    holes: Sequence[Hole] = ()
    begins: dict[int, int] = field(default_factory=dict)  # partition -> first offset that the log must have
    stored_offsets: dict[tuple[str, int], int] = field(default_factory=dict)  # (log_id, partition) -> next offset
    offset_samples: Sequence[OffsetSample] = ()
    lost: Sequence[Stored] = ()
    # Keys of `lost` that were not stored at the time of the loss. Only these may be missing.
    lost_unread: frozenset[str] | None = None  # None: all of them
    trims: bool = False  # the log drops stored records
    partition_counts: frozenset[int] = frozenset()  # how many partitions the log has had; empty: not judged


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """The limits for admissions, besides the published rates."""

    burst_seconds: float
    lease_events: float  # tokens that all ingest processes may hold in leases
    body_events: int  # the largest body: the bucket may owe one
    ingests: int  # ingest processes: without the shared bucket, each has its own
    rate_min: float  # events/s, admitted by a process that never received a rate
    late_seconds: float  # how long a lower rate takes to reach all processes


@dataclass(frozen=True, slots=True)
class Recovery:
    """The end of the run: seconds from the last event until a drained log and a closed breaker; None: never."""

    seconds: float | None
    seconds_max: float
    why_not: str = ""
