"""Parses slow bodies in small steps, so that they do not delay other requests.

Small slow bodies are parsed at once. The others take turns: the process parses one at a time, for a few milliseconds.
Then the event loop serves only other requests, for a few times as long. So slow bodies get a fixed share of the
process, whatever clients send.
"""

import asyncio
from collections.abc import Generator
from typing import Final

from ingest.codecs.event_bodies import parse_carefully
from ingest.codecs.large_json import LARGE_BYTES, check_large
from ingest.codecs.media_type import BodyKind
from pipeline.errors import OverloadedError
from pipeline.event import Event
from pipeline.settings import Settings

AT_ONCE_BYTES: Final = 4096  # takes half a millisecond at most: no more than a good batch
SLICE_SECONDS: Final = 0.002
REST_TIMES: Final = 3.0  # times the length of the last slice: slow bodies get a quarter of the process


class SlowBodies:
    """The turns of one process. For the event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self._waiting_bytes = 0  # including the body that is being parsed
        self._free_at = 0.0  # on the loop's clock

    async def events(self, body: bytes, kind: BodyKind) -> list[Event]:
        """The events of a body. Raises the errors of `parse_body`, and OverloadedError if too many bodies wait."""
        events_max = self._settings.body_events_max
        if len(body) <= AT_ONCE_BYTES:
            return parse_carefully(body, kind, events_max)
        # If no other body waits, a body of any size is parsed: it would be no smaller in a retry.
        if self._waiting_bytes and self._waiting_bytes + len(body) > self._settings.hard_bodies_bytes_max:
            raise OverloadedError("too many slow bodies wait")
        self._waiting_bytes += len(body)
        try:
            async with self._turn:
                return await self._in_slices(_steps(body, kind, events_max))
        finally:
            self._waiting_bytes -= len(body)

    async def _in_slices(self, steps: Generator[None, None, list[Event]]) -> list[Event]:
        """Run the steps, one slice of time each turn."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._free_at - loop.time())
            began = loop.time()
            try:
                while loop.time() - began < SLICE_SECONDS:
                    next(steps)
            except StopIteration as end:
                events: list[Event] = end.value
                return events
            finally:
                now = loop.time()
                self._free_at = now + REST_TIMES * (now - began)


def _steps(body: bytes, kind: BodyKind, events_max: int) -> Generator[None, None, list[Event]]:
    """The slow path in steps; a body that is not large is one step."""
    if len(body) > LARGE_BYTES:
        return (yield from check_large(body, kind, events_max=events_max))
    return parse_carefully(body, kind, events_max)
