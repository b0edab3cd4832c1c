"""The dependencies of a worker process: created lazily in each process, never inherited over a fork."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, cast

from celery.signals import worker_process_shutdown

from pipeline import wiring
from pipeline.breaker import SinkBreaker
from pipeline.clock import Clock, SystemClock
from pipeline.control_store.redis_queues import RedisQueues
from pipeline.drain_counters import DrainCounters
from pipeline.errors import SluiceError
from pipeline.flow.age import Age
from pipeline.late_begin import LateBegins
from pipeline.pace import Pace
from pipeline.ports.control import ControlEvents, ControlStore, Leases, OffsetFence, Progress, Troubles
from pipeline.ports.counters import Counters
from pipeline.ports.dead_letters import DeadLetters
from pipeline.ports.event_sink import EventSink
from pipeline.ports.history import History
from pipeline.ports.keys import KeyMirror
from pipeline.ports.log import EventLog, LogIdentity
from pipeline.ports.offers import Offers
from pipeline.ports.offset_store import OffsetStore
from pipeline.ports.operator_store import OperatorStore
from pipeline.ports.retention import Retention
from pipeline.ports.schema import Schema
from pipeline.ports.storage import Storage
from pipeline.ports.throttle import Throttle
from pipeline.probe import Backoff
from pipeline.retention import LogRetention
from pipeline.settings import Settings
from tasks.former_logs import FormerLogs
from tasks.hints import Drained, shares
from tasks.mistakes import Mistakes
from tasks.sessions import FewSessions
from tasks.startup import worker_name

_KNOWN_LOG_SECONDS: Final = 10.0  # ingest uses added partitions within five seconds; they must be drained


class WorkerContext:
    """The adapters of one process. Each is created on first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pid = os.getpid()
        # For readers of the control events: the worker's name, as in `celery status`, and its process.
        self.name = f"{worker_name() or socket.gethostname()}/{self.pid}"
        self.clock: Clock = SystemClock()
        self.mistakes = Mistakes(self.clock)
        self.is_migrated = False
        self._paces: dict[int, Pace] = {}
        self.schema_problem: str | None = None  # why the migration of the schema failed
        self.server_problem: str | None = None  # why PostgreSQL can't be used at all
        self.lag_age, self.rate_age = Age(), Age()  # as counted by this process' ticks of the control loop
        self.late_begins = LateBegins()  # of the event log, as this process' ticks have seen them
        self._known_log: tuple[float, LogIdentity] | None = None  # when it was read

    @cached_property
    def log(self) -> EventLog:
        return wiring.make_log(self.settings)

    @cached_property
    def storage(self) -> Storage:
        return wiring.make_storage(self.settings)

    @property
    def sink(self) -> EventSink[Any]:
        return self.storage.events

    @property
    def offsets(self) -> OffsetStore:
        return self.storage.offsets

    @cached_property
    def drained(self) -> Drained:
        return Drained(self.offsets, self.clock)

    @property
    def dead_letters(self) -> DeadLetters:
        return self.storage.dead_letters

    @property
    def operators(self) -> OperatorStore:
        return self.storage.operators

    @property
    def retention(self) -> Retention:
        return self.storage.retention

    @cached_property
    def log_retention(self) -> LogRetention:
        trimmer = wiring.make_log_trimmer(self.settings)
        return LogRetention(self.settings, self.storage.log_marks, trimmer, self.clock)

    @cached_property
    def schema(self) -> Schema:
        return wiring.make_schema(self.settings)

    @cached_property
    def few_sessions(self) -> FewSessions:
        return FewSessions(self.settings, self.clock)

    @cached_property
    def former_logs(self) -> FormerLogs:
        return FormerLogs(self.settings, self.storage.known_logs, self.offsets, self.clock)

    @cached_property
    def control_store(self) -> ControlStore:
        return wiring.make_control_store(self.settings)

    @cached_property
    def events(self) -> ControlEvents:
        return wiring.make_control_events(self.settings)

    @cached_property
    def fence(self) -> OffsetFence:
        return wiring.make_offset_fence(self.settings)

    @cached_property
    def leases(self) -> Leases:
        return wiring.make_leases(self.settings)

    @cached_property
    def breaker(self) -> SinkBreaker:
        return SinkBreaker(self.settings, self.control_store, self.clock, self.name)

    @cached_property
    def backoff(self) -> Backoff:
        return Backoff(self.settings, self.clock)

    @cached_property
    def progress(self) -> Progress:
        return wiring.make_progress(self.settings)

    @cached_property
    def troubles(self) -> Troubles:
        return wiring.make_troubles(self.settings)

    @cached_property
    def offers(self) -> Offers:
        return wiring.make_offers(self.settings)

    @cached_property
    def keys(self) -> KeyMirror:
        return wiring.make_key_mirror(self.settings)

    @cached_property
    def throttle(self) -> Throttle:
        return wiring.make_throttle(self.settings)

    @cached_property
    def history(self) -> History:
        return wiring.make_history(self.settings)

    @cached_property
    def counters(self) -> Counters:
        return wiring.make_counters(self.settings)

    @cached_property
    def queues(self) -> RedisQueues:
        return wiring.make_queues(self.settings)

    @cached_property
    def drain_counters(self) -> DrainCounters:
        return DrainCounters(lambda: self.counters, self.clock)

    def pace(self, partition: int) -> Pace:
        """The measured pace of a partition's batches in this process."""
        return self._paces.setdefault(partition, Pace(self.settings))

    def known_log(self) -> LogIdentity:
        """The event log's identity, read from time to time. Raises LogUnavailableError."""
        now = self.clock.monotonic()
        if self._known_log is None or now - self._known_log[0] > _KNOWN_LOG_SECONDS:
            self._known_log = (now, self.log.identity())
        return self._known_log[1]

    def share_of(self, partition: int) -> list[int]:
        """The partitions that one run drains: this one, and those that follow it in its share."""
        try:
            partitions = self.known_log().partitions
        except SluiceError:  # the drain finds the error, and reports it
            return [partition]
        for share in shares(partitions, self.settings.drains_max):
            if partition in share:
                first = share.index(partition)
                return share[first:] + share[:first]
        return [partition]

    def has_partition(self, partition: object) -> bool:
        """Whether the event log has such a partition; if it does not respond, whether the number is valid at all."""
        if not isinstance(partition, int) or isinstance(partition, bool) or partition < 0:
            return False
        try:
            if partition >= self.known_log().partitions:
                self._known_log = None  # it may have been added since
            return partition < self.known_log().partitions
        except SluiceError:  # the drain finds the error, and reports it
            return True

    def close(self) -> None:
        """Close the adapters that were created."""
        for name in ("log", "storage"):
            if name in self.__dict__:
                self.__dict__[name].close()


@dataclass
class _Current:
    context: WorkerContext | None = None


_current = _Current()


def context_of(settings: Settings) -> WorkerContext:
    """This process' context; a forked child gets its own."""
    if _current.context is None or _current.context.pid != os.getpid():
        _current.context = WorkerContext(settings)
    return _current.context


def _close(**_: object) -> None:
    if _current.context is not None and _current.context.pid == os.getpid():
        _current.context.close()


cast(Callable[..., object], worker_process_shutdown.connect)(_close, weak=False)
