"""The options of a client, each with its unit, its default and the reason for it."""

import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypedDict

from sluice_client.counters import Drop

QUEUE_BYTES_MIN: Final = 1 << 20  # room for one body, and for the largest event beside it
SECONDS_MAX: Final = 1_000_000.0  # threads and sockets can't wait for ever, and some not longer than 24 days
SPILL_BYTES_MIN: Final = 1 << 20  # four segments, each with room for the largest event

DropHook = Callable[[Sequence[Drop]], object]


class OptionFields(TypedDict, total=False):
    """The options as arguments of Client, AsyncClient and SluiceHandler."""

    queue_bytes_max: int
    block_seconds: float
    linger_seconds: float
    batch_events_max: int
    timeout_seconds: float
    close_seconds: float
    gzip: bool
    api_key: str | None
    headers: Mapping[str, str]
    tls: ssl.SSLContext | None
    spill_folder: str | os.PathLike[str] | None
    spill_bytes_max: int
    on_drop: DropHook | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a client queues, sends, spills and ends. Raises ValueError for a value that can't work."""

    queue_bytes_max: int = 8 << 20
    """Memory for events that are not accepted yet, about 18,000 log records. If it is full, events are dropped, or go
    to the spill folder."""
    block_seconds: float = 0.0
    """How long emitting an event may wait for room in the queue. By default a program never waits for its logs."""
    linger_seconds: float = 0.5
    """How long an event waits for others that are sent with it."""
    batch_events_max: int = 1000
    """Events in one request: the server's default limit. After a 413 the client uses the server's own limit."""
    timeout_seconds: float = 10.0
    """For each step of a request: to connect, to send, to get the answer. The server answers within seconds."""
    close_seconds: float = 5.0
    """How long `close`, and the end of the program, may wait until everything is sent."""
    gzip: bool = False
    """Compress requests: about a tenth of the bytes, for about 10 microseconds of CPU for each event."""
    api_key: str | None = None
    """Sent as `Authorization: Bearer`, where the server or a proxy in front of it wants a key."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """More header fields of each request."""
    tls: ssl.SSLContext | None = None
    """For https addresses with certificates of your own."""
    spill_folder: str | os.PathLike[str] | None = None
    """A folder for events that find no room in memory or are not sent at the end. They are sent later, or by the next
    process that uses the folder. Several processes may share it. Needs a POSIX system."""
    spill_bytes_max: int = 64 << 20
    """The most bytes that one process keeps there."""
    on_drop: DropHook | None = None
    """Called with what was dropped, at most once a second, in a thread of the client."""

    def __post_init__(self) -> None:
        for name, lowest in (
            ("queue_bytes_max", QUEUE_BYTES_MIN),
            ("block_seconds", 0),
            ("linger_seconds", 0),
            ("batch_events_max", 1),
            ("timeout_seconds", 0.1),
            ("close_seconds", 0),
            ("spill_bytes_max", SPILL_BYTES_MIN),
        ):
            if not getattr(self, name) >= lowest:
                raise ValueError(f"{name} must be at least {lowest}, not {getattr(self, name)!r}")
            if name.endswith("_seconds") and getattr(self, name) > SECONDS_MAX:
                raise ValueError(f"{name} must be at most {SECONDS_MAX:,.0f}, not {getattr(self, name)!r}")

    @property
    def all_headers(self) -> dict[str, str]:
        """The header fields of each request, the key included."""
        key = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return {**key, **self.headers}

    @property
    def spill_path(self) -> Path | None:
        """The spill folder."""
        return None if self.spill_folder is None else Path(self.spill_folder)
