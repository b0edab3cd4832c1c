"""Selects the adapters by the settings: the only module of the core that knows all of them.

Adapters are imported where they are created, so that a process loads only those that it uses (importing Kafka's client
alone takes a tenth of a second).
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING

from pipeline.errors import SettingsError
from pipeline.ports.storage import Storage
from pipeline.stored_lowest_offsets import StoredLowestOffsets

if TYPE_CHECKING:
    from pipeline.control_store.redis_queues import RedisQueues
    from pipeline.keys import ApiKey
    from pipeline.ports.bucket import Bucket
    from pipeline.ports.control import ControlEvents, ControlStore, Leases, OffsetFence, Progress, Troubles
    from pipeline.ports.counters import Counters
    from pipeline.ports.history import History
    from pipeline.ports.keys import KeyMirror
    from pipeline.ports.log import EventLog, LowestOffsetsSource
    from pipeline.ports.log_trimmer import LogTrimmer
    from pipeline.ports.offers import Offers
    from pipeline.ports.offset_store import OffsetStore
    from pipeline.ports.schema import Schema
    from pipeline.ports.throttle import Throttle
    from pipeline.settings import Settings


def load_adapters(settings: Settings) -> None:
    """Import every adapter that a worker creates with these settings, and the modules that those import on first use.

    For a process that forks. If one of its threads is importing a module during the fork, the module stays locked in
    the child for ever: the first task there that needs the module hangs.
    """
    names = [
        "pipeline.sink.dead_letters",
        "pipeline.sink.jsonl",
        "pipeline.sink.known_logs",
        "pipeline.sink.log_marks",
        "pipeline.sink.migrate",
        "pipeline.sink.operator_store",
        "pipeline.sink.postgres",
        "pipeline.sink.retention",
        "pipeline.sink.sessions",
        "pipeline.control_store.redis",
        "pipeline.control_store.redis_queues",
        "pipeline.control_store.redis_counters",
        # Modules of the standard library, and what triggers their import:
        "encodings.idna",  # the first look-up of a host name
        "hmac",  # the first connection
        "secrets",
        "importlib.readers",  # the first SQL file
        "importlib.resources.readers",
    ]
    is_kafka = settings.log_scheme == "kafka"
    names += ["pipeline.log.kafka", "pipeline.log.kafka_trim"] if is_kafka else ["pipeline.log.redis_streams"]
    for name in names:
        importlib.import_module(name)


def make_log(settings: Settings) -> EventLog:
    """The event log of `EVENT_LOG_URL`."""
    match settings.log_scheme:
        case "redis":
            from pipeline.log.redis_streams import RedisStreamsLog  # noqa: PLC0415

            return RedisStreamsLog(settings, make_lowest_offsets_source(settings))
        case "kafka":
            from pipeline.log.kafka import KafkaLog  # noqa: PLC0415

            return KafkaLog(settings, make_lowest_offsets_source(settings))
        case other:
            raise SettingsError(f"EVENT_LOG_URL begins with {other!r}; it takes redis:// or kafka://")


def make_log_trimmer(settings: Settings) -> LogTrimmer:
    """Deletes records of the event log of `EVENT_LOG_URL`. Raises SettingsError if that is not on Kafka."""
    if settings.log_scheme != "kafka":
        raise SettingsError("only an event log on Kafka is trimmed by LOG_KEEP_HOURS")
    from pipeline.log.kafka_trim import KafkaTrimmer  # noqa: PLC0415

    return KafkaTrimmer(settings, make_lowest_offsets_source(settings))


def make_lowest_offsets_source(settings: Settings) -> LowestOffsetsSource:
    """The offsets that a log which came back without its tail must not use again."""
    return StoredLowestOffsets(make_offset_fence(settings), partial(make_offset_store, settings))


def make_storage(settings: Settings) -> Storage:
    """The event sink, and the stores for offsets, dead letters and operators' settings, over one connection.

    `EVENT_SINK_URL` decides where events, offsets and dead letters go. Operators' settings are always in PostgreSQL.
    """
    from pipeline.sink.dead_letters import PostgresDeadLetters  # noqa: PLC0415
    from pipeline.sink.known_logs import PostgresKnownLogs  # noqa: PLC0415
    from pipeline.sink.log_marks import PostgresLogMarks  # noqa: PLC0415
    from pipeline.sink.operator_store import PostgresOperatorStore  # noqa: PLC0415
    from pipeline.sink.postgres import PostgresSink  # noqa: PLC0415
    from pipeline.sink.retention import PostgresRetention  # noqa: PLC0415
    from pipeline.sink.session import Session  # noqa: PLC0415

    session = Session(settings)
    operators, known_logs = PostgresOperatorStore(session), PostgresKnownLogs(session)
    retention, log_marks = PostgresRetention(session), PostgresLogMarks(session)
    if settings.event_sink_url:
        from pipeline.sink.jsonl import JsonlSink  # noqa: PLC0415

        files = JsonlSink(settings, partial(_has_stored, settings))
        return Storage(files, files, files, operators, known_logs, retention, log_marks)
    sink = PostgresSink(settings, session)
    return Storage(sink, sink, PostgresDeadLetters(session), operators, known_logs, retention, log_marks)


def _has_stored(settings: Settings) -> bool:
    """Whether the control store knows that events of the event log are stored. Raises RecoverableError."""
    log = make_log(settings)
    try:
        return any(make_offset_fence(settings).mirror(log.identity().log_id).lowest_offsets.values())
    finally:
        log.close()


def make_offset_store(settings: Settings) -> OffsetStore:
    """The stored offsets, without a way to store."""
    return make_storage(settings).offsets


def make_schema(settings: Settings) -> Schema:
    """The schema of `DATABASE_URL`."""
    from pipeline.sink.migrate import PostgresSchema  # noqa: PLC0415

    return PostgresSchema(settings)


def check_redis(settings: Settings, role: str) -> None:
    """Raise SettingsError if `REDIS_URL` is a Redis Cluster, or if a user of Redis lacks rights of `role`."""
    from pipeline.control_store.redis_cluster import refuse_cluster  # noqa: PLC0415
    from pipeline.control_store.rights_check import refuse_missing_rights  # noqa: PLC0415

    refuse_cluster(settings)
    refuse_missing_rights(settings, role)


def session_problem(settings: Settings, *, own_processes: int, warns: bool = True) -> str | None:
    """Why PostgreSQL allows fewer sessions than a system with these settings uses; None if it allows enough.

    `own_processes` are those of a worker that take batches. With `warns`, logs a line if it allows just enough.
    Raises SinkUnavailableError if it can't be asked.
    """
    from pipeline.sink.sessions import session_problem as problem_of  # noqa: PLC0415

    return problem_of(settings, own_processes=own_processes, warns=warns)


def make_control_store(settings: Settings, *, reads_keys: bool = True) -> ControlStore:
    """The control state of `REDIS_URL`; for operators without the version of the API keys."""
    from pipeline.control_store.redis import RedisControlStore  # noqa: PLC0415

    return RedisControlStore(settings, reads_keys=reads_keys)


def make_control_events(settings: Settings) -> ControlEvents:
    """The control events of `REDIS_URL`."""
    from pipeline.control_store.redis import RedisControlEvents  # noqa: PLC0415

    return RedisControlEvents(settings)


def make_offset_fence(settings: Settings) -> OffsetFence:
    """The mirror of the stored offsets on `REDIS_URL`."""
    from pipeline.control_store.redis import RedisOffsetFence  # noqa: PLC0415

    return RedisOffsetFence(settings)


def make_key_mirror(settings: Settings) -> KeyMirror:
    """The mirror of the API keys on `REDIS_URL`."""
    from pipeline.control_store.redis import RedisKeyMirror  # noqa: PLC0415

    return RedisKeyMirror(settings)


def load_stored_keys(settings: Settings) -> tuple[ApiKey, ...]:
    """The API keys in PostgreSQL, for a process that can't read the mirror. Raises SinkUnavailableError."""
    storage = make_storage(settings)
    try:
        return storage.operators.load_keys().keys
    finally:
        storage.close()


def make_leases(settings: Settings) -> Leases:
    """Leases on `REDIS_URL`."""
    from pipeline.control_store.redis import RedisLeases  # noqa: PLC0415

    return RedisLeases(settings)


def make_progress(settings: Settings) -> Progress:
    """How long partitions have had the same offset, on `REDIS_URL`."""
    from pipeline.control_store.redis import RedisProgress  # noqa: PLC0415

    return RedisProgress(settings)


def make_history(settings: Settings) -> History:
    """The last minutes of the system, on `REDIS_URL`."""
    from pipeline.control_store.redis_history import RedisHistory  # noqa: PLC0415

    return RedisHistory(settings)


def make_offers(settings: Settings) -> Offers:
    """What is offered to each ingest process, on `REDIS_URL`."""
    from pipeline.control_store.redis import RedisOffers  # noqa: PLC0415

    return RedisOffers(settings)


def make_throttle(settings: Settings) -> Throttle:
    """What ingest processes refused, by account, on `REDIS_URL`."""
    from pipeline.control_store.redis import RedisThrottle  # noqa: PLC0415

    return RedisThrottle(settings)


def make_troubles(settings: Settings) -> Troubles:
    """Problems that processes find in themselves, on `REDIS_URL`."""
    from pipeline.control_store.redis import RedisTroubles  # noqa: PLC0415

    return RedisTroubles(settings)


def make_counters(settings: Settings) -> Counters:
    """Counters and facts of the whole system, on `REDIS_URL`."""
    from pipeline.control_store.redis_counters import RedisCounters  # noqa: PLC0415

    return RedisCounters(settings)


def make_queues(settings: Settings) -> RedisQueues:
    """Celery's queues on `REDIS_URL`."""
    from pipeline.control_store.redis_queues import RedisQueues  # noqa: PLC0415

    return RedisQueues(settings)


def make_log_counters(settings: Settings) -> Counters:
    """Counters on the event log's Redis: for that server's memory figures only."""
    from pipeline.control_store.redis_counters import RedisCounters  # noqa: PLC0415

    return RedisCounters(settings, "event_log_url")


def make_bucket(settings: Settings) -> Bucket:
    """The global token bucket on `REDIS_URL`."""
    from pipeline.control_store.redis import RedisBucket  # noqa: PLC0415

    return RedisBucket(settings)
