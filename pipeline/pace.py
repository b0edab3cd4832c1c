"""Decides how much of a partition is stored at once, and when one record is the cause of failures. Pure."""

from typing import Final

from pipeline.errors import SinkContentionError, SinkUnavailableError
from pipeline.ports.event_sink import StoreResult
from pipeline.settings import Settings

# A failed batch is retried with an eighth of its records: from 5,000 to one within the number of tries that opens the
# breaker.
_SHRINK: Final = 8
_GROWTH: Final = 2
# Consecutive failures of one batch after which another write to PostgreSQL is tried before the next try.
_ASK_AFTER_FAILURES: Final = 2
# Consecutive rollbacks of one batch in favour of other transactions. One more counts as a failure: of two transactions
# that block each other, one wins, but a trigger may raise such an error for a row each time.
_CONTENTIONS_MAX: Final = 20


class Pace:
    """A partition's batch size, which falls with failures and grows again, and the batch that fails repeatedly.

    A process keeps it from run to run, because a run may be too short to find the cause. It decides:
    - after a failure that a row can have caused: try an eighth of the records;
    - after two failures of one batch: try another write to PostgreSQL. If that fails, the server is the cause, and the
      breaker continues to count;
    - if that write succeeds, and one record alone has failed as often as opens the breaker: this record is the cause.
    """

    def __init__(self, settings: Settings) -> None:
        self._records_max = settings.drain_batch_records_max
        self._careful_max = settings.drain_careful_records_max
        self._failures_max = settings.breaker_failures_max
        self.records = self._records_max  # the maximum to store at once
        self._offset: int | None = None  # of the failing batch
        self._failures = 0
        self._failures_alone = 0  # consecutive, of its first record alone
        self._contended: tuple[int, int] | None = None  # offset of the batch that is rolled back, and how often it was
        self._is_asked = False  # PostgreSQL has taken another write since the last failure
        self.why = ""  # the last failure
        self.sqlstate: str | None = None  # of the last failure

    def failed(self, offset: int, records: int, error: SinkUnavailableError) -> None:
        """Record that storing a batch of `records` from `offset` on has failed."""
        if offset != self._offset:
            self._offset, self._failures, self._failures_alone = offset, 0, 0
        self._failures += 1
        is_alone = records == 1 and error.is_a_row_possible
        self._failures_alone = self._failures_alone + 1 if is_alone else 0
        self.why, self.sqlstate = str(error), error.sqlstate
        self._is_asked = False
        if error.is_a_row_possible:
            self.records = max(1, min(self.records, records) // _SHRINK)

    def contended(self, offset: int, records: int, error: SinkContentionError) -> None:
        """Record that a batch was rolled back in favour of another transaction; if often in a row, it has failed."""
        if error.sqlstate is None:
            return
        times = 1 + (self._contended[1] if self._contended is not None and self._contended[0] == offset else 0)
        self._contended = offset, times
        if times > _CONTENTIONS_MAX:
            self.failed(offset, records, SinkUnavailableError(str(error), sqlstate=error.sqlstate))

    def refused(self) -> None:
        """Record that a row of a batch was refused: continue in pieces small enough to look for the row."""
        self.records = min(self.records, self._careful_max)

    def must_ask(self, offset: int) -> bool:
        """Whether another write to PostgreSQL must be tried before the batch at `offset` is tried again."""
        return offset == self._offset and self._failures >= _ASK_AFTER_FAILURES and not self._is_asked

    def asked(self) -> None:
        """Record that PostgreSQL has taken another write."""
        self._is_asked = True

    def is_culprit(self, offset: int) -> bool:
        """Whether the record at `offset` alone makes storing fail."""
        return offset == self._offset and self._is_asked and self._failures_alone >= self._failures_max

    def forget(self) -> None:
        """Reset the failures: the partition stops until an operator acts, and everything is tried again after that."""
        self._offset, self._failures, self._failures_alone, self._contended = None, 0, 0, None

    def stored(self, result: StoreResult) -> None:
        """Record that a batch was stored: the next may be larger, unless this had repeated or refused records."""
        self._offset, self._failures, self._contended = None, 0, None
        needed_care = result.repeated or result.conflicting or result.dead_lettered
        most = self._careful_max if needed_care else self._records_max
        if self.records < most:
            self.records = min(most, self.records * _GROWTH)
