"""The grammar of HTTP heads (RFC 9112, RFC 9110), as far as ingest checks it: one place for all readers of heads."""

import re
from functools import lru_cache
from typing import Final

HEAD_BYTES_MAX: Final = 8192  # request line and headers

# A group that repeats is in an atomic group, and not possessive itself: before Python 3.11.5, a possessive group keeps
# what its last, incomplete repetition has matched (python/cpython#106052). Possessive character classes are right.
TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
FIELD_LINES: Final = rb"((?>(?:" + TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*))\r\n"
_HOST: Final = re.compile(r"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")  # RFC 3986: a name, an address, a port
LENGTH_DIGITS_MAX: Final = 15
_LENGTH: Final = re.compile(rf"[0-9]{{1,{LENGTH_DIGITS_MAX}}}", re.ASCII)


def ascii_lower(text: str) -> str:
    """A word of a header in lower case. A word with non-ASCII characters stays unchanged, and matches no known word.

    Some of these characters have a lower case in ASCII: the Kelvin sign becomes k.
    """
    return text.lower() if text.isascii() else text


@lru_cache(maxsize=128)  # the clients of a process use few names for it
def is_host(value: str) -> bool:
    """Whether a Host is a name or an address, with or without a port."""
    return _HOST.fullmatch(value) is not None


def length_of(value: str) -> int | None:
    """The number of bytes in a Content-Length; None if it is not a number of at most 15 digits."""
    return int(value) if _LENGTH.fullmatch(value) is not None else None
