"""Ingest processes with the shipped admission, and the clients that send bodies to them."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from prometheus_client import CollectorRegistry

from checks.sim.bounds import LeaseBound, WatchedBucket
from checks.sim.virtual import VirtualLoop
from ingest.admission import Admission
from ingest.errors import RateLimitedError, whole_seconds
from pipeline.metrics import IngestMetrics
from pipeline.ports.control import ControlState, rate_after_override
from pipeline.settings import Settings

# A client that ignores Retry-After repeats after this time.
_AT_ONCE_SECONDS: Final = (0.05, 0.3)
# The share of refused bodies that a client repeats; the others are dropped, as by a client that ends.
_REPEATED_SHARE: Final = 0.9

Answered = Callable[[RateLimitedError | None], None]


class IngestProcess:
    """One ingest process: the shipped admission on virtual time, and its follower's part of the work."""

    def __init__(self, settings: Settings, bucket: WatchedBucket, lease: LeaseBound, loop: VirtualLoop) -> None:
        self._loop = loop
        self._lease = lease
        self.admission = Admission(settings, bucket, loop.clock, IngestMetrics(CollectorRegistry()))
        self.admission.start(loop.as_event_loop())

    def follow(self, state: ControlState, seconds: float) -> None:
        """Take a state that was published, `seconds` later."""
        self._loop.call_later(seconds, self._note, state)

    def _note(self, state: ControlState) -> None:
        rate, override = state.rate, state.override
        if rate is None:
            return
        ends_in = None if override is None else override.until - state.time
        self.admission.note_rate(rate.version, rate.rate, ends_in=ends_in, rate_after=rate_after_override(state))
        self._lease.note_rate(rate.version, rate.rate)

    def offer(self, count: int, answered: Answered) -> None:
        """Ask for the admission of a body. `answered` gets None if it was admitted, else the refusal."""
        if self.admission.take_now(count):
            self._admitted(count)
            answered(None)
        else:
            self._drive(self._ask(count, answered))

    async def _ask(self, count: int, answered: Answered) -> None:
        try:
            await self.admission.take(count)
        except RateLimitedError as refusal:
            answered(refusal)
        else:
            self._admitted(count)
            answered(None)

    def _admitted(self, count: int) -> None:
        if not self.admission.is_local:
            self._lease.note_admitted(count, self._loop.time())

    def _drive(self, asking: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine until it waits for the bucket, and go on when the bucket has answered."""
        try:
            waits_for: asyncio.Future[Any] = asking.send(None)
        except StopIteration:
            return
        waits_for.add_done_callback(lambda _: self._drive(asking))


class AfterRefusal(Enum):
    """What a client does with a body that was refused."""

    DROP = "drop"
    OBEY = "obey"  # repeats after Retry-After
    AT_ONCE = "at once"  # repeats within a fraction of a second


@dataclass(frozen=True, slots=True)
class Load:
    """What clients of one kind send."""

    rate: Callable[[float], float]  # events/s, at seconds since the run began
    body: int = 20  # events
    after_refusal: AfterRefusal = AfterRefusal.DROP
    is_even: bool = False  # bodies at equal distances; otherwise at random ones (Poisson)
    # Not 0: so many senders, each with one body at a time. A sender keeps its body until it is admitted.
    senders: int = 0


class Counts:
    """What happened to the bodies of one load."""

    __slots__ = ("admitted", "offered", "refused")

    def __init__(self) -> None:
        self.offered = 0  # events; a body counts at each try
        self.admitted = 0
        self.refused = 0


class Clients:
    """The clients of one load. Each body goes to a process by chance."""

    def __init__(
        self,
        load: Load,
        processes: list[IngestProcess],
        loop: VirtualLoop,
        rng: random.Random,
        admitted: Callable[[int], None],
    ) -> None:
        self.load = load
        self.counts = Counts()
        self._processes = processes
        self._loop = loop
        self._rng = rng
        self._note_admitted = admitted
        self._began_at = loop.time()
        self._due = 0.0  # bodies
        self._next = 1.0 if load.is_even else rng.expovariate(1.0)
        for _ in range(load.senders):
            loop.call_later(rng.random(), self._send_next)

    def step(self, at: float, seconds: float) -> None:
        """Send the bodies of one step."""
        load = self.load
        if load.senders:
            return
        self._due += load.rate(at) * seconds / load.body
        while self._due >= self._next:
            self._due -= self._next
            self._next = 1.0 if load.is_even else self._rng.expovariate(1.0)
            self._send()

    def _send(self) -> None:
        counts, body = self.counts, self.load.body
        counts.offered += body
        processes = self._processes
        process = processes[0] if len(processes) == 1 else processes[int(self._rng.random() * len(processes))]
        process.offer(body, self._answered)

    def _answered(self, refusal: RateLimitedError | None) -> None:
        body, rng = self.load.body, self._rng
        if refusal is None:
            self.counts.admitted += body
            self._note_admitted(body)
            if self.load.senders:
                self._loop.call_later(self._pause_seconds(), self._send)
            return
        self.counts.refused += body
        after = self.load.after_refusal
        if after is AfterRefusal.DROP or (not self.load.senders and rng.random() > _REPEATED_SHARE):
            return
        wait_seconds = (
            whole_seconds(refusal.retry_after_seconds, draw=rng.random())
            if after is AfterRefusal.OBEY
            else rng.uniform(*_AT_ONCE_SECONDS)
        )
        self._loop.call_later(wait_seconds, self._send)

    def _send_next(self) -> None:
        self._send()

    def _pause_seconds(self) -> float:
        """Between two bodies of one sender, so that all senders together offer the load's rate."""
        mean = self.load.body * self.load.senders / self.load.rate(self._loop.time() - self._began_at)
        return self._rng.expovariate(1.0 / mean)
