"""Control events in words: the same text on the live page, in the terminal and from Celery. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from pipeline.names import ControlEventKind, Mode, PauseReason
from pipeline.ports.control import ControlEvent
from pipeline.text import counted

# For events of versions that recorded no reason of the policy.
_LAG: Final[dict[str, str]] = {
    Mode.NORMAL: "lag is low",
    Mode.DEGRADED: "lag is degraded",
    Mode.CRITICAL: "lag is critical",
    Mode.UNKNOWN: "lag is unknown",
}
_LOGS: Final = {"kafka": "Kafka", "redis": "Redis Streams"}
_DECIDED_BY: Final = {"breaker": "breaker is open", "override": "set by an operator"}


def clock_time(at: float) -> str:
    """A time of day in UTC, in the format of the log lines."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S UTC")


def day_time(at: float) -> str:
    """A date and a time of day in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def sentence(text: str) -> str:
    """The text as a sentence: with a capital first letter."""
    return text[:1].upper() + text[1:]


def rate_text(rate: float) -> str:
    """A rate with as many digits as it needs."""
    if rate >= 10 or rate == int(rate):
        return f"{rate:,.0f}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2g}/s"


def limit_text(rate: float | None, weight: float | None) -> str:
    """What is set for an account; without a weight, that of the settings holds."""
    words = "no limit" if rate is None else f"at most {rate:,.10g}/s"
    return words if weight is None else f"{words}, weight {weight:g}"


def reasons_words(reasons: str) -> str:
    """Reasons to pause for people; the input has spaces between names, `reason:partition` for one partition."""
    return ", ".join(_reason_words(*reason.partition(":")[::2]) for reason in reasons.split())


def pause_text(reason: str, partition: int | None) -> str:
    """One reason to pause, and the partition that it applies to, for people."""
    return _reason_words(reason, "" if partition is None else str(partition))


def _reason_words(reason: str, partition: str) -> str:
    words = reason.replace("_", " ")
    return f"{words} of partition {partition}" if partition else words


def pause_advice(reason: PauseReason, partition: int | None) -> str:
    """Where to start with a pause, and how it ends, for people. The breaker's pause ends by itself."""
    celery = "`celery -A tasks.app"
    ends = f"it ends only by {celery} control resume_consumption`"
    match reason:
        case PauseReason.OPERATOR:
            return f"whether the pause is still wanted: ask the operator who paused; {ends}"
        case PauseReason.POISON if partition is not None:
            return (
                f"{celery} inspect poison {partition}` shows the records and errors. Often it is the schema: correct "
                f"it, then {celery} control resume_consumption`; or make them dead letters: {celery} control "
                f"accept_poison {partition}`"
            )
        case PauseReason.LOG_GAP if partition is not None:
            return (
                f"{celery} inspect gap {partition}` shows which offsets the event log has lost; "
                f"{celery} control skip_gap {partition} FROM TO` goes on"
            )
        case PauseReason.POISON:
            return f"the newest dead letters and their errors: often it is the schema, not the data; {ends}"
        case PauseReason.LOG_GAP:
            return f"the event log: it no longer has the next events to store, or is another one than before; {ends}"
        case _:
            return f"the processes of a newer version of Sluice: one of them gave this reason; {ends}"


def event_text(event: ControlEvent) -> str:
    """What happened, with its figures, but without actor and reason. Unreadable events show only their kind."""
    try:
        words = _words(event.kind, event.data, has_moved=event.count > 1 and "event_ratio" in event.data)
    except (KeyError, ValueError, OverflowError, OSError):  # the last two: no time that can be shown
        words = event.kind.value.replace("_", " ").capitalize()
    if event.first_at is None:
        return words
    return f"{words}, {event.count:,} times since {clock_time(event.first_at)}"


def _words(kind: ControlEventKind, data: dict[str, str], *, has_moved: bool) -> str:  # noqa: PLR0911, PLR0912 - a table
    match kind:
        case ControlEventKind.RATE_CHANGED:
            return _rate_changed(data, has_moved=has_moved)
        case ControlEventKind.BREAKER_OPENED:
            return "Breaker opened"
        case ControlEventKind.BREAKER_CLOSED:
            return "Breaker closed"
        case ControlEventKind.PAUSED:
            what = f"Partition {data['partition']}" if "partition" in data else "Consumption"
            return f"{what} paused ({reasons_words(data['reason'])})"
        case ControlEventKind.RESUMED:
            return _resumed(data)
        case ControlEventKind.STATE_RESTORED:
            restored = reasons_words(data["reasons"])
            return f"Control state restored: {restored}" if restored else "Control state begun"
        case ControlEventKind.OVERRIDE_SET:
            return f"Override: {rate_text(float(data['rate']))} until {clock_time(float(data['until']))}"
        case ControlEventKind.OVERRIDE_ENDED:
            return f"Override ended: it was {rate_text(float(data['rate']))}"
        case ControlEventKind.BANDS_SET:
            return _bands_set(data)
        case ControlEventKind.KEY_MADE:
            return f"API key {data['id']} made for {data['name']}"
        case ControlEventKind.KEY_REVOKED:
            return f"API keys revoked: {data['ids']} of {data['name']}"
        case ControlEventKind.ACCOUNT_LIMIT_SET:
            return f"Account {data['account']}: {limit_text(_figure(data['rate']), _figure(data['weight']))}"
        case ControlEventKind.ACCOUNT_LIMIT_ENDED:
            return f"Account {data['account']}: the settings apply again"
        case ControlEventKind.DEAD_LETTERS_REPLAYED:
            return "Dead letters replayed"
        case ControlEventKind.DRAINER_TERMINATED:
            return f"Stalled drain of partition {data['partition']} ended"
        case ControlEventKind.BEGAN_LATE:
            committed = int(data.get("committed", 0))
            if committed > int(data["end"]):
                return (
                    f"Partition {data['partition']} is stored again from offset {data['end']}: drains had stored it up "
                    f"to {committed}, and this database had nothing"
                )
            return (
                f"Partition {data['partition']} begins at offset {data['end']}: nothing below is stored from this log"
            )
        case ControlEventKind.LATE_BEGIN_ACCEPTED:
            return f"Late begin of {counted(len(data['ends'].split()), 'partition')} accepted"
        case ControlEventKind.LOG_TAIL_LOST:
            return f"The event log lost up to {int(data['events']):,} accepted events"
        case ControlEventKind.GAP_SKIPPED:
            return f"Hole of partition {data['partition']} skipped: {data['first']} to {data['end']}"
        case ControlEventKind.POISON_ACCEPTED:
            return f"Poisoned batch of partition {data['partition']} accepted: {data['dead_lettered']} dead letters"
        case ControlEventKind.UNKNOWN:
            return f"{data['kind'].replace('_', ' ').capitalize()} (of another version)"


def _resumed(data: dict[str, str]) -> str:
    lifted, left = _reason_words(data["reason"], data.get("partition", "")), reasons_words(data.get("left", ""))
    return f"Pause lifted ({lifted}), still paused ({left})" if left else f"Consumption resumed ({lifted})"


def _rate_changed(data: dict[str, str], *, has_moved: bool) -> str:
    """`has_moved`: several changes, after which the rate may be the first one again."""
    rate, reason = float(data["rate"]), data.get("policy_reason") or _LAG[Mode(data["mode"])]
    if data["previous"] and float(data["previous"]) == rate and not has_moved:
        return f"{reason[0].upper()}{reason[1:]}, rate stays {rate_text(rate)}"
    before = f"{rate_text(float(data['previous'])).removesuffix('/s')} → " if data["previous"] else ""
    return f"Rate {before}{rate_text(rate)} ({_DECIDED_BY.get(data.get('decided_by', ''), reason)})"


def began(events: Sequence[ControlEvent]) -> float:
    """The time of the first of these events, those that the store has folded included."""
    return min(event.at if event.first_at is None else event.first_at for event in events)


def rate_steps_text(events: Sequence[ControlEvent]) -> str:
    """Several changes of the rate by its policy, oldest first, in one line: from the first rate to the newest.

    A reason that this version can't read is left out. Raises KeyError, ValueError or OverflowError if an event has no
    finite rate.
    """
    newest = events[-1].data
    before = [float(event.data["previous"]) for event in events if event.data.get("previous")]
    rates = [*before, *(float(event.data["rate"]) for event in events)]
    steps = sum(event.count for event in events)
    moved = f"{rate_text(rates[0]).removesuffix('/s')} → {rate_text(float(newest['rate']))}"
    reason = newest.get("policy_reason") or _LAG.get(newest.get("mode", ""), "")
    between = f"between {rate_text(min(rates))} and {rate_text(max(rates))}"
    words = f"Rate {moved} in {steps:,} steps since {clock_time(began(events))}, {between}"
    return f"{words} ({reason})" if reason else words


def _figure(text: str) -> float | None:
    return float(text) if text else None


def _bands_set(data: dict[str, str]) -> str:
    if data.get("bands") == "settings":
        return "Thresholds of the settings hold again"
    most, least = rate_text(float(data["rate_max"])), rate_text(float(data["rate_min"]))
    return (
        f"Thresholds set: {most} below a lag of {int(data['lag_degraded']):,}, "
        f"{least} above {int(data['lag_critical']):,}"
    )


def log_text(event_log: str, copies: int) -> str:
    """The event log, and on how many servers an accepted event is in it."""
    return f"{_LOGS.get(event_log, event_log)}, {'single copy' if copies == 1 else f'{copies} copies'}"
