"""What is wrong, in words: a table of situations."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.clock import ManualClock
from pipeline.errors import LogUnavailableError, SinkUnavailableError, StoreUnavailableError
from pipeline.log.memory import MemoryLog
from pipeline.names import BreakerState, Mode, PauseReason
from pipeline.ports.control import ControlState, Override, Pause
from pipeline.ports.log import PartitionPosition
from pipeline.ports.sink import DeadLetterCounts
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
    dead_letter_conflicts=0,
    events=(),
)
BREAKER = Pause(PauseReason.BREAKER, 3, NOW - 10, "worker/1", "connection refused")
OVERRIDE = Override(50.0, NOW + 60, "ann@host", "a test", NOW - 5)
GAP = Pause(PauseReason.LOG_GAP, 5, NOW - 10, "worker/2", "a hole", partition=3)
POISONED = Pause(PauseReason.POISON, 6, NOW - 10, "worker/2", "a batch", partition=1)
NEWER = Pause(PauseReason.UNKNOWN, 7, NOW - 10, "worker/2", "too much", word="quota")
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
        (
            {"pauses": (BY_HAND,)},
            "degraded",
            ("since 22:13:10 UTC by ann@host: moving the disk", "control resume_consumption"),
        ),
        ({"pauses": (GAP,)}, "degraded", ("of partition 3", "its events", "inspect gap 3", "skip_gap 3 FROM TO")),
        ({"pauses": (POISONED,)}, "degraded", ("of partition 1", "inspect poison 1", "accept_poison 1")),
        ({"pauses": (NEWER,)}, "degraded", ("paused (quota)", "newer version", "resume_consumption")),
        ({"pauses": None, "breaker": BreakerState.UNKNOWN}, "degraded", ("emptied", "control worker")),
        ({"controller_age": 15.1}, "degraded", ("silent since 22:13:04 UTC", "Beat")),
        ({"controller_age": None, "rate": None}, "degraded", ("has not spoken yet",)),
        ({"mode": Mode.UNKNOWN, "lag": None}, "degraded", ("does not know the lag",)),
        ({"mode": Mode.DEGRADED, "lag": 16_000}, "degraded", ("16,000 events wait", "about 20 s", "now 800/s")),
        ({"mode": Mode.CRITICAL, "lag": 60_000, "drain_rate": 0.0}, "critical", ("far behind", "at 0, the workers")),
        ({"log_problem": "refused"}, "critical", ("event log (redis) does not answer", "refused")),
        ({"store_problem": "refused"}, "degraded", ("control store (Redis) does not answer", "REDIS_URL")),
        (  # a rate by hand below the floor is not the floor
            {"breaker": BreakerState.OPEN, "pauses": (BREAKER,), "rate": 50.0, "override": OVERRIDE},
            "critical",
            ("the rate is 50/s, set by hand",),
        ),
        (
            {"mode": Mode.DEGRADED, "lag": 16_000, "rate": 300.0, "override": OVERRIDE},
            "degraded",
            ("300/s, set by hand",),
        ),
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


def test_a_pause_comes_before_the_lag_that_it_makes_and_no_end_is_promised() -> None:
    # Given somebody who paused consumption, and a backlog that has become critical
    status = replace(HEALTHY, pauses=(BY_HAND,), mode=Mode.CRITICAL, lag=60_000, rate=100.0, drain_rate=70.0)
    pause, lag = diagnose(status)
    # Then the headline is the cause, and what the lag says is not that the workers should be looked at
    assert pause.what.startswith("Consumption is paused (operator)")
    assert lag.what == "Consumers are far behind: 60,000 events wait; the rate is 100/s"
    assert "workers" not in lag.look_at
    assert status.seconds_to_empty is None


def test_an_open_breaker_promises_to_resume_only_what_it_stopped() -> None:
    opened = replace(HEALTHY, breaker=BreakerState.OPEN, pauses=(BREAKER,), rate=100.0)
    assert "all resumes by itself" in diagnose(opened)[0].look_at
    beneath = diagnose(replace(opened, pauses=(BREAKER, BY_HAND)))[0].look_at
    assert "the breaker closes by itself, but consumption stays paused (operator)" in beneath


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "the full rate"),
        ({"rate": 400.0}, "lag is low"),
        ({"rate": 100.0, "breaker": BreakerState.OPEN}, "breaker is open"),
        ({"rate": 50.0, "breaker": BreakerState.OPEN, "override": OVERRIDE}, "set by hand"),
        ({"rate": 50.0, "override": OVERRIDE}, "set by hand"),
        ({"rate": 100.0, "mode": Mode.CRITICAL}, "lag is critical"),
        ({"rate": 100.0, "mode": Mode.UNKNOWN}, "lag is unknown"),
        ({"rate": 100.0, "store_problem": "away"}, "last known, falling"),
        ({"rate": None, "store_problem": "away"}, "nobody says"),
    ],
)
def test_why_the_rate_is_what_it_is(changes: dict[str, Any], why: str) -> None:
    assert replace(HEALTHY, **changes).rate_decided_by == why


def test_what_a_part_said_is_said_once() -> None:
    error = "the control store (Redis) does not answer: Error 111 connecting to 127.0.0.1:1. Connection refused."
    [problem] = diagnose(replace(HEALTHY, store_problem=error))
    assert (
        problem.look_at == "the server of REDIS_URL; it says: Error 111 connecting to 127.0.0.1:1. Connection refused."
    )
    [problem] = diagnose(replace(HEALTHY, store_problem=str(StoreUnavailableError())))
    assert problem.look_at == "the server of REDIS_URL"


class AwayStore:
    def state(self) -> ControlState:
        raise StoreUnavailableError


class AwayLog(MemoryLog):
    def positions(self) -> list[PartitionPosition]:
        raise LogUnavailableError


def away_database() -> DeadLetterCounts:
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
    parts = StatusParts(rig.settings, clock, rig.store, rig.events, log, lambda: DeadLetterCounts(7, 2))
    # When it is read before and after commits
    before = read_status(parts)
    log.commit(log.identity().log_id, 0, 1)
    log.commit(log.identity().log_id, 1, 0)
    after = read_status(parts)
    # Then unknown is not zero, and the rest is there
    assert (before.lag, after.lag, after.lag_by_partition) == (None, 2, {0: 2, 1: 0})
    assert (after.dead_letters, after.dead_letter_conflicts) == (7, 2)
    assert (status_document(after)["deadLetters"], status_document(after)["deadLetterConflicts"]) == (7, 2)
    assert status_document(after)["consumption"] == "paused"
    assert [pause.by for pause in after.pauses or ()] == ["ann@host"]
