"""What Beat knows of the pauses and of the event log without a read: two threads wait until one of them changes.

A thread waits on the server for up to WAIT_SECONDS, so an idle system costs a round trip in that time instead of one
for each period of the hints. What a thread has found is trusted for little longer than its wait. If a thread fails,
hangs or has ended, nothing is known, and the scheduler reads by itself at each period.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import SluiceError
from pipeline.flow.lag import lag_by_partition
from pipeline.follower import read_not_before
from pipeline.loops import Loop
from pipeline.names import LoopName
from pipeline.ports.control import ControlStore, PauseState
from pipeline.ports.log import EventLog

_logger = logging.getLogger(__name__)

WAIT_SECONDS: Final = 5.0  # of one wait on a server
TRUST_SECONDS: Final = WAIT_SECONDS + 2.0  # how long the end of one wait says something
_REST_SECONDS: Final = 3.0  # after an error, and while records wait in the log: the scheduler reads meanwhile
# Between two reads of the log's positions while nothing is appended: partitions may be added, and a commit lowered.
POSITIONS_SECONDS: Final = 10.0


class _Watch(ABC):
    """A thread that repeats a look.

    What a wait has found counts from the earliest time at which the server may have read it. If this process was
    frozen, the answer may have lain in its socket since.
    """

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._loop = Loop(LoopName.FOLLOWER, clock)
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def stop(self) -> None:
        """Let the thread end after its wait."""
        self._stopping.set()

    @abstractmethod
    def look(self) -> bool:
        """Look once, which may wait; returns whether the next look may follow at once."""

    def _run(self) -> None:
        while not self._stopping.is_set():
            is_well = False
            with self._loop.turn():
                is_well = self.look()
            if not is_well:
                self._stopping.wait(_REST_SECONDS)


class PausesWatch(_Watch):
    """Reads the pauses after each control event, and after each wait for one."""

    def __init__(self, store: ControlStore, clock: Clock) -> None:
        super().__init__(clock, "pauses-watch")
        self._store = store
        self._position = ""  # of the newest event read
        self._found: tuple[float, PauseState] | None = None  # when it was read, monotonic

    def state(self, now: float) -> PauseState | None:
        """The pauses; None if nothing is known."""
        found = self._found
        return found[1] if found is not None and now - found[0] <= TRUST_SECONDS else None

    def look(self) -> bool:
        """Wait for an event, and read the pauses."""
        try:
            seconds = WAIT_SECONDS if self._position else 0.0  # the position first: no event after it is missed
            asked_at = self._clock.monotonic()
            self._position, state = self._store.pause_state_after(self._position, wait_seconds=seconds)
            read_at = read_not_before(asked_at, self._clock.monotonic(), seconds)
            if state is None:
                read_at, state = self._clock.monotonic(), self._store.pause_state()
            self._found = read_at, state
        except SluiceError as error:
            _logger.debug("the pauses are unknown: %s", error)
            self._found = None
            return False
        return True


class LogWatch(_Watch):
    """Whether the event log holds nothing that is not stored, by its own commits."""

    def __init__(self, log: EventLog, clock: Clock) -> None:
        super().__init__(clock, "log-watch")
        self._log = log
        self._ends: Mapping[int, int] | None = None  # partition -> next offset to append, when all was stored
        self._read_at = 0.0  # when they were read
        self._quiet_at: float | None = None  # when nothing waited; None if something did, or that is unknown

    def is_quiet(self, now: float) -> bool:
        """Whether nothing waits in the log, and nothing was appended since that was read."""
        quiet_at = self._quiet_at
        return quiet_at is not None and now - quiet_at <= TRUST_SECONDS

    def look(self) -> bool:
        """Wait for a record behind what is stored; read the positions before if that is due."""
        try:
            if self._ends is None or self._clock.monotonic() - self._read_at >= POSITIONS_SECONDS:
                self._ends = self._stored_ends()
            asked_at = self._clock.monotonic()
            if self._ends is None or self._log.ready(self._ends, wait_seconds=WAIT_SECONDS):
                self._ends = self._quiet_at = None
                return False
        except SluiceError as error:
            _logger.debug("whether records wait in the event log is unknown: %s", error)
            self._ends = self._quiet_at = None
            return False
        self._quiet_at = read_not_before(asked_at, self._clock.monotonic(), WAIT_SECONDS)
        return True

    def _stored_ends(self) -> Mapping[int, int] | None:
        """The ends of all partitions; None if one has records that are not stored, or does not answer."""
        self._read_at = self._clock.monotonic()
        partitions = self._log.identity().partitions
        positions = self._log.positions()
        lags = lag_by_partition(positions, None)
        if lags is None or len(lags) < partitions or any(lags.values()):
            return None
        self._quiet_at = self._read_at
        return {position.partition: position.end for position in positions}
