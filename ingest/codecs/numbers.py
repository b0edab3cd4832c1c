"""Decides which numbers are stored as they were sent.

A number with a point or an exponent is read as a 64-bit float, and written as the shortest decimal that gives the same
float. That decimal is a different number if the sent number had more than 17 significant digits, or was so small that
it became 0. PostgreSQL has no negative zero either. Such a number is rejected instead of changed.
"""

import math
import re
from decimal import Decimal
from typing import Final

_CHARS_SURE: Final = 16  # 15 significant digits and a point: every such decimal stays the same
_CHARS_MAX: Final = 400  # the longest meaningful number has 309 digits; a longer one is not compared

# Numbers after a colon that may change: a negative zero, many digits, or an exponent. The pattern never backtracks.
_DOUBTFUL: Final = re.compile(
    rb":[ \t\r\n]*+(?=[-0-9])(-0[.eE][-+.0-9eE]*+|-?[0-9.]++(?:(?<=[0-9.]{%d})|[eE])[-+.0-9eE]*+)" % (_CHARS_SURE + 1)
)


class ChangedNumber:
    """A number that would not be stored as it was sent."""


CHANGED: Final = ChangedNumber()


def number_of(text: str) -> float | ChangedNumber:
    """A JSON number that is no integer. It is infinite if it is too large, as in Python."""
    return float(text) if is_kept(text) else CHANGED


def is_kept(text: str) -> bool:
    """Whether a JSON number, no integer, is stored as sent. True if it is too large: another rule rejects that."""
    if len(text) <= _CHARS_SURE and not text.startswith("-0") and "e" not in text.lower():
        return True
    if len(text) > _CHARS_MAX:
        return False
    value = float(text)
    if value == 0:
        return text[0] != "-" and not text.lower().partition("e")[0].strip("0.")
    return repr(value) == text or math.isinf(value) or Decimal(text) == Decimal(repr(value))


def are_kept(body: bytes) -> bool:
    """Whether all numbers of a JSON body are kept. Also False if a string contains text like a changed number."""
    for match in _DOUBTFUL.finditer(body):
        text = match[1].decode()
        try:
            value = float(text)
        except ValueError:  # text inside a string
            return False
        if value and repr(value) == text:  # nearly always: most programs write floats like this
            continue
        if not text.lstrip("-").isdigit() and not is_kept(text):
            return False
    return True
