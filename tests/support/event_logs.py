"""Event logs for tests: the same system's log on Redis Streams, Kafka or in memory, and ways to damage it."""

import struct
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import redis
from kafka import KafkaAdminClient

from checks.testbed.waiting import (
    APPEND_SECONDS_LONGEST,
    BUSY_SECONDS,
    PATIENT_APPEND_SECONDS,
    WAIT_SECONDS_MAX,
    eventually,
)
from pipeline import wiring
from pipeline.clock import SystemClock
from pipeline.errors import LogPartialError, LogRestartedError, LogUnavailableError
from pipeline.log.kafka import KafkaLog
from pipeline.log.kafka_python import API_VERSION
from pipeline.log.kafka_security import KafkaSecurity
from pipeline.log.kafka_topic import parse_bootstrap
from pipeline.log.kafka_wire import KafkaWire
from pipeline.log.memory import MemoryLog, MemoryLogServer
from pipeline.log.redis_streams import RedisStreamsLog
from pipeline.names import KEY_LOG_STREAM
from pipeline.ports.log import EventLog, LogBatch
from pipeline.settings import Settings
from stack.servers import Server

# Above every time-out of an adapter, and far below a hang.
CALL_SECONDS_MAX = 2.5 + BUSY_SECONDS


class ScriptedLowestOffsets:
    """A lowest offset source that knows of nothing stored, and counts how often it is asked."""

    def __init__(self, lowest_offsets: Mapping[int, int] | None = None, error: Exception | None = None) -> None:
        self.lowest_offsets = dict(lowest_offsets or {})
        self.error = error
        self.calls: list[tuple[str, str]] = []

    def __call__(self, log_id: str, incarnation: str, *, is_new: bool = False) -> Mapping[int, int]:
        self.calls.append((log_id, incarnation))
        if self.error is not None:
            raise self.error
        return self.lowest_offsets


class LogRig(Protocol):
    """One system's log, whichever it is."""

    @property
    def name(self) -> str: ...

    def open(self, lowest_offsets: ScriptedLowestOffsets | None = None) -> EventLog:
        """Another process' view of the log; closed by `close`."""

    def trim(self, partition: int, offset: int) -> None:
        """Drop records below `offset` by hand, as an operator would."""

    def replace(self) -> None:
        """Put another, empty log in its place, with all servers running on."""

    def close(self) -> None: ...


@dataclass
class MemoryRig:
    name: str = "memory"
    server: MemoryLogServer = field(default_factory=MemoryLogServer)

    def open(self, lowest_offsets: ScriptedLowestOffsets | None = None) -> EventLog:
        return MemoryLog(lowest_offsets=lowest_offsets, server=self.server)

    def trim(self, partition: int, offset: int) -> None:
        self.server.trim(partition, offset)

    def replace(self) -> None:
        self.server.flush()

    def close(self) -> None:
        pass


def log_settings(url: str, **changes: Any) -> Settings:
    """Settings of a log of the test's own on this server, with time for each append on a busy machine."""
    unique = f"t{uuid.uuid4().hex}"
    given = Settings(
        event_log_url=url, key_prefix=f"{unique}:", log_topic=unique, append_seconds_max=PATIENT_APPEND_SECONDS
    )
    return replace(given, **changes)


def patient_log(settings: Settings) -> EventLog:
    """The log of a system, for a test that fills it: a busy machine takes longer than a client would wait."""
    return wiring.make_log(replace(settings, append_seconds_max=APPEND_SECONDS_LONGEST))


@dataclass
class RedisRig:
    settings: Settings
    name: str = "redis"
    opened: list[RedisStreamsLog] = field(default_factory=list)

    def open(self, lowest_offsets: ScriptedLowestOffsets | None = None) -> RedisStreamsLog:
        self.opened.append(RedisStreamsLog(self.settings, lowest_offsets or ScriptedLowestOffsets()))
        return self.opened[-1]

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.settings.event_log_url, protocol=2)

    def stream(self, partition: int) -> str:
        return f"{self.settings.key_prefix}{KEY_LOG_STREAM}:{partition}"

    def trim(self, partition: int, offset: int) -> None:
        with self.client() as client:
            client.execute_command("XTRIM", self.stream(partition), "MINID", "=", f"0-{offset + 1}")

    def replace(self) -> None:
        """What FLUSHALL does to this log, on a server that is shared."""
        with self.client() as client:
            for key in client.scan_iter(match=f"{self.settings.key_prefix}*", count=1000):
                client.delete(key)

    def close(self) -> None:
        for log in self.opened:
            log.close()


@dataclass
class KafkaRig:
    settings: Settings
    name: str = "kafka"
    opened: list[KafkaLog] = field(default_factory=list)

    def open(self, lowest_offsets: ScriptedLowestOffsets | None = None) -> KafkaLog:
        self.opened.append(KafkaLog(self.settings, lowest_offsets or ScriptedLowestOffsets()))
        return self.opened[-1]

    def wire(self) -> KafkaWire:
        return KafkaWire(
            parse_bootstrap(self.settings.event_log_url),
            call_seconds_max=60.0,
            clock=SystemClock(),
            security=KafkaSecurity.of(self.settings),
        )

    def admin(self) -> KafkaAdminClient:
        return KafkaAdminClient(
            bootstrap_servers=self.settings.event_log_url.partition("://")[2],
            api_version=API_VERSION,
            **KafkaSecurity.of(self.settings).producer_options(),
        )

    def trim(self, partition: int, offset: int) -> None:
        wire = self.wire()
        topic = self.settings.log_topic.encode()
        body = struct.pack(">ih", 1, len(topic)) + topic + struct.pack(">iiqi", 1, partition, offset, 5000)
        wire.topic(self.settings.log_topic)
        answer = wire._ask(None, (21, 0), body)  # DeleteRecords, which neither client has a call for
        wire.close()
        answer.int32()
        answer.int32()
        answer.string()
        assert answer.int32() == 1
        answer.int32()
        assert (answer.int64(), answer.int16()) == (offset, 0)

    def replace(self) -> None:
        """Delete the topic, and make it anew."""
        wire = self.wire()
        admin = self.admin()
        before = wire.topic(self.settings.log_topic)
        admin.delete_topics([self.settings.log_topic])
        admin.close()
        eventually(lambda: wire.topic(self.settings.log_topic) is None, "the topic is gone")
        again = KafkaLog(self.settings, ScriptedLowestOffsets())
        eventually(lambda: _made(again), "the topic is there again")
        assert wire.topic(self.settings.log_topic) != before
        again.close()
        wire.close()

    def close(self) -> None:
        for log in self.opened:
            log.close()


def _made(log: KafkaLog) -> bool:
    try:
        log.identity()
    except LogUnavailableError:  # the old topic's name is still being given back
        return False
    return True


def redis_log_rig(server: Server, **changes: Any) -> RedisRig:
    return RedisRig(log_settings(server.url, **changes))


def kafka_log_rig(server: Server, **changes: Any) -> KafkaRig:
    return KafkaRig(log_settings(server.url, **changes))


def recovered(call: Callable[[], Any], *, seconds_max: float = WAIT_SECONDS_MAX) -> Any:
    """What `call` returns once the log answers again."""
    found: list[Any] = []

    def answers() -> bool:
        try:
            found.append(call())
        except (LogUnavailableError, LogPartialError):
            return False
        return True

    eventually(answers, "the log answers again", seconds_max=seconds_max)
    return found[0]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What `call` returns or raises, and the seconds that it took."""
    started = time.monotonic()
    try:
        result = call()
    except Exception as error:
        result = error
    return result, time.monotonic() - started


def timed_append(log: EventLog, entries: list[tuple[int, bytes]]) -> tuple[Any, float]:
    """The same of an append; where its partitions differ, what it is for whoever has sent the whole."""
    result, seconds = timed(lambda: log.append(entries))
    if isinstance(result, LogPartialError):
        result = result.of(partition for partition, _ in entries)
    return result, seconds


def read_all(log: EventLog, partition: int, offset: int = 0) -> list[bytes]:
    """Every value of a partition from `offset` on; the log must have no holes."""
    values: list[bytes] = []
    while (batch := log.read(partition, offset, records_max=700, wait_seconds=0)) is not None:
        assert batch.offset == offset
        values += batch.values
        offset = batch.next_offset
    return values


def read_again(log: EventLog, partition: int) -> list[bytes]:
    """Every value of a partition once it can be read, as whoever is told to look up his position goes about it."""

    def read() -> list[bytes]:
        try:
            return read_all(log, partition)
        except LogRestartedError as error:
            log.identity()
            raise LogUnavailableError(str(error)) from error

    values: list[bytes] = recovered(read)
    return values


def must_read(log: EventLog, partition: int, offset: int, *, records_max: int = 1000) -> LogBatch:
    """A batch that must be there."""
    batch = log.read(partition, offset, records_max=records_max, wait_seconds=WAIT_SECONDS_MAX)
    assert batch is not None
    return batch
