"""The level of a request: by its header Priority (RFC 9218), or by the severities of its events."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from pipeline.event import Event
from pipeline.names import Level

# By urgency: 0 is the most urgent, 3 is the default of RFC 9218, and 7 is for what runs in the background.
_LEVEL_OF_URGENCY: Final = (
    Level.ERROR, Level.ERROR, Level.WARN, Level.INFO, Level.INFO, Level.DEBUG, Level.DEBUG, Level.DEBUG,
)  # fmt: skip
_LEVEL_OF_SEVERITY: Final = {
    "TRACE": Level.DEBUG,
    "DEBUG": Level.DEBUG,
    "INFO": Level.INFO,
    "WARN": Level.WARN,
    "ERROR": Level.ERROR,
    "FATAL": Level.ERROR,
}
_VALUES_KEPT: Final = 128  # clients send few different ones

# The grammar of a dictionary in RFC 9651, section 3.2. No part of it can match in two ways, so matching is linear.
# Groups that repeat are in atomic ones: see ingest/grammar.py.
_KEY: Final = r"[a-z*][a-z0-9_\-.*]*+"
_BARE: Final = (
    r"(?:-?[0-9]{1,12}\.[0-9]{1,3}+|-?[0-9]{1,15}+"  # a decimal, an integer
    r'|"(?>(?:[ !#-\[\]-~]|\\["\\])*)"'  # a string
    r"|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*+"  # a token
    r"|:[A-Za-z0-9+/]*+={0,2}+:|\?[01]|@-?[0-9]{1,15}+"  # bytes, a boolean, a date
    r'|%"(?>(?:[ !#$&-~]|%[0-9a-f]{2})*)")'  # a display string
)
_PARAMETERS: Final = rf"(?>(?:; *+{_KEY}(?>(?:={_BARE})?))*)"
_INNER_LIST: Final = rf"\( *+(?>(?:{_BARE}{_PARAMETERS}(?: ++|(?=\))))*)\)"
_MEMBER: Final = rf"(?P<key>{_KEY})(?>(?:=(?P<value>{_BARE}|{_INNER_LIST}))?){_PARAMETERS}"
_NEXT_MEMBER: Final = re.compile(rf"{_MEMBER}(?P<comma>[ \t]*+,[ \t]*+)?")
_URGENCY: Final = re.compile(r"[0-7]")


@lru_cache(maxsize=_VALUES_KEPT)
def level_of_priority(value: str | None) -> Level | None:
    """The level of a Priority; None if it has no valid urgency, or is no dictionary of structured fields.

    Of several urgencies the last one counts, as in any such dictionary. An invalid one counts as none.
    """
    if value is None:
        return None
    value = value.strip(" ")
    position, urgency, has_more = 0, "", True
    while has_more:
        match = _NEXT_MEMBER.match(value, position)
        if match is None:
            return None
        if match["key"] == "u":
            urgency = match["value"] or ""
        position, has_more = match.end(), match["comma"] is not None
    if position != len(value) or _URGENCY.fullmatch(urgency) is None:
        return None
    return _LEVEL_OF_URGENCY[int(urgency)]


def level_of(events: Iterable[Event]) -> Level:
    """The level of the highest severity."""
    return max([_LEVEL_OF_SEVERITY[event.severity] for event in events])
