"""Parts of URLs that may name several servers: kafka://one:9092,[::1]:9092.

urllib.parse is made for one host. Newer versions refuse an IPv6 address that is not the only one.
"""

import re
from typing import Final

_URL: Final = re.compile(r"(?:([^:/?#]*)://)?([^/?#]*)")


def scheme_of(url: str) -> str:
    """What stands before ://, in lower case; empty if that is missing."""
    match = _URL.match(url)
    return ((match and match[1]) or "").lower()


def hosts_of(url: str) -> list[str]:
    """Each host with its port, as they are written, without user and password."""
    match = _URL.match(url)
    return ((match and match[2]) or "").rpartition("@")[2].split(",")
