"""Runs a codec on a body as ingest does, without a server."""

from dataclasses import dataclass, field
from typing import Final

from ingest.held_bodies import HeldBodies
from ingest.types import Batch, Codec, Head, Response
from pipeline.clock import Clock

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
