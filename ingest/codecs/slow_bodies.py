"""Parses slow bodies in small steps, so that they do not delay other requests.

Small slow bodies are parsed at once. The others take turns, and get a fixed share of the process, whatever clients
send.
"""

from collections.abc import Generator
from typing import Final

from ingest.codecs.event_bodies import parse_carefully
from ingest.codecs.large_json import LARGE_BYTES, check_large
from ingest.codecs.media_type import BodyKind
from ingest.codecs.turns import Turns
from pipeline.event import Event
from pipeline.settings import Settings

AT_ONCE_BYTES: Final = 4096  # takes half a millisecond at most: no more than a good batch
REST_TIMES: Final = 3.0  # times the length of the last slice: slow bodies get a quarter of the process


class SlowBodies:
    """The slow bodies of one process. For the event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._events_max = settings.body_events_max
        self._turns = Turns(settings.hard_bodies_bytes_max, rest_times=REST_TIMES)

    async def events(self, body: bytes, kind: BodyKind) -> list[Event]:
        """The events of a body. Raises the errors of `parse_body`, and OverloadedError if too many bodies wait."""
        if len(body) <= AT_ONCE_BYTES:
            return parse_carefully(body, kind, self._events_max)
        return await self._turns.run(_steps(body, kind, self._events_max), len(body))


def _steps(body: bytes, kind: BodyKind, events_max: int) -> Generator[None, None, list[Event]]:
    """The slow path in steps; a body that is not large is one step."""
    if len(body) > LARGE_BYTES:
        return (yield from check_large(body, kind, events_max=events_max))
    return parse_carefully(body, kind, events_max)
