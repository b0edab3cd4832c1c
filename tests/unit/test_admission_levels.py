"""Less important events are refused first. The bucket and the leases that ship run on virtual time."""

import pytest

from checks.sim.levels import MIX, admitted, levels, rate_used
from pipeline.names import Level

SMALL = dict.fromkeys(Level, 5)


@pytest.mark.parametrize("processes", [1, 4])
def test_at_twice_the_rate_errors_and_warnings_pass(processes: int) -> None:
    found = levels(2, bodies=SMALL, processes=processes, seconds=15)
    parts = admitted(found)
    assert parts[Level.ERROR] >= 0.99
    assert parts[Level.WARN] >= 0.99
    assert parts[Level.INFO] >= 0.65  # 0.6 of the rate is left for 0.8 of it
    assert parts[Level.DEBUG] <= 0.15  # the first burst
    assert 0.99 <= rate_used(found, 15) <= 1.1
    assert not found.violations.found


@pytest.mark.parametrize("processes", [1, 4])
def test_at_five_times_the_rate_errors_pass_and_nearly_all_warnings(processes: int) -> None:
    found = levels(5, bodies=SMALL, processes=processes, seconds=15)
    parts = admitted(found)
    assert parts[Level.ERROR] >= 0.99
    assert parts[Level.WARN] >= 0.95
    assert parts[Level.INFO] >= 0.005  # a hundredth of the rate, of twice the rate
    assert 0.99 <= rate_used(found, 15) <= 1.1
    assert not found.violations.found


def test_large_bodies_of_low_levels_do_not_hold_up_errors() -> None:
    # Given bodies as large as the burst, of the levels that are refused first
    bodies = {Level.DEBUG: 1000, Level.INFO: 1000, Level.WARN: 5, Level.ERROR: 5}
    found = levels(2, bodies=bodies, processes=2, seconds=30)
    parts = admitted(found)
    assert parts[Level.ERROR] >= 0.99
    assert parts[Level.WARN] >= 0.99
    assert parts[Level.INFO] >= 0.25
    assert 0.85 <= rate_used(found, 30) <= 1.1
    assert not found.violations.found


def test_where_errors_alone_exceed_the_rate_no_level_above_the_lowest_starves() -> None:
    mix = {Level.DEBUG: 0.2, Level.INFO: 0.1, Level.WARN: 0.1, Level.ERROR: 0.6}
    found = levels(4, bodies=SMALL, processes=2, seconds=20, mix=mix)
    counts = {load.level: one for load, one in found.loads}
    for level in (Level.INFO, Level.WARN):
        assert counts[level].admitted >= 0.8 * 0.01 * 1000 * 20
    assert counts[Level.DEBUG].admitted <= 500
    assert not found.violations.found


def test_below_the_rate_every_level_passes() -> None:
    found = levels(0.7, bodies=SMALL, processes=2, seconds=10)
    assert min(admitted(found).values()) >= 0.99
    assert set(admitted(found)) == set(MIX)
