"""Runs a codec on a body as ingest does, without a server."""

import gc
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from ingest.held_bodies import HeldBodies
from ingest.protocols.decoding import Decoding
from ingest.types import Batch, Codec, Head, Response
from pipeline.clock import Clock
from pipeline.settings import Settings

_Result = TypeVar("_Result")

NOW: Final = 1_800_000_000.123  # the clock of these tests, seconds since the epoch


class FixedClock(Clock):
    """A clock that stands at NOW."""

    def now(self) -> float:
        return NOW

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here sleeps")


@dataclass
class Sent:
    """A request, and what became of it."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    target: str = "/"


async def decoded(codec: Codec, sent: Sent) -> Batch:
    """The batch of a request. Raises what the codec raises."""
    head = Head(sent.headers, sent.target)
    decode, inflate = codec.decode(head), codec.inflate(sent.headers)
    body = sent.body
    if inflate is not None:
        with HeldBodies(1 << 30).begin() as held:
            body = await inflate(body, held)
    return await decode(body)


async def accepted(codec: Codec, sent: Sent) -> tuple[Batch, Response]:
    """The batch of a request, and the answer once it is stored."""
    batch = await decoded(codec, sent)
    return batch, batch.accepted()


class TimedDecoding(Decoding):
    """Measures the longest step of a body, in CPU time and without the collector of garbage."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, FixedClock())
        self.longest_seconds = 0.0

    async def run(self, steps: Generator[None, None, _Result], size: int) -> _Result:
        gc.disable()
        try:
            while True:
                began = time.thread_time()
                try:
                    next(steps)
                except StopIteration as end:
                    result: _Result = end.value
                    return result
                finally:
                    self.longest_seconds = max(self.longest_seconds, time.thread_time() - began)
        finally:
            gc.enable()
