"""How often the present event log is recorded as known."""

from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.errors import SinkUnavailableError
from pipeline.settings import Settings
from tasks.former_logs import NOTE_SECONDS, SEEN_SECONDS_MIN, FormerLogs


class Known:
    """Known logs that record what is noted."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, Mapping[int, int]]] = []
        self.is_unavailable = False

    def note(self, log_id: str, *, ends: Mapping[int, int], **_: object) -> None:
        if self.is_unavailable:
            raise SinkUnavailableError("PostgreSQL is away")
        self.noted.append((log_id, ends))

    def others(self, log_id: str, *, logs_max: int) -> list[Any]:
        return []


def test_a_log_that_does_not_grow_is_recorded_from_time_to_time() -> None:
    # Given ticks of an idle system
    known, clock = Known(), ManualClock()
    logs = FormerLogs(Settings(), known, None, clock)  # type: ignore[arg-type]
    for _ in range(12):
        assert logs.alarms("one.4", {0: 7}) == []
        clock.advance(5.0)
    # Then each second one records it, long before it counts as left
    assert known.noted == [("one.4", {0: 7})] * 6
    assert NOTE_SECONDS + 5.0 < SEEN_SECONDS_MIN
    # And each growth is recorded at once, and another log
    known.noted.clear()
    for log_id, ends in (("one.4", {0: 8}), ("one.4", {0: 8, 1: 1}), ("two.4", {0: 8, 1: 1}), ("two.4", {0: 8, 1: 1})):
        logs.alarms(log_id, ends)
    assert known.noted == [("one.4", {0: 8}), ("one.4", {0: 8, 1: 1}), ("two.4", {0: 8, 1: 1})]


def test_what_could_not_be_recorded_is_recorded_by_the_next_tick() -> None:
    known = Known()
    logs = FormerLogs(Settings(), known, None, ManualClock())  # type: ignore[arg-type]
    known.is_unavailable = True
    with pytest.raises(SinkUnavailableError):
        logs.alarms("one.4", {0: 7})
    known.is_unavailable = False
    logs.alarms("one.4", {0: 7})
    assert known.noted == [("one.4", {0: 7})]
