"""The commands for API keys, with the text of each answer; for remote commands and the command line.

PostgreSQL has the keys. A key is made there first, and revoked in the mirror first: so a key that was made survives,
and a key that was revoked is refused at once, also while PostgreSQL is unavailable.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.account import KEY_NAME, account_of_key
from pipeline.errors import RecoverableError
from pipeline.event_text import day_time
from pipeline.keys import DIGEST, KEY_ID, ApiKey
from pipeline.names import ControlEventKind, Level, ProtocolName
from pipeline.ports.control import OperatorLimit, account_limits
from pipeline.text import on_one_line
from tasks.commands import CommandError, limit_text_of, set_account_limit
from tasks.context import WorkerContext
from tasks.sync_keys import sync_keys

_logger = logging.getLogger(__name__)

_DAY_SECONDS = 86_400.0
_DAYS_MAX = 36_500.0


def create(
    context: WorkerContext,
    actor: str,
    name: str,
    *,
    key_id: str,
    digest: str,
    protocols: Sequence[str] = (),
    days: float | None = None,
    rate: float | None = None,
    level: str | None = None,
    why: str,
) -> str:
    """Store a key, of which only the id and the digest are known here. Raises SinkUnavailableError if it can't."""
    if not KEY_NAME.fullmatch(name):
        raise CommandError(f"{name!r} is no name of a key: 1 to 63 letters, digits, dots, hyphens and underscores")
    if not (KEY_ID.fullmatch(key_id) and DIGEST.fullmatch(digest)):
        raise CommandError(
            "the key is missing: use `celery -A tasks.app control keys_create` or `python -m tasks.keys`"
        )
    known = {one.value for one in ProtocolName}
    unknown = [one for one in protocols if one not in known]
    if unknown:
        raise CommandError(f"{', '.join(unknown)}: the protocols are {', '.join(sorted(known))}")
    levels = [one.label for one in Level]
    if level is not None and level not in levels:
        raise CommandError(f"{level!r} is no level: {', '.join(levels)}")
    if days is not None and not 0 < days <= _DAYS_MAX:
        raise CommandError(f"the time is {days:g} days; it takes more than 0, up to {_DAYS_MAX:g}")
    count = len(context.operators.load_keys().keys)
    if count >= context.settings.api_keys_max:
        raise CommandError(f"there are {count:,} API keys already (API_KEYS_MAX): revoke some first")
    now = context.clock.now()
    expires = None if days is None else now + days * _DAY_SECONDS
    key = ApiKey(key_id, name, digest, tuple(sorted(set(protocols))), expires, actor, why, now, level)
    # The limit first: if it fails, there is no key that nobody has seen.
    limit = "" if rate is None else f" {set_account_limit(context, actor, key.account, rate=rate, why=why)}"
    context.operators.save_key(key)
    words = f"API key {key_id} was made for {name}, by {actor}: {why}. {_described(key)}.{limit}"
    if level is not None and not context.settings.admission_levels:
        words += " ADMISSION_LEVELS is off: the level has no effect."
    words += _copy(context)
    _record(context, ControlEventKind.KEY_MADE, actor, why, {"id": key_id, "name": name})
    return words


def revoke(context: WorkerContext, actor: str, name: str, why: str) -> str:
    """Revoke a key by its id, or all keys of a name. Ingest refuses them at once."""
    problem: RecoverableError | None = None
    try:
        keys: Sequence[ApiKey] = context.operators.load_keys().keys
    except RecoverableError as error:
        problem = error
        try:
            mirrored = context.keys.load()
        except RecoverableError as other:
            raise CommandError(f"neither PostgreSQL nor Redis has the keys now: {error}; {other}") from error
        keys = () if mirrored is None else mirrored.keys
    found = [key for key in keys if name in (key.id, key.name)]
    if not found:
        if problem is not None:
            raise problem
        raise CommandError(f"no API key has the id or the name {name!r}")
    ids = [key.id for key in found]
    try:
        is_mirrored = context.keys.revoke(ids)
    except RecoverableError as error:
        is_mirrored = False
        _logger.warning("revoked in PostgreSQL only: %s", error, extra={"action": "keys_not_mirrored"})
    is_kept = problem is None
    if is_kept:
        try:
            context.operators.delete_keys(ids)
        except RecoverableError as error:
            is_kept = False
            _logger.warning("revoked in the mirror only: %s", error, extra={"action": "command_not_kept"})
    if not (is_mirrored or is_kept):
        raise CommandError("neither PostgreSQL nor Redis could revoke them: nothing was revoked, try it again")
    names = ", ".join(sorted({key.name for key in found}))
    words = f"API keys revoked by {actor}: {', '.join(ids)} of {names}: {why}."
    if not is_kept:
        words += (
            " PostgreSQL could not delete them. Sluice tries again until it can; a Redis flush before that would "
            "make them valid again."
        )
    else:
        problem_of_copy = _copy(context)
        if not is_mirrored:
            words += problem_of_copy
    _record(context, ControlEventKind.KEY_REVOKED, actor, why, {"ids": " ".join(ids), "name": names})
    return words


def listed(context: WorkerContext) -> tuple[str, list[dict[str, Any]]]:
    """All keys, in words and for programs; never the keys themselves."""
    stored = sorted(context.operators.load_keys().keys, key=lambda key: (key.name, key.since))
    keys = [replace(key, actor=on_one_line(key.actor), why=on_one_line(key.why)) for key in stored]
    asked, now = _asked_limits(context), context.clock.now()
    limits = account_limits(context.settings, asked)

    def limit_of(account: str) -> str:
        return "limit unknown" if asked is None and account not in limits else limit_text_of(limits.get(account))

    lines = [
        f"{key.id}  {key.name:<20} {_described(key, now)}; {limit_of(key.account)}; "
        f"made by {key.actor} at {day_time(key.since)}: {key.why}"
        for key in keys
    ]
    documents = [
        {
            "id": key.id,
            "name": key.name,
            "account": account_of_key(key.name),
            "protocols": list(key.protocols),
            "level": key.level,
            "expires": key.expires,
            "rate": None if key.account not in limits else limits[key.account].rate,
            "by": key.actor,
            "why": key.why,
            "since": key.since,
        }
        for key in keys
    ]
    if keys and asked is None:
        lines.append("What operators set for accounts is unknown: Redis was flushed, or can't be read.")
    return "\n".join(lines) or "There are no API keys.", documents


def _asked_limits(context: WorkerContext) -> Mapping[str, OperatorLimit] | None:
    """What operators set for accounts; None: unknown."""
    try:
        return context.control_store.state().accounts
    except RecoverableError as error:
        _logger.warning("limits are not listed: %s", error, extra={"action": "limits_unknown"})
        return None


def _described(key: ApiKey, now: float | None = None) -> str:
    protocols = f"For {', '.join(key.protocols)}" if key.protocols else "For all protocols"
    level = "" if key.level is None else f" up to the level {key.level},"
    if key.expires is None:
        return f"{protocols},{level} without an end"
    has_ended = now is not None and key.expires <= now
    return f"{protocols},{level} {'EXPIRED at' if has_ended else 'until'} {day_time(key.expires)}"


def _copy(context: WorkerContext) -> str:
    """Copy the keys to the mirror; returns what to say if that failed."""
    try:
        sync_keys(context)
    except RecoverableError as error:
        _logger.warning("the mirror of the API keys is old: %s", error, extra={"action": "keys_not_mirrored"})
        return " Ingest processes know it once PostgreSQL and Redis both answer."
    return ""


def _record(context: WorkerContext, kind: ControlEventKind, actor: str, why: str, data: dict[str, str]) -> None:
    """Record the event, which wakes all ingest processes."""
    try:
        context.events.record(kind, actor=actor, why=why, data=data)
    except RecoverableError as error:
        _logger.warning("no control event: %s", error, extra={"action": "keys_not_recorded"})
