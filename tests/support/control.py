"""Control adapters for tests: the same system on Redis or in memory, and ways to make it fail."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import redis

from checks.testbed import waiting
from checks.testbed.waiting import WAIT_SECONDS_MAX
from pipeline.control_store.memory import (
    MemoryBucket,
    MemoryControlEvents,
    MemoryControlStore,
    MemoryKeyMirror,
    MemoryLeases,
    MemoryOffers,
    MemoryOffsetFence,
    MemoryProgress,
    MemoryServer,
    MemoryThrottle,
    MemoryTroubles,
)
from pipeline.control_store.redis import (
    RedisBucket,
    RedisControlEvents,
    RedisControlStore,
    RedisKeyMirror,
    RedisLeases,
    RedisOffers,
    RedisOffsetFence,
    RedisProgress,
    RedisThrottle,
    RedisTroubles,
)
from pipeline.ports.bucket import Bucket
from pipeline.ports.control import ControlEvents, ControlStore, Leases, OffsetFence, Progress, Troubles
from pipeline.ports.keys import KeyMirror
from pipeline.ports.offers import Offers
from pipeline.ports.throttle import Throttle
from pipeline.settings import Settings


@dataclass
class ControlRig:
    """One system's control adapters, whichever they are."""

    settings: Settings
    store: ControlStore
    events: ControlEvents
    fence: OffsetFence
    leases: Leases
    progress: Progress
    troubles: Troubles
    bucket: Bucket
    another_bucket: Callable[[], Bucket]
    flush: Callable[[], None]
    offers: Offers
    throttle: Throttle
    keys: KeyMirror


def control_settings(redis_url: str, **changes: Any) -> Settings:
    """Settings of a system of the test's own on this control server."""
    return replace(Settings(redis_url=redis_url, key_prefix=f"t{uuid.uuid4().hex}:"), **changes)


def redis_rig(settings: Settings) -> ControlRig:
    """The adapters on the control server of the settings; a flush loses this system's keys only."""

    def flush() -> None:
        with redis.Redis.from_url(settings.redis_url) as client:
            for key in client.scan_iter(match=settings.key_prefix + "*", count=1000):
                client.delete(key)

    return ControlRig(
        settings,
        RedisControlStore(settings),
        RedisControlEvents(settings),
        RedisOffsetFence(settings),
        RedisLeases(settings),
        RedisProgress(settings),
        RedisTroubles(settings),
        RedisBucket(settings),
        lambda: RedisBucket(settings),
        flush,
        RedisOffers(settings),
        RedisThrottle(settings),
        RedisKeyMirror(settings),
    )


def memory_rig(settings: Settings, server: MemoryServer | None = None) -> ControlRig:
    """The adapters in memory."""
    server = server or MemoryServer()
    return ControlRig(
        settings,
        MemoryControlStore(settings, server),
        MemoryControlEvents(settings, server),
        MemoryOffsetFence(settings, server),
        MemoryLeases(settings, server),
        MemoryProgress(settings, server),
        MemoryTroubles(settings, server),
        MemoryBucket(settings, server),
        lambda: MemoryBucket(settings, server),
        server.flush,
        MemoryOffers(settings, server),
        MemoryThrottle(settings, server),
        MemoryKeyMirror(settings, server),
    )


def eventually(condition: Callable[[], bool], *, seconds_max: float = WAIT_SECONDS_MAX) -> float:
    """Wait until `condition` holds; returns for how many seconds it was seen not to."""
    return waiting.eventually(condition, seconds_max=seconds_max, look_seconds=0.005)
