"""The control store on Redis: adapters of `pipeline.ports.control` and `pipeline.ports.bucket`.

Every write is a script that may run on a server at its memory limit. The stored data is bounded, and it must be
possible to pause the system while its server is full.
"""

from pipeline.control_store.redis_bucket import RedisBucket
from pipeline.control_store.redis_control import RedisControlEvents, RedisControlStore
from pipeline.control_store.redis_keys import RedisKeyMirror
from pipeline.control_store.redis_leases import RedisLeases, RedisProgress
from pipeline.control_store.redis_offers import RedisOffers
from pipeline.control_store.redis_offset_fence import RedisOffsetFence
from pipeline.control_store.redis_throttle import RedisThrottle
from pipeline.control_store.redis_troubles import RedisTroubles

__all__ = [
    "RedisBucket",
    "RedisControlEvents",
    "RedisControlStore",
    "RedisKeyMirror",
    "RedisLeases",
    "RedisOffers",
    "RedisOffsetFence",
    "RedisProgress",
    "RedisThrottle",
    "RedisTroubles",
]
