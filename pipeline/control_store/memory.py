"""The control store in memory, for tests and simulation. It behaves like the Redis adapters."""

from pipeline.control_store.memory_bucket import MemoryBucket
from pipeline.control_store.memory_control import MemoryControlEvents, MemoryControlStore
from pipeline.control_store.memory_keys import MemoryKeyMirror
from pipeline.control_store.memory_leases import MemoryLeases, MemoryProgress
from pipeline.control_store.memory_offers import MemoryOffers
from pipeline.control_store.memory_offset_fence import MemoryOffsetFence
from pipeline.control_store.memory_server import MemoryServer
from pipeline.control_store.memory_throttle import MemoryThrottle
from pipeline.control_store.memory_troubles import MemoryTroubles

__all__ = [
    "MemoryBucket",
    "MemoryControlEvents",
    "MemoryControlStore",
    "MemoryKeyMirror",
    "MemoryLeases",
    "MemoryOffers",
    "MemoryOffsetFence",
    "MemoryProgress",
    "MemoryServer",
    "MemoryThrottle",
    "MemoryTroubles",
]
