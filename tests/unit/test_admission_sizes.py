"""Bodies of several sizes side by side: none starves. The bucket and the leases that ship run on virtual time."""

from checks.sim.arms import ARMS
from checks.sim.processes import AfterRefusal, Load
from checks.sim.scenarios import constant
from checks.sim.timeline import Timeline, body_shares
from checks.sim.world import Scenario, run

SIZES = (1, 20, 100, 512, 1000)


def side_by_side(rate: float, loads: list[Load], seconds: float, *, step_seconds: float, seed: int) -> Timeline:
    scenario = Scenario("sizes", seconds, loads, capacity=constant(10 * rate), nominal=rate, step_seconds=step_seconds)
    return run(scenario, ARMS["static limit"], seed)


def check(timeline: Timeline, rate: float, seconds: float) -> None:
    """Each size has at least 0.8 of its max-min share, the same chance as the others, and no bound was broken."""
    assert {size: share for size, share in body_shares(timeline).items() if share < 0.8} == {}
    admitted = sum(counts.admitted for _, counts in timeline.loads)
    assert 0.95 * rate * seconds <= admitted <= 1.1 * rate * seconds
    # The chance of a body is what the rate admits of all that is sent.
    chance = admitted / sum(counts.offered for _, counts in timeline.loads)
    chances = {load.body: counts.admitted / counts.offered for load, counts in timeline.loads}
    assert {size: one for size, one in chances.items() if not 0.75 * chance < one < 1.3 * chance} == {}
    assert not timeline.violations.found


def test_every_size_gets_its_share_where_all_obey_retry_after() -> None:
    # Given clients of all sizes that send equally often, and together want twice the rate
    rate, seconds = 1000.0, 30.0
    loads = [
        Load(constant(2 * rate / 5), body=size, after_refusal=AfterRefusal.OBEY, senders=round(3000 / size))
        for size in SIZES
    ]
    check(side_by_side(rate, loads, seconds, step_seconds=0.5, seed=2), rate, seconds)


def test_every_size_gets_its_share_at_the_lowest_rate() -> None:
    # Given bodies of many clients; the largest have ten times the burst
    rate, seconds = 100.0, 800.0
    loads = [Load(constant(2 * rate / 5), body=size) for size in SIZES]
    check(side_by_side(rate, loads, seconds, step_seconds=0.025, seed=1), rate, seconds)
