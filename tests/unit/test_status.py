"""What is wrong, in words: a table of situations."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.errors import LogUnavailableError, SinkUnavailableError, StoreUnavailableError
from pipeline.log.memory import MemoryLog
from pipeline.names import BreakerState, Mode, PauseReason
from pipeline.ports.control import ControlState, Pause
from pipeline.ports.log import PartitionPosition
from pipeline.status import StatusParts, SystemStatus, bands_of, diagnose, read_status, severity, status_document
from pipeline.store.memory import MemoryServer
from support.control import control_settings, memory_rig

NOW = 1_700_000_000.0  # 22:13:20 UTC
HEALTHY = SystemStatus(
    at=NOW,
    mode=Mode.NORMAL,
    rate=1000.0,
    base_rate=1000.0,
    floor_rate=100.0,
    override=None,
    bands=bands_of(control_settings("redis://nowhere")),
    lag=0,
    lag_by_partition={0: 0},
    drain_rate=800.0,
    breaker=BreakerState.CLOSED,
    pauses=(),
    controller_age=2.0,
    controller_period=5.0,
    event_log="redis",
    dead_letters=0,
    events=(),
)
BREAKER = Pause(PauseReason.BREAKER, 3, NOW - 10, "worker/1", "connection refused")
BY_HAND = Pause(PauseReason.OPERATOR, 4, NOW - 10, "ann@host", "moving the disk")


@pytest.mark.parametrize(
    ("changes", "worst", "words"),
    [
        ({}, "healthy", ()),
        (
            {"breaker": BreakerState.OPEN, "pauses": (BREAKER,), "rate": 100.0},
            "critical",
            ("PostgreSQL fails since 22:13:10 UTC", "floor (100/s)", "connection refused"),
        ),
        ({"breaker": BreakerState.HALF_OPEN, "pauses": (BREAKER,)}, "critical", ("half-open",)),
        ({"pauses": (BY_HAND,)}, "degraded", ("since 22:13:10 UTC by ann@host: moving the disk", "resumed by hand")),
        ({"pauses": None, "breaker": BreakerState.UNKNOWN}, "degraded", ("emptied", "control worker")),
        ({"controller_age": 15.1}, "degraded", ("silent since 22:13:04 UTC", "Beat")),
        ({"controller_age": None, "rate": None}, "degraded", ("has not spoken yet",)),
        ({"mode": Mode.UNKNOWN, "lag": None}, "degraded", ("does not know the lag",)),
        ({"mode": Mode.DEGRADED, "lag": 16_000}, "degraded", ("16,000 events wait", "about 20 s", "now 800/s")),
        ({"mode": Mode.CRITICAL, "lag": 60_000, "drain_rate": 0.0}, "critical", ("far behind", "at 0, the workers")),
        ({"log_problem": "refused"}, "critical", ("event log (redis) does not answer", "refused")),
        ({"store_problem": "refused"}, "degraded", ("control store (Redis) does not answer", "REDIS_URL")),
        ({"database_problem": "refused"}, "degraded", ("dead letters are not counted",)),
    ],
)
def test_a_situation_in_words(changes: dict[str, Any], worst: str, words: tuple[str, ...]) -> None:
    # Given a situation
    problems = diagnose(replace(HEALTHY, **changes))
    # Then one problem says it
    text = " ".join(f"{problem.what} | {problem.look_at}" for problem in problems)
    assert severity(problems) == worst
    assert len(problems) == (1 if words else 0)
    assert [word for word in words if word not in text] == []


def test_the_worst_comes_first() -> None:
    problems = diagnose(replace(HEALTHY, controller_age=None, breaker=BreakerState.OPEN, pauses=(BREAKER,)))
    assert [problem.severity for problem in problems] == ["critical", "degraded"]


class AwayStore:
    def state(self) -> ControlState:
        raise StoreUnavailableError


class AwayLog(MemoryLog):
    def positions(self) -> list[PartitionPosition]:
        raise LogUnavailableError


def away_database() -> int:
    raise SinkUnavailableError


def test_with_everything_away_the_status_says_so_and_does_not_raise() -> None:
    # Given parts of which none answers
    clock = ManualClock()
    rig = memory_rig(control_settings("redis://nowhere"), MemoryServer(clock))
    away: Any = AwayStore()
    parts = StatusParts(rig.settings, clock, away, rig.events, AwayLog(partitions=1), away_database)
    # When it is read
    status = read_status(parts)
    # Then all is unknown, and each part is a problem
    document = status_document(status)
    assert len(document["reasons"]) == 3
    assert (document["status"], document["consumption"], document["consumerLag"]) == ("critical", "unknown", None)


def test_what_parts_know_is_read() -> None:
    # Given a store where consumption is paused, and a log that was told of no commit
    clock = ManualClock()
    rig = memory_rig(control_settings("redis://nowhere"), MemoryServer(clock))
    rig.store.restore([], by="test")
    rig.store.pause(PauseReason.OPERATOR, by="ann@host", why="moving the disk")
    log = MemoryLog(partitions=2)
    log.append([(0, b"{}")] * 3)
    parts = StatusParts(rig.settings, clock, rig.store, rig.events, log, lambda: 7)
    # When it is read before and after commits
    before = read_status(parts)
    log.commit(0, 1)
    log.commit(1, 0)
    after = read_status(parts)
    # Then unknown is not zero, and the rest is there
    assert (before.lag, after.lag, after.lag_by_partition) == (None, 2, {0: 2, 1: 0})
    assert after.dead_letters == 7
    assert status_document(after)["consumption"] == "paused"
    assert [pause.by for pause in after.pauses or ()] == ["ann@host"]
