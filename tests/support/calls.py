"""What requests on one connection cost, in calls of Python functions: the same on each machine."""

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from checks.testbed.waiting import WAIT_SECONDS_MAX
from checks.testbed.wire import Wire
from ingest.http.protocol import IngestProtocol


def calls_of(
    port: int, status: int, groups: Sequence[Sequence[bytes]], monkeypatch: pytest.MonkeyPatch
) -> list[list[int]]:
    """Functions that are called for each request of each group; all are answered with this status.

    The first request of the first group is sent once more before, since a new connection reads the first one in a task.
    """
    connections: list[IngestProtocol] = []
    connected = IngestProtocol.connection_made

    def noted(protocol: IngestProtocol, transport: Any) -> None:
        connections.append(protocol)
        connected(protocol, transport)

    monkeypatch.setattr(IngestProtocol, "connection_made", noted)
    counts: list[list[int]] = []
    is_counted = threading.Event()
    with Wire(port) as wire:
        wire.send(groups[0][0])
        assert wire.answer().status == status
        protocol = connections[-1]

        def count() -> None:
            counts[:] = [[_calls(protocol.data_received, data) for data in group] for group in groups]
            is_counted.set()

        protocol.loop.call_soon_threadsafe(count)
        assert is_counted.wait(WAIT_SECONDS_MAX)
        assert {wire.answer().status for group in groups for _ in group} == {status}
    return counts


def _calls(function: Callable[[bytes], None], data: bytes) -> int:
    calls = 0

    def note(_frame: object, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function(data)
    finally:
        sys.setprofile(before)
    return calls
