"""The contract of the reports of refusals, on Redis and in memory."""

import pytest
import redis

from pipeline.errors import StoreUnavailableError
from pipeline.flow.refusals import SLICES_MAX, WINDOW_SECONDS, Refusals, Refused
from pipeline.names import KEY_THROTTLE
from stack.servers import Server
from support.control import ControlRig, control_settings, memory_rig, redis_rig

ONE = Refusals({"192.0.2.1": {"share": Refused(2, 40)}}, {"rate": Refused(1, 1)})
TWO = Refusals({"192.0.2.1": {"rate": Refused(1, 5)}, "2001:db8::/64": {"rate": Refused(1, 7)}})


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> ControlRig:
    if request.param == "memory":
        return memory_rig(control_settings("redis://nowhere", accounts_max=8))
    return redis_rig(control_settings(request.getfixturevalue("control_redis").url, accounts_max=8))


def test_the_slices_of_all_processes_are_summed(rig: ControlRig) -> None:
    assert rig.throttle.reported() == Refusals()
    rig.throttle.report("one", {0: ONE, 1: ONE})
    rig.throttle.report("two", {0: TWO})
    assert rig.throttle.reported() == Refusals(
        {
            "192.0.2.1": {"share": Refused(4, 80), "rate": Refused(1, 5)},
            "2001:db8::/64": {"rate": Refused(1, 7)},
        },
        {"rate": Refused(2, 2)},
    )


def test_a_report_of_a_slice_replaces_the_earlier_one(rig: ControlRig) -> None:
    rig.throttle.report("one", {0: ONE})
    rig.throttle.report("one", {0: TWO})
    assert rig.throttle.reported() == TWO
    # And a process uses the places of its slices in turn
    rig.throttle.report("one", {SLICES_MAX: ONE})
    assert rig.throttle.reported() == ONE


def test_accounts_are_bounded_over_all_processes(rig: ControlRig) -> None:
    for process in range(3):
        accounts = {f"10.0.{process}.{n}": {"rate": Refused(1, n + 1)} for n in range(8)}
        rig.throttle.report(f"p{process}", {0: Refusals(accounts)})
    found = rig.throttle.reported()
    assert len(found.accounts) == 8
    assert found.total == Refused(24, 3 * 36)


def test_a_flush_loses_them_and_the_next_report_counts(rig: ControlRig) -> None:
    rig.throttle.report("one", {0: ONE})
    rig.flush()
    assert rig.throttle.reported() == Refusals()
    rig.throttle.report("one", {0: ONE})
    assert rig.throttle.reported() == ONE


def test_what_is_old_or_can_not_be_read_does_not_count_and_goes(control_redis: Server) -> None:
    rig = redis_rig(control_settings(control_redis.url))
    key = rig.settings.key_prefix + KEY_THROTTLE
    rig.throttle.report("one", {0: ONE})
    with redis.Redis.from_url(control_redis.url, decode_responses=True) as client:
        seconds = client.time()[0]
        text = client.hget(key, "one 0").partition(" ")[2]
        client.hset(key, "ended 0", f"{seconds - WINDOW_SECONDS - 1} {text}")
        client.hset(key, "future 0", f"{seconds + 100} {text}")
        client.hset(key, "newer 0", f"{seconds - 1} {{}} of another version")
        assert rig.throttle.reported() == ONE
        assert WINDOW_SECONDS / 2 <= client.ttl(key) <= WINDOW_SECONDS
        # When a process begins a slice, then those of processes that have ended go
        rig.throttle.report("one", {1: ONE})
        assert set(client.hkeys(key)) == {"one 0", "one 1", "newer 0"}


def test_at_its_memory_limit_redis_takes_no_report(own_control_redis: Server) -> None:
    rig = redis_rig(control_settings(own_control_redis.url))
    with redis.Redis.from_url(own_control_redis.url) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailableError):
            rig.throttle.report("one", {0: ONE})
        assert rig.throttle.reported() == Refusals()
        client.config_set("maxmemory", "64mb")
    rig.throttle.report("one", {0: ONE})
    assert rig.throttle.reported() == ONE
