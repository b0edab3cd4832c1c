"""The control store: the admitted rate, the reasons to pause, and the history of their changes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.flow.rate import capped_by_breaker
from pipeline.flow.shares import Shares
from pipeline.names import BreakerState, ControlEventKind, LimitedBy, Mode, PauseReason, Severity
from pipeline.ports.rate import PolicyRecord
from pipeline.settings import Settings, figures_of


@dataclass(frozen=True, slots=True)
class PublishedRate:
    """The admitted rate that the controller published. Times are seconds since the epoch, by the store's clock."""

    version: int  # grows with every publication, even if only a pause reason changed the effective rate
    rate: float  # events/s, effective: at most the lowest rate (RATE_MIN) while the breaker reason is active
    base_rate: float  # events/s, as the policy decided, before pause reasons
    mode: Mode
    lag: int | None  # events; None when unknown
    published_at: float
    lag_known_at: float | None
    consumption: "Consumption | None" = None  # None: the lag was unknown
    alarms: "tuple[Alarm, ...]" = ()  # problems that this tick of the control loop found, worst first
    policy: PolicyRecord | None = None  # None: a version without policies published this
    shares: Shares | None = None  # of the accounts; None: the rate is not shared out, and no account has a limit


@dataclass(frozen=True, slots=True)
class Alarm:
    """One problem that a tick of the control loop found. It is valid until the next tick, which reports it again."""

    code: str  # an AlarmCode, or a code of a newer version
    severity: Severity
    what: str  # one sentence
    look_at: str = ""  # where to start the investigation
    partition: int | None = None  # None: the alarm concerns the whole system


@dataclass(frozen=True, slots=True)
class Consumption:
    """How far the log was consumed, as the controller last measured it."""

    lag_by_partition: Mapping[int, int]  # events; only partitions that answered
    consumed: int  # next offsets to store, summed over the partitions: only differences have a meaning
    drain_rate: float | None  # events/s stored between the last two ticks; None until there were two
    # For each partition that has events and is not paused: seconds since an event of it was stored.
    # None: an older version published this, without the value.
    no_progress_seconds: Mapping[int, float] | None = None
    lag_held: Mapping[int, int] = field(default_factory=dict)  # events; assumed lag of partitions that did not answer


@dataclass(frozen=True, slots=True)
class Override:
    """A rate that an operator set until a time. Times are seconds since the epoch, by the store's clock."""

    rate: float  # events/s
    until: float
    actor: str
    why: str
    since: float


@dataclass(frozen=True, slots=True)
class Bands:
    """Thresholds of the rate policy that an operator set. They replace those of the settings."""

    rate_max: float  # events/s
    rate_min: float  # events/s
    lag_degraded: int  # events
    lag_critical: int  # events
    actor: str
    why: str
    since: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class AccountLimit:
    """What is set for one account."""

    rate: float | None = None  # events/s that are admitted at most, also without shortage; None: no limit
    weight: float = 1.0  # its share, as a multiple of that of an account for which nothing is set


@dataclass(frozen=True, slots=True)
class OperatorLimit:
    """What an operator set for one account. It replaces the account's entries in the settings."""

    account: str
    rate: float | None  # events/s; None: no limit, whatever the settings say
    weight: float | None  # None: that of the settings
    actor: str
    why: str
    since: float  # seconds since the epoch


def account_limits(settings: Settings, asked: Mapping[str, OperatorLimit] | None = None) -> dict[str, AccountLimit]:
    """What is set for accounts, by account: by an operator (`asked`), else by the settings."""
    rates, weights = figures_of(settings.account_limits), figures_of(settings.account_weights)
    limits = {account: AccountLimit(rates.get(account), weights.get(account, 1.0)) for account in (*rates, *weights)}
    for account, one in (asked or {}).items():
        limits[account] = AccountLimit(one.rate, weights.get(account, 1.0) if one.weight is None else one.weight)
    return limits


@dataclass(frozen=True, slots=True)
class Pause:
    """One reason to pause. `generation` is unique to this occurrence of the reason."""

    reason: PauseReason
    generation: int
    since: float
    actor: str
    why: str
    partition: int | None = None  # None: the whole system
    word: str = ""  # if this version does not know the reason: its name in the newer version

    @property
    def name(self) -> str:
        """The name of the reason as stored, also for a reason that this version does not know."""
        return self.word or self.reason.value

    @property
    def occurrence(self) -> tuple[str, int | None, int]:
        """What tells this pause from each other one, also from an earlier one with the same reason."""
        return self.name, self.partition, self.generation


@dataclass(frozen=True, slots=True)
class OperatorPause:
    """A pause that lasts until an operator lifts it, as PostgreSQL keeps it; `since` is in seconds since the epoch."""

    reason: PauseReason
    actor: str
    why: str
    since: float
    partition: int | None = None  # None: the whole system
    word: str = ""  # as in Pause

    @property
    def name(self) -> str:
        """The name of the reason as stored, also for a reason that this version does not know."""
        return self.word or self.reason.value


def paused(pauses: Iterable[Pause], partition: int | None = None) -> bool:
    """Whether these pauses include the partition; without a partition, whether they pause the whole system."""
    return any(pause.partition is None or pause.partition == partition for pause in pauses)


@dataclass(frozen=True, slots=True)
class PauseState:
    """The reasons to pause, read in one round trip; the fields are those of ControlState."""

    pauses: tuple[Pause, ...] | None
    breaker: BreakerState
    time: float
    generation: int


@dataclass(frozen=True, slots=True)
class ControlState:
    """The complete state of the control loop for a process, read in one round trip.

    `pauses` is None when unknown: the store was flushed, and `regulate` has not restored the pauses yet.
    """

    rate: PublishedRate | None
    pauses: tuple[Pause, ...] | None
    breaker: BreakerState
    time: float  # the store's clock at the time of the read
    generation: int  # of the last change to the reasons; 0 if there was none
    floor_rate: float = field(default=0.0)
    override: Override | None = None  # one that is active at `time`
    bands: Bands | None = None  # None: the bands of the settings apply
    # What operators set for accounts. None when unknown: the store was flushed, and `regulate` has not restored it yet.
    accounts: Mapping[str, OperatorLimit] | None = None
    keys_version: str | None = None  # of the mirror of the API keys; None: unknown, as after a flush
    # Calls to the bucket that found it neither full nor with enough tokens, since a flush: only differences have a
    # meaning.
    bucket_ran_dry: int = 0


def consumption_word(pauses: Sequence[Pause] | None) -> str:
    """`unknown`, `paused` or `running`: for the whole system, independent of single partitions."""
    return "unknown" if pauses is None else "paused" if paused(pauses) else "running"


def effective_rate(state: ControlState, base_rate: float, floor_rate: float) -> float:
    """What the store makes of a base rate: the override's instead, and at most the lowest while the breaker is open."""
    wanted = base_rate if state.override is None else state.override.rate
    is_open = any(pause.reason is PauseReason.BREAKER for pause in state.pauses or ())
    return capped_by_breaker(wanted, floor_rate, is_open=is_open)


def rate_after_override(state: ControlState) -> float:
    """The effective rate (events/s) without an override: while the breaker is open, at most the lowest rate."""
    if state.rate is None:
        return state.floor_rate
    is_open = any(pause.reason is PauseReason.BREAKER for pause in state.pauses or ())
    return capped_by_breaker(state.rate.base_rate, state.floor_rate, is_open=is_open)


def limited_by(state: ControlState) -> tuple[LimitedBy, float | None]:
    """What decides the effective rate, and since when (seconds since the epoch); None: that is not recorded."""
    breaker = next((pause for pause in state.pauses or () if pause.reason is PauseReason.BREAKER), None)
    wanted = None if state.rate is None else state.rate.base_rate
    wanted = wanted if state.override is None else state.override.rate
    if breaker is not None and (wanted is None or state.floor_rate < wanted):
        return LimitedBy.BREAKER, breaker.since
    if state.override is not None:
        return LimitedBy.OVERRIDE, state.override.since
    return LimitedBy.RATE, None


@dataclass(frozen=True, slots=True)
class ControlEvent:
    """One event of the control loop, or one that repeats: then `at`, `by` and `why` belong to the last occurrence."""

    id: str  # position in the stream; opaque, ordered
    at: float
    kind: ControlEventKind
    actor: str  # the actor: user@host for a person, otherwise the process name
    why: str
    data: dict[str, str]
    count: int = 1  # number of occurrences
    first_at: float | None = None  # time of the first occurrence; None if there was only one


class ControlStore(Protocol):
    """Shared control state. Every method raises StoreUnavailableError if the server does not answer or refuses.

    This version reads data of a newer version as far as possible: a name that it does not know becomes UNKNOWN.
    """

    def state(self) -> ControlState:
        """Rate, pauses and breaker in one round trip."""

    def pause_state(self) -> PauseState:
        """Pauses and breaker alone, for callers that ask often: it costs half of `state`."""

    def state_after(self, position: str, *, wait_seconds: float) -> tuple[str, ControlState | None]:
        """Wait for a control event as `ControlEvents.wait` does, and read the state, in one round trip.

        Returns the position and, if time was up, the state, which was read after the wait. After an event there is no
        state: it is unknown when it was read, so that the caller reads it again. Without a position ("") it returns
        that of the newest event at once.
        """

    def pause_state_after(self, position: str, *, wait_seconds: float) -> tuple[str, PauseState | None]:
        """The same for pauses and breaker alone."""

    def publish_rate(
        self,
        *,
        base_rate: float,
        floor_rate: float,
        mode: Mode,
        lag: int | None,
        lag_known_at: float | None,
        actor: str,
        consumption: Consumption | None = None,
        alarms: Sequence[Alarm] = (),
        policy: PolicyRecord | None = None,
        shares: Shares | None = None,
    ) -> PublishedRate:
        """Publish a newly decided rate with the next version. Records an event if the rate or the mode changed.

        The alarms replace those of the previous tick. Their number and their length are limited (ALARMS_MAX). The
        policy's record and the accounts' shares replace the previous ones too; the control events get the policy's
        reason.

        A rate that was decided on an older lag than the published one is ignored. While an override is active, the
        effective rate is the override's rate. While the breaker reason is active, the effective rate is at most the
        lowest rate. Returns the published rate.
        """

    def set_override(self, rate: float, *, until: float, actor: str, why: str) -> Override:
        """Set `rate` until a time (seconds since the epoch). It replaces an earlier override.

        It ends by itself, even if only ingest is running; the store's clock decides.
        """

    def clear_override(self, *, actor: str, why: str) -> bool:
        """End an override early; returns whether one was active."""

    def set_bands(self, bands: Bands) -> None:
        """Make the controller use these bands from its next tick on."""

    def clear_bands(self, *, actor: str, why: str) -> bool:
        """Return to the bands of the settings; returns whether other bands were set."""

    def set_account_limit(self, asked: OperatorLimit) -> bool:
        """Set what holds for an account; returns False if ACCOUNT_LIMITS_MAX accounts have such a limit already."""

    def clear_account_limit(self, account: str, *, actor: str, why: str) -> bool:
        """Return to the settings of an account; returns whether an operator had set something for it."""

    def restore_account_limits(self, asked: Sequence[OperatorLimit], *, actor: str) -> bool:
        """After a flush: add the limits that PostgreSQL keeps, and mark them as complete.

        Does nothing and returns False if they are already complete. It is apart from `restore`, because an earlier
        version of Sluice restores without them.
        """

    def pause(self, reason: PauseReason, *, actor: str, why: str, partition: int | None = None) -> int:
        """Add a reason for one partition or for the whole system. A reason that is already active stays as it is.

        Returns its generation. A reason for the whole system replaces the same reason for single partitions. For the
        breaker reason, the effective rate drops to the lowest rate in the same step.
        """

    def resume(
        self, reason: PauseReason, *, generation: int | None, actor: str, why: str, partition: int | None = None
    ) -> bool:
        """Lift a reason if its generation is still the given one (None: any); True if it was lifted.

        With a partition, lifts the reason only if it is set for that partition itself. Without a partition, lifts it
        for the system and for all partitions; the generation is that of the oldest. UNKNOWN means all reasons that this
        version does not know.
        """

    def restore(
        self,
        pauses: Sequence[OperatorPause],
        *,
        actor: str,
        override: Override | None = None,
        bands: Bands | None = None,
    ) -> bool:
        """After a flush: add the pauses, override and bands that PostgreSQL keeps, and mark the set as complete.

        Does nothing and returns False if the set is already complete.
        """


class ControlEvents(Protocol):
    """The history of the control loop, newest last, bounded."""

    def last(self, count: int) -> list[ControlEvent]:
        """The latest events, oldest first."""

    def wait(self, after: str, *, wait_seconds: float) -> str:
        """Block until there is an event after position `after` ("" for now) or time is up; returns the position."""

    def record(self, kind: ControlEventKind, *, actor: str, why: str, data: dict[str, str]) -> None:
        """Add an event. If the system itself repeats one within ten minutes, the store keeps one event with a count."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """The content of the mirror of the stored offsets, for one log.

    A life of the mirror begins with each start and each flush of its server. The life is the only sign that the server
    came back with an older file.
    """

    life: str
    lowest_offsets: dict[
        int, int
    ]  # partition -> next offset that was stored or was about to be stored; it may be too low
    is_complete: bool  # PostgreSQL was read in this life, so the lowest allowed offsets are not too low


class OffsetFence(Protocol):
    """A mirror of the stored offsets, outside PostgreSQL and outside the log, with a fence.

    A log that comes back without its tail must not reuse an offset that was stored. Drain raises the mirror *before* it
    commits. Ingest reads the mirror before it appends to a restarted log. The fence closes the race between the two:
    once `fence` was called with a newer incarnation, `raise_lowest_offset` under an old incarnation fails. The fence
    and the completeness are valid for one life of the mirror only. Every method raises StoreUnavailableError.
    """

    def mirror(self, log_id: str) -> Mirror:
        """Return the content of the mirror."""

    def fence(self, log_id: str, incarnation: str) -> Mirror:
        """Make `incarnation` the current one, and return the content of the mirror."""

    def seed(self, log_id: str, life: str, lowest_offsets: dict[int, int]) -> None:
        """Raise the mirror to PostgreSQL's offsets, which were read in this life, and mark it as complete.

        Does nothing if that life is over: later raises may have been lost.
        """

    def raise_lowest_offset(self, log_id: str, incarnation: str, partition: int, offset: int) -> None:
        """Raise the lowest allowed offset of one partition to at least `offset`.

        Raises FencedError if another incarnation is the current one, or if there is none in this life. The caller must
        then read the log's identity and fence that incarnation.
        """

    def lower_lowest_offset(self, log_id: str, partition: int, offset: int) -> None:
        """Lower one partition's mirrored offset to the stored offset, if the mirror is higher.

        Only the holder of the partition's lock may call this, after it has read in PostgreSQL that exactly `offset` is
        stored. Then no process can be about to store the offsets between.
        """


@dataclass(frozen=True, slots=True)
class Trouble:
    """One problem that a process finds in itself."""

    code: str  # an AlarmCode, or a code of a newer version
    what: str


class Troubles(Protocol):
    """Problems that only one process can know, for all that show the health of the system.

    A process repeats its report while the problem lasts. TROUBLE_SECONDS after the last report, all are forgotten. The
    next report of another process removes those that are older than that, and those from the future of the server's
    clock.
    Every method raises StoreUnavailableError.
    """

    def report(self, process: str, problems: Sequence[Trouble]) -> None:
        """Report the current problems of a process. They replace its earlier report; an empty list withdraws it."""

    def reported(self) -> dict[str, list[Trouble]]:
        """The current problems, by process."""


class Leases(Protocol):
    """Short exclusive claims, for duties that need one process only. An optimisation, never a lock for safety."""

    def take(self, name: str, *, seconds: float) -> str | None:
        """Claim `name` for at most `seconds`; returns a token, or None if another process holds it."""

    def take_in_order(self, claims: Sequence[tuple[str, float]]) -> list[str]:
        """Claim names, each for its seconds, up to the first one that another process holds, in one call.

        Returns the tokens of those that it got.
        """

    def give_back(self, name: str, token: str) -> None:
        """End a claim early if the token still matches."""


class Progress(Protocol):
    """How long each partition has had the same offset, kept between the ticks of the control loop.

    It is shared because ticks alternate between processes.
    """

    def note(self, log_id: str, offsets: Mapping[int, int], *, forget_seconds: float) -> dict[int, float]:
        """Record the current offset of each partition; returns the seconds since that offset last changed.

        Partitions that are not given are forgotten. After `forget_seconds` without a call, all are forgotten. Raises
        StoreUnavailableError.
        """
