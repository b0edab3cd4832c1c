"""The open-loop load: what it measures does not depend on the wall clock."""

import asyncio
import time

import pytest

from checks.loadgen.open_load import offer

ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


async def test_a_step_of_the_wall_clock_changes_no_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a server that answers, and a wall clock that is set back by an hour while it does
    real = time.time  # noqa: TID251
    began = real()
    steps = iter([0.0])  # only the first look is before the step
    monkeypatch.setattr(time, "time", lambda: real() + next(steps, -3600.0))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            writer.write(ANSWER)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        responses = await asyncio.wait_for(offer("127.0.0.1", port, [b"GET\n"], [(0.2, 50.0)]), 60)
    # Then each request was sent and answered, and its duration is real
    assert responses.status == [202] * len(responses.status)
    assert responses.sent == len(responses.status) >= 10
    assert all(0 <= seconds < 60 for seconds in responses.seconds)
    assert 0 <= responses.late_seconds < 60
    # And the times of day are those of the beginning
    assert all(0 <= due - began < 120 for due in responses.due)
