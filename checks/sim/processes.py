"""Ingest processes with the shipped admission, and the clients that send bodies to them."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry

from checks.sim.bounds import Holdings, LeaseBound
from checks.sim.experiments import SPREAD
from checks.sim.virtual import VirtualLoop
from ingest.account_counter import AccountCounter
from ingest.accounts import Accounts, Surroundings
from ingest.admission import Admission
from ingest.entrance import Entrance
from ingest.errors import RateLimitedError, whole_seconds
from pipeline.errors import StoreUnavailableError
from pipeline.metrics import IngestMetrics
from pipeline.names import LEVEL_HIGHEST, Level
from pipeline.ports.bucket import Bucket
from pipeline.ports.control import ControlState, account_limits, rate_after_override
from pipeline.ports.offers import REPORT_SECONDS, Offers
from pipeline.settings import Settings

# A client that ignores Retry-After repeats after this time.
_AT_ONCE_SECONDS: Final = (0.05, 0.3)
# The share of refused bodies that a client repeats; it drops the others, like a client that ends.
_REPEATED_SHARE: Final = 0.9

# Up to a second; the follower reads a control event within a hundredth of a second.
_FOLLOW_AGAIN: Final = 100
ACCOUNT: Final = "198.51.100.1"  # of clients without a given account

Answered = Callable[[int, RateLimitedError | None], None]  # partition; None: the body was admitted


class IngestProcess:
    """One ingest process: the shipped admission on virtual time, and its follower's part of the work."""

    def __init__(
        self, settings: Settings, bucket: Bucket, lease: LeaseBound, loop: VirtualLoop, *, offers: Offers, phase: float
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._lease = lease
        self._offers = offers
        self.admission = Admission(settings, bucket, loop.clock, IngestMetrics(CollectorRegistry()))
        lease.holdings = lambda: Holdings(self.admission._left, self.admission._given_back)
        self.admission.start(loop.as_event_loop())
        self.accounts = Accounts(settings, loop.clock)
        self._entrance = Entrance(self.admission, self.accounts, has_levels=settings.admission_levels)
        self._tallies: dict[str, AccountCounter] = {}  # of the connections, one for each account
        loop.call_later(phase * REPORT_SECONDS, self._report)

    def _around(self) -> Surroundings:
        now = self._loop.time()
        return Surroundings(self.admission.rate(now), self.admission.live_processes, self.admission.fill(now))

    def _report(self) -> None:
        """Does the work of AccountReports."""
        self._loop.call_later(REPORT_SECONDS, self._report)
        offered = self.accounts.fold(self._around())
        if self.accounts.is_reporting:
            with suppress(StoreUnavailableError):
                self._offers.report(self.admission.process, offered)

    @property
    def held(self) -> int:
        """Tokens of its lease."""
        return self.admission._left

    def follow(self, state: ControlState, seconds: float) -> None:
        """Take a published state `seconds` later."""
        self._loop.call_later(seconds, self._note, state)
        # The follower finds a publication without a control event at its next read.
        self._loop.call_later(seconds * _FOLLOW_AGAIN, self._note_shares, state)

    def _note(self, state: ControlState) -> None:
        rate, override = state.rate, state.override
        if rate is None:
            return
        ends_in = None if override is None else override.until - state.time
        self.admission.note_rate(rate.version, rate.rate, ends_in=ends_in, rate_after=rate_after_override(state))
        self._lease.note_rate(rate.version, rate.rate)

    def _note_shares(self, state: ControlState) -> None:
        shares = None if state.rate is None else state.rate.shares
        self.accounts.note(shares, account_limits(self._settings), self._around(), age_seconds=0.0)

    def offer(self, load: "Load", partition: int, answered: Answered) -> None:
        """Request the admission of a body. `answered` gets None if it was admitted, else the refusal."""
        tally = self._tallies.get(load.account)
        if tally is None:
            tally = self._tallies[load.account] = self.accounts.enter(load.account)
        refusal = self._entrance.refusal(load.level, tally)
        if refusal is not None:
            tally.refuse_unread(refusal.limited_by)
            answered(partition, refusal)
        elif self._entrance.admit_now(tally, load.body, load.level):
            self._admitted(load.body)
            answered(partition, None)
        else:
            self._drive(self._admit(tally, load, partition, answered))

    async def _admit(self, tally: AccountCounter, load: "Load", partition: int, answered: Answered) -> None:
        try:
            await self._entrance.admit(tally, load.body, load.level)
        except RateLimitedError as refusal:
            answered(partition, refusal)
        else:
            self._admitted(load.body)
            answered(partition, None)

    def _admitted(self, count: int) -> None:
        if not self.admission.is_local:
            self._lease.note_admitted(count, self._loop.time())

    def _drive(self, asking: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine until it waits for the bucket, and continue it after the bucket's answer."""
        try:
            waits_for: asyncio.Future[Any] = asking.send(None)
        except StopIteration:
            return
        waits_for.add_done_callback(lambda _: self._drive(asking))


class AfterRefusal(Enum):
    """What a client does with a refused body."""

    DROP = "drop"
    OBEY = "obey"  # repeats after Retry-After
    AT_ONCE = "at once"  # repeats within a fraction of a second


@dataclass(frozen=True, slots=True)
class Load:
    """The load from clients of one kind."""

    rate: Callable[[float], float]  # events/s, at seconds since the run began
    body: int = 20  # events
    level: Level = LEVEL_HIGHEST
    after_refusal: AfterRefusal = AfterRefusal.DROP
    is_even: bool = False  # bodies at equal distances; otherwise at random ones (Poisson)
    # If not 0: the number of senders, each with one body at a time. A sender keeps its body until it is admitted.
    senders: int = 0
    account: str = ACCOUNT  # of these clients
    # All events of a body have one key, so they go to one partition; otherwise they are spread.
    has_one_key: bool = False


class Counts:
    """What happened to the bodies of one load."""

    __slots__ = ("admitted", "offered", "refused")

    def __init__(self) -> None:
        self.offered = 0  # events; a body counts at each try
        self.admitted = 0
        self.refused = 0


class Destination(Protocol):
    """Where admitted bodies go. A partition of -1: the body is spread among all."""

    def choose_partition(self) -> int:
        """The partition of a body with one key."""

    def wait_seconds(self, partition: int, count: int) -> float:
        """0, or how long a body must wait for the limit of its partition, which only experiments have."""

    def give_back(self, partition: int, count: int) -> None:
        """The shipped admission refused a body that its partition's limit had admitted."""

    def accept(self, partition: int, count: int) -> None:
        """A body was admitted."""


class Clients:
    """The clients of one load. Each body goes to a random process."""

    def __init__(
        self,
        load: Load,
        processes: list[IngestProcess],
        loop: VirtualLoop,
        rng: random.Random,
        destination: Destination,
    ) -> None:
        self.load = load
        self.counts = Counts()
        self._processes = processes
        self._loop = loop
        self._rng = rng
        self._destination = destination
        self._began_at = loop.time()
        self._due = 0.0  # bodies
        self._next = 1.0 if load.is_even else rng.expovariate(1.0)
        for _ in range(load.senders):
            loop.call_later(rng.random(), self._send_new)

    def step(self, at: float, seconds: float) -> None:
        """Send the bodies of one step."""
        load = self.load
        if load.senders:
            return
        self._due += load.rate(at) * seconds / load.body
        while self._due >= self._next:
            self._due -= self._next
            self._next = 1.0 if load.is_even else self._rng.expovariate(1.0)
            self._send_new()

    def _send_new(self) -> None:
        self._send(self._destination.choose_partition() if self.load.has_one_key else SPREAD)

    def _send(self, partition: int) -> None:
        body = self.load.body
        self.counts.offered += body
        wait_seconds = self._destination.wait_seconds(partition, body)
        if wait_seconds:
            self._refused(partition, wait_seconds)
            return
        processes = self._processes
        process = processes[0] if len(processes) == 1 else processes[int(self._rng.random() * len(processes))]
        process.offer(self.load, partition, self._answered)

    def _answered(self, partition: int, refusal: RateLimitedError | None) -> None:
        body = self.load.body
        if refusal is not None:
            self._destination.give_back(partition, body)
            self._refused(partition, refusal.retry_after_seconds)
            return
        self.counts.admitted += body
        self._destination.accept(partition, body)
        if self.load.senders:
            self._loop.call_later(self._pause_seconds(), self._send_new)

    def _refused(self, partition: int, retry_after_seconds: float) -> None:
        rng, after = self._rng, self.load.after_refusal
        self.counts.refused += self.load.body
        if after is AfterRefusal.DROP or (not self.load.senders and rng.random() > _REPEATED_SHARE):
            return
        wait_seconds = (
            whole_seconds(retry_after_seconds, draw=rng.random())
            if after is AfterRefusal.OBEY
            else rng.uniform(*_AT_ONCE_SECONDS)
        )
        self._loop.call_later(wait_seconds, self._send, partition)

    def _pause_seconds(self) -> float:
        """The pause between two bodies of one sender, so that all senders together offer the load's rate."""
        mean = self.load.body * self.load.senders / self.load.rate(self._loop.time() - self._began_at)
        return self._rng.expovariate(1.0 / mean)
