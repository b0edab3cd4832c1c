"""Admission: decides whether events may pass now, in memory, with leases from the global bucket.

A lease is a number of tokens that this process took from the bucket in advance. Spending them is a subtraction. The
process renews a lease before it is used up, with one call at a time, on a thread beside the event loop. If the bucket
was empty, the process predicts its level, and rejects requests without a call to the bucket. Everything except the call
itself runs on the event loop, so there are no locks.

A body passes if the lease and the bucket together hold one token, whatever its size. The rest is the bucket's debt, and
bodies of all sizes wait until it is paid. So each body has the same chance, and none starves beside smaller ones.
"""

import asyncio
import contextlib
import os
import socket
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from ingest.errors import RateLimitedError
from pipeline.clock import Clock
from pipeline.errors import StoreUnavailableError
from pipeline.flow import bucket as bucket_flow
from pipeline.flow.rate import Decay
from pipeline.loops import Loop
from pipeline.metrics import IngestMetrics
from pipeline.names import LimitedBy, LoopName
from pipeline.ports.bucket import Bucket, Grant
from pipeline.settings import Settings

LEVEL_SECONDS_MAX: Final = 1.0  # a predicted level is valid for so long: other processes may have refilled the bucket
AWAY_SECONDS: Final = 0.25  # between two attempts to reach a bucket that is unavailable
PRESENCE_SECONDS: Final = 0.5  # between two calls that renew the presence of this process, with or without traffic
# The count of live processes may fall this long after the bucket is reached again. Processes that start or recover
# together retry after AWAY_SECONDS, so the bucket has counted all of them by then.
COUNT_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Publication:
    """The newest published rate that this process has read, and when it first read it (own monotonic clock)."""

    version: int
    rate: float
    seen_at: float
    ends_at: float | None = None  # end of a rate that an operator set until a time
    rate_after: float = 0.0  # the rate after that time


@dataclass(frozen=True, slots=True)
class _Level:
    """The bucket's tokens at a time (own monotonic clock). Since then it fills at `rate` up to `burst`, at most."""

    tokens: float
    at: float
    rate: float
    burst: int

    def predicted(self, now: float) -> float:
        return min(float(self.burst), self.tokens + (now - self.at) * self.rate)

    def wait_seconds(self, held: int, now: float) -> float:
        """Seconds until the bucket and the `held` tokens of a lease are one token together: enough for any body."""
        missing = 1 - held - self.predicted(now)
        return missing / self.rate if missing > bucket_flow.TOLERANCE_TOKENS else 0.0


def process_name() -> str:
    """A unique name for this process among all ingest processes."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class Admission:
    """Admits events at the global rate. Call all methods on the event loop's thread, and `start` before the others."""

    def __init__(
        self, settings: Settings, bucket: Bucket, clock: Clock, metrics: IngestMetrics, turns: Loop | None = None
    ) -> None:
        self._turns = turns or Loop(LoopName.LEASES, clock, on_demand=True)
        self._settings = settings
        self._bucket = bucket
        self._clock = clock
        self._metrics = metrics
        self._process = process_name()
        self._decay = Decay.from_settings(settings)
        self._loop: asyncio.AbstractEventLoop  # set by `start`
        self._is_running = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="bucket")
        self._left = 0  # tokens of the lease
        self._low = 0  # below this number the lease is renewed in advance
        self._lease_rate = 0.0  # rate of the publication under which the lease was granted
        self._lease_version = -1
        self._publication: _Publication | None = None
        self._live_processes = settings.ingest_processes_max  # until the bucket was reachable for COUNT_SECONDS
        self._count_falls_at: float | None = None  # monotonic; None: the bucket is unreachable
        self._level: _Level | None = None
        self._ask_not_before = 0.0  # monotonic; limits how often the process calls a drained bucket
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._given_back = 0  # tokens that the next call gives back to the bucket
        self._is_asking = False
        self._was_void = False  # the last grant was void
        self._drain_over: tuple[float, float] = (0.0, 0.0)  # see note_drain; and when it was noted (monotonic)
        self._limited_by = LimitedBy.RATE
        self._limited_since = clock.now()  # only shown
        self._local: bucket_flow.BucketState | None = None  # not None: the bucket is unavailable

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start, take the first lease in advance, and renew the presence of this process from then on."""
        self._loop = loop
        self._is_running = True
        self._ask()
        loop.call_later(PRESENCE_SECONDS, self._renew_presence)

    def close(self) -> None:
        """Release the thread. A call that is running ends by its own time-out."""
        self._is_running = False
        self._executor.shutdown(wait=False, cancel_futures=True)

    # --- Decisions ------------------------------------------------------------------------------------------------

    def take_now(self, count: int) -> bool:
        """Take tokens from the lease; False if the lease has too few. This is the fast path: a subtraction."""
        left = self._left - count
        if left < 0:
            return False
        self._left = left
        if left < self._low:
            self._renew_ahead()
        return True

    async def take(self, count: int) -> None:
        """Take tokens from the lease, or from the bucket if the lease has too few. Raises RateLimitedError.

        Waits for one call to the bucket at most, or for as many calls as the requests before it in the queue need.
        """
        if not self._waiting and self.take_now(count):
            return
        refusal = self.refusal(count)
        if refusal is not None:
            raise refusal
        if self._local is not None:
            self._take_locally(self._local, count)
            return
        done = self._loop.create_future()
        self._waiting.append((count, done))
        self._ask()
        await done

    def refusal(self, count: int) -> RateLimitedError | None:
        """The rejection of `count` tokens, if it is known without a call that they are missing; else None."""
        wait_seconds = self.wait_seconds(count)
        return self._refusal(wait_seconds, self._clock.monotonic()) if wait_seconds > 0 else None

    def wait_seconds(self, count: int) -> float:
        """Seconds until a body of `count` may pass, if it is known without a call that it may not now; else 0."""
        if count <= self._left:
            return 0.0
        now = self._clock.monotonic()
        if self._local is not None:
            level = self._local_level(self._local, now)
        elif self._level is None or now - self._level.at > LEVEL_SECONDS_MAX:
            return 0.0
        else:
            level = self._level
        held = self._left + self._given_back
        # A rest of the lease is worth a call at once: otherwise only bodies that it covers would pass meanwhile.
        not_before = 0.0 if held else self._ask_not_before - now
        return max(level.wait_seconds(held, now), not_before, 0.0)

    def give_back(self, count: int) -> None:
        """Give back the tokens of admitted events that are certainly not stored: their repeat pays for them again."""
        self._given_back += count

    def _refusal(self, wait_seconds: float, now: float) -> RateLimitedError:
        over_seconds, noted_at = self._drain_over
        wait_seconds = max(wait_seconds, over_seconds - (now - noted_at))
        return RateLimitedError(
            wait_seconds,
            quota=max(1, int(self.rate(now))),
            left=self.available(now) or 0,
            limited_by=self._limited_by,
            since=self._limited_since,
        )

    # --- For other components -----------------------------------------------------------------------------------------

    def rate(self, now: float) -> float:
        """Events/s that all processes together admit, as far as this process can see."""
        if self._local is not None or self._publication is None:
            return self._decayed_rate(now)
        return self._level.rate if self._level is not None else self._publication.rate

    def available(self, now: float) -> int | None:
        """Tokens of the lease and the bucket that a request could take now; None if the bucket was never reached."""
        local, level = self._local, self._level  # read once: metrics are read on another thread
        if local is not None:
            return max(0, self._left + int(self._local_level(local, now).predicted(now)))
        if level is None:
            return None
        return max(0, self._left + int(level.predicted(now)))

    def tokens_seen(self, now: float) -> int | None:
        """Like `available`, but None if it would be a guess: others take tokens, and the last call is too old."""
        if self._local is None and self._live_processes > 1 and self._level is not None:
            return self.available(now) if now - self._level.at <= LEVEL_SECONDS_MAX else None
        return self.available(now)

    @property
    def is_local(self) -> bool:
        """Whether the bucket is unavailable, and this process uses the last rate that it read."""
        return self._local is not None

    def note_drain(self, over_seconds: float) -> None:
        """Take the time that the sink needs beyond the policy's target for what is in the event log.

        A refused client should not return before that. The time passes if no newer one is published.
        """
        self._drain_over = (over_seconds, self._clock.monotonic())

    def note_limit(self, limited_by: LimitedBy, since: float | None) -> None:
        """Take what decides the rate, and since when; None: since this process first heard of it. Refusals say it."""
        if since is not None:
            self._limited_since = since
        elif limited_by is not self._limited_by:
            self._limited_since = self._clock.now()
        self._limited_by = limited_by

    def note_rate(self, version: int, rate: float, *, ends_in: float | None = None, rate_after: float = 0.0) -> None:
        """Take a published rate. A lower rate voids older leases; a higher one allows a call to the bucket at once.

        A rate that an operator set ends in `ends_in` seconds, and `rate_after` applies then. The bucket does this by
        itself; this process does it while the bucket is unavailable.
        """
        now = self._clock.monotonic()
        ends_at = None if ends_in is None else now + ends_in
        known = self._publication
        if known is not None and version <= known.version:
            if version == known.version and ends_at is not None:
                known.ends_at, known.rate_after = ends_at, rate_after  # a grant has the version before the follower
            return
        self._publication = _Publication(version, rate, now, ends_at, rate_after)
        if version > self._lease_version and rate < self._lease_rate:
            self._left = 0
            self._lease_rate = rate
        if self._level is not None:
            if rate > self._level.rate:
                self._level, self._ask_not_before = None, 0.0
            elif rate < self._level.rate:
                now, burst = self._clock.monotonic(), bucket_flow.burst_of(rate, self._settings.burst_seconds)
                self._level = _Level(min(float(burst), self._level.predicted(now)), now, rate, burst)

    # --- Leases -----------------------------------------------------------------------------------------------------

    def _quantum(self, rate: float) -> int:
        """Tokens of one lease."""
        return max(1, int(rate * self._settings.lease_seconds))

    def _renew_ahead(self) -> None:
        if not self._is_asking and self._clock.monotonic() >= self._ask_not_before:
            self._ask()

    def _renew_presence(self) -> None:
        """Call the bucket for no tokens: it counts this process, and returns the number of live processes."""
        if not self._is_running:
            return
        self._loop.call_later(PRESENCE_SECONDS, self._renew_presence)
        if self._local is None:  # else there are other calls anyway
            self._ask(lease=0)

    def _ask(self, lease: int | None = None) -> None:
        """Call the bucket, one call at a time, for the waiting requests and a lease: the usual size, or `lease`."""
        if self._is_asking or not self._is_running:
            return
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()  # its client disconnected
        now = self._clock.monotonic()
        lease = self._quantum(self.rate(now)) if lease is None else lease
        needed = self._waiting[0][0] if self._waiting else min(1, lease)
        wanted = sum(count for count, _ in self._waiting) + lease
        # The whole lease goes back for a body that it does not cover: until the answer, none but that body may use it.
        returned = self._hand_in() if self._waiting else self._hand_in(0)
        self._is_asking = True
        self._low = 0
        call = self._loop.run_in_executor(self._executor, self._call, needed, wanted, returned)
        call.add_done_callback(self._on_answer)

    def _hand_in(self, lease: int | None = None) -> int:
        """Tokens to give back to a bucket: `lease` of the lease (None: all), and those of events that were not stored.

        They are lost if the bucket does not answer, since it may have taken them.
        """
        lease = self._left if lease is None else lease
        returned = lease + self._given_back
        self._left -= lease
        self._given_back = 0
        return returned

    def _call(self, needed: int, wanted: int, returned: int) -> tuple[int, Grant | None]:
        """Call the bucket, on the executor's thread. No grant: it is unavailable, or has a defect (see health)."""
        with self._turns.turn(), contextlib.suppress(StoreUnavailableError):
            grant = self._bucket.take(needed=needed, wanted=wanted, process=self._process, returned=returned)
            return wanted, grant
        return wanted, None

    def _on_answer(self, call: "asyncio.Future[tuple[int, Grant | None]]") -> None:
        self._is_asking = False
        if call.cancelled() or not self._is_running:
            return
        now = self._clock.monotonic()
        wanted, answer = call.result()
        if answer is not None:
            self._local = None
            if wanted:
                self._metrics.lease_calls.labels("granted" if answer.granted else "empty").inc()
            self._settle_grant(answer, wanted, now)
        else:
            self._metrics.lease_calls.labels("away").inc()
            self._settle_away(now)

    def _settle_grant(self, grant: Grant, wanted: int, now: float) -> None:
        """Add a grant to the lease, serve waiting requests, and record the bucket's level."""
        known = self._publication
        is_void = known is not None and grant.version < known.version and grant.rate > known.rate
        # After a flush the bucket may have only older versions until the controller publishes again. Discard one grant
        # only.
        is_void = is_void and not self._was_void
        self._was_void = is_void
        if known is None or grant.version > known.version:
            self.note_rate(grant.version, grant.rate)
        if not is_void:
            if grant.version != self._lease_version and grant.rate < self._lease_rate:
                self._left = 0
            self._left += grant.granted
            self._lease_version, self._lease_rate = grant.version, grant.rate
            self._level = _Level(grant.tokens, now, grant.rate, grant.burst)
        self._count(grant.live_processes, now)
        # A drained bucket gives only the tokens that arrived since the last call. Call rarely, so that each call gets
        # some.
        is_drained = grant.granted < wanted and grant.tokens < 1
        self._ask_not_before = now + self._settings.lease_seconds / 3 if is_drained else 0.0
        self._low = self._quantum(grant.rate) // 2 + 1
        self._serve_waiting(now)
        if self._waiting:
            self._ask()

    def _count(self, live_processes: int, now: float) -> None:
        """Record how many processes share the rate. A count that is too low would let them together exceed the rate."""
        if self._count_falls_at is None:
            self._count_falls_at = now + COUNT_SECONDS
        known = self._live_processes if now < self._count_falls_at else 1
        self._live_processes = max(known, live_processes)

    def _serve_waiting(self, now: float) -> None:
        """Serve waiting requests in order; reject those for which the bucket is known to have too few tokens."""
        while self._waiting:
            count, done = self._waiting[0]
            if not done.done():
                if count <= self._left:
                    self._left -= count
                    done.set_result(None)
                else:
                    refusal = self.refusal(count)
                    if refusal is None:
                        return  # the bucket may have enough tokens for it: call again
                    done.set_exception(refusal)
            self._waiting.popleft()

    def _fail_waiting(self, error: BaseException | None) -> None:
        while self._waiting:
            _, done = self._waiting.popleft()
            if not done.done():
                done.set_exception(error or StoreUnavailableError())

    # --- The bucket is unavailable ------------------------------------------------------------------------------------

    def _decayed_rate(self, now: float) -> float:
        """Events/s over all processes while the bucket is unavailable; RATE_MIN if no rate was ever read."""
        known = self._publication
        if known is None:
            return self._settings.rate_min
        rate = known.rate if known.ends_at is None or now < known.ends_at else known.rate_after
        return self._decay.rate(rate, now - known.seen_at, floor=min(rate, self._settings.rate_min))

    def _local_rate(self, now: float) -> float:
        """Events/s of this process while the bucket is unavailable: an equal share."""
        return self._decayed_rate(now) / self._live_processes

    def _local_level(self, local: bucket_flow.BucketState, now: float) -> _Level:
        rate = self._local_rate(now)
        burst = bucket_flow.burst_of(rate, self._settings.burst_seconds)
        state = bucket_flow.refill(local, now=now, rate=rate, burst=burst)
        return _Level(state.tokens, now, rate, burst)

    def _settle_away(self, now: float) -> None:
        """Continue with a bucket of this process. It starts empty: otherwise each outage would allow a burst."""
        local = self._local = self._local or bucket_flow.BucketState(0.0, now, self._local_rate(now))
        self._count_falls_at = None
        self._low = 0
        self._ask_not_before = 0.0
        self._loop.call_later(AWAY_SECONDS, self._ask)
        while self._waiting:
            count, done = self._waiting.popleft()
            if not done.done():
                try:
                    local = self._take_locally(local, count)
                except RateLimitedError as refusal:
                    done.set_exception(refusal)
                else:
                    done.set_result(None)

    def _take_locally(self, local: bucket_flow.BucketState, count: int) -> bucket_flow.BucketState:
        """Take tokens from the process' own bucket, and return its new state. Raises RateLimitedError."""
        now = self._clock.monotonic()
        rate = self._local_rate(now)
        burst = bucket_flow.burst_of(rate, self._settings.burst_seconds)
        taken = bucket_flow.take(
            local, now=now, rate=rate, burst=burst, needed=count, wanted=count, returned=self._hand_in()
        )
        self._local = taken.state
        if not taken.granted:
            raise self._refusal(taken.wait_seconds, now)
        return taken.state
