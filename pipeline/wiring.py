"""Picks the adapters that the settings name: the only place of the core that knows them all.

Adapters are imported where they are made, so that a process pays only for what it uses (Kafka's client alone takes
a tenth of a second to import).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.errors import SettingsError
from pipeline.flow.rate import BandPolicy

if TYPE_CHECKING:
    from pipeline.ports.bucket import Bucket
    from pipeline.ports.control import ControlEvents, ControlStore, Floors, Leases, Progress
    from pipeline.ports.history import History
    from pipeline.ports.log import EventLog
    from pipeline.ports.rate import RatePolicy
    from pipeline.ports.tallies import Tallies
    from pipeline.settings import Settings
    from pipeline.sink.postgres import PostgresSink


def load_adapters(settings: Settings) -> None:
    """Import every adapter that a worker makes with these settings, and what those import when first used.

    For a process that forks. A module that one of its threads is importing at that moment is locked in the child, where
    nobody ever unlocks it: the first task there that needs the module hangs.
    """
    names = [
        "pipeline.sink.migrate",
        "pipeline.sink.postgres",
        "pipeline.store.redis",
        "pipeline.store.redis_tallies",
        # The standard library's, and when it imports them itself:
        "encodings.idna",  # the first look-up of a host's name
        "hmac",  # the first connection
        "secrets",
        "importlib.readers",  # the first SQL file
        "importlib.resources.readers",
    ]
    names.append("pipeline.log.kafka" if settings.log_scheme == "kafka" else "pipeline.log.redis_streams")
    for name in names:
        importlib.import_module(name)


def make_log(settings: Settings) -> EventLog:
    """The event log of `EVENT_LOG_URL`."""
    match settings.log_scheme:
        case "redis" | "rediss":
            from pipeline.log.redis_streams import RedisStreamsLog  # noqa: PLC0415

            return RedisStreamsLog(settings, StoredFloors(settings))
        case "kafka":
            from pipeline.log.kafka import KafkaLog  # noqa: PLC0415

            return KafkaLog(settings)
        case other:
            raise SettingsError(f"EVENT_LOG_URL begins with {other!r}; it takes redis:// or kafka://")


def make_sink(settings: Settings) -> PostgresSink:
    """The sink of `DATABASE_URL`."""
    from pipeline.sink.postgres import PostgresSink  # noqa: PLC0415

    return PostgresSink(settings)


def make_control_store(settings: Settings) -> ControlStore:
    """The control state of `REDIS_URL`."""
    from pipeline.store.redis import RedisControlStore  # noqa: PLC0415

    return RedisControlStore(settings)


def make_control_events(settings: Settings) -> ControlEvents:
    """The control events of `REDIS_URL`."""
    from pipeline.store.redis import RedisControlEvents  # noqa: PLC0415

    return RedisControlEvents(settings)


def make_floors(settings: Settings) -> Floors:
    """The mirror of the stored offsets on `REDIS_URL`."""
    from pipeline.store.redis import RedisFloors  # noqa: PLC0415

    return RedisFloors(settings)


def make_leases(settings: Settings) -> Leases:
    """Leases on `REDIS_URL`."""
    from pipeline.store.redis import RedisLeases  # noqa: PLC0415

    return RedisLeases(settings)


def make_progress(settings: Settings) -> Progress:
    """How long partitions have stood still, on `REDIS_URL`."""
    from pipeline.store.redis import RedisProgress  # noqa: PLC0415

    return RedisProgress(settings)


def make_history(settings: Settings) -> History:
    """The last minutes of the system, on `REDIS_URL`."""
    from pipeline.store.redis_history import RedisHistory  # noqa: PLC0415

    return RedisHistory(settings)


def make_tallies(settings: Settings) -> Tallies:
    """Counters and facts of the whole system, on `REDIS_URL`."""
    from pipeline.store.redis_tallies import RedisTallies  # noqa: PLC0415

    return RedisTallies(settings)


def make_log_tallies(settings: Settings) -> Tallies:
    """The same on the event log's Redis: for what that server says of its memory."""
    return make_tallies(dataclasses.replace(settings, redis_url=settings.event_log_url))


def make_bucket(settings: Settings) -> Bucket:
    """The global token bucket on `REDIS_URL`."""
    from pipeline.store.redis import RedisBucket  # noqa: PLC0415

    return RedisBucket(settings)


def make_policy(settings: Settings) -> RatePolicy:
    """The rate policy: the mission's bands."""
    return BandPolicy.from_settings(settings)


class StoredFloors:
    """Where a restarted log learns its floors: the mirror, or PostgreSQL where the mirror was flushed.

    Asking PostgreSQL takes a connection of its own for the moment: it happens once after a restart of the log.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._floors = make_floors(settings)

    def __call__(self, log_id: str, incarnation: str, *, is_new: bool = False) -> Mapping[int, int]:
        """Fence off older incarnations and return the floors; for a log just made there are none to ask for.

        Raises StoreUnavailableError where Redis is away, SinkUnavailableError where the mirror was flushed and
        PostgreSQL is away: the fence needs the one, and a floor the other.
        """
        mirrored = self._floors.fence(log_id, incarnation)
        if mirrored is not None:
            return mirrored
        if is_new:
            self._floors.seed(log_id, {})
            return {}
        sink = make_sink(self._settings)
        try:
            stored = sink.stored_offsets(log_id)
        finally:
            sink.close()
        self._floors.seed(log_id, stored)
        # Read again: a drain may have raised the mirror since.
        return self._floors.fence(log_id, incarnation) or stored
