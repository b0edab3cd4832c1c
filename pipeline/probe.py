"""The prober: makes the half-open call for the whole system, and lifts the breaker's reason to pause."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import (
    RecoverableError,
    SinkMisconfiguredError,
    SinkStandbyError,
    StoreUnavailableError,
    in_brief,
)
from pipeline.flow.age import Age
from pipeline.names import LEASE_PROBE, AlarmCode, PauseReason
from pipeline.ports.control import ControlState, ControlStore, Leases, Pause, Trouble, Troubles
from pipeline.settings import Settings

# A breaker that is open for less may be due to a failover, in which DATABASE_URL reaches the old primary for a moment.
STANDBY_SECONDS_MIN: Final = 10.0
_DOUBLINGS_MAX: Final = 16
_REPORTER: Final = "prober"  # one name for all processes: each probe replaces what the last one reported


class ProbeOutcome(StrEnum):
    """The result of one tick of the prober."""

    NOT_OPEN = "not_open"  # the breaker's reason is not active, or its state is unknown
    BUSY = "busy"  # another prober is probing
    WAITING = "waiting"  # the breaker opened repeatedly: the sink is not probed for some time
    FAILED = "failed"  # the sink did not accept the write
    LIFTED = "lifted"  # the sink accepted the write, and consumption resumes
    SUPERSEDED = "superseded"  # the sink accepted the write, but that occurrence of the reason had already ended


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """The outcome of one tick, and in words why the sink is not available."""

    outcome: ProbeOutcome
    why: str = ""


class Backoff:
    """How long an open breaker stays open before the sink is probed.

        wait = 0 for the first opening, then probe_seconds * 2^(n - 2) for the n-th, at most probe_wait_seconds_max

    n counts the openings since something was stored. A small write may succeed while a batch fails (a disk that is
    nearly full): without the wait, the breaker would close and open every few seconds for ever. Each prober counts by
    two values that all of them read: the generation of the reasons, which grows by one with each opening and each
    closing, and the stored offsets.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._first_seconds = settings.probe_seconds
        self._seconds_max = settings.probe_wait_seconds_max
        self._clock = clock
        self._age = Age()
        self.open_seconds = 0.0  # for which the breaker was open at the last look
        self._consumed: int | None = None
        self._generation: int | None = None  # of the reasons when an event was last stored

    def look(self, state: ControlState) -> float:
        """Record the current state, open or not; returns the seconds still to wait."""
        held = _breaker_pause(state)
        consumption = None if state.rate is None else state.rate.consumption
        if consumption is not None:
            if self._consumed is not None and consumption.consumed > self._consumed:
                self._generation = None
            self._consumed = consumption.consumed
        if self._generation is None or state.generation < self._generation:  # lower: the store was flushed
            self._generation = state.generation - (held is not None)  # the current opening is the first one
        version, said = (None, 0.0) if held is None else (held.generation, state.time - held.since)
        self.open_seconds = age = self._age.of(version, said, now=self._clock.monotonic())
        if held is None:
            return 0.0
        openings = (held.generation - self._generation + 1) // 2
        if openings < 2:
            return 0.0
        wait = self._first_seconds * 2.0 ** min(openings - 2, _DOUBLINGS_MAX)
        return max(0.0, min(wait, self._seconds_max) - age)


def probe(
    store: ControlStore,
    leases: Leases,
    sink_probe: Callable[[], None],
    backoff: Backoff,
    *,
    settings: Settings,
    actor: str,
    troubles: Troubles,
) -> ProbeReport:
    """Probe the sink once, if the breaker is open and no other prober is probing.

    `sink_probe` does a small real write and raises SinkUnavailableError. While the lease is held, the breaker is
    half-open; the lease expires if this process dies. A sink that answers and refuses is reported to `troubles`: the
    control loop does not ask the sink while the breaker is open. A standby counts only after STANDBY_SECONDS_MIN.
    Raises StoreUnavailableError.
    """
    state = store.state()
    wait_seconds = backoff.look(state)
    if _breaker_pause(state) is None:
        return ProbeReport(ProbeOutcome.NOT_OPEN)
    if wait_seconds > 0:
        _repeat(troubles)
        return ProbeReport(ProbeOutcome.WAITING, f"{wait_seconds:.0f} s more: the last batches failed again and again")
    # Connecting, one call, and the same again for other waits of a write.
    lease_seconds = 2 * (settings.sink_connect_seconds_max + settings.sink_call_seconds_max)
    token = leases.take(LEASE_PROBE, seconds=lease_seconds)
    if token is None:
        return ProbeReport(ProbeOutcome.BUSY)
    try:
        held = _breaker_pause(store.state())  # again: another prober may have lifted it just before the lease was free
        if held is None:
            return ProbeReport(ProbeOutcome.NOT_OPEN)
        try:
            sink_probe()
        except RecoverableError as error:
            is_refused = isinstance(error, SinkMisconfiguredError)
            if isinstance(error, SinkStandbyError):
                is_refused = backoff.open_seconds >= STANDBY_SECONDS_MIN
            troubles.report(_REPORTER, [Trouble(AlarmCode.DATABASE_REFUSED, in_brief(error))] if is_refused else [])
            return ProbeReport(ProbeOutcome.FAILED, str(error))
        troubles.report(_REPORTER, [])
        why = f"a write to {settings.sink_name} succeeded"
        lifted = store.resume(PauseReason.BREAKER, generation=held.generation, actor=actor, why=why)
        return ProbeReport(ProbeOutcome.LIFTED if lifted else ProbeOutcome.SUPERSEDED)
    finally:
        _give_back(leases, token)


def _breaker_pause(state: ControlState) -> Pause | None:
    """The breaker's reason to pause, if it is known to be active."""
    return next((pause for pause in state.pauses or () if pause.reason is PauseReason.BREAKER), None)


def _repeat(troubles: Troubles) -> None:
    """Report again what the last probe found: a wait may be longer than a report is kept."""
    last = troubles.reported().get(_REPORTER)
    if last:
        troubles.report(_REPORTER, last)


def _give_back(leases: Leases, token: str) -> None:
    """End the lease; if that fails, it expires."""
    try:
        leases.give_back(LEASE_PROBE, token)
    except StoreUnavailableError:
        return
