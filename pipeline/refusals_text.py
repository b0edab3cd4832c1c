"""Who was refused in the last minutes: in words for operators, and as JSON for programs. Pure."""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from pipeline.account import account_named
from pipeline.flow.refusals import WINDOW_SECONDS, ByReason, Refusals, Refused, total
from pipeline.text import counted

ACCOUNTS_SHOWN: Final = 5  # in one line
MOST_SHOWN: Final = 2  # in the reason of health
_MOST_SHARE_MIN: Final = 0.05  # an account with less is one of many
_MINUTES: Final = WINDOW_SECONDS // 60

_Count = Annotated[int, Meta(ge=0)]


class RefusedCounts(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Refused requests, and their events."""

    requests: _Count
    events: _Count


class RefusedAccount(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What was refused to one account."""

    account: str
    requests: _Count
    events: _Count
    limited_by: dict[str, RefusedCounts]


class RefusedOther(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What was refused to all other accounts together."""

    requests: _Count
    events: _Count
    limited_by: dict[str, RefusedCounts]


class ThrottleDocument(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The answer. `/openapi.json` gets its schema from this type, and describes its fields."""

    seconds: _Count
    complete: bool
    requests: _Count
    events: _Count
    accounts: list[RefusedAccount]
    other: RefusedOther


def throttle_document(refused: Refusals, account: str | None = None, *, is_complete: bool = True) -> dict[str, Any]:
    """The answer for these refusals; `account` as a client names it, None: all accounts, the heaviest first."""
    found = refused.heaviest()
    if account is not None:
        wanted = account_named(account) or account
        found = [(name, by_reason) for name, by_reason in found if name == wanted]
    whole, other = refused.total, total(refused.other)
    document = ThrottleDocument(
        seconds=WINDOW_SECONDS,
        complete=is_complete,
        requests=whole.requests,
        events=whole.events,
        accounts=[
            RefusedAccount(name, total(by_reason).requests, total(by_reason).events, _counts(by_reason))
            for name, by_reason in found
        ],
        other=RefusedOther(other.requests, other.events, _counts(refused.other)),
    )
    fields: dict[str, Any] = msgspec.to_builtins(document)
    return fields


def _counts(by_reason: ByReason) -> dict[str, RefusedCounts]:
    return {reason: RefusedCounts(one.requests, one.events) for reason, one in by_reason.items()}


def refusals_text(refused: Refusals, account: str | None = None) -> str:
    """The refusals as lines of text; of one account, if there is one."""
    found = [one for one in refused.heaviest() if account in (None, one[0])]
    whole = refused.total
    if account is not None and not found:
        others = total(refused.other)
        words = f"Nothing was refused to {account} by itself in the last {_MINUTES} minutes."
        return words if not others.requests else f"{words} It may be among the other accounts: {_amount(others)}."
    if not whole.requests:
        return f"Nothing was refused in the last {_MINUTES} minutes."
    lines = [f"Refused in the last {_MINUTES} minutes: {_amount(whole)}."]
    lines += [f"{name:<24} {_amount(total(by_reason))} ({_reasons(by_reason)})" for name, by_reason in found]
    if account is None and refused.other:
        lines.append(f"{'other accounts':<24} {_amount(total(refused.other))} ({_reasons(refused.other)})")
    return "\n".join(lines)


def refusals_line(refused: Refusals) -> str:
    """The heaviest accounts in one line, for a screen with other values."""
    found = refused.heaviest()
    shown = [
        f"{name}: {counted(total(by_reason).events, 'event')} ({', '.join(by_reason)})"
        for name, by_reason in found[:ACCOUNTS_SHOWN]
    ]
    others = Refusals(dict(found[ACCOUNTS_SHOWN:]), refused.other).total
    if others.events:
        shown.append(f"others: {counted(others.events, 'event')}")
    return f"{', '.join(shown)} in {_MINUTES} minutes"


def heaviest_share(refused: Refusals) -> tuple[str, float] | None:
    """The account with the largest part of what was refused, and that part, 0 to 1; None if nothing was refused."""
    whole, found = refused.total.events, refused.heaviest()
    return None if not whole or not found else (found[0][0], total(found[0][1]).events / whole)


def most_refused(refused: Refusals) -> str:
    """The accounts with the largest parts of what was refused, in a few words; empty if nothing was refused."""
    whole = refused.total.events
    if not whole:
        return ""
    shares = [(name, total(by_reason).events / whole) for name, by_reason in refused.heaviest()]
    shown = [f"{name} ({100 * share:.0f} %)" for name, share in shares[:MOST_SHOWN] if share >= _MOST_SHARE_MIN]
    many = f"many, each less than {100 * _MOST_SHARE_MIN:.0f} %"
    return f"accounts refused most in {_MINUTES} minutes: {', '.join(shown) or many}"


def reason_share(refused: Refusals, reason: str) -> float:
    """The part of what was refused that has this reason, 0 to 1."""
    counts = [one.get(reason, Refused()).events for one in (*refused.accounts.values(), refused.other)]
    return sum(counts) / max(1, refused.total.events)


def _amount(refused: Refused) -> str:
    return f"{counted(refused.events, 'event')} of {counted(refused.requests, 'request')}"


def _reasons(by_reason: ByReason) -> str:
    return ", ".join(f"{reason} {one.events:,}" for reason, one in by_reason.items())
