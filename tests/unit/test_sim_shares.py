"""Shares of accounts in the simulator: one account that offers far more than the rate, and small ones beside it."""

from dataclasses import replace
from typing import Any

import pytest

from checks.sim.arms import ARMS
from checks.sim.processes import Load
from checks.sim.scenarios import SCENARIOS, constant, steps
from checks.sim.timeline import Timeline, account_shares, rate_used
from checks.sim.world import Fault, Scenario, run
from ingest.accounts import Accounts

HEAVY, NEW = "192.0.2.1", "192.0.2.2"


def short(seconds: float, judged_from: float, **changes: Any) -> Scenario:
    return replace(SCENARIOS["one heavy account"], seconds=seconds, judged_from=judged_from, **changes)


def small(timeline: Timeline) -> list[float]:
    return [share for account, share in account_shares(timeline).items() if account not in (HEAVY, NEW)]


# With a period of five seconds, and of one.
@pytest.mark.parametrize(("arm", "judged_from"), [("static limit", 20), ("drain_time", 10)])
def test_small_accounts_get_what_they_offer_and_the_rate_is_used(arm: str, judged_from: int) -> None:
    timeline = run(short(judged_from + 20, judged_from), ARMS[arm], 1)
    assert len(small(timeline)) == 45
    assert min(small(timeline)) >= 0.9
    assert sum(small(timeline)) / 45 >= 0.98
    assert rate_used(timeline, judged_from) >= 0.97
    assert account_shares(timeline)[HEAVY] == pytest.approx(600 / 5000, rel=0.15)
    assert not timeline.violations.found


def test_without_shares_the_small_accounts_get_their_part_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accounts, "is_reporting", False)
    timeline = run(short(16, 8), ARMS["drain_time"], 1)
    assert sum(small(timeline)) / 45 < 0.5


def test_accounts_that_come_and_go_and_a_flush_cost_the_small_ones_little() -> None:
    # Given a heavy account that stops, another that comes, and a control store that loses everything
    loads = [
        Load(steps((0, 5000.0), (16, 0.0)), body=20, account=HEAVY),
        Load(steps((0, 0.0), (20, 4000.0)), body=20, account=NEW),
        *(Load(constant(20), body=1 + number % 20, account=f"198.51.100.{number}") for number in range(45)),
    ]
    faults = [Fault("state lost", 13, 13), Fault("controller restarts", 25, 25)]
    timeline = run(short(32, 10, loads=loads, faults=faults), ARMS["drain_time"], 1)
    assert sum(small(timeline)) / 45 >= 0.9
    # Then the new one gets what the others leave, from its first second on
    admitted = [second.admitted for second in timeline.seconds]
    assert min(admitted[21:30]) >= 0.75 * 1500
