"""The control store: the admitted rate, the reasons to pause, and the story of their changes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.names import BreakerState, ControlEventKind, Mode, PauseReason, Severity


@dataclass(frozen=True, slots=True)
class PublishedRate:
    """The admitted rate as the controller published it. Times are seconds since the epoch, by the store's clock."""

    version: int  # grows with every publication, also when only a pause reason changed the effective rate
    rate: float  # events/s, effective: the floor while the breaker reason holds
    base_rate: float  # events/s, as the policy decided, before pause reasons
    mode: Mode
    lag: int | None  # events; None when unknown
    published_at: float
    lag_known_at: float | None
    consumption: "Consumption | None" = None  # None: the lag was unknown
    alarms: "tuple[Alarm, ...]" = ()  # what this tick of the control loop found wrong, worst first


@dataclass(frozen=True, slots=True)
class Alarm:
    """One problem that a tick of the control loop found. It holds until the next tick, which gives it again."""

    code: str  # one of AlarmCode, or of a newer version
    severity: Severity
    what: str  # one sentence
    look_at: str = ""  # where to begin
    partition: int | None = None  # None: of the whole system


@dataclass(frozen=True, slots=True)
class Consumption:
    """How far the log was consumed when the controller last knew it."""

    lag_by_partition: Mapping[int, int]  # events; of the partitions that could be asked
    consumed: int  # next offsets to store, summed over the partitions: only differences mean something
    drain_rate: float | None  # events/s stored between the last two ticks; None until there were two
    # By partition with events, unless paused: seconds since one of them was stored. None: a version that did not say.
    no_progress_seconds: Mapping[int, float] | None = None
    lag_held: Mapping[int, int] = field(default_factory=dict)  # events; taken for the lag of those that could not


@dataclass(frozen=True, slots=True)
class Override:
    """A rate that somebody set by hand, until a time. Times are seconds since the epoch, by the store's clock."""

    rate: float  # events/s
    until: float
    by: str
    why: str
    since: float


@dataclass(frozen=True, slots=True)
class Bands:
    """Thresholds of the rate policy that somebody set by hand, instead of those of the settings."""

    rate_max: float  # events/s
    rate_min: float  # events/s
    lag_degraded: int  # events
    lag_critical: int  # events
    by: str
    why: str
    since: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Pause:
    """One reason to pause. `generation` is unique to this occurrence of the reason."""

    reason: PauseReason
    generation: int
    since: float
    by: str
    why: str
    partition: int | None = None  # None: the whole system
    word: str = ""  # of a reason that this version does not know: how a newer one names it

    @property
    def name(self) -> str:
        """The reason as it is written down, also one that this version does not know."""
        return self.word or self.reason.value


@dataclass(frozen=True, slots=True)
class AskedPause:
    """A pause that holds until somebody lifts it, as it is kept elsewhere; `since` is in seconds since the epoch."""

    reason: PauseReason
    by: str
    why: str
    since: float
    partition: int | None = None  # None: the whole system
    word: str = ""  # as in Pause

    @property
    def name(self) -> str:
        """The reason as it is written down, also one that this version does not know."""
        return self.word or self.reason.value


def paused(pauses: Iterable[Pause], partition: int | None = None) -> bool:
    """Whether these pause a partition; without one, whether they pause the whole system."""
    return any(pause.partition is None or pause.partition == partition for pause in pauses)


@dataclass(frozen=True, slots=True)
class ControlState:
    """Everything that a process needs to know of the control loop, read in one go.

    `pauses` is None when unknown: the store was flushed, and regulate has not restored it yet.
    """

    rate: PublishedRate | None
    pauses: tuple[Pause, ...] | None
    breaker: BreakerState
    time: float  # the store's clock at reading
    generation: int  # of the last change to the reasons; 0 when there was none
    floor_rate: float = field(default=0.0)
    override: Override | None = None  # one that holds at `time`
    bands: Bands | None = None  # None: those of the settings


def consumption_word(pauses: Sequence[Pause] | None) -> str:
    """`unknown`, `paused` or `running`: of the whole system, whatever single partitions do."""
    return "unknown" if pauses is None else "paused" if paused(pauses) else "running"


def rate_after_override(state: ControlState) -> float:
    """The effective rate (events/s) without an override: the policy's, or the floor while the breaker is open."""
    if state.rate is None:
        return state.floor_rate
    is_open = any(pause.reason is PauseReason.BREAKER for pause in state.pauses or ())
    return min(state.rate.base_rate, state.floor_rate) if is_open else state.rate.base_rate


@dataclass(frozen=True, slots=True)
class ControlEvent:
    """One thing that happened in the control loop, or the same again and again: `at`, `by` and `why` are the last's."""

    id: str  # position in the stream; opaque, ordered
    at: float
    kind: ControlEventKind
    by: str  # who: user@host for a person, process name otherwise
    why: str
    data: dict[str, str]
    count: int = 1  # how often
    first_at: float | None = None  # when it happened first; None where it happened once


class ControlStore(Protocol):
    """Shared control state. Every method raises StoreUnavailableError when the server does not answer, or refuses.

    What a newer version wrote is read as far as this one knows it: words that it does not know become UNKNOWN.
    """

    def state(self) -> ControlState:
        """Rate, pauses and breaker in one round trip."""

    def publish_rate(
        self,
        *,
        base_rate: float,
        floor_rate: float,
        mode: Mode,
        lag: int | None,
        lag_known_at: float | None,
        by: str,
        consumption: Consumption | None = None,
        alarms: Sequence[Alarm] = (),
    ) -> PublishedRate:
        """Publish a newly decided rate with the next version; an event is recorded when rate or mode changed.

        The alarms replace those of the tick before. Their number and their length are bounded (ALARMS_MAX).

        A rate that was decided on an older lag than the published one is ignored. The effective rate is that of an
        override while one holds, and at most the floor while the breaker's reason holds. Returns what is published.
        """

    def set_override(self, rate: float, *, until: float, by: str, why: str) -> Override:
        """Let `rate` hold until a time (seconds since the epoch), in place of an earlier override.

        It ends by itself, also where nobody but ingest is left to notice; the store's clock decides.
        """

    def clear_override(self, *, by: str, why: str) -> bool:
        """End an override early; whether one held."""

    def set_bands(self, bands: Bands) -> None:
        """Let the controller go by these bands from its next tick on."""

    def clear_bands(self, *, by: str, why: str) -> bool:
        """Go back to the bands of the settings; whether others held."""

    def pause(self, reason: PauseReason, *, by: str, why: str, partition: int | None = None) -> int:
        """Add a reason, for one partition or for the whole system, or keep it where it holds already.

        Returns its generation. A reason of the whole system takes the place of those of its partitions. For the
        breaker the effective rate drops to the floor in the same step.
        """

    def resume(
        self, reason: PauseReason, *, generation: int | None, by: str, why: str, partition: int | None = None
    ) -> bool:
        """Lift a reason if its generation is still the given one (None: whichever); True when it was lifted.

        With a partition, where the reason holds for that partition by itself; without, for the system and all
        partitions, and the generation is that of the oldest. UNKNOWN stands for all that this version does not know.
        """

    def restore(
        self,
        pauses: Sequence[AskedPause],
        *,
        by: str,
        override: Override | None = None,
        bands: Bands | None = None,
    ) -> bool:
        """After a flush: add the pauses, override and bands known elsewhere, and mark it complete.

        Does nothing and returns False where the set is complete already.
        """


class ControlEvents(Protocol):
    """The story of the control loop, newest last, bounded."""

    def last(self, count: int) -> list[ControlEvent]:
        """The latest events, oldest first."""

    def wait(self, after: str, *, wait_seconds: float) -> str:
        """Block until something happens after position `after` ("" for now) or time is up; returns the position."""

    def record(self, kind: ControlEventKind, *, by: str, why: str, data: dict[str, str]) -> None:
        """Add an event. What the system repeats by itself within ten minutes is one event, with a count."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """What the mirror of the stored offsets says of one log.

    A life of the mirror begins with each start and each flush of its server. Where the server came back with an older
    file, nothing else shows it.
    """

    life: str
    floors: dict[int, int]  # partition -> next offset that was stored, or was about to be; it may be too low
    is_complete: bool  # in this life PostgreSQL was asked: the floors are not too low


class Floors(Protocol):
    """A mirror of the stored offsets, outside PostgreSQL and outside the log, and the fence around it.

    A log that comes back without its tail must not use an offset again that was stored. Drain raises the mirror
    *before* it commits; ingest learns it before it appends to a restarted log. The fence closes the race between
    the two: `raise_floor` under an old incarnation fails once `fence` has been called with a newer one. Fence and
    completeness hold for one life of the mirror only. Every method raises StoreUnavailableError.
    """

    def mirror(self, log_id: str) -> Mirror:
        """What the mirror says."""

    def fence(self, log_id: str, incarnation: str) -> Mirror:
        """Make `incarnation` the current one, and return what the mirror says."""

    def seed(self, log_id: str, life: str, floors: dict[int, int]) -> None:
        """Raise the mirror to PostgreSQL's offsets, which were read in this life, and mark it as complete.

        Nothing happens where that life is over: floors may have been raised and lost since.
        """

    def raise_floor(self, log_id: str, incarnation: str, partition: int, offset: int) -> None:
        """Raise one floor to at least `offset`.

        Raises FencedError when another incarnation is the current one, or none in this life: ask the log who it is,
        and fence that.
        """

    def lower_floor(self, log_id: str, partition: int, offset: int) -> None:
        """Bring one floor down to what is stored, where it is higher.

        Only for who holds the partition's lock and has seen in PostgreSQL that `offset` is stored, and no more: then
        nobody can be about to store what lies between.
        """


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that a process finds wrong with itself."""

    code: str  # one of AlarmCode, or of a newer version
    what: str


class Troubles(Protocol):
    """What processes find wrong with themselves, where nobody asks them for their health.

    All of it is forgotten TROUBLE_SECONDS after the last report: a process reports again while the problem holds. Every
    method raises StoreUnavailableError.
    """

    def report(self, process: str, problems: Sequence[Trouble]) -> None:
        """Say what is wrong with a process now; nothing takes back what it said before."""

    def reported(self) -> dict[str, list[Trouble]]:
        """What is wrong, by process."""


class Leases(Protocol):
    """Short exclusive claims, for duties of which one process is enough. An optimisation, never a lock for safety."""

    def take(self, name: str, *, seconds: float) -> str | None:
        """Claim `name` for at most `seconds`; returns a token, or None where somebody else has it."""

    def give_back(self, name: str, token: str) -> None:
        """End a claim early if it is still this one."""


class Progress(Protocol):
    """How long each partition has stood at the same offset, kept between the ticks of the control loop.

    Shared, since ticks alternate between processes.
    """

    def note(self, log_id: str, offsets: Mapping[int, int], *, forget_seconds: float) -> dict[int, float]:
        """Note how far each partition has come; returns the seconds for which it has stood there.

        Partitions that are not given are forgotten, and so are all after `forget_seconds` without a call. Raises
        StoreUnavailableError.
        """
