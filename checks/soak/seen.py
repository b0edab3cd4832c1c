"""The watchers' samples of the running system, as input for the checker. Times are seconds since the epoch."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ControlSample:
    """The content of the control store at a time."""

    at: float
    version: int  # of the published rate; 0: none
    rate: float | None = None  # events/s, effective
    base_rate: float | None = None  # events/s, as the policy decided
    lag: int | None = None  # events, as published
    published_at: float | None = None  # by the controller; a pause changes the version, and publishes nothing
    breaker: str = "closed"
    paused: frozenset[int | None] | None = frozenset()  # partitions (None: all); None as a whole: unknown


@dataclass(frozen=True, slots=True)
class PartitionSample:
    """The begin, the end and the stored offset of a partition of the log."""

    begin: int
    end: int
    stored: int
    is_fresh: bool  # PostgreSQL answered after the log; otherwise `stored` is from its last answer

    @property
    def lag(self) -> int:
        return max(0, self.end - max(self.stored, self.begin))


@dataclass(frozen=True, slots=True)
class LagSample:
    """All partitions at a time."""

    at: float
    partitions: dict[int, PartitionSample]

    @property
    def lag(self) -> int:
        return sum(one.lag for one in self.partitions.values())


@dataclass(frozen=True, slots=True)
class HealthSample:
    """An answer of GET /api/logs/health, at its time of arrival `at`. `status` None: there was no answer of 200."""

    at: float
    ingest: int
    status: str | None
    lag: int | None = None
    rate: float | None = None
    breaker: str | None = None
    consumption: str | None = None
    reasons: int = 0


@dataclass(slots=True)
class Seen:
    """All samples; each list is in order of time."""

    control: list[ControlSample] = field(default_factory=list)
    lags: list[LagSample] = field(default_factory=list)
    health: list[HealthSample] = field(default_factory=list)
