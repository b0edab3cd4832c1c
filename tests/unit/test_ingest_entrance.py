"""The decision about a body: what the fast path counts, whom it refuses, and how many calls it takes."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from ingest.account_counter import AccountCounter, Hold
from ingest.accounts import Accounts
from ingest.admission import Admission
from ingest.entrance import Entrance
from pipeline.clock import ManualClock
from pipeline.control_store.memory import MemoryBucket, MemoryServer
from pipeline.metrics import IngestMetrics
from pipeline.names import Level
from pipeline.settings import Settings

ACCOUNT = "198.51.100.1"


class Rig:
    def __init__(self, *, lease: int = 100, **changes: Any) -> None:
        settings, clock = Settings(**changes), ManualClock()
        metrics = IngestMetrics(CollectorRegistry(auto_describe=True))
        self.admission = Admission(settings, MemoryBucket(settings, MemoryServer(clock)), clock, metrics)
        self.admission._left = lease
        accounts = Accounts(settings, clock)
        self.tally: AccountCounter = accounts.enter(ACCOUNT)
        self.entrance = Entrance(self.admission, accounts, has_levels=settings.admission_levels)

    def counted(self) -> tuple[int, int]:
        return self.tally.offered, self.tally.body_events


def test_with_neither_levels_nor_accounts_nothing_is_counted() -> None:
    rig = Rig()
    assert rig.entrance.take_now is not None
    assert rig.entrance.take_now(3)
    assert (rig.admission._left, rig.counted()) == (97, (0, 0))


@pytest.mark.parametrize("changes", [{"admission_levels": True}, {"admission_shares": True}])
def test_a_body_is_counted_whether_the_lease_covers_it_or_not(changes: dict[str, bool]) -> None:
    rig = Rig(**changes)
    assert rig.entrance.take_now is None
    assert rig.entrance.admit_now(rig.tally, 60, Level.INFO)
    assert (rig.admission._left, rig.counted()) == (40, (60, 60))
    assert not rig.entrance.admit_now(rig.tally, 41, Level.INFO)
    assert (rig.admission._left, rig.counted()) == (40, (101, 41))
    assert rig.entrance.admit_now(rig.tally, 40)
    assert (rig.admission._left, rig.counted()) == (0, (141, 40))


def test_a_body_of_a_lower_level_leaves_its_reserve() -> None:
    rig = Rig(admission_levels=True)
    rig.admission._kept = (60, 40, 20, 0)
    assert not rig.entrance.admit_now(rig.tally, 61, Level.INFO)
    assert rig.entrance.admit_now(rig.tally, 60, Level.INFO)
    assert not rig.entrance.admit_now(rig.tally, 1, Level.INFO)
    assert rig.entrance.admit_now(rig.tally, 1, Level.WARN)
    assert rig.counted() == (123, 1)


def test_a_body_of_an_account_that_is_held_back_is_counted_and_takes_nothing_of_the_lease() -> None:
    rig = Rig(admission_shares=True)
    rig.tally.hold = Hold(0.0)
    assert not rig.entrance.admit_now(rig.tally, 5)
    assert (rig.admission._left, rig.counted()) == (100, (5, 5))


# A call costs more than all that a decision does.
def test_a_decision_is_one_call() -> None:
    plain, both = Rig(), Rig(admission_levels=True, admission_shares=True)
    take_now = plain.entrance.take_now
    assert take_now is not None
    assert _calls(lambda: take_now(1)) == 1
    assert _calls(lambda: both.entrance.admit_now(both.tally, 1, Level.INFO)) == 1


def _calls(decide: Callable[[], bool]) -> int:
    """The functions that a decision calls, of Python and of C."""
    called: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event in {"call", "c_call"}:
            called.append(frame.f_code.co_name if event == "call" else repr(argument))

    sys.setprofile(note)
    try:
        assert decide()
    finally:
        sys.setprofile(None)
    return len(called) - 2  # `decide` itself, and the end of the profile
