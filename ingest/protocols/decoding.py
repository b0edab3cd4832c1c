"""What all foreign protocols share before their own decoding: limits, content codings, and turns of large bodies."""

from collections.abc import Callable, Generator
from functools import partial
from typing import Final, TypeVar

from ingest.codecs.turns import Turns, run
from ingest.errors import MalformedBodyError
from ingest.framing import found_coding, inflate_in_steps
from ingest.held_bodies import HeldBytes
from ingest.protocols.records import BatchBuilder
from ingest.types import Batch, Headers, Inflate, Response
from pipeline.clock import Clock
from pipeline.settings import Settings

AT_ONCE_BYTES: Final = 32 * 1024  # decoded in two milliseconds at most
# Whatever a client says that it sends, the first bytes decide. These have no first bytes that are looked for, and what
# they make of a text would be stored as one. Loki's protocol removes snappy itself.
_NOT_TAKEN: Final = frozenset(
    {"br", "compress", "x-compress", "lz4", "snappy", "x-snappy-framed", "dcb", "dcz", "lzma", "xz"}
)

_Result = TypeVar("_Result")


class Decoding:
    """The limits and the turns of the foreign protocols of one process. For the event loop only."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self.bytes_max = settings.protocol_body_bytes_max
        self.records_max = settings.protocol_body_events_max
        self._turns = Turns(settings.bodies_bytes_max, rest_times=0)

    def inflate(self, headers: Headers, *, removed: str = "") -> Inflate:
        """Codec.inflate: the coding is found in the body, whatever the head says.

        `removed` is a coding that the protocol removes itself.
        """
        declared = (headers.get("content-encoding") or "").strip().lower()
        return partial(self._inflate, "" if declared in ("identity", removed) else declared)

    async def _inflate(self, declared: str, data: bytes, held: HeldBytes) -> bytes:
        """Inflate a body. Raises MalformedBodyError, BodyTooLargeError, OverloadedError."""
        coding = found_coding(data, declared=declared)
        if coding is None:
            for name in declared.split(","):
                if name.strip() in _NOT_TAKEN:
                    raise MalformedBodyError(
                        f"the Content-Encoding is {name.strip()}: only gzip, zlib, deflate and zstd are taken"
                    )
            return data
        steps = inflate_in_steps(data, coding, self.bytes_max, held)
        try:
            next(steps)
            next(steps)
        except StopIteration as end:  # a small body is one piece
            content: bytes = end.value
            return content
        return await self._turns.run(steps, len(data))

    @property
    def received_ns(self) -> int:
        """The time now, in epoch nanoseconds and whole milliseconds: that of records without one."""
        return int(self._clock.now() * 1000) * 1_000_000

    async def batch(
        self, builder: BatchBuilder, steps: Generator[None, None, None], accepted: Callable[[], Response]
    ) -> Batch:
        """The batch of a body: the steps add its events to its builder. Raises what they raise, and OverloadedError."""
        return await self.run(_built(builder, steps, accepted), len(builder.body))

    async def run(self, steps: Generator[None, None, _Result], size: int) -> _Result:
        """Run the steps that decode a body of `size` bytes: at once if it is small, else in turns.

        Raises OverloadedError if too many bodies wait.
        """
        if size > AT_ONCE_BYTES:
            return await self._turns.run(steps, size)
        return run(steps)


def _built(
    builder: BatchBuilder, steps: Generator[None, None, None], accepted: Callable[[], Response]
) -> Generator[None, None, Batch]:
    yield from steps
    return (yield from builder.build(accepted))
