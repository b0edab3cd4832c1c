"""Bodies that are hard to read take turns, within a share of the process and a limit on what waits."""

import asyncio
import json
import time
from collections.abc import Generator
from dataclasses import replace

import pytest

from ingest.codecs.large_json import LARGE_BYTES
from ingest.codecs.media_type import BodyKind
from ingest.codecs.slow_bodies import AT_ONCE_BYTES, REST_TIMES, SlowBodies
from ingest.errors import InvalidEventsError
from pipeline.errors import OverloadedError
from pipeline.event import Event
from pipeline.settings import Settings

EVENT = {"correlationId": "c", "severity": "wARN", "message": "m", "source": "s", "timestamp": 1}  # rare, but right
SETTINGS = replace(Settings(), hard_bodies_bytes_max=1 << 20)


def _body(size: int) -> bytes:
    """An event that goes the slow path, with blanks behind it."""
    return json.dumps(EVENT).encode().ljust(size)


@pytest.mark.parametrize("size", [0, AT_ONCE_BYTES + 1, LARGE_BYTES + 1])
async def test_events_are_read_whatever_the_size(size: int) -> None:
    [event] = await SlowBodies(SETTINGS).events(_body(size), BodyKind.JSON)
    assert (event.severity, event.message) == ("WARN", "m")


async def test_they_are_read_one_after_another_and_small_ones_at_once() -> None:
    # Given a large body that has its turn
    hard = SlowBodies(SETTINGS)
    ended: list[str] = []

    async def read(name: str, body: bytes) -> None:
        with pytest.raises(InvalidEventsError):
            await hard.events(body, BodyKind.JSON)
        ended.append(name)

    nasty = b'{"a":[' + (b"[" * 30 + b"]" * 30 + b",") * 2000 + b"1]}"
    first = asyncio.create_task(read("first", nasty))
    await asyncio.sleep(0)
    # When another large one and a small one come, Then the small one does not wait, and the large ones have their order
    second = asyncio.create_task(read("second", nasty))
    await read("small", b"{}")
    await asyncio.gather(first, second)
    assert ended == ["small", "first", "second"]


async def test_what_waits_is_bounded() -> None:
    # Given as many bytes in waiting as there may be
    hard = SlowBodies(SETTINGS)
    half = _body(SETTINGS.hard_bodies_bytes_max // 2)
    waiting = [asyncio.create_task(hard.events(half, BodyKind.JSON)) for _ in range(2)]
    await asyncio.sleep(0)
    # When one more comes, Then it is refused, to be repeated
    with pytest.raises(OverloadedError):
        await hard.events(_body(AT_ONCE_BYTES + 1), BodyKind.JSON)
    # And there is room again for as much once one has ended, or its client has gone
    waiting[1].cancel()
    await asyncio.wait(waiting)
    again = [asyncio.create_task(hard.events(half, BodyKind.JSON)) for _ in range(2)]
    for task in again:
        assert len(await task) == 1


async def test_one_alone_is_read_however_large_it_is() -> None:
    body = _body(2 * SETTINGS.hard_bodies_bytes_max)
    assert len(await SlowBodies(SETTINGS).events(body, BodyKind.JSON)) == 1


async def test_the_event_loop_belongs_to_others_most_of_the_time() -> None:
    # Given a body whose every step takes 3 ms
    hard = SlowBodies(SETTINGS)

    def steps() -> Generator[None, None, list[Event]]:
        for _ in range(10):
            until = time.monotonic() + 0.003
            while time.monotonic() < until:
                pass
            yield
        return []

    # When it is read, Then it takes its share: after each step a rest of some times as long
    began = time.monotonic()
    assert await hard._turns.run(steps(), 1) == []
    assert time.monotonic() - began >= 9 * 0.003 * (1 + REST_TIMES)
