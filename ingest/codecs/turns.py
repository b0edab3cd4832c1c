"""Runs the steps of large bodies in turns, so that they do not delay other requests.

The process works on one large body at a time, for a few milliseconds. Then the event loop serves other requests.
"""

import asyncio
from collections.abc import Generator
from typing import Final, TypeVar

from pipeline.errors import OverloadedError

SLICE_SECONDS: Final = 0.002

_Result = TypeVar("_Result")


def run(steps: Generator[None, None, _Result]) -> _Result:
    """Run the steps of a small body one after another, and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result


class Turns:
    """The turns of one process. For the event loop only.

    `waiting_bytes_max` bounds the bodies that wait. `rest_times` is the pause after each slice, as a multiple of the
    slice's length: with 3, large bodies get a quarter of the process while others need it; with 0, half of it.
    """

    def __init__(self, waiting_bytes_max: int, *, rest_times: float) -> None:
        self._waiting_bytes_max = waiting_bytes_max
        self._rest_times = rest_times
        self._turn = asyncio.Lock()
        self._waiting_bytes = 0  # including the body that has the turn
        self._free_at = 0.0  # on the loop's clock

    async def run(self, steps: Generator[None, None, _Result], size: int) -> _Result:
        """Run the steps for a body of `size` bytes. Raises OverloadedError if too many bodies wait."""
        # If no other body waits, a body of any size has its turn: it would be no smaller in a retry.
        if self._waiting_bytes and self._waiting_bytes + size > self._waiting_bytes_max:
            raise OverloadedError("too many large or slow bodies wait")
        self._waiting_bytes += size
        try:
            async with self._turn:
                return await self._in_slices(steps)
        finally:
            self._waiting_bytes -= size

    async def _in_slices(self, steps: Generator[None, None, _Result]) -> _Result:
        """Run the steps, one slice of time each turn."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._free_at - loop.time())
            began = loop.time()
            try:
                while loop.time() - began < SLICE_SECONDS:
                    next(steps)
            except StopIteration as end:
                result: _Result = end.value
                return result
            finally:
                now = loop.time()
                self._free_at = now + self._rest_times * (now - began)
