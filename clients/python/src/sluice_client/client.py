"""The client for programs: emit events, and go on."""

import os
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self, Unpack

from sluice_client import context
from sluice_client.clock import now_ms
from sluice_client.core import Core
from sluice_client.counters import Stats, Summary
from sluice_client.events import line_of, severity_named
from sluice_client.ids import uuid7
from sluice_client.options import OptionFields, Options

REQUEST_ID_KEY: Final = "requestId"  # the attribute with the id of the request that a program serves
FLUSH_SECONDS: Final = 30.0


class Client:
    """Sends events to a Sluice in the background.

    `url` is the address of ingest, such as http://localhost:8080. `source` names the program. The options are those of
    `sluice_client.options.Options`. All methods may be called in any thread, and after a fork.
    """

    def __init__(self, url: str, *, source: str, **options: Unpack[OptionFields]) -> None:
        """Raises ValueError for a wrong address or option, OSError if there can be no spill folder."""
        self.core: Final = Core(url, Options(**options))
        self._source = source
        self._host = socket.gethostname()

    def emit(
        self,
        message: str,
        *,
        severity: str = "INFO",
        correlation_id: str | None = None,
        attributes: Mapping[str, object] | None = None,
        source: str | None = None,
        timestamp_ms: int | None = None,
        event_id: str | None = None,
    ) -> bool:
        """Queue an event; returns False if it was dropped at once. Waits at most `block_seconds`.

        A text that is too long is cut, and attributes that find no room are counted in `sluice.dropped_attributes`.
        Without a correlation id the event has that of the context, or else one of this process, so that the events of
        a process keep their order.
        """
        severity, line = self.line(
            message, severity=severity, correlation_id=correlation_id, attributes=attributes, source=source,
            timestamp_ms=timestamp_ms, event_id=event_id,
        )  # fmt: skip
        return self.core.put(line, severity)

    def line(
        self,
        message: str,
        *,
        severity: str,
        correlation_id: str | None,
        attributes: Mapping[str, object] | None,
        source: str | None,
        timestamp_ms: int | None,
        event_id: str | None,
    ) -> tuple[str, bytes]:
        """The severity of an event as the server knows it, and the event as it is sent."""
        severity = severity_named(severity)
        request_id = context.request_id.get()
        if request_id is not None:
            attributes = {REQUEST_ID_KEY: request_id, **(attributes or {})}
        return severity, line_of(
            event_id=event_id or uuid7(),
            correlation_id=correlation_id or context.correlation_id.get() or self._own_correlation_id(),
            severity=severity,
            message=message,
            source=source or self._source,
            timestamp_ms=now_ms() if timestamp_ms is None else timestamp_ms,
            attributes=attributes,
        )

    def _own_correlation_id(self) -> str:
        return f"{self._source[:60]}@{self._host[:50]}:{os.getpid()}"

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until all events emitted before are accepted, rejected or dropped; False if time runs out."""
        return self.core.flush(seconds)

    def close(self, seconds: float | None = None) -> Summary:
        """Send what is queued within `seconds` (by default `close_seconds`), and say what was not sent.

        What is not sent goes to the spill folder, if there is one. The end of the program calls this too.
        """
        return self.core.close(seconds)

    @property
    def stats(self) -> Stats:
        """What became of the events so far."""
        return self.core.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
