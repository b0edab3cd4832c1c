"""The circuit breaker of one process around the sink, and its link to the state that all processes share."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NoReturn, TypeVar

import pybreaker

from pipeline.clock import Clock
from pipeline.errors import BreakerOpenError, SinkUnavailableError, StoreUnavailableError, in_brief
from pipeline.names import PauseReason
from pipeline.ports.control import ControlState, ControlStore, PauseState
from pipeline.settings import Settings

T = TypeVar("T")

_logger = logging.getLogger(__name__)

# pybreaker half-opens on the first call after this time. Here only the prober does that, for all processes at once.
_NEVER_SECONDS: Final = 10 * 365 * 86_400.0


class SinkBreaker:
    """Opens after `breaker_failures_max` consecutive SinkUnavailableErrors, and pauses consumption in the whole system.

    Only a call that stores and returns proves that the sink stores. A call that only looks something up
    (`stores=False`) and any other error neither count nor reset the count. An open breaker stays open until the reason
    to pause of its generation is lifted (see `pipeline.probe`), so it needs `reconcile`. pybreaker keeps state and
    count. Results are reported to it after the call, because it holds its lock throughout a call and counts every
    BaseException as a failure or a success.
    """

    def __init__(self, settings: Settings, store: ControlStore, clock: Clock, name: str) -> None:
        self._store = store
        self._clock = clock
        self._name = name
        self._failures_max = settings.breaker_failures_max
        self._breaker = pybreaker.CircuitBreaker(fail_max=settings.breaker_failures_max, reset_timeout=_NEVER_SECONDS)
        self._lock = threading.Lock()
        self._epoch = 0  # grows with each opening, so that late results from before it can be recognised
        self._generation: int | None = None  # of the reason that this opening has set; None until it is stored
        self._why = ""

    @property
    def is_open(self) -> bool:
        return bool(self._breaker.current_state != pybreaker.STATE_CLOSED)

    def call(self, function: Callable[[], T], *, stores: bool = True) -> T:
        with self._lock:
            if self.is_open:
                raise BreakerOpenError
            epoch = self._epoch
        try:
            result = function()
        except SinkUnavailableError as error:
            if self._count_failure(epoch, str(error)):
                self._publish()
                raise BreakerOpenError(f"the circuit breaker has opened: {self._why}") from error
            raise
        if stores:
            self._count_success(epoch)
        return result

    def reconcile(self, state: ControlState | PauseState | None) -> None:
        """Compare with the shared state that was just read (None if the read failed).

        Publishes the opening until it is stored, also after a flush. Closes when the reason was lifted.
        """
        if state is None or not self.is_open:
            return
        if self._generation is None or state.pauses is None:  # never stored, or flushed; a second pause changes nothing
            self._publish()
            return
        held = next((pause for pause in state.pauses if pause.reason is PauseReason.BREAKER), None)
        if held is not None and held.generation <= self._generation:
            self._generation = held.generation  # lower: a flush restarts generations; another process was faster
        elif held is not None or state.generation >= self._generation:
            self._close()
        else:
            self._publish()  # no recorded change is newer than ours: the store was flushed

    def _count_success(self, epoch: int) -> None:
        with self._lock:
            if epoch == self._epoch:
                self._breaker.call(lambda: None)

    def _count_failure(self, epoch: int, why: str) -> bool:
        """Count a failure; True if it opened the breaker."""

        def fail() -> NoReturn:
            raise SinkUnavailableError(why)

        with self._lock:
            if epoch != self._epoch:
                return False
            try:
                self._breaker.call(fail)
            except SinkUnavailableError:
                return False
            except pybreaker.CircuitBreakerError:
                self._epoch += 1
                self._generation = None
                at = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%H:%M:%S UTC")
                self._why = f"{self._failures_max} failures in a row until {at}: {in_brief(why)}"
        _logger.error("circuit breaker opened: %s", self._why, extra={"action": "breaker_opened"})
        return True

    def _publish(self) -> None:
        """Set the reason to pause; if that fails, `reconcile` tries again."""
        try:
            self._generation = self._store.pause(PauseReason.BREAKER, actor=self._name, why=self._why)
        except StoreUnavailableError as error:
            self._generation = None
            _logger.warning("opening of the circuit breaker is not stored yet: %s", error, extra={"action": "pause"})

    def _close(self) -> None:
        with self._lock:
            self._breaker.close()
            self._generation = None
        _logger.warning("circuit breaker closed: its reason was lifted", extra={"action": "breaker_closed"})
