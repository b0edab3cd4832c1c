"""Whether records wait in the event log, for Beat, which has no session of PostgreSQL."""

import logging
from typing import Final

from pipeline.clock import Clock
from pipeline.errors import SluiceError
from pipeline.flow.lag import lag_by_partition
from pipeline.ports.log import EventLog

_logger = logging.getLogger(__name__)

# After the log did not answer, or not soon, it is not asked for this time: all other ticks wait for its answer. A log
# with a silent broker answers without that one's partitions, after it has waited for it in several requests.
_LOG_REST_SECONDS: Final = 10.0
_SOON_SECONDS: Final = 0.3  # it takes some milliseconds
_IDENTITY_SECONDS: Final = 10.0  # between two reads of the log's identity, which has the number of its partitions


class Backlog:
    """Whether the event log may hold records that are not stored: only then is a missing drain missed at once.

    By the log's own commits, since Beat has no session of PostgreSQL. PostgreSQL may have come back with less than
    they say, so ticks that look at the drains themselves come from time to time in any case.
    """

    def __init__(self, log: EventLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._asks_at = clock.monotonic()
        self._known: tuple[float, int] | None = None  # when the identity was read, and the number of partitions

    def may_exist(self) -> bool:
        """Ask the log. True also if it does not say so, or not for all partitions."""
        asked_at = self._clock.monotonic()
        if asked_at < self._asks_at:
            return True
        try:
            partitions = self._partitions()
            lags = lag_by_partition(self._log.positions(), None)
        except SluiceError as error:
            _logger.debug("whether records wait in the event log is unknown: %s", error)
            self._known, self._asks_at = None, self._clock.monotonic() + _LOG_REST_SECONDS
            return True
        if self._clock.monotonic() - asked_at > _SOON_SECONDS:
            self._asks_at = self._clock.monotonic() + _LOG_REST_SECONDS
        return lags is None or len(lags) < partitions or any(lags.values())

    def _partitions(self) -> int:
        now = self._clock.monotonic()
        if self._known is None or now - self._known[0] >= _IDENTITY_SECONDS:
            self._known = now, self._log.identity().partitions
        return self._known[1]
