"""The components of one ingest process, and how it starts and stops."""

import asyncio
import logging
import math
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector as MetricsCollector

from ingest.account_reports import AccountReports
from ingest.accounts import Accounts, Surroundings
from ingest.admission import Admission
from ingest.appender import Appender
from ingest.collect import Collector
from ingest.dashboard.counter_deltas import CounterDeltas
from ingest.dashboard.longer import LongCharts
from ingest.dashboard.recorder import Recorder, SystemReaders
from ingest.dashboard.sse import Reader, Viewers
from ingest.entrance import Entrance
from ingest.errors import status_of
from ingest.health import HealthSources
from ingest.held_bodies import HeldBodies
from ingest.keys import KeyReader, KeyRing
from ingest.operators import OperatorGate
from ingest.throttle import ThrottleView
from ingest.types import Lifecycle
from pipeline.clock import Clock
from pipeline.errors import SettingsError
from pipeline.follower import ControlFollower, TroubleReporter, loop_troubles
from pipeline.health.judge import what_it_does
from pipeline.health.snapshot import Outlook
from pipeline.keys import ApiKey
from pipeline.loops import Loops
from pipeline.metrics import IngestMetrics, LevelCounts, LevelsCollector, LoopsCollector, RequestsByStatus
from pipeline.names import ConnectionRefusal, LoopName, ProblemCode, TlsRefusal
from pipeline.ports.bucket import Bucket
from pipeline.ports.control import (
    ControlEvents,
    ControlState,
    ControlStore,
    OperatorLimit,
    PublishedRate,
    Trouble,
    Troubles,
    account_limits,
    limited_by,
    rate_after_override,
)
from pipeline.ports.keys import KeyMirror
from pipeline.ports.log import EventLog
from pipeline.ports.offers import Offers
from pipeline.ports.throttle import Throttle
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

REFUSAL_LOG_SECONDS: Final = 60.0  # between two log lines of one reason: clients could otherwise fill the log
FOLLOWER_STOP_SECONDS: Final = 0.1  # it only reads: if it is in a wait, the stop does not wait for it


@dataclass(frozen=True, slots=True)
class KeySources:
    """Where the API keys are: the mirror, and PostgreSQL for a process that never reached the mirror."""

    mirror: KeyMirror
    load_stored: Callable[[], Iterable[ApiKey]]


@dataclass(frozen=True, slots=True)
class IngestContext:
    """The adapters that an ingest process works with."""

    log: EventLog
    bucket: Bucket
    store: ControlStore
    events: ControlEvents
    clock: Clock
    troubles: Troubles | None = None  # None: this process does not report that its clock differs
    readers: SystemReaders | None = None  # None: the page shows only this process, without history
    offers: Offers | None = None  # None: this process does not report what accounts offer, so none gets a share
    throttle: Throttle | None = None  # None: this process does not report what it refuses
    keys: KeySources | None = None  # needed with INGEST_KEYS


class IngestService:
    """The components of one process. None of them needs a server to start."""

    def __init__(self, settings: Settings, context: IngestContext) -> None:
        self.settings = settings
        self.name = f"ingest@{socket.gethostname()}/{os.getpid()}"  # for operators
        self.clock = context.clock
        self.lifecycle = Lifecycle()
        self.registry = CollectorRegistry()
        self.registry.register(_Sampling(self.sample_gauges))  # first: a registry collects in order
        self.metrics = IngestMetrics(self.registry)
        self.loops = Loops(context.clock)
        self.registry.register(LoopsCollector(self.loops.failures))
        self.admission = Admission(
            settings, context.bucket, context.clock, self.metrics, self.loops.add(LoopName.LEASES, on_demand=True)
        )
        self.appender = Appender(context.log, settings, context.clock, self.metrics, self.loops.add(LoopName.APPENDER))
        self.follower = ControlFollower(
            context.store,
            context.clock,
            self._on_state,
            self.loops.add(LoopName.FOLLOWER),
            reporter=self._reporter(context),
            on_unavailable=self._on_store_unavailable,
        )
        self.held_bodies = HeldBodies(settings.bodies_bytes_max)
        self.levels = LevelCounts() if settings.admission_levels else None
        if self.levels is not None:
            self.registry.register(LevelsCollector(self.levels))
        self.keys = (
            KeyRing(context.clock, or_certificate=settings.ingest_tls_client_as_key) if settings.ingest_keys else None
        )
        self._key_reader = self._make_key_reader(context)
        if self.keys is not None:
            self.metrics.show_keys()
        if settings.ingest_tls_client != "off":
            self.metrics.show_tls_refusals()
        self.gate = OperatorGate(
            settings.operator_password, lambda reason: self.metrics.operator_refusals.labels(reason.value).inc()
        )
        if settings.operator_password:
            self.metrics.show_operator_refusals()
        self.accounts = Accounts(settings, context.clock, self.keys)
        self.account_reports = AccountReports(
            self.accounts,
            offers=context.offers,
            throttle=context.throttle,
            around=self._around_accounts,
            process=self.admission.process,
            loop=self.loops.add(LoopName.ACCOUNTS),
        )
        self.throttle = ThrottleView(context.throttle, self.accounts.refused_here, context.clock)
        self._asked_limits: Mapping[str, OperatorLimit] = {}  # that operators set, as last known
        self._noted: tuple[object, ...] = ()  # what of the state admission was given last
        self._entrance = Entrance(self.admission, self.accounts, has_levels=self.levels is not None)
        self.collector = Collector(
            self._entrance,
            self.appender,
            self.held_bodies,
            self.metrics,
            context.clock,
            traces=settings.log_level == "DEBUG",  # read once: a logger takes longer, for each request
            levels=self.levels,
        )
        self.registry.register(RequestsByStatus(self.metrics, status_of, lambda: self.collector.refused_beyond_first))
        self.count_connections: Callable[[], int] = lambda: 0
        self.recorder = None if context.readers is None else self._recorder(context.readers)
        self.viewers = Viewers(
            Reader(None if context.readers is None else context.readers.history, context.events),
            self.health_sources,
            self.loops.add(LoopName.PAGE),
            self.lifecycle,
            viewers_max=settings.page_viewers_max,
            local_points=None if self.recorder is None else self.recorder.local,
        )
        self.long_charts = LongCharts(settings.prometheus_url, context.clock)
        self._refusals_logged: dict[ConnectionRefusal | TlsRefusal, float] = {}  # monotonic
        self._log = context.log
        self._loop: asyncio.AbstractEventLoop | None = None

    def _recorder(self, readers: SystemReaders) -> Recorder:
        return Recorder(
            readers,
            deltas=CounterDeltas(self.metrics, lambda: self.collector.refused_beyond_first, self.levels),
            admission=self.admission,
            follower=self.follower,
            settings=self.settings,
            clock=self.clock,
            loop=self.loops.add(LoopName.HISTORY),
            on_log_read=self.appender.note_read,
        )

    async def start(self) -> None:
        """Start to follow the control loop, to take leases, and to check the event log."""
        self._loop = asyncio.get_running_loop()
        self.admission.start(self._loop)
        self.appender.start(self._loop)
        self.follower.start()
        self.viewers.start()
        self.account_reports.start()
        if self.recorder is not None:
            self.recorder.start()

    @property
    def is_accepting(self) -> bool:
        """Whether ingest can accept events: the event log is available, and API keys, if needed, are known."""
        return self.appender.blocked() is None and (self.keys is None or self.keys.is_known)

    async def stop(self, *, seconds_max: float) -> None:
        """Append the events that were accepted, then release everything."""
        self.lifecycle.is_stopping = True
        self.viewers.end_streams()
        if self.recorder is not None:
            self.recorder.close()
        self.account_reports.close()
        self.throttle.close()
        await self.appender.close(seconds_max=seconds_max)
        self.admission.close()
        await asyncio.get_running_loop().run_in_executor(None, self._stop_follower)
        self._log.close()

    def _stop_follower(self) -> None:
        self.follower.stop(seconds_max=FOLLOWER_STOP_SECONDS)

    def _make_key_reader(self, context: IngestContext) -> KeyReader | None:
        if self.keys is None:
            return None
        if context.keys is None:
            raise SettingsError("INGEST_KEYS needs the control store and PostgreSQL")
        return KeyReader(context.keys.mirror, context.keys.load_stored, context.clock, self._on_keys)

    def _on_keys(self, keys: tuple[ApiKey, ...], time: float) -> None:
        """Take the API keys; on the follower's thread."""
        loop, ring = self._loop, self.keys
        if loop is not None and ring is not None:
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(ring.take, ring.by_digest(keys, time))

    def _on_store_unavailable(self) -> None:
        """Look at once whether the bucket is unavailable too; on the follower's thread."""
        loop = self._loop
        if loop is not None and not self.admission.is_local:
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self.admission.look)
        if self._key_reader is not None:
            self._key_reader.note_unavailable()

    def _on_state(self, state: ControlState) -> None:
        """Take the API keys and a published rate; on the follower's thread."""
        if self._key_reader is not None:
            self._key_reader.note_state(state.keys_version, state.time)
        loop, rate = self._loop, state.rate
        noted = (rate, state.pauses, state.floor_rate, state.override, state.accounts)
        if loop is not None and rate is not None and (noted != self._noted or self._is_noted_again(state, rate)):
            try:
                loop.call_soon_threadsafe(self._note_rate, state, rate)
                self._noted = noted
            except RuntimeError:
                logger.debug("the event loop has ended", extra={"action": "follow_unheard"})

    def _is_noted_again(self, state: ControlState, rate: PublishedRate) -> bool:
        """Whether admission takes the same state after each read: it counts a time from then, or the age of shares."""
        over_seconds = 0.0 if rate.policy is None else rate.policy.explanation.drain_over_seconds
        return state.override is not None or over_seconds > 0 or rate.shares is not None or self.accounts.is_reporting

    def _note_rate(self, state: ControlState, rate: PublishedRate) -> None:
        """Pass a published rate to admission; on the event loop."""
        ends_in = None if state.override is None else state.override.until - state.time
        self.admission.note_limit(*limited_by(state))
        self.admission.note_drain(0.0 if rate.policy is None else rate.policy.explanation.drain_over_seconds)
        self.admission.note_rate(rate.version, rate.rate, ends_in=ends_in, rate_after=rate_after_override(state))
        newest, now = self.follower.newest, self.clock.monotonic()
        age_seconds = None if newest is None else newest.controller_age_seconds(now)
        if state.accounts is not None:  # otherwise the store was flushed, and the last ones still hold
            self._asked_limits = state.accounts
        limits = account_limits(self.settings, self._asked_limits)
        self.accounts.note(rate.shares, limits, self._around_accounts(), age_seconds=age_seconds or 0.0)
        self._entrance.note_limits()

    def _around_accounts(self) -> Surroundings:
        now = self.clock.monotonic()
        return Surroundings(self.admission.rate(now), self.admission.live_processes, self.admission.fill(now))

    def note_tls_refusal(self, reason: TlsRefusal) -> None:
        """Count a connection that was refused for its client's certificate; log the first one of a minute."""
        self.metrics.tls_refusals.labels(reason.value).inc()
        if self._is_to_be_logged(reason):
            logger.warning("a client is refused (INGEST_TLS_CLIENT): %s", reason.words, extra={"action": "tls_refused"})

    def note_connection_refusal(self, reason: ConnectionRefusal, peer: str | None) -> None:
        """Count a connection that was above a limit; log the first one of a minute."""
        self.metrics.connection_refusals.labels(reason.value).inc()
        if self._is_to_be_logged(reason):
            settings = self.settings
            why = {
                ConnectionRefusal.PROCESS: (
                    f"this process has as many connections as INGEST_CONNECTIONS_MAX={settings.ingest_connections_max}"
                ),
                ConnectionRefusal.ADDRESS: (
                    "its address has as many connections as "
                    f"INGEST_CONNECTIONS_PER_ADDRESS_MAX={settings.ingest_connections_per_address_max}"
                ),
                ConnectionRefusal.OPERATORS: f"OPERATOR_PORT has {settings.operator_connections_max} connections",
            }[reason]
            logger.warning(
                "a connection from %s is refused: %s",
                peer or "an unknown address",
                why,
                extra={"action": "connection_refused"},
            )

    def _is_to_be_logged(self, reason: ConnectionRefusal | TlsRefusal) -> bool:
        now = self.clock.monotonic()
        if now - self._refusals_logged.get(reason, -math.inf) < REFUSAL_LOG_SECONDS:
            return False
        self._refusals_logged[reason] = now
        return True

    def health_sources(self) -> HealthSources:
        """The current inputs of the health judgement."""
        now = self.clock.monotonic()
        outlook = Outlook() if self.recorder is None else self.recorder.outlook(now)
        traffic = outlook.traffic
        is_refusing = traffic is not None and traffic.refused_share > self.settings.refused_ratio_max
        return HealthSources(
            wall=self.clock.now(),
            now=now,
            control=self.follower.newest,
            store_problem=self.follower.problem,
            settings=self.settings,
            log=self.appender.status(now),
            rate=self.admission.rate(now),
            available_permissions=self.admission.available(now),
            is_local=self.admission.is_local,
            bucket_problem=self.admission.bucket_problem,
            loop_problems=tuple(self.loops.problems(now)),
            process=self.name,
            outlook=outlook,
            refusals=self.throttle.known() if is_refusing else None,
        )

    def _reporter(self, context: IngestContext) -> TroubleReporter | None:
        """Reports to the whole system. The processes of one host share its clock, so they report it under one name."""
        if context.troubles is None:
            return None
        return TroubleReporter(
            context.troubles,
            f"ingest@{socket.gethostname()}",
            self.clock,
            difference_seconds_max=self.settings.clock_difference_seconds_max,
            own_problems=self._own_troubles,
            own_name=self.name,
            loop=self.loops.add(LoopName.REPORTS),
        )

    def _own_troubles(self) -> list[Trouble]:
        """What only this process can know, for all that show the system's health. Runs on any thread: it only reads."""
        log = self.appender.status(self.clock.monotonic())
        found = loop_troubles(self.loops, self.clock)
        if not log.answers:
            found.append(
                Trouble(ProblemCode.LOG_DOWN, f"its clients get 503: {log.problem or 'the event log does not answer'}")
            )
        elif log.is_full:
            found.append(Trouble(ProblemCode.LOG_FULL, "the event log is full"))
        if self.admission.is_local:
            does = what_it_does(self.admission.bucket_problem)
            found.append(Trouble(ProblemCode.BUCKET_UNAVAILABLE, f"the token bucket {does}"))
        return found

    def sample_gauges(self) -> None:
        """Update the metrics that are not counted where they change. Runs on any thread: it only reads."""
        now = self.clock.monotonic()
        metrics = self.metrics
        metrics.append_waiting_events.set(self.appender.waiting_events)
        metrics.append_waiting_bytes.set(self.appender.waiting_bytes)
        metrics.rate.set(self.admission.rate(now))
        available = self.admission.available(now)
        metrics.available_tokens.set(math.nan if available is None else available)
        metrics.admission_is_local.set(self.admission.is_local)
        metrics.log_answers.set(self.appender.status(now).answers)
        metrics.connections.set(self.count_connections())
        metrics.held_bodies_bytes.set(self.held_bodies.bytes)
        metrics.held_accounts.set(self.accounts.held)
        known = None if self.keys is None else self.keys.count
        metrics.keys.set(math.nan if known is None else known)


class _Sampling(MetricsCollector):
    """Has no metric of its own. It updates the gauges for every scrape, through either port."""

    def __init__(self, sample: Callable[[], None]) -> None:
        self._sample = sample

    def collect(self) -> tuple[()]:
        self._sample()
        return ()
