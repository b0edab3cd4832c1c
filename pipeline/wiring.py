"""Selects the adapters by the settings: the only module of the core that knows all of them.

Adapters are imported where they are created, so that a process loads only those that it uses (importing Kafka's client
alone takes a tenth of a second).
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from pipeline.errors import RecoverableError, SettingsError

if TYPE_CHECKING:
    from pipeline.ports.bucket import Bucket
    from pipeline.ports.control import ControlEvents, ControlStore, Floors, Leases, Progress, Troubles
    from pipeline.ports.counters import Counters
    from pipeline.ports.history import History
    from pipeline.ports.log import EventLog
    from pipeline.settings import Settings
    from pipeline.sink.postgres import PostgresSink
    from pipeline.store.redis_queues import RedisQueues

_logger = logging.getLogger(__name__)

_BRIEF_SECONDS: Final = 0.3  # a new connection and a read take 10 ms; an append has one second in total


def load_adapters(settings: Settings) -> None:
    """Import every adapter that a worker creates with these settings, and the modules that those import on first use.

    For a process that forks. If one of its threads is importing a module during the fork, the module stays locked in
    the child for ever: the first task there that needs the module hangs.
    """
    names = [
        "pipeline.sink.migrate",
        "pipeline.sink.postgres",
        "pipeline.store.redis",
        "pipeline.store.redis_queues",
        "pipeline.store.redis_counters",
        # Modules of the standard library, and what triggers their import:
        "encodings.idna",  # the first look-up of a host name
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

            return KafkaLog(settings, StoredFloors(settings))
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
    """How long partitions have had the same offset, on `REDIS_URL`."""
    from pipeline.store.redis import RedisProgress  # noqa: PLC0415

    return RedisProgress(settings)


def make_history(settings: Settings) -> History:
    """The last minutes of the system, on `REDIS_URL`."""
    from pipeline.store.redis_history import RedisHistory  # noqa: PLC0415

    return RedisHistory(settings)


def make_troubles(settings: Settings) -> Troubles:
    """Problems that processes find in themselves, on `REDIS_URL`."""
    from pipeline.store.redis import RedisTroubles  # noqa: PLC0415

    return RedisTroubles(settings)


def make_counters(settings: Settings) -> Counters:
    """Counters and facts of the whole system, on `REDIS_URL`."""
    from pipeline.store.redis_counters import RedisCounters  # noqa: PLC0415

    return RedisCounters(settings)


def make_queues(settings: Settings) -> RedisQueues:
    """Celery's queues on `REDIS_URL`."""
    from pipeline.store.redis_queues import RedisQueues  # noqa: PLC0415

    return RedisQueues(settings)


def make_log_counters(settings: Settings) -> Counters:
    """The same on the event log's Redis: for that server's memory figures."""
    return make_counters(dataclasses.replace(settings, redis_url=settings.event_log_url))


def make_bucket(settings: Settings) -> Bucket:
    """The global token bucket on `REDIS_URL`."""
    from pipeline.store.redis import RedisBucket  # noqa: PLC0415

    return RedisBucket(settings)


class StoredFloors:
    """Source of the floors for a restarted log: the highest of PostgreSQL's offsets and their mirror's.

    A complete mirror alone is sufficient. PostgreSQL is read as well, with a short time limit: a mirror that was
    restored together with its server's memory does not notice that it is old. The read opens a new connection, once
    after a restart of the log.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._floors = make_floors(settings)

    def __call__(self, log_id: str, incarnation: str, *, is_new: bool = False) -> Mapping[int, int]:
        """Fence off older incarnations and return the floors; a new log has none, so PostgreSQL is not read.

        Raises StoreUnavailableError if Redis is unavailable: the fence needs it. Raises SinkUnavailableError if
        PostgreSQL is unavailable and the mirror is of an earlier life of Redis: then the floors need it.
        """
        mirror = self._floors.fence(log_id, incarnation)
        if mirror.is_complete:
            stored = self._asked_briefly(log_id)
        else:
            # A process that raised a floor before the fence has already written PostgreSQL's offset: wait for its
            # commit.
            stored = {} if is_new else self._asked(lambda sink: sink.settled_offsets(log_id))
            self._floors.seed(log_id, mirror.life, stored)
        partitions = mirror.floors.keys() | stored.keys()
        return {p: max(mirror.floors.get(p, 0), stored.get(p, 0)) for p in partitions}

    def _asked_briefly(self, log_id: str) -> dict[int, int]:
        """PostgreSQL's offsets; empty if it does not answer at once."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="stored-floors")
        try:
            asked = executor.submit(self._asked, lambda sink: sink.stored_offsets(log_id))
            return asked.result(_BRIEF_SECONDS)
        except (RecoverableError, TimeoutError) as error:
            _logger.warning(
                "floors are the mirror's alone, PostgreSQL does not answer: %s",
                error,
                extra={"action": "floors_of_mirror"},
            )
            return {}
        finally:
            executor.shutdown(wait=False)

    def _asked(self, ask: Callable[[PostgresSink], dict[int, int]]) -> dict[int, int]:
        sink = make_sink(self._settings)
        try:
            return ask(sink)
        finally:
            sink.close()
