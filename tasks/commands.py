"""The changes that operators may make, with the text of each answer; for remote commands and Celery tasks.

Each command first changes the control store, which takes effect at once. Then it stores the change in PostgreSQL, so
that it survives a Redis flush. Raises CommandError for invalid arguments, and StoreUnavailableError if nothing was
changed.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pipeline.account import account_named
from pipeline.errors import PermanentError, RecoverableError
from pipeline.event_text import clock_time, day_time, limit_text, pause_text, rate_text
from pipeline.flow.rate import capped_by_breaker
from pipeline.health.judge import duration
from pipeline.names import BreakerState, ControlEventKind, PauseReason
from pipeline.policies import bands
from pipeline.policies.bands import BandPolicy
from pipeline.ports.control import (
    AccountLimit,
    Bands,
    ControlState,
    OperatorLimit,
    OperatorPause,
    account_limits,
    paused,
)
from pipeline.settings import ACCOUNT_FIGURE_MIN, ACCOUNT_RATE_MAX, ACCOUNT_WEIGHT_MAX, Settings
from pipeline.text import counted
from tasks.context import WorkerContext
from tasks.pausing import keep_pause, pause_until_resumed
from tasks.stopped import stops_again

_logger = logging.getLogger(__name__)

_KEPT = "This survives a Redis flush."
_NOT_KEPT = "PostgreSQL could not store this. Sluice tries again until it can; a Redis flush before that would undo it."
_NOT_ENDED = (
    "PostgreSQL could not store the end. Sluice tries again until it can; a Redis flush before that would undo it."
)

_DRY_RUN = "Dry run, nothing was changed."


class CommandError(PermanentError):
    """A command has invalid arguments; the message has the valid ones."""


def pause(context: WorkerContext, actor: str, why: str) -> str:
    """Pause consumption until an operator resumes it."""
    held = [one for one in context.control_store.state().pauses or () if one.reason is PauseReason.OPERATOR]
    if held:
        # Requested again, perhaps because PostgreSQL could not store it the first time.
        first = held[0]
        kept = keep_pause(context, OperatorPause(first.reason, first.actor, first.why, first.since))
        return (
            f"Consumption was paused already, since {clock_time(first.since)} by {first.actor}: {first.why}. "
            f"{_KEPT if kept else _NOT_KEPT}"
        )
    kept = pause_until_resumed(context, PauseReason.OPERATOR, actor=actor, why=why)
    return (
        f"Consumption is paused since {clock_time(context.clock.now())} by {actor}: {why}. Drains under way end within "
        f"seconds; events are still accepted, and wait in the log. {_KEPT if kept else _NOT_KEPT}"
    )


def resume(context: WorkerContext, actor: str, why: str) -> str:
    """Lift all pauses that only an operator may lift. The prober lifts the breaker's pause."""
    held = [pause for pause in context.control_store.state().pauses or () if pause.reason is not PauseReason.BREAKER]
    for reason in PauseReason:
        if reason is not PauseReason.BREAKER:  # even one that is not known to hold: it may have started just now
            context.control_store.resume(reason, generation=None, actor=actor, why=why)
    lifted = [pause_text(pause.name, pause.partition) for pause in held]
    kept = _kept(lambda: _forget_pauses(context))
    left = context.control_store.state().pauses or ()
    words = f"Lifted by {actor}: {', '.join(lifted)}." if lifted else "No operator had paused consumption."
    if paused(left):
        sink = context.settings.sink_name
        words += f" Consumption stays paused while the breaker is open, until a write to {sink} succeeds."
    elif lifted:
        words += " Drains begin within a second."
        words += stops_again(context, held)
    if not kept:
        words += f" {_NOT_ENDED}"
    return words


def _forget_pauses(context: WorkerContext) -> None:
    for pause in context.operators.load().pauses:
        context.operators.delete_pause(pause.name, pause.partition)


def set_rate_limit(
    context: WorkerContext, actor: str, rate: float, seconds: float | None, why: str, *, dry_run: bool = False
) -> str:
    """Set a fixed rate for a time, whatever the lag is. A dry run changes nothing."""
    settings = context.settings
    seconds = settings.override_seconds if seconds is None else seconds
    _check("the rate", rate, 1, *_rate_most(settings))
    _check("the time", seconds, 1, settings.override_seconds_max, "s (OVERRIDE_SECONDS_MAX)")
    if dry_run:
        return _rate_limit_dry_run(context.control_store.state(), rate, seconds)
    override = context.control_store.set_override(
        rate, until=context.control_store.state().time + seconds, actor=actor, why=why
    )
    kept = _kept(lambda: context.operators.set_override(override))
    state = context.control_store.state()
    words = (
        f"At most {rate_text(rate)} are admitted until {clock_time(override.until)} ({duration(seconds)}), set by "
        f"{actor}: {why}. Then the rate policy decides again."
    )
    if state.rate is not None and state.rate.rate < rate:
        words += f" While the breaker is open it is {rate_text(state.rate.rate)}."
    return f"{words} {_KEPT if kept else _NOT_KEPT}"


def _rate_limit_dry_run(state: ControlState, rate: float, seconds: float) -> str:
    is_open = state.breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN)
    effective = capped_by_breaker(rate, state.floor_rate, is_open=is_open)
    words = (
        f"{_DRY_RUN} At most {rate_text(effective)} would be admitted until {clock_time(state.time + seconds)} "
        f"({duration(seconds)}){_rate_now(state)}."
    )
    return words + (" The breaker is open, and limits the rate." if effective < rate else "")


def _rate_now(state: ControlState) -> str:
    return "" if state.rate is None else f"; now it is {rate_text(state.rate.rate)}"


def clear_rate_limit(context: WorkerContext, actor: str, why: str) -> str:
    """End a rate that an operator set."""
    held = context.control_store.clear_override(actor=actor, why=why)
    kept = _kept(lambda: context.operators.set_override(None))
    rate = context.control_store.state().rate
    now = "" if rate is None else f" At most {rate_text(rate.rate)} are admitted now."
    words = f"The operator's rate was ended by {actor}.{now}" if held else f"No operator had set a rate.{now}"
    return words if kept else f"{words} {_NOT_ENDED}"


def set_bands(
    context: WorkerContext,
    actor: str,
    *,
    degraded: int,
    critical: int,
    rate_max: float | None,
    rate_min: float | None,
    why: str,
    dry_run: bool = False,
) -> str:
    """Set other thresholds and rates for the policy, from the next tick on. A dry run changes nothing."""
    _check_takes_bands(context)
    settings = context.settings
    asked = Bands(
        rate_max=settings.rate_max if rate_max is None else rate_max,
        rate_min=settings.rate_min if rate_min is None else rate_min,
        lag_degraded=degraded,
        lag_critical=critical,
        actor=actor,
        why=why,
        since=context.clock.now(),
    )
    _check("the highest rate", asked.rate_max, 1, *_rate_most(settings))
    _check("the lowest rate", asked.rate_min, 1, asked.rate_max, "events/s, the highest one")
    _check("the lower threshold", degraded, 1, 1_000_000_000, "events")
    if degraded >= critical:
        raise CommandError(f"the lower threshold, {degraded:,} events, is not below the upper one, {critical:,}")
    if dry_run:
        return _bands_dry_run(context.control_store.state(), BandPolicy.make(settings, asked))
    context.control_store.set_bands(asked)
    kept = _kept(lambda: context.operators.set_bands(asked))
    return (
        f"From the next tick on (within {settings.regulate_seconds:g} s): {rate_text(asked.rate_max)} below a lag of "
        f"{degraded:,}, falling to {rate_text(asked.rate_min)} at {critical:,}; set by {actor}: {why}. "
        f"{_KEPT if kept else _NOT_KEPT}"
    )


def _bands_dry_run(state: ControlState, policy: BandPolicy) -> str:
    words = f"{_DRY_RUN} It would be {policy.describe().sentence.partition(';')[0]}."
    if state.rate is None or state.rate.lag is None:
        return f"{words} The lag is unknown."
    rate, mode = policy.rate_of(state.rate.lag)
    lag = counted(state.rate.lag, "event")
    return f"{words} At the present lag of {lag} that is {rate_text(rate)} ({mode.value}){_rate_now(state)}."


def reset_bands(context: WorkerContext, actor: str, why: str) -> str:
    """Return to the bands of the settings."""
    _check_takes_bands(context)
    held = context.control_store.clear_bands(actor=actor, why=why)
    kept = _kept(lambda: context.operators.set_bands(None))
    settings = context.settings
    words = (
        f"{'The bands of the settings hold again' if held else 'The bands are those of the settings'}: "
        f"{rate_text(settings.rate_max)} below a lag of {settings.lag_degraded:,}, falling to "
        f"{rate_text(settings.rate_min)} at {settings.lag_critical:,}."
    )
    return words if kept else f"{words} {_NOT_ENDED}"


def _check_takes_bands(context: WorkerContext) -> None:
    """Bands must not replace another policy: they would change nothing, and nobody would notice."""
    policy = context.settings.rate_policy
    if policy != bands.NAME:
        raise CommandError(
            f"the rate policy is {policy} (RATE_POLICY), and has no bands: nothing was changed. For a fixed rate: "
            "celery -A tasks.app control set_rate_limit <events/s> [seconds] [reason …]"
        )


def set_account_limit(
    context: WorkerContext, actor: str, name: str, *, rate: float | None, weight: float | None = None, why: str
) -> str:
    """Set what holds for an account: its rate (None: no limit) and its weight (None: that of the settings)."""
    account, settings = account_of_name(name), context.settings
    if rate is not None:
        _check("the rate", rate, ACCOUNT_FIGURE_MIN, ACCOUNT_RATE_MAX, "events/s")
    if weight is not None:
        _check("the weight", weight, ACCOUNT_FIGURE_MIN, ACCOUNT_WEIGHT_MAX, "times the share of others")
    asked = OperatorLimit(account, rate, weight, actor, why, context.clock.now())
    if not context.control_store.set_account_limit(asked):
        most = settings.account_limits_max
        raise CommandError(f"{most:,} accounts have a limit by operators already (ACCOUNT_LIMITS_MAX): clear one first")
    kept = _kept(lambda: context.operators.save_account_limit(asked))
    words = f"Account {account}: {limit_text(rate, weight)}, set by {actor}: {why}."
    if weight is not None and not settings.admission_shares:
        words += " The weight has no effect while ADMISSION_SHARES is off."
    return f"{words} {_KEPT if kept else _NOT_KEPT}"


def clear_account_limit(context: WorkerContext, actor: str, name: str, why: str) -> str:
    """End what an operator set for an account: the settings apply again."""
    account = account_of_name(name)
    held = context.control_store.clear_account_limit(account, actor=actor, why=why)
    kept = _kept(lambda: context.operators.delete_account_limit(account))
    now = limit_text_of(account_limits(context.settings).get(account))
    before = "The settings apply again" if held else "No operator's limit was in force: the settings apply"
    words = f"{before} for account {account}: {now}."
    return words if kept else f"{words} {_NOT_ENDED}"


def limit_text_of(limit: AccountLimit | None) -> str:
    """What holds for an account, in words."""
    return "no limit" if limit is None else limit_text(limit.rate, None if limit.weight == 1 else limit.weight)


def account_of_name(name: str) -> str:
    """The account that an operator means. Raises CommandError."""
    account = account_named(name)
    if account is None:
        raise CommandError(
            f"{name!r} is no account: it is key:NAME for the API keys of that name, cert:NAME for the clients with a "
            "certificate of that name, an IPv4 address, or an IPv6 address or its /64 network"
        )
    return account


def show_account_limits(context: WorkerContext) -> tuple[str, list[dict[str, Any]]]:
    """The accounts with a limit or a weight, in words and for programs."""
    asked = context.control_store.state().accounts
    limits = account_limits(context.settings, asked)
    lines, documents = [], []
    for account, limit in sorted(limits.items()):
        one = (asked or {}).get(account)
        source = "settings" if one is None else f"set by {one.actor} at {day_time(one.since)}: {one.why}"
        lines.append(f"{account:<24} {limit_text_of(limit)}, {source}")
        documents.append(
            {
                "account": account,
                "rate": limit.rate,
                "weight": limit.weight,
                "by": None if one is None else one.actor,
                "why": None if one is None else one.why,
                "since": None if one is None else one.since,
            }
        )
    if asked is None:
        lines.append("What operators set is unknown: the control store was flushed, and is not restored yet.")
    return "\n".join(lines) or "No account has a limit or a weight.", documents


def replay(context: WorkerContext, actor: str, limit: int, *, dry_run: bool) -> str:
    """Retry to store dead letters, the longest untried first. A dry run changes nothing, and records no event."""
    _check("the limit", limit, 1, 100_000, "dead letters")
    result = context.dead_letters.replay(limit=limit, dry_run=dry_run)
    if not any(asdict(result).values()):
        return "There are no dead letters to replay."
    words = (
        f"{'Dry run, nothing was changed. The result would be: ' if dry_run else ''}{result.stored:,} stored, "
        f"{result.repeated:,} stored before; {result.refused:,} refused again and {result.conflicting:,} whose id is "
        "stored with other content stay."
    )
    if result.conflicting:
        words += (
            " A replay overwrites nothing: of a conflict, look at the stored event and at the dead letter "
            "(docs/database.md), and delete the one that is wrong."
        )
    if not dry_run:
        data = {name: str(count) for name, count in asdict(result).items()}
        try:
            context.events.record(ControlEventKind.DEAD_LETTERS_REPLAYED, actor=actor, why=words, data=data)
        except RecoverableError as error:
            _logger.warning("the replay is in no control event: %s", error, extra={"action": "replay_not_recorded"})
            words += " The control store (Redis) could not record it: the control events do not show this replay."
    return words


def _rate_most(settings: Settings) -> tuple[float, str]:
    """The highest rate that an operator can set, and its unit: no less than the settings' own."""
    if settings.rate_max > settings.override_rate_max:
        return settings.rate_max, "events/s (RATE_MAX)"
    return settings.override_rate_max, "events/s (OVERRIDE_RATE_MAX)"


def _check(what: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise CommandError(f"{what} is {value:g}; it takes {low:g} to {high:g} {unit}")


def _kept(change: Callable[[], object]) -> bool:
    """Whether PostgreSQL stored a change."""
    try:
        change()
    except RecoverableError as error:
        _logger.warning("not kept in PostgreSQL: %s", error, extra={"action": "command_not_kept"})
        return False
    return True
