"""The same client for asyncio: nothing that it does blocks the event loop."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self, Unpack

from sluice_client.client import FLUSH_SECONDS, Client
from sluice_client.clock import monotonic
from sluice_client.counters import Stats, Summary
from sluice_client.options import OptionFields

POLL_SECONDS: Final = 0.01  # while the queue is full, or a caller waits in `flush`


class AsyncClient:
    """Sends events to a Sluice in the background. See Client for its arguments.

    `emit` waits for room in the queue at most `block_seconds`, while other tasks run.
    """

    def __init__(self, url: str, *, source: str, **options: Unpack[OptionFields]) -> None:
        """Raises ValueError for a wrong address or option, OSError if there can be no spill folder."""
        self._client = Client(url, source=source, **options)

    async def emit(
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
        """Queue an event; returns False if it was dropped at once. See Client.emit."""
        severity, line = self._client.line(
            message, severity=severity, correlation_id=correlation_id, attributes=attributes, source=source,
            timestamp_ms=timestamp_ms, event_id=event_id,
        )  # fmt: skip
        core = self._client.core
        until = monotonic() + core.block_seconds
        while core.block_seconds and not core.has_room(line) and monotonic() < until:  # noqa: ASYNC110  # a thread makes room
            await asyncio.sleep(POLL_SECONDS)
        return core.put(line, severity, may_block=False)

    async def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until all events emitted before are accepted, rejected or dropped; False if time runs out."""
        until = monotonic() + seconds
        # Not in a thread: it would go on when this task is cancelled, and the end of the loop would wait for it.
        with self._client.core.flushing() as result:
            while (is_flushed := result()) is None and monotonic() < until:  # noqa: ASYNC110  # a thread sends
                await asyncio.sleep(POLL_SECONDS)
        return is_flushed is True

    async def close(self, seconds: float | None = None) -> Summary:
        """Send what is queued within `seconds` (by default `close_seconds`), and say what was not sent."""
        return await asyncio.to_thread(self._client.close, seconds)

    @property
    def stats(self) -> Stats:
        """What became of the events so far."""
        return self._client.stats

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
