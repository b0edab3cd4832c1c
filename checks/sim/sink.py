"""The simulated log and sink: partitions with counted events, and for each partition one drain that stores them."""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.breaker import SinkBreaker
from pipeline.errors import BreakerOpenError, SinkUnavailableError
from pipeline.settings import Settings

# After a failed batch, a drain tries again at its next hint.
_RETRY_SECONDS: Final = 1.0
_NEARLY_NOTHING: Final = 1e-9


@dataclass(slots=True)
class Partition:
    """One partition, and the drain that stores it. An offset is that of the next record."""

    appended: int = 0
    stored: int = 0
    batch: int = 0  # events of the batch that is being stored; 0: none
    left: float = 0.0  # of these, events that are not written yet
    began: int = 0  # offset at which the newest stored batch began ...
    began_at: float = 0.0  # ... and when it began (PostgreSQL's clock)
    batch_at: float = 0.0  # when the current batch began
    silent_since: float | None = None  # the sink has not answered this drain since then
    idle_until: float = 0.0  # after a failure
    # When events were accepted, and how many of them are not stored: oldest first.
    waiting: deque[list[float]] = field(default_factory=deque)

    @property
    def lag(self) -> int:
        """Events that are not stored."""
        return self.appended - self.stored

    def append(self, count: int, at: float) -> None:
        """Accept events."""
        self.appended += count
        self.waiting.append([at, count])

    def begin_batch(self, records_max: int, at: float) -> None:
        """Read the next batch; its size is fixed from here on."""
        self.batch = min(records_max, self.lag)
        self.left = float(self.batch)
        self.batch_at = at


@dataclass(frozen=True, slots=True)
class Conditions:
    """The sink's state in one step."""

    capacity: float  # events/s of all drains together
    caps: Sequence[float] | None = None  # events/s of each drain; None: no limit but the capacity
    is_down: bool = False  # calls to the sink get no answer


@dataclass(slots=True)
class Stored:
    """The events that one step has stored, by age."""

    events: int = 0
    in_time: int = 0
    oldest_seconds: float = 0.0


class Sink:
    """Stores the partitions' events. Its capacity is divided equally among the drains that are busy."""

    def __init__(
        self, settings: Settings, partitions: int, breaker: SinkBreaker, *, batch_max: int, late_seconds: float
    ) -> None:
        self.partitions = [Partition() for _ in range(partitions)]
        self._breaker = breaker
        self._batch_max = batch_max
        self._late_seconds = late_seconds
        self._silence_seconds_max = settings.sink_call_seconds_max
        self._has_failed = False  # since the last success: a success changes the breaker only after a failure

    def step(self, now: float, seconds: float, conditions: Conditions, *, is_paused: bool) -> Stored:
        """Store for `seconds` from `now` on."""
        done = Stored()
        if is_paused or self._breaker.is_open:
            self._stop_drains()
            return done
        if conditions.is_down:
            self._fail_drains(now)
            return done
        busy = []
        for number, one in enumerate(self.partitions):
            one.silent_since = None
            if one.batch == 0 and one.appended > one.stored and now >= one.idle_until:
                one.begin_batch(self._batch_max, now)
            if one.batch:
                room = one.left + one.lag - one.batch
                cap = room if conditions.caps is None else min(room, conditions.caps[number] * seconds)
                busy.append((cap, one))
        if not busy:
            return done
        # Equal shares, each at most its cap: the smallest cap first, and the others get the rest.
        busy.sort(key=_cap_of)
        work = conditions.capacity * seconds
        for place, (cap, one) in enumerate(busy):
            part = min(cap, work / (len(busy) - place))
            work -= part
            if part > _NEARLY_NOTHING:
                self._store(one, part, now, seconds, done)
        return done

    def oldest_seconds(self, now: float) -> float:
        """Age of the oldest event that is not stored; 0 if all are."""
        return max((now - one.waiting[0][0] for one in self.partitions if one.waiting), default=0.0)

    def restart_drain(self, partition: int) -> None:
        """End the backend of a drain: it repeats its batch."""
        one = self.partitions[partition]
        one.left = float(one.batch)

    def _store(self, one: Partition, work: float, now: float, seconds: float, done: Stored) -> None:
        """Write `work` events of one drain, and commit each batch that is complete."""
        rest = work
        while rest >= one.left - _NEARLY_NOTHING and one.batch:
            rest -= one.left
            at = now + seconds * (1 - max(0.0, rest) / work)
            if self._has_failed:
                self._breaker.call(_succeed)
                self._has_failed = False
            self._commit(one, at, done)
            if one.appended > one.stored:
                one.begin_batch(self._batch_max, at)
            else:
                one.batch, one.left = 0, 0.0
        if one.batch:
            one.left -= rest

    def _commit(self, one: Partition, at: float, done: Stored) -> None:
        one.began, one.began_at = one.stored, one.batch_at
        one.stored += one.batch
        done.events += one.batch
        count: float = one.batch
        waiting = one.waiting
        while count > 0:
            first = waiting[0]
            age = at - first[0]
            taken = min(count, first[1])
            done.oldest_seconds = max(done.oldest_seconds, age)
            if age <= self._late_seconds:
                done.in_time += int(taken)
            count -= taken
            if taken == first[1]:
                waiting.popleft()
            else:
                first[1] -= taken
        one.batch = 0

    def _stop_drains(self) -> None:
        """Roll back the current batches."""
        for one in self.partitions:
            one.batch, one.left, one.silent_since = 0, 0.0, None

    def _fail_drains(self, now: float) -> None:
        """The drains' calls get no answer; each fails after the allowed silence, and the shipped breaker counts it."""
        for one in self.partitions:
            if one.appended == one.stored or now < one.idle_until:
                continue
            if one.silent_since is None:
                one.silent_since = now
            elif now - one.silent_since >= self._silence_seconds_max:
                one.batch, one.left, one.silent_since = 0, 0.0, None
                one.idle_until = now + _RETRY_SECONDS
                self._has_failed = True
                try:
                    self._breaker.call(_fail)
                except (SinkUnavailableError, BreakerOpenError):
                    continue


def spread(count: int, shares: Sequence[float], rng: random.Random) -> list[int]:
    """Divide events among partitions at random, as the hash of their keys does. The sum is exact.

    Each part is drawn from the normal distribution that approximates the binomial one.
    """
    parts = []
    gauss = rng.gauss
    left, share_left = count, 1.0
    for share in shares[:-1]:
        part = 0
        if left and share_left > _NEARLY_NOTHING:
            part_of_rest = share / share_left if share < share_left else 1.0
            mean = left * part_of_rest
            part = int(mean + gauss(0.0, 1.0) * (mean * (1.0 - part_of_rest)) ** 0.5 + 0.5)
            part = 0 if part < 0 else left if part > left else part
        parts.append(part)
        left -= part
        share_left -= share
    parts.append(left)
    return parts


def _cap_of(pair: tuple[float, Partition]) -> float:
    return pair[0]


def _succeed() -> None:
    return None


def _fail() -> None:
    raise SinkUnavailableError("simulated: no answer")
