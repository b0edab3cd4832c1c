"""Samples what must hold at every moment: stored offsets in PostgreSQL, published rates in the control store."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg2

from faults.found import OffsetSample, RateSample
from faults.rig import Rig
from pipeline import wiring
from pipeline.errors import SluiceError
from pipeline.names import ControlEventKind

PERIOD_SECONDS = 0.1
JOIN_SECONDS_MAX = 10.0


class Watcher:
    """Two threads that never stand in each other's way; a server that is away is asked again.

    What ends one of them otherwise is kept in `failures`: what it watched was not judged from then on.
    """

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(what, watch), name=what, daemon=True)
            for what, watch in (("stored offsets", self._watch_offsets), ("published rates", self._watch_rates))
        ]
        self.offsets: list[OffsetSample] = []
        self.rates: list[RateSample] = []
        self.failures: list[str] = []

    def start(self) -> "Watcher":
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS_MAX)
            if thread.is_alive():
                self.failures.append(f"the watcher of {thread.name} hangs: nobody knows since when it saw nothing")

    def all_rates(self) -> list[RateSample]:
        """The samples, and what the control events say of changes between them."""
        return sorted(self.rates)

    def _guard(self, what: str, watch: Callable[[], None]) -> None:
        try:
            watch()
        except BaseException as error:  # a thread that ends in silence would leave nothing to judge
            self.failures.append(f"the watcher of {what} died at {time.time():.3f}, and saw nothing since: {error!r}")

    def _watch_offsets(self) -> None:
        """One connection while it lasts. Only changes are kept."""
        connection: Any = None
        last: dict[tuple[str, int], int] = {}
        while not self._stopping.wait(PERIOD_SECONDS):
            try:
                if connection is None:
                    connection = psycopg2.connect(
                        self._rig.direct.database_url, connect_timeout=1, options="-c statement_timeout=2s",
                        application_name="watcher",
                    )  # fmt: skip
                    connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("SELECT log_id, log_partition, next_offset FROM stored_offsets")
                    found = cursor.fetchall()
            except psycopg2.Error:
                connection = None
                continue
            at = time.time()
            for log_id, partition, next_offset in found:
                if last.get((log_id, partition)) != next_offset:
                    last[log_id, partition] = next_offset
                    self.offsets.append(OffsetSample(at, log_id, partition, next_offset))
        if connection is not None:
            connection.close()

    def _watch_rates(self) -> None:
        store = wiring.make_control_store(self._rig.direct)
        events = wiring.make_control_events(self._rig.direct)
        last_event = ""
        while not self._stopping.wait(PERIOD_SECONDS):
            at = time.time()
            try:
                state = store.state()
                story = events.last(20)
            except SluiceError:
                self.rates.append(RateSample(at, None))
                continue
            for event in story:
                if event.kind is ControlEventKind.RATE_CHANGED and event.id > last_event:
                    with contextlib.suppress(KeyError, ValueError):
                        self.rates.append(RateSample(event.at, float(event.data["rate"])))
            if story:
                last_event = story[-1].id
            self.rates.append(RateSample(at, state.rate.rate if state.rate is not None else None))
