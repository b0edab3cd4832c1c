"""Decides which events go into the next body, and what an answer means for them. It sends nothing and never waits.

The client's sender and the command `sluice send` both use it. After a 429, bodies have half as many events, and grow by
EVENTS_MIN with each body that is accepted: a large body makes all other clients wait until the rate has paid for it.
After a 413, they stay within the limit that the answer names, or are halved. After a 429 for the level of a body, only
events up to this level wait.
"""

import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

from sluice_client.buffer import count_within
from sluice_client.wire import NoResponseError, NotSentError, Response

BATCH_BYTES_MAX: Final = 512 * 1024  # half of the server's default limit
EVENTS_MIN: Final = 20  # a batch is not made smaller than this after 429: more requests would only cost more
BACKOFF_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)  # between attempts if the server sends no Retry-After
RETRY_AFTER_SECONDS_MIN: Final = 0.1  # a proxy may say 0 with every answer


class Sendable(Protocol):
    """An event to send."""

    @property
    def line(self) -> bytes:
        """The event as JSON on one line, with its eventId."""


T = TypeVar("T", bound=Sendable)
T_contra = TypeVar("T_contra", bound=Sendable, contravariant=True)


class Outcome(Protocol[T_contra]):
    """Learns what became of events: each is accepted or rejected once."""

    def accepted(self, items: Sequence[T_contra], *, is_repeat: bool) -> None:
        """The events are durable. `is_repeat`: they were sent before, with an unknown outcome."""

    def rejected(self, item: T_contra, reason: str) -> None:
        """The server will never accept this event."""


@dataclass(slots=True)
class Batch(Generic[T]):
    """Events that are sent together. `is_repeat`: it was sent before, and its events may be stored already."""

    items: list[T]
    is_repeat: bool = False

    @property
    def body(self) -> bytes:
        """The body of the request, as NDJSON."""
        return b"\n".join(item.line for item in self.items)


class Cause(Enum):
    """Why a batch must be sent again later."""

    LIMITED = "limited"  # 429: the server works, and events of other clients get through
    FAILED = "failed"  # no connection, no answer, 408 or 5xx
    MISDIRECTED = "misdirected"  # an answer that Sluice does not give to a valid request: a wrong address or key


@dataclass(frozen=True, slots=True)
class Pause:
    """How long to wait before the next request, and why."""

    cause: Cause
    seconds: float
    why: str
    level: int | None = None  # only events up to this level wait; None: all do


class Delivery(Generic[T]):
    """Batches of events until each is accepted or rejected, in their order."""

    def __init__(
        self, outcome: Outcome[T], *, events_max: int = sys.maxsize, level_of: Callable[[T], int] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        """`events_max` bounds a body. Without `level_of`, all events wait if a level is refused.

        `draw` spreads clients that failed together; it returns a number in [0, 1).
        """
        self._outcome = outcome
        self._level_of = level_of
        self._events_limit = events_max  # as far as it is known
        self._events_max = events_max  # of the next body
        self._bytes_max = BATCH_BYTES_MAX
        self._draw = draw
        self._failures = 0  # in a row
        self.pending: deque[Batch[T]] = deque()
        self.held: deque[Batch[T]] = deque()  # they wait for `release`, since their level was refused

    @property
    def events_max(self) -> int:
        """How many events the next body may have."""
        return self._events_max

    @property
    def bytes_max(self) -> int:
        """How many bytes the next body may have, unless it is one event."""
        return self._bytes_max

    def add(self, batch: Batch[T]) -> None:
        """Send this batch too, after those that are pending."""
        self.pending.append(batch)

    @property
    def unsettled(self) -> list[Batch[T]]:
        """All batches that are not settled, the held ones first."""
        return [*self.held, *self.pending]

    def release(self) -> None:
        """Send the held batches again, before all others."""
        self.pending.extendleft(reversed(self.held))
        self.held.clear()

    def remove(self, is_gone: Callable[[T], bool]) -> int:
        """Forget events that are not settled; returns how many."""
        before = sum(len(batch.items) for batch in self.unsettled)
        for batches in (self.held, self.pending):
            for batch in list(batches):
                batch.items = [item for item in batch.items if not is_gone(item)]
                if not batch.items:
                    batches.remove(batch)
        return before - sum(len(batch.items) for batch in self.unsettled)

    def next(self) -> Batch[T]:
        """The first pending batch, as large as a body may be now. `pending` must not be empty."""
        batch = self.pending[0]
        count = count_within((item.line for item in batch.items), self._events_max, self._bytes_max)
        if count < len(batch.items):
            self.pending.popleft()
            self.pending.appendleft(Batch(batch.items[count:], batch.is_repeat))
            self.pending.appendleft(Batch(batch.items[:count], batch.is_repeat))
        return self.pending[0]

    def failed(self, error: NotSentError | NoResponseError) -> Pause:
        """There was no answer to the first pending batch."""
        if isinstance(error, NoResponseError):
            self.pending[0].is_repeat = True
        return self._pause(Cause.FAILED, None, str(error))

    def answered(self, response: Response) -> Pause | None:
        """The answer to the first pending batch. Returns how long to wait, or None to continue at once."""
        batch = self.pending[0]
        if response.status == 202:
            self._outcome.accepted(batch.items, is_repeat=batch.is_repeat)
            self._events_max = min(self._events_max + EVENTS_MIN, self._events_limit)
            self._settle([])
            return None
        if response.status in (400, 422) and response.error:  # else it is not Sluice's: a wrong port or proxy
            self._reject_some(batch, response)
            return None
        if response.status == 413:
            self._learn_limit(batch, response)
            self._split(batch, response)
            return None
        why = f"{response.status} {response.message}"
        if response.status == 429:
            return self._limited(batch, response, why)
        if response.status == 408 or response.status >= 500:
            batch = self._keep_unconfirmed(batch, response)
            batch.is_repeat = batch.is_repeat or (response.status >= 500 and response.code != "unavailable")
            return self._pause(Cause.FAILED, response.retry_after_seconds, why)
        return self._pause(Cause.MISDIRECTED, response.retry_after_seconds, why)

    def _limited(self, batch: Batch[T], response: Response, why: str) -> Pause:
        if self._level_of is not None and response.is_limited_by_level:
            return self._hold(self._level_of, response, why)
        self._events_max = max(EVENTS_MIN, min(len(batch.items), self._events_max) // 2)
        self._events_max = min(self._events_max, self._events_limit)
        return self._pause(Cause.LIMITED, response.retry_after_seconds, why)

    def _hold(self, level_of: Callable[[T], int], response: Response, why: str) -> Pause:
        """Put all pending events up to the level of the refused batch aside."""
        level = max(map(level_of, self.pending[0].items))
        batches = list(self.pending)
        self.pending.clear()
        for batch in batches:
            for kept, is_low in ((self.held, True), (self.pending, False)):
                items = [item for item in batch.items if (level_of(item) <= level) is is_low]
                if items:
                    kept.append(Batch(items, batch.is_repeat))
        retry_after = response.retry_after_seconds
        seconds = BACKOFF_SECONDS[-1] if retry_after is None else max(retry_after, RETRY_AFTER_SECONDS_MIN)
        return Pause(Cause.LIMITED, seconds, why, level)

    def _settle(self, rest: list[Batch[T]]) -> None:
        """Finish the first pending batch; `rest` has the batches that replace it."""
        self._failures = 0
        self.pending.popleft()
        self.pending.extendleft(reversed(rest))

    def _keep_unconfirmed(self, batch: Batch[T], response: Response) -> Batch[T]:
        """If the answer says which events may not be stored, only these are sent again."""
        kept = response.unconfirmed(len(batch.items))
        if kept is None or len(kept) == len(batch.items):
            return batch
        missing = set(kept)
        stored = [item for index, item in enumerate(batch.items) if index not in missing]
        self._outcome.accepted(stored, is_repeat=batch.is_repeat)
        self._settle([Batch([batch.items[index] for index in sorted(missing)], is_repeat=True)])
        return self.pending[0]

    def _reject_some(self, batch: Batch[T], response: Response) -> None:
        """Remove the events that the answer names; if it names none, halve the batch until it has one event."""
        reasons = response.reasons(len(batch.items))
        if not reasons and len(batch.items) > 1:
            self._split(batch, response)
            return
        reasons = reasons or {0: response.message}
        for index, reason in reasons.items():
            self._outcome.rejected(batch.items[index], reason)
        kept = [item for index, item in enumerate(batch.items) if index not in reasons]
        self._settle([Batch(kept, batch.is_repeat)] if kept else [])

    def _split(self, batch: Batch[T], response: Response) -> None:
        items = batch.items
        if len(items) == 1:
            self._outcome.rejected(items[0], response.message)
            self._settle([])
            return
        half = len(items) // 2
        self._settle([Batch(items[:half], batch.is_repeat), Batch(items[half:], batch.is_repeat)])

    def _learn_limit(self, batch: Batch[T], response: Response) -> None:
        """Later bodies keep the limit that a 413 names, or half of what was too large."""
        events = response.limit("events")
        if events is not None:
            self._events_limit = min(self._events_limit, events)
            self._events_max = min(self._events_max, self._events_limit)
        elif len(batch.items) > 1:
            limit = response.limit("bytes") or len(batch.body) // 2
            self._bytes_max = max(1, min(self._bytes_max, limit))

    def _pause(self, cause: Cause, retry_after_seconds: float | None, why: str) -> Pause:
        backoff = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)] * (0.75 + self._draw() / 2)
        self._failures += 1
        seconds = backoff if retry_after_seconds is None else max(retry_after_seconds, RETRY_AFTER_SECONDS_MIN)
        return Pause(cause, seconds, why)
