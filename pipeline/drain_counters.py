"""Counts the work of drains in memory, and adds it to the system's counters about once a second.

Names of counters: `rows`, `repeated`, `conflicting`, `dead_lettered`, `runs:<outcome>`, `expired:<table>`, and for each
histogram `<name>:<upper bound>` (a bucket's own count, not cumulative), `<name>:sum`.
"""

import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final
from uuid import uuid4

from pipeline.clock import Clock
from pipeline.errors import StoreUnavailableError
from pipeline.ports.counters import Counters
from pipeline.ports.event_sink import StoreResult

_logger = logging.getLogger(__name__)

STORED_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
BATCH_EVENTS: Final = (1.0, 10.0, 100.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 100_000.0)
BATCH_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
INFINITY: Final = float("inf")

_ADD_SECONDS: Final = 1.0  # between two additions to the counters: a killed process loses at most this much


def bound_name(name: str, bound: float) -> str:
    """The counter of a histogram's bucket."""
    return f"{name}:{'+Inf' if bound == INFINITY else repr(bound)}"


class DrainCounters:
    """One process' counts. If the server is unavailable, they are kept for the next time."""

    def __init__(self, counters: Callable[[], Counters], clock: Clock) -> None:
        self._counters = counters
        self._clock = clock
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._sent: dict[str, float] = {}  # an addition that was not confirmed: it is repeated unchanged
        self._number = 1  # of the next addition, or of the repeated one
        self._sender = uuid4().hex
        self._added_at = clock.monotonic()

    def on_stored(self, _next_offset: int, result: StoreResult) -> None:
        """Count a batch that was committed."""
        counts = self._counts
        counts["rows"] += result.stored
        counts["repeated"] += result.repeated
        counts["conflicting"] += result.conflicting
        counts["dead_lettered"] += result.dead_lettered
        size = result.stored + result.repeated + result.conflicting + result.dead_lettered
        self._observe("batch_events", BATCH_EVENTS, float(size))
        self._observe("batch_seconds", BATCH_SECONDS, result.seconds)
        self._observe_ages(result.received_at_ms, round(self._clock.now() * 1000))
        if self._clock.monotonic() - self._added_at >= _ADD_SECONDS:
            self.add()

    def on_runs(self, outcomes: Iterable[str]) -> None:
        """Count runs that have ended, each of one partition, and add all counts to the counters."""
        for outcome in outcomes:
            self._counts[f"runs:{outcome}"] += 1
        self.add()

    def count(self, counts: Mapping[str, float]) -> None:
        """Count other work of this process, and add all counts to the counters."""
        for name, count in counts.items():
            self._counts[name] += count
        self.add()

    def add(self) -> None:
        """Add the counts since the last time to the system's counters."""
        self._added_at = self._clock.monotonic()
        try:
            while self._sent or self._counts:
                if not self._sent:
                    self._sent = dict(self._counts)
                    self._counts.clear()
                self._counters().add(self._sent, sender=self._sender, number=self._number)
                self._sent, self._number = {}, self._number + 1
        except StoreUnavailableError as error:
            _logger.debug("counts are kept for later: %s", error)

    def _observe(self, name: str, bounds: Sequence[float], value: float) -> None:
        """Count a value in a histogram."""
        index = bisect_left(bounds, value)
        self._counts[bound_name(name, bounds[index] if index < len(bounds) else INFINITY)] += 1
        self._counts[f"{name}:sum"] += value

    def _observe_ages(self, received_at_ms: Sequence[int], now_ms: int) -> None:
        """Count how long ago each event of a batch was received.

        It runs for every stored event, so it has no loop over them. The times are almost in order, so sorting needs
        only one pass. The start of each bucket is found by binary search.
        """
        received = sorted(received_at_ms)
        if not received:
            return
        if received[-1] > now_ms:  # from another machine's clock
            received = [min(at, now_ms) for at in received]
        older = len(received)  # the first `older` entries are not counted yet
        for bound in STORED_SECONDS:
            index = bisect_left(received, now_ms - round(bound * 1000), 0, older)
            if index < older:
                self._counts[bound_name("stored_seconds", bound)] += older - index
                older = index
        if older:
            self._counts[bound_name("stored_seconds", INFINITY)] += older
        self._counts["stored_seconds:sum"] += (len(received) * now_ms - sum(received)) / 1000


def buckets(counters: Mapping[str, float], name: str, bounds: Sequence[float]) -> tuple[list[tuple[str, float]], float]:
    """A histogram's cumulative (upper bound, count), and the sum of its values, from the system's counters."""
    total = 0.0
    found = []
    for bound in (*bounds, INFINITY):
        total += counters.get(bound_name(name, bound), 0.0)
        found.append(("+Inf" if bound == INFINITY else str(bound), total))
    return found, counters.get(f"{name}:sum", 0.0)
