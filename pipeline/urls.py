"""Parts of URLs that may name several servers: kafka://one:9092,[::1]:9092.

urllib.parse is made for one host. Newer versions refuse an IPv6 address that is not the only one.
"""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, unquote

_URL: Final = re.compile(r"(?:([^:/?#]*)://)?([^/?#]*)([^?#]*)")
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?")
_PLACE: Final = re.compile(r"/([A-Za-z0-9._-]+)(?:/([0-9]{1,5})?)?")  # Sentinel allows no other characters in a name

SENTINEL_SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
_TLS_SCHEMES: Final = frozenset({"rediss", "rediss+sentinel"})
SENTINEL_PORT: Final = 26379


def scheme_of(url: str) -> str:
    """What stands before ://, in lower case; empty if that is missing."""
    match = _URL.match(url)
    return ((match and match[1]) or "").lower()


def hosts_of(url: str) -> list[str]:
    """Each host with its port, as they are written, without user and password."""
    match = _URL.match(url)
    return ((match and match[2]) or "").rpartition("@")[2].split(",")


def place_of(url: str) -> str:
    """Hosts and path, for people: no user, no password, no options."""
    match = _URL.match(url)
    return f"{','.join(hosts_of(url))}{(match and match[3]) or ''}"


def path_of(url: str) -> str:
    """The path, with its / at the start."""
    match = _URL.match(url)
    return (match and match[3]) or ""


def has_redis_tls(url: str) -> bool:
    """Whether connections to a Redis of this URL, and to its sentinels, use TLS."""
    return scheme_of(url) in _TLS_SCHEMES


def query_of(url: str) -> dict[str, list[str]]:
    """The options of a URL."""
    return parse_qs(url.partition("#")[0].partition("?")[2], keep_blank_values=True)


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """The parts of redis+sentinel://user:password@host:26379,host:26379/master/0. User and password are of Redis."""

    sentinels: tuple[tuple[str, int], ...]
    master: str
    database: int
    user: str | None
    password: str | None = field(repr=False)


def sentinel_url(url: str) -> SentinelUrl | None:
    """The parts of a URL that names sentinels; None if it names a server. Raises ValueError with what is wrong."""
    if scheme_of(url) not in SENTINEL_SCHEMES:
        return None
    match = _URL.match(url)
    authority, path = (match[2], match[3]) if match else ("", "")
    login, has_login, _ = authority.rpartition("@")
    hosts = [_HOST.fullmatch(host) for host in hosts_of(url)]
    place = _PLACE.fullmatch(path)
    if query_of(url) or place is None or not all(hosts):
        raise ValueError(
            "is not of the form redis+sentinel://user:password@host:26379,host:26379,host:26379/MASTER/0 (user and "
            "password of Redis, the addresses of the sentinels, the name of the master, the database)"
        )
    user, has_password, password = login.partition(":")
    return SentinelUrl(
        tuple((host[1] or host[2], int(host[3] or SENTINEL_PORT)) for host in hosts if host is not None),
        place[1],
        int(place[2] or 0),
        unquote(user) if has_login and user else None,
        unquote(password) if has_password else None,
    )
