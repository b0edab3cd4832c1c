"""The contract of the mirror of the API keys, on Redis and in memory."""

import json
from dataclasses import replace

import pytest
import redis

from pipeline.keys import ApiKey
from pipeline.names import KEY_KEYS
from pipeline.ports.keys import MirroredKeys, mirrored_version
from stack.servers import Server
from support.control import ControlRig, control_settings, memory_rig, redis_rig

ONE = ApiKey("00000001", "shop", "a" * 64, ("loki", "otlp"), 1_800_000_000.5, "ann@host", "a test", 5.25)
TWO = ApiKey("00000002", "shop", "b" * 64, (), None, "ann@host", "a test", 6.5, "warn")


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> ControlRig:
    if request.param == "memory":
        return memory_rig(control_settings("redis://nowhere"))
    return redis_rig(control_settings(request.getfixturevalue("control_redis").url))


def test_it_is_unknown_until_it_was_filled_once(rig: ControlRig) -> None:
    assert (rig.keys.load(), rig.store.state().keys_version) == (None, None)
    assert not rig.keys.revoke([ONE.id])  # nothing to do
    assert rig.keys.load() is None
    assert rig.keys.replace([], "v", instead_of=None)
    assert rig.keys.load() == MirroredKeys("v.0", ())
    assert rig.store.state().keys_version == mirrored_version("v")


def test_its_content_is_replaced_as_a_whole_and_only_where_it_is_what_the_caller_knows(rig: ControlRig) -> None:
    assert rig.keys.replace([TWO, ONE], "v", instead_of=None)
    assert rig.keys.load() == MirroredKeys("v.0", (ONE, TWO))
    assert not rig.keys.replace([], "w", instead_of=None)
    assert not rig.keys.replace([], "w", instead_of="v.1")
    assert rig.keys.replace([replace(ONE, name="other")], "w", instead_of="v.0")
    assert rig.keys.load() == MirroredKeys("w.0", (replace(ONE, name="other"),))


def test_a_revoked_key_is_gone_at_once_and_remembered_until_the_next_copy(rig: ControlRig) -> None:
    rig.keys.replace([ONE, TWO], "v", instead_of=None)
    assert rig.keys.revoke([ONE.id])
    assert rig.keys.load() == MirroredKeys("v.1", (TWO,), (ONE.id,))
    assert rig.store.state().keys_version == "v.1"
    rig.keys.revoke([ONE.id, "00000009"])
    assert rig.keys.load() == MirroredKeys("v.2", (TWO,), (ONE.id, "00000009"))
    # A copy that was begun before is refused
    assert not rig.keys.replace([ONE, TWO], "w", instead_of="v.1")
    assert rig.keys.replace([TWO], "w", instead_of="v.2")
    assert rig.keys.load() == MirroredKeys("w.0", (TWO,))


def test_a_flush_makes_it_unknown(rig: ControlRig) -> None:
    rig.keys.replace([ONE], "v", instead_of=None)
    rig.flush()
    assert (rig.keys.load(), rig.store.state().keys_version) == (None, None)


def test_a_key_of_a_version_that_knew_no_levels_is_read(control_redis: Server) -> None:
    rig = redis_rig(control_settings(control_redis.url))
    rig.keys.replace([ONE], "v", instead_of=None)
    with redis.Redis.from_url(control_redis.url, decode_responses=True) as client:
        written = json.loads(client.hget(rig.settings.key_prefix + KEY_KEYS, ONE.id) or "")
        del written["level"]
        client.hset(rig.settings.key_prefix + KEY_KEYS, ONE.id, json.dumps(written))
    assert rig.keys.load() == MirroredKeys("v.0", (ONE,))


def test_a_key_that_can_not_be_read_is_not_valid(control_redis: Server) -> None:
    rig = redis_rig(control_settings(control_redis.url))
    rig.keys.replace([ONE], "v", instead_of=None)
    with redis.Redis.from_url(control_redis.url) as client:
        client.hset(rig.settings.key_prefix + KEY_KEYS, "00000003", '{"id": 3}')
    assert rig.keys.load() == MirroredKeys("v.0", (ONE,))
