"""Samples the values that must be right at every moment: stored offsets, published rates, pauses, lag and health."""

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import psycopg2

from checks.soak.found import OffsetSample, RateSample
from checks.soak.rig import Rig
from checks.soak.seen import ControlSample, HealthSample, LagSample, PartitionSample, Seen
from pipeline import wiring
from pipeline.errors import SluiceError
from pipeline.names import ControlEventKind
from pipeline.ports.control import ControlState
from stack.servers import LOOPBACK

PERIOD_SECONDS = 0.1
SLOW_PERIOD_SECONDS = 0.5  # for queries that cost more
JOIN_SECONDS_MAX = 10.0
HEALTH_SECONDS_MAX = 3.0
# A control event that arrives later than this has the time of a stepped clock.
EVENT_SECONDS_MAX = 2.0


class Watcher:
    """Threads that do not wait for each other. Each retries a server that is unavailable.

    `failures` has any other error that ends a thread: from then on, its samples are missing.
    """

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(what, watch), name=what, daemon=True)
            for what, watch in (
                ("stored offsets", self._watch_offsets),
                ("published rates", self._watch_rates),
                ("lag", self._watch_lag),
                ("health", self._watch_health),
            )
        ]
        self.offsets: list[OffsetSample] = []
        self.rates: list[RateSample] = []
        self.seen = Seen()
        self.failures: list[str] = []

    def start(self) -> "Watcher":
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS_MAX)
            if thread.is_alive():
                self.failures.append(f"the watcher of {thread.name} hangs: what it watched may not be judged")

    def all_rates(self) -> list[RateSample]:
        """The samples, and the changes between them from the control events."""
        return sorted(self.rates)

    def _guard(self, what: str, watch: Callable[[], None]) -> None:
        try:
            watch()
        except BaseException as error:  # if a thread ended without a report, there would be nothing to judge
            self.failures.append(f"the watcher of {what} died at {time.time():.3f}, and saw nothing since: {error!r}")

    def _watch_offsets(self) -> None:
        """Only changes are kept."""
        database = _Offsets(self._rig)
        last: dict[tuple[str, int], int] = {}
        while not self._stopping.wait(PERIOD_SECONDS):
            found = database.read()
            at = time.time()
            for place, next_offset in (found or {}).items():
                if last.get(place) != next_offset:
                    last[place] = next_offset
                    self.offsets.append(OffsetSample(at, *place, next_offset))
        database.close()

    def _watch_rates(self) -> None:
        store = wiring.make_control_store(self._rig.direct)
        events = wiring.make_control_events(self._rig.direct)
        last_event = ""
        while not self._stopping.wait(PERIOD_SECONDS):
            at = time.time()
            try:
                state = store.state()
                story = events.last(20)
            except SluiceError:
                self.rates.append(RateSample(at, None))
                continue
            for event in story:
                if event.kind is ControlEventKind.RATE_CHANGED and event.id > last_event:
                    with contextlib.suppress(KeyError, ValueError):
                        event_at = event.at if abs(at - event.at) < EVENT_SECONDS_MAX else at
                        self.rates.append(RateSample(event_at, float(event.data["rate"])))
            if story:
                last_event = story[-1].id
            self.rates.append(RateSample(at, state.rate.rate if state.rate is not None else None))
            self.seen.control.append(_control_sample(at, state))

    def _watch_lag(self) -> None:
        database = _Offsets(self._rig)
        stored: dict[tuple[str, int], int] = {}
        while not self._stopping.wait(SLOW_PERIOD_SECONDS):
            try:
                log_id, positions = self._rig.log_positions()
            except SluiceError:
                continue
            found = database.read()  # after the log, which never begins after the current stored offset
            stored |= found or {}
            self.seen.lags.append(
                LagSample(
                    time.time(),
                    {
                        partition: PartitionSample(begin, end, stored.get((log_id, partition), 0), found is not None)
                        for partition, (begin, end) in positions.items()
                    },
                )
            )
        database.close()

    def _watch_health(self) -> None:
        while not self._stopping.wait(SLOW_PERIOD_SECONDS):
            for number, port in enumerate(self._rig.ingest_ports):
                self.seen.health.append(_health_sample(number, port))


class _Offsets:
    """Reads the stored offsets on one connection while it lasts."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._connection: Any = None

    def read(self) -> dict[tuple[str, int], int] | None:
        """Offsets by log and partition; None if PostgreSQL does not answer."""
        try:
            if self._connection is None:
                self._connection = psycopg2.connect(
                    self._rig.direct.database_url, connect_timeout=1, options="-c statement_timeout=2s",
                    application_name="watcher",
                )  # fmt: skip
                self._connection.autocommit = True
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT log_id, log_partition, next_offset FROM stored_offsets")
                return {(log_id, partition): offset for log_id, partition, offset in cursor.fetchall()}
        except psycopg2.Error:
            self._connection = None
            return None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _control_sample(at: float, state: ControlState) -> ControlSample:
    rate = state.rate
    paused = None if state.pauses is None else frozenset(getattr(one, "partition", None) for one in state.pauses)
    return ControlSample(
        at,
        0 if rate is None else rate.version,
        rate=None if rate is None else rate.rate,
        base_rate=None if rate is None else rate.base_rate,
        lag=None if rate is None else rate.lag,
        published_at=None if rate is None else rate.published_at,
        breaker=state.breaker.value,
        paused=paused,
    )


def _health_sample(number: int, port: int) -> HealthSample:
    url = f"http://{LOOPBACK}:{port}/api/logs/health"
    try:
        with urllib.request.urlopen(url, timeout=HEALTH_SECONDS_MAX) as answer:
            document = json.loads(answer.read())
    except (OSError, ValueError):  # includes error statuses, because health always answers with 200
        return HealthSample(time.time(), number, None)
    return HealthSample(
        time.time(),
        number,
        document["status"],
        lag=document["consumerLag"],
        rate=document["rateLimit"],
        breaker=document["circuitBreaker"],
        consumption=document["consumption"],
        reasons=len(document["reasons"]),
    )
