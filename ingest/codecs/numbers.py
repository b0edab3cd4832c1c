"""Which numbers are stored as they were sent.

A number with a point or an exponent is read as a 64-bit float and written as the shortest decimal that gives the same
float. That is another number where it had more than 17 significant digits, or was too small to be anything but 0. And
PostgreSQL knows no negative zero. Such a number is refused rather than changed.
"""

import math
import re
from decimal import Decimal
from typing import Final

_CHARS_SURE: Final = 16  # 15 significant digits and a point: every such decimal comes back as it was
_CHARS_MAX: Final = 400  # the longest number with a meaning has 309 digits; what is longer is not compared

# Numbers after a colon that may change: a negative zero, many digits, or an exponent. It never looks back.
_DOUBTFUL: Final = re.compile(
    rb":[ \t\r\n]*+(?=[-0-9])(-0[.eE][-+.0-9eE]*+|-?[0-9.]++(?:(?<=[0-9.]{%d})|[eE])[-+.0-9eE]*+)" % (_CHARS_SURE + 1)
)


class ChangedNumber:
    """A number that would not be stored as it was sent."""


CHANGED: Final = ChangedNumber()


def number_of(text: str) -> float | ChangedNumber:
    """A number of JSON that is no integer; infinite where it is too large, as Python has it."""
    return float(text) if is_kept(text) else CHANGED


def is_kept(text: str) -> bool:
    """Whether a number of JSON, no integer, is stored as it was sent, or is too large, which another rule refuses."""
    if len(text) <= _CHARS_SURE and not text.startswith("-0") and "e" not in text.lower():
        return True
    if len(text) > _CHARS_MAX:
        return False
    value = float(text)
    if value == 0:
        return text[0] != "-" and not text.lower().partition("e")[0].strip("0.")
    return repr(value) == text or math.isinf(value) or Decimal(text) == Decimal(repr(value))


def are_kept(body: bytes) -> bool:
    """Whether all numbers of a JSON body are; False also where a text only looks like a number that is not."""
    for match in _DOUBTFUL.finditer(body):
        text = match[1].decode()
        try:
            value = float(text)
        except ValueError:  # a text within a string
            return False
        if value and repr(value) == text:  # nearly always: as most programs write a float
            continue
        if not text.lstrip("-").isdigit() and not is_kept(text):
            return False
    return True
