"""How much of a partition is stored at once, and when a batch that fails is the culprit itself. Pure."""

from typing import Final

from pipeline.errors import SinkUnavailableError
from pipeline.ports.sink import StoreResult
from pipeline.settings import Settings

# A batch that fails is tried again with an eighth of its records: from 5,000 to one within the tries that open the
# breaker.
_SHRINK: Final = 8
_GROWTH: Final = 2
# Failures in a row of one batch after which PostgreSQL is asked for another write before the next try.
_ASK_AFTER_FAILURES: Final = 2


class Pace:
    """A partition's batch size, which falls with failures and grows again, and the batch that fails again and again.

    Kept by a process from run to run, since a run may be too short to find a culprit. It decides:
    - a failure that a row can have caused: an eighth of the records;
    - two failures of one batch: ask PostgreSQL for another write. Where that fails, the server is the culprit, and
      the breaker counts on;
    - where it succeeds, and one record alone has failed as often as would open the breaker: this record is.
    """

    def __init__(self, settings: Settings) -> None:
        self._records_max = settings.drain_batch_records_max
        self._careful_max = settings.drain_careful_records_max
        self._failures_max = settings.breaker_failures_max
        self.records = self._records_max  # the most that is to be stored at once
        self._offset: int | None = None  # of the batch that fails
        self._failures = 0
        self._failures_alone = 0  # in a row, of its first record alone
        self._is_asked = False  # and PostgreSQL has taken another write since the last failure
        self.why = ""  # the last failure
        self.sqlstate: str | None = None  # of it

    def failed(self, offset: int, records: int, error: SinkUnavailableError) -> None:
        """Storing a batch of `records` from `offset` on has failed."""
        if offset != self._offset:
            self._offset, self._failures, self._failures_alone = offset, 0, 0
        self._failures += 1
        is_alone = records == 1 and error.is_a_row_possible
        self._failures_alone = self._failures_alone + 1 if is_alone else 0
        self.why, self.sqlstate = str(error), error.sqlstate
        self._is_asked = False
        if error.is_a_row_possible:
            self.records = max(1, min(self.records, records) // _SHRINK)

    def refused(self) -> None:
        """Some row of a batch was refused: it goes on in pieces that can be stored carefully."""
        self.records = min(self.records, self._careful_max)

    def must_ask(self, offset: int) -> bool:
        """Whether PostgreSQL is to be asked for another write before the batch at `offset` is tried again."""
        return offset == self._offset and self._failures >= _ASK_AFTER_FAILURES and not self._is_asked

    def asked(self) -> None:
        """PostgreSQL has taken another write."""
        self._is_asked = True

    def is_culprit(self, offset: int) -> bool:
        """Whether the record at `offset`, alone, is what makes storing fail."""
        return offset == self._offset and self._is_asked and self._failures_alone >= self._failures_max

    def forget(self) -> None:
        """The partition stops for a person: whatever failed is tried anew after that."""
        self._offset, self._failures, self._failures_alone = None, 0, 0

    def stored(self, result: StoreResult) -> None:
        """A batch was stored: a larger one may be next, unless this one needed care."""
        self._offset, self._failures = None, 0
        needed_care = result.repeated or result.conflicting or result.dead_lettered
        most = self._careful_max if needed_care else self._records_max
        if self.records < most:
            self.records = min(most, self.records * _GROWTH)
