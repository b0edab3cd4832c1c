"""One open page: what it is handed, and when it is given up."""

import asyncio

from ingest.dashboard import sse
from ingest.dashboard.sse import BEHIND_MAX, Viewer


async def test_a_viewer_gets_what_it_is_handed_in_order_and_then_the_end() -> None:
    viewer = Viewer()
    messages = viewer.messages()
    assert await anext(messages) == b"retry: 1000\n\n"
    assert viewer.give(b"one")
    assert viewer.give(b"two")
    assert [await anext(messages), await anext(messages)] == [b"one", b"two"]
    viewer.end()
    assert [message async for message in messages] == []


async def test_a_viewer_that_does_not_keep_up_is_refused_more_and_can_still_be_ended() -> None:
    # Given a page that reads nothing
    viewer = Viewer()
    assert [viewer.give(b"x") for _ in range(BEHIND_MAX + 2)] == [True] * BEHIND_MAX + [False] * 2
    # When it is dropped, then it gets nothing of what waited
    viewer.end()
    messages = viewer.messages()
    assert [message async for message in messages] == [b"retry: 1000\n\n"]


async def test_a_silent_stream_says_that_it_lives() -> None:
    messages = Viewer().messages()
    await anext(messages)
    loop = asyncio.get_running_loop()
    began = loop.time()
    before, sse.HEARTBEAT_SECONDS = sse.HEARTBEAT_SECONDS, 0.05  # type: ignore[misc]
    try:
        assert (await anext(messages)).startswith(b":")
    finally:
        sse.HEARTBEAT_SECONDS = before  # type: ignore[misc]
    assert loop.time() - began < before
