"""A running system whose PostgreSQL stores a known number of events per second, and the loads that it gets.

A trigger holds PostgreSQL at a rate (`checks.loadgen.hold`), so reading, storing and their transactions stay real.
Batches are small, so that a held batch does not look like a frozen server. The system has one core, the load the other.
"""

import contextlib
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import msgspec
import psutil
import redis
import uvloop

from checks.bench.machine import LOAD_CORE, SERVER_CORE, run_anywhere, run_on
from checks.bench.step import rates_of
from checks.loadgen.closed_load import an_event, post
from checks.loadgen.hold import HeldDatabase, held_batch_records
from checks.loadgen.open_load import Responses, offer
from pipeline import wiring
from pipeline.errors import StoreUnavailableError
from pipeline.names import KEY_RATE
from pipeline.policies.drain_time import START_RATE
from pipeline.ports.control import Bands, PublishedRate
from pipeline.settings import Settings
from stack.config import StackConfig, environ_of_its_own
from stack.servers import LOOPBACK, freeze_family, thaw_family
from stack.system import System

SINK_RATE: Final = 1500  # events/s
BODY_EVENTS: Final = 20
_REST_SECONDS_MAX: Final = 180
_OVERRIDE_SECONDS: Final = 3600.0  # longer than any run
_ACTOR: Final = "bench"
_WHY: Final = "a measurement"

_Answer = TypeVar("_Answer")

Change = tuple[float, Callable[[], None]]  # seconds after the load's start, action


class Batch(NamedTuple):
    """One stored batch: time (epoch s), events, events stored within 10 s of their receipt, age of the oldest one."""

    at: float
    events: int
    in_time: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one system: the responses to clients, the stored batches, and the time of each change (epoch s)."""

    responses: Responses
    stored: Sequence[Batch]
    changes: Sequence[float] = ()

    @property
    def begin(self) -> float:
        """When the first request was due, epoch s."""
        return min(self.responses.due)

    @property
    def end(self) -> float:
        """When the last request was due, epoch s."""
        return max(self.responses.due)

    def admitted(self, begin: float, end: float) -> list[float]:
        """Events/s admitted in each second."""
        taken = [due for due, status in zip(self.responses.due, self.responses.status, strict=True) if status == 202]
        return rates_of(taken, [BODY_EVENTS] * len(taken), begin=begin, end=end)

    def stored_rates(self, begin: float, end: float, *, in_time: bool = False) -> list[float]:
        """Events/s stored in each second; `in_time`: only those within 10 s of their receipt."""
        counts = [batch.in_time if in_time else batch.events for batch in self.stored]
        return rates_of([batch.at for batch in self.stored], counts, begin=begin, end=end)

    def oldest_seconds(self, begin: float, end: float) -> float:
        """The greatest age at which an event was stored."""
        return max((batch.oldest_seconds for batch in self.stored if begin <= batch.at < end), default=0.0)


@dataclass
class _Changes:
    """Makes changes to the system while the load runs, in a thread of its own."""

    planned: Sequence[Change]
    made: list[float] = field(default_factory=list)  # when, epoch s
    error: Exception | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._make, daemon=True)

    def __enter__(self) -> "_Changes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _make(self) -> None:
        begin = time.monotonic()
        try:
            for seconds, make in self.planned:
                if self._stop.wait(max(0.0, begin + seconds - time.monotonic())):
                    return
                make()
                self.made.append(time.time())
        except Exception as error:
            self.error = error


class Held:
    """A running system whose sink is held."""

    def __init__(self, system: System, urls: dict[str, str], port: int) -> None:
        self._system = system
        self.port = port  # of ingest
        self._settings = Settings.from_environ({**os.environ, **urls})
        self._store = wiring.make_control_store(self._settings)
        self._database = HeldDatabase(urls["DATABASE_URL"])
        self._frozen: psutil.Process | None = None
        self.hold(SINK_RATE)
        encode = msgspec.json.encode
        self._requests = [
            post("/api/logs", encode([an_event(k * BODY_EVENTS + n) for n in range(BODY_EVENTS)])) for k in range(200)
        ]

    def run(
        self, phases: Sequence[tuple[float, float]], changes: Sequence[Change] = (), sink: float = SINK_RATE
    ) -> Run:
        """Offer phases of (seconds, events/s) to a sink of `sink` events/s, and make the changes meanwhile.

        Then wait until the system has stored everything and is at rest.
        """
        self._database.execute("TRUNCATE bench_stored")
        self.hold(sink)
        made = _Changes(changes)
        try:
            with made:
                responses = uvloop.run(
                    offer(LOOPBACK, self.port, self._requests, [(sec, rate / BODY_EVENTS) for sec, rate in phases])
                )
        finally:
            self.thaw()
        if made.error is not None:
            raise made.error
        if len(made.made) < len(changes):
            raise RuntimeError("the machine is too slow: the load ended before the system was changed")
        stored = self._database.rows(
            "SELECT extract(epoch FROM stored_at)::float8, events, in_time, oldest_seconds FROM bench_stored"
        )
        self.hold(None)
        self._await_rest(BODY_EVENTS * sum(status == 202 for status in responses.status))
        self.hold(SINK_RATE)
        return Run(responses, [Batch(*row) for row in stored], made.made)

    def hold(self, rate: float | None) -> None:
        """Let PostgreSQL store at most `rate` events per second from now on. None: no limit."""
        self._database.hold(rate)

    def freeze(self) -> None:
        """Stop PostgreSQL's processes: it keeps its connections and does not answer."""
        pid = self._system.supervisor().getProcessInfo("postgres")["pid"]
        self._frozen = psutil.Process(pid)
        freeze_family(self._frozen)

    def thaw(self) -> None:
        """Let PostgreSQL's processes continue. Does nothing if they are not frozen."""
        frozen, self._frozen = self._frozen, None
        if frozen is not None:
            thaw_family(frozen)

    def limit(self, rate: float | None) -> None:
        """Set a constant rate, as an operator can. None: the rate policy decides again."""
        if rate is None:
            _patiently(lambda: self._store.clear_override(actor=_ACTOR, why=_WHY))
        else:
            until = _patiently(self._store.state).time + _OVERRIDE_SECONDS
            _patiently(lambda: self._store.set_override(rate, until=until, actor=_ACTOR, why=_WHY))
        self._await_rest(0)

    def raise_maximum(self, rate_max: float | None) -> None:
        """Set another maximum rate for the bands, as an operator can. None: that of the settings."""
        settings = self._settings
        if rate_max is None:
            if not _patiently(lambda: self._store.clear_bands(actor=_ACTOR, why=_WHY)):
                return
        else:
            bands = Bands(
                rate_max=rate_max,
                rate_min=settings.rate_min,
                lag_degraded=settings.lag_degraded,
                lag_critical=settings.lag_critical,
                actor=_ACTOR,
                why=_WHY,
                since=_patiently(self._store.state).time,
            )
            _patiently(lambda: self._store.set_bands(bands))
        self._await(lambda rate: rate.base_rate == (settings.rate_max if rate_max is None else rate_max))

    def forget(self) -> None:
        """Delete the published rate and the state of the rate policy. The policy then starts as on a new system."""
        key = f"{self._settings.key_prefix}{KEY_RATE}"
        with contextlib.closing(redis.Redis.from_url(self._settings.redis_url)) as client:
            client.delete(key)

            def is_new(rate: PublishedRate) -> bool:
                if rate.base_rate < 1.5 * START_RATE:
                    return True
                client.delete(key)  # a running tick published the state that it had read before
                return False

            self._await(is_new)

    def _await(self, condition: Callable[[PublishedRate], bool]) -> None:
        """Wait until a condition of the published rate holds."""
        deadline = time.monotonic() + _REST_SECONDS_MAX
        while time.monotonic() < deadline:
            rate = _patiently(self._store.state).rate
            if rate is not None and condition(rate):
                return
            time.sleep(0.05)
        raise RuntimeError("the controller does not publish the expected rate")

    def close(self) -> None:
        """Release the database."""
        self._database.close()

    def _await_rest(self, admitted: int) -> None:
        """Wait until all admitted events are stored, and the system is healthy at its current rate."""
        deadline = time.monotonic() + _REST_SECONDS_MAX
        while True:
            stored = self._database.rows("SELECT coalesce(sum(events), 0) FROM bench_stored")[0][0] if admitted else 0
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/api/logs/health", timeout=10) as answer:
                health = msgspec.json.decode(answer.read())
            published = _patiently(self._store.state).rate
            if (
                stored >= admitted
                and health["status"] == "healthy"
                and published is not None
                and abs(health["rateLimit"] - published.rate) < 0.01 * published.rate
            ):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{stored} of {admitted} are stored, and the system is {health}")
            time.sleep(0.2)


def _patiently(call: Callable[[], _Answer]) -> _Answer:
    """Call the control store until it answers. Its time-outs are short, and the machine is busy on purpose."""
    deadline = time.monotonic() + _REST_SECONDS_MAX
    while True:
        try:
            return call()
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise


@contextlib.contextmanager
def held_system(log: str, policy: str) -> Iterator[Held]:
    """A separate system on the server core, with this rate policy. The caller runs on the load's core."""
    with (
        tempfile.TemporaryDirectory() as folder,
        # Many refusals are part of the measurement; they must not make the system unhealthy.
        environ_of_its_own(
            SLUICE_HOME=folder,
            PROMETHEUS="no",
            DRAIN_BATCH_RECORDS_MAX=str(held_batch_records(SINK_RATE)),
            REFUSED_RATIO_MAX="1",
            RATE_POLICY=policy,
        ) as ours,
    ):
        run_on(SERVER_CORE)
        try:
            system = System(StackConfig.from_environ(log))
            urls = system.start(threading.Event())
            try:
                run_on(LOAD_CORE)
                with contextlib.closing(Held(system, urls, int(ours["INGEST_PORT"]))) as held:
                    yield held
            finally:
                system.stop()
        finally:
            run_anywhere()
