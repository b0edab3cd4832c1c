"""Deletes records of an event log that were stored long ago."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.ports.log_marks import ExpiredRecords


@dataclass(frozen=True, slots=True)
class TrimResult:
    """What one call did, by partition."""

    freed: Mapping[int, int]  # the number of offsets that it gave up, without those with none
    left: Mapping[int, str] = field(default_factory=dict)  # why nothing of it was deleted, in words


class LogTrimmer(Protocol):
    """For a log that does not trim itself. Not for use by several threads at once."""

    def trim(self, log_id: str, expired: Sequence[ExpiredRecords]) -> TrimResult:
        """Delete what expired.

        Deletes nothing of a partition that does not hold the last stored record at its offset: its records may be other
        ones, which nobody has read. Raises LogUnavailableError, also if the log is another one now.
        """
