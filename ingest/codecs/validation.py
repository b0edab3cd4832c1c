"""The rules of an event, for parsed JSON values. Each broken rule is reported with its field and reason."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from ingest.codecs.numbers import ChangedNumber
from ingest.errors import NAME_CHARS_MAX, PROBLEMS_MAX, InvalidEventsError, Problem
from pipeline.event import (
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_KEYS_MAX,
    CORRELATION_ID_CHARS_MAX,
    EVENT_ID_CHARS_MAX,
    MESSAGE_BYTES_MAX,
    SEVERITIES,
    SEVERITY_ALIASES,
    SOURCE_CHARS_MAX,
    TIMESTAMP_MS_MAX,
    TIMESTAMP_MS_MIN,
    Event,
    content_of,
)

_ITEMS_A_STEP: Final = 20
_CONTENT: Final = (
    "correlationId",
    "severity",
    "message",
    "source",
    "timestamp",
    "attributes",
)  # in the order of `content_of`


class HugeInteger:
    """An integer with more digits than 64 bits need: converting it would take quadratic time."""


class VastAttributes:
    """Attributes that are too large to check."""


HUGE: Final = HugeInteger()
VAST: Final = VastAttributes()
_KINDS: Final[dict[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    HugeInteger: "an integer",
    float: "a number",
    ChangedNumber: "a number",
    str: "a string",
    list: "an array",
}


def events_in_steps(items: list[Any]) -> Generator[None, None, list[Event]]:
    """Convert parsed values to events, some in each step. Raises InvalidEventsError with the first problems."""
    if not items:
        raise InvalidEventsError("there is no event in the body", [])
    problems: list[Problem] = []
    for index, item in enumerate(items):
        found = islice(_event_problems(item), PROBLEMS_MAX)
        problems.extend(Problem(index, field, reason) for field, reason in found)
        if len(problems) >= PROBLEMS_MAX:
            break
        if index % _ITEMS_A_STEP == 0:
            yield
    if not problems:
        events = [_event(item) for item in items]
        yield
        problems = list(islice(conflicts(events), PROBLEMS_MAX))
    if problems:
        raise InvalidEventsError("events break rules; none was accepted", problems)
    return events


def check_times(events: Sequence[Event], ms_min: int) -> None:
    """Raise InvalidEventsError for events from before `ms_min` (epoch milliseconds; EVENT_TIME_MIN_MS)."""
    for event in events:
        if event.timestamp < ms_min:
            break
    else:
        return
    early = ((index, event.timestamp) for index, event in enumerate(events) if event.timestamp < ms_min)
    problems = [Problem(index, "timestamp", _early(time, ms_min)) for index, time in islice(early, PROBLEMS_MAX)]
    raise InvalidEventsError("events break rules; none was accepted", problems)


def _early(time: int, ms_min: int) -> str:
    if ms_min <= time * 1000 <= TIMESTAMP_MS_MAX:
        return f"is {time}: epoch milliseconds are expected, and this looks like seconds; {time * 1000} would be right"
    return f"is {time}, before the earliest that is accepted: {ms_min} epoch milliseconds (EVENT_TIME_MIN_MS)"


def conflicts(events: Sequence[Event]) -> Iterator[Problem]:
    """Events with the eventId of an earlier event in the body, but other content. An exact repeat is no conflict."""
    first_of: dict[str, int] = {}
    for index, event in enumerate(events):
        if event.event_id is None:
            continue
        first = first_of.setdefault(event.event_id, index)
        if first != index:
            pairs = zip(_CONTENT, content_of(events[first]), content_of(event), strict=True)
            others = [field for field, one, other in pairs if one != other]
            if others:
                reason = f"is that of the event with index {first}, which has another {' and '.join(others)}"
                yield Problem(index, "eventId", reason)


def _event(item: dict[str, Any]) -> Event:
    """The event of an object that follows every rule."""
    return Event(
        correlation_id=item["correlationId"],
        severity=_severity(item["severity"]),
        message=item["message"],
        source=item["source"],
        timestamp=item["timestamp"],
        event_id=item.get("eventId"),
        attributes=item.get("attributes"),
    )


def _severity(text: str) -> str:
    """The normal spelling of a severity; the text itself if it is none."""
    # Beyond ASCII there are other characters whose capitals are I or S.
    capitals = text.upper() if text.isascii() else text
    return SEVERITY_ALIASES.get(capitals, capitals)


def _event_problems(item: Any) -> Iterable[tuple[str | None, str]]:
    """(field, reason) of every rule that a value breaks."""
    if not isinstance(item, dict):
        yield None, f"is {_kind(item)}, not an object"
        return
    for field, check in RULES.items():
        if field not in item:
            if field not in OPTIONAL:
                yield field, "is missing"
        elif item[field] is not None or field not in OPTIONAL:
            reason = check(item[field])
            if reason is not None:
                yield field, reason
    for field in item:
        if field not in RULES:
            yield _printable(field), "is not a field of an event: put it into attributes"


def _kind(value: Any) -> str:
    """The type of a JSON value, as text for messages."""
    return _KINDS.get(type(value), "an object")


def _printable(text: str) -> str:
    """A client's own text, shortened, and valid in UTF-8."""
    return text[:NAME_CHARS_MAX].encode("utf-8", "backslashreplace").decode("utf-8")


def _unstorable(text: str) -> str | None:
    """The reason why PostgreSQL would reject a text; None if it would not."""
    if "\0" in text:
        return "contains a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "contains half of a surrogate pair"
    return None


def _text_rule(chars_min: int, chars_max: int) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"is {_kind(value)}, not a string"
        if not chars_min <= len(value) <= chars_max:
            return f"has {len(value)} characters; {chars_min} to {chars_max} are allowed"
        return _unstorable(value)

    return check


def _message_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"is {_kind(value)}, not a string"
    if (reason := _unstorable(value)) is not None:
        return reason
    size = len(value.encode())
    return None if size <= MESSAGE_BYTES_MAX else f"has {size} bytes as UTF-8; {MESSAGE_BYTES_MAX} are allowed"


def _severity_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"is {_kind(value)}, not a string"
    if _severity(value) not in SEVERITIES:
        return "is none of TRACE, DEBUG, INFO, WARN, ERROR, FATAL"
    return None


def _timestamp_problem(value: Any) -> str | None:
    if isinstance(value, HugeInteger):
        return "lies outside of the years 1970 to 9999"
    if isinstance(value, str):
        return "is a string: epoch milliseconds are expected, as an integer such as 1700000000000"
    if type(value) is not int:  # a bool is an int in Python, and 1.0 is not written as an integer
        return f"is {_kind(value)}, not an integer"
    if not TIMESTAMP_MS_MIN <= value <= TIMESTAMP_MS_MAX:
        return "lies outside of the years 1970 to 9999"
    return None


def _attributes_problem(value: Any) -> str | None:
    if isinstance(value, VastAttributes):
        return f"has more than {ATTRIBUTES_KEYS_MAX} keys, or more than {ATTRIBUTES_BYTES_MAX} bytes as JSON"
    if not isinstance(value, dict):
        return f"is {_kind(value)}, not an object"
    if len(value) > ATTRIBUTES_KEYS_MAX:
        return f"has {len(value)} keys; {ATTRIBUTES_KEYS_MAX} are allowed"
    for key, one in value.items():
        reason = _unstorable(key)
        if reason is not None:
            return f"has a key that {reason}"
        reason = _attribute_problem(one)
        if reason is not None:
            return f"{_printable(key)!r} {reason}"
    size = len(msgspec.json.encode(value))
    return None if size <= ATTRIBUTES_BYTES_MAX else f"has {size} bytes as JSON; {ATTRIBUTES_BYTES_MAX} are allowed"


def _attribute_problem(value: Any) -> str | None:
    match value:
        case str():
            return _unstorable(value)
        case bool() | int() if -(2**63) <= value < 2**63:
            return None
        case int() | HugeInteger():
            return "is an integer of more than 64 bits"
        case ChangedNumber():
            return (
                "is a number that would change when it is stored (more than 17 significant digits, too near to 0, "
                "or a negative zero): send it as a string"
            )
        case float():
            return None if math.isfinite(value) else "is not a finite number"
        case _:
            return f"is {_kind(value)}, not a string, number or boolean"


RULES: Final[dict[str, Callable[[Any], str | None]]] = {
    "correlationId": _text_rule(1, CORRELATION_ID_CHARS_MAX),
    "severity": _severity_problem,
    "message": _message_problem,
    "source": _text_rule(1, SOURCE_CHARS_MAX),
    "timestamp": _timestamp_problem,
    "eventId": _text_rule(1, EVENT_ID_CHARS_MAX),
    "attributes": _attributes_problem,
}
OPTIONAL: Final = frozenset({"eventId", "attributes"})  # null counts as missing: many encoders write null
