"""Stores operators' changes in PostgreSQL as soon as it is back, if they were made while it was unavailable."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.event_text import pause_text
from pipeline.names import BreakerState, PauseReason
from pipeline.ports.control import Bands, ControlState, OperatorLimit, OperatorPause, Override, Pause
from pipeline.ports.operator_store import OperatorState
from tasks.context import WorkerContext

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Compared:
    """What PostgreSQL had, what the control store had after that, and the changes that PostgreSQL has now."""

    saved: OperatorState
    state: ControlState
    changed: Sequence[str] = ()


def persist_changes(context: WorkerContext) -> Compared:
    """Make PostgreSQL's copy of what operators set equal to the control store.

    Changes nothing while the reasons to pause are unknown (then they are restored from that copy) or the breaker is not
    closed. It reads PostgreSQL first and the control store after it, since a command changes the control store first:
    so a difference is a change that PostgreSQL has missed. Raises SinkUnavailableError, StoreUnavailableError.
    """
    saved = context.operators.load()
    kept = {(pause.name, pause.partition) for pause in saved.pauses}
    state = context.control_store.state()
    if state.pauses is None or state.breaker is not BreakerState.CLOSED:
        return Compared(saved, state)
    changed = _keep_pauses(context, kept, {(pause.name, pause.partition): pause for pause in state.pauses})
    changed += _keep_override(context, saved.override, state)
    changed += _keep_bands(context, saved.bands, state)
    changed += _keep_account_limits(context, saved.accounts, state)
    if changed:
        _logger.warning("PostgreSQL has these changes now: %s", ", ".join(changed), extra={"action": "kept"})
    return Compared(saved, state, changed)


_Place = tuple[str, int | None]  # a reason's name, and its partition


def _keep_pauses(context: WorkerContext, kept: set[_Place], holding: dict[_Place, Pause]) -> list[str]:
    ended, begun = kept - set(holding), set(holding) - kept - {(PauseReason.BREAKER.value, None)}
    for place in ended:
        context.operators.delete_pause(*place)
    for place in begun:
        pause = holding[place]
        asked = OperatorPause(pause.reason, pause.actor, pause.why, pause.since, pause.partition, pause.word)
        context.operators.save_pause(asked)
    return [
        *(f"pause ended ({pause_text(*place)})" for place in ended),
        *(f"pause ({pause_text(*place)})" for place in begun),
    ]


def _keep_override(context: WorkerContext, kept: Override | None, state: ControlState) -> list[str]:
    held = state.override
    if held is None:
        if kept is None or kept.until <= state.time:
            return []
        context.operators.set_override(None)
        return ["operator's rate ended"]
    # To the second: the two store times with different precision.
    if kept is not None and (kept.rate, round(kept.until)) == (held.rate, round(held.until)):
        return []
    context.operators.set_override(held)
    return ["operator's rate"]


def _keep_bands(context: WorkerContext, kept: Bands | None, state: ControlState) -> list[str]:
    held = state.bands
    if _figures(kept) == _figures(held):
        return []
    if held is None:
        context.operators.set_bands(None)
        return ["bands ended"]
    context.operators.set_bands(held)
    return ["bands"]


def _figures(bands: Bands | None) -> tuple[float, ...] | None:
    return None if bands is None else (bands.rate_max, bands.rate_min, bands.lag_degraded, bands.lag_critical)


def _keep_account_limits(context: WorkerContext, kept: Iterable[OperatorLimit], state: ControlState) -> list[str]:
    held = state.accounts
    if held is None:  # unknown: they are restored from PostgreSQL
        return []
    known = {one.account: (one.rate, one.weight) for one in kept}
    ended = [account for account in known if account not in held]
    begun = [one for one in held.values() if known.get(one.account) != (one.rate, one.weight)]
    for account in ended:
        context.operators.delete_account_limit(account)
    for one in begun:
        context.operators.save_account_limit(one)
    return [
        *(f"limit of account {account} ended" for account in ended),
        *(f"limit of account {one.account}" for one in begun),
    ]
