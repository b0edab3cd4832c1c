"""One run: the shipped control loop, bucket, admission, breaker and prober; simulated clients and a simulated sink.

Only the clients, the network, the log's content and PostgreSQL are simulated. Time is virtual: the same seed gives the
same run on every machine.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Final

from checks.sim.bounds import BucketBound, ControlBound, LeaseBound, Violations, WatchedBucket
from checks.sim.experiments import SPREAD, Experiment, Surroundings
from checks.sim.processes import Clients, IngestProcess, Load
from checks.sim.sink import Conditions, Sink, spread
from checks.sim.timeline import Second, Timeline
from checks.sim.virtual import VirtualLoop
from pipeline.breaker import SinkBreaker
from pipeline.clock import ManualClock
from pipeline.control_store.memory import (
    MemoryBucket,
    MemoryControlEvents,
    MemoryControlStore,
    MemoryLeases,
    MemoryOffers,
    MemoryOffsetFence,
    MemoryProgress,
    MemoryServer,
    MemoryTroubles,
)
from pipeline.errors import SinkUnavailableError, StoreUnavailableError
from pipeline.flow.age import Age
from pipeline.log.memory import MemoryLog
from pipeline.names import PauseReason
from pipeline.policies import make_policy
from pipeline.ports.control import Bands, OperatorPause, Override
from pipeline.ports.offset_store import StoredOffsets
from pipeline.ports.operator_store import OperatorState
from pipeline.ports.rate import BatchStart, RatePolicy
from pipeline.probe import Backoff, probe
from pipeline.regulate import regulate
from pipeline.regulate.context import ControlAdapters, SinkQueries
from pipeline.settings import Settings

# A tick waits for Beat and a free control worker: up to this, and at most a third of the period.
_TICK_LATE_SECONDS_MAX: Final = 0.25
# The store searches the kept events at each new one.
_CONTROL_EVENTS: Final = 10
# A publication reaches a process through its follower: one read of the control store.
_FOLLOW_SECONDS_MAX: Final = 0.01
_SOON_SECONDS: Final = 0.001
_RECONCILE_SECONDS: Final = 0.2  # between two reads of the pauses by a drain
_OPERATOR: Final = "simulated operator"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault or an operator's action, from one time to another (seconds since the run began)."""

    kind: str  # a name of FAULTS
    begin: float
    end: float
    value: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """What happens in one run. Functions of time take seconds since the run began."""

    name: str
    seconds: float
    loads: Sequence[Load]
    capacity: Callable[[float], float]  # events/s that the sink stores
    shares: Callable[[float], Sequence[float]] | None = None  # of the partitions; None: equal ones
    caps: Callable[[float], Sequence[float]] | None = None  # events/s of each partition's drain
    noise: tuple[float, float] = (0.0, 1.0)  # of the capacity: standard deviation as a share of it; seconds it lasts
    faults: Sequence[Fault] = ()
    partitions: int = 4
    processes: int = 2
    batch_max: int = 500
    nominal: float = 1500.0  # the sink's capacity in an operator's opinion, events/s
    settings: dict[str, Any] = field(default_factory=dict)  # changes to the settings
    judged_from: float = 40.0  # seconds: figures count from here on
    phases: Sequence[float] = ()  # times from which the time to settle is measured
    step_seconds: float = 0.05
    late_seconds: float = 10.0  # events that are stored later than this do not count as goodput


@dataclass(frozen=True)
class Arm:
    """A control law to simulate: the settings, which select the shipped policy, and an experiment's additions."""

    name: str
    settings: Callable[[Settings, Scenario], Settings]
    experiment: Callable[[Surroundings], Experiment] = Experiment


class World:
    """The state of one run."""

    def __init__(self, scenario: Scenario, arm: Arm, seed: int) -> None:
        self.scenario = scenario
        self.rng = random.Random(f"{scenario.name} {seed}")
        self.settings = arm.settings(
            replace(
                Settings(),
                log_partitions=scenario.partitions,
                ingest_processes_max=scenario.processes,
                control_events_max=_CONTROL_EVENTS,
                **scenario.settings,
            ),
            scenario,
        )
        self.clock = ManualClock()
        self.loop = VirtualLoop(self.clock, self.rng)
        self.began_at = self.clock.monotonic()
        self._build_control()
        self.breaker = SinkBreaker(self.settings, self.store, self.clock, "simulated worker")
        self.sink = Sink(
            self.settings,
            scenario.partitions,
            self.breaker,
            batch_max=scenario.batch_max,
            late_seconds=scenario.late_seconds,
        )
        self.experiment = arm.experiment(
            Surroundings(scenario.partitions, self._lags, self._shares_now, self._not_appended, self.clock.monotonic)
        )
        self.log = MemoryLog(scenario.partitions)
        self.violations = Violations(self.began_at)
        body_max = max(load.body for load in scenario.loads)
        self.bucket_bound = BucketBound(self.violations, body_max=body_max, now=self.began_at)
        self.control_bound = ControlBound(self.violations, self.settings)
        self.processes = [self._make_process(number) for number in range(scenario.processes)]
        self._spread = 0  # events accepted in this step, to be spread among the partitions
        self._partition_numbers = range(scenario.partitions)
        self.clients = [Clients(load, self.processes, self.loop, self.rng, self) for load in scenario.loads]
        self.timeline = Timeline()
        self.is_down = False
        self.is_paused = False  # by an operator
        self.asked_pauses: list[OperatorPause] = []  # the operator's commands in PostgreSQL
        self.asked_override: Override | None = None
        self._noise = self.rng.gauss(0.0, 1.0) if scenario.noise[0] else 0.0
        self._second = Second()  # the current one
        self._published = (-1, math.inf)  # version and effective rate
        self._published_at = self.clock.now()  # by the controller
        self._equal_shares = [1 / scenario.partitions] * scenario.partitions
        self._schedule()

    # --- The shipped parts --------------------------------------------------------------------------------------------

    def _build_control(self) -> None:
        self.server = MemoryServer(self.clock)
        self.store = MemoryControlStore(self.settings, self.server)
        self.offers = MemoryOffers(self.settings, self.server)
        self.control = ControlAdapters(
            self.store,
            MemoryControlEvents(self.settings, self.server),
            MemoryLeases(self.settings, self.server),
            MemoryProgress(self.settings, self.server),
            MemoryOffsetFence(self.settings, self.server),
            clock=self.clock,
            offers=self.offers,
        )
        self._troubles = MemoryTroubles(self.settings, self.server)
        self._backoff = Backoff(self.settings, self.clock)
        self._database = SinkQueries(
            stored_offsets=self._stored_offsets,
            settled_offsets=lambda _: self._offsets(),
            load_operator_state=self._load_asked,
            terminate_drainer=self._terminate_drainer,
            why_standing=lambda *_: "simulated",
        )

    def _make_process(self, number: int) -> IngestProcess:
        lease = LeaseBound(self.violations, f"process {number}")
        bucket = WatchedBucket(
            MemoryBucket(self.settings, self.server), self.bucket_bound, lease, self.clock.monotonic, self._note_version
        )
        return IngestProcess(
            self.settings,
            self.experiment.bucket(bucket),
            lease,
            self.loop,
            offers=self.offers,
            phase=(number + 1) / self.scenario.processes,
        )

    # --- What the shipped parts call in the simulated ones ------------------------------------------------------------

    def _offsets(self) -> dict[int, int]:
        return {number: one.stored for number, one in enumerate(self.sink.partitions)}

    def _stored_offsets(self, log_id: str) -> StoredOffsets:
        self._must_answer()
        batches = {
            number: BatchStart(one.began, one.began_at)
            for number, one in enumerate(self.sink.partitions)
            if one.began_at > 0
        }
        return StoredOffsets(self._offsets(), self.clock.now(), batches)

    def _load_asked(self) -> OperatorState:
        self._must_answer()
        return OperatorState(self.asked_pauses, self.asked_override)

    def _terminate_drainer(self, log_id: str, partition: int) -> bool:
        self.sink.restart_drain(partition)
        return True

    def _must_answer(self) -> None:
        if self.is_down:
            raise SinkUnavailableError("simulated: no answer")

    # --- Periodic tasks -----------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        settings, loop, rng = self.settings, self.loop, self.rng
        period = settings.regulate_seconds
        late = min(_TICK_LATE_SECONDS_MAX, period / 3)
        first = rng.random() * period

        def tick(number: int) -> None:
            loop.call_at(self.began_at + first + (number + 1) * period + rng.random() * late, tick, number + 1)
            self._tick()

        def probe_sink() -> None:
            loop.call_later(settings.probe_seconds, probe_sink)
            if not self.server.is_unavailable:
                probe(
                    self.store,
                    self.control.leases,
                    self._must_answer,
                    self._backoff,
                    settings=settings,
                    actor="simulated prober",
                    troubles=self._troubles,
                )
                self.publish()

        def reconcile() -> None:
            loop.call_later(_RECONCILE_SECONDS, reconcile)
            if self.breaker.is_open and not self.server.is_unavailable:
                self.breaker.reconcile(self.store.state())
                self.publish()

        loop.call_at(self.began_at + first, tick, 0)
        loop.call_later(rng.random() * settings.probe_seconds, probe_sink)
        loop.call_later(rng.random() * _RECONCILE_SECONDS, reconcile)
        for fault in self.scenario.faults:
            begin, end = FAULTS[fault.kind]
            loop.call_at(self.began_at + fault.begin, self._do, begin, fault)
            loop.call_at(self.began_at + fault.end, self._do, end, fault)

    def _do(self, action: "Action", fault: Fault) -> None:
        """Begin or end a fault. An operator's command fails while the store is down."""
        with suppress(StoreUnavailableError):
            action(self, fault)

    def _policy_of(self, asked_bands: Bands | None) -> RatePolicy:
        return self.experiment.policy(make_policy(self.settings, asked_bands))

    def _tick(self) -> None:
        """One tick of the shipped control loop."""
        if self.server.is_unavailable:
            return
        for held, one in zip(self.log.server.partitions, self.sink.partitions, strict=True):
            held.end, held.committed = one.appended, one.stored
        regulate(
            settings=self.settings,
            policy_of=self._policy_of,
            log=self.log,
            sink=self._database,
            control=self.control,
            actor="simulated controller",
        )
        self.publish()

    def _note_version(self, version: int) -> None:
        """A bucket has seen a version: the first bucket that sees the end of an override publishes it."""
        if version > self._published[0]:
            self.loop.call_soon(self.publish)

    def publish(self) -> None:
        """If the store has another rate, send it to the processes and the bounds."""
        if self.server.is_unavailable:
            return
        state = self.store.state()
        if state.rate is None or (state.rate.version, state.rate.rate) == self._published:
            return
        self._note_rate()
        self._published, self._published_at = (state.rate.version, state.rate.rate), state.rate.published_at
        self._note_rate()
        self.control_bound.note_state(state, self.clock.monotonic())
        self.bucket_bound.note_rate(state.rate.rate, self.clock.monotonic())
        for process in self.processes:
            process.follow(state, self.rng.random() * _FOLLOW_SECONDS_MAX)

    def _note_rate(self) -> None:
        second, (_, rate) = self._second, self._published
        second.rate_lowest = min(second.rate_lowest, rate)
        second.rate_age = max(second.rate_age, self.clock.now() - self._published_at)

    # --- The run ------------------------------------------------------------------------------------------------------

    def choose_partition(self) -> int:
        """The partition of a body with one key; see Destination."""
        return self.rng.choices(self._partition_numbers, self._shares_now())[0]

    def wait_seconds(self, partition: int, count: int) -> float:
        """See Destination."""
        return self.experiment.wait_seconds(partition, count)

    def give_back(self, partition: int, count: int) -> None:
        """See Destination."""
        self.experiment.give_back(partition, count)

    def accept(self, partition: int, count: int) -> None:
        """See Destination."""
        if partition == SPREAD:
            self._spread += count
        else:
            self.sink.partitions[partition].append(count, self.clock.monotonic())

    def _shares(self, at: float) -> Sequence[float]:
        return self._equal_shares if self.scenario.shares is None else self.scenario.shares(at)

    def _shares_now(self) -> Sequence[float]:
        return self._shares(self.clock.monotonic() - self.began_at)

    def _lags(self) -> list[int]:
        return [one.lag for one in self.sink.partitions]

    def _not_appended(self) -> float:
        return self._spread + sum(process.held for process in self.processes)

    def run(self) -> Timeline:
        """Run the scenario to its end."""
        scenario, seconds = self.scenario, self.scenario.step_seconds
        per_second = round(1 / seconds)
        for number in range(round(scenario.seconds / seconds)):
            at = number * seconds
            now = self.began_at + at
            self.loop.run_until(now)
            for clients in self.clients:
                clients.step(at, seconds)
            self.loop.run_ready()
            self._append(at, now)
            self._store(at, now)
            if (number + 1) % per_second == 0:
                self._note_second()
                self._second = Second()
        self.timeline.violations = self.violations
        self.timeline.bucket_used_max = self.bucket_bound.used_max
        self.timeline.loads = [(clients.load, clients.counts) for clients in self.clients]
        return self.timeline

    def _append(self, at: float, now: float) -> None:
        count, self._spread = self._spread, 0
        if count:
            for one, part in zip(self.sink.partitions, spread(count, self._shares(at), self.rng), strict=True):
                if part:
                    one.append(part, now)

    def _store(self, at: float, now: float) -> None:
        scenario, seconds, second = self.scenario, self.scenario.step_seconds, self._second
        capacity = scenario.capacity(at) * self._noise_factor()
        caps = None if scenario.caps is None else scenario.caps(at)
        stored = self.sink.step(
            now,
            seconds,
            Conditions(capacity, caps, self.is_down),
            is_paused=self.is_paused,
        )
        second.stored += stored.events
        second.in_time += stored.in_time
        second.oldest_seconds = max(second.oldest_seconds, stored.oldest_seconds)
        second.could += could_store(scenario, at, 0.0 if self.is_down else capacity, caps) * seconds

    def _noise_factor(self) -> float:
        deviation, lasts_seconds = self.scenario.noise
        if not deviation:
            return 1.0
        kept = 1.0 - self.scenario.step_seconds / lasts_seconds
        self._noise = kept * self._noise + (1 - kept * kept) ** 0.5 * self.rng.gauss(0.0, 1.0)
        return min(3.0, max(0.1, 1.0 + deviation * self._noise))

    def _note_second(self) -> None:
        timeline, second, now = self.timeline, self._second, self.clock.monotonic()
        self._note_rate()
        second.offered = sum(clients.counts.offered for clients in self.clients) - timeline.offered_before
        second.admitted = sum(clients.counts.admitted for clients in self.clients) - timeline.admitted_before
        timeline.offered_before += second.offered
        timeline.admitted_before += second.admitted
        second.lag = sum(one.lag for one in self.sink.partitions)
        second.oldest_seconds = max(second.oldest_seconds, self.sink.oldest_seconds(now))
        if not self.server.is_unavailable:
            state = self.store.state()
            second.breaker = state.breaker.value
            if state.rate is not None:
                second.rate, second.mode = state.rate.rate, state.rate.mode.value
        timeline.seconds.append(second)
        if len(timeline.seconds) == int(self.scenario.judged_from):
            timeline.counts_before = [copy(clients.counts) for clients in self.clients]


def could_store(scenario: Scenario, at: float, capacity: float, caps: Sequence[float] | None) -> float:
    """Events/s that the sink can store at the given shares: the slowest partition limits the whole load."""
    if caps is None:
        return capacity
    count = scenario.partitions
    shares = [1 / count] * count if scenario.shares is None else scenario.shares(at)
    return min(capacity, *(cap / share for cap, share in zip(caps, shares, strict=True) if share > 0))


# --- Faults -----------------------------------------------------------------------------------------------------------


def _sink_down(world: World, _: Fault) -> None:
    world.is_down = True


def _sink_up(world: World, _: Fault) -> None:
    world.is_down = False


def _log_away(world: World, _: Fault) -> None:
    world.log.stop()


def _log_back(world: World, _: Fault) -> None:
    world.log.start()


def _store_lost(world: World, _: Fault) -> None:
    world.server.flush()
    world.bucket_bound.forget(world.clock.monotonic())


def _store_away(world: World, _: Fault) -> None:
    world.server.is_unavailable = True


def _store_back(world: World, _: Fault) -> None:
    world.server.is_unavailable = False


def _controller_restarts(world: World, _: Fault) -> None:
    world.control = replace(world.control, lag_age=Age(), rate_age=Age())


def _override_begins(world: World, fault: Fault) -> None:
    until = world.clock.now() + fault.end - fault.begin
    world.asked_override = world.store.set_override(fault.value, until=until, actor=_OPERATOR, why="simulated")
    world.publish()


def _override_ends(world: World, fault: Fault) -> None:
    world.asked_override = None  # the store ends it itself
    world.loop.call_later(_SOON_SECONDS, _settled, world, fault)


def _paused(world: World, _: Fault) -> None:
    world.is_paused = True
    world.store.pause(PauseReason.OPERATOR, actor=_OPERATOR, why="simulated")
    world.asked_pauses = [OperatorPause(PauseReason.OPERATOR, _OPERATOR, "simulated", world.clock.now())]


def _resumed(world: World, _: Fault) -> None:
    world.is_paused, world.asked_pauses = False, []
    world.store.resume(PauseReason.OPERATOR, generation=None, actor=_OPERATOR, why="simulated")


def _settled(world: World, _: Fault) -> None:
    world.publish()


Action = Callable[[World, Fault], None]

FAULTS: Final[dict[str, tuple[Action, Action]]] = {
    "sink down": (_sink_down, _sink_up),  # PostgreSQL does not answer: the breaker opens
    "lag unknown": (_log_away, _log_back),  # neither the log nor PostgreSQL gives the consumed offset
    "state lost": (_store_lost, _settled),  # the control store was flushed
    "store down": (_store_away, _store_back),  # the control store does not answer
    "controller restarts": (_controller_restarts, _settled),  # ticks continue in another process
    "override": (_override_begins, _override_ends),  # an operator sets the rate `value`
    "paused": (_paused, _resumed),  # an operator pauses consumption
}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the shipped parts from logging simulated events."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def run(scenario: Scenario, arm: Arm, seed: int) -> Timeline:
    """Run a scenario under a control law."""
    with quiet():
        return World(scenario, arm, seed).run()
