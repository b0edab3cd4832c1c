"""Deletes records of an event log that were stored long ago."""

from collections.abc import Sequence
from typing import Protocol

from pipeline.ports.log_marks import ExpiredRecords


class LogTrimmer(Protocol):
    """For a log that does not trim itself. Not for use by several threads at once."""

    def trim(self, log_id: str, expired: Sequence[ExpiredRecords]) -> dict[int, int]:
        """Delete what expired; returns the number of offsets that each partition gave up, without those with none.

        Deletes nothing of a partition that does not hold the last stored record at its offset: its records may be other
        ones, which nobody has read. Raises LogUnavailableError, also if the log is another one now.
        """
