"""The prober: makes the half-open call for the whole system, and lifts the breaker's reason to pause."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pipeline.errors import RecoverableError, StoreUnavailableError
from pipeline.names import LEASE_PROBE, PauseReason
from pipeline.ports.control import ControlStore, Leases, Pause
from pipeline.settings import Settings


class ProbeOutcome(StrEnum):
    """What became of one tick of the prober."""

    NOT_OPEN = "not_open"  # the breaker's reason does not hold, or it is unknown whether it does
    BUSY = "busy"  # another prober is asking
    FAILED = "failed"  # PostgreSQL did not take the write
    LIFTED = "lifted"  # it did, and consumption resumes
    SUPERSEDED = "superseded"  # it did, but that occurrence of the reason had ended meanwhile


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Outcome of one tick, and in words why PostgreSQL is not back."""

    outcome: ProbeOutcome
    why: str = ""


def probe(
    store: ControlStore, leases: Leases, sink_probe: Callable[[], None], *, settings: Settings, by: str
) -> ProbeReport:
    """Ask PostgreSQL once, if the breaker is open and nobody else is asking.

    `sink_probe` does a small real write and raises SinkUnavailableError. The lease is what makes the breaker read
    half-open meanwhile; it expires if this process dies. Raises StoreUnavailableError.
    """
    if _breaker_pause(store) is None:
        return ProbeReport(ProbeOutcome.NOT_OPEN)
    # Connecting, one call, and as much again for whatever else a write may wait for.
    lease_seconds = 2 * (settings.sink_connect_seconds_max + settings.sink_call_seconds_max)
    token = leases.take(LEASE_PROBE, seconds=lease_seconds)
    if token is None:
        return ProbeReport(ProbeOutcome.BUSY)
    try:
        held = _breaker_pause(store)  # again: another prober may have lifted it just before the lease was free
        if held is None:
            return ProbeReport(ProbeOutcome.NOT_OPEN)
        try:
            sink_probe()
        except RecoverableError as error:
            return ProbeReport(ProbeOutcome.FAILED, str(error))
        why = "PostgreSQL has taken a write"
        lifted = store.resume(PauseReason.BREAKER, generation=held.generation, by=by, why=why)
        return ProbeReport(ProbeOutcome.LIFTED if lifted else ProbeOutcome.SUPERSEDED)
    finally:
        _give_back(leases, token)


def _breaker_pause(store: ControlStore) -> Pause | None:
    """The breaker's reason to pause, where it is known to hold."""
    pauses = store.state().pauses or ()
    return next((pause for pause in pauses if pause.reason is PauseReason.BREAKER), None)


def _give_back(leases: Leases, token: str) -> None:
    """End the lease; where that fails it expires."""
    try:
        leases.give_back(LEASE_PROBE, token)
    except StoreUnavailableError:
        return
