"""Limits and rules that all adapters of the control store share."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pipeline.flow.rate import capped_by_breaker
from pipeline.names import BreakerState, ControlEventKind, PauseReason, Severity
from pipeline.ports.control import Alarm, ControlEvent, OperatorLimit, Pause, PublishedRate, Trouble
from pipeline.ports.rate import PolicyRecord
from pipeline.text import on_one_line

_LINE_BREAKS: Final = re.compile(r"[ \t]*[\r\n]+[ \t]*")
BY_CHARS_MAX: Final = 200
WHY_CHARS_MAX: Final = 1000  # error texts of a database can be pages long
ALARMS_MAX: Final = 32  # of one tick: one for each partition fits, and all of them stay below 32 KB
ALARM_CHARS_MAX: Final = 500  # of each text of an alarm; it is one sentence
FOLD_SECONDS: Final = 600.0  # an event that repeats within this time is one entry with a count; see control_lib.lua
FOLD_ENTRIES: Final = 50  # entries searched for the earlier event: several rounds of events that repeat together
CALL_SECONDS_MAX: Final = 0.2  # a call takes 0.1 ms; a longer wait means that the server is unavailable
TROUBLE_SECONDS: Final = 30.0  # a process reports about once a second while it has a problem
TROUBLE_CHARS_MAX: Final = 300  # of one problem of a process
PROCESS_SECONDS_MAX: Final = 10.0  # an ingest process with no request to the bucket for this long is not counted


# Events that the system repeats while something is wrong, and the fields that make two of a kind the same. Actions of a
# person are never folded; so of the reasons to pause only the breaker's is. The same table is in control_lib.lua.
_FOLDED_BY: Final[dict[ControlEventKind, tuple[str, ...]]] = {
    ControlEventKind.RATE_CHANGED: ("previous", "rate", "mode", "decided_by"),
    ControlEventKind.BREAKER_OPENED: (),
    ControlEventKind.BREAKER_CLOSED: (),
    ControlEventKind.PAUSED: ("reason",),
    ControlEventKind.RESUMED: ("reason", "left"),
    ControlEventKind.STATE_RESTORED: ("reasons",),
    ControlEventKind.DRAINER_TERMINATED: ("partition",),
    ControlEventKind.BEGAN_LATE: ("partition", "end", "committed"),
}
# A policy whose rate moves at each tick has an event ratio. Its changes of one mode and cause are one event, from the
# first rate to the newest. An operator's rate is not the policy's.
_MOVES_FOLDED_BY: Final = ("event_ratio", "mode", "decided_by")


def _moves(data: dict[str, str]) -> bool:
    return "event_ratio" in data and data["decided_by"] != "override"


def repeated_event(
    events: Sequence[ControlEvent], kind: ControlEventKind, data: dict[str, str], now: float
) -> ControlEvent | None:
    """The earlier event that a new event of this kind repeats: the new one replaces it."""
    fields = _FOLDED_BY.get(kind)
    if fields is None or data.get("reason", "breaker") != "breaker":
        return None
    if _moves(data):
        fields = _MOVES_FOLDED_BY
    for event in reversed(events[-FOLD_ENTRIES:]):
        if now - event.at > FOLD_SECONDS:
            return None
        if event.kind is kind and all(event.data.get(field) == data.get(field) for field in fields):
            return event
    return None


def folded_data(earlier: ControlEvent, data: dict[str, str]) -> dict[str, str]:
    """The data of an event and of the earlier one that it repeats, together."""
    return data | {"previous": earlier.data["previous"]} if _moves(data) else data


def clean_text(value: str, chars_max: int) -> str:
    """`value` on one line, cut to a length, without characters that UTF-8 can't encode (error texts quote anything)."""
    line = on_one_line(_LINE_BREAKS.sub(" ", value[:chars_max].strip("\r\n")))
    return line.encode("utf-8", "replace").decode("utf-8")[:chars_max]


def bounded_alarms(alarms: Sequence[Alarm]) -> tuple[Alarm, ...]:
    """The worst ALARMS_MAX alarms, worst first, with texts of a bounded length."""
    worst_first = sorted(alarms, key=lambda alarm: alarm.severity is not Severity.CRITICAL)
    return tuple(
        Alarm(
            clean_text(alarm.code, ALARM_CHARS_MAX),
            alarm.severity,
            clean_text(alarm.what, ALARM_CHARS_MAX),
            clean_text(alarm.look_at, ALARM_CHARS_MAX),
            alarm.partition,
        )
        for alarm in worst_first[:ALARMS_MAX]
    )


def bounded_trouble(trouble: Trouble) -> Trouble:
    """The same problem with texts of a bounded length."""
    return Trouble(clean_text(trouble.code, TROUBLE_CHARS_MAX), clean_text(trouble.what, TROUBLE_CHARS_MAX))


def account_limit_data(asked: OperatorLimit) -> dict[str, str]:
    """The data of the control event about a limit."""
    figures = {"rate": asked.rate, "weight": asked.weight}
    return {"account": asked.account} | {
        name: "" if figure is None else repr(float(figure)) for name, figure in figures.items()
    }


def rate_event_why(lag: int | None, policy: PolicyRecord | None) -> str:
    """Why a rate changed, for its control event."""
    if policy is not None and policy.explanation.because:
        return policy.explanation.because
    return "lag unknown" if lag is None else f"lag {lag}"


def without_override(rate: PublishedRate, pauses: Sequence[Pause], floor_rate: float) -> PublishedRate:
    """The published rate after an override has ended: the policy's, or at most the lowest while the breaker is open."""
    is_open = any(pause.reason is PauseReason.BREAKER for pause in pauses)
    return replace(rate, rate=capped_by_breaker(rate.base_rate, floor_rate, is_open=is_open))


def breaker_state(pauses: Sequence[Pause], *, complete: bool, probing: bool) -> BreakerState:
    """The breaker's state by the reasons; if its reason is set, the state is known even if the set is incomplete."""
    if any(pause.reason is PauseReason.BREAKER for pause in pauses):
        return BreakerState.HALF_OPEN if probing else BreakerState.OPEN
    return BreakerState.CLOSED if complete else BreakerState.UNKNOWN
