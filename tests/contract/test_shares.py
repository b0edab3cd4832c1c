"""The contract of the reports of what accounts offer, and of the published shares; on Redis and in memory."""

from dataclasses import replace

import pytest
import redis

from pipeline.flow.shares import Offered, Shares
from pipeline.names import KEY_OFFERS, KEY_RATE, Mode, PauseReason
from pipeline.ports.control import PublishedRate
from pipeline.ports.offers import REPORT_SECONDS_MAX
from stack.servers import Server
from support.control import ControlRig, control_settings, eventually, memory_rig, redis_rig

ONE = Offered({"192.0.2.1": 100.5, "2001:db8::/64": 2.0}, 7.5, 1.5, 0.25)
OTHER = Offered({}, fill=None)
SHARES = Shares(600.5, 1500.0, {"192.0.2.1": 5000.0})


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> ControlRig:
    if request.param == "memory":
        return memory_rig(control_settings("redis://nowhere"))
    return redis_rig(control_settings(request.getfixturevalue("control_redis").url))


def publish(rig: ControlRig, shares: Shares | None, *, known_at: float | None = None) -> PublishedRate:
    return rig.store.publish_rate(
        base_rate=1000.0, floor_rate=100.0, mode=Mode.NORMAL, lag=0, lag_known_at=known_at, actor="c", shares=shares
    )


def shares_of(rig: ControlRig) -> Shares | None:
    rate = rig.store.state().rate
    assert rate is not None
    return rate.shares


def test_the_newest_report_of_each_process_counts(rig: ControlRig) -> None:
    assert list(rig.offers.reported()) == []
    rig.offers.report("one", OTHER)
    rig.offers.report("other", OTHER)
    rig.offers.report("one", ONE)
    assert sorted(rig.offers.reported(), key=lambda report: report.rest) == [OTHER, ONE]


def test_the_report_of_a_process_that_ended_stops_counting(rig: ControlRig) -> None:
    rig.offers.report("one", ONE)
    rig.offers.report("other", OTHER)

    def is_forgotten() -> bool:
        rig.offers.report("other", OTHER)
        return list(rig.offers.reported()) == [OTHER]

    eventually(is_forgotten, seconds_max=REPORT_SECONDS_MAX + 5)


def test_a_flush_loses_the_reports_and_the_next_ones_count(rig: ControlRig) -> None:
    rig.offers.report("one", ONE)
    rig.flush()
    assert list(rig.offers.reported()) == []
    rig.offers.report("one", ONE)
    assert list(rig.offers.reported()) == [ONE]


def test_shares_are_published_with_the_rate_and_hold_until_the_next_tick(rig: ControlRig) -> None:
    assert publish(rig, SHARES).shares == shares_of(rig) == SHARES
    publish(rig, Shares(None, 1000.0, {}))
    assert shares_of(rig) == Shares(None, 1000.0, {})
    publish(rig, None)
    assert shares_of(rig) is None


def test_a_tick_that_is_ignored_changes_no_share_and_a_pause_leaves_them(rig: ControlRig) -> None:
    now = rig.store.state().time
    publish(rig, SHARES, known_at=now)
    assert publish(rig, None, known_at=now - 30.0).shares == SHARES
    rig.store.pause(PauseReason.BREAKER, actor="c", why="a test")
    assert shares_of(rig) == SHARES


def test_what_another_version_wrote_is_no_share_and_no_report(control_redis: Server) -> None:
    rig = redis_rig(control_settings(control_redis.url))
    publish(rig, SHARES)
    rig.offers.report("one", ONE)
    with redis.Redis.from_url(rig.settings.redis_url) as client:
        client.hset(rig.settings.key_prefix + KEY_RATE, "shares", '{"share": "low"}')
        key = rig.settings.key_prefix + KEY_OFFERS
        text = client.hget(key, "one")
        assert isinstance(text, bytes)
        client.hset(key, "two", text.split()[0] + b" no report")
        client.hset(key, "three", b"yesterday {}")
    state = rig.store.state()
    assert state.rate is not None
    assert state.rate == replace(state.rate, shares=None, rate=1000.0)
    assert list(rig.offers.reported()) == [ONE]
