"""Writes the history once a second: each ingest process adds its counters, one of them adds the system's sample."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from ingest.admission import Admission
from ingest.dashboard.counter_deltas import CounterDeltas
from ingest.dashboard.points import Point
from pipeline.clock import Clock
from pipeline.errors import RecoverableError, SluiceError, StoreUnavailableError
from pipeline.flow.bucket import burst_of
from pipeline.flow.lag import lag_by_partition
from pipeline.follower import ControlFollower
from pipeline.health.outlook import FRESH_SECONDS, Lookout
from pipeline.health.snapshot import Outlook, silent_seconds
from pipeline.loops import Loop
from pipeline.ports.control import ControlState, paused
from pipeline.ports.history import COUNTS, HISTORY_ENTRIES_MAX, History
from pipeline.ports.log import EventLog, LogIdentity
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

PERIOD_SECONDS: Final = 1.0
LOOK_BACK_ENTRIES_MAX: Final = 120  # entries in one read of the history; the first read covers the last two minutes
# Between two reads of the log's identity, which has the number of its partitions. Appends learn of new ones as soon.
IDENTITY_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 5.0  # after the last response to a request with events, this process counts as quiet
ENTRY_SHARE: Final = 0.9  # of the period: an entry that is late does not keep the next one away
# Between two seconds that a writer without the lags leaves to another process. Alone, it loses one entry each time.
OFFER_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class SystemReaders:
    """The adapters that read the whole system. `log` is a separate client, which never appends.

    `ticks_waiting` returns the number of tasks in the control worker's queue, and `store_memory` the bytes that the
    control store uses, and its limit (0: none); None: it is not asked.
    """

    history: History
    log: EventLog
    ticks_waiting: Callable[[], int] | None = None
    store_memory: Callable[[], tuple[int, int]] | None = None


class Recorder:
    """One process' part in writing the history, on its own thread: it wakes no event loop.

    If Redis is unavailable, only history is lost: this process continues to remember what it sees itself.
    """

    def __init__(
        self,
        readers: SystemReaders,
        *,
        deltas: CounterDeltas,
        admission: Admission,
        follower: ControlFollower,
        settings: Settings,
        clock: Clock,
        loop: Loop,
        on_log_read: Callable[[LogIdentity | None], None] = lambda _: None,
    ) -> None:
        """`on_log_read` is called on the thread after each read of the event log.

        It gets the identity of the log that answered; None if it did not answer, or not for all partitions.
        """
        self._readers = readers
        self._on_log_read = on_log_read
        self._deltas = deltas
        self._burst_seconds = settings.burst_seconds
        self._silent_seconds = silent_seconds(settings.regulate_seconds)
        self._admission = admission
        self._follower = follower
        self._clock = clock
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._stopping = threading.Event()
        self._answered_at = clock.monotonic()  # when responses to requests with events were last seen
        self._loop = loop
        self._is_unavailable = False
        self._writes = True  # this process adds the next entry; see `_add`
        self._offered_at: float | None = None  # when it last left its entry to others; None: it has read the log since
        self._lookout = Lookout(settings)  # used on the thread
        self._identity: tuple[float, LogIdentity] | None = None  # of the log, and when it was read; None: unknown
        self._seen: tuple[float, Outlook] | None = None  # when it was made, on the monotonic clock
        self.local: deque[Point] = deque(maxlen=HISTORY_ENTRIES_MAX)

    def start(self) -> None:
        """Start."""
        self._thread.start()

    def close(self) -> None:
        """End. A call that is running on the thread ends by its own time-out."""
        self._stopping.set()

    def outlook(self, now: float) -> Outlook:
        """The observations of the last seconds; empty if they are too old."""
        seen = self._seen
        return seen[1] if seen is not None and now - seen[0] <= FRESH_SECONDS else Outlook()

    def _run(self) -> None:
        last = due = now = self._clock.monotonic()
        while True:
            due = max(due + PERIOD_SECONDS, now)
            if self._stopping.wait(due - now):
                return
            began = self._clock.monotonic()
            with self._loop.turn():
                self._write(began - last)
            last, now = began, self._clock.monotonic()

    def _write(self, seconds: float) -> None:
        """Write the counts of the last `seconds`, and remember them in this process even if writing fails."""
        counts, sample = self._deltas.take(), self._own_view()
        self._note_quiet(counts)
        seen: dict[str, Any] | None = None
        try:
            seen = self._record(counts, seconds, sample)
        finally:
            rates = tuple(counts[name] / seconds for name in COUNTS)
            self.local.append(Point(self._clock.now(), rates, seen or sample, is_local=True))

    def _note_quiet(self, counts: dict[str, int]) -> None:
        now = self._clock.monotonic()
        if any(counts.values()):
            self._answered_at = now
        self._admission.is_quiet = now - self._answered_at >= QUIET_SECONDS

    def _own_view(self) -> dict[str, Any]:
        """The values that this process has without a call to a server."""
        now = self._clock.monotonic()
        control = self._follower.newest
        rate, tokens = self._admission.rate(now), self._admission.tokens_seen(now)
        # As in health: a lease adds to a full bucket, and more tokens than its capacity would confuse the reader.
        capacity = burst_of(rate, self._burst_seconds)
        sample: dict[str, Any] = {
            "rate": round(rate, 1),
            "tokens": None if tokens is None else min(tokens, capacity),
        }
        if control is not None and self._follower.problem is None:
            sample |= _of_state(control.state)
            if control.state.rate is not None:
                # For readers that read only once: otherwise they would have to trust a wall clock.
                sample["published"] = control.state.rate.published_at
                sample["published_age"] = control.controller_age_seconds(now)
        return sample

    def _record(self, counts: dict[str, int], seconds: float, sample: dict[str, Any]) -> dict[str, Any] | None:
        """Add the counts and, if this process writes the entries, a sample of the system. Returns the sample."""
        self._lookout.note_own(counts, seconds, self._clock.monotonic(), sample.get("rate"))
        seen = self._add(counts, sample)
        now = self._clock.monotonic()
        if self._is_unavailable and seen is not None:
            self._lookout.note_sample(seen, now)
        told = replace(self._lookout.seen(now), ticks_waiting=self._ticks_waiting(now), store_memory=self._memory(now))
        self._seen = (now, told)
        return seen

    def _is_controller_silent(self, now: float) -> bool:
        control = self._follower.newest
        if control is None:
            return False
        age_seconds = control.controller_age_seconds(now)
        return age_seconds is None or age_seconds > self._silent_seconds

    def _ticks_waiting(self, now: float) -> int | None:
        """The tasks that wait for the control worker, if the controller is silent: they say which process is.

        None: unknown. While the controller publishes, this asks nothing.
        """
        ask = self._readers.ticks_waiting
        if ask is None or self._is_unavailable or not self._is_controller_silent(now):
            return None
        try:
            return ask()
        except StoreUnavailableError as error:
            logger.debug("it is unknown whether tasks wait for the control worker: %s", error)
            return None

    def _memory(self, now: float) -> tuple[int, int] | None:
        """The memory of the control store, if the controller is silent: at its limit, the store takes no tasks.

        It writes no history then. None: unknown.
        """
        ask = self._readers.store_memory
        if ask is None or self._follower.problem is not None or not self._is_controller_silent(now):
            return None
        try:
            return ask()
        except StoreUnavailableError as error:
            logger.debug("the memory of the control store is unknown: %s", error)
            return None

    def _add(self, counts: dict[str, int], sample: dict[str, Any]) -> dict[str, Any] | None:
        """Add the counts and, if this process writes the entries, one with the sample; see `_record`.

        One process writes the entries: it goes on as long as the store takes them. Another one that has seen no new
        entry for a period takes its place. The store refuses a second entry of one second.
        """
        try:
            seen = self._entry(sample) if self._writes else None
            is_alone = self._exchange(counts, seen)
            if is_alone and not self._writes:
                seen = self._entry(sample)
                is_alone = seen is not None and self._exchange(dict.fromkeys(counts, 0), seen)
            self._writes = is_alone and seen is not None
        except StoreUnavailableError as error:
            if not self._is_unavailable:
                self._is_unavailable = True
                logger.warning("no history is written: %s", error, extra={"action": "history_away"})
            self._writes = True
            return sample | self._positions()
        self._is_unavailable = False
        return seen

    def _entry(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        """A sample with the lags; None: another process may know them, and is to write this entry.

        Without the lags, this process leaves one entry to others, and writes if none of them did. It does so again
        every OFFER_SECONDS: another process may reach the log by then.
        """
        now, positions = self._clock.monotonic(), self._positions()
        if positions:
            self._offered_at = None
        elif self._offered_at is None or now - self._offered_at >= OFFER_SECONDS:
            self._offered_at = now
            return None
        return sample | positions

    def _exchange(self, counts: dict[str, int], sample: dict[str, Any] | None) -> bool:
        """Write, and read the new entries of all processes. Returns whether no other process writes the entries."""
        is_added, entries = self._readers.history.add_and_read(
            counts,
            sample,
            after=self._lookout.position,
            entries_max=LOOK_BACK_ENTRIES_MAX,
            age_seconds_min=PERIOD_SECONDS * ENTRY_SHARE,
        )
        self._lookout.note_entries(entries, now=self._clock.monotonic())
        return is_added or not entries

    def _log_identity(self) -> LogIdentity:
        """The identity of the log, at most IDENTITY_SECONDS old. Raises what `EventLog.identity` raises."""
        now = self._clock.monotonic()
        if self._identity is None or now - self._identity[0] >= IDENTITY_SECONDS:
            self._identity = (now, self._readers.log.identity())
        return self._identity[1]

    def _positions(self) -> dict[str, Any]:
        """The consumed offsets of the event log; empty if it does not respond, or not for all partitions."""
        try:
            identity = self._log_identity()
            positions = self._readers.log.positions()
        except (RecoverableError, SluiceError):
            self._identity = None
            self._on_log_read(None)
            return {}
        lags = lag_by_partition(positions, None)
        if lags is None or len(lags) < identity.partitions:
            self._on_log_read(None)
            return {}
        self._on_log_read(identity)
        offsets = {position.partition: max(position.begin, position.committed or 0) for position in positions}
        return {
            "lags": [lags[partition] for partition in sorted(lags)],
            "offsets": [offsets[partition] for partition in sorted(lags)],
            "consumed": sum(offsets.values()),
        }


def _of_state(state: ControlState) -> dict[str, Any]:
    policy = None if state.rate is None else state.rate.policy
    return {
        "breaker": state.breaker.value,
        "paused": None if state.pauses is None else paused(state.pauses),
        "shadow": None if policy is None or policy.shadow is None else policy.shadow.rate,
        "measure": None if policy is None else policy.explanation.measure,
    }
