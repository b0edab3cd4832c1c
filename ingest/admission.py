"""Admission: decides whether events may pass now, in memory, with leases from the global bucket.

A lease is a number of tokens that this process took from the bucket in advance. Spending them is a subtraction. The
process renews a lease before it is used up, with one call at a time, on a thread beside the event loop. If the bucket
was empty, the process predicts its tokens, and rejects requests without a call to the bucket. Everything except the
call itself runs on the event loop, so there are no locks. While no requests come, that thread goes on to call by
itself, and wakes the event loop only if an answer differs from the one before.

A body passes if the lease and the bucket together hold one token, whatever its size. The rest is the bucket's debt, and
bodies of all sizes wait until it is paid. So each body has the same chance, and none starves beside smaller ones.

With ADMISSION_LEVELS, a level below the highest leaves its reserve in the bucket (pipeline/flow/bucket.py). The tokens
of a lease have no level. So a body of a lower level may spend them only while the lease and the bucket together hold
its reserve: `_kept` is the number of tokens that it must leave in the lease, by what the bucket held at the last grant.
"""

import asyncio
import math
import os
import socket
import threading
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from ingest.account_counter import AccountCounter
from ingest.errors import RateLimitedError
from pipeline.clock import Clock
from pipeline.errors import StoreUnavailableError
from pipeline.flow import bucket as bucket_flow
from pipeline.flow.rate import Decay
from pipeline.loops import Loop
from pipeline.metrics import IngestMetrics
from pipeline.names import LEVEL_HIGHEST, Level, LimitedBy, LoopName
from pipeline.ports.bucket import Bucket, Grant
from pipeline.settings import Settings

FILL_SECONDS_MAX: Final = 1.0  # a prediction is valid for so long: other processes may have refilled the bucket
RETRY_SECONDS: Final = 0.25  # between two attempts to reach a bucket that is unavailable
PRESENCE_SECONDS: Final = 0.5  # between two calls that renew the presence of this process, with or without traffic
# The same while the process is quiet. With the longest call it is less than a second: others have counted a process
# then that reached the bucket a second ago, and what is known of the bucket is valid for as long (FILL_SECONDS_MAX).
PRESENCE_QUIET_SECONDS: Final = 0.8
# The count of live processes may fall this long after the bucket is reached again. Processes that start or recover
# together retry after RETRY_SECONDS, so the bucket has counted all of them by then.
COUNT_SECONDS: Final = 1.0
# A level whose last refusal is older than this is refused "since" now, if it is refused again.
REFUSED_AGAIN_SECONDS: Final = 10.0
_NONE_KEPT: Final = (0,) * len(Level)


@dataclass(slots=True)
class _Publication:
    """The newest published rate that this process has read, and when it first read it (own monotonic clock)."""

    version: int
    rate: float
    seen_at: float
    ends_at: float | None = None  # end of a rate that an operator set until a time
    rate_after: float = 0.0  # the rate after that time


@dataclass(slots=True)
class _Fill:
    """The bucket's tokens at a time (own monotonic clock). Since then it fills at `rate` up to `burst`, at most.

    The thread that calls the bucket moves the time of one whose bucket has not changed.
    """

    tokens: float
    at: float
    rate: float
    burst: int
    deferred: float = 0.0  # tokens that levels above `deferred_by` may use in addition
    deferred_by: Level = Level.DEBUG

    def predicted(self, now: float) -> float:
        return min(float(self.burst), self.tokens + (now - self.at) * self.rate)

    def wait_seconds(self, count: int, level: Level, held: int, now: float) -> float:
        """Seconds until the bucket and the `held` tokens of a lease together hold enough for a body of this level."""
        tokens, deferred, by = held + self.predicted(now), self.deferred, self.deferred_by
        missing = bucket_flow.missing(
            tokens, needed=count, level=level, burst=self.burst, deferred=deferred, deferred_by=by
        )
        return missing / self.rate if missing > bucket_flow.TOLERANCE_TOKENS else 0.0

    def kept(self, level: Level) -> int:
        """Tokens that a body of this level must leave in a lease, so that it leaves its reserve."""
        tokens = self.tokens + (self.deferred if level > self.deferred_by else 0.0)
        missing = bucket_flow.reserve_of(level, self.burst) - tokens
        return max(0, math.ceil(missing - bucket_flow.TOLERANCE_TOKENS)) if level < LEVEL_HIGHEST else 0


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A body that waits for a call to the bucket."""

    count: int
    level: Level
    done: "asyncio.Future[None]"


@dataclass(slots=True)
class _Refused:
    """The refusals of a level while a higher one was admitted."""

    since: float = 0.0  # seconds since the epoch
    until: float = float("-inf")  # monotonic: a later refusal begins anew


def process_name() -> str:
    """A unique name for this process among all ingest processes."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class Admission:
    """Admits events at the global rate. Call all methods on the event loop's thread, and `start` before the others."""

    # It has more attributes than Python stores inside an object without them, and each decision reads some.
    __slots__ = (
        "_allowance_at", "_ask_not_before", "_asked_for", "_bucket", "_clock", "_count_falls_at", "_decay",
        "_drain_over", "_executor", "_fill", "_given_back", "_grant", "_is_asking", "_is_running", "_kept",
        "_lease_rate", "_lease_version", "_left", "_level_not_before", "_limited_by", "_limited_since",
        "_live_processes", "_local", "_loop", "_low", "_lowest", "_metrics", "_process", "_publication", "_refused",
        "_settings", "_turns", "_waiting", "_was_void", "_watch_ends", "bucket_problem", "is_quiet",
    )  # fmt: skip

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
        self._fill: _Fill | None = None
        self._grant: Grant | None = None  # the bucket's last answer; None if it did not answer
        self._watch_ends: threading.Event | None = None  # ends the thread's own calls; None if it makes none
        self._ask_not_before = 0.0  # monotonic; limits how often the process calls a drained bucket
        self._kept = _NONE_KEPT
        self._lowest = Level.DEBUG  # the lowest level that might pass at the last grant
        self._level_not_before = [0.0] * len(Level)  # monotonic; the same limit for each level below that
        self._allowance_at = [0.0] * len(Level)  # monotonic: when the bucket may pass a level by its allowance
        self._refused = {level: _Refused() for level in Level}
        self._waiting: deque[_Waiting] = deque()
        self._asked_for: _Waiting | None = None  # the body for which the running call asks
        self._given_back = 0  # tokens that the next call gives back to the bucket
        self._is_asking = False
        self._was_void = False  # the last grant was void
        self.is_quiet = False  # for seconds no request with events was answered; any thread may set it
        self._drain_over: tuple[float, float] = (0.0, 0.0)  # see note_drain; and when it was noted (monotonic)
        self._limited_by = LimitedBy.RATE
        self._limited_since = clock.now()  # only shown
        self._local: bucket_flow.BucketState | None = None  # not None: the bucket is unavailable
        self.bucket_problem = ""  # the error of its last call that failed

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start, take the first lease in advance, and renew the presence of this process from then on."""
        self._loop = loop
        self._is_running = True
        self._ask()
        loop.call_later(PRESENCE_SECONDS, self._renew_presence)

    def close(self) -> None:
        """Release the thread. A call that is running ends by its own time-out."""
        self._is_running = False
        self._end_watch()
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

    def admit_now(self, tally: AccountCounter, count: int, level: Level = LEVEL_HIGHEST) -> bool:
        """Count a body that an account offers, and take its tokens like `take_level_now`; False if it is held back.

        With levels or accounts, this is the fast path. The same lines again, because a call would cost more than they
        do.
        """
        tally.offered += count
        tally.body_events = count
        if tally.hold is not None:
            return False
        left = self._left - count
        if left < self._kept[level]:
            return False
        self._left = left
        if left < self._low:
            self._renew_ahead()
        return True

    def take_level_now(self, count: int, level: Level) -> bool:
        """Like `take_now` for a body of a level, which may have to leave tokens in the lease."""
        left = self._left - count
        if left < self._kept[level]:
            return False
        self._left = left
        if left < self._low:
            self._renew_ahead()
        return True

    async def take(self, count: int, level: Level = LEVEL_HIGHEST) -> None:
        """Take tokens from the lease, or from the bucket if the lease has too few. Raises RateLimitedError.

        Waits for one call to the bucket at most, or for as many calls as the requests before it in the queue need.
        """
        if not self._waiting and self.take_level_now(count, level):
            return
        refusal = self.refusal(count, level)
        if refusal is not None:
            raise refusal
        if self._local is not None:
            self._take_locally(self._local, count, level)
            return
        waiting = _Waiting(count, level, self._loop.create_future())
        self._waiting.append(waiting)
        self._ask()
        await waiting.done

    def refusal(self, count: int, level: Level = LEVEL_HIGHEST) -> RateLimitedError | None:
        """The rejection of `count` tokens, if it is known without a call that they are missing; else None."""
        wait_seconds = self.wait_seconds(count, level)
        return self._refusal(wait_seconds, count, level, self._clock.monotonic()) if wait_seconds > 0 else None

    def wait_seconds(self, count: int, level: Level = LEVEL_HIGHEST) -> float:
        """Seconds until a body of `count` may pass, if it is known without a call that it may not now; else 0."""
        if self._left - count >= self._kept[level]:
            return 0.0
        now = self._clock.monotonic()
        if self._local is not None:
            fill = self._local_fill(self._local, now)
        elif self._fill is None or now - self._fill.at > FILL_SECONDS_MAX:
            return 0.0
        else:
            fill = self._fill
        held = self._left + self._given_back
        wait_seconds = fill.wait_seconds(count, level, held, now)
        if wait_seconds and level in bucket_flow.ALLOWED:
            by_allowance = max(self._allowance_at[level] - now, fill.wait_seconds(count, LEVEL_HIGHEST, held, now))
            wait_seconds = min(wait_seconds, by_allowance)
        if level < self._lowest:
            not_before = self._level_not_before[level] - now
        else:
            # A rest of the lease is worth a call at once: otherwise only bodies that it covers would pass meanwhile.
            not_before = 0.0 if held else self._ask_not_before - now
        return max(wait_seconds, not_before, 0.0)

    def has_token(self) -> bool:
        """Whether the lease has a token for a body of any level: then none has to wait. The lowest leaves the most."""
        return self._left > self._kept[0]

    @property
    def admits_all_levels(self) -> bool:
        """Whether no level is known to be kept out by its reserve."""
        return self._lowest is Level.DEBUG

    def give_back(self, count: int) -> None:
        """Give back the tokens of admitted events that are certainly not stored: their repeat pays for them again."""
        self._given_back += count

    def _refusal(self, wait_seconds: float, count: int, level: Level, now: float) -> RateLimitedError:
        over_seconds, noted_at = self._drain_over
        wait_seconds = max(wait_seconds, over_seconds - (now - noted_at))
        quota = self.rate(now)
        if level < LEVEL_HIGHEST and self.wait_seconds(count, LEVEL_HIGHEST) == 0.0:
            since = self._since(level, now)
            return RateLimitedError(wait_seconds, quota=quota, left=0, limited_by=LimitedBy.LEVEL, since=since)
        return RateLimitedError(
            wait_seconds,
            quota=quota,
            left=self.available(now) or 0,
            limited_by=self._limited_by,
            since=self._limited_since,
        )

    def _since(self, level: Level, now: float) -> float:
        """Record a refusal of a level; since when it has been refused again and again."""
        refused = self._refused[level]
        if now > refused.until:
            refused.since = self._clock.now()
        refused.until = now + REFUSED_AGAIN_SECONDS
        return refused.since

    # --- For other components -----------------------------------------------------------------------------------------

    def rate(self, now: float) -> float:
        """Events/s that all processes together admit, as far as this process can see."""
        known, fill = self._publication, self._fill  # read once: the history's thread reads them too
        if self._local is not None or known is None:
            return self._decayed_rate(now)
        return known.rate if fill is None else fill.rate

    def available(self, now: float) -> int | None:
        """Tokens of the lease and the bucket that a request could take now; None if the bucket was never reached."""
        return self._available(now, self._local, self._fill)

    def _available(self, now: float, local: bucket_flow.BucketState | None, level: _Fill | None) -> int | None:
        """The same, of what was read once: metrics and the history are read on other threads."""
        if local is not None:
            return max(0, self._left + int(self._local_fill(local, now).predicted(now)))
        if level is None:
            return None
        return max(0, self._left + int(level.predicted(now)))

    def tokens_seen(self, now: float) -> int | None:
        """Like `available`, but None if it would be a guess: others take tokens, and the last call is too old."""
        local, level = self._local, self._fill
        is_old = level is not None and now - level.at > FILL_SECONDS_MAX
        if local is None and self._live_processes > 1 and is_old:
            return None
        return self._available(now, local, level)

    def fill(self, now: float) -> float | None:
        """The bucket's tokens as a part of a full one, without the lease; None if unknown. Negative while in debt."""
        fill = self._fill
        if self._local is not None or fill is None or now - fill.at > FILL_SECONDS_MAX:
            return None
        return fill.predicted(now) / fill.burst

    @property
    def live_processes(self) -> int:
        """The ingest processes that share the rate, as far as this process knows."""
        return self._live_processes

    @property
    def process(self) -> str:
        """The name of this process among all ingest processes."""
        return self._process

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
            self._void_lease()
            self._lease_rate = rate
        if self._fill is not None:
            if rate > self._fill.rate:
                self._fill, self._ask_not_before = None, 0.0
            elif rate < self._fill.rate:
                now, burst = self._clock.monotonic(), bucket_flow.burst_of(rate, self._settings.burst_seconds)
                tokens = min(float(burst), self._fill.predicted(now))
                self._note_fill(_Fill(tokens, now, rate, burst, self._fill.deferred, self._fill.deferred_by))

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
        grant, fill = self._grant, self._fill
        if grant is not None and fill is not None and self._may_watch(grant):
            ends = self._watch_ends = threading.Event()
            self._loop.run_in_executor(self._executor, self._watch, grant, fill, ends).add_done_callback(
                self._on_watched
            )
        else:
            self._renew_later()
            self.look()

    def _renew_later(self) -> None:
        self._loop.call_later(PRESENCE_QUIET_SECONDS if self.is_quiet else PRESENCE_SECONDS, self._renew_presence)

    def _may_watch(self, grant: Grant) -> bool:
        """Whether the thread may renew the presence by itself: if the same answer comes again, nothing is to be done.

        So the last call asked for no tokens, gave none back, and all that this process knows is from its answer.
        """
        known = self._publication
        return (
            self.is_quiet
            and not self._is_asking
            and grant.granted == 0 == grant.wait_seconds
            and known is not None
            and known.version == grant.version
            and self._live_processes == grant.live_processes
            and self._given_back == 0
        )

    def _watch(self, known: Grant, fill: _Fill, ends: threading.Event) -> tuple[bool, Grant | None]:
        """Renew the presence, on the executor's thread, until an answer differs, or requests come.

        Returns whether the answer differed, and that answer; None if the bucket is unavailable.
        """
        while True:
            began = self._clock.monotonic()
            _, grant = self._call(0, 0, 0, LEVEL_HIGHEST)
            if grant != known:
                return True, grant
            fill.at = self._clock.monotonic()
            if not self.is_quiet or ends.wait(max(0.0, PRESENCE_QUIET_SECONDS - (fill.at - began))):
                return False, grant

    def _on_watched(self, watch: "asyncio.Future[tuple[bool, Grant | None]]") -> None:
        self._watch_ends = None
        if watch.cancelled() or not self._is_running:
            return
        self._renew_later()
        differs, answer = watch.result()
        if differs and not self._is_asking:  # otherwise the next answer is a newer one
            self._settle(0, answer)

    def _end_watch(self) -> None:
        """Let the thread make no more calls of its own: another one waits for it, or this process ends."""
        if self._watch_ends is not None:
            self._watch_ends.set()

    def look(self) -> None:
        """Call the bucket for no tokens, to see whether it is available."""
        if self._local is None:  # else there are other calls anyway
            self._ask(lease=0)

    def _ask(self, lease: int | None = None) -> None:
        """Call the bucket, one call at a time, for the waiting requests and a lease: the usual size, or `lease`."""
        if self._is_asking or not self._is_running:
            return
        self._end_watch()
        while self._waiting and self._waiting[0].done.done():
            self._waiting.popleft()  # its client disconnected
        now = self._clock.monotonic()
        lease = self._quantum(self.rate(now)) if lease is None else lease
        first = self._asked_for = self._waiting[0] if self._waiting else None
        needed, level = (min(1, lease), LEVEL_HIGHEST) if first is None else (first.count, first.level)
        # Bodies of lower levels that wait behind the first one may not be allowed to use what is left.
        wanted = lease + sum(one.count for one in self._waiting if one is first or one.level is LEVEL_HIGHEST)
        # The whole lease goes back for a body that it does not cover: until the answer, none but that body may use it.
        returned = self._hand_in() if self._waiting else self._hand_in(0)
        self._is_asking = True
        self._low = 0
        call = self._loop.run_in_executor(self._executor, self._call, needed, wanted, returned, level)
        call.add_done_callback(self._on_answer)

    def _void_lease(self) -> None:
        """Give a lease of a higher rate back. With many processes, leases hold a large part of what the rate brings."""
        self._given_back += self._left
        self._left = 0

    def _hand_in(self, lease: int | None = None) -> int:
        """Tokens to give back to a bucket: `lease` of the lease (None: all), and those of events that were not stored.

        They are lost if the bucket does not answer, since it may have taken them.
        """
        lease = self._left if lease is None else lease
        returned = lease + self._given_back
        self._left -= lease
        self._given_back = 0
        return returned

    def _call(self, needed: int, wanted: int, returned: int, level: Level) -> tuple[int, Grant | None]:
        """Call the bucket, on the executor's thread. No grant: it is unavailable, or has a defect (see health)."""
        with self._turns.turn():
            try:
                grant = self._bucket.take(
                    needed=needed, wanted=wanted, process=self._process, returned=returned, level=level
                )
            except StoreUnavailableError as error:
                self.bucket_problem = str(error)
            else:
                return wanted, grant
        return wanted, None

    def _on_answer(self, call: "asyncio.Future[tuple[int, Grant | None]]") -> None:
        self._is_asking = False
        if call.cancelled() or not self._is_running:
            return
        self._settle(*call.result())

    def _settle(self, wanted: int, answer: Grant | None) -> None:
        """Use the answer to a call for `wanted` tokens; None: the bucket is unavailable."""
        now = self._clock.monotonic()
        self._grant = answer
        if answer is not None:
            self._local = None
            if wanted:
                self._metrics.lease_calls.labels("granted" if answer.granted else "empty").inc()
            self._settle_grant(answer, wanted, now)
        else:
            self._metrics.lease_calls.labels("away").inc()
            self._settle_unavailable(now)

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
                self._void_lease()
            self._left += grant.granted
            self._lease_version, self._lease_rate = grant.version, grant.rate
            self._note_fill(_Fill(grant.tokens, now, grant.rate, grant.burst, grant.deferred, grant.deferred_by))
        asked_for, self._asked_for = self._asked_for, None
        if asked_for is not None and grant.wait_seconds:
            self._allowance_at[asked_for.level] = now + grant.wait_seconds
        self._count(grant.live_processes, now)
        # A drained bucket gives only the tokens that arrived since the last call. Call rarely, so that each call gets
        # some.
        is_drained = grant.granted < wanted and grant.tokens + grant.deferred < 1
        rarely = now + self._settings.lease_seconds / 3
        self._ask_not_before = rarely if is_drained else 0.0
        if asked_for is not None:
            self._level_not_before[asked_for.level] = rarely
        self._low = self._quantum(grant.rate) // 2 + 1
        self._serve_waiting(None if is_void or grant.wait_seconds else asked_for)
        if self._waiting:
            self._ask()

    def _count(self, live_processes: int, now: float) -> None:
        """Record how many processes share the rate. A count that is too low would let them together exceed the rate."""
        if self._count_falls_at is None:
            self._count_falls_at = now + COUNT_SECONDS
        known = self._live_processes if now < self._count_falls_at else 1
        self._live_processes = max(known, live_processes)

    def _note_fill(self, fill: _Fill) -> None:
        """Record what the bucket holds, and what lower levels must leave in the lease for it."""
        self._fill = fill
        if self._settings.admission_levels:
            self._keep(fill)

    def _keep(self, fill: _Fill) -> None:
        self._kept = tuple(map(fill.kept, Level))
        passing = (level for level in Level if not fill.wait_seconds(1, level, self._left, fill.at))
        self._lowest = next(passing, LEVEL_HIGHEST)

    def _serve_waiting(self, granted: _Waiting | None) -> None:
        """Serve waiting requests in order; reject those for which the bucket is known to have too few tokens.

        `granted` is the one whose tokens are in the lease, whatever its level.
        """
        while self._waiting:
            first = self._waiting[0]
            count, level = first.count, first.level
            if not first.done.done():
                if count <= self._left and (first is granted or self._left - count >= self._kept[level]):
                    self._left -= count
                    first.done.set_result(None)
                else:
                    refusal = self.refusal(count, level)
                    if refusal is None:
                        return  # the bucket may have enough tokens for it: call again
                    first.done.set_exception(refusal)
            self._waiting.popleft()

    def _fail_waiting(self, error: BaseException | None) -> None:
        while self._waiting:
            done = self._waiting.popleft().done
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

    def _local_fill(self, local: bucket_flow.BucketState, now: float) -> _Fill:
        rate = self._local_rate(now)
        burst = bucket_flow.burst_of(rate, self._settings.burst_seconds)
        state = bucket_flow.refill(local, now=now, rate=rate, burst=burst)
        return _Fill(state.tokens, now, rate, burst, state.deferred, state.deferred_by)

    def _settle_unavailable(self, now: float) -> None:
        """Continue with a bucket of this process. It starts empty: otherwise each outage would allow a burst."""
        local = self._local = self._local or bucket_flow.BucketState(0.0, now, self._local_rate(now))
        self._count_falls_at = None
        self._low = 0
        self._ask_not_before = 0.0
        self._level_not_before = [0.0] * len(Level)
        if self._settings.admission_levels:
            self._keep(self._local_fill(local, now))
        self._loop.call_later(RETRY_SECONDS, self._ask)
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done.done():
                try:
                    local = self._take_locally(local, first.count, first.level)
                except RateLimitedError as refusal:
                    first.done.set_exception(refusal)
                else:
                    first.done.set_result(None)

    def _take_locally(self, local: bucket_flow.BucketState, count: int, level: Level) -> bucket_flow.BucketState:
        """Take tokens from the process' own bucket, and return its new state. Raises RateLimitedError."""
        now = self._clock.monotonic()
        rate = self._local_rate(now)
        burst = bucket_flow.burst_of(rate, self._settings.burst_seconds)
        taken = bucket_flow.take(
            local, now=now, rate=rate, burst=burst, needed=count, wanted=count, returned=self._hand_in(), level=level
        )
        self._local = taken.state
        if self._settings.admission_levels:
            self._keep(self._local_fill(taken.state, now))
        if taken.wait_seconds:
            self._allowance_at[level] = now + taken.wait_seconds
            raise self._refusal(taken.wait_seconds, count, level, now)
        return taken.state
