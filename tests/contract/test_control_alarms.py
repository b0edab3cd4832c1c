"""The contract of alarms: published with the rate, read back with the state, bounded; on Redis and in memory."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import redis

from pipeline.control_store.common import ALARM_CHARS_MAX, ALARMS_MAX
from pipeline.names import KEY_RATE, AlarmCode, Mode, PauseReason, Severity
from pipeline.ports.control import Alarm, PublishedRate
from support.control import ControlRig, control_settings, memory_rig, redis_rig

HOLE = Alarm("hole", Severity.CRITICAL, "Partition 2 has a hole at 17", "the log of partition 2", 2)
UNKNOWN = Alarm(AlarmCode.LAG_UNKNOWN, Severity.DEGRADED, "The lag is unknown: “no answer”", "the event log")


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> ControlRig:
    if request.param == "memory":
        return memory_rig(control_settings("redis://nowhere"))
    return redis_rig(control_settings(request.getfixturevalue("control_redis").url))


def publish(rig: ControlRig, alarms: Sequence[Alarm] = (), *, known_at: float | None = None) -> PublishedRate:
    return rig.store.publish_rate(
        base_rate=1000.0, floor_rate=100.0, mode=Mode.NORMAL, lag=0, lag_known_at=known_at, actor="c", alarms=alarms
    )


def alarms_of(rig: ControlRig) -> tuple[Alarm, ...]:
    rate = rig.store.state().rate
    assert rate is not None
    return rate.alarms


def test_alarms_are_read_back_with_the_state_worst_first(rig: ControlRig) -> None:
    published = publish(rig, [UNKNOWN, HOLE])
    assert published.alarms == alarms_of(rig) == (HOLE, UNKNOWN)


def test_alarms_hold_until_the_next_tick(rig: ControlRig) -> None:
    publish(rig, [UNKNOWN])
    publish(rig, [HOLE])
    assert alarms_of(rig) == (HOLE,)
    publish(rig)
    assert alarms_of(rig) == ()


def test_a_tick_that_is_ignored_changes_no_alarm(rig: ControlRig) -> None:
    # Given a controller that was frozen after it had looked at the lag, and another that went on
    now = rig.store.state().time
    publish(rig, [HOLE], known_at=now)
    # When the first publishes / Then its rate is ignored, and so are its alarms
    assert publish(rig, [UNKNOWN], known_at=now - 30.0).alarms == (HOLE,)
    assert alarms_of(rig) == (HOLE,)


def test_a_pause_leaves_the_alarms_of_the_tick_alone(rig: ControlRig) -> None:
    publish(rig, [HOLE])
    rig.store.pause(PauseReason.BREAKER, actor="worker", why="refused")
    assert alarms_of(rig) == (HOLE,)


def test_many_and_long_alarms_are_bounded_and_the_worst_are_kept(rig: ControlRig) -> None:
    # Given more alarms than are kept, with texts that are too long or that UTF-8 cannot carry
    long = replace(UNKNOWN, what="w" * 5000, look_at="l" * 5000)
    bad = replace(HOLE, what="bad \udcff text")
    # When they are published
    publish(rig, [long] * 100 + [bad])
    # Then the worst come first, and all of it is short
    kept = alarms_of(rig)
    assert (len(kept), kept[0].what) == (ALARMS_MAX, "bad ? text")
    assert (len(kept[1].what), len(kept[1].look_at)) == (ALARM_CHARS_MAX, ALARM_CHARS_MAX)


# --- Two versions side by side, on Redis ----------------------------------------------------------


def redis_system(url: str) -> tuple[ControlRig, "redis.Redis", str]:
    rig = redis_rig(control_settings(url))
    client: redis.Redis = redis.Redis.from_url(url, decode_responses=True)
    return rig, client, rig.settings.key_prefix + KEY_RATE


def test_words_of_a_newer_version_are_shown_and_not_raised(request: pytest.FixtureRequest) -> None:
    # Given alarms of a newer version: a code, a severity and a field that this version does not know
    rig, client, key = redis_system(request.getfixturevalue("control_redis").url)
    with client:
        publish(rig)
        newer = [["moon_is_full", "apocalyptic", "The moon is full", "the sky", None, {"phase": 1}]]
        client.hset(key, "alarms", json.dumps(newer))
    # When the state is read / Then they are there, and the unknown severity counts as the worst
    assert alarms_of(rig) == (Alarm("moon_is_full", Severity.CRITICAL, "The moon is full", "the sky"),)


def test_a_controller_of_an_older_version_leaves_no_alarm_of_an_earlier_tick(request: pytest.FixtureRequest) -> None:
    # Given a tick with an alarm, and then a tick of a version that knows no alarms
    rig, client, key = redis_system(request.getfixturevalue("control_redis").url)
    with client:
        publish(rig, [HOLE])
        client.hset(key, mapping={"published_at": "1700000000.25", "version": "99999999999999"})
    # When the state is read / Then the alarm does not hold any more
    assert alarms_of(rig) == ()
    # And before there were any alarms at all
    with client:
        client.hdel(key, "alarms", "alarms_at")
    assert alarms_of(rig) == ()
