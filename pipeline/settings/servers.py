"""Which servers there are: their URLs, and what all processes of one system share."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.names import SinkName
from pipeline.secrets import url_problem
from pipeline.settings.field import setting
from pipeline.urls import SENTINEL_SCHEMES, scheme_of

# A folder with an absolute path, on this machine.
_FOLDER_URL: Final = re.compile(r"file://(localhost)?/[^?#]+")
# The allowed schemes of each server's URL. REDIS_URL is Celery's broker too.
_SCHEMES: Final = {
    "database_url": ("postgresql", "postgres"),
    "migrate_database_url": ("postgresql", "postgres"),
    "redis_url": ("redis", "rediss", *SENTINEL_SCHEMES),
    "event_log_url": ("redis", "rediss", *SENTINEL_SCHEMES, "kafka", "kafka+ssl"),
}
_KINDS: Final = {"rediss": "redis", **dict.fromkeys(SENTINEL_SCHEMES, "redis"), "kafka+ssl": "kafka"}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The URLs of the servers."""

    database_url: str = setting(
        "postgresql://localhost:5432/sluice",
        "PostgreSQL, the sink",
        when="always in production. The user must own the tables, or have the rights of docs/links.md. Several hosts: "
        "postgresql://user@h1,h2/db?target_session_attrs=read-write",
        is_secret=True,
    )
    migrate_database_url: str = setting(
        "",
        "The same database as another role, for `python -m pipeline migrate`: it owns the tables, and grants the user "
        "of DATABASE_URL its rights (docs/links.md). No other process needs it",
        when="the user of DATABASE_URL should not own the tables",
        is_secret=True,
    )
    redis_url: str = setting(
        "redis://localhost:6379/0",
        "Redis for Celery's queues, the bucket and control state; with Sentinel "
        "redis+sentinel://h1:26379,h2:26379/NAME/0 (docs/links.md)",
        when="always in production. Use a separate server; no event is lost if it loses its memory",
        is_secret=True,
    )
    event_log_url: str = setting(
        "redis://localhost:6380/0",
        "The event log: redis://… (a separate server: at its memory limit it refuses writes) or kafka://host:port,…; "
        "with TLS rediss://… or kafka+ssl://host:port,…; with Sentinel redis+sentinel://h1:26379,h2:26379/NAME/0 "
        "(docs/links.md)",
        when="always in production. Use Kafka if one Redis server is too small, or the log must survive its machine",
        is_secret=True,
    )
    event_sink_url: str = setting(
        "",
        "Where events are stored; empty: in PostgreSQL (DATABASE_URL); file:///folder: in files of JSON Lines. "
        "PostgreSQL still keeps what operators set (docs/archive.md)",
        when="events are only archived, and all processes of Sluice run on one machine",
    )
    key_prefix: str = setting(
        "sluice:",
        "Prefix of every Redis key, so that two systems can share a server",
        when="two systems use one Redis server",
        is_name=True,
    )

    @property
    def log_scheme(self) -> str:
        """`redis` or `kafka`: the event log's kind, with TLS and sentinels or without."""
        scheme = scheme_of(self.event_log_url)
        return _KINDS.get(scheme, scheme)

    @property
    def sink_name(self) -> SinkName:
        """The name of the sink that is in use, for messages."""
        return SinkName.ARCHIVE if self.event_sink_url else SinkName.POSTGRESQL


def server_url_problems(settings: ServerSettings) -> Iterator[str]:
    """URLs that are not of the form of their server's."""
    for name, schemes in _SCHEMES.items():
        url = getattr(settings, name)
        problem = None if not url and not getattr(ServerSettings, name) else url_problem(url, schemes)
        if problem is not None:
            yield f"{name.upper()} {problem}"  # without the URL: it may hold a password


def sink_url_problems(settings: ServerSettings) -> Iterator[str]:
    """An EVENT_SINK_URL that names no sink."""
    if settings.event_sink_url and not _FOLDER_URL.fullmatch(settings.event_sink_url):
        yield f"EVENT_SINK_URL={settings.event_sink_url!r} is neither empty nor file:///, then a folder"
