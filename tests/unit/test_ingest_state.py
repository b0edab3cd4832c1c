"""Which of the states that an ingest process follows wake its event loop."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ingest.service import IngestService
from pipeline.flow.shares import Shares
from pipeline.names import BreakerState, Mode, PauseReason
from pipeline.ports.control import ControlState, OperatorLimit, Override, Pause, PublishedRate
from pipeline.ports.rate import Explanation, Figure, PolicyRecord

RATE = PublishedRate(1, 500.0, 500.0, Mode.NORMAL, 0, 0.0, None)
STATE = ControlState(rate=RATE, pauses=(), breaker=BreakerState.CLOSED, time=1.0, generation=0, accounts={})
OVERRIDE = Override(9.0, 3600.0, "ann", "a test", 0.0)
LIMIT = OperatorLimit("10.0.0.1", rate=5.0, weight=None, actor="ann", why="a test", since=0.0)
# The sink is too slow
FIGURES = (Figure("drain_seconds", "", 31.0, "s"), Figure("drain_target_seconds", "", 30.0, "s"))


class Following:
    """What the follower of an ingest process gives to its event loop."""

    def __init__(self) -> None:
        self.noted: list[ControlState] = []
        self.has_ended = False
        self.accounts = SimpleNamespace(is_reporting=False)
        service: Any = object.__new__(IngestService)
        vars(service).update(_key_reader=None, _loop=self, _noted=(), accounts=self.accounts)
        self.read = service._on_state

    def call_soon_threadsafe(self, _note_rate: object, state: ControlState, _rate: object) -> None:
        if self.has_ended:
            raise RuntimeError("the event loop is closed")
        self.noted.append(state)


@pytest.mark.parametrize(
    "change",
    [
        {"rate": replace(RATE, rate=400.0)},
        {"pauses": (Pause(PauseReason.BREAKER, 1, 0.0, "a drain", "it fails"),)},
        {"pauses": None},
        {"floor_rate": 2.0},
        {"override": OVERRIDE},
        {"accounts": {"10.0.0.1": LIMIT}},
    ],
    ids="-".join,
)
def test_a_change_of_a_state_wakes_the_event_loop_once(change: dict[str, Any]) -> None:
    # Given a state that was read twice
    following = Following()
    for time in (1.0, 2.0):
        following.read(replace(STATE, time=time))
    assert len(following.noted) == 1
    # When something in it changes, and ends, then each is noted
    changed = replace(STATE, **change)
    for state in (changed, STATE, STATE):
        following.read(state)
    assert following.noted[1:] == [changed, STATE]


@pytest.mark.parametrize("cause", ["override", "drain", "shares", "reports"])
def test_a_state_with_a_time_that_counts_wakes_the_event_loop_after_each_read(cause: str) -> None:
    following, state = Following(), STATE
    if cause == "override":
        state = replace(state, override=OVERRIDE)
    if cause == "drain":
        explanation = Explanation("drain_time", "", "", "", 500.0, "", figures=FIGURES)
        state = replace(state, rate=replace(RATE, policy=PolicyRecord(explanation)))
    if cause == "shares":
        state = replace(state, rate=replace(RATE, shares=Shares()))
    following.accounts.is_reporting = cause == "reports"
    for _ in range(3):
        following.read(state)
    assert len(following.noted) == 3


def test_a_state_that_no_event_loop_took_is_not_noted() -> None:
    following = Following()
    following.has_ended = True
    following.read(STATE)
    following.has_ended = False
    following.read(STATE)
    assert len(following.noted) == 1
